"""The state of the runs of a sweep, from the folder of the sweep, the processes of this machine and Slurm's queue.

    sweeps/NAME/
        points.csv          a row for every run that is trained and scored (sweeps/points.py)
        runs/RUN.json       the last thing the sweep did with a run: its process or job, and how it ended
        logs/RUN.log        output of its commands
        lock, process.json  of the process that executes the sweep

A run is done if a run folder with the fingerprint of its settings holds its weights and scores, whoever trained it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from laborllm_dist.config.reader import Strict, read_settings, settings_to_values
from laborllm_dist.config.sweep import SweepSettings
from laborllm_dist.distributed.launcher import process_of
from laborllm_dist.errors import ScoreTableError, SettingsError, SweepError
from laborllm_dist.io.console_tables import Column, FoldingTable
from laborllm_dist.io.files import file_lock, fingerprint_of, write_json
from laborllm_dist.io.json_files import NotJsonError, read_json_object
from laborllm_dist.io.run_directory import METRICS, RunDirectory, recorded_runs, run_fingerprint
from laborllm_dist.store.build import StoreLocation
from laborllm_dist.store.store import TokenStore, open_store
from laborllm_dist.sweeps.points import SweepPoint, write_points
from laborllm_dist.sweeps.runs import SweepRun, plan_run, point_of, run_cells
from laborllm_dist.tables.scores import read_score_table
from laborllm_dist.tracking.run_log import numbers_of, read_log

POINTS = "points.csv"
STOP_SECONDS = 600.0  # for a run that is asked to stop: it finishes its step and saves
BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Sweep:
    """A sweep: its runs in order, the token store of each mix whose data files are present, and the folder launch/."""

    settings: SweepSettings
    runs: tuple[SweepRun, ...]
    locations: Mapping[str, StoreLocation]
    scripts: Path

    @property
    def folder(self) -> Path:
        """Folder of the sweep."""
        return Path(self.settings.sweeps_dir) / self.settings.name

    def record_of(self, name: str) -> Path:
        """File with the record of a run."""
        return self.folder / "runs" / f"{name}.json"

    def log_of(self, name: str) -> Path:
        """File with the output of the commands of a run."""
        return self.folder / "logs" / f"{name}.log"

    def store_of(self, run: SweepRun) -> TokenStore | None:
        """Return the token store of a run; None if it is not prepared yet."""
        location = self.locations.get(run.mix)
        return open_store(location.folder) if location is not None and location.is_built else None


@dataclass(frozen=True, slots=True)
class ProcessRecord(Strict):
    """A process, told apart from later processes with the same number."""

    number: int
    born: str  # start time, in ticks since boot
    boot: str
    host: str

    @classmethod
    def of(cls, number: int) -> ProcessRecord | None:
        """Return the record of a process of this machine; None if it has ended."""
        process = process_of(number)
        if process is None:
            return None
        return cls(number, process.born, BOOT.read_text(encoding="ascii").strip(), socket.gethostname())

    @property
    def is_here(self) -> bool:
        """Whether it is or was a process of this machine."""
        return self.host == socket.gethostname()

    def is_running(self) -> bool:
        """Return whether this very process is running on this machine."""
        return self.is_here and ProcessRecord.of(self.number) == self


@dataclass(frozen=True, slots=True)
class RunRecord(Strict):
    """The last thing that a sweep did with a run."""

    state: Literal["queued", "running", "stopped", "failed"]
    step: str = ""  # prepare, baselines, train or evaluate
    log: str = ""
    process: ProcessRecord | None = None  # leader of its process group
    job: str | None = None  # Slurm job
    last_line: str = ""


def read_record(path: Path) -> RunRecord | None:
    """Return a record; None if it is missing or unreadable."""
    with contextlib.suppress(OSError, NotJsonError, SettingsError):
        return read_settings(RunRecord, read_json_object(path))
    return None


def write_record(path: Path, record: RunRecord) -> None:
    """Write a record, atomically."""
    write_json(path, settings_to_values(record))


def finished_folders(sweep: Sweep) -> dict[str, Path]:
    """Return the folders of the runs that are trained and scored, by the runs' names.

    A folder counts, whatever its name and whoever trained it, if its fingerprint is that of the run's settings, data
    and initial weights, and it was scored with the same evaluation settings.
    """
    folders: dict[str, Path] = {}
    for output_dir in dict.fromkeys(run.settings.output_dir for run in sweep.runs):
        known = list(recorded_runs(Path(output_dir)))
        weights = {each.weights for each in known}
        for run in sweep.runs:
            location = sweep.locations.get(run.mix)
            if run.settings.output_dir != output_dir or location is None:
                continue
            store = fingerprint_of(location.identity)
            own = {weight: run_fingerprint(run.settings, store, weight) for weight in weights}
            for each in known:
                scores = RunDirectory(each.path, each.fingerprint).scores(run.settings.evaluation.split)
                is_same = own[each.weights] == each.fingerprint and each.evaluation == run.settings.evaluation
                if is_same and scores.is_file() and (run.name not in folders or each.path == run.folder):
                    folders[run.name] = each.path
    return folders


def record_points(sweep: Sweep) -> dict[str, Path]:
    """Write a row of points.csv for every run that is done; return the folders of these runs by name."""
    with file_lock(sweep.folder / "points.lock", busy=None):
        folders = finished_folders(sweep)
        points = list(_points(sweep, folders))
        if points:
            write_points(points, sweep.folder / POINTS)
    return folders


def _points(sweep: Sweep, folders: Mapping[str, Path]) -> Iterator[SweepPoint]:
    for run in sweep.runs:
        store = sweep.store_of(run)
        if run.name in folders and store is not None:
            yield point_of(run, store, folders[run.name])


def queued_jobs() -> dict[str, str]:
    """Return the Slurm state of each of this user's jobs in the queue, by job number; empty without Slurm.

    Raises:
        SweepError: if squeue fails or does not answer.
    """
    command = ["squeue", "--noheader", "--array", "--me", "--format=%i %T"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except FileNotFoundError:
        return {}
    except subprocess.TimeoutExpired:
        raise SweepError("squeue did not answer within 60 seconds; try again", code="queue-unknown") from None
    if done.returncode:
        reason = done.stderr.strip() or f"code {done.returncode}"
        raise SweepError(f"squeue failed ({reason}); try again", code="queue-unknown")
    return dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if " " in line.strip())


def members_of(group: int) -> list[int]:
    """Return the running processes of a process group (Linux)."""
    members = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (folder / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            if int(fields[2]) == group and fields[0] not in "ZX":
                members.append(int(folder.name))
    return members


def end_groups(groups: Iterable[int], *, seconds: float = STOP_SECONDS) -> None:
    """Ask process groups to stop, all at once, and wait until all of them have; after `seconds`, kill them."""
    deadline, left = time.monotonic() + seconds, list(groups)
    _send(left, signal.SIGTERM)
    while left := [group for group in left if members_of(group)]:
        if time.monotonic() > deadline:
            _send(left, signal.SIGKILL)
        time.sleep(0.1)


def _send(groups: Iterable[int], number: signal.Signals) -> None:
    for group in groups:
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.killpg(group, number)


def status_table(sweep: Sweep) -> FoldingTable:
    """Return a table of the runs: state, step, training and validation loss, and the loss on the test people."""
    columns = (
        Column("model", "name"),
        Column("sources", "name"),
        Column("share", "number"),
        Column("seed", "number"),
        Column("state", "name"),
        Column("step", "number"),
        Column("train", "number"),
        Column("validation", "number"),
        Column("test", "number"),
    )
    folders = record_points(sweep)
    records = {run.name: read_record(sweep.record_of(run.name)) for run in sweep.runs}
    has_jobs = any(record is not None and record.job is not None for record in records.values())
    jobs = queued_jobs() if has_jobs else {}
    table = FoldingTable(columns, title=f"Sweep {sweep.settings.name}", box=None)
    failures = []
    for run in sweep.runs:
        record = records[run.name]
        state = state_of(run, record, folders, jobs)
        metrics = last_metrics(folders.get(run.name, run.folder))
        table.add_row(
            *run_cells(run), state, _step(sweep, run, metrics),
            *(_number(metrics.get(name)) for name in ("loss_nats_per_token", "validation_nats_per_title")),
            _score(run, folders.get(run.name)),
        )  # fmt: skip
        if record is not None and state == "failed":
            failures.append(f"{run.name}: {record.last_line} ({record.log})")
    done = f"{len(folders)} of {len(sweep.runs)} runs are done; losses in nats: train per token, the others per title"
    table.caption = "\n".join([done, *failures])
    return table


def state_of(run: SweepRun, record: RunRecord | None, folders: Mapping[str, Path], jobs: Mapping[str, str]) -> str:
    """Return the state of a run in words.

    Args:
        run: the run.
        record: the last thing that the sweep did with it.
        folders: folders of the runs that are done, by name.
        jobs: Slurm state of the jobs in the queue, by number.
    """
    if run.name in folders:
        return "done"
    if record is not None and record.job is not None and record.job in jobs:
        return record.step if record.state == "running" and jobs[record.job] == "RUNNING" else "queued"
    if record is not None and record.state == "running" and record.process is not None and record.job is None:
        if record.process.is_running():
            return record.step
        if not record.process.is_here:
            return f"{record.step} on {record.process.host}"
    if record is not None and record.state == "failed":
        return "failed"
    return "interrupted" if (run.folder / METRICS).exists() or record is not None else "waiting"


def last_metrics(folder: Path) -> dict[str, float]:
    """Return the latest value of each metric in a run's metrics.jsonl; empty if there is no such file."""
    numbers: dict[str, float] = {}
    path = RunDirectory(folder, "").metrics
    if path.is_file():
        for _, facts in read_log(path):
            numbers |= numbers_of(facts)
    return numbers


def _step(sweep: Sweep, run: SweepRun, metrics: Mapping[str, float]) -> str:
    store = sweep.store_of(run)
    num_steps = "" if store is None else f"/{plan_run(run, store).plan.num_steps:,}"
    return f"{metrics.get('step', 0):,}{num_steps}"


def _number(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else ""


def _score(run: SweepRun, folder: Path | None) -> str:
    if folder is None:
        return ""
    try:
        table, _ = read_score_table(RunDirectory(folder, "").scores(run.settings.evaluation.split))
    except ScoreTableError:
        return "damaged"
    return _number(-float(np.mean(table["title"].to_numpy())))
