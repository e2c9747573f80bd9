"""Read the rows of resume files as people, in the order of their first row.

    people=together   the rows of a person are adjacent; memory use is constant (a temporary database has the first row
                      of each person, to detect a person whose rows are not adjacent)
    people=anywhere   rows may be in any order; all people are held in memory

Invalid rows are problems: they are collected while people are yielded, and raise an error at the end of the file, or
as soon as there are 1,000. So a caller must not publish anything before the last person.
"""

from __future__ import annotations

import functools
import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from laborllm_dist.careers.readers.cells import OTHER_BLANK, InexactIdError, person_id, same_code, with_plain_blanks
from laborllm_dist.careers.readers.resumes.date_order import date_columns
from laborllm_dist.careers.readers.resumes.dates import NotADateError
from laborllm_dist.careers.readers.resumes.files import Cells, ColumnSelection, IsColumn, read_cells, reject_if_many
from laborllm_dist.careers.readers.resumes.spells import Spell, SpellReader
from laborllm_dist.careers.readers.tabular import unit_of
from laborllm_dist.careers.validation_report import Problems
from laborllm_dist.config.corpora import ResumeSettings
from laborllm_dist.errors import DiskError

_FACTS = ("birth_year", "gender", "ethnicity", "region")
_PLACES_PER_FILE = 1 << 40
_MOST_DIGITS = 9  # of the number in a column's name; Python reads no more than 4,300


@dataclass(frozen=True, slots=True)
class ResumePerson:
    """The rows of one person: attributes by name, and jobs in the order of the files."""

    person: str
    facts: Mapping[str, str]
    spells: Sequence[Spell]
    changes: Sequence[str] = ()  # notes on cells that were changed when read


@dataclass(frozen=True, slots=True)
class _Row:
    """One row: its place, person and content; invalid parts were added to the file's problems."""

    file: int
    place: int
    problems: Problems
    person: str
    facts: Mapping[str, str]
    spells: Sequence[Spell]
    changes: Sequence[str]

    @property
    def key(self) -> int:
        """File and place, encoded as one number."""
        return self.file * _PLACES_PER_FILE + self.place


