"""Infer the order of day and month in the dates of resume files: 22-08-2015 in a file shows the order of 03-06-2017.

A file's own unambiguous dates decide; if it has none, those of all files do. If unambiguous dates contradict each
other, the order is unknown, and an ambiguous date is an error. The files are scanned once, when the first ambiguous
date is read.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from laborllm_dist.careers.readers.resumes.dates import (
    AmbiguousDateError,
    DateOrder,
    Days,
    is_settled_by_itself,
    read_days,
    split_range,
)
from laborllm_dist.careers.readers.resumes.files import ColumnSelection, read_cells
from laborllm_dist.careers.readers.tabular import unit_of
from laborllm_dist.careers.validation_report import Problems
from laborllm_dist.config.corpora import ResumeSettings

SETTLED = "date whose day and month could be exchanged, read with the {} first, as other dates settle it"


@dataclass(frozen=True)
class DateReader:
    """Reads dates in the order of the settings or, without one, of the files."""

    settings: ResumeSettings
    files: Sequence[Path]
    columns: Sequence[str]  # that hold dates

    def days(self, text: str, path: Path) -> tuple[Days, str | None]:
        """Return the days of a date and, if its order was inferred, a note for the data card.

        Raises:
            NotADateError: if it is not a date, or its order is unknown.
        """
        try:
            return read_days(text, self.settings.date_order), None
        except AmbiguousDateError as error:
            order = self._order_of(path)
            if order is None:
                why = (
                    "nothing in the files settles which" if not self._orders else "the files have dates of both orders"
                )
                raise AmbiguousDateError(f"{error}; {why}") from None
            return read_days(text, order), SETTLED.format(order.removesuffix("_first"))

    def _order_of(self, path: Path) -> DateOrder | None:
        own = self._orders_of_files.get(path, frozenset()) or self._orders
        return next(iter(own)) if len(own) == 1 else None

    @functools.cached_property
    def _orders(self) -> frozenset[DateOrder]:
        return frozenset().union(*self._orders_of_files.values())

    @functools.cached_property
    def _orders_of_files(self) -> Mapping[Path, frozenset[DateOrder]]:
        return {path: frozenset(self._clear_orders(path)) for path in self.files}

    def _clear_orders(self, path: Path) -> Iterator[DateOrder]:
        """Yield the order of every unambiguous date of a file."""
        # Problems of rows are ignored here; the reader of the rows reports them.
        problems = Problems(path, unit_of(path))
        for _, cells in read_cells(path, problems, ColumnSelection({}, self.columns, dates=self.columns)):
            for cell in cells.values():
                for text in split_range(cell, self.settings.is_ongoing) or (cell,):
                    if (order := is_settled_by_itself(text)) is not None:
                        yield order


def date_columns(settings: ResumeSettings) -> list[str]:
    """Return the names of the date columns."""
    columns = settings.columns
    named = [column for column in (columns.start, columns.end, columns.birth_year) if column is not None]
    numbers = range(settings.num_slots or 1)
    return list(dict.fromkeys(column.replace("{}", str(number)) for number in numbers for column in named))
