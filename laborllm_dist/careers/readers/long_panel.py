"""Read any table with one row per person and year as careers.

The whole file is checked before the first career is returned: a missing column, a duplicate person and year, a year
before birth, an unknown code, text that is not UTF-8 or a truncated file raises an error with file, line and column.
Gender, ethnicity and birth year must not change within a person. The region may (people move): the career has the
region of the earliest year, since the template has one region per worker.

Panels have rows of years without work: a row whose occupation is missing, or a negative number, the code of surveys for
a missing answer, is excluded and counted. With a status column, years follow the rule of the surveys
(careers/readers/person_years.py): the occupation of a year without work is a state.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from laborllm_dist.careers.occupations.vocabulary import Occupations, read_occupations
from laborllm_dist.careers.person_records import Exclusion, PersonRecord, PersonThunk
from laborllm_dist.careers.readers.cells import (
    OTHER_BLANK,
    InexactIdError,
    as_year,
    person_id,
    same_code,
    whole_number,
    with_plain_blanks,
)
from laborllm_dist.careers.readers.file_formats import reject_other_formats
from laborllm_dist.careers.readers.person_years import Status, observed_occupation, why_left_out
from laborllm_dist.careers.readers.reader import Reader
from laborllm_dist.careers.readers.tabular import column_names, missing_column, note_doubled, read_rows, unit_of
from laborllm_dist.careers.types import CareerHistory, Job
from laborllm_dist.careers.validation_report import Problems
from laborllm_dist.config.corpora import (
    EARLIEST_YEAR,
    LATEST_YEAR,
    LongPanelSettings,
    StatusSettings,
    without_capitals,
)
from laborllm_dist.errors import DataFileError

FIXED = ("birth_year", "gender", "ethnicity")
OPTIONAL = (*FIXED, "region", "education")
COLUMNS = ("person", "year", "occupation", *OPTIONAL, "status")
_STATUSES: tuple[Status, ...] = get_args(Status)


@dataclass(frozen=True, slots=True)
class _Year:
    """A row of a person: the occupation or the reason why there is none, the education, the status, and the line."""

    occupation: str | None
    why_none: str | None
    code: str | None  # code of the file that maps to no occupation
    education: str | None
    status: Status | None
    place: int


@dataclass(slots=True)
class _Worker:
    """The rows of one person that have been read so far."""

    facts: dict[str, str] = field(default_factory=dict)
    regions: dict[int, str] = field(default_factory=dict)  # by year
    years: dict[int, _Year] = field(default_factory=dict)
    changes: list[str] = field(default_factory=list)


def read_long_panel(settings: LongPanelSettings, *, survey: str) -> Iterator[CareerHistory]:
    """Return the careers of `long_panel_people`, without the exclusions.

    Raises:
        LaborError: as in `long_panel_people`.
    """
    people = long_panel_people(settings, survey=survey)
    return (career for read in people if (career := read().career) is not None)


def long_panel_people(settings: LongPanelSettings, *, survey: str) -> Iterator[PersonThunk]:
    """Return the people of a panel, with their exclusions, in the order of their first row.

    Raises:
        DataFileError: with the number of problems of the file and the first ten.
        VocabularyError: if the list of occupations is unusable.
    """
    path = Path(settings.path)
    occupations = read_occupations(settings.vocabulary)
    problems = Problems(path, unit_of(path))
    named = {getattr(settings.columns, name) for name in COLUMNS}
    rows = read_rows(path, problems, lambda names: [name for name in names if name in named])
    place, header = next(rows, (1, []))
    columns = _locate_columns(settings, header, place, problems)
    problems.reject_if_any()
    panel = _Panel(settings, occupations, problems, without_capitals(settings.missing))
    for place, values in rows:
        if len(values) == len(header):
            panel.add(place, {name: values[index] for name, index in columns.items()})
        else:
            problems.add(place, None, f"{len(values)} values, the header has {len(header)}")
    if not panel.workers and not problems.num_found:
        raise DataFileError(f"{path}: a header, but no rows", code="no-rows")
    problems.reject_if_any()
    return (
        functools.partial(_read_person, person, worker, survey, settings, occupations)
        for person, worker in panel.workers.items()
    )


def _locate_columns(settings: LongPanelSettings, header: list[str], place: int, problems: Problems) -> dict[str, int]:
    names = column_names(header)
    note_doubled(names, place, problems)
    located: dict[str, int] = {}
    for field_name in COLUMNS:
        column = getattr(settings.columns, field_name)
        if column is None:
            continue
        if column in names:
            located[field_name] = names.index(column)
        else:
            is_optional = field_name not in ("person", "year", "occupation")
            problems.add(place, column, missing_column(field_name, names, is_optional=is_optional))
    return located


@dataclass(frozen=True, slots=True)
class _Panel:
    """The rows of a panel that have been read so far. Problems of a row are collected."""

    settings: LongPanelSettings
    occupations: Occupations
    problems: Problems
    missing: frozenset[str]
    workers: dict[str, _Worker] = field(default_factory=dict)

    def add(self, place: int, values: Mapping[str, str]) -> None:
        """Add one row."""
        cells = {name: value.strip() for name, value in values.items()}
        changed: list[str] = []
        whole_row = "".join(values.values())
        if not (whole_row.isascii() and whole_row.isprintable()):  # rare: check each cell
            cells, changed = self._plain_cells(cells)
            for name, cell in cells.items():
                if not cell.isprintable():
                    self._note(place, name, f"{cell!r} holds a line break, control character or odd blank")
                    return
        if self._is_missing(cells["person"]):
            self._note(place, "person", "empty")
            return
        try:
            person = person_id(cells["person"])
        except InexactIdError as error:
            self._note(place, "person", str(error))
            return
        year = as_year(cells["year"])
        if year is None:
            self._note(place, "year", f"{cells['year']!r} is not a year from {EARLIEST_YEAR} to {LATEST_YEAR}")
            return
        if (worker := self.workers.get(person)) is None:
            worker = self.workers[person] = _Worker()
        worker.changes += changed
        if year in worker.years:
            first = f"first at {self.problems.unit} {worker.years[year].place}"
            self._note(place, "year", f"person {person!r} has {year} twice, {first}")
        else:
            self._add_year(place, {**cells, "person": person}, worker, year)

    def _plain_cells(self, cells: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
        """Return cells with plain spaces, and the notes for the data card on those that changed."""
        plain = {name: with_plain_blanks(cell) for name, cell in cells.items()}
        names = [getattr(self.settings.columns, name) for name in cells if plain[name] != cells[name]]
        return plain, [f"column {name}: {OTHER_BLANK}, taken as a space" for name in names]

    def _is_missing(self, cell: str) -> bool:
        return not cell or cell.casefold() in self.missing

    def _add_year(self, place: int, cells: Mapping[str, str], worker: _Worker, year: int) -> None:
        facts = {name: same_code(cell) for name in OPTIONAL if (cell := cells.get(name)) and not self._is_missing(cell)}
        worker.years[year] = self._year(place, cells, facts.pop("education", None))
        if (region := facts.pop("region", None)) is not None:
            worker.regions[year] = region
        if (birth := facts.get("birth_year")) is not None:
            birth_year = as_year(birth)
            if birth_year is None:
                self._note(place, "birth_year", f"{birth!r} is not a year from {EARLIEST_YEAR} to {LATEST_YEAR}")
            elif year < birth_year:
                self._note(place, "year", f"{year} is before the person's birth in {birth_year}")
        for name, value in facts.items():
            if (known := worker.facts.setdefault(name, value)) != value:
                self._note(place, name, f"{value!r}, but {known!r} in an earlier row of person {cells['person']!r}")

    def _year(self, place: int, cells: Mapping[str, str], education: str | None) -> _Year:
        cell, status = cells["occupation"], self._status(place, cells)
        if (occupation := self.occupations.find(cell)) is not None:
            return _Year(occupation, None, None, education, status, place)
        if self._is_missing(cell):
            return _Year(None, "missing", None, education, status, place)
        if (whole_number(cell) or 0) < 0:
            return _Year(None, "a number below zero", same_code(cell), education, status, place)
        unknown = f"code {cell!r} is not in {self.settings.vocabulary.path}"
        self._note(place, "occupation", f"{unknown}; a cell that means: not known, is left out by long_panel.missing")
        return _Year(None, None, None, education, status, place)

    def _status(self, place: int, cells: Mapping[str, str]) -> Status | None:
        """Return the status of a year; None if it is unknown, or the panel has no status column."""
        settings, cell = self.settings.status, cells.get("status", "")
        if settings is None or (status := _status_of(settings, same_code(cell).casefold())) is None:
            if not self._is_missing(cell) and (whole_number(cell) or 0) >= 0:
                words = f"long_panel.status ({', '.join(_STATUSES)})"
                self._note(place, "status", f"{cell!r} is none of the words of {words}; add it to one of its lists")
            return None
        return status

    def _note(self, place: int, name: str, what: str) -> None:
        self.problems.add(place, getattr(self.settings.columns, name), what)


@functools.lru_cache(maxsize=10_000)
def _status_of(settings: StatusSettings, word: str) -> Status | None:
    words = settings.words()
    return next((status for status in _STATUSES if word in map(str.casefold, words[status])), None)


def _read_person(
    person: str, worker: _Worker, survey: str, settings: LongPanelSettings, occupations: Occupations
) -> PersonRecord:
    jobs: list[Job] = []
    drops: list[Exclusion] = []
    states = _states(settings.status, occupations)
    is_uncertain = settings.status is not None and settings.status.unknown == "leave_out"
    for year, row in sorted(worker.years.items()):
        has_status = settings.columns.status is not None
        code = observed_occupation(row.status, row.occupation, is_uncertain=has_status and is_uncertain, states=states)
        if code is not None:
            jobs.append(Job(year, code, row.education))
        elif row.status in states and row.status != "armed_forces":
            drops.append(
                Exclusion(f"{str(row.status).replace('_', ' ')}, for which the list of occupations has no code", year)
            )
        else:
            reason = (
                why_left_out(row.status, row.occupation, row.why_none) if has_status else f"occupation {row.why_none}"
            )
            drops.append(Exclusion(reason, year, code=row.code))
    if not jobs:
        return PersonRecord(None, (*drops, Exclusion("person without any observation")), changes=tuple(worker.changes))
    birth = worker.facts.get("birth_year")
    career = CareerHistory(
        person=person,
        survey=survey,
        birth_year=None if birth is None else as_year(birth),
        gender=worker.facts.get("gender"),
        ethnicity=worker.facts.get("ethnicity"),
        region=worker.regions[min(worker.regions)] if worker.regions else None,
        jobs=tuple(jobs),
    )
    return PersonRecord(career, tuple(drops), changes=tuple(worker.changes))


def _states(settings: StatusSettings | None, occupations: Occupations) -> dict[Status, str | None]:
    """Return the occupation of each state; None if the list of occupations lacks it."""
    if settings is None:
        return {}
    codes = settings.codes
    named: dict[Status, str | None] = {
        "unemployed": codes.unemployed, "not_working": codes.not_working, "enrolled": codes.enrolled,
        "armed_forces": codes.armed_forces,
    }  # fmt: skip
    return {status: None if code is None else occupations.find(code) for status, code in named.items()}


def _files(settings: LongPanelSettings) -> list[Path]:
    path = Path(settings.path)
    if not path.exists() or path.is_dir():
        raise DataFileError(f"{'a folder' if path.is_dir() else 'no file'} at {path}", code="no-file")
    reject_other_formats(path)
    return [path]


LONG_PANEL: Reader[LongPanelSettings] = Reader(
    people=lambda settings, survey: long_panel_people(settings, survey=survey),
    vocabulary=lambda settings: read_occupations(settings.vocabulary).vocabulary,
    files=_files,
    own_occupations=lambda settings: settings.vocabulary,
)
