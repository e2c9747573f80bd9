"""Careers of a user's own whose next occupation is to be predicted: what is known of a person, and the year to predict.

Files (request_files.py) give cells of text; this module checks them and makes careers. It collects all problems before
it rejects a file. The default year to predict is the one after the last job, and its default education is the last one
on record.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from laborllm_dist.careers.readers.cells import InexactIdError, as_year, person_id, same_code, whole_number
from laborllm_dist.careers.readers.long_panel import FIXED
from laborllm_dist.careers.types import CareerHistory, Job, OccupationVocabulary
from laborllm_dist.careers.validation_report import Problems
from laborllm_dist.config.corpora import EARLIEST_YEAR, LATEST_YEAR, is_missing

PERSON_FIELDS = ("person", "survey", *FIXED, "region")
YEAR_FIELDS = ("year", "occupation", "education")
NUM_NEAREST = 3


@dataclass(frozen=True, slots=True)
class PredictionRequest:
    """A worker's known jobs, and the year and education of the line whose occupation is to be predicted."""

    history: CareerHistory
    year: int
    education: str | None

    @property
    def name(self) -> str:
        """The person, for messages."""
        return f"{self.history.person!r} of {self.history.survey}"

    def with_job(self, occupation: str) -> CareerHistory:
        """Return the career as it would be with this occupation in the year to predict."""
        known = self.history
        jobs = (*known.jobs, Job(self.year, occupation, self.education))
        return CareerHistory(
            known.person, known.survey, known.birth_year, known.gender, known.ethnicity, known.region, jobs
        )


@dataclass(frozen=True, slots=True)
class Cells:
    """Texts by field, their place in the file, and the file's name of each field."""

    place: int
    texts: Mapping[str, str]
    names: Mapping[str, str]


class OccupationLookup:
    """Find an occupation by its code or its title."""

    def __init__(self, vocabulary: OccupationVocabulary) -> None:
        self._codes = frozenset(vocabulary.codes)
        self._code_of = {title: code for code, title in vocabulary.title_of().items()}
        self._titles: dict[str, list[str]] = {}  # by their small letters
        for title in vocabulary.titles:
            self._titles.setdefault(title.casefold(), []).append(title)
        self._nearest: dict[str, str] = {}

    def code(self, text: str) -> str | None:
        """Return the only code that a text can name; None if there is none or more than one."""
        if text in self._codes or same_code(text) in self._codes:
            return text if text in self._codes else same_code(text)
        alike = self._titles.get(text.casefold(), [])
        return self._code_of.get(text, self._code_of[alike[0]] if len(alike) == 1 else None)

    def nearest(self, text: str) -> str:
        """Return in words which titles a text is near to."""
        if text not in self._nearest:
            near = self._titles.get(text.casefold(), [])
            for small in difflib.get_close_matches(text.casefold(), self._titles, n=NUM_NEAREST, cutoff=0.4):
                near = [*near, *(title for title in self._titles[small] if title not in near)]
            named = ", ".join(map(repr, near[:NUM_NEAREST]))
            self._nearest[text] = f"the nearest titles are {named}" if near else "no title is near it"
        return self._nearest[text]


@dataclass(slots=True)
class Draft:
    """The data of one person read so far: for each year its occupation, education and cells."""

    person: str
    survey: str
    place: int
    facts: dict[str, str] = field(default_factory=dict)
    regions: dict[int, str] = field(default_factory=dict)  # by year; at 0 where it has none
    jobs: dict[int, tuple[str, str | None, Cells]] = field(default_factory=dict)
    target: tuple[int, str | None, Cells] | None = None
    is_broken: bool = False  # something of it was noted as wrong already


