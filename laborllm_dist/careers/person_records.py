"""The result of reading one person: the career, and every excluded observation with the reason.

A corpus is a sequence of people in a fixed order. Each person is a function that does the remaining work of reading,
so that several processes can iterate over the whole sequence and each does this work for its own people only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from laborllm_dist.careers.splits import Split
from laborllm_dist.careers.types import CareerHistory

DropUnit = Literal["person-year", "job", "person"]


@dataclass(frozen=True, slots=True)
class Exclusion:
    """An excluded part of the source: a year of a person, a job of unknown years, or the whole person.

    `code` is an occupation code of the source that maps to no occupation; the data card counts such codes.
    """

    reason: str
    year: int | None = None
    of: DropUnit = "person"
    code: str | None = field(default=None, compare=False)

    @property
    def unit(self) -> DropUnit:
        """The kind of the excluded part."""
        return self.of if self.year is None else "person-year"


@dataclass(frozen=True, slots=True)
class CodedTitle:
    """A free-text job title, the most similar title of the index, its score, and the assigned code, if any."""

    title: str
    matched_title: str | None
    score: float  # rounded to two places
    code: str | None


@dataclass(frozen=True, slots=True)
class PersonRecord:
    """One person of a source.

    `career` is None if no observation remains. `split` is set if the source assigns people to splits. `titles` has the
    coded titles, one for each job that has a year. `changes` has a description for each cell that was changed when
    read; the data card counts them.
    """

    career: CareerHistory | None
    drops: tuple[Exclusion, ...] = ()
    split: Split | None = None
    titles: tuple[CodedTitle, ...] = ()
    changes: tuple[str, ...] = ()


PersonThunk = Callable[[], PersonRecord]


def read_all(people: Iterator[PersonThunk]) -> Iterator[PersonRecord]:
    """Yield the records of all people."""
    return (read() for read in people)
