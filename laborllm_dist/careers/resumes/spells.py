"""Read the jobs of a row: one job, or numbered columns of many.

A job lasts from the first day of its start to the last day of its end. A job that has not ended, or ends after the
year in which the resumes were collected (`last_year`), lasts to the end of that year. Where the file has no dates,
jobs have a number in which they follow each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date

from laborllm_dist.careers.problems import Problems
from laborllm_dist.careers.resumes.dates import NotADate, read_days
from laborllm_dist.careers.resumes.rows import Cells
from laborllm_dist.corpus_settings import ResumeColumnSettings, ResumeSettings

PER_JOB = ("title", "code", "start", "end", "order", "education")


@dataclass(frozen=True, slots=True)
class Spell:
    """A job with its first and last day, or the number in which it follows others; `place` is its line or row.

    `start` and `order` are None where the file has none.
    """

    start: date | None
    end: date
    order: int | None
    title: str | None
    code: str | None
    education: str | None
    place: int


@dataclass(frozen=True, slots=True)
class Slot:
    """The columns of one job of a row, by what they hold."""

    columns: Mapping[str, str]


def slots_of(settings: ResumeSettings) -> list[Slot]:
    """Return the jobs that a row has columns for: one, or `num_slots`."""
    numbers = range(settings.num_slots or 0) if settings.rows == "person" else range(1)
    return [_slot(settings.columns, number) for number in numbers]


def slot_after_last(settings: ResumeSettings) -> Slot | None:
    """Return the columns of one job more than the settings say, which a file must not have; None for one job a row."""
    return _slot(settings.columns, settings.num_slots or 0) if settings.rows == "person" else None


def _slot(columns: ResumeColumnSettings, number: int) -> Slot:
    named: dict[str, str | None] = {name: getattr(columns, name) for name in PER_JOB}
    return Slot({name: column.replace("{}", str(number)) for name, column in named.items() if column is not None})


@dataclass(frozen=True, slots=True)
class SpellReader:
    """Reads the jobs of rows; what is wrong with one is noted, and the job is passed over."""

    settings: ResumeSettings
    slots: tuple[Slot, ...]

    def spells(self, place: int, cells: Cells, problems: Problems) -> Iterator[Spell]:
        """Yield the jobs of a row; a numbered slot without title, code and start holds none."""
        for slot in self.slots:
            known = {name: cells.get(column, "") for name, column in slot.columns.items()}
            known = {name: cell for name, cell in known.items() if cell not in self.settings.missing and cell}
            if self.settings.rows == "person" and not known.keys() & {"title", "code", "start", "order"}:
                continue
            if (spell := self._spell(place, known, slot, problems)) is not None:
                yield spell

    def _spell(self, place: int, known: Mapping[str, str], slot: Slot, problems: Problems) -> Spell | None:
        last_day = date(self.settings.last_year, 12, 31)
        start, end, order = None, last_day, None
        name = "start"
        try:
            if "order" in known:
                name, order = "order", _whole_number(known["order"])
            if "start" in known:
                start = read_days(known["start"])[0]
            name = "end"
            if "end" in known and known["end"] not in self.settings.ongoing:
                end = read_days(known["end"])[1]
        except NotADate as error:
            problems.add(place, slot.columns[name], str(error))
            return None
        education = known.get("education")
        if education is not None and not education.isprintable():
            problems.add(place, slot.columns["education"], f"{education!r} holds a line break or control character")
            return None
        if start is not None and (wrong := self._wrong_order(start, end, known)):
            problems.add(place, slot.columns["start"], wrong)
            return None
        return Spell(start, min(end, last_day), order, known.get("title"), known.get("code"), education, place)

    def _wrong_order(self, start: date, end: date, known: Mapping[str, str]) -> str:
        if start.year > self.settings.last_year:
            return f"{known['start']!r} is after the resumes were collected (last_year={self.settings.last_year})"
        if end < start:
            return f"the job ends ({known['end']!r}) before it starts ({known['start']!r})"
        return ""


def _whole_number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise NotADate(f"{text!r} is not a whole number")
    return int(text)
