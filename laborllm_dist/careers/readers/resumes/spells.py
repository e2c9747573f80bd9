"""Read the jobs of a row: one job, or numbered columns of many.

A job lasts from the first day of its start to the last day of its end. An ongoing job, or one that ends after the year
in which the resumes were collected (`last_year`), lasts to the end of that year; a setting determines the end of a job
without one. If the file has no dates, jobs have a number that gives their order. A start cell may have the end, too
("Nov 2018 - Present"), if the job has no end cell.

An invalid date is a problem of the file or, with bad_dates=leave_out, makes the job a spell with a fault, which is
counted among the exclusions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Literal

from laborllm_dist.careers.readers.cells import whole_number
from laborllm_dist.careers.readers.resumes.date_order import DateReader, date_columns
from laborllm_dist.careers.readers.resumes.dates import Days, NotADateError, split_range
from laborllm_dist.careers.readers.resumes.files import Cells
from laborllm_dist.careers.validation_report import Problems
from laborllm_dist.config.corpora import ResumeSettings


@dataclass(frozen=True, slots=True)
class Spell:
    """A job with its first and last day, or its number in order; `place` is its line or row.

    Fields that the file lacks are None. `fault` is the reason why a job is excluded, `changes` has the notes for the
    data card on cells that were changed when read.
    """

    start: date | None
    end: date | None
    order: int | None
    title: str | None
    code: str | None
    education: str | None
    place: int
    fault: str | None = None
    changes: tuple[str, ...] = field(default=(), compare=False)


Slot = Mapping[str, str]  # the columns of one job of a row, by content


def slots_of(settings: ResumeSettings) -> list[Slot]:
    """Return the job slots of a row: one, or `num_slots`."""
    numbers = range(settings.num_slots or 0) if settings.rows == "person" else range(1)
    columns = settings.columns.per_job()
    return [{name: column.replace("{}", str(number)) for name, column in columns.items()} for number in numbers]


def with_ends(
    spells: Sequence[Spell], no_end: Literal["next_start", "ongoing", "leave_out"], last_day: date
) -> list[Spell]:
    """Return a person's jobs; `no_end` determines the end of a job without one, or excludes the job.

    Args:
        spells: jobs with a start or an order.
        no_end: setting of the resumes.
        last_day: last day of an ongoing job.
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


class _FaultError(ValueError):
    """The dates of a job are impossible; `column` is that of the date, `reason` is for the data card."""

    def __init__(self, column: str, what: str, reason: str) -> None:
        super().__init__(what)
        self.column, self.reason = column, reason


@dataclass(frozen=True, slots=True)
class SpellReader:
    """Reads the jobs of rows; a job with an error is added to the problems, or gets a fault.

    `dates` reads dates in the order of the files; None: in the order of the settings.
    """

    settings: ResumeSettings
    slots: tuple[Slot, ...]
    dates: DateReader | None = None

    def days(self, text: str, path: Path) -> tuple[Days, str | None]:
        """Return the days of a date and notes for the data card; raises NotADateError."""
        reader = self.dates or DateReader(self.settings, (), date_columns(self.settings))
        return reader.days(text, path)

    def spells(self, place: int, cells: Cells, problems: Problems) -> Iterator[Spell]:
        """Yield the jobs of a row; a numbered slot without title, code and start has none."""
        for slot in self.slots:
            known = {name: cells.get(column, "") for name, column in slot.items()}
            known = {name: cell for name, cell in known.items() if not self.settings.is_missing(cell)}
            if self.settings.rows == "person" and not known.keys() & {"title", "code", "start", "order"}:
                continue
            if (spell := self._spell(place, known, slot, problems)) is not None:
                yield spell

    def _spell(self, place: int, known: Mapping[str, str], slot: Slot, problems: Problems) -> Spell | None:
        education, title, order = known.get("education"), known.get("title"), known.get("order")
        for name, cell in (("education", education), ("title", title)):
            # A title is only looked up, so a line break in it does no harm; a lone surrogate is an error.
            is_odd = cell is not None and not cell.isprintable() and (name == "education" or _has_half_character(cell))
            if is_odd:
                problems.add(place, slot[name], f"{cell!r} holds a line break or control character")
                return None
        start = end = fault = None
        changes: list[str] = []
        try:
            if order is not None and ((whole_number(order) is None) or (whole_number(order) or 0) < 0):
                raise _FaultError(
                    "order", f"{order!r} is not a whole number from 0 up", "job with an order that is not a number"
                )
            if "start" in known:
                start, end = self._dates(known, problems.path, changes)
        except _FaultError as error:
            if self.settings.bad_dates == "error" or error.column == "order":
                problems.add(place, slot[error.column], str(error))
                return None
            fault, changes = error.reason, []
        number = None if order is None else whole_number(order)
        return Spell(start, end, number, title, known.get("code"), education, place, fault, tuple(changes))

    def _dates(self, known: Mapping[str, str], path: Path, changes: list[str]) -> tuple[date, date | None]:
        """Return the first and the last day of a job; add notes for the data card to `changes`.

        Raises:
            _FaultError: if a date is invalid, or the two dates are impossible.
        """
        last_day = date(self.settings.last_year, 12, 31)
        begin, finish = known["start"], known.get("end")
        if (start_and_end := split_range(begin, self.settings.is_ongoing)) is not None and finish in (None, begin):
            begin, finish = start_and_end
        start = self._day("start", begin, path, changes)[0]
        end = None
        if finish is not None:
            is_ongoing = self.settings.is_ongoing(finish)
            end = last_day if is_ongoing else min(self._day("end", finish, path, changes)[1], last_day)
        if start.year > self.settings.last_year:
            what = f"{begin!r} is after the resumes were collected (last_year={self.settings.last_year})"
            raise _FaultError("start", what, "job that starts after the resumes were collected")
        if end is not None and end < start:
            what = f"the job ends ({finish!r}) before it starts ({begin!r})"
            raise _FaultError("start", what, "job that ends before it starts")
        return start, end

    def _day(self, column: str, text: str, path: Path, changes: list[str]) -> Days:
        try:
            days, change = self.days(text, path)
        except NotADateError as error:
            is_range = split_range(text, self.settings.is_ongoing) is not None
            more = "; it is a start and an end, but the job has another end (columns.end=null: there is none)"
            raise _FaultError(
                column, f"{error}{more if is_range else ''}", "job with a date that cannot be read"
            ) from None
        changes += [change] if change is not None else []
        return days


def _has_half_character(text: str) -> bool:
    """Return whether a text has a lone surrogate, which JSON can express and UTF-8 cannot."""
    return any("\ud800" <= sign <= "\udfff" for sign in text)
