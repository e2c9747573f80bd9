"""Read any table with one row per person and year as careers.

The whole file is checked before the first career is given out: a missing column, a doubled person and year, a year
before birth, an unknown code, text that is not UTF-8 or a file that breaks off is refused with file, line and column.
Gender, ethnicity and birth year must not change within a person. A region may (people move): the first one on record,
by year, is the career's, as the template has one region per worker.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from laborllm_dist.careers.history import CareerHistory, Job
from laborllm_dist.careers.problems import Problems
from laborllm_dist.careers.table_rows import read_rows, unit_of
from laborllm_dist.careers.vocabularies import read_occupations
from laborllm_dist.corpus_settings import EARLIEST_YEAR, LATEST_YEAR, LongPanelSettings
from laborllm_dist.errors import DataFileError

FIXED = ("birth_year", "gender", "ethnicity")
OPTIONAL = (*FIXED, "region", "education")


@dataclass(slots=True)
class _Worker:
    """What has been read of one person so far."""

    facts: dict[str, str] = field(default_factory=dict)
    regions: dict[int, str] = field(default_factory=dict)  # by year
    jobs: dict[int, tuple[str, str | None, int]] = field(default_factory=dict)  # year -> occupation, education, line


def read_long_panel(settings: LongPanelSettings, *, survey: str) -> Iterator[CareerHistory]:
    """Yield the careers of a panel, people in the order of their first row, jobs in order of year.

    Raises:
        DataFileError: with every problem of the file counted and the first ten named.
        VocabularyError: if the list of occupations is unusable.
    """
    path = Path(settings.path)
    code_of = read_occupations(settings.vocabulary).code_of
    problems = Problems(path, unit_of(path))
    rows = read_rows(path, problems)
    place, header = next(rows, (1, []))
    columns = _locate_columns(settings, header, place, problems)
    problems.refuse_if_any()
    panel = _Panel(settings, code_of, problems)
    for place, values in rows:
        if len(values) == len(header):
            panel.add(place, {name: values[index].strip() for name, index in columns.items()})
        else:
            problems.add(place, None, f"{len(values)} values, the header has {len(header)}")
    if not panel.workers and not problems.num_found:
        raise DataFileError(f"{path}: a header, but no rows")
    problems.refuse_if_any()
    return (_career(person, worker, survey) for person, worker in panel.workers.items())


def _locate_columns(settings: LongPanelSettings, header: list[str], place: int, problems: Problems) -> dict[str, int]:
    names = [name.strip() for name in header]
    for name in sorted({name for name in names if names.count(name) > 1}):
        problems.add(place, name, "this column stands twice")
    located: dict[str, int] = {}
    for field_name in ("person", "year", "occupation", *OPTIONAL):
        column = getattr(settings.columns, field_name)
        if column is None:
            continue
        if column in names:
            located[field_name] = names.index(column)
        else:
            problems.add(place, column, f"missing (wanted for {field_name}); the columns are {', '.join(names)}")
    return located


@dataclass(frozen=True, slots=True)
class _Panel:
    """What has been read of a panel so far. A row that is wrong is noted, and the reading goes on."""

    settings: LongPanelSettings
    code_of: Mapping[str, str]
    problems: Problems
    workers: dict[str, _Worker] = field(default_factory=dict)

    def add(self, place: int, cells: Mapping[str, str]) -> None:
        """Take in one row."""
        for name, cell in cells.items():
            if not cell.isprintable():
                self._note(place, name, f"{cell!r} holds a line break, control character or odd blank")
                return
        person, year = cells["person"], as_year(cells["year"])
        if not person:
            self._note(place, "person", "empty")
        elif year is None:
            self._note(place, "year", f"{cells['year']!r} is not a year from {EARLIEST_YEAR} to {LATEST_YEAR}")
        else:
            worker = self.workers.setdefault(person, _Worker())
            if year in worker.jobs:
                first = f"first at {self.problems.unit} {worker.jobs[year][2]}"
                self._note(place, "year", f"person {person!r} has {year} twice, {first}")
            else:
                self._add_year(place, cells, worker, year)

    def _add_year(self, place: int, cells: Mapping[str, str], worker: _Worker, year: int) -> None:
        missing = self.settings.missing
        facts = {name: cells[name] for name in OPTIONAL if name in cells and cells[name] not in missing}
        occupation = cells["occupation"]
        code = self.code_of.get(occupation)
        worker.jobs[year] = (code or occupation, facts.pop("education", None), place)
        if code is None:
            unknown = f"code {occupation!r} is not in {self.settings.vocabulary.path}"
            self._note(place, "occupation", unknown if occupation else "empty")
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

    def _note(self, place: int, name: str, what: str) -> None:
        self.problems.add(place, getattr(self.settings.columns, name), what)


def as_year(text: str) -> int | None:
    """Return the year that a cell says, None where it says none."""
    digits = text.removesuffix(".0")  # a whole number as pandas writes it in a column that has gaps
    if not (digits.isascii() and digits.isdigit() and len(digits) == 4):
        return None
    return int(digits) if EARLIEST_YEAR <= int(digits) <= LATEST_YEAR else None


def _career(person: str, worker: _Worker, survey: str) -> CareerHistory:
    birth = worker.facts.get("birth_year")
    jobs = (Job(year, occupation, education) for year, (occupation, education, _) in sorted(worker.jobs.items()))
    return CareerHistory(
        person=person,
        survey=survey,
        birth_year=None if birth is None else as_year(birth),
        gender=worker.facts.get("gender"),
        ethnicity=worker.facts.get("ethnicity"),
        region=worker.regions[min(worker.regions)] if worker.regions else None,
        jobs=tuple(jobs),
    )
