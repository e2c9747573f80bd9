"""Train as launch/train.py does, but be asked to stop in the middle of the last validation.

Started by test_training_ranks.py in a process of its own.
"""

from __future__ import annotations

import signal
import sys
from typing import Any

from laborllm_dist.cli import launch
from laborllm_dist.config.run import RunSettings
from laborllm_dist.distributed.context import init_distributed
from laborllm_dist.training import loop, train


def main(settings: RunSettings) -> None:
    real = loop.validate
    num_calls = 0

    def validate(*arguments: Any, **named: Any) -> Any:
        nonlocal num_calls
        num_calls += 1
        if num_calls == settings.training.epochs:
            signal.raise_signal(signal.SIGTERM)
        return real(*arguments, **named)

    loop.validate = validate
    with init_distributed(settings.ranks) as ranks:
        train.train(settings, ranks)


if __name__ == "__main__":
    sys.exit(launch(RunSettings, "run", main, ""))
