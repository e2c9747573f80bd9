"""What a reader gives of each person: the career, and every observation that is left out, with the reason.

A corpus is a sequence of people in a fixed order. A person is given as a call that reads the rest, so that one of
several processes, which all walk through the sequence, does the work for its own people only.
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
    """What the source has and the career has not: a year of a person, a job of unknown years, or the whole person.

    `code` is the source's occupation code where that leads to no occupation: the data card counts such codes.
    """

    reason: str
    year: int | None = None
    of: DropUnit = "person"
    code: str | None = field(default=None, compare=False)

    @property
    def unit(self) -> DropUnit:
        """What was left out."""
        return self.of if self.year is None else "person-year"


@dataclass(frozen=True, slots=True)
class CodedTitle:
    """A free job title, the title of the Census index it was taken for, with what score, and the code if it has one."""

    title: str
    matched_title: str | None
    score: float  # rounded to two places
    code: str | None


@dataclass(frozen=True, slots=True)
class PersonRecord:
    """One person of a source.

    `career` is None where nothing is left. `split` is set where the source itself says in which split a person is.
    `titles` are those that were coded, one for each job that has a year. `changes` says, once for each cell that was
    taken otherwise than it stands in the source, how: the data card counts them.
    """

    career: CareerHistory | None
    drops: tuple[Exclusion, ...] = ()
    split: Split | None = None
    titles: tuple[CodedTitle, ...] = ()
    changes: tuple[str, ...] = ()


PersonThunk = Callable[[], PersonRecord]


def read_all(people: Iterator[PersonThunk]) -> Iterator[PersonRecord]:
    """Yield everybody, read."""
    return (read() for read in people)
