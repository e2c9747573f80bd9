"""Execute the runs of a sweep: prepare and score baselines once for each mix, then train and evaluate the runs.

Up to max_parallel runs are at work at the same time, each followed by a thread and with GPUs of its own.

Every command is started as a user would start it, in a process group of its own, with a log. What was asked to stop
saves and resumes by the same command; a run that fails stops no other.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from laborllm_dist.config.reader import read_settings, settings_to_values
from laborllm_dist.distributed.gpu_shares import GpuShare, share_gpus
from laborllm_dist.errors import AlreadyRunningError, InterruptedRunError, SettingsError, SweepError, missing_package
from laborllm_dist.io.console import say_at_once
from laborllm_dist.io.files import file_lock, write_json
from laborllm_dist.io.json_files import NotJsonError, read_json_object
from laborllm_dist.io.run_directory import RECORD, RunDirectory
from laborllm_dist.sweeps.runs import SweepRun, first_of_mixes, unknown_mixes
from laborllm_dist.sweeps.state import (
    POINTS,
    STOP_SECONDS,
    ProcessRecord,
    RunRecord,
    Sweep,
    end_groups,
    members_of,
    read_record,
    record_points,
    write_record,
)

logger = logging.getLogger(__name__)

PROCESS = "process.json"
SECONDS_BETWEEN_LOOKS = 0.1
NO_GPUS = GpuShare()
STOPPED = (75, 128 + signal.SIGTERM, -signal.SIGTERM)  # codes of a command that was asked to stop
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Command:
    """A command of a run, the name of what it does, and variables of its environment."""

    step: str
    words: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


class StopSignals:
    """Records the signals that end a process inside its block, and passes the first on to the commands at work."""

    def __init__(self) -> None:
        self.is_set = False
        self._groups: set[int] = set()

    def __enter__(self) -> StopSignals:
        heeded = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._note) for number in heeded}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def passed_on_to(self, group: int) -> Iterator[None]:
        """Pass signals on to a process group while the block runs."""
        self._groups.add(group)
        try:
            if self.is_set:
                self._pass_on(group)
            yield
        finally:
            self._groups.discard(group)

    def _note(self, number: int, frame: FrameType | None) -> None:
        say_at_once("sweep: asked to stop; waits until the runs at work have saved")
        if not self.is_set:
            self.is_set = True
            for group in tuple(self._groups):
                self._pass_on(group)

    def _pass_on(self, group: int) -> None:
        with contextlib.suppress(KeyError, ProcessLookupError):
            self._groups.remove(group)  # whoever removes it sends the signal, once
            os.killpg(group, signal.SIGTERM)


def run_locally(sweep: Sweep, unprepared: Set[str] = frozenset()) -> None:
    """Execute all runs that are not done, in order, up to max_parallel at the same time.

    Args:
        sweep: its runs.
        unprepared: mixes that cannot be prepared; their runs are left out.

    Raises:
        AlreadyRunningError: if another process executes this sweep.
        InterruptedRunError: if a signal has stopped it.
        SweepError: if runs have failed, after all others are done.
    """
    settings = sweep.settings
    shares = share_gpus(os.environ, max_parallel=settings.max_parallel, num_ranks=settings.num_ranks)
    with executing(sweep), StopSignals() as stop:
        failures = prepare_mixes(sweep, stop, unprepared)
        folders = record_points(sweep)
        waiting: deque[tuple[str, SweepRun]] = deque()
        for number, run in enumerate(sweep.runs, start=1):
            place = f"run {number} of {len(sweep.runs)}, {run.name}"
            if run.name in folders:
                logger.info(f"sweep: {place}, is done")
            elif run.mix not in failures:
                waiting.append((place, run))
        shares = shares[: len(waiting)]
        with ThreadPoolExecutor(settings.max_parallel) as pool:  # waits for the runs at work, also after an error
            for each in as_completed([pool.submit(_execute_waiting, sweep, waiting, stop, gpus) for gpus in shares]):
                each.result()
        check_done(sweep)


def _execute_waiting(sweep: Sweep, waiting: deque[tuple[str, SweepRun]], stop: StopSignals, gpus: GpuShare) -> None:
    """Execute the runs that wait, one after another on the same GPUs, until none is left; an error leaves none."""
    while True:
        try:
            place, run = waiting.popleft()
        except IndexError:
            return
        try:
            _execute_in_turn(sweep, run, place, stop, gpus)
        except BaseException as error:
            waiting.clear()
            if not isinstance(error, InterruptedRunError):
                logger.error(f"sweep: {place}, stops the sweep when the runs beside it have ended: {error}")
            raise


def _execute_in_turn(sweep: Sweep, run: SweepRun, place: str, stop: StopSignals, gpus: GpuShare) -> None:
    """Execute a run, and record its point."""
    if not stop.is_set:
        logger.info(f"sweep: {place}, starts; its log: {sweep.log_of(run.name)}")
    started = time.monotonic()
    if execute_run(sweep, run, stop, gpus=gpus) is None:
        record_points(sweep)
        logger.info(f"sweep: {place}, is done in {(time.monotonic() - started) / 60:.1f} minutes")


@contextlib.contextmanager
def executing(sweep: Sweep) -> Iterator[None]:
    """Hold the lock of a sweep, say which process holds it, and end what a killed one has left running.

    Raises:
        AlreadyRunningError: if another process holds it.
    """
    own = ProcessRecord.of(os.getpid())
    assert own is not None
    holder = process_of_sweep(sweep)
    who = "" if holder is None else f" (process {holder.number} on {holder.host})"
    busy = (
        f"another process executes sweep {sweep.settings.name}{who}; sweep.py status shows its runs, sweep.py cancel "
        "stops it"
    )
    with file_lock(sweep.folder / "lock", busy=busy):
        write_json(sweep.folder / PROCESS, settings_to_values(own))
        left = left_running(sweep)
        for process in left:
            logger.info(f"sweep: process {process.number} of a killed sweep is still at work; it is asked to save")
        end_groups([process.number for process in left])
        yield


def process_of_sweep(sweep: Sweep) -> ProcessRecord | None:
    """Return the process that last executed a sweep on this or another machine; None if there is no record of it."""
    with contextlib.suppress(OSError, NotJsonError, SettingsError):
        return read_settings(ProcessRecord, read_json_object(sweep.folder / PROCESS))
    return None


def left_running(sweep: Sweep) -> list[ProcessRecord]:
    """Return the processes of runs that are still at work on this machine."""
    records = filter(None, map(read_record, sorted((sweep.folder / "runs").glob("*.json"))))
    processes = [each.process for each in records if each.job is None and each.process is not None]
    return [each for each in processes if each.is_running()]


def check_done(sweep: Sweep) -> None:
    """Check that every run of a sweep is done.

    Raises:
        SweepError: if not, or if baselines have failed; naming the first of them, with its last line.
    """
    folders = record_points(sweep)
    missing = [run.name for run in sweep.runs if run.name not in folders]
    unscored = [name for name in map(baselines_of, sweep.settings.mixes) if read_record(sweep.record_of(name))]
    if not missing and not unscored:
        logger.info(f"sweep: all {len(sweep.runs)} runs are done; {sweep.folder / POINTS}")
        return
    first = [*missing, *unscored][0]
    record = read_record(sweep.record_of(first))
    reason = "" if record is None else f": {record.last_line} ({record.log})"
    baselines = f", nor {len(unscored)} sets of baselines" if unscored else ""
    raise SweepError(
        f"{len(missing)} of {len(sweep.runs)} runs are not done{baselines}; first {first}{reason}; the same command "
        "tries again",
        code="runs-failed",
    )


def baselines_of(mix: str) -> str:
    """Return the name under which the preparation and the baselines of a mix are recorded."""
    return f"{mix}-baselines"


def prepare_unknown(sweep: Sweep) -> set[str]:
    """Make the token store of each mix about whose size nothing is known without it; return those that it fails for.

    Raises:
        AlreadyRunningError: if another process executes this sweep.
        InterruptedRunError: if a signal has stopped it.
        SweepError: if no mix of the sweep is left.
    """
    failed: set[str] = set()
    unknown = unknown_mixes(sweep.runs, sweep.locations)
    if not unknown:
        return failed
    with executing(sweep), StopSignals() as stop:
        for mix, run in unknown.items():
            name = baselines_of(mix)
            logger.info(f"sweep: {mix}: prepare, since its size is not known yet; log: {sweep.log_of(name)}")
            if record := execute(sweep, name, [_prepare(sweep, run)], stop):
                _record_unprepared(sweep, mix, record)
                failed.add(mix)
                if failed == {each.mix for each in sweep.runs}:
                    raise SweepError(
                        f"{mix} cannot be prepared: {record.last_line} ({record.log}); the same command tries again",
                        code="not-prepared",
                    )
    return failed


def prepare_mixes(sweep: Sweep, stop: StopSignals, unprepared: Set[str] = frozenset()) -> set[str]:
    """Make the token store of each mix and score its baselines; return the mixes that cannot be prepared.

    Args:
        sweep: its runs.
        stop: signals that have come.
        unprepared: mixes for which this has failed already; they are not tried again.

    Raises:
        InterruptedRunError: if a signal has stopped it.
    """
    failed, settings = set(unprepared), sweep.settings
    folders = record_points(sweep)
    for mix, run in first_of_mixes(sweep.runs).items():
        if mix in failed:
            continue
        folder = folders.get(run.name, run.folder)
        commands = []
        location = sweep.locations.get(mix)
        if location is None or not location.is_built or not (folder / RECORD).is_file():
            commands.append(_prepare(sweep, run))
        split = run.settings.evaluation.split
        missing = [name for name in settings.baselines if not RunDirectory(folder, "").scores(split, name).is_file()]
        if missing:
            given = (
                f'run="{folder}"',
                f"baselines=[{','.join(missing)}]",
                f"split={split}",
                *settings.baseline_settings,
            )
            commands.append(Command("baselines", (*_python(sweep, "baselines"), *given)))
        if not commands:
            continue
        name = baselines_of(mix)
        logger.info(f"sweep: {mix}: {' and '.join(each.step for each in commands)}; log: {sweep.log_of(name)}")
        record = execute(sweep, name, commands, stop)
        if record is not None and record.step == "prepare":
            failed.add(mix)
            _record_unprepared(sweep, mix, record)
    return failed


def _prepare(sweep: Sweep, run: SweepRun) -> Command:
    return Command("prepare", (*_python(sweep, "prepare"), *run.overrides))


def _record_unprepared(sweep: Sweep, mix: str, record: RunRecord) -> None:
    """Record the failed preparation of a mix for each of its runs, which `status` then shows."""
    for run in sweep.runs:
        if run.mix == mix:
            write_record(sweep.record_of(run.name), record)


def execute_run(
    sweep: Sweep, run: SweepRun, stop: StopSignals, *, job: str | None = None, gpus: GpuShare = NO_GPUS
) -> RunRecord | None:
    """Train and evaluate a run; return the record of its failure, None if it has succeeded.

    Args:
        sweep: its settings.
        run: what to train.
        stop: signals that have come.
        job: Slurm's job that this is, if any.
        gpus: GPUs of this machine for the run; none: the CPU, or those of the job.

    Raises:
        InterruptedRunError: if a signal has stopped it.
    """
    commands = (  # a generator: a step takes its port when it starts
        Command(step, (*launcher(sweep, step, gpus), *arguments), gpus.environment)
        for step, arguments in (("train", run.overrides), ("evaluate", (f'run="{run.folder}"',)))
    )
    return execute(sweep, run.name, commands, stop, job)


def execute(
    sweep: Sweep, name: str, commands: Iterable[Command], stop: StopSignals, job: str | None = None
) -> RunRecord | None:
    """Execute commands in order until one fails; return the record of the failure.

    Raises:
        InterruptedRunError: if a signal has stopped one.
    """
    path, log = sweep.record_of(name), sweep.log_of(name)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.touch()  # a stop may come before the first command
    for command in commands:
        began = log.stat().st_size
        code = 75 if stop.is_set else _execute(path, log, command, stop, job)
        last_line = last_line_of(log, began)
        if stop.is_set or (job is not None and code in STOPPED):
            write_record(path, RunRecord("stopped", command.step, str(log), job=job, last_line=last_line))
            raise InterruptedRunError(
                f"sweep {sweep.settings.name}, in {command.step} of {name}; the same command resumes it",
                code="sweep-stopped",
            )
        if code:
            record = RunRecord("failed", command.step, str(log), job=job, last_line=last_line)
            write_record(path, record)
            logger.error(f"sweep: {name} has failed in {command.step}, code {code}: {last_line} ({log})")
            return record
    path.unlink(missing_ok=True)
    return None


def _execute(path: Path, log: Path, command: Command, stop: StopSignals, job: str | None) -> int:
    """Run one command to its end, that of its whole process group; return its exit code."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command.words, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True, env={**os.environ, **command.environment},
        )  # fmt: skip
    with stop.passed_on_to(process.pid):
        try:
            write_record(path, RunRecord("running", command.step, str(log), ProcessRecord.of(process.pid), job))
        except BaseException:  # without a record, the next start could not stop it
            end_groups([process.pid])
            process.wait()
            raise
        deadline = None
        while process.poll() is None or members_of(process.pid):
            time.sleep(SECONDS_BETWEEN_LOOKS)
            if stop.is_set:
                deadline = deadline or time.monotonic() + STOP_SECONDS
                if time.monotonic() > deadline:
                    with contextlib.suppress(ProcessLookupError):  # it may have ended since the last look
                        os.killpg(process.pid, signal.SIGKILL)
    return process.returncode


