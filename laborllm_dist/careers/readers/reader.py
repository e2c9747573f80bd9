"""The interface of a reader of one kind of source: functions for its files, people, occupations and notes.

corpus.py has the table of all readers. To add one, write a module with a `Reader`, add it to that table, add its
settings to CORPUS_KINDS (config/corpora.py), and add a file to conf/corpus.
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
class SourceTerms:
    """Where a source comes from and what may be done with it, for model cards and replication packages.

    Attributes:
        title: the data, in one phrase.
        access: where others get it, at what cost, and what they must do for it.
        rights: what may be redistributed.
        citation: how its distributor asks to be cited; YEAR and DATE stand for what the author fills in.
        may_be_shared: whether the data, and what was learned from them, may be passed on as far as this is known.
    """

    title: str
    access: str
    rights: str
    citation: str
    may_be_shared: bool


OWN_DATA = SourceTerms(
    title="Data of the authors' own",
    access="[Authors: where others can obtain these data, at what cost, how long it takes, and whom to ask.]",
    rights="[Authors: whether these data, and models trained on them, may be redistributed, and under which license.]",
    citation="[Authors: how to cite these data.]",
    may_be_shared=False,
)


@dataclass(frozen=True, slots=True)
class Reader(Generic[Group]):
    """Functions that read one kind of source; each takes the settings of the source.

    Attributes:
        people: the people in the order of the source; the second argument is the survey's name.
        vocabulary: the occupations.
        files: the source files; raises DataFileError if one is missing. Empty for synthetic and packaged sources.
        own_occupations: settings of the user's list of occupations; None: the list comes with this software.
        missing_variables: missing variables of the method, if the settings allow them to be missing.
        reachable_by_year: codes that can be observed in a year; empty if all can be observed in any year.
        notes: notes for the data card on values that were read differently from the method or the file.
        version: fingerprint of the content of a source without files.
        terms: access, rights and citation.
    """

    people: Callable[[Group, str], Iterator[PersonThunk]]
    vocabulary: Callable[[Group], OccupationVocabulary]
    files: Callable[[Group], list[Path]] = _nothing
    own_occupations: Callable[[Group], VocabularySettings | None] = _none
    missing_variables: Callable[[Group], list[str]] = _nothing
    reachable_by_year: Callable[[Group], dict[int, frozenset[str]]] = _any_year
    notes: Callable[[Group], list[str]] = _nothing
    version: Callable[[], str] | None = None
    terms: SourceTerms = OWN_DATA


def as_people(careers: Iterable[CareerHistory]) -> Iterator[PersonThunk]:
    """Return careers as people without exclusions."""
    return (functools.partial(PersonRecord, career) for career in careers)
