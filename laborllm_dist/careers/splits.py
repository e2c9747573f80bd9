"""Assign the observations of every career to train, validation and test, so that nobody's split depends on others.

People are identified by population and person. Two corpora of one population (two extracts of one survey, say) assign a
person to the same split, so that no test person of one corpus is a training person of the other.

    split_by=person      a keyed hash of (population, person)
    split_by=household   a keyed hash of (population, household), from a table of people
    split_by=column      a column of a table of people that names the split
    split_by=file        a file of ids for each split
    split_by=year        observations by their year; a career's segments are in up to three splits

A source that assigns people to splits itself (CAREER's text files) keeps its own under split_by=person.
"""

from __future__ import annotations

import dataclasses
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from laborllm_dist.careers.readers.cells import InexactIdError, person_id, same_code, with_plain_blanks
from laborllm_dist.careers.readers.file_formats import reject_other_formats
from laborllm_dist.careers.readers.tabular import (
    column_names,
    missing_column,
    note_doubled,
    read_rows,
    text_lines,
    unit_of,
)
from laborllm_dist.careers.types import CareerHistory
from laborllm_dist.careers.validation_report import Problems
from laborllm_dist.config.corpora import LongPanelCorpus, is_missing
from laborllm_dist.config.data import (
    ColumnSplit,
    DataSettings,
    FileSplit,
    HouseholdSplit,
    ListedPeopleSettings,
    PeopleTableSettings,
    SharesSettings,
    SplitSettings,
    YearSplit,
)
from laborllm_dist.errors import DataFileError
from laborllm_dist.randomness import person_digest

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
UNLISTED = "person whom the file of the split does not list"


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive jobs of a career, [first, end), that are observations of one split."""

    split: Split
    first: int
    end: int


@dataclass(frozen=True, slots=True)
class ListedPeople:
    """The people whom a split's files list: digests, sorted, and the number of the split or digest of the household."""

    digests: npt.NDArray[np.uint64]
    values: npt.NDArray[np.uint64]

    def value_of(self, digest: int) -> int | None:
        """Return the value of a person; None if nobody has this digest."""
        place = int(np.searchsorted(self.digests, np.uint64(digest)))
        is_listed = place < len(self.digests) and int(self.digests[place]) == digest
        return int(self.values[place]) if is_listed else None


@dataclass(frozen=True, slots=True)
class CareerSplits:
    """The rule of a split, with the people whom its files list; None: it needs no files."""

    settings: SplitSettings
    listed: ListedPeople | None = None

    def segments(self, population: str, career: CareerHistory, given: Split | None) -> tuple[Segment, ...]:
        """Return the segments of a career, in order; none if the person is left out.

        Args:
            population: of the corpus.
            career: at least one job.
            given: the split that the source assigns the person to, if it does.

        Raises:
            DataFileError: if the split's files do not list the person, and unlisted=error.
        """
        if isinstance(self.settings, YearSplit):
            years = [job.year for job in career.jobs]
            ends = (self.settings.last_training_year, self.settings.last_validation_year, max(years))
            places = [0, *(sum(year <= end for year in years) for end in ends)]
            segments = [Segment(*each) for each in zip(SPLITS, places, places[1:], strict=False)]
            return tuple(each for each in segments if each.end > each.first)
        split = self._split_of_person(population, career, given)
        return () if split is None else (Segment(split, 0, len(career.jobs)),)

    def training_career(self, population: str, career: CareerHistory, given: Split | None) -> CareerHistory | None:
        """Return a career with its training observations alone; None if it has none."""
        ends = [each.end for each in self.segments(population, career, given) if each.split == "train"]
        return dataclasses.replace(career, jobs=career.jobs[: ends[0]]) if ends else None

    def _split_of_person(self, population: str, career: CareerHistory, given: Split | None) -> Split | None:
        settings = self.settings
        if self.listed is None:
            assert isinstance(settings, SharesSettings)
            return given or split_of(population, career.person, settings)
        value = self.listed.value_of(person_digest(population, career.person, settings.salt))
        if value is not None:
            return split_of_digest(value, settings) if isinstance(settings, HouseholdSplit) else SPLITS[value]
        assert isinstance(settings, ListedPeopleSettings)
        if settings.unlisted == "error":
            raise DataFileError(
                f"the file of split_by={settings.by} does not list person {career.person!r} of {career.survey}; add "
                "the person, or leave out everybody whom it does not list (split.unlisted=leave_out)",
                code="person-not-in-split-file",
            )
        return None


