"""What the suite has found: a line of JSON for each finding, and a table of them at the end.

A file is of one day. Every start appends a line about the machine and then its findings, each as soon as it is there:
what a part has measured before it hangs, or is ended, stays.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import rich.box
from rich.console import Console
from rich.text import Text

from laborllm_dist.io.console_tables import Column, FoldingTable
from laborllm_dist.io.number_format import word_for

Outcome = Literal["passed", "failed", "measured", "skipped"]
COLORS: dict[Outcome, str] = {"passed": "green", "failed": "bold red", "measured": "default", "skipped": "yellow"}


@dataclass(frozen=True, slots=True)
class Start:
    """Where and how the suite was started."""

    started: str
    command: str
    commit: str
    hardware: str
    versions: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Record:
    """What a part has found about its subject. `numbers` have their units in their names; `note` says why, or how."""

    part: str
    subject: str
    outcome: Outcome
    numbers: Mapping[str, float] = field(default_factory=dict)
    note: str | None = None


@dataclass(frozen=True, slots=True)
class RecordFile:
    """The file of a day, which several processes append to, one at a time."""

    path: Path

    def begin(self, start: Start) -> None:
        """Append the first line of a start."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._append(dataclasses.asdict(start))

    def add(self, record: Record) -> None:
        """Append a finding, and print it."""
        print(f"{record.part}, {record.subject}: {record.outcome}  {_numbers_and_note(record, ', ')}", flush=True)
        self._append(dataclasses.asdict(record))

    def last(self) -> tuple[Start, list[Record]]:
        """Return the last start and its findings."""
        lines = [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]
        first = max(place for place, line in enumerate(lines) if "started" in line)
        return Start(**lines[first]), [Record(**line) for line in lines[first + 1 :]]

    def _append(self, line: Mapping[str, object]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def print_table(start: Start, records: Sequence[Record]) -> None:
    """Print where the suite ran and all it has found."""
    console = Console()
    versions = ", ".join(f"{name} {version}" for name, version in start.versions.items())
    for name, text in (
        ("hardware", start.hardware), ("versions", versions), ("commit", start.commit), ("command", start.command),
        ("started", start.started),
    ):  # fmt: skip
        console.print(f"{name:<9} {text}", highlight=False, markup=False, soft_wrap=True)
    columns = [Column(heading, "name") for heading in ("part", "subject", "outcome", "found")]
    table = FoldingTable(columns, title="Findings", box=rich.box.SIMPLE_HEAD)
    for record in records:
        table.add_section()
        outcome = Text(record.outcome, style=COLORS[record.outcome])
        table.add_row(record.part, record.subject, outcome, Text(_numbers_and_note(record, "\n")))
    console.print(table)


def _numbers_and_note(record: Record, between: str) -> str:
    numbers = [f"{name.replace('_', ' ')} {_written(value)}" for name, value in record.numbers.items()]
    return between.join([*numbers, *filter(None, [record.note])])


def _written(value: float) -> str:
    if (word := word_for(value)) is not None:
        return word
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 1000 else f"{value:.4g}"