def last_line_of(log: Path, start: int) -> str:
    """Return the last line with an error or a stop that a log has from a position on, or else its last line."""
    with log.open("rb") as file:
        file.seek(start)
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    outcomes = [line for line in lines if line.startswith(("error:", "stopped:"))]
    return (outcomes or lines or [""])[-1]


def launcher(sweep: Sweep, script: str, gpus: GpuShare = NO_GPUS) -> tuple[str, ...]:
    """Return the words that start a script of launch/ as the ranks of a run."""
    settings = sweep.settings
    if settings.executor == "slurm":
        return ("bash", str(sweep.scripts / "slurm.sbatch"), script)
    if settings.num_ranks == 1:
        return _python(sweep, script)
    beside = Path(sys.executable).with_name("deepspeed")
    program = str(beside) if beside.is_file() else shutil.which("deepspeed")
    if program is None:
        raise missing_package("deepspeed")
    port = str(_free_port(gpus.ports))
    options = (*gpus.deepspeed_options(settings.num_ranks), "--master_port", port, "--log_level", "error")
    return (program, *options, str(sweep.scripts / f"{script}.py"))


def _free_port(ports: Sequence[int]) -> int:
    """Return a port that no process of this machine has now; other sweeps on it rarely choose the same."""
    for port in random.SystemRandom().sample(ports, len(ports)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    return ports[0]  # rank 0 says that it is taken


def _python(sweep: Sweep, script: str) -> tuple[str, ...]:
    return (sys.executable, str(sweep.scripts / f"{script}.py"))


def cancel(sweep: Sweep) -> None:
    """Stop the process that executes a sweep on this machine, with its runs, which save and can be resumed.

    Raises:
        SweepError: if it is executed on another machine.
    """
    holder = process_of_sweep(sweep)
    if holder is not None and holder.is_running():
        logger.info(f"sweep: process {holder.number} is asked to stop, and its runs to save")
        with contextlib.suppress(ProcessLookupError):  # it may have ended since the look
            os.kill(holder.number, signal.SIGTERM)
        while holder.is_running():
            time.sleep(SECONDS_BETWEEN_LOOKS)
    elif holder is not None and not holder.is_here and _is_locked(sweep):
        raise SweepError(f"sweep {sweep.settings.name} is executed on {holder.host}; cancel it there", code="elsewhere")
    elif holder is None or not left_running(sweep):
        logger.info(f"sweep: no process of {sweep.settings.name} is at work on this machine")
    left = left_running(sweep)
    for process in left:
        logger.info(f"sweep: process {process.number} of a killed sweep is asked to save")
    end_groups([process.number for process in left])


def _is_locked(sweep: Sweep) -> bool:
    try:
        with file_lock(sweep.folder / "lock", busy="x"):
            return False
    except AlreadyRunningError:
        return True
