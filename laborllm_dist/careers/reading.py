"""What a reader gives of each person: the career, and every observation that is left out, with the reason.

A corpus is a sequence of people in a fixed order. A person is given as a call that reads the rest, so that one of
several processes, which all walk through the sequence, does the work for its own people only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from laborllm_dist.careers.history import CareerHistory
from laborllm_dist.careers.splits import Split


@dataclass(frozen=True, slots=True)
class Drop:
    """An observation that the source has and the career has not; without a year, it stands for the whole person."""

    reason: str
    year: int | None = None


@dataclass(frozen=True, slots=True)
class PersonRead:
    """One person of a source.

    `career` is None where nothing is left. `split` is set where the source itself says in which split a person is.
    """

    career: CareerHistory | None
    drops: tuple[Drop, ...] = ()
    split: Split | None = None


ReadPerson = Callable[[], PersonRead]


def read_all(people: Iterator[ReadPerson]) -> Iterator[PersonRead]:
    """Yield everybody, read."""
    return (read() for read in people)