def split_of_digest(digest: int, settings: SharesSettings) -> Split:
    """Return the split of a person or household from the digest of the id, an unsigned 64-bit integer."""
    share = digest / 2**64
    if share < settings.train:
        return "train"
    return "validation" if share < settings.train + settings.validation else "test"


def split_of(population: str, person: str, settings: SharesSettings) -> Split:
    """Return the split of a person by the person's own hash: a function of key, population and person alone."""
    return split_of_digest(person_digest(population, person, settings.salt), settings)


def in_fraction(population: str, person: str, settings: SplitSettings, fraction: float) -> bool:
    """Return whether a person is in this fraction of the population; fractions are nested, 20 % within 40 %."""
    return person_digest(population, person, f"fraction {settings.salt}") < fraction * 2**64


def split_files(settings: SplitSettings) -> list[Path]:
    """Return the files that a split needs beside those of the corpora.

    Raises:
        DataFileError: if one is missing.
    """
    names: tuple[str, ...] = ()
    if isinstance(settings, FileSplit):
        names = ("train_ids", "validation_ids", "test_ids")
    elif isinstance(settings, PeopleTableSettings) and settings.table is not None:
        names = ("table",)
    for name in names:
        if not Path(getattr(settings, name)).is_file():
            raise DataFileError(f"no file at {getattr(settings, name)} (setting split.{name})", code="no-split-file")
    return [Path(getattr(settings, name)) for name in names]


def career_splits(settings: SplitSettings, data: DataSettings) -> CareerSplits:
    """Return the rule of a split, after reading its files.

    Raises:
        DataFileError: if a file is missing or unusable, or a person has two splits or households in it.
    """
    files = split_files(settings)
    if isinstance(settings, FileSplit):
        (population,) = {corpus.people_of for corpus in data.corpora.values()}
        people = _People("their split")
        for number, path in enumerate(files):
            people.read_ids(path, lambda person: person_digest(population, person, settings.salt), number)
    elif isinstance(settings, PeopleTableSettings):
        people = _People(f"column {settings.column}")
        for table in _tables(settings, data):
            people.read_table(table, settings)
    else:
        return CareerSplits(settings)
    return CareerSplits(settings, people.listed())


@dataclass(frozen=True, slots=True)
class _Table:
    """A table of people: its file, its columns of persons and populations, and the populations of the corpora."""

    path: Path
    person: str
    population: str | None
    populations: tuple[str, ...]  # with a column of populations: those to read; else the only one


def _tables(settings: PeopleTableSettings, data: DataSettings) -> Iterator[_Table]:
    if settings.table is not None:
        populations = dict.fromkeys(corpus.people_of for corpus in data.corpora.values())
        yield _Table(Path(settings.table), settings.person, settings.population, tuple(populations))
        return
    for corpus in data.corpora.values():
        assert isinstance(corpus, LongPanelCorpus)  # RunSettings requires it
        yield _Table(Path(corpus.path), corpus.columns.person, None, (corpus.people_of,))


