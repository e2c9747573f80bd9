"""Train as launch/train.py does, on a disk that fails under the second save of rank 1.

Started by test_training_ranks.py as ranks.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import Any

from laborllm_dist.checkpoint import save as checkpoint_save
from laborllm_dist.cli import launch
from laborllm_dist.config.run import RunSettings
from laborllm_dist.distributed.context import init_distributed
from laborllm_dist.training.train import train


def main(settings: RunSettings) -> None:
    real = checkpoint_save.save_file
    num_calls = 0

    def save_file(*arguments: Any) -> None:
        nonlocal num_calls
        num_calls += 1
        if num_calls == 2 and ranks.rank == 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(*arguments)

    checkpoint_save.save_file = save_file
    with init_distributed(settings.ranks) as ranks:
        train(settings, ranks)


if __name__ == "__main__":
    sys.exit(launch(RunSettings, "run", main, ""))
