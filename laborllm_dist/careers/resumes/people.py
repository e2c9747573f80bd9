"""Read files of dated jobs as people, in the order of their first row.

    people=together   the rows of a person follow each other; memory stays flat (16 bytes a person are kept, to refuse
                      a person whose rows stand apart)
    people=anywhere   they may stand anywhere; everybody is held in memory

Rows that are broken are problems: they are collected while people are given out, and refuse the file when it ends, or
as soon as there are 1,000 of them. So whoever reads must publish nothing before the last person. What is not broken
but cannot be an observation (a job without a start, an unknown code or title) is a `Drop` of its person.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from laborllm_dist.careers.history import CareerHistory, Job
from laborllm_dist.careers.problems import Problems
from laborllm_dist.careers.reading import Drop, PersonRead, ReadPerson
from laborllm_dist.careers.resumes.dates import NotADate, read_days
from laborllm_dist.careers.resumes.first_places import FirstPlaces
from laborllm_dist.careers.resumes.occupations import Matches, OccupationReader, resume_occupations, resume_vocabulary
from laborllm_dist.careers.resumes.rows import Cells, read_cells, refuse_if_many, resume_files
from laborllm_dist.careers.resumes.spells import Spell, SpellReader, slot_after_last, slots_of
from laborllm_dist.careers.resumes.years import job_of_years
from laborllm_dist.careers.table_rows import unit_of
from laborllm_dist.corpus_settings import ResumeSettings
from laborllm_dist.errors import DataFileError

__all__ = ["resume_people", "resume_vocabulary"]

_FACTS = ("birth_year", "gender", "ethnicity", "region")
_PEOPLE_PER_BLOCK = 250  # whose titles are coded at once: a thousand or so
_PLACES_PER_FILE = 1 << 40


@dataclass(slots=True)
class _Person:
    """What has been read of one person so far."""

    person: str
    facts: dict[str, str] = field(default_factory=dict)
    spells: list[Spell] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Row:
    """One row of a file; what is wrong with it goes to the file's problems."""

    file: int
    place: int
    person: str
    cells: Cells
    problems: Problems


class _Block:
    """People whose titles are coded together, when one of them is read for the first time."""

    def __init__(self, people: Sequence[_Person], occupations: OccupationReader) -> None:
        self._people, self._occupations = people, occupations

    @functools.cached_property
    def matches(self) -> Matches:
        """The matches of all their titles."""
        return self._occupations.match_titles(spell for person in self._people for spell in person.spells)


def resume_people(settings: ResumeSettings, *, survey: str) -> Iterator[ReadPerson]:
    """Return the people of the files.

    Raises:
        DataFileError: now, if there are no files; while reading, with all problems of a file counted and ten named.
        VocabularyError: if the list of occupations is unusable.
    """
    reader = _Reader(settings, resume_files(settings), SpellReader(settings, tuple(slots_of(settings))))
    occupations = OccupationReader(settings, resume_occupations(settings).code_of)
    return _in_blocks(reader, occupations, survey)


def _in_blocks(reader: _Reader, occupations: OccupationReader, survey: str) -> Iterator[ReadPerson]:
    people = reader.people_together() if reader.settings.people == "together" else reader.people_anywhere()
    found_any = False
    while block := list(itertools.islice(people, _PEOPLE_PER_BLOCK)):
        found_any = True
        coded = _Block(block, occupations)
        for person in block:
            yield functools.partial(_read_person, person, coded, occupations, survey)
    if not found_any:
        raise DataFileError(f"{reader.settings.path}: no rows")


def _read_person(person: _Person, block: _Block, occupations: OccupationReader, survey: str) -> PersonRead:
    undated = [spell for spell in person.spells if spell.start is None and spell.order is None]
    drops = [Drop(f"job without {occupations.settings.when}") for _ in undated]
    if not person.spells:
        drops.append(Drop("no jobs"))
    jobs: list[Job] = []
    education: str | None = None
    for year, spell in job_of_years(person.spells, occupations.settings.year_rule).items():
        education = spell.education or education
        code = occupations.occupation(spell, block.matches)
        if code is None:
            drops.append(Drop(occupations.why_none(spell), year))
        else:
            jobs.append(Job(year, code, education))
    return PersonRead(_career(person, jobs, survey) if jobs else None, tuple(drops))