class RequestParser:
    """All people of a file while it is read. A wrong cell is noted in `problems`."""

    def __init__(self, occupations: OccupationLookup, surveys: Sequence[str], problems: Problems) -> None:
        self._occupations, self._surveys, self.problems = occupations, tuple(surveys), problems
        self._drafts: dict[tuple[str, str], Draft] = {}

    def person(self, cells: Cells) -> Draft | None:
        """Return the person whose cells these are, with their facts added; None if the person is not known."""
        if not self._are_printable(cells):
            return None
        person, survey = cells.texts.get("person", ""), cells.texts.get("survey", "")
        if is_missing(survey) and len(self._surveys) == 1:
            survey = self._surveys[0]
        if is_missing(person):
            self.note(cells, "person", "missing")
            return None
        try:
            person = person_id(person)
        except InexactIdError as error:
            self.note(cells, "person", str(error))
            return None
        if survey not in self._surveys:
            problem = "missing" if is_missing(survey) else f"{survey!r} is none of the run's"
            self.note(cells, "survey", f"{problem}; the run's surveys are {', '.join(self._surveys)}")
            return None
        draft = self._drafts.setdefault((survey, person), Draft(person, survey, cells.place))
        for name in (*FIXED, "region"):
            if not is_missing(text := cells.texts.get(name, "")):
                self._add_fact(draft, cells, name, same_code(text))
        return draft

    def year(self, draft: Draft, cells: Cells) -> None:
        """Add a year of a person: a job, or the year to predict where the occupation is missing."""
        if not self._are_printable(cells):
            return
        text = cells.texts.get("year", "")
        year, occupation = as_year(text), cells.texts.get("occupation", "")
        education = cells.texts.get("education", "")
        known = None if is_missing(education) else same_code(education)
        if year is None:
            self.note(cells, "year", _no_year(text))
        elif self._occupations.code(occupation) is None and is_missing(occupation):
            self._add_target(draft, year, known, cells)
        elif year in draft.jobs:
            first = f"first at {self.problems.unit} {draft.jobs[year][2].place}"
            self.note(cells, "year", f"person {draft.person!r} has {year} twice, {first}")
        else:
            code = self._occupations.code(occupation)
            draft.jobs[year] = (code or occupation, known, cells)
            if code is None:
                is_no_answer = (whole_number(occupation) or 0) < 0
                advice = "a survey's code for no answer; leave the row out, or the cell empty to predict this year"
                nearest = advice if is_no_answer else self._occupations.nearest(occupation)
                self.note(cells, "occupation", f"{occupation!r} is no code and no title of the run; {nearest}")

    def _are_printable(self, cells: Cells) -> bool:
        for name, text in cells.texts.items():
            if not text.isprintable():
                self.note(cells, name, f"{text!r} holds a line break, control character or odd blank")
                return False
        return True

    def note(self, cells: Cells, name: str, what: str) -> None:
        """Note a problem with a field."""
        self.problems.add(cells.place, cells.names.get(name, name), what)

    def careers(self) -> list[PredictionRequest]:
        """Return the careers, in the order of the people's first places."""
        return [career for draft in self._drafts.values() if (career := self._career(draft)) is not None]

    def _add_fact(self, draft: Draft, cells: Cells, name: str, text: str) -> None:
        if name == "region":
            draft.regions.setdefault(as_year(cells.texts.get("year", "")) or 0, text)
        elif name == "birth_year" and as_year(text) is None:
            self.note(cells, name, _no_year(text))
        elif (known := draft.facts.setdefault(name, text)) != text:
            self.note(cells, name, f"{text!r}, but {known!r} before, of person {draft.person!r}")

    def _add_target(self, draft: Draft, year: int, education: str | None, cells: Cells) -> None:
        if draft.target is None:
            draft.target = (year, education, cells)
        else:
            first = f"first at {self.problems.unit} {draft.target[2].place}"
            self.note(cells, "year", f"a second year without an occupation of person {draft.person!r}, {first}")

    def _check_birth(self, draft: Draft) -> None:
        birth = as_year(draft.facts.get("birth_year", ""))
        years = [(year, cells) for year, (_, _, cells) in draft.jobs.items()]
        for year, cells in [*years, *([(draft.target[0], draft.target[2])] if draft.target else [])]:
            if birth is not None and year < birth:
                self.note(cells, "year", f"{year} is before the birth of person {draft.person!r} in {birth}")

    def _career(self, draft: Draft) -> PredictionRequest | None:
        self._check_birth(draft)
        jobs = tuple(Job(year, code, education) for year, (code, education, _) in sorted(draft.jobs.items()))
        if draft.target is None and not jobs:
            if not draft.is_broken:
                what = f"person {draft.person!r} has no job, so the year to predict must be given"
                self.problems.add(draft.place, None, what)
            return None
        last = max(draft.jobs, default=0)
        year, education, _ = draft.target or (last + 1, None, None)
        if draft.target is not None and year <= last:
            what = f"{year} is to be predicted, but person {draft.person!r} has a job in {last}; ask for a later year"
            self.note(draft.target[2], "year", what)
        if education is None:
            education = next((job.education for job in reversed(jobs) if job.education is not None), None)
        history = CareerHistory(
            person=draft.person,
            survey=draft.survey,
            birth_year=as_year(draft.facts.get("birth_year", "")),
            gender=draft.facts.get("gender"),
            ethnicity=draft.facts.get("ethnicity"),
            region=draft.regions[min(draft.regions)] if draft.regions else None,
            jobs=jobs,
        )
        return PredictionRequest(history, year, education)


def _no_year(text: str) -> str:
    if is_missing(text):
        return "missing"
    return f"{text!r} is not a year from {EARLIEST_YEAR} to {LATEST_YEAR}"
