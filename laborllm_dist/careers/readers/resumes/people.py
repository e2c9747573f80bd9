"""Read careers with one occupation per year from the dated jobs of resumes.

An `Exclusion` is recorded for a job with unknown start or end, a job without a year by the year rule, and a year whose
job has an unknown code or title; with bad_dates=leave_out also for a job whose dates are invalid or impossible.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from datetime import date

from laborllm_dist.careers.person_records import Exclusion, PersonRecord, PersonThunk
from laborllm_dist.careers.readers.cells import same_code
from laborllm_dist.careers.readers.reader import Reader
from laborllm_dist.careers.readers.resumes.date_order import DateReader, date_columns
from laborllm_dist.careers.readers.resumes.files import resume_files
from laborllm_dist.careers.readers.resumes.occupations import (
    Matches,
    OccupationReader,
    resume_occupations,
    resume_vocabulary,
)
from laborllm_dist.careers.readers.resumes.spells import SpellReader, slots_of, with_ends
from laborllm_dist.careers.readers.resumes.wide_rows import PersonRows, ResumePerson
from laborllm_dist.careers.readers.resumes.year_assignment import job_of_years
from laborllm_dist.careers.types import CareerHistory, Job
from laborllm_dist.config.corpora import ResumeSettings
from laborllm_dist.errors import DataFileError

__all__ = ["resume_people", "resume_vocabulary"]

_PEOPLE_PER_BLOCK = 250  # people per block: about a thousand titles


class _Block:
    """People whose titles are coded together when the first of them is read."""

    def __init__(self, people: Sequence[ResumePerson], occupations: OccupationReader) -> None:
        self._people, self._occupations = people, occupations

    @functools.cached_property
    def matches(self) -> Matches:
        """The matches of all their titles."""
        return self._occupations.match_titles(spell for person in self._people for spell in person.spells)


def resume_people(settings: ResumeSettings, *, survey: str) -> Iterator[PersonThunk]:
    """Return the people of the files.

    Raises:
        DataFileError: at once if there are no files; while iterating, with the problems of a file.
        VocabularyError: if the list of occupations is unusable.
    """
    files = resume_files(settings)
    dates = DateReader(settings, files, date_columns(settings))
    people = PersonRows(settings, files, SpellReader(settings, tuple(slots_of(settings)), dates))
    occupations = OccupationReader(settings, resume_occupations(settings).code_of)
    return _in_blocks(people, occupations, survey)


def _in_blocks(people: PersonRows, occupations: OccupationReader, survey: str) -> Iterator[PersonThunk]:
    remaining = iter(people)
    found_any = False
    while block := list(itertools.islice(remaining, _PEOPLE_PER_BLOCK)):
        found_any = True
        coded = _Block(block, occupations)
        for person in block:
            yield functools.partial(_read_person, person, coded, occupations, survey)
    if not found_any:
        raise DataFileError(f"{people.settings.path}: no rows", code="no-rows")


def _read_person(person: ResumePerson, block: _Block, occupations: OccupationReader, survey: str) -> PersonRecord:
    settings = occupations.settings
    faultless = [spell for spell in person.spells if spell.fault is None]
    drops = [Exclusion(spell.fault, of="job") for spell in person.spells if spell.fault is not None]
    placed = [spell for spell in faultless if spell.start is not None or spell.order is not None]
    drops += [Exclusion(f"job without {settings.when}", of="job")] * (len(faultless) - len(placed))
    ended = with_ends(placed, settings.no_end, date(settings.last_year, 12, 31))
    drops += [Exclusion("job without an end", of="job")] * (len(placed) - len(ended))
    if not person.spells:
        drops.append(Exclusion("no jobs"))
    by_year = job_of_years(ended, settings.year_rule)
    assigned = {id(spell): spell for spell in by_year.values()}
    drops += [Exclusion("job that no year belongs to, by the year rule", of="job")] * (len(ended) - len(assigned))
    jobs: list[Job] = []
    education: str | None = None
    for year, spell in by_year.items():
        education = same_code(spell.education) if spell.education else education
        code = occupations.occupation(spell, block.matches)
        if code is None:
            drops.append(Exclusion(occupations.why_none(spell), year, code=occupations.unmapped_code(spell)))
        else:
            jobs.append(Job(year, code, education))
    titles = occupations.coded_titles(assigned.values(), block.matches)
    career = _career(person, jobs, survey) if jobs else None
    return PersonRecord(career, tuple(drops), titles=titles, changes=tuple(person.changes))


def _career(person: ResumePerson, jobs: Sequence[Job], survey: str) -> CareerHistory:
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


RESUMES: Reader[ResumeSettings] = Reader(
    people=lambda settings, survey: resume_people(settings, survey=survey),
    vocabulary=resume_vocabulary,
    files=resume_files,
    own_occupations=lambda settings: settings.vocabulary,
)
