"""Derive a career from the yearly interviews of a survey, by the rule that all surveys share.

    employment status    occupation        the observation is
    unemployed           any               the state unemployed
    not working          any               education if enrolled, else the state not in the labor force
    armed forces         any               the occupation, or the military where there is none
    working              known             the occupation
    not known            known             the occupation; excluded if the question was about the present or last job
    working, not known   not known         excluded, with the reason
    not working, unemployed or not is unknown: excluded

So a "present or last" occupation counts only if the person is known to work, unless settings.unknown_status is
"count". Education is the last recorded level up to that year. A user's own panel with a status column follows the same
rule (careers/readers/long_panel.py).
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
# The occupation of a year without work, and of a year in the armed forces without a known occupation.
STATES_OF: Mapping[Status, str | None] = {
    "unemployed": UNEMPLOYED, "not_working": NOT_IN_LABOR_FORCE, "enrolled": EDUCATION, "armed_forces": MILITARY,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class PersonYear:
    """The answers of one interview.

    `why_none` is the reason why there is no occupation, for the count of exclusions. `may_be_last`: the question was
    about the present or last job, so the person may have left the occupation.
    """

    year: int
    status: Status | None  # None: not known
    occupation: str | None  # occ1990dd
    why_none: str | None
    may_be_last: bool
    education: str | None
    region: str | None
    unmapped_code: str | None = None  # code of the source that maps to no occupation


@dataclass(frozen=True, slots=True)
class Worker:
    """Attributes of a person that do not change."""

    person: str
    survey: str
    birth_year: int | None
    gender: str | None
    ethnicity: str | None


def years_of_schooling_level(grades: int) -> str:
    """Return the level of education of completed grades, as it is written in the text."""
    if grades < 12:
        return "less than high school"
    if grades == 12:
        return "high school"
    if grades < 16:
        return "some college"
    return "college" if grades == 16 else "graduate school"


def career_from_years(worker: Worker, years: Iterable[PersonYear], settings: SurveySettings) -> PersonRecord:
    """Return a person's career, and every excluded year.

    Args:
        worker: attributes of the person.
        years: one entry per interview, in any order; years outside settings.first_year to settings.last_year are
            skipped without being counted.
        settings: bounds of year and age.
    """
    first, last = settings.first_year or 0, settings.last_year or 9999
    selected = sorted((each for each in years if first <= each.year <= last), key=lambda each: each.year)
    jobs: list[Job] = []
    drops: list[Exclusion] = []
    for each in _with_education_to_date(selected):
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
        why = "person without any observation" if selected else "person never interviewed in these years"
        return PersonRecord(None, (*drops, Exclusion(why)))
    career = CareerHistory(
        person=worker.person,
        survey=worker.survey,
        birth_year=worker.birth_year,
        gender=worker.gender,
        ethnicity=worker.ethnicity,
        region=next((each.region for each in selected if each.region is not None), None),
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
    """Return the observation of a year: an occupation, or the occupation of a state; None if the year is excluded.

    Args:
        status: employment status; None: unknown.
        occupation: occupation of the year; None: unknown.
        is_uncertain: whether the person may have left the occupation if the status is unknown.
        states: occupation of each state.
    """
    if status == "armed_forces":
        return occupation or states.get(status)
    if status is None:
        return None if is_uncertain else occupation
    return occupation if status == "working" else states.get(status)


def why_left_out(status: Status | None, occupation: str | None, why_none: str | None) -> str:
    """Return the reason why `observed_occupation` is None, for the count of exclusions.

    Args:
        status: employment status; None: unknown.
        occupation: occupation of the year; None: unknown.
        why_none: reason why the occupation is unknown.
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
