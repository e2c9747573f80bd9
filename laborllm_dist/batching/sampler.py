"""Sample the careers of each training step, as a function of (seed, step) alone.

Each epoch takes every career as many times as its weight, shuffled anew for that epoch; the last step takes the
remaining careers. With a fractional weight, such as 1.5, every career is taken once, and a random half, drawn anew for
each epoch, a second time. So every epoch has the same number of steps.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from laborllm_dist.randomness import generator

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class TrainingSampler:
    """The order of the training careers: `rows` of the store, [careers], and their `weights`, [careers]."""

    rows: Rows
    weights: npt.NDArray[np.float64]
    global_batch_size: int
    seed: int

    @property
    def careers_per_epoch(self) -> int:
        """Number of careers of an epoch; a career that is taken twice counts twice."""
        return _careers_per_epoch(self)

    @property
    def steps_per_epoch(self) -> int:
        """Number of steps of each epoch."""
        return -(-self.careers_per_epoch // self.global_batch_size)

    def careers_of_step(self, step: int) -> Rows:
        """Return the rows of a step, counted from 0 through all epochs."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = _epoch_order(self, epoch)
        return order[place * self.global_batch_size : (place + 1) * self.global_batch_size]


@functools.lru_cache(maxsize=2)
def _careers_per_epoch(order: TrainingSampler) -> int:
    values, counts = np.unique(order.weights, return_counts=True)  # sorts all careers: not at every step
    return int(np.rint(values * counts).sum())


@functools.lru_cache(maxsize=2)
def _epoch_order(order: TrainingSampler, epoch: int) -> Rows:
    taken: list[Rows] = []
    for index, weight in enumerate(np.unique(order.weights)):
        rows = order.rows[order.weights == weight]
        num_times, num_all = int(weight), int(np.rint(weight * len(rows)))
        once_more = generator(order.seed, "careers taken once more", epoch, index).permutation(len(rows))
        taken += [rows] * num_times + [rows[np.sort(once_more[: num_all - num_times * len(rows)])]]
    careers = np.concatenate(taken)
    return careers[generator(order.seed, "order of careers", epoch).permutation(len(careers))]
