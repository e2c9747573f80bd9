"""Execute a sweep as an array of Slurm jobs, through submitit: one job a run, over several ranks and nodes.

A job starts launch/slurm.sbatch in its allocation, as `sbatch` would: a rank for each GPU, a request to save before the
time limit, and queued again after a preemption.
"""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any

from laborllm_dist.config.sweep import SweepSettings
from laborllm_dist.errors import InterruptedRunError, SweepError
from laborllm_dist.store.workers import new_folder
from laborllm_dist.sweeps.execute import StopSignals, execute_run, executing, prepare_mixes
from laborllm_dist.sweeps.runs import SweepRun
from laborllm_dist.sweeps.state import RunRecord, Sweep, queued_jobs, read_record, record_points, write_record

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunJob:
    """What a job of the array does; sent by pickle."""

    sweep: Sweep

    def __call__(self, run: SweepRun) -> None:
        """Train and evaluate a run in this job's allocation, and record its point."""
        job = _number_of_job()
        with StopSignals() as stop:
            try:
                if execute_run(self.sweep, run, stop, job=job) is None:
                    record_points(self.sweep)
            except InterruptedRunError as error:  # slurm.sbatch has queued the job again, or it was canceled
                logger.info(f"stopped: {error}")


def _number_of_job() -> str:
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array is not None else os.environ["SLURM_JOB_ID"]


def submit(sweep: Sweep, unprepared: Set[str] = frozenset()) -> None:
    """Prepare the mixes, and submit a job for every run that is neither done nor in the queue.

    Args:
        sweep: its runs.
        unprepared: mixes that cannot be prepared; their runs are left out.

    Raises:
        AlreadyRunningError: if another process is submitting this sweep.
        InterruptedRunError: if a signal has stopped the preparation.
        SweepError: if Slurm does not take the jobs, or a mix cannot be prepared.
    """
    with executing(sweep), StopSignals() as stop:
        failed = prepare_mixes(sweep, stop, unprepared)
        folders, alive = record_points(sweep), jobs_of(sweep)
        missing = [run for run in sweep.runs if run.name not in folders and run.mix not in failed]
        waiting = [run for run in missing if run.name not in alive]
        jobs = _submit(sweep, waiting) if waiting else []
        for run, job in zip(waiting, jobs, strict=True):
            _record_queued(sweep, run, job)
    logger.info(
        f"sweep: {len(folders)} of {len(sweep.runs)} runs are done, {len(missing) - len(waiting)} in the queue, "
        f"{len(waiting)} submitted; sweep.py status shows them"
    )
    if failed:
        raise SweepError(
            f"not prepared: {', '.join(sorted(failed))}; the same command tries again", code="not-prepared"
        )


def _record_queued(sweep: Sweep, run: SweepRun, job: str) -> None:
    """Record that a run's job is in the queue, unless the job has begun meanwhile and recorded more itself."""
    path = sweep.record_of(run.name)
    record = read_record(path)
    if record is None or record.job != job:
        write_record(path, RunRecord("queued", log=str(sweep.log_of(run.name)), job=job))


def jobs_of(sweep: Sweep) -> dict[str, str]:
    """Return the jobs of a sweep that have not ended, by run."""
    queue = queued_jobs()
    records = {run.name: read_record(sweep.record_of(run.name)) for run in sweep.runs}
    return {
        name: record.job
        for name, record in records.items()
        if record is not None and record.job and record.job in queue
    }


def cancel_jobs(sweep: Sweep) -> None:
    """Cancel the jobs of a sweep that have not ended; those at work save first.

    Raises:
        SweepError: if scancel fails.
    """
    jobs = jobs_of(sweep)
    if jobs:
        done = subprocess.run(["scancel", *jobs.values()], capture_output=True, text=True, check=False)
        if done.returncode:
            reason = done.stderr.strip() or f"code {done.returncode}"
            raise SweepError(f"scancel failed ({reason}); try again", code="not-canceled")
    logger.info(f"sweep: {len(jobs)} jobs canceled")


def array_parameters(settings: SweepSettings) -> dict[str, Any]:
    """Return submitit's parameters of the array."""
    array = settings.array
    more = {"signal": f"TERM@{array.signal_seconds}", "requeue": True}  # to the ranks, which save
    parameters = {
        "job_name": f"laborllm_{settings.name}",
        "nodes": settings.num_nodes,
        "ntasks_per_node": settings.num_ranks,
        "cpus_per_task": array.cpus_per_rank,
        "gpus_per_node": settings.num_ranks if array.has_gpus else None,
        "time": array.minutes,
        "partition": array.partition,
        "account": array.account,
        "array_parallelism": array.max_parallel,
        "use_srun": False,  # slurm.sbatch starts the ranks
        "additional_parameters": {**more, "mem": "0" if array.memory_gib is None else f"{array.memory_gib}G"},
    }
    return {name: value for name, value in parameters.items() if value is not None}


def _submit(sweep: Sweep, runs: Sequence[SweepRun]) -> list[str]:
    """Submit an array; return the numbers of its jobs."""
    import submitit

    try:
        executor = submitit.SlurmExecutor(folder=str(new_folder(sweep.folder / "jobs").resolve()))
        executor.update_parameters(**array_parameters(sweep.settings))
        return [job.job_id for job in executor.map_array(RunJob(sweep), runs)]
    except (RuntimeError, OSError, submitit.core.utils.FailedJobError) as error:
        raise SweepError(f"Slurm does not take the jobs ({error})", code="not-submitted") from None