@dataclass(frozen=True, slots=True)
class PersonRows:
    """The people of some files."""

    settings: ResumeSettings
    files: Sequence[Path]
    spell_reader: SpellReader

    def __iter__(self) -> Iterator[ResumePerson]:
        """Yield the people of the files.

        Raises:
            DataFileError: with the number of problems of a file and the first ten.
        """
        problems_of: dict[int, Problems] = {}
        for rows in self._together() if self.settings.people == "together" else self._anywhere():
            problems_of.update((row.file, row.problems) for row in rows)
            yield self._person(rows)
        for problems in problems_of.values():  # those of people who were merged after the end of their file
            problems.reject_if_any()

    def _together(self) -> Iterator[list[_Row]]:
        """Yield the adjacent rows of each person; a person whose rows are not adjacent is a problem."""
        rows: list[_Row] = []
        with closing(_first_rows()) as first_rows:
            for row in self._rows():
                if rows and (row.person != rows[0].person or self.settings.rows == "person"):
                    yield rows
                    rows = []
                if not rows and (first := _add_first(first_rows, row.person, row.key)) is not None:
                    self._note_second(row, first)
                rows.append(row)
        if rows:
            yield rows

    def _anywhere(self) -> Iterator[list[_Row]]:
        """Yield the rows of each person, after reading all files."""
        rows_of: dict[str, list[_Row]] = {}
        for row in self._rows():
            rows = rows_of.setdefault(row.person, [])
            if rows and self.settings.rows == "person":
                self._note_second(row, rows[0].key)
            rows.append(row)
        yield from rows_of.values()

    def _person(self, rows: Sequence[_Row]) -> ResumePerson:
        """Merge a person's rows; contradictory attributes and jobs before birth are problems."""
        facts: dict[str, str] = {}
        for row in rows:
            for name, value in row.facts.items():
                known = facts.setdefault(name, value)
                if known != value and name != "region":
                    column = getattr(self.settings.columns, name)
                    earlier = f"{known!r} in an earlier row of person {row.person!r}"
                    row.problems.add(row.place, column, f"{value!r}, but {earlier}")
        spells = [self._after_birth(spell, row, facts.get("birth_year")) for row in rows for spell in row.spells]
        changes = [change for row in rows for change in row.changes]
        return ResumePerson(rows[0].person, facts, spells, changes)

    def _after_birth(self, spell: Spell, row: _Row, born: str | None) -> Spell:
        """Return a job; one that starts before the person's birth is a problem, or gets a fault."""
        if born is None or spell.start is None or spell.start.year >= int(born):
            return spell
        if self.settings.bad_dates == "leave_out":
            return replace(spell, fault="job that starts before the person's birth")
        where = self.settings.columns.start
        row.problems.add(row.place, where, f"{spell.start.year} is before the person's birth in {born}")
        return spell

    def _rows(self) -> Iterator[_Row]:
        for number, path in enumerate(self.files):
            problems = Problems(path, unit_of(path))
            for place, raw_cells in self._cells(path, problems):
                cells = {name: with_plain_blanks(cell) for name, cell in raw_cells.items()}
                if (person := self._person_id(place, cells, problems)) is not None:
                    changes = [
                        f"column {name}: {OTHER_BLANK}, taken as a space"
                        for name, cell in cells.items()
                        if cell != raw_cells[name].strip()
                    ]
                    facts = dict(self._facts(place, cells, problems, changes))
                    spells = list(self.spell_reader.spells(place, cells, problems))
                    changes += [change for spell in spells for change in spell.changes]
                    yield _Row(number, place, problems, person, facts, spells, changes)
                reject_if_many(problems)
            problems.reject_if_any()

    def _person_id(self, place: int, cells: Cells, problems: Problems) -> str | None:
        """Return the person of a row; None, with a problem, if the id is missing or invalid."""
        column = self.settings.columns.person
        person = cells[column]
        if self.settings.is_missing(person):
            problems.add(place, column, "empty")
        elif not person.isprintable():
            problems.add(place, column, _not_printable(person))
        else:
            try:
                return person_id(person)
            except InexactIdError as error:
                problems.add(place, column, str(error))
        return None

    def _cells(self, path: Path, problems: Problems) -> Iterator[tuple[int, Cells]]:
        columns, slots = self.settings.columns, self.spell_reader.slots
        facts = {name: column for name in _FACTS if (column := getattr(columns, name)) is not None}
        # A JSON object may omit null values, and so the columns of unused job slots.
        required = {"person": columns.person, **facts, **slots[0]}
        rest = [name for slot in slots[1:] for name in slot.values()]
        beyond = _columns_beyond(self.settings)
        selection = ColumnSelection(required, rest, beyond, date_columns(self.settings))
        read = dict.fromkeys((*required.values(), *rest))
        for place, cells in read_cells(path, problems, selection):
            if beyond is None:
                yield place, cells
                continue
            for name, cell in cells.items():
                if cell and beyond(name) and not self.settings.is_missing(cell):
                    allowed = f"num_slots={self.settings.num_slots}"
                    problems.add(place, name, f"a job more than {allowed} allows; raise num_slots")
            yield place, {name: cells[name] for name in read if name in cells}

    def _facts(self, place: int, cells: Cells, problems: Problems, changes: list[str]) -> Iterator[tuple[str, str]]:
        """Yield the attributes of the person; add notes for the data card to `changes`."""
        for name in _FACTS:
            column = getattr(self.settings.columns, name)
            cell = "" if column is None else cells[column]
            if self.settings.is_missing(cell):
                continue
            if name == "birth_year":
                try:
                    cell = str(self.spell_reader.days(cell, problems.path)[0][0].year)
                except NotADateError as error:
                    if self.settings.bad_dates == "leave_out":
                        changes.append(f"column {column}: a birth year that cannot be read, taken as not known")
                    else:
                        problems.add(place, column, str(error))
                    continue
            elif not cell.isprintable():
                problems.add(place, column, _not_printable(cell))
                continue
            yield name, same_code(cell)

    def _note_second(self, row: _Row, first: int) -> None:
        file, place = divmod(first, _PLACES_PER_FILE)
        where = f"{row.problems.unit} {place}" + (f" of {self.files[file]}" if file != row.file else "")
        if self.settings.rows == "person":
            what = f"person {row.person!r} has a second row, the first at {where}"
        else:
            apart = f"the rows of person {row.person!r} are not adjacent, the first at {where}"
            what = f"{apart}; sort them, or set people=anywhere"
        row.problems.add(row.place, self.settings.columns.person, what)


def _first_rows() -> sqlite3.Connection:
    """Open a table of the first row of each person, in a temporary file that is deleted when closed."""
    database = sqlite3.connect("", check_same_thread=False)
    database.executescript(
        "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA cache_size=-65536;"  # KiB of memory
        "CREATE TABLE first_rows (person TEXT PRIMARY KEY, place INTEGER) WITHOUT ROWID"
    )
    return database


def _add_first(database: sqlite3.Connection, person: str, place: int) -> int | None:
    """Return the place of a person's first row; None for a new person, whose place is stored.

    Raises:
        DiskError: if the disk of temporary files is full.
    """
    try:
        if database.execute("INSERT OR IGNORE INTO first_rows VALUES (?, ?)", (person, place)).rowcount:
            return None
        (known,) = database.execute("SELECT place FROM first_rows WHERE person = ?", (person,)).fetchone()
    except sqlite3.OperationalError as error:
        raise DiskError(
            f"no list of people in temporary files ({error}); make room there, or set TMPDIR to another folder",
            code="temporary-files-failed",
        ) from None
    return int(known)


def _columns_beyond(settings: ResumeSettings) -> IsColumn | None:
    """Return a function that matches numbered columns from num_slots on; None if no columns are numbered."""
    if settings.rows != "person":
        return None
    columns = [column for column in settings.columns.per_job().values() if "{}" in column]
    pattern = re.compile("|".join(r"(\d+)".join(map(re.escape, column.split("{}"))) for column in columns))

    @functools.lru_cache(maxsize=1 << 20)  # every row has the same columns
    def is_beyond(name: str) -> bool:
        match = pattern.fullmatch(name)
        if match is None:
            return False
        number = next(filter(None, match.groups())).lstrip("0")
        return len(number) > _MOST_DIGITS or int(number or 0) >= (settings.num_slots or 0)

    return is_beyond


def _not_printable(cell: str) -> str:
    return f"{cell!r} holds a line break, control character or odd blank"
