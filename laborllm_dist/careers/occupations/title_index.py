"""The index of titles that other titles are compared with, from three tables (tables/SOURCES.md has their sources).

    common_titles.csv      titles that are common today, by 2018 SOC occupation, coded by hand
    onet_titles.csv.gz     the alternate titles of O*NET 27.0 (titles/build_onet.py makes it)
    census_titles.csv.gz   the alphabetical index of occupations of the Census 2000 (titles/build.py makes it)

A title has one or several occ1990dd codes. Those of the first two tables are all right: the same title is used in
several occupations. Those of the Census index depend on the industry, which a title does not say, and the likeliest is
the first. Titles of one table and one normal form are one title here, with all of its codes. In the Census index the
spelling that is nearest to the normal form in length (the least abbreviated) decides about the first code.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from laborllm_dist.careers.occupations.normalize import title_words
from laborllm_dist.careers.occupations.occ1990dd import crosswalk

_TABLES = Path(__file__).parents[1] / "tables"
INDEX_PATH = _TABLES / "census_titles.csv.gz"
ONET_PATH = _TABLES / "onet_titles.csv.gz"
COMMON_PATH = _TABLES / "common_titles.csv"

Words = tuple[str, ...]
Source = Literal["common", "onet", "census"]


@dataclass(frozen=True, slots=True)
class IndexTitle:
    """A title of an index: its words with the head noun last, its occ1990dd codes, and the table it is from."""

    title: str
    words: Words
    codes: tuple[str, ...]
    source: Source

    @property
    def normal_form(self) -> str:
        """The words in sorted order."""
        return " ".join(sorted(self.words))

    @property
    def code(self) -> str:
        """The first code: of a title of the Census index, the likeliest one."""
        return self.codes[0]


def read_index() -> list[IndexTitle]:
    """Return the titles of all tables: of each table one of every normal form, in sorted order."""
    return [*read_common_titles(), *read_onet_titles(), *read_census_titles()]


def read_census_titles() -> list[IndexTitle]:
    """Return the titles of the Census index whose census code leads to an occ1990dd code."""
    code_of = crosswalk("census2000")
    with gzip.open(INDEX_PATH, "rt", encoding="utf-8", newline="") as file:
        rows = [(row["title"], [row["census2000"], *row["others"].split()]) for row in csv.DictReader(file)]
    coded = [(title, [code_of[int(each)] for each in census if int(each) in code_of]) for title, census in rows]
    return _one_of_each_form(coded, "census")


def read_onet_titles() -> list[IndexTitle]:
    """Return the alternate titles of O*NET."""
    with gzip.open(ONET_PATH, "rt", encoding="utf-8", newline="") as file:
        return _one_of_each_form([(row["title"], row["occ1990dd"].split()) for row in csv.DictReader(file)], "onet")


def read_common_titles() -> list[IndexTitle]:
    """Return the titles that were coded by hand."""
    with COMMON_PATH.open(encoding="utf-8", newline="") as file:
        rows = [(row["titles"].split("; "), row["occ1990dd"].split()) for row in csv.DictReader(file)]
    return _one_of_each_form([(title, codes) for titles, codes in rows for title in titles], "common")


def _one_of_each_form(coded: Iterable[tuple[str, list[str]]], source: Source) -> list[IndexTitle]:
    rows = [(title, title_words(title), codes) for title, codes in coded if codes]
    forms = [(" ".join(sorted(words)), title, words, codes) for title, words, codes in rows]
    spelling: dict[str, tuple[str, Words]] = {}
    codes_of: dict[str, dict[str, None]] = {}
    for form, title, words, codes in sorted(forms, key=lambda row: (abs(len(row[1]) - len(row[0])), row[1])):
        if form:
            spelling.setdefault(form, (title, words))
            codes_of.setdefault(form, {}).update(dict.fromkeys(codes))
    titles = (IndexTitle(title, words, tuple(codes_of[form]), source) for form, (title, words) in spelling.items())
    return sorted(titles, key=lambda each: each.title)
