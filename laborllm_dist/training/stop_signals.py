"""SIGTERM (Slurm's preemption, the launcher) and SIGINT (Ctrl-C) as a wish that all ranks agree on, not as a death."""

from __future__ import annotations

import signal
from types import FrameType

from laborllm_dist.engine.ranks import Ranks
from laborllm_dist.terminal import say_at_once


class StopSignals:
    """Notes both signals inside its block; the step or pass that is being computed is finished."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._is_wanted = False

    def are_wanted(self) -> bool:
        """Return whether any rank has been asked to stop. Collective, so that all leave at the same place."""
        (num_asked,) = self._ranks.sum(float(self._is_wanted))
        return num_asked > 0

    def __enter__(self) -> StopSignals:
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        # A launcher sends SIGTERM after a Ctrl-C: only a second SIGINT is somebody's impatience.
        if self._ranks.is_first and not self._is_wanted:
            say_at_once("train: asked to stop; finishes this step, or this pass of the validation, and saves")
        elif self._ranks.is_first and number == signal.SIGINT:
            say_at_once("train: already stopping; kill -9 ends it at once, and costs what came after the last save")
        self._is_wanted = True
