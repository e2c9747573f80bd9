"""Turn the signals that end a process into a stop that all ranks agree on.

SIGTERM comes from Slurm's preemption and from launchers, SIGINT from Ctrl-C, SIGHUP from a terminal that is closed.
"""

from __future__ import annotations

import signal
from types import FrameType

from laborllm_dist.distributed.context import DistributedContext
from laborllm_dist.io.console import say_at_once

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class StopRequest:
    """Records these signals inside its block; the current step or pass is completed.

    A SIGHUP that the process was started to ignore, as `nohup` does, stays ignored.
    """

    def __init__(self, ranks: DistributedContext) -> None:
        self._ranks = ranks
        self._is_set = False

    def is_set(self) -> bool:
        """Return whether any rank has received a signal. Collective, so that all ranks stop at the same step."""
        (num_requests,) = self._ranks.sum(float(self._is_set))
        return num_requests > 0

    def __enter__(self) -> StopRequest:
        is_ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        heeded = [number for number in SIGNALS if not (number == signal.SIGHUP and is_ignored)]
        self._before = {number: signal.signal(number, self._note) for number in heeded}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        # A launcher sends SIGTERM after a Ctrl-C: only a second SIGINT means that the user is impatient.
        if self._ranks.is_main and not self._is_set:
            say_at_once("train: asked to stop; finishes this step, or this pass of the validation, and saves")
        elif self._ranks.is_main and number == signal.SIGINT:
            say_at_once("train: already stopping; kill -9 ends it at once, and costs what came after the last save")
        self._is_set = True
