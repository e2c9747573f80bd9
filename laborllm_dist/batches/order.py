"""Say which careers a training step learns from: a function of (seed, step) alone.

Each epoch takes every career once, in an order drawn for that epoch; its last step takes what is left.
"""

from __future__ import annotations

import functools
import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


def generator(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    """Return a generator made from a seed, what it is for, and where in that it stands."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), *numbers])))


@dataclass(frozen=True, slots=True)
class TrainingOrder:
    """The order in which people are learnt from."""

    num_careers: int
    careers_per_step: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Number of steps that take every career once."""
        return -(-self.num_careers // self.careers_per_step)

    def careers_of_step(self, step: int) -> npt.NDArray[np.int64]:
        """Return the careers of a step, counted from 0 through all epochs."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = _epoch_order(self.num_careers, self.seed, epoch)
        return order[place * self.careers_per_step : (place + 1) * self.careers_per_step]


@functools.lru_cache(maxsize=2)
def _epoch_order(num_careers: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    return generator(seed, "order of careers", epoch).permutation(num_careers)
