"""Read the jobs of a row: one job, or numbered columns of many.

A job lasts from the first day of its start to the last day of its end. A job that is still held, or ends after the
year in which the resumes were collected (`last_year`), lasts to the end of that year; what becomes of one without an
end is a setting. Where the file has no dates, jobs have a number in which they follow each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import Literal

from laborllm_dist.careers.problems import Problems
from laborllm_dist.careers.resumes.dates import NotADate, read_days
from laborllm_dist.careers.resumes.rows import Cells
from laborllm_dist.corpus_settings import ResumeSettings


@dataclass(frozen=True, slots=True)
class Spell:
    """A job with its first and last day, or the number in which it follows others; `place` is its line or row.

    What the file does not have is None.
    """

    start: date | None
    end: date | None
    order: int | None
    title: str | None
    code: str | None
    education: str | None
    place: int


Slot = Mapping[str, str]  # the columns of one job of a row, by what they hold


def slots_of(settings: ResumeSettings) -> list[Slot]:
    """Return the jobs that a row has columns for: one, or `num_slots`."""
    numbers = range(settings.num_slots or 0) if settings.rows == "person" else range(1)
    columns = settings.columns.per_job()
    return [{name: column.replace("{}", str(number)) for name, column in columns.items()} for number in numbers]


def with_ends(
    spells: Sequence[Spell], no_end: Literal["next_start", "ongoing", "leave_out"], last_day: date
) -> list[Spell]:
    """Return a person's jobs, those without an end given one, or left out, as `no_end` says.

    Args:
        spells: jobs that have a start, or an order.
        no_end: as in the settings of resumes.
        last_day: that an ongoing job is held.
    """
    ended: list[Spell] = []
    starts = sorted(spell.start for spell in spells if spell.start is not None)
    for spell in spells:
        if spell.end is not None or spell.start is None:
            ended.append(spell)
        elif no_end != "leave_out":
            later = (start for start in starts if start > spell.start) if no_end == "next_start" else iter(())
            following = next(later, None)
            ended.append(replace(spell, end=last_day if following is None else following - timedelta(days=1)))
    return ended


@dataclass(frozen=True, slots=True)
class SpellReader:
    """Reads the jobs of rows; what is wrong with one is noted, and the job is passed over."""

    settings: ResumeSettings
    slots: tuple[Slot, ...]

    def spells(self, place: int, cells: Cells, problems: Problems) -> Iterator[Spell]:
        """Yield the jobs of a row; a numbered slot without title, code and start holds none."""
        for slot in self.slots:
            known = {name: cells.get(column, "") for name, column in slot.items()}
            known = {name: cell for name, cell in known.items() if not self.settings.is_missing(cell)}
            if self.settings.rows == "person" and not known.keys() & {"title", "code", "start", "order"}:
                continue
            if (spell := self._spell(place, known, slot, problems)) is not None:
                yield spell

    def _spell(self, place: int, known: Mapping[str, str], slot: Slot, problems: Problems) -> Spell | None:
        last_day = date(self.settings.last_year, 12, 31)
        start: date | None = None
        end: date | None = None
        order: int | None = None
        name = "start"
        try:
            if "order" in known:
                name, order = "order", _whole_number(known["order"])
            if "start" in known:
                start = read_days(known["start"])[0]
            name = "end"
            if "end" in known:
                is_ongoing = self.settings.is_ongoing(known["end"])
                end = last_day if is_ongoing else min(read_days(known["end"])[1], last_day)
        except NotADate as error:
            problems.add(place, slot[name], str(error))
            return None
        education = known.get("education")
        if education is not None and not education.isprintable():
            problems.add(place, slot["education"], f"{education!r} holds a line break or control character")
            return None
        if start is not None and (wrong := self._wrong_order(start, end, known)):
            problems.add(place, slot["start"], wrong)
            return None
        return Spell(start, end, order, known.get("title"), known.get("code"), education, place)

    def _wrong_order(self, start: date, end: date | None, known: Mapping[str, str]) -> str:
        if start.year > self.settings.last_year:
            return f"{known['start']!r} is after the resumes were collected (last_year={self.settings.last_year})"
        if end is not None and end < start:
            return f"the job ends ({known['end']!r}) before it starts ({known['start']!r})"
        return ""


def _whole_number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise NotADate(f"{text!r} is not a whole number")
    return int(text)
