"""Records of benchmarks as JSON and Markdown, the same for all: what was measured, how often, where, under what load.

    benchmarks/results/2026-11-29-training-speed.json     command, commit, versions, hardware; every repeat; the spread
    benchmarks/results/2026-11-29-training-speed.md       the same as tables

    python benchmarks/records.py                          fills the tables of docs/benchmarks.md from the newest JSON

A record is on disk as soon as it is made: what a benchmark measured before it hung or was killed, stays. Repeats are
records of the same part and subject; their minimum, median and maximum are computed when a file is written.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import itertools
import json
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal

import rich.box
import torch
from rich.console import Console
from rich.text import Text

from laborllm_dist.io.console_tables import Column, FoldingTable
from laborllm_dist.io.files import write_text
from laborllm_dist.io.number_format import word_for
from laborllm_dist.planning.memory import GIB

PROJECT = Path(__file__).resolve().parent.parent
RESULTS = PROJECT / "benchmarks/results"
PAGE = PROJECT / "docs/benchmarks.md"
PACKAGES = (
    "torch", "deepspeed", "transformers", "tokenizers", "peft", "bitsandbytes", "accelerate", "trl", "lm_eval",
    "liger-kernel",
)  # fmt: skip
Outcome = Literal["passed", "failed", "missed", "measured", "skipped"]
WORST_FIRST: Sequence[Outcome] = ("failed", "missed", "skipped", "measured", "passed")
COLORS: dict[Outcome, str] = {
    "passed": "green", "failed": "bold red", "missed": "yellow", "measured": "default", "skipped": "yellow",
}  # fmt: skip
BEGIN, END = "<!-- {name}: made by python benchmarks/records.py -->", "<!-- end -->"
_BLOCK = re.compile(r"<!-- ([\w/ ,.-]+): made by python benchmarks/records.py -->\n.*?<!-- end -->", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Environment:
    """Where, when and how a benchmark was started."""

    started: str
    command: str
    commit: str
    hardware: str
    versions: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Record:
    """What a benchmark measured of a subject, once. `numbers` have their units in their names; `note` says why, or how.

    `load`: processes that ran or waited for a CPU, mean of the last minute, these included; set when a record is added.
    """

    part: str
    subject: str
    outcome: Outcome = "measured"
    numbers: Mapping[str, float] = field(default_factory=dict)
    note: str | None = None
    load: float | None = None


@dataclass(frozen=True, slots=True)
class Spread:
    """Smallest, middle and largest of repeats."""

    min: float
    median: float
    max: float
    repeats: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of repeats."""
        return cls(min(values), statistics.median(values), max(values), len(values))

    def __str__(self) -> str:
        if self.min == self.max:
            return short(self.median)
        return f"{short(self.median)} ({short(self.min)} to {short(self.max)})"


@dataclass(frozen=True, slots=True)
class Summary:
    """All records of a subject: the worst outcome and its last note, and the spread of each number and of the load."""

    part: str
    subject: str
    outcome: Outcome
    numbers: Mapping[str, Spread]
    note: str | None
    load: Spread | None


def summaries(records: Sequence[Record]) -> list[Summary]:
    """Return a summary for each part and subject, in the order of their first records."""
    repeats: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        repeats.setdefault((record.part, record.subject), []).append(record)
    result = []
    for (part, subject), group in repeats.items():
        names = dict.fromkeys(name for record in group for name in record.numbers)
        numbers = {
            name: Spread.of([record.numbers[name] for record in group if name in record.numbers]) for name in names
        }
        loads = [record.load for record in group if record.load is not None]
        load = Spread.of(loads) if loads else None
        worst = min((record.outcome for record in group), key=WORST_FIRST.index)
        note = [record.note for record in group if record.outcome == worst][-1]
        result.append(Summary(part, subject, worst, numbers, note, load))
    return result


