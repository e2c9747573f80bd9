"""The titles that others are compared with: the alphabetical index of occupations of the Census 2000.

tables/census_titles.csv.gz has every title of the index with its codes, the likeliest first (titles/build.py makes it,
and says by which rules). Two titles of one normal form are one title here, with the codes of the one that is nearest to
it in length (the least abbreviated), then of the first in sorted order. A title is certain if all codes that it and the
titles of its normal form can have lead to one occ1990dd code; the code of another hangs on its industry, which a title
does not say.
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
    """A title of the index, as it stands there and in normal form, its occ1990dd code, and whether it has no other."""

    title: str
    normal_form: str
    code: str
    is_certain: bool


def read_index() -> list[IndexTitle]:
    """Return the titles whose census code leads to an occ1990dd code, one of each normal form, in sorted order."""
    code_of = crosswalk("census2000")
    with gzip.open(INDEX_PATH, "rt", encoding="utf-8", newline="") as file:
        rows = [(row["title"], [row["census2000"], *row["others"].split()]) for row in csv.DictReader(file)]
    found: dict[str, tuple[str, str]] = {}
    codes_of_form: dict[str, set[str]] = {}
    coded = [(title, [code_of[int(each)] for each in census if int(each) in code_of]) for title, census in rows]
    named = [(title, normal_form(title), codes) for title, codes in coded if codes]
    for title, form, codes in sorted(named, key=lambda each: (abs(len(each[0]) - len(each[1])), each[0])):
        if form:
            found.setdefault(form, (title, codes[0]))
            codes_of_form.setdefault(form, set()).update(codes)
    return sorted(
        (IndexTitle(title, form, code, len(codes_of_form[form]) == 1) for form, (title, code) in found.items()),
        key=lambda each: each.title,
    )
