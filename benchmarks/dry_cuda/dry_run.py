"""Run a script under the CUDA runtime that needs no GPU: python dry_run.py SCRIPT [argument ...].

Every copy from that device is zeros, and so is what a collective brings. DeepSpeed's ZeRO-3 compares the order of
layers between ranks that way, and would find a disagreement.
"""

from __future__ import annotations

import runpy
import sys

from deepspeed.runtime.zero import partitioned_param_coordinator

partitioned_param_coordinator.assert_ints_same_as_other_ranks = lambda ints: None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
