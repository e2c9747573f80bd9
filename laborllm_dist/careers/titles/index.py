r"""The titles that others are compared with: the alphabetical index of occupations of the Census 2000.

tables/census_titles.csv.gz holds, of the index of the U.S. Census Bureau (30,959 entries), every title with the
occupation code of the Census 2000. It follows from the index by these rules, and a test makes it again:

    notation     what stands after "\" or in parentheses is cut ("Grinder \ n.s." is Grinder), but initials
                 take the words in parentheses ("C.N.A. (certified nursing assistant)"); parts between commas that
                 are conditions (exc., any, specified, n.s., n.e.c., degree, diploma) are cut
    a/b          "Bar waiter/waitress" is Bar waiter and Bar waitress
    See          'Waitress--See "Waiter"' has the code of Waiter, where neither has another; the other instructions
                 ("--Code by industry") and entries without a code are left out
    industries   of a title with several codes: first the entries for any industry, then "any not listed", then
                 "except ...", then those of named industries, then those that name schooling or a kind of work after
                 "\"; among these the code with the most industries named, then the lowest

Two titles of one normal form are one title here, with the code of the one that is nearest to it in length (the least
abbreviated), then of the first in sorted order.
"""

from __future__ import annotations

import csv
import gzip
from dataclasses import dataclass
from pathlib import Path

from laborllm_dist.careers.occ1990dd import crosswalk
from laborllm_dist.careers.titles.normal_form import normal_form

INDEX_PATH = Path(__file__).parents[1] / "tables" / "census_titles.csv.gz"


@dataclass(frozen=True, slots=True)
class IndexTitle:
    """A title of the index: as it stands there, in normal form, and its occ1990dd code."""

    title: str
    normal_form: str
    code: str


def read_index() -> list[IndexTitle]:
    """Return the titles whose census code leads to an occ1990dd code, one of each normal form, in sorted order."""
    code_of = crosswalk("census2000")
    with gzip.open(INDEX_PATH, "rt", encoding="utf-8", newline="") as file:
        rows = [(row["title"], int(row["census2000"])) for row in csv.DictReader(file)]
    titles = [IndexTitle(title, normal_form(title), code_of[census]) for title, census in rows if census in code_of]
    found: dict[str, IndexTitle] = {}
    for each in sorted(titles, key=lambda each: (abs(len(each.title) - len(each.normal_form)), each.title)):
        if each.normal_form:
            found.setdefault(each.normal_form, each)
    return sorted(found.values(), key=lambda each: each.title)
