"""From what a survey knows of each year to a career: the rule that all surveys share.

    employment status    occupation        the observation is
    unemployed           any               the state unemployed
    not working          any               education if enrolled, else the state not in the labour force
    working, unknown     known             the occupation
    working, unknown     not known         left out, with the reason
    not working, of which kind is not known: left out

So a "present or last" occupation counts while the person works only. The last level of education on record stands
until the next one: it is the education to date.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from laborllm_dist.careers.history import CareerHistory, Job
from laborllm_dist.careers.occ1990dd import EDUCATION, NOT_IN_LABOR_FORCE, UNEMPLOYED
from laborllm_dist.careers.reading import Drop, PersonRead
from laborllm_dist.corpus_settings import SurveySettings

# enrolled: not working, and in school; not_told_apart: not working, and whether unemployed or not is not known.
Status = Literal["working", "unemployed", "not_working", "enrolled", "not_told_apart"]
_STATES = {"unemployed": UNEMPLOYED, "not_working": NOT_IN_LABOR_FORCE, "enrolled": EDUCATION}


@dataclass(frozen=True, slots=True)
class PersonYear:
    """What an interview says. `why_none` says why there is no occupation, for the count of what is left out."""

    year: int
    status: Status | None  # None: not known
    occupation: str | None  # occ1990dd
    why_none: str | None
    education: str | None
    region: str | None


@dataclass(frozen=True, slots=True)
class Worker:
    """Who a person is."""

    person: str
    survey: str
    birth_year: int | None
    gender: str | None
    ethnicity: str | None


def years_of_schooling_level(grades: int) -> str:
    """Return the level of education that completed grades stand for, in the words of the resume."""
    if grades < 12:
        return "less than high school"
    if grades == 12:
        return "high school"
    if grades < 16:
        return "some college"
    return "college" if grades == 16 else "graduate school"


def career_from_years(worker: Worker, years: Iterable[PersonYear], settings: SurveySettings) -> PersonRead:
    """Return a person's career, and every year that is left out.

    Args:
        worker: the person.
        years: one entry for each year the person was interviewed in, in any order; years outside of
            settings.first_year and settings.last_year are passed over, as those of another study.
        settings: the bounds of year and age.
    """
    first, last = settings.first_year or 0, settings.last_year or 9999
    wanted = sorted((each for each in years if first <= each.year <= last), key=lambda each: each.year)
    jobs: list[Job] = []
    drops: list[Drop] = []
    for each in _with_education_to_date(wanted):
        reason = _age_reason(each.year, worker.birth_year, settings)
        occupation = None if reason else _occupation_of(each)
        if occupation is not None:
            jobs.append(Job(each.year, occupation, each.education))
        else:
            drops.append(Drop(reason or _missing_reason(each), each.year))
    if not jobs:
        return PersonRead(None, (*drops, Drop("person without any observation")))
    career = CareerHistory(
        person=worker.person,
        survey=worker.survey,
        birth_year=worker.birth_year,
        gender=worker.gender,
        ethnicity=worker.ethnicity,
        region=next((each.region for each in wanted if each.region is not None), None),
        jobs=tuple(jobs),
    )
    return PersonRead(career, tuple(drops))


def _with_education_to_date(years: list[PersonYear]) -> list[PersonYear]:
    level: str | None = None
    levels: list[str | None] = []
    for each in years:
        level = each.education or level
        levels.append(level)
    return [replace(each, education=known) for each, known in zip(years, levels, strict=True)]


def _occupation_of(each: PersonYear) -> str | None:
    if each.status is None or each.status == "working":
        return each.occupation
    return _STATES.get(each.status)


def _missing_reason(each: PersonYear) -> str:
    if each.status == "not_told_apart":
        return "not working, unemployed or out of the labor force not told apart"
    status = "employment status not known" if each.status is None else "working"
    return f"{status}, occupation {each.why_none or 'not known'}"


def _age_reason(year: int, birth_year: int | None, settings: SurveySettings) -> str | None:
    if birth_year is None:
        return None
    if settings.youngest_age is not None and year - birth_year < settings.youngest_age:
        return f"younger than {settings.youngest_age}"
    if settings.oldest_age is not None and year - birth_year > settings.oldest_age:
        return f"older than {settings.oldest_age}"
    return None