def _career(person: _Person, jobs: Sequence[Job], survey: str) -> CareerHistory:
    birth = person.facts.get("birth_year")
    return CareerHistory(
        person=person.person,
        survey=survey,
        birth_year=None if birth is None else int(birth),
        gender=person.facts.get("gender"),
        ethnicity=person.facts.get("ethnicity"),
        region=person.facts.get("region"),
        jobs=tuple(jobs),
    )


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads the rows of all files as people."""

    settings: ResumeSettings
    files: Sequence[Path]
    spell_reader: SpellReader

    def people_together(self) -> Iterator[_Person]:
        """Yield a person when the next one begins; note one who begins a second time."""
        begun = FirstPlaces()
        person: _Person | None = None
        for row in self._rows():
            if person is None or row.person != person.person or self.settings.rows == "person":
                if person is not None:
                    yield person
                person = _Person(row.person)
                first = begun.first_place(row.person, row.file * _PLACES_PER_FILE + row.place)
                if first is not None:
                    self._note_second(row, first)
            self._add(row, person)
        if person is not None:
            yield person

    def people_anywhere(self) -> Iterator[_Person]:
        """Yield everybody, once all rows are read."""
        people: dict[str, _Person] = {}
        first: dict[str, int] = {}
        for row in self._rows():
            place = row.file * _PLACES_PER_FILE + row.place
            if self.settings.rows == "person" and first.setdefault(row.person, place) != place:
                self._note_second(row, first[row.person])
            self._add(row, people.setdefault(row.person, _Person(row.person)))
        yield from people.values()

    def _rows(self) -> Iterator[_Row]:
        for number, path in enumerate(self.files):
            problems = Problems(path, unit_of(path))
            for place, cells in self._cells(path, problems):
                person = cells[self.settings.columns.person]
                if not person or person in self.settings.missing:
                    problems.add(place, self.settings.columns.person, "empty")
                elif not person.isprintable():
                    problems.add(place, self.settings.columns.person, _not_printable(person))
                else:
                    yield _Row(number, place, person, cells, problems)
                refuse_if_many(problems)
            problems.refuse_if_any()

    def _cells(self, path: Path, problems: Problems) -> Iterator[tuple[int, Cells]]:
        columns = self.settings.columns
        facts = [column for name in _FACTS if (column := getattr(columns, name)) is not None]
        slots, after_last = self.spell_reader.slots, slot_after_last(self.settings)
        # A JSON object may leave out what is null, and so the columns of jobs that nobody has.
        first, rest = list(slots[0].columns.values()), [name for slot in slots[1:] for name in slot.columns.values()]
        beyond = [after_last.columns["start"]] if after_last is not None else []
        required = dict.fromkeys((columns.person, *facts, *first))
        for place, cells in read_cells(path, problems, required=list(required), optional=[*rest, *beyond]):
            if beyond and cells.get(beyond[0]):
                problems.add(place, beyond[0], f"a job more than num_slots={self.settings.num_slots} allows; raise it")
            yield place, cells

    def _note_second(self, row: _Row, first: int) -> None:
        file, place = divmod(first, _PLACES_PER_FILE)
        where = f"{row.problems.unit} {place}" + (f" of {self.files[file]}" if file != row.file else "")
        if self.settings.rows == "person":
            what = f"person {row.person!r} has a second row, the first at {where}"
        else:
            apart = f"the rows of person {row.person!r} stand apart, the first at {where}"
            what = f"{apart}; sort them, or set people=anywhere"
        row.problems.add(row.place, self.settings.columns.person, what)

    def _add(self, row: _Row, person: _Person) -> None:
        for name in _FACTS:
            column = getattr(self.settings.columns, name)
            cell = "" if column is None else row.cells[column]
            if cell and cell not in self.settings.missing:
                self._add_fact(row, person, name, cell)
        spells = list(self.spell_reader.spells(row.place, row.cells, row.problems))
        person.spells += spells
        birth = int(person.facts.get("birth_year", 0))
        for spell in spells:
            if spell.start is not None and spell.start.year < birth:
                where = self.settings.columns.start
                row.problems.add(spell.place, where, f"{spell.start.year} is before the person's birth in {birth}")

    def _add_fact(self, row: _Row, person: _Person, name: str, cell: str) -> None:
        column = getattr(self.settings.columns, name)
        if name == "birth_year":
            try:
                cell = str(read_days(cell)[0].year)
            except NotADate as error:
                row.problems.add(row.place, column, str(error))
                return
        elif not cell.isprintable():
            row.problems.add(row.place, column, _not_printable(cell))
            return
        known = person.facts.setdefault(name, cell)
        if known != cell and name != "region":
            row.problems.add(
                row.place, column, f"{cell!r}, but {known!r} in an earlier row of person {person.person!r}"
            )


def _not_printable(cell: str) -> str:
    return f"{cell!r} holds a line break, control character or odd blank"
