"""The NLS variables that the method needs, by cohort, concept and year: tables/nls_variables.csv.

The table names the source of every row. The tagsets tables/laborllm.NLSY79 and tables/laborllm.NLSY97 have the same
reference numbers, one per line; the site takes them to make the extract. The tagsets lack substitutes for the
occupation of a year, which are read if an extract lacks the main variable: the NLSY79 coded the jobs of 1982 to 1993 by
the census of 1970 (CPSOCC70) as well as that of 1980 (CPSOCC80).
"""

from __future__ import annotations

import csv
import dataclasses
import datetime
import functools
import re
from collections.abc import Container, Iterable
from dataclasses import dataclass
from typing import Literal

from laborllm_dist.careers.occupations.occ1990dd import SCHEMES, TABLES, Scheme
from laborllm_dist.careers.readers.nls.codebook import VariableName
from laborllm_dist.errors import DataFileError

Cohort = Literal["NLSY79", "NLSY97"]
FIXED_CONCEPTS = ("person_id", "sex", "race_ethnicity", "birth_year")
OTHER_OCCUPATION = "other_occupation"
_WEEK_79 = re.compile(r"^STATUS_WK_NUM(\d{4})$")
_WEEK_97 = re.compile(r"^EMP_STATUS_(\d{4})\.\d{2}$")
_WEEK_ONE_79 = datetime.date(1978, 1, 1)
_NUM_SHOWN = 12


@dataclass(frozen=True, slots=True)
class NlsVariable:
    """One variable of the method; `scheme` is that of its codes, for occupations."""

    concept: str
    year: int
    name: VariableName
    scheme: Scheme | None


@functools.lru_cache(maxsize=2)
def nls_variables(cohort: Cohort) -> tuple[NlsVariable, ...]:
    """Return the variables of a cohort that the method needs."""
    return tuple(each for each in _table(cohort) if each.concept != OTHER_OCCUPATION)


@functools.lru_cache(maxsize=2)
def other_occupations(cohort: Cohort) -> tuple[NlsVariable, ...]:
    """Return the substitute variables for the occupation of a year."""
    return tuple(
        dataclasses.replace(each, concept="occupation") for each in _table(cohort) if each.concept == OTHER_OCCUPATION
    )


def occupations_of(cohort: Cohort, there: Container[str]) -> dict[int, NlsVariable]:
    """Return the variable of the occupation of each year: the main one, else a substitute that the extract has.

    Args:
        cohort: cohort of the survey.
        there: reference numbers of the extract.
    """
    own = {each.year: each for each in nls_variables(cohort) if each.concept == "occupation"}
    others = {each.year: each for each in other_occupations(cohort) if each.name.reference in there}
    return {
        year: others[year] if variable.name.reference not in there and year in others else variable
        for year, variable in own.items()
    }


def _table(cohort: Cohort) -> tuple[NlsVariable, ...]:
    with (TABLES / "nls_variables.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["cohort"] == cohort]
    schemes: dict[str, Scheme] = {scheme: scheme for scheme in SCHEMES}
    return tuple(
        NlsVariable(
            concept=row["concept"],
            year=1978 if row["year"] == "78SCRN" else int(row["year"]),
            name=VariableName(row["reference_number"], row["year"], row["question_name"]),
            scheme=schemes.get(row["scheme"]),
        )
        for row in rows
    )


def nls_schemes(cohort: Cohort) -> dict[int, Scheme]:
    """Return the scheme of a cohort's occupation codes by year."""
    return {variable.year: variable.scheme for variable in nls_variables(cohort) if variable.scheme is not None}


def years_with_status(cohort: Cohort) -> set[int]:
    """Return the years for which the table has an employment status, so that the states can be observed."""
    concepts = ("employment_status", "weekly_status")
    return {variable.year for variable in nls_variables(cohort) if variable.concept in concepts}


def weekly_variables(names: Iterable[VariableName]) -> list[NlsVariable]:
    """Return the weekly labor-force statuses among the variables of an extract.

    They include weeks of later rounds, which the table does not have.
    """
    weekly: list[NlsVariable] = []
    for name in names:
        if week := _WEEK_79.match(name.question):
            year = (_WEEK_ONE_79 + datetime.timedelta(weeks=int(week[1]) - 1)).year
        elif week := _WEEK_97.match(name.question):
            year = int(week[1])
        else:
            continue
        weekly.append(NlsVariable("weekly_status", year, name, None))
    return weekly


def tagset_advice(cohort: Cohort) -> str:
    """Return what to do about variables that an extract lacks."""
    return f"upload the tagset {TABLES / f'laborllm.{cohort}'} to the NLS Investigator and download again"


def reject_missing(missing: list[NlsVariable], cohort: Cohort, extract: str, *, may_go_on: bool) -> None:
    """Raise an error if variables are missing.

    Args:
        missing: missing variables.
        cohort: cohort of the survey.
        extract: name of the extract, for the message.
        may_go_on: whether variables=available would read the extract without them.

    Raises:
        DataFileError: naming the missing variables, and the tagset to upload.
    """
    if not missing:
        return
    shown = ", ".join(f"{each.name.reference} ({each.concept} {each.year})" for each in missing[:_NUM_SHOWN]) + (
        f" and {len(missing) - _NUM_SHOWN} more" if len(missing) > _NUM_SHOWN else ""
    )
    otherwise = ", or continue with the variables that are there by variables=available" if may_go_on else ""
    raise DataFileError(
        f"{extract}: {len(missing)} variables of the method are not in this extract of the {cohort}: {shown}; "
        f"{tagset_advice(cohort)}{otherwise}",
        code="missing-variables",
    )
