"""Say which careers a training step learns from: a function of (seed, step) alone.

Each epoch takes every career as many times as its weight says, in an order drawn for that epoch; its last step takes
what is left. Of a weight with a fraction, such as 1.5, every career is taken once, and half of them, drawn anew for
each epoch, once more. So every epoch has the same number of steps.
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
    """The order in which careers are learned from: rows of the store, [careers], and their weights, [careers]."""

    rows: Rows
    weights: npt.NDArray[np.float64]
    global_batch_size: int
    seed: int

    @property
    def careers_per_epoch(self) -> int:
        """Number of careers an epoch takes, one that it takes twice counted twice."""
        values, counts = np.unique(self.weights, return_counts=True)
        return int(np.rint(values * counts).sum())

    @property
    def steps_per_epoch(self) -> int:
        """Number of steps of every epoch."""
        return -(-self.careers_per_epoch // self.global_batch_size)

    def careers_of_step(self, step: int) -> Rows:
        """Return the rows of a step, counted from 0 through all epochs."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = _epoch_order(self, epoch)
        return order[place * self.global_batch_size : (place + 1) * self.global_batch_size]


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
