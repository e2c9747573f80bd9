"""Make the pieces of a store in several processes: on this machine, or as an array of Slurm jobs, through submitit.

Every worker reads the whole source, but makes its own pieces only. Slurm jobs need the store's folder and the project
on a file system that all hosts share.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laborllm_dist.config.data import PrepareSettings
from laborllm_dist.errors import LaborError, WorkerFailedError
from laborllm_dist.io.files import translate_disk_errors

if TYPE_CHECKING:
    import submitit

logger = logging.getLogger(__name__)

WorkerFn = Callable[[int], LaborError | None]
_SECONDS_BETWEEN_LOOKS, _SECONDS_BETWEEN_WATCHES, _SECONDS_TO_STOP = 2.0, 0.5, 20.0


def run_workers(work: WorkerFn, settings: PrepareSettings, logs: Path) -> None:
    """Run `work(worker)` for all workers in parallel, and wait for them.

    Args:
        work: makes the pieces of a worker; returns None, or the error that ended it. Sent by pickle.
        settings: the number of workers, the executor and its limits.
        logs: folder for the jobs' own output.

    Raises:
        LaborError: the error of the first worker that failed; the others are stopped.
        WorkerFailedError: if a worker died or exceeded its time limit.
    """
    import submitit

    limits: dict[str, Any] = {"timeout_min": settings.minutes, "name": "laborllm_prepare"}
    if settings.executor == "slurm":
        limits |= {"mem_gb": settings.memory_gib, "cpus_per_task": settings.cpus}
        limits |= {"slurm_partition": settings.slurm_partition, "slurm_array_parallelism": settings.num_workers}
    folder = new_folder(logs)
    try:
        executor = submitit.AutoExecutor(folder=str(folder), cluster=settings.executor)
        executor.update_parameters(**{name: value for name, value in limits.items() if value is not None})
        with _heeding_interrupts():
            jobs = executor.map_array(work, list(range(settings.num_workers)))
    except (RuntimeError, OSError) as error:
        raise WorkerFailedError(
            f"the workers could not be started on {settings.executor} ({error})", code="workers-not-started"
        ) from None
    try:
        _wait_for_all(jobs)
    finally:
        _stop([job for job in jobs if not job.done()])


@contextlib.contextmanager
def _heeding_interrupts() -> Iterator[None]:
    """Let processes started in this block end on SIGINT, with which submitit cancels local ones.

    A shell's background command ignores this signal, and its child processes would inherit that.
    """
    is_ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    if not is_ignored or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def new_folder(logs: Path) -> Path:
    """Return a new folder that only this user can write to: jobs unpickle their work and results from it.

    Raises:
        DiskError: if it cannot be made.
    """
    with translate_disk_errors(logs):
        logs.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix="start-", dir=logs))


def _stop(jobs: Sequence[submitit.Job[LaborError | None]]) -> None:
    """Cancel jobs, and wait up to a time limit for them to end, so that none writes afterwards."""
    for job in jobs:
        job.cancel()
    deadline = time.monotonic() + _SECONDS_TO_STOP
    while any(not job.done() for job in jobs) and time.monotonic() < deadline:
        time.sleep(0.1)


def _wait_for_all(jobs: Sequence[submitit.Job[LaborError | None]]) -> None:
    done: set[int] = set()
    while len(done) < len(jobs):
        for worker, job in enumerate(jobs):
            if worker not in done and job.done():
                _check(worker, job, len(jobs))
                done.add(worker)
                logger.info(f"prepare: worker {worker} is done ({len(done)} of {len(jobs)})")
        time.sleep(_SECONDS_BETWEEN_LOOKS if len(done) < len(jobs) else 0)


def _check(worker: int, job: submitit.Job[LaborError | None], num_workers: int) -> None:
    from submitit.core.utils import FailedJobError, UncompletedJobError

    try:
        error_of_worker = job.result()
    except (FailedJobError, UncompletedJobError) as error:
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise WorkerFailedError(
            f"worker {worker} of {num_workers} ended before it was done ({reason}); its output: {job.paths.stderr}. "
            "Start the same command again: finished pieces are kept",
            code="worker-ended-early",
        ) from None
    if error_of_worker is not None:
        raise error_of_worker


def error_of(work: Callable[[], object]) -> LaborError | None:
    """Call `work`; return the LaborError that it raises, None if it succeeds."""
    try:
        work()
    except LaborError as error:
        return error.with_traceback(None)
    return None


def end_with_process(number: int) -> None:
    """End this process as soon as another process of this machine has ended for any reason."""
    born = _birth_of(number)

    def watch() -> None:
        while _birth_of(number) == born:
            time.sleep(_SECONDS_BETWEEN_WATCHES)
        os._exit(WorkerFailedError.exit_code)

    threading.Thread(target=watch, daemon=True, name="watch").start()


def _birth_of(number: int) -> str | None:
    """Return a process's start time in clock ticks; None if it is not running (Linux)."""
    try:
        fields = Path(f"/proc/{number}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]
