"""Make the batches of the next step while this one is computed, so that no rank waits for data."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from laborllm_dist.batching.batch import PackedBatch

Batches = list[PackedBatch]


class BatchPrefetcher:
    """The batches of steps, one step made ahead by a thread; what they are is a function of the step alone."""

    def __init__(self, make: Callable[[int], Batches], *, num_steps: int) -> None:
        """Take `make`, which gives this rank's batches of a step, one a pass."""
        self._make = make
        self._num_steps = num_steps
        self._maker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
        self._made: dict[int, Future[Batches]] = {}

    def of_step(self, step: int) -> Batches:
        """Return the batches of a step, and have those of the next one made."""
        wanted = self._made.pop(step, None) or self._maker.submit(self._make, step)
        if step + 1 < self._num_steps:
            self._made[step + 1] = self._maker.submit(self._make, step + 1)
        return wanted.result()

    def __enter__(self) -> BatchPrefetcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._maker.shutdown(wait=True, cancel_futures=True)
