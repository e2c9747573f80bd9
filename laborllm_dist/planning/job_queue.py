"""Simulate a queue of jobs on a cluster, such as the runs of a sweep: when each starts and ends, and what waits.

First come, first served, with backfilling as Slurm's `sched/backfill` does: the first job that does not fit gets a
reservation at the earliest time at which enough GPUs are free, and later jobs may start before it if they do not delay
it.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from laborllm_dist.errors import SettingsError
from laborllm_dist.planning.simulator import HIGH, HOUR, LOW, ClusterRun
from laborllm_dist.randomness import generator

NUM_QUEUES = 200  # that are drawn


@dataclass(frozen=True, slots=True)
class Job:
    """A job: GPUs, seconds that it holds them, and the second at which it is submitted."""

    num_gpus: int
    seconds: float
    submitted: float = 0.0


@dataclass(frozen=True, slots=True)
class ScheduledJob:
    """A job and the second at which it starts."""

    job: Job
    start: float

    @property
    def end(self) -> float:
        """Second at which it ends."""
        return self.start + self.job.seconds

    @property
    def waited(self) -> float:
        """Seconds in the queue."""
        return self.start - self.job.submitted


@dataclass(frozen=True, slots=True)
class SweepQueue:
    """A sweep on a cluster: hours until its last run ends, low, median and high; the busy share of its GPUs; price."""

    hours: tuple[float, float, float]
    utilization: float
    dollars: float


def schedule(jobs: Sequence[Job], num_gpus: int) -> tuple[ScheduledJob, ...]:
    """Return when each job runs on `num_gpus` GPUs, in the order of `jobs`.

    Raises:
        SettingsError: if a job needs more GPUs than there are.
    """
    most = max((job.num_gpus for job in jobs), default=0)
    if most > num_gpus:
        raise SettingsError(
            f"a run needs {most:,} GPUs, the cluster has {num_gpus:,}; take more GPUs, or a smaller plan.num_gpus",
            code="run-exceeds-cluster",
        )
    arrivals = sorted(range(len(jobs)), key=lambda index: (jobs[index].submitted, index))
    starts: dict[int, float] = {}
    running: list[tuple[float, int]] = []  # end, GPUs
    queue: list[int] = []
    now, free, arrived = 0.0, num_gpus, 0
    while len(starts) < len(jobs):
        next_arrival = jobs[arrivals[arrived]].submitted if arrived < len(jobs) else math.inf
        now = max(now, min(next_arrival, running[0][0] if running else math.inf))
        while arrived < len(jobs) and jobs[arrivals[arrived]].submitted <= now:
            queue.append(arrivals[arrived])
            arrived += 1
        while running and running[0][0] <= now:
            free += heapq.heappop(running)[1]
        for index in _startable([jobs[index] for index in queue], running, free, now):
            job = jobs[queue[index]]
            starts[queue[index]] = now
            heapq.heappush(running, (now + job.seconds, job.num_gpus))
            free -= job.num_gpus
        queue = [index for index in queue if index not in starts]
    return tuple(ScheduledJob(job, starts[index]) for index, job in enumerate(jobs))


def _startable(queue: Sequence[Job], running: Sequence[tuple[float, int]], free: int, now: float) -> list[int]:
    """Return the places in the queue of the jobs that start now."""
    started: list[int] = []
    busy = list(running)
    reserved, spare = math.inf, 0  # when the first job that does not fit will start, and GPUs that it leaves then
    for place, job in enumerate(queue):
        is_held = math.isfinite(reserved)
        ends_before = now + job.seconds <= reserved
        if job.num_gpus <= free and (not is_held or ends_before or job.num_gpus <= spare):
            started.append(place)
            free -= job.num_gpus
            spare -= 0 if not is_held or ends_before else job.num_gpus
            busy.append((now + job.seconds, job.num_gpus))
        elif not is_held:
            available = free
            for end, num_gpus in sorted(busy):
                available += num_gpus
                if available >= job.num_gpus:
                    reserved, spare = end, available - job.num_gpus
                    break
    return started


def simulate_sweep(runs: Sequence[ClusterRun], num_gpus: int, *, seed: int) -> SweepQueue:
    """Simulate the queue of a sweep's runs, all submitted at once, each of a duration drawn between its quantiles.

    Raises:
        SettingsError: if a run needs more GPUs than there are.
    """
    ends, busy = [], []
    for number in range(NUM_QUEUES):
        rng = generator(seed, "queue", number)
        jobs = [
            Job(run.estimate.settings.plan.num_gpus, HOUR * float(np.interp(rng.random(), (LOW, 0.5, HIGH), run.hours)))
            for run in runs
        ]
        ends.append(max(each.end for each in schedule(jobs, num_gpus)))
        busy.append(sum(job.num_gpus * job.seconds for job in jobs))
    low, half, high = (float(value) / HOUR for value in np.quantile(ends, (LOW, 0.5, HIGH)))
    return SweepQueue(
        hours=(low, half, high),
        utilization=float(np.sum(busy) / np.sum(ends)) / num_gpus,
        dollars=sum(run.dollars[1] for run in runs),
    )
