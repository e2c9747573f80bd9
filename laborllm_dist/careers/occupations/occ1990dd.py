"""Map the census occupation codes of a survey year to occ1990dd, one list of occupations for all years.

occ1990dd is by David Dorn ("Essays on Inequality, Spatial Interaction, and the Demand for Skills", 2009); his
crosswalks from the censuses 1960 to 2010 are tables/occ1990dd_crosswalk.csv, with their special targets: 991 is the
state unemployed, 999 is no occupation. One row is not his: 1970 code 280 (salesmen and sales clerks, n.e.c.), which
IPUMS' OCC1990 gives as 274, like the codes 281, 282 and 285 beside it. Two codes with one title cannot both be
predicted, since a title is all that a text shows: the higher code is merged into the lower one (874 into 873).
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Mapping, Set
from pathlib import Path
from types import MappingProxyType
from typing import Literal, get_args

from laborllm_dist.careers.types import OccupationVocabulary

TABLES_VERSION = 4  # of what is read from tables/ and how, and of how a data file's cells are read
TABLES = Path(__file__).parents[1] / "tables"
UNEMPLOYED, NOT_IN_LABOR_FORCE, EDUCATION = "unemployed", "not_in_labor_force", "education"
STATES = (UNEMPLOYED, NOT_IN_LABOR_FORCE, EDUCATION)
_SPECIAL = {"991": UNEMPLOYED, "999": None}
_MERGED = {"874": "873"}
MILITARY = "905"
_MILITARY = {984: MILITARY}  # the NLS write 9840 for the armed forces; the crosswalks have 980 to 983 only

Scheme = Literal["census1970", "census1980", "census2000", "census2000_4digit", "census2002", "census2010"]
# Which crosswalks a scheme's code is looked up in, in turn, and the power of ten it is divided by before.
# Four digits of the 2000 and 2002 codes are the three of the crosswalk and a zero; a code that ends in another digit is
# none of them. Some "2002" codes of late rounds are 2010 codes, which use all four digits (3255 registered nurses), and
# some 2010 codes are in the crosswalk of 2000 alone (2110 judges).
_LOOKUPS: Mapping[Scheme, tuple[tuple[int, int], ...]] = {
    "census1970": ((1970, 1),),
    "census1980": ((1980, 1),),
    "census2000": ((2000, 1), (2005, 1)),
    "census2000_4digit": ((2000, 10), (2005, 10)),
    "census2002": ((2005, 10), (2000, 10), (2010, 1)),
    "census2010": ((2010, 1), (2005, 10), (2000, 10)),
}
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)


@functools.lru_cache(maxsize=1)
def _crosswalks() -> Mapping[int, Mapping[int, str]]:
    """Return, by census, the occ1990dd code of every source code."""
    tables: dict[int, dict[int, str]] = {}
    with (TABLES / "occ1990dd_crosswalk.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            tables.setdefault(int(row["census"]), {})[int(row["source_code"])] = row["occ1990dd"]
    return tables


@functools.lru_cache(maxsize=len(SCHEMES))
def crosswalk(scheme: Scheme) -> Mapping[int, str]:
    """Return the occupation (a code of `occ1990dd_vocabulary`) of every source code that has one.

    Codes that mean "not classified" are absent; the first of a scheme's crosswalks that has a code decides.
    """
    targets: dict[int, str | None] = {}
    for census, divisor in _LOOKUPS[scheme]:
        table = {**_crosswalks()[census], **(_MILITARY if census == 2005 else {})}
        for code, target in table.items():
            targets.setdefault(code * divisor, _SPECIAL.get(target, _MERGED.get(target, target)))
    return MappingProxyType({source: target for source, target in targets.items() if target is not None})


def without_occupation(scheme: Scheme) -> str:
    """Return the reason, for the data card, why a code that `crosswalk` lacks has no occupation."""
    return f"code without occ1990dd ({scheme})"


@functools.lru_cache(maxsize=len(SCHEMES))
def reachable_codes(scheme: Scheme) -> frozenset[str]:
    """Return the occupations that the codes of a scheme map to; no other can be observed in such a year."""
    return frozenset(crosswalk(scheme).values())


def codes_or_states(schemes: Mapping[int, Scheme], *, with_states: Set[int]) -> dict[int, frozenset[str]]:
    """Return, by year, the occupations that a year's scheme leads to, with the states in the years that record them."""
    states = frozenset(STATES)
    return {
        year: reachable_codes(scheme) | (states if year in with_states else frozenset())
        for year, scheme in schemes.items()
    }


@functools.lru_cache(maxsize=1)
def occ1990dd_vocabulary() -> OccupationVocabulary:
    """Return the civilian occupations, the military and the three states, with their titles."""
    with (TABLES / "occ1990dd.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["source"] != "state" or row["code"] in STATES]
    return OccupationVocabulary(tuple(row["code"] for row in rows), tuple(row["title"] for row in rows))
