"""From what a survey knows of each year to a career: the rule that all surveys share.

    employment status    occupation        the observation is
    unemployed           any               the state unemployed
    not working          any               education if enrolled, else the state not in the labor force
    armed forces         any               the occupation, or the military where there is none
    working              known             the occupation
    not known            known             the occupation; left out where the question was for the present or last job
    working, not known   not known         left out, with the reason
    not working, of which kind is not known: left out

So a "present or last" occupation counts while the person is known to work only, unless settings.unknown_status is
"count". The last level of education on record stands until the next one: it is the education to date. A panel of a
user's own with a column of statuses follows the same rule (careers/readers/long_panel.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from laborllm_dist.careers.occupations.occ1990dd import EDUCATION, MILITARY, NOT_IN_LABOR_FORCE, UNEMPLOYED
from laborllm_dist.careers.person_records import Exclusion, PersonRecord
from laborllm_dist.careers.types import CareerHistory, Job
from laborllm_dist.config.corpora import SurveySettings

# enrolled: not working, and in school; not_told_apart: not working, and whether unemployed or not is not known.
Status = Literal["working", "armed_forces", "unemployed", "not_working", "enrolled", "not_told_apart"]
# The occupations that stand for a year without work, and for the armed forces without a further occupation.
STATES_OF: Mapping[Status, str | None] = {
    "unemployed": UNEMPLOYED, "not_working": NOT_IN_LABOR_FORCE, "enrolled": EDUCATION, "armed_forces": MILITARY,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class PersonYear:
    """What an interview says.

    `why_none` says why there is no occupation, for the count of what is left out. `may_be_last`: the question was for
    the present or last job, so that the occupation may be one that the person has left.
    """

    year: int
    status: Status | None  # None: not known
    occupation: str | None  # occ1990dd
    why_none: str | None
    may_be_last: bool
    education: str | None
    region: str | None
    unmapped_code: str | None = None  # the source's code, where there is one that leads to no occupation


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


def career_from_years(worker: Worker, years: Iterable[PersonYear], settings: SurveySettings) -> PersonRecord:
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
    drops: list[Exclusion] = []
    for each in _with_education_to_date(wanted):
        reason = _age_reason(each.year, worker.birth_year, settings)
        is_uncertain = each.may_be_last and settings.unknown_status == "leave_out"
        occupation = None if reason else observed_occupation(each.status, each.occupation, is_uncertain=is_uncertain)
        if occupation is not None:
            jobs.append(Job(each.year, occupation, each.education))
        else:
            drops.append(
                Exclusion(
                    reason or why_left_out(each.status, each.occupation, each.why_none),
                    each.year,
                    code=None if reason else each.unmapped_code,
                )
            )
    if not jobs:
        why = "person without any observation" if wanted else "person never interviewed in these years"
        return PersonRecord(None, (*drops, Exclusion(why)))
    career = CareerHistory(
        person=worker.person,
        survey=worker.survey,
        birth_year=worker.birth_year,
        gender=worker.gender,
        ethnicity=worker.ethnicity,
        region=next((each.region for each in wanted if each.region is not None), None),
        jobs=tuple(jobs),
    )
    return PersonRecord(career, tuple(drops))


def _with_education_to_date(years: list[PersonYear]) -> list[PersonYear]:
    level: str | None = None
    levels: list[str | None] = []
    for each in years:
        level = each.education or level
        levels.append(level)
    return [replace(each, education=known) for each, known in zip(years, levels, strict=True)]


def observed_occupation(
    status: Status | None,
    occupation: str | None,
    *,
    is_uncertain: bool,
    states: Mapping[Status, str | None] = STATES_OF,
) -> str | None:
    """Return what is observed in a year: an occupation, or the one that stands for a state; None where it is left out.

    Args:
        status: of employment; None: not known.
        occupation: of the year; None: not known.
        is_uncertain: whether the occupation of an unknown status may be one that the person has left.
        states: the occupation that stands for each state.
    """
    if status == "armed_forces":
        return occupation or states.get(status)
    if status is None:
        return None if is_uncertain else occupation
    return occupation if status == "working" else states.get(status)


def why_left_out(status: Status | None, occupation: str | None, why_none: str | None) -> str:
    """Return why a year has no observation, where `observed_occupation` gives none.

    Args:
        status: of employment; None: not known.
        occupation: of the year; None: not known.
        why_none: why there is no occupation.
    """
    if status == "not_told_apart":
        return "not working, unemployed or out of the labor force not told apart"
    known = "employment status not known" if status is None else "working"
    if status is None and occupation is not None:
        return f"{known}, occupation is of the present or last job"
    return f"{known}, occupation {why_none or 'not known'}"


def _age_reason(year: int, birth_year: int | None, settings: SurveySettings) -> str | None:
    if birth_year is None:
        return None
    if settings.youngest_age is not None and year - birth_year < settings.youngest_age:
        return f"younger than {settings.youngest_age}"
    if settings.oldest_age is not None and year - birth_year > settings.oldest_age:
        return f"older than {settings.oldest_age}"
    return None
