"""Find the states without an occupation among the titles of a run: unemployed, out of the labor force, in school.

Surveys name and code them differently, so they are looked up: by the codes that the run's own data settings give
(`status.codes` of a panel), and by words that match a code or a title. Titles are read from the run's token store;
without it, codes alone are matched.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from laborllm_dist.careers.types import OccupationVocabulary
from laborllm_dist.config.data import TitleSettings
from laborllm_dist.config.evaluation import StateWords
from laborllm_dist.config.reader import read_settings
from laborllm_dist.errors import LaborError
from laborllm_dist.io.json_files import NotJsonError, read_json_object
from laborllm_dist.io.run_directory import RECORD, STORE_MANIFEST, recorded_store
from laborllm_dist.plain_text import from_sheet_cell
from laborllm_dist.report.bootstrap import BoolArray
from laborllm_dist.text.title_variants import canonical_vocabulary

OCCUPATIONS = "occupations.csv"  # of a token store (store/store.py)
# Names of the states in the settings of a panel (config/corpora.py, StateCodes).
_NAME_IN_PANEL = {"unemployed": "unemployed", "not_working": "not_in_labor_force", "enrolled": "education"}


@dataclass(frozen=True, slots=True)
class LaborStates:
    """Codes of the states without an occupation, each set in the order of the table of titles."""

    unemployed: tuple[str, ...]
    not_in_labor_force: tuple[str, ...]
    not_working: tuple[str, ...]
    education: tuple[str, ...]

    @property
    def all_codes(self) -> frozenset[str]:
        """Codes of all states; every other code is an occupation."""
        return frozenset((*self.unemployed, *self.not_in_labor_force, *self.not_working, *self.education))

    def are_among(self, codes: Sequence[str], occupations: Sequence[str | None]) -> BoolArray:
        """Return which of some occupations are one of `codes`, [occupations]."""
        return np.isin(np.asarray(occupations, dtype=object), np.asarray(codes, dtype=object))


def find_states(runs: Iterable[str], occupations: Sequence[str], words: StateWords) -> LaborStates:
    """Return the states among the occupations of a table of titles.

    Args:
        runs: run folders; those without settings or store are matched by code alone.
        occupations: codes of the table.
        words: codes and titles of each state.
    """
    named: dict[str, set[str]] = {name: set() for name in LaborStates.__slots__}
    texts_of: dict[str, set[str]] = {code: {code.casefold()} for code in occupations}
    for run in dict.fromkeys(runs):
        for name, code in _codes_of_settings(Path(run)):
            named[name].add(code)
        for code, title in titles_of_store(run).items():
            if code in texts_of:
                texts_of[code].add(title.casefold())
    codes = {}
    for name, own in named.items():
        folded = {word.casefold() for word in getattr(words, name)}
        codes[name] = tuple(code for code in occupations if code in own or folded & texts_of[code])
    return LaborStates(**codes)


def _codes_of_settings(run: Path) -> Iterable[tuple[str, str]]:
    try:
        corpora = read_json_object(run / RECORD)["settings"]["data"]["corpora"].values()
        groups: list[Mapping[str, Any]] = [corpus["status"]["codes"] for corpus in corpora if corpus.get("status")]
    except (OSError, NotJsonError, KeyError, TypeError, AttributeError):
        return ()
    return [(ours, group[theirs]) for group in groups for theirs, ours in _NAME_IN_PANEL.items() if group.get(theirs)]


def titles_of_store(run: str) -> dict[str, str]:
    """Return the titles of the codes in a run's token store; none if it is not there."""
    store = recorded_store(Path(run))
    if store is None:
        return {}
    try:
        with (store / OCCUPATIONS).open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        shown = OccupationVocabulary(
            codes=tuple(from_sheet_cell(row["code"]) for row in rows),
            titles=tuple(from_sheet_cell(row["title"]) for row in rows),
        )
        template = read_json_object(store / STORE_MANIFEST)["identity"]["template"]
        variant = read_settings(TitleSettings, template["titles"])
    except (OSError, UnicodeDecodeError, csv.Error, KeyError, TypeError, NotJsonError, LaborError):
        return {}
    return canonical_vocabulary(shown, variant).title_of()  # a text may show shuffled titles
