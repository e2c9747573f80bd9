"""What a reader of one kind of source is: a value with its files, people, occupations, and what identifies its content.

corpus.py has the table of all readers. To add one: write its module with such a value, name it in that table and its
settings in CORPUS_KINDS (config/corpora.py), and add a file to conf/corpus.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from laborllm_dist.careers.person_records import PersonRecord, PersonThunk
from laborllm_dist.careers.types import CareerHistory, OccupationVocabulary
from laborllm_dist.config.corpora import VocabularySettings

Group = TypeVar("Group")


def _nothing(settings: Any) -> list[Any]:
    return []


def _any_year(settings: Any) -> dict[int, frozenset[str]]:
    return {}


def _none(settings: Any) -> None:
    return None


@dataclass(frozen=True, slots=True)
class Reader(Generic[Group]):
    """How the careers of one kind of source are read; every function takes the source's group of settings.

    Attributes:
        people: the people in the order of the source, under the survey's name.
        vocabulary: the occupations.
        files: what is read; a DataFileError says what is missing. Empty where careers are made or come with a package.
        own_occupations: the settings of a list of occupations that the user gives; None: the list ships.
        missing_variables: variables of the method that are absent and that the settings allow to be.
        reachable_by_year: the codes that can be observed in a year; empty where all can, in any year.
        notes: for the data card, what was taken otherwise than the method or the file has it.
        version: what identifies the content of a source without files.
    """

    people: Callable[[Group, str], Iterator[PersonThunk]]
    vocabulary: Callable[[Group], OccupationVocabulary]
    files: Callable[[Group], list[Path]] = _nothing
    own_occupations: Callable[[Group], VocabularySettings | None] = _none
    missing_variables: Callable[[Group], list[str]] = _nothing
    reachable_by_year: Callable[[Group], dict[int, frozenset[str]]] = _any_year
    notes: Callable[[Group], list[str]] = _nothing
    version: Callable[[], str] | None = None


def as_people(careers: Iterable[CareerHistory]) -> Iterator[PersonThunk]:
    """Return whole careers as people of whom nothing is left out."""
    return (functools.partial(PersonRecord, career) for career in careers)
