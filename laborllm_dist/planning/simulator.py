"""Simulate a whole run on a cluster: start, steps, validation, checkpoints, failures, preemptions, scoring.

The steps' work is that of the estimate. Failures and preemptions come at exponential times; a failure loses what was
done since the last checkpoint, a preempted run saves first (training saves on SIGTERM). Both start again from the last
checkpoint, and a failure may come meanwhile. Many such runs are drawn from (seed, "cluster", run), so that the same
settings always give the same quantiles.

The interval between checkpoints that loses least is Daly's (Future Generation Computer Systems 22, 2006): for seconds
`save` of a save and M between failures, with x = save / 2 M and a save shorter than 2 M,

    sqrt(2 save M) (1 + sqrt(x) / 3 + x / 9) - save

Its first factor is Young's (Communications of the ACM 17, 1974).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from laborllm_dist.errors import SettingsError
from laborllm_dist.planning.collectives import GIGA, all_gather_seconds, fabric_of
from laborllm_dist.planning.estimate import ResourceEstimate, estimate_resources
from laborllm_dist.planning.memory import EIGHT_BIT_MOMENTS, FULL_MOMENTS, weight_bytes
from laborllm_dist.planning.suggestions import with_changes
from laborllm_dist.planning.throughput import (
    FITTED,
    Calibration,
    Precision,
    added_by_links,
    bytes_of_number,
    forward_seconds_of_token,
)
from laborllm_dist.planning.workload import HeldOut
from laborllm_dist.randomness import generator

NUM_RUNS = 200  # that are drawn
LOW, HIGH = 0.1, 0.9  # quantiles that are shown beside the median
TRIE_NODES = 1_667  # to forward for a prompt of the paper's 335 titles (titles=all)
HOUR, MINUTE = 3600.0, 60.0
# A run is not drawn if it is interrupted more often than this, altogether or, in the mean, between two saves.
MOST_INTERRUPTIONS, MOST_BETWEEN_SAVES = 10_000.0, 8.0


@dataclass(frozen=True, slots=True)
class Interruptions:
    """How often a run is interrupted, per second, and the seconds until its processes start again."""

    failure_rate: float = 0.0
    repair: float = 0.0
    preemption_rate: float = 0.0
    requeue: float = 0.0  # mean of an exponential wait


@dataclass(frozen=True, slots=True)
class Segments:
    """A run as segments of work, each of which ends with a save; all in seconds. `restart`: load included."""

    work: float
    interval: float
    save: float
    restart: float


@dataclass(frozen=True, slots=True)
class Elapsed:
    """Where the seconds of a simulated run went. `lost`: work done twice, and restarts that failed."""

    work: float
    saving: float
    lost: float
    restarting: float
    waiting: float
    num_failures: int
    num_preemptions: int

    @property
    def seconds(self) -> float:
        """All together."""
        return self.work + self.saving + self.lost + self.restarting + self.waiting


def daly_interval(save: float, mean_time_between_failures: float) -> float:
    """Return the seconds of work between saves that lose least."""
    if save >= 2 * mean_time_between_failures:
        return mean_time_between_failures
    half = save / (2 * mean_time_between_failures)
    return math.sqrt(2 * save * mean_time_between_failures) * (1 + math.sqrt(half) / 3 + half / 9) - save


def draw_run(segments: Segments, interruptions: Interruptions, rng: np.random.Generator) -> Elapsed:
    """Draw one run through its failures and preemptions."""
    done = saving = lost = restarting = waiting = 0.0
    num_failures = num_preemptions = 0
    whole = segments.interval + segments.save
    start = 0.0  # seconds of a restart before the next work
    while True:
        failure, preemption = (
            rng.exponential(1 / rate) if rate else math.inf
            for rate in (interruptions.failure_rate, interruptions.preemption_rate)
        )
        now = min(failure, preemption)
        left = segments.work - done
        if now >= start + left + math.ceil(left / segments.interval) * segments.save:
            saving += math.ceil(left / segments.interval) * segments.save
            return Elapsed(
                segments.work, saving, lost, restarting + start, waiting, num_failures, num_preemptions
            )  # fmt: skip
        num_whole, rest = divmod(max(0.0, now - start), whole)
        done += num_whole * segments.interval
        saving += num_whole * segments.save
        if now < start:
            lost += now
        else:
            restarting += start
        if failure <= preemption:
            num_failures += 1
            lost += rest
            waiting += interruptions.repair
        else:
            num_preemptions += 1
            kept = min(rest, segments.interval, segments.work - done)
            done += kept
            saving += segments.save if kept else 0.0
            waiting += rng.exponential(interruptions.requeue) if interruptions.requeue else 0.0
        start = segments.restart


@dataclass(frozen=True, slots=True)
class ClusterRun:
    """A run on a cluster; hours, each with its quantiles `LOW`, one half, `HIGH` over the drawn runs.

    `steps`, `validation`, `start` and `scoring` are hours without interruptions; `saving`, `lost` (work done twice) and
    `waiting` (restarts, repairs, the queue) are means.
    """

    estimate: ResourceEstimate
    hours: tuple[float, float, float]
    steps: float
    validation: float
    start: float
    scoring: float
    saving: float
    lost: float
    waiting: float
    num_failures: float
    best_interval: float | None  # hours of work between saves; None where nothing fails
    interval: float
    has_slow_gpu: float  # probability

    @property
    def dollars(self) -> tuple[float, float, float]:
        """Price, with its quantiles."""
        plan = self.estimate.settings.plan
        low, half, high = (hours * plan.num_gpus * plan.gpu.dollars_per_hour for hours in self.hours)
        return low, half, high

    @property
    def best_checkpoint_steps(self) -> int | None:
        """Steps between saves that lose least; None where nothing fails."""
        if self.best_interval is None:
            return None
        return max(1, round(self.best_interval * HOUR / self.estimate.cost.seconds))


def simulate_run(estimate: ResourceEstimate, held_out: HeldOut, calibration: Calibration = FITTED) -> ClusterRun:
    """Simulate the run of an estimate on its cluster.

    Saves come at every validation, and every `checkpoint_every_steps` steps.

    Raises:
        SettingsError: if the run is interrupted so often that it would hardly ever end.
    """
    settings, work = estimate.settings, estimate.work
    plan, training = settings.plan, settings.training
    cluster, num_gpus = plan.cluster, plan.num_gpus
    steps = estimate.cost.seconds * work.num_steps
    num_epochs = max(1, round(work.num_steps * settings.batch.global_batch_size / work.careers_per_epoch))
    num_validations = num_epochs * training.validations_per_epoch
    validation = num_validations * validation_seconds(estimate, held_out, calibration)
    saved = _checkpoint_bytes(estimate)
    save = saved / _storage_speed(estimate)
    start = MINUTE * cluster.start_minutes + _model_bytes(estimate) * _num_hosts(estimate) / _storage_speed(estimate)
    restart = start + saved / _storage_speed(estimate)
    every = training.checkpoint_every_steps
    spacing = min(work.num_steps / num_validations, every or math.inf)
    total = steps + validation
    interval = total * spacing / work.num_steps
    failures = cluster.gpu_hours_between_failures
    interruptions = Interruptions(
        failure_rate=num_gpus / failures / HOUR if failures else 0.0,
        repair=MINUTE * cluster.repair_minutes,
        preemption_rate=1 / cluster.hours_between_preemptions / HOUR if cluster.hours_between_preemptions else 0.0,
        requeue=MINUTE * cluster.requeue_minutes,
    )
    _check_ends(Segments(total, interval, save, restart), interruptions, num_gpus)
    chance_of_slow = 1 - (1 - cluster.slow_gpu_share) ** num_gpus
    computing = estimate.cost.computing / estimate.cost.seconds
    scoring = scoring_seconds(estimate, held_out, calibration)
    runs, seconds = [], []
    for number in range(NUM_RUNS):
        rng = generator(training.seed, "cluster", number)
        slower = 1 + (cluster.slow_gpu_factor - 1) * computing * (rng.random() < chance_of_slow)
        runs.append(draw_run(Segments(total * slower, interval * slower, save, restart), interruptions, rng))
        seconds.append(start + runs[-1].seconds + scoring)
    low, half, high = (float(value) / HOUR for value in np.quantile(seconds, (LOW, 0.5, HIGH)))
    rate = interruptions.failure_rate
    return ClusterRun(
        estimate=estimate, hours=(low, half, high), steps=steps / HOUR, validation=validation / HOUR,
        start=start / HOUR, scoring=scoring / HOUR,
        saving=_mean([run.saving for run in runs]) / HOUR, lost=_mean([run.lost for run in runs]) / HOUR,
        waiting=_mean([run.restarting + run.waiting for run in runs]) / HOUR,
        num_failures=_mean([run.num_failures for run in runs]),
        best_interval=daly_interval(save, 1 / rate) / HOUR if rate else None, interval=interval / HOUR,
        has_slow_gpu=chance_of_slow,
    )  # fmt: skip


def _check_ends(segments: Segments, interruptions: Interruptions, num_gpus: int) -> None:
    rates = interruptions.failure_rate + interruptions.preemption_rate
    from_save_to_save = (
        rates * segments.restart
        + interruptions.failure_rate * (min(segments.interval, segments.work) + segments.save)
    )  # fmt: skip
    if from_save_to_save > MOST_BETWEEN_SAVES or rates * segments.work > MOST_INTERRUPTIONS:
        raise SettingsError(
            f"on {num_gpus:,} GPUs the run is interrupted every {1 / rates / HOUR:.3g} hours and saves every "
            f"{segments.interval / HOUR:.3g}, so it would hardly ever end; set a smaller "
            "training.checkpoint_every_steps, or more realistic plan.cluster settings",
            code="run-never-ends",
        )


def compare_num_gpus(estimate: ResourceEstimate, held_out: HeldOut, numbers: Sequence[int]) -> tuple[ClusterRun, ...]:
    """Simulate the run on each of these numbers of GPUs."""
    runs = []
    for num_gpus in numbers:
        settings = with_changes(estimate.settings, {"plan.num_gpus": num_gpus})
        assert settings is not None  # no setting conflicts with the number of GPUs
        runs.append(simulate_run(estimate_resources(settings, estimate.work, estimate.shape, estimate.room), held_out))
    return tuple(runs)


def validation_seconds(estimate: ResourceEstimate, held_out: HeldOut, calibration: Calibration = FITTED) -> float:
    """Return the seconds of one validation: forward passes of packed rows on all ranks, with gathers at stage 3."""
    settings, shape, num_gpus = estimate.settings, estimate.shape, estimate.settings.plan.num_gpus
    batch, stage = settings.batch, settings.zero.stage
    num_rows = math.ceil(held_out.validation_tokens / (estimate.passes.fill * batch.max_seq_length))
    num_passes = math.ceil(num_rows / (num_gpus * batch.micro_batch_size))
    of_pass = min(batch.micro_batch_size, math.ceil(num_rows / num_gpus)) * batch.max_seq_length
    computing = of_pass * forward_seconds_of_token(
        shape, settings, estimate.work.attended, settings.zero.precision, calibration
    )
    fabric = fabric_of(settings.plan, efficiency=calibration.link_efficiency)
    size = weight_bytes(shape, settings, bytes_of_number(settings.zero)) if stage == 3 else 0.0
    gathering = all_gather_seconds(size, num_gpus, fabric, num_messages=shape.num_layers) if size else 0.0
    return num_passes * (computing + added_by_links((computing,), gathering, 0.0, calibration))


def scoring_seconds(estimate: ResourceEstimate, held_out: HeldOut, calibration: Calibration = FITTED) -> float:
    """Return the seconds of launch/evaluate.py on the test people: its start, and forwards shared by all GPUs.

    `titles=all` also forwards a tree of titles for every observation.
    """
    settings, plan = estimate.settings, estimate.settings.plan
    evaluation = settings.evaluation
    num_tokens = held_out.test_tokens
    if evaluation.titles == "all":
        num_tokens += held_out.test_observations * TRIE_NODES * estimate.work.num_titles / 335
    precision: Precision = "bf16" if evaluation.precision == "bf16" else "fp32"
    of_token = forward_seconds_of_token(estimate.shape, settings, estimate.work.attended, precision, calibration)
    load = _model_bytes(estimate) * _num_hosts(estimate) / _storage_speed(estimate)
    return MINUTE * plan.cluster.start_minutes + load + num_tokens * of_token / plan.num_gpus


def _num_hosts(estimate: ResourceEstimate) -> int:
    plan = estimate.settings.plan
    return math.ceil(plan.num_gpus / plan.gpu.gpus_per_host)


def _storage_speed(estimate: ResourceEstimate) -> float:
    """Return the bytes per second that all hosts read or write together."""
    cluster = estimate.settings.plan.cluster
    of_hosts = _num_hosts(estimate) * cluster.host_storage_gigabytes_per_second
    return GIGA * min(cluster.storage_gigabytes_per_second, of_hosts)


def _checkpoint_bytes(estimate: ResourceEstimate) -> float:
    """Return the bytes of a checkpoint: trainable weights in fp32, and their moments."""
    moments = EIGHT_BIT_MOMENTS if estimate.settings.optimizer.name == "adamw_8bit" else FULL_MOMENTS
    return (4.0 + moments) * estimate.shape.num_trainable(estimate.settings.adapter)


def _model_bytes(estimate: ResourceEstimate) -> float:
    """Return the bytes of the model's files: bf16, as published; nothing for a randomly initialized model."""
    return 0.0 if estimate.settings.model.path is None else 2.0 * estimate.shape.num_parameters


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