@dataclass(frozen=True, slots=True)
class RecordFile:
    """The JSON file of one start of a benchmark. Several processes may add to it, one at a time."""

    path: Path

    @classmethod
    def begin(cls, name: str, title: str, folder: Path = RESULTS) -> RecordFile:
        """Make the file of a benchmark that starts now; that of an earlier start on the same day stays."""
        now = datetime.now().astimezone()
        stem = f"{now:%Y-%m-%d}-{name}"
        names = itertools.chain([stem], (f"{stem}.{number}" for number in itertools.count(2)))
        file = cls(next(path for name in names if not (path := folder / f"{name}.json").exists()))
        folder.mkdir(parents=True, exist_ok=True)
        command = shlex.join(["python", *sys.argv]).replace(f"{PROJECT}/", "")
        started = f"{now:%Y-%m-%d %H:%M %z}"
        file._write(title, Environment(started, command, commit(), hardware(), versions()), [])
        return file

    def add(self, record: Record) -> None:
        """Add a record and print it."""
        record = dataclasses.replace(record, load=round(os.getloadavg()[0], 2))
        print(f"{record.part}, {record.subject}: {record.outcome}  {_line(record)}", flush=True)
        title, environment, records = self.read()
        self._write(title, environment, [*records, record])

    def read(self) -> tuple[str, Environment, list[Record]]:
        """Return title, environment and records."""
        content = json.loads(self.path.read_text(encoding="utf-8"))
        records = [Record(**each) for each in content["records"]]
        return content["title"], Environment(**content["environment"]), records

    def end(self) -> None:
        """Print a table of everything."""
        title, environment, records = self.read()
        print_table(title, environment, summaries(records))
        print(f"records: {self.path}, {self.path.with_suffix('.md').name}")

    def markdown(self) -> str:
        """Return the whole file as Markdown."""
        title, environment, records = self.read()
        facts = "\n".join(f"- {name}: {text}" for name, text in _facts(environment))
        parts = [f"## {part[:1].upper()}{part[1:]}\n\n{markdown_table(records, part)}\n" for part in parts_of(records)]
        return f"# {title}\n\n{facts}\n\n{LEGEND}\n\n" + "\n".join(parts)

    def _write(self, title: str, environment: Environment, records: Sequence[Record]) -> None:
        content = {
            "title": title,
            "environment": dataclasses.asdict(environment),
            "summaries": [dataclasses.asdict(each) for each in summaries(records)],
            "records": [dataclasses.asdict(record) for record in records],
        }
        write_text(self.path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        write_text(self.path.with_suffix(".md"), self.markdown())


LEGEND = "Repeats: median (minimum to maximum). Load: processes that ran or waited for a CPU, these included."


def parts_of(records: Sequence[Record]) -> list[str]:
    """Return the parts in order."""
    return list(dict.fromkeys(record.part for record in records))


def markdown_table(records: Sequence[Record], part: str) -> str:
    """Return the table of a part: a row for each subject, a column for each number that any of them has."""
    rows = summaries([record for record in records if record.part == part])
    names = list(dict.fromkeys(name for row in rows for name in row.numbers))
    has_outcome = any(row.outcome != "measured" for row in rows)
    has_note, has_load = (any(getattr(row, name) is not None for row in rows) for name in ("note", "load"))
    heading = [
        part, *(name.replace("_", " ") for name in names), *["outcome"] * has_outcome, *["load"] * has_load,
        *["note"] * has_note,
    ]  # fmt: skip
    lines = [_cells(heading), "|---" * len(heading) + "|"]
    for row in rows:
        cells = [row.subject, *(str(row.numbers.get(name, "")) for name in names)]
        cells += [row.outcome] * has_outcome + [str(row.load or "")] * has_load + [row.note or ""] * has_note
        lines.append(_cells(cells))
    return "\n".join(lines)


def _cells(texts: Sequence[str]) -> str:
    return f"| {' | '.join(text.replace('|', '/') for text in texts)} |"


def newest(name: str, folder: Path = RESULTS) -> RecordFile | None:
    """Return the file of the last start of a benchmark; None if it never started."""
    of_name = re.compile(rf"(\d{{4}}-\d\d-\d\d)-{re.escape(name)}(?:\.(\d+))?\.json")
    started = {
        (matched[1], int(matched[2] or 1)): path
        for path in folder.glob("*.json")
        if (matched := of_name.fullmatch(path.name))
    }
    return RecordFile(started[max(started)]) if started else None


def filled(page: str, folder: Path = RESULTS) -> str:
    """Return a page whose blocks "NAME/PART" are replaced by the table of that part in the benchmark's newest file."""

    def block(matched: re.Match[str]) -> str:
        name, part = matched[1].split("/", 1)
        begin, file = BEGIN.format(name=matched[1]), newest(name, folder)
        records = [] if file is None else file.read()[2]
        if file is None or part not in parts_of(records):  # or it was skipped, or the benchmark ended before
            return f"{begin}\n\n{part[:1].upper()}{part[1:]}: not measured.\n\n{END}"
        environment = file.read()[1]
        source = (
            f"`{environment.command}`: {environment.started}, commit {environment.commit}, {environment.hardware} "
            f"(`benchmarks/results/{file.path.name}`)."
        )
        return f"{begin}\n\n{markdown_table(records, part)}\n\n{source}\n\n{END}"

    return _BLOCK.sub(block, page)


def print_table(title: str, environment: Environment, rows: Sequence[Summary]) -> None:
    """Print where a benchmark ran and what it measured."""
    console = Console()
    for name, text in _facts(environment):
        console.print(f"{name:<9} {text}", highlight=False, markup=False, soft_wrap=True)
    columns = [Column(heading, "name") for heading in ("part", "subject", "outcome", "measured")]
    table = FoldingTable(columns, title=title, box=rich.box.SIMPLE_HEAD)
    for row in rows:
        table.add_section()
        table.add_row(row.part, row.subject, Text(row.outcome, style=COLORS[row.outcome]), Text(_lines(row)))
    console.print(table)


def _facts(environment: Environment) -> list[tuple[str, str]]:
    versions = ", ".join(f"{name} {version}" for name, version in environment.versions.items())
    facts = {**{name: getattr(environment, name) for name in Environment.__slots__}, "versions": versions}
    return list(facts.items())


def _lines(row: Summary) -> str:
    numbers = [f"{name.replace('_', ' ')} {spread}" for name, spread in row.numbers.items()]
    return "\n".join([*numbers, *filter(None, [row.note])])


def _line(record: Record) -> str:
    numbers = [f"{name.replace('_', ' ')} {short(value)}" for name, value in record.numbers.items()]
    return ", ".join([*numbers, *filter(None, [record.note])])


def short(value: float) -> str:
    """Return a number with three or four digits: 41,234; 12; 0.4322; 1e-05."""
    if (word := word_for(value)) is not None:
        return word
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 1000 else f"{value:.4g}"


def hardware() -> str:
    """Return the GPU, or that there is none, and the host."""
    card = "no GPU"
    if torch.cuda.is_available():
        card = f"{torch.cuda.get_device_name()} ({torch.cuda.mem_get_info()[1] / GIB:.1f} GiB)"
    cpu = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    return f"{card}; {num_cpus()} CPUs ({cpu[1] if cpu else platform.machine()}), {host_memory() / GIB:.0f} GiB free"


def versions() -> dict[str, str]:
    """Return the versions of Python, CUDA and the packages that decide; what is not installed says so."""
    version_of = {"Python": platform.python_version(), "CUDA": torch.version.cuda or "none"}
    for name in PACKAGES:
        version_of[name] = "not installed"
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            version_of[name] = importlib.metadata.version(name)
    return version_of


def commit() -> str:
    """Return the project's commit, and whether files differ from it."""
    command = ["git", "-C", str(PROJECT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "not known: no git, or no repository"


def num_cpus() -> int:
    """Return how many CPUs this process may use, which a container may have fewer of than its machine."""
    allowed = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        allowed = min(allowed, max(1, int(quota) // int(period)))
    return allowed


def host_memory() -> float:
    """Return the bytes of the host's memory that are free, within the limit of a container."""
    available = re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())
    assert available is not None  # Linux
    free = float(available[1]) * 1024
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            free = min(free, float(Path(limit).read_text()))
    return free


def goal(file: RecordFile, name: str, ratios: Sequence[float], *, least: float) -> None:
    """Record the ratios of one run and whether their median meets a goal."""
    outcome: Outcome = "passed" if statistics.median(ratios) >= least else "missed"
    for ratio in ratios:
        file.add(Record("goals", name, outcome, {"ratio": ratio, "goal": least}))


def main() -> None:
    """Fill the tables of docs/benchmarks.md."""
    write_text(PAGE, filled(PAGE.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
