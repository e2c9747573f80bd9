"""Assign at most one job to each calendar year, from dated jobs that may overlap and leave gaps.

    days     a year belongs to the job held for the most days of it
    latest   ... to the job that began last, of those held on some day of it

Ties go to the job that starts later, then the one that ends later, then the one that is later in the file. A year
without a job is not in the career.

Jobs with an order and no dates get the years 1, 2, 3, ...
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Literal

from laborllm_dist.careers.readers.resumes.spells import Spell

YearRule = Literal["days", "latest"]
_Key = tuple[int, date, date, int]


def job_of_years(spells: Sequence[Spell], rule: YearRule) -> dict[int, Spell]:
    """Return the job of each year that has one, in order of year.

    Args:
        spells: jobs in the order of the file; one without a start and end, or an order, has no year.
        rule: selects among several jobs of a year.
    """
    in_order = sorted((spell for spell in spells if spell.order is not None), key=lambda spell: spell.order or 0)
    if in_order:
        return dict(enumerate(in_order, start=1))
    best: dict[int, tuple[_Key, Spell]] = {}
    for order, spell in enumerate(spells):
        if spell.start is None or spell.end is None:
            continue
        for year in range(spell.start.year, spell.end.year + 1):
            days = _days_in(year, spell.start, spell.end) if rule == "days" else 0
            key = (days, spell.start, spell.end, order)
            if year not in best or key > best[year][0]:
                best[year] = (key, spell)
    return {year: best[year][1] for year in sorted(best)}


def _days_in(year: int, start: date, end: date) -> int:
    return (min(end, date(year, 12, 31)) - max(start, date(year, 1, 1))).days + 1
