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

from laborllm_dist.careers.history import CareerHistory, Job, OccupationVocabulary, read_vocabulary
from laborllm_dist.careers.problems import Problems
from laborllm_dist.careers.table_rows import read_rows, unit_of
from laborllm_dist.data_settings import LongPanelSettings
from laborllm_dist.errors import DataFileError

FIXED = ("birth_year", "gender", "ethnicity")
OPTIONAL = (*FIXED, "region", "education")
EARLIEST_YEAR, LATEST_YEAR = 1850, 2100
BUILTIN = "builtin:"


@dataclass(slots=True)
class _Worker:
    """What has been read of one person so far."""

    facts: dict[str, str] = field(default_factory=dict)
    regions: dict[int, str] = field(default_factory=dict)  # by year
    jobs: dict[int, tuple[str, str | None, int]] = field(default_factory=dict)  # year -> occupation, education, line


def vocabulary_path(settings: LongPanelSettings) -> Path:
    """Return the file of occupations; `builtin:occ1990dd` is the table beside this module."""
    if settings.vocabulary.startswith(BUILTIN):
        return Path(__file__).parent / "tables" / f"{settings.vocabulary.removeprefix(BUILTIN)}.csv"
    return Path(settings.vocabulary)


def shipped_vocabularies() -> str:
    """Return the names of the vocabularies that come with this software, for messages."""
    return ", ".join(sorted(BUILTIN + path.stem for path in (Path(__file__).parent / "tables").glob("*.csv")))


def read_long_panel_vocabulary(settings: LongPanelSettings) -> OccupationVocabulary:
    """Return the occupations a panel's codes refer to."""
    return read_vocabulary(
        vocabulary_path(settings), code_column=settings.vocabulary_code, title_column=settings.vocabulary_title
    )


def read_long_panel(settings: LongPanelSettings, *, survey: str) -> Iterator[CareerHistory]:
    """Yield the careers of a panel, people in the order of their first row, jobs in order of year.

    Raises:
        DataFileError: with every problem of the file counted and the first ten named.
        VocabularyError: if the list of occupations is unusable.
    """
    path = Path(settings.path)
    occupations = set(read_long_panel_vocabulary(settings).codes)
    problems = Problems(path, unit_of(path))
    rows = read_rows(path, problems)
    place, header = next(rows, (1, []))
    columns = _locate_columns(settings, header, place, problems)
    problems.refuse_if_any()
    workers: dict[str, _Worker] = {}
    for place, values in rows:
        if len(values) != len(header):
            problems.add(place, None, f"{len(values)} values, the header has {len(header)}")
            continue
        cells = {name: values[index].strip() for name, index in columns.items()}
        _add_row(workers, cells, settings, (place, occupations, problems))
    if not workers and not problems.num_found:
        raise DataFileError(f"{path}: a header, but no rows")
    problems.refuse_if_any()
    return (_career(person, worker, survey) for person, worker in workers.items())


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


def _add_row(
    workers: dict[str, _Worker],
    cells: Mapping[str, str],
    settings: LongPanelSettings,
    context: tuple[int, set[str], Problems],
) -> None:
    place, occupations, problems = context
    column_of = settings.columns
    for name, cell in cells.items():
        if any(ord(character) < 32 or character in "\x7f\u0085\u2028\u2029" for character in cell):
            problems.add(place, getattr(column_of, name), f"{cell!r} holds a line break or control character")
            return
    person, year = cells["person"], _whole_number(cells["year"])
    if not person:
        problems.add(place, column_of.person, "empty")
        return
    if year is None or not EARLIEST_YEAR <= year <= LATEST_YEAR:
        problems.add(place, column_of.year, f"{cells['year']!r} is not a year from {EARLIEST_YEAR} to {LATEST_YEAR}")
        return
    worker = workers.setdefault(person, _Worker())
    if year in worker.jobs:
        problems.add(
            place,
            column_of.year,
            f"person {person!r} has {year} twice, first at {problems.unit} {worker.jobs[year][2]}",
        )
        return
    facts = {name: cells[name] for name in OPTIONAL if name in cells and cells[name] not in settings.missing}
    occupation = cells["occupation"]
    worker.jobs[year] = (occupation, facts.pop("education", None), place)
    if occupation not in occupations:
        what = "empty" if not occupation else f"code {occupation!r} is not in {settings.vocabulary}"
        problems.add(place, column_of.occupation, what)
    if (birth := facts.get("birth_year")) is not None:
        birth_year = _whole_number(birth)
        if birth_year is None or not EARLIEST_YEAR <= birth_year <= LATEST_YEAR:
            problems.add(place, column_of.birth_year, f"{birth!r} is not a year from {EARLIEST_YEAR} to {LATEST_YEAR}")
        elif year < birth_year:
            problems.add(place, column_of.year, f"{year} is before the person's birth in {birth_year}")
    if (region := facts.pop("region", None)) is not None:
        worker.regions[year] = region
    for name, value in facts.items():
        if worker.facts.setdefault(name, value) != value:
            known = worker.facts[name]
            problems.add(
                place, getattr(column_of, name), f"{value!r}, but {known!r} in an earlier row of person {person!r}"
            )


def _whole_number(text: str) -> int | None:
    digits = text.removesuffix(".0")  # a whole number as pandas writes it in a column that has gaps
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) <= 9 else None


def _career(person: str, worker: _Worker, survey: str) -> CareerHistory:
    birth = worker.facts.get("birth_year")
    return CareerHistory(
        person=person,
        survey=survey,
        birth_year=None if birth is None else _whole_number(birth),
        gender=worker.facts.get("gender"),
        ethnicity=worker.facts.get("ethnicity"),
        region=worker.regions[min(worker.regions)] if worker.regions else None,
        jobs=tuple(
            Job(year, occupation, education) for year, (occupation, education, _) in sorted(worker.jobs.items())
        ),
    )
