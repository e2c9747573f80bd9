"""Train as launch/train.py does, but be asked to stop in the middle of the last validation.

Started by test_training_ranks.py in a process of its own.
"""

from __future__ import annotations

import signal
import sys
from typing import Any

from laborllm_dist.compose import launch
from laborllm_dist.engine.ranks import open_ranks
from laborllm_dist.settings import RunSettings
from laborllm_dist.training import loop, run_steps


def main(settings: RunSettings) -> None:
    real = run_steps.validate
    num_calls = 0

    def validate(*arguments: Any) -> Any:
        nonlocal num_calls
        num_calls += 1
        if num_calls == settings.training.epochs:
            signal.raise_signal(signal.SIGTERM)
        return real(*arguments)

    run_steps.validate = validate
    with open_ranks(settings.ranks) as ranks:
        loop.train(settings, ranks)


if __name__ == "__main__":
    sys.exit(launch(RunSettings, "run", main, ""))
