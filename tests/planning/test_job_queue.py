"""Queues on a cluster: by hand, and waits against queueing theory."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from helpers.errors import raises
from helpers.runs import settings_of

from laborllm_dist.models.dims import KNOWN
from laborllm_dist.planning.estimate import budget_of_gpu, estimate_resources
from laborllm_dist.planning.job_queue import Job, schedule, simulate_sweep
from laborllm_dist.planning.simulator import simulate_run
from laborllm_dist.planning.workload import HeldOut, Workload


def starts(jobs: list[Job], num_gpus: int) -> list[float]:
    return [each.start for each in schedule(jobs, num_gpus)]


def test_first_come_first_served_by_hand() -> None:
    # Four GPUs; three jobs of two: two at once, the third when the shorter one ends.
    assert starts([Job(2, 10), Job(2, 30), Job(2, 5)], 4) == [0, 0, 10]
    # Submitted later, and after a pause.
    assert starts([Job(4, 10), Job(4, 10, submitted=3), Job(4, 10, submitted=50)], 4) == [0, 10, 50]


def test_short_jobs_fill_gaps_and_delay_none_by_hand() -> None:
    # The second needs all four GPUs, from 10 on. Two others fit beside the first: 10 s end in time, 11 s do not.
    assert starts([Job(2, 10), Job(4, 5), Job(2, 11), Job(2, 10)], 4) == [0, 10, 15, 0]
    # The second leaves one GPU of five: a long job on one GPU delays nothing, a second one would.
    assert starts([Job(3, 10), Job(4, 5), Job(1, 100), Job(1, 100)], 5) == [0, 10, 0, 15]


def test_a_run_that_no_cluster_holds_is_refused() -> None:
    with raises("settings/run-exceeds-cluster", "16", "8"):
        schedule([Job(8, 1), Job(16, 1)], 8)
    assert schedule([], 8) == ()


def waits(num_gpus: int, seconds: np.ndarray, rate: float) -> float:
    rng = np.random.default_rng(5)
    arrivals = np.cumsum(rng.exponential(1 / rate, len(seconds)))
    jobs = [Job(1, float(each), float(at)) for each, at in zip(seconds, arrivals, strict=True)]
    return float(np.mean([each.waited for each in schedule(jobs, num_gpus)]))


def test_the_mean_wait_of_one_server_is_that_of_pollaczek_and_khinchine() -> None:
    # Jobs of 1 s and 5 s, half each: mean 3, mean square 13. A fifth of a job a second: busy .6.
    # Mean wait: .2 x 13 / (2 x .4) = 3.25 s.
    seconds = np.random.default_rng(6).choice([1.0, 5.0], 20_000)
    assert waits(1, seconds, 0.2) == pytest.approx(3.25, rel=0.1)


def test_the_mean_wait_of_two_servers_is_erlangs() -> None:
    # Exponential jobs of 1 s, one a second, two servers: a third of the jobs waits, 1 s on average.
    seconds = np.random.default_rng(7).exponential(1.0, 20_000)
    assert waits(2, seconds, 1.0) == pytest.approx(1 / 3, rel=0.1)


def test_a_sweep_by_hand() -> None:
    settings = settings_of(
        ["+experiment=pooled_7b", "plan.cluster.gpu_hours_between_failures=null", "plan.cluster.slow_gpu_share=0"]
    )
    work = Workload(3_200, 300.0 * 3_200, 300, ((300,) * 32,), 300, 150.0, is_assumed=False)
    estimate = estimate_resources(settings, work, KNOWN["meta-llama/Llama-2-7b-hf"], budget_of_gpu(settings.plan.gpu))
    run = simulate_run(estimate, HeldOut(0.0, 0.0, 0.0))
    run = dataclasses.replace(run, hours=(2.0, 2.0, 2.0))
    # Five runs of two hours and eight GPUs on sixteen: three rounds, five of six places busy; 8 x 2.50 an hour.
    queue = simulate_sweep([run] * 5, 16, seed=1)
    assert queue.hours == pytest.approx((6.0, 6.0, 6.0))
    assert queue.utilization == pytest.approx(5 / 6)
    assert queue.dollars == pytest.approx(5 * 2 * 20)