@dataclass(slots=True)
class _People:
    """The people of a split's files that have been read so far, with the file and line of each."""

    subject: str  # what has one value per person, for messages
    paths: list[Path] = dataclasses.field(default_factory=list)
    digests: array[int] = dataclasses.field(default_factory=lambda: array("Q"))
    values: array[int] = dataclasses.field(default_factory=lambda: array("Q"))
    places: array[int] = dataclasses.field(default_factory=lambda: array("Q"))
    files: array[int] = dataclasses.field(default_factory=lambda: array("H"))

    def _add(self, digest: int, value: int, place: int) -> None:
        self.digests.append(digest)
        self.values.append(value)
        self.places.append(place)
        self.files.append(len(self.paths) - 1)

    def read_ids(self, path: Path, digest_of: Callable[[str], int], value: int) -> None:
        """Read a file of ids, one a line."""
        self.paths.append(path)
        reject_other_formats(path)
        problems = Problems(path, "line")
        with path.open("rb") as file:
            for place, line in enumerate(text_lines(file, problems), start=1):
                cell = with_plain_blanks(line)
                if cell and (person := _person(cell, place, None, problems)) is not None:
                    self._add(digest_of(person), value, place)
        problems.reject_if_any()

    def read_table(self, table: _Table, settings: PeopleTableSettings) -> None:
        """Read a table of people; a row whose cell in the column is missing lists nobody."""
        self.paths.append(table.path)
        problems = Problems(table.path, unit_of(table.path))
        names = (table.person, settings.column, *([table.population] if table.population else []))
        rows = read_rows(table.path, problems, lambda header: names)
        place, header = next(rows, (1, []))
        known = column_names(header)
        note_doubled([name for name in known if name in names], place, problems)
        for use, name in zip(("person", "column", "population"), names, strict=False):
            if name not in known:
                problems.add(place, name, missing_column(use, known, is_optional=False))
        problems.reject_if_any()
        columns = [known.index(name) for name in names]
        number_of = _numbers_of_words(settings)
        for place, row in rows:
            if len(row) != len(header):
                problems.add(place, None, f"{len(row)} values, the header has {len(header)}")
                continue
            name, cell, *population = (with_plain_blanks(row[column]) for column in columns)
            if is_missing(cell) or (population and population[0] not in table.populations):
                continue
            if (person := _person(name, place, table.person, problems)) is None:
                continue
            of_population = population[0] if population else table.populations[0]
            value: int | None
            if isinstance(settings, HouseholdSplit):
                value = person_digest(of_population, f"household {same_code(cell)}", settings.salt)
            else:
                value = number_of.get(same_code(cell).casefold())
                if value is None:
                    words = ", ".join(number_of)
                    problems.add(place, settings.column, f"{cell!r} names no split; those are {words}")
                    continue
            self._add(person_digest(of_population, person, settings.salt), value, place)
        problems.reject_if_any()

    def listed(self) -> ListedPeople:
        """Return the people, once each.

        Raises:
            DataFileError: if a person has two values.
        """
        digests, values = np.array(self.digests, dtype=np.uint64), np.array(self.values, dtype=np.uint64)
        order = np.argsort(digests, kind="stable")
        digests, values = digests[order], values[order]
        is_same = digests[1:] == digests[:-1]
        if len(twice := np.flatnonzero(is_same & (values[1:] != values[:-1]))):
            first, second = (self._place(int(order[place])) for place in (twice[0], twice[0] + 1))
            raise DataFileError(
                f"{first} and {second} are of one person and differ in {self.subject} ({len(twice):,} such people); a "
                "person has one value",
                code="person-has-two-values",
            )
        is_first = np.concatenate([np.ones(min(len(digests), 1), dtype=bool), ~is_same])
        return ListedPeople(digests[is_first], values[is_first])

    def _place(self, row: int) -> str:
        path = self.paths[self.files[row]]
        return f"{unit_of(path)} {self.places[row]} of {path}"


def _numbers_of_words(settings: PeopleTableSettings) -> dict[str, int]:
    """Return the number of the split that each word of the column names."""
    if not isinstance(settings, ColumnSplit):
        return {}
    words = (settings.train_values, settings.validation_values, settings.test_values)
    return {word.casefold(): number for number, each in enumerate(words) for word in each}


def _person(cell: str, place: int, column: str | None, problems: Problems) -> str | None:
    """Return a person's id in its canonical form; None, with a problem added, if it is missing or inexact."""
    if is_missing(cell):
        problems.add(place, column, "empty")
        return None
    try:
        return person_id(cell)
    except InexactIdError as error:
        problems.add(place, column, str(error))
        return None
