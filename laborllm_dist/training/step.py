"""One step of training: the passes of its careers, forward and backward, a check of the loss, one update."""

from __future__ import annotations

import math
import resource
from dataclasses import dataclass
from time import monotonic

import torch

from laborllm_dist.batching.batch import BatchPrefetcher, PackedBatch, pack_batch
from laborllm_dist.batching.title_positions import training_batch, with_titles
from laborllm_dist.batching.training_plan import StepPlan, TrainingPlan
from laborllm_dist.config.run import RunSettings
from laborllm_dist.distributed.zero_engine import ZeroEngine
from laborllm_dist.io.run_directory import RunDirectory
from laborllm_dist.randomness import dropout_seed
from laborllm_dist.store.store import CareerTable
from laborllm_dist.training.lr_schedule import learning_rate_at
from laborllm_dist.training.state import TrainerState, loss_problem

HEAD_LOSS = "title_head_loss_nats_per_title"


@dataclass(frozen=True, slots=True)
class TrainContext:
    """The settings, plan, engine and data that every step of a run uses."""

    settings: RunSettings
    plan: TrainingPlan
    engine: ZeroEngine
    run: RunDirectory
    careers: CareerTable
    validation: CareerTable
    flops_per_token: float  # of a training token, as the plan counts them


@dataclass(frozen=True, slots=True)
class StepResult:
    """The state after a step, its metrics, and the reason it was skipped (None if it was applied)."""

    state: TrainerState
    numbers: dict[str, float]
    wrong: str | None


def batches_of_step(context: TrainContext, step: int) -> list[PackedBatch]:
    """Return this rank's batches of a step, one a pass."""
    planned, rank, weight = (
        context.plan.step(step),
        context.engine.ranks.rank,
        context.settings.training.context_loss_weight,
    )
    has_no_head, batches = context.settings.title_head.kind == "none", []
    for ranks_rows in planned.assignment.passes:
        rows = [[int(planned.careers[career]) for career in planned.packing.rows[row]] for row in ranks_rows[rank]]
        length = planned.packing.max_seq_length
        if weight == 1:
            batch = pack_batch([[context.careers.token_ids(career) for career in row] for row in rows], length)
        else:
            batch = training_batch(context.careers, rows, length, weight)
        batches.append(batch if has_no_head else with_titles(batch, context.careers, rows))
    return [batch.pinned() for batch in batches] if context.engine.ranks.device.type == "cuda" else batches


def take_step(context: TrainContext, prefetcher: BatchPrefetcher, state: TrainerState) -> StepResult:
    """Compute one step and apply its update, unless its loss or gradient is non-finite or a spike. Collective."""
    started, ranks, settings = monotonic(), context.engine.ranks, context.settings
    planned = context.plan.step(state.step)
    batches = prefetcher.of_step(state.step)
    waited = monotonic() - started
    torch.manual_seed(dropout_seed(settings.training.seed, step=state.step, rank=ranks.rank))
    title_weight = settings.title_head.loss_weight / planned.num_observations
    totals = torch.zeros(2, dtype=torch.float64, device=ranks.device)
    for batch in batches[:-1]:
        sums = context.engine.forward(batch, is_last_pass=False)
        totals += sums.detached()
        context.engine.backward(sums, loss_weight=planned.loss_weight, title_weight=title_weight)
    sums = context.engine.forward(batches[-1], is_last_pass=True)
    totals += sums.detached()
    over_ranks = ranks.sum(*totals.tolist())
    loss = -over_ranks[0] / planned.loss_weight
    wrong = loss_problem(loss, state, settings.training)
    if wrong is None:
        context.engine.backward(sums, loss_weight=planned.loss_weight, title_weight=title_weight)
    else:
        context.engine.skip_step(sums)
    rate = learning_rate_at(state.step, context.plan.num_steps, settings.optimizer)
    norm = context.engine.update(learning_rate=rate)
    if wrong is None and not math.isfinite(norm):
        wrong = f"its gradient is not finite, at a loss of {loss:.4f} nats/token"
    numbers = {
        "loss_nats_per_token": loss,
        **({} if sums.titles is None else {HEAD_LOSS: -over_ranks[1] / planned.num_observations}),
        "learning_rate": rate,
        "gradient_norm": norm,
        "step_tokens": planned.packing.num_tokens,
        "row_fill": planned.packing.fill,
        "tokens_per_second": planned.packing.num_tokens / (monotonic() - started),
        "data_wait_seconds": waited,
        "peak_memory_gib": peak_memory_gib(ranks.device),
    }
    if wrong is not None:
        return StepResult(state.after_skip(), numbers, wrong)
    after = state.after_step(loss, planned.packing.num_tokens, settings.training.loss_spike_window)
    return StepResult(after, numbers, None)


def careers_of(context: TrainContext, planned: StepPlan) -> list[str]:
    """Return the names of a step's careers, survey and person."""
    return [" ".join(context.careers.person(int(row))) for row in planned.careers]


def peak_memory_gib(device: torch.device) -> float:
    """Return the most memory this rank has held: of the GPU, or resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts it in KiB
