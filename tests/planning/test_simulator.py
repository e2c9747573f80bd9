"""Runs on a cluster: by hand, against a slow simulation, and against closed forms."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from helpers.errors import raises
from helpers.runs import settings_of

from laborllm_dist.models.dims import KNOWN
from laborllm_dist.planning.estimate import ResourceEstimate, budget_of_gpu, estimate_resources
from laborllm_dist.planning.simulator import (
    Interruptions,
    Segments,
    compare_num_gpus,
    daly_interval,
    draw_run,
    scoring_seconds,
    simulate_run,
    validation_seconds,
)
from laborllm_dist.planning.throughput import Calibration, Cost, Traffic
from laborllm_dist.planning.workload import HeldOut, Workload

SEVEN = KNOWN["meta-llama/Llama-2-7b-hf"]
WORK = Workload(3_200, 300.0 * 3_200, 300, ((300,) * 32,), 300, 150.0, is_assumed=False)
NOTHING = HeldOut(0.0, 0.0, 0.0)
SECOND = Cost(Traffic(0, 0), computing=0.5, is_launch_bound=False, links=0.5, updating=0.0, offloading=0.0)


class Drawn:
    """Gives these numbers in turn in place of exponential ones."""

    def __init__(self, *numbers: float) -> None:
        self.numbers: Iterator[float] = iter(numbers)

    def exponential(self, mean: float) -> float:
        return next(self.numbers)


def estimate_of(*more: str) -> ResourceEstimate:
    settings = settings_of(["+experiment=pooled_7b", *more])
    estimate = estimate_resources(settings, WORK, SEVEN, budget_of_gpu(settings.plan.gpu))
    return dataclasses.replace(estimate, cost=SECOND)


def mean_seconds(segments: Segments, interruptions: Interruptions, num_runs: int) -> tuple[float, float]:
    """Return the mean of drawn runs, and its standard error."""
    rng = np.random.default_rng(3)
    seconds = [draw_run(segments, interruptions, rng).seconds for _ in range(num_runs)]
    return float(np.mean(seconds)), float(np.std(seconds) / math.sqrt(num_runs))


def seconds_step_by_step(segments: Segments, mean: float, rng: np.random.Generator) -> float:
    """Run segment by segment, each again until no failure comes before its save is done."""
    elapsed, left, must_restart = 0.0, segments.work, False
    while left > 0:
        needed = (segments.restart if must_restart else 0.0) + min(left, segments.interval) + segments.save
        failure = rng.exponential(mean)
        elapsed += min(failure, needed)
        must_restart = failure < needed
        left -= 0.0 if must_restart else min(left, segments.interval)
    return elapsed


def test_a_run_with_a_failure_by_hand() -> None:
    # Segments of 100 s and saves of 10. A failure after 250 s: two segments are saved, 30 s are lost; repair takes 60 s,
    # a restart 20. Then 100 s of work and a save are left.
    segments, interruptions = Segments(300, 100, 10, 20), Interruptions(failure_rate=1.0, repair=60)
    elapsed = draw_run(segments, interruptions, Drawn(250, 1_000))  # type: ignore[arg-type]
    assert (elapsed.work, elapsed.saving, elapsed.lost, elapsed.restarting, elapsed.waiting) == (300, 30, 30, 20, 60)
    assert (elapsed.seconds, elapsed.num_failures) == (440, 1)
    # A second failure 15 s into the restart: 15 s more are lost, and 60 s to repair.
    elapsed = draw_run(segments, interruptions, Drawn(250, 15, 1_000))  # type: ignore[arg-type]
    assert (elapsed.seconds, elapsed.num_failures) == (440 + 15 + 60, 2)


def test_a_preempted_run_saves_and_waits_in_the_queue_by_hand() -> None:
    # After 250 s, 30 s into the third segment: 10 s to save, 500 s in the queue, 20 s to restart; 70 s and a save left.
    interruptions = Interruptions(preemption_rate=1.0, requeue=400)
    elapsed = draw_run(Segments(300, 100, 10, 20), interruptions, Drawn(250, 500, 1_000))  # type: ignore[arg-type]
    assert (elapsed.work, elapsed.saving, elapsed.lost, elapsed.restarting, elapsed.waiting) == (300, 40, 0, 20, 500)
    assert (elapsed.num_failures, elapsed.num_preemptions) == (0, 1)


def test_drawn_runs_agree_with_a_slow_simulation_and_with_the_closed_form() -> None:
    # Failures every 500 s on average. Renewal: M e^(R / M) (e^((t + s) / M) - 1) for each segment, the first start free.
    segments, mean = Segments(10_000, 100, 10, 40), 500.0
    mean_drawn, error = mean_seconds(segments, Interruptions(failure_rate=1 / mean), 1_000)
    exact = 100 * mean * math.exp(40 / mean) * (math.exp(110 / mean) - 1)
    # Daly restarts before every segment that follows a failure; segments without one have no restart.
    rng = np.random.default_rng(4)
    slow = [seconds_step_by_step(segments, mean, rng) for _ in range(1_000)]
    assert mean_drawn == pytest.approx(float(np.mean(slow)), abs=3 * math.sqrt(2) * error)
    assert mean_drawn == pytest.approx(exact, abs=4 * error)


@pytest.mark.parametrize(("save", "mean"), [(60.0, 86_400.0), (300.0, 7_200.0), (30.0, 300.0)])
def test_the_interval_that_loses_least(save: float, mean: float) -> None:
    intervals = np.geomspace(save / 3, 10 * mean, 20_000)
    seconds = (np.exp((intervals + save) / mean) - 1) / intervals  # for a second of work
    assert daly_interval(save, mean) == pytest.approx(float(intervals[seconds.argmin()]), rel=0.02)


def test_the_interval_by_hand() -> None:
    # sqrt(2 x 60 x 86,400) = 3,219.94; x = 60 / 172,800: times 1 + .018634 / 3 + .00003858; minus 60.
    assert daly_interval(60, 86_400) == pytest.approx(3_180.06, abs=0.05)
    assert daly_interval(100, 40) == 40


def test_other_intervals_lose_more_in_drawn_runs() -> None:
    mean, save = 2_000.0, 20.0
    best = daly_interval(save, mean)
    seconds = [
        mean_seconds(Segments(50_000, best * factor, save, 0), Interruptions(failure_rate=1 / mean), 150)[0]
        for factor in (0.25, 1.0, 4.0)
    ]
    assert seconds[1] < min(seconds[0], seconds[2])


def test_a_run_without_interruptions_is_the_sum_of_its_parts() -> None:
    more = ["plan.cluster.gpu_hours_between_failures=null", "plan.cluster.slow_gpu_share=0"]
    storage = ["plan.cluster.start_minutes=6", "plan.cluster.host_storage_gigabytes_per_second=1"]
    run = simulate_run(estimate_of(*more, *storage), NOTHING)
    # 300 steps of a second. Start: 6 minutes, and 13.4768 GB at 1 GB/s; scoring starts the same way.
    assert run.steps == pytest.approx(300 / 3600)
    start = (360 + 13.476831232) / 3600
    assert (run.start, run.scoring) == (pytest.approx(start), pytest.approx(start))
    # Three validations, one an epoch, each with a checkpoint of 12 bytes a weight: 80.861 s.
    assert run.saving == pytest.approx(3 * 80.860987392 / 3600)
    whole = 300 / 3600 + 2 * start + run.saving
    assert run.hours == pytest.approx((whole, whole, whole))
    assert (run.best_interval, run.best_checkpoint_steps, run.num_failures) == (None, None, 0)
    assert run.dollars[1] == pytest.approx(8 * 2.5 * whole)


def test_failures_of_a_long_run_are_as_many_as_expected() -> None:
    # 64 GPUs, 6,400 GPU-hours between failures: one in 100 hours. 1,000 hours of steps, a save every 1 % of them.
    long = dataclasses.replace(WORK, num_steps=3_600_000, careers_per_epoch=38_400_000)
    more = ["plan.num_gpus=64", "plan.cluster.gpu_hours_between_failures=6400", "plan.cluster.slow_gpu_share=0"]
    estimate = dataclasses.replace(estimate_of(*more, "training.checkpoint_every_steps=36000"), work=long)
    run = simulate_run(estimate, NOTHING)
    assert run.num_failures == pytest.approx(run.hours[1] / 100, rel=0.05)
    assert run.lost == pytest.approx(run.num_failures * 5, rel=0.1)  # half of ten hours each
    assert run.hours[0] < run.hours[1] < run.hours[2]
    assert simulate_run(estimate, NOTHING) == run


@pytest.mark.parametrize(
    "settings",
    [
        [
            "plan.cluster.gpu_hours_between_failures=64",
            "training.checkpoint_every_steps=36000",
        ],  # 1 hour; saves every 10
        ["plan.cluster.hours_between_preemptions=0.001", "plan.cluster.start_minutes=1"],
        [
            "plan.cluster.gpu_hours_between_failures=1",
            "training.checkpoint_every_steps=1",
            "plan.cluster.start_minutes=0",
        ],
    ],
)
def test_a_run_that_would_never_end_is_an_error(settings: list[str]) -> None:
    long = dataclasses.replace(WORK, num_steps=3_600_000, careers_per_epoch=38_400_000)
    estimate = dataclasses.replace(estimate_of("plan.num_gpus=64", *settings), work=long)
    with raises("settings/run-never-ends", "64"):
        simulate_run(estimate, NOTHING)


def test_a_slow_gpu_slows_the_computing_of_all() -> None:
    none = ["plan.cluster.gpu_hours_between_failures=null", "plan.num_gpus=8"]
    sound = simulate_run(estimate_of(*none, "plan.cluster.slow_gpu_share=0"), NOTHING)
    slow = simulate_run(
        estimate_of(*none, "plan.cluster.slow_gpu_share=1", "plan.cluster.slow_gpu_factor=1.5"), NOTHING
    )
    # Half of a step computes: 1.25 times the steps.
    assert slow.hours[1] - sound.hours[1] == pytest.approx(0.25 * 300 / 3600)
    rare = simulate_run(estimate_of(*none, "plan.cluster.slow_gpu_share=0.01"), NOTHING)
    assert rare.has_slow_gpu == pytest.approx(0.0772553)  # 1 - .99^8


def only_products(gpu: Sequence[str]) -> tuple[ResourceEstimate, Calibration]:
    """An estimate, and a calibration in which only matrix products take time."""
    return estimate_of(*gpu), Calibration(0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0)


def test_validation_and_scoring_by_hand() -> None:
    gpu = ["plan.gpu.bf16_tflops=100", "plan.gpu.matmul_utilization=0.5", "plan.gpu.attention_utilization=1",
           "zero=stage2_bf16", "plan.cluster.start_minutes=0", "plan.cluster.host_storage_gigabytes_per_second=1e8",
           "plan.cluster.storage_gigabytes_per_second=1e8"]  # fmt: skip
    estimate, calibration = only_products(gpu)
    # A forward of a token: 2 x 6,607,077,376 operations at 50 TFLOP/s, and 78,643,200 of attention at 100.
    of_token = 13_214_154_752 / 50e12 + 78_643_200 / 100e12
    # Validation packs as training: 9,600 tokens of a step fill 7 rows of 1,536 ... 99 % and more. 16 rows' worth of tokens
    # on 8 GPUs: two passes of 1,536.
    tokens = 15.5 * 1_536 * estimate.passes.fill
    assert validation_seconds(estimate, HeldOut(tokens, 0, 0), calibration) == pytest.approx(2 * 1_536 * of_token)
    assert scoring_seconds(estimate, HeldOut(0, 80_000, 0), calibration) == pytest.approx(10_000 * of_token, rel=1e-4)
    # All titles: 1,667 nodes of the tree for each of 800 observations.
    estimate, calibration = only_products([*gpu, "evaluation.titles=all"])
    seconds = scoring_seconds(estimate, HeldOut(0, 0, 800), calibration)
    assert seconds == pytest.approx(100 * 1_667 * of_token, rel=1e-4)


def test_numbers_of_gpus_are_compared() -> None:
    estimate = estimate_of()
    eight, sixty_four = compare_num_gpus(estimate, NOTHING, (8, 64))
    assert eight.estimate.settings == estimate.settings
    assert sixty_four.estimate.settings.plan.num_gpus == 64
    # 32 careers of 300 tokens make seven rows of at most 1,536: 64 GPUs do no more than eight.
    assert sixty_four.estimate.passes.slots == eight.estimate.passes.slots
