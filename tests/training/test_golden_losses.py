"""Loss curves of a tiny Llama are those recorded on the same kind of machine, bit for bit; elsewhere nearly so.

tests/assets/golden_losses.json has the curves by version of torch and kind of processor. On another kind of machine, or
after a new torch, the curves are compared with the nearest recorded ones to TOLERANCE, and
`pytest --record-golden tests/training/test_golden_losses.py` records those of this machine beside them. A curve that is
recorded anew where one was recorded before means that training computes something else: say why in the commit.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from conftest import ASSETS
from helpers.processes import run_well
from helpers.runs import small_run
from helpers.trained_runs import losses

pytestmark = pytest.mark.ranks

GOLDEN = ASSETS / "golden_losses.json"
TOLERANCE = 1e-4  # relative: sums in another order, amplified by 24 steps of Adam
CURVES = {"all_weights": [], "lora": ["adapter=lora", "adapter.rank=4", "adapter.alpha=8"]}


def this_machine() -> str:
    """Return the version of torch and what decides which kernels it takes on this processor."""
    cpu = Path("/proc/cpuinfo").read_text()
    vendor, family = (re.search(rf"(?m)^{name}\s*: (.+)$", cpu) for name in ("vendor_id", "cpu family"))
    kind = f"{vendor[1]} family {family[1]}" if vendor and family else "another processor"
    return f"torch {torch.__version__}, {kind}, {torch.backends.cpu.get_cpu_capability()}"


@pytest.mark.parametrize("curve", CURVES)
def test_losses_are_those_that_were_recorded(
    curve: str, llama: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    settings = [override for override in small_run(tmp_path) if not override.startswith(("model.", "tokenizer."))]
    pretrained = ["model=pretrained", f"model.path={llama}", "tokenizer=pretrained", "optimizer.learning_rate=1e-3"]
    steps = ["training.epochs=8", "batch.global_batch_size=16", "training.log_every_steps=1"]
    run_well("train.py", [*settings, *pretrained, *steps, *CURVES[curve]], world_size=1, log=tmp_path / "log")
    curve_here = losses(tmp_path / "runs/small")
    assert len(curve_here) == 24
    assert curve_here[-1] < curve_here[0] - 1e-2  # something is learned
    recorded = json.loads(GOLDEN.read_text()) if GOLDEN.is_file() else {}
    machine = this_machine()
    if request.config.getoption("--record-golden"):
        recorded.setdefault(machine, {})[curve] = curve_here
        GOLDEN.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n")
    elif machine in recorded:
        assert curve_here == recorded[machine][curve]
    else:
        same_torch = [key for key in recorded if key.startswith(machine.split(",")[0])]
        assert curve_here == pytest.approx(recorded[(same_torch or list(recorded))[0]][curve], rel=TOLERANCE)
