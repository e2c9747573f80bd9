"""The PSID variables that the method needs, by concept and year, and the meaning of their codes by year.

Names are from the PSID's cross-year index (tables/psid_variables.csv). For the employment status of 1994 to 1996 the
table has the summary first and the first mention after it; the summary is taken. Codes are those of the PSID's
codebooks.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from laborllm_dist.careers.occupations.occ1990dd import TABLES, Scheme
from laborllm_dist.careers.readers.person_years import Status
from laborllm_dist.errors import DataFileError

INTERVIEW_1968, PERSON_NUMBER, SEX = "ER30001", "ER30002", "ER32000"
PEOPLE = (INTERVIEW_1968, PERSON_NUMBER)
GENDERS = {1: "male", 2: "female"}
REGIONS = {1: "northeast", 2: "north central", 3: "south", 4: "west", 5: "west"}  # 5: Alaska and Hawaii
FIRST_1970_CODES, FIRST_2000_CODES, FIRST_2010_CODES = 1981, 2003, 2017
_NUM_SHOWN = 12

# Relation to the head (reference person). People who moved out keep their last code; see the sequence number.
_HEADS_TO_1982, _HEADS = frozenset({1}), frozenset({10})
_SPOUSES_TO_1982, _SPOUSES = frozenset({2}), frozenset({20, 22})
PRESENT = range(1, 21)  # sequence numbers of people who lived in the family at the interview

_STATUS_TO_1975: Mapping[int, Status] = {
    1: "working", 2: "unemployed", 3: "not_working", 4: "not_working", 5: "enrolled", 6: "not_working"
}  # fmt: skip
_STATUS: Mapping[int, Status] = {
    1: "working", 2: "working", 3: "unemployed", 4: "not_working", 5: "not_working", 6: "not_working", 7: "enrolled",
    8: "not_working",
}  # fmt: skip

WHITE, BLACK, INDIAN = "white", "black or african american", "american indian"
ASIAN, HISPANIC, OTHER = "asian or pacific islander", "hispanic or latino", "other"
_RACES_TO_1984 = {1: WHITE, 2: BLACK, 3: HISPANIC, 7: OTHER}
# 5 is Latino in the lists of 1990 and 1999, and Pacific Islander in that of 2005; the lists in between are unknown.
_RACES_TO_2003 = {1: WHITE, 2: BLACK, 3: INDIAN, 4: ASIAN, 5: HISPANIC, 6: OTHER, 7: OTHER, 8: OTHER}
_RACES = {1: WHITE, 2: BLACK, 3: INDIAN, 4: ASIAN, 5: ASIAN, 7: OTHER}
HISPANIC_MENTIONS = range(1, 8)


@dataclass(frozen=True, slots=True)
class Role:
    """The head's or the spouse's columns of a family: `rp` or `sp`."""

    prefix: str


HEAD, SPOUSE = Role("rp"), Role("sp")


@functools.lru_cache(maxsize=1)
def psid_variables() -> Mapping[tuple[str, int], str]:
    """Return the variable of every concept and year."""
    variables: dict[tuple[str, int], str] = {}
    with (TABLES / "psid_variables.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["year"]:
                variables.setdefault((row["concept"], int(row["year"])), row["variable"])
    return variables


def psid_years(first: int | None, last: int | None) -> list[int]:
    """Return the years of the survey within bounds."""
    years = sorted({year for concept, year in psid_variables() if concept == "relation_to_rp"})
    return [year for year in years if (first or 0) <= year <= (last or 9999)]


def scheme_of(year: int) -> Scheme:
    """Return the scheme of a year's occupation codes."""
    if year < FIRST_2000_CODES:
        return "census1970"
    return "census2000" if year < FIRST_2010_CODES else "census2010"


def psid_schemes() -> dict[int, Scheme]:
    """Return the scheme of the occupation codes by year."""
    return {year: scheme_of(year) for year in psid_years(None, None)}


def occupation_concept(role: Role, year: int) -> str:
    """Return the concept that holds a role's main occupation in a year; before 1981 it was coded in retrospect."""
    retrospective = "_retro" if year < FIRST_1970_CODES else ""
    return f"{role.prefix}_occ_{scheme_of(year).removeprefix('census')}code{retrospective}"


def concepts_of(year: int) -> list[str]:
    """Return the concepts of a year, including those that the survey did not ask about."""
    roles = [
        name
        for role in (HEAD, SPOUSE)
        for name in (
            f"{role.prefix}_employment_status", occupation_concept(role, year), f"{role.prefix}_race_1",
            f"{role.prefix}_hispanic",
        )
    ]  # fmt: skip
    individual = ["ind_interview_no", "sequence_no", "relation_to_rp", "age", "birth_year", "grades_completed"]
    return [*individual, "fam_interview_no", "region", *roles]


def role_of(relation: int, year: int) -> Role | None:
    """Return the role of a person who is present; None for children and others."""
    heads, spouses = (_HEADS_TO_1982, _SPOUSES_TO_1982) if year <= 1982 else (_HEADS, _SPOUSES)
    return HEAD if relation in heads else SPOUSE if relation in spouses else None


def status_of(code: int, year: int) -> Status | None:
    """Return the status of an employment code."""
    return (_STATUS_TO_1975 if year <= 1975 else _STATUS).get(code)


def ethnicity_of(race: int, hispanic: int, year: int) -> str | None:
    """Return race or ethnicity; Hispanic descent, if mentioned, takes precedence over race."""
    if hispanic in HISPANIC_MENTIONS:
        return HISPANIC
    return (_RACES_TO_1984 if year <= 1984 else _RACES_TO_2003 if year <= 2003 else _RACES).get(race)


def reject_missing(missing: Sequence[tuple[str, int, str]], place: str, *, may_go_on: bool) -> None:
    """Raise an error if variables, given as (concept, year, variable), are missing.

    Args:
        missing: missing variables.
        place: path of the download, for the message.
        may_go_on: whether variables=available would read the download without them.

    Raises:
        DataFileError: naming the missing variables.
    """
    if not missing:
        return
    named = [f"{variable} ({concept} {year})" if year else variable for concept, year, variable in missing]
    shown = ", ".join(named[:_NUM_SHOWN]) + (f" and {len(named) - _NUM_SHOWN} more" if len(named) > _NUM_SHOWN else "")
    table = TABLES / "psid_variables.csv"
    otherwise = ", or continue with the variables that are there by variables=available" if may_go_on else ""
    raise DataFileError(
        f"{place}: {len(missing)} variables of the method are not in this download: {shown}; add the variables of "
        f"{table} to the cart at the PSID Data Center and download again{otherwise}",
        code="missing-variables",
    )
