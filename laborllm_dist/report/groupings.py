"""Divide the observations of a report: by transition, covariate, length of history, survey and calendar year.

A grouping puts every observation into exactly one group. An absent value is a group of its own, `not recorded`, so
groups always add up to all observations; a fact that nobody has makes no grouping.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from laborllm_dist.report.load import CodeArray
from laborllm_dist.tables.scores import COVARIATES, TRANSITIONS, transition_of

FEW_PEOPLE = 10  # below this many, an interval over people says little
NOT_RECORDED = "not recorded"
# First numbers of earlier observations of the groups by length of history; the last group is open.
HISTORY_STARTS = (0, 1, 2, 3, 5, 10, 20)


@dataclass(frozen=True, slots=True)
class Grouping:
    """One way to divide the observations. `group_of_row` points into `labels`; every label has observations."""

    name: str
    title: str
    note: str
    labels: tuple[str, ...]
    group_of_row: CodeArray


def list_groupings(observations: pa.Table) -> tuple[Grouping, ...]:
    """Give every grouping that these observations allow, in the order in which a report shows them."""
    groupings = [_by_transition(observations)]
    for name in COVARIATES:
        note = "The value is that of the predicted year." if name == "education" else ""
        groupings.append(_by_value(name, f"By {name}", note, observations[name].to_pylist()))
    birth_years = observations["birth_year"].to_pylist()
    decades = [None if year is None else f"{year // 10 * 10}s" for year in birth_years]
    groupings.append(_by_value("birth_decade", "By decade of birth", "", decades))
    if len(surveys := observations["survey"].to_pylist()) and len(set(surveys)) > 1:
        groupings.append(_by_value("survey", "By survey", "", surveys))
    groupings.append(_by_history(observations))
    years = [str(year) for year in observations["year"].to_pylist()]
    groupings.append(_by_value("year", "By calendar year", "The year of the predicted occupation.", years))
    return tuple(grouping for grouping in groupings if grouping.labels != (NOT_RECORDED,))


def _by_transition(observations: pa.Table) -> Grouping:
    kinds = list(map(transition_of, observations["previous"].to_pylist(), observations["occupation"].to_pylist()))
    note = (
        "First: the first observation of a person, with no history before it. Moving: the occupation differs from the "
        "previous one. Staying: it is the same."
    )
    return _by_value("transition", "By kind of transition", note, kinds, order=TRANSITIONS)


def _by_value(name: str, title: str, note: str, values: Sequence[str | None], *, order: Sequence[str] = ()) -> Grouping:
    known = [NOT_RECORDED if value is None else value for value in values]
    present = set(known)
    labels = [label for label in order if label in present] or sorted(present - {NOT_RECORDED})
    labels += [NOT_RECORDED] * (NOT_RECORDED in present)
    codes = {label: code for code, label in enumerate(labels)}
    group_of_row = np.fromiter((codes[value] for value in known), dtype=np.int64, count=len(known))
    return Grouping(name, title, note, tuple(labels), group_of_row)


def _by_history(observations: pa.Table) -> Grouping:
    starts, ends = np.array(HISTORY_STARTS), (*(start - 1 for start in HISTORY_STARTS[1:]), None)
    labels = [_history_label(start, end) for start, end in zip(HISTORY_STARTS, ends, strict=True)]
    # The position counts the observations of the person before this one, whatever part of them a template shows.
    groups = np.searchsorted(starts, np.asarray(observations["position"].to_numpy()), side="right") - 1
    note = "The number of earlier observations of the person."
    return _by_value("history", "By length of history", note, [labels[group] for group in groups], order=labels)


def _history_label(start: int, end: int | None) -> str:
    return f"{start} or more" if end is None else str(start) if start == end else f"{start} to {end}"
