"""Collect the problems of a data file, to report them all in one error before anything is written."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from laborllm_dist.errors import DataFileError

NUM_SHOWN = 10
_LONGEST = 1_000  # characters of a problem in the message
MOST_PROBLEMS = 100_000  # of a file; reading stops at this number


@dataclass(slots=True)
class Problems:
    """Problems of one file.

    `unit` is the unit of places in the file: line (of a CSV) or row (of a Parquet file); `named` is the kind of the
    named parts of a row.
    """

    path: Path
    unit: str
    num_found: int = 0
    shown: list[str] = field(default_factory=list)
    named: str = "column"

    def add(self, place: int, column: str | None, what: str) -> None:
        """Add a problem at a line or row, counted from 1.

        Raises:
            DataFileError: if the file has MOST_PROBLEMS problems.
        """
        self.num_found += 1
        if self.num_found >= MOST_PROBLEMS:
            self.reject_if_any("the rest of the file was not read")
        if len(self.shown) < NUM_SHOWN:
            where = f"{self.unit} {place}" + (f", {self.named} {_shortened(column)}" if column else "")
            self.shown.append(f"  {where}: {_shortened(what)}")

    def reject_if_any(self, advice: str = "") -> None:
        """Raise an error if any problem was added.

        Args:
            advice: last line of the message: what to do about all of the problems.

        Raises:
            DataFileError: with the path, the number of problems and the first ten.
        """
        if not self.num_found:
            return
        first = "" if self.num_found <= NUM_SHOWN else f", the first {NUM_SHOWN} of them"
        count = "1 problem" if self.num_found == 1 else f"{self.num_found:,} problems"
        last = [f"  {advice}"] if advice else []
        raise DataFileError("\n".join([f"{self.path}: {count}{first}:", *self.shown, *last]), code="invalid-content")


def _shortened(text: str) -> str:
    """Return a text, without its middle if it is very long: its end says what to do."""
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 300]} ... {text[-300:]}"
