"""What a training run will take: tokens, steps, memory by ZeRO stage, traffic, hours and dollars, before it starts.

Where the token store is there, tokens and rows are the plan's own. Where it is not, they are assumed from the surveys'
sizes in LABOR-LLM and from what a career has in Llama-2 tokens (83 for its heading and 15.9 a line, measured on the
NLSY97), and said to be.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from laborllm_dist.batches.packing import GRANULE
from laborllm_dist.careers.corpus import check_sources
from laborllm_dist.engine.memory_plan import GIB, Load, Memory, plan_memory, weight_bytes
from laborllm_dist.engine.shape import ModelShape, shape_of
from laborllm_dist.errors import LaborError
from laborllm_dist.settings import RunSettings
from laborllm_dist.settings_reader import OutOfRange
from laborllm_dist.tokens.data_card import PAPER
from laborllm_dist.tokens.prepare import store_folder
from laborllm_dist.tokens.store import MANIFEST, TokenStore, open_store
from laborllm_dist.training.plan import TrainingPlan, plan_training

HEADING_TOKENS, LINE_TOKENS = 83.0, 15.9
ASSUMED_FILL, ASSUMED_SPREAD = 0.97, 0.24  # of rows; standard deviation over mean of careers' lengths
FEW_STEPS = 20  # that the loads of passes are looked at of


@dataclass(frozen=True, slots=True)
class Workload:
    """What is trained on. `mean_square_length`: of careers, in tokens, which attention's work grows with."""

    careers_per_epoch: int
    tokens_per_epoch: float
    num_steps: int
    rows_per_step: float
    row_length: int
    fill: float
    mean_square_length: float
    is_assumed: bool

    @property
    def tokens_per_step(self) -> float:
        """Mean number of tokens of a step."""
        return self.fill * self.rows_per_step * self.row_length


@dataclass(frozen=True, slots=True)
class Forecast:
    """All of it for one setting and number of GPUs."""

    settings: RunSettings
    shape: ModelShape
    work: Workload
    memory: Memory
    passes_per_step: int
    traffic_bytes: float  # of one rank, a step
    seconds_per_step: float
    hours: float
    is_on_host: bool  # ranks on CPUs: what is offloaded is the same memory

    @property
    def busy(self) -> float:
        """Share of the ranks' passes that hold careers; other ranks wait."""
        slots = self.passes_per_step * self.settings.plan.num_gpus * self.settings.batch.rows_per_pass
        return min(1.0, self.work.rows_per_step / slots)

    @property
    def even_row_length(self) -> int:
        """Row length that gives every rank a row of a step."""
        tokens = self.work.tokens_per_step / (ASSUMED_FILL * self.settings.plan.num_gpus)
        return -(-round(tokens) // GRANULE) * GRANULE

    @property
    def dollars(self) -> float:
        """Price of the run."""
        return self.hours * self.settings.plan.num_gpus * self.settings.plan.gpu.dollars_per_hour

    @property
    def fits(self) -> bool:
        """Whether a GPU has the memory."""
        needed = self.memory.total + (self.memory.host_total if self.is_on_host else 0.0)
        return needed <= self.settings.plan.gpu.memory_gib * GIB


def known_workload(plan: TrainingPlan) -> Workload:
    """Return the work of a plan that is made."""
    order, lengths = plan.order, plan.lengths
    steps = [plan.step(step) for step in range(min(FEW_STEPS, plan.num_steps))]
    of_pool, weights = lengths[order.rows].astype(np.float64), order.weights
    return Workload(
        careers_per_epoch=order.careers_per_epoch,
        tokens_per_epoch=float((of_pool * weights).sum()),
        num_steps=plan.num_steps,
        rows_per_step=float(np.mean([len(step.packing.rows) for step in steps])),
        row_length=max(step.packing.row_length for step in steps),
        fill=float(np.mean([step.packing.fill for step in steps])),
        mean_square_length=float((of_pool**2 * weights).sum() / weights.sum()),
        is_assumed=False,
    )


def assumed_workload(settings: RunSettings) -> Workload | None:
    """Return the work on the surveys as LABOR-LLM has them; None where a corpus is none of these."""
    batch = settings.batch
    people = tokens = 0.0
    for corpus in settings.data.corpora.values():
        if corpus.kind not in PAPER:
            return None
        num_people, num_observations, _ = PAPER[corpus.kind]
        share = settings.split.train * corpus.fraction * corpus.weight
        people += share * num_people
        tokens += share * (num_people * HEADING_TOKENS + num_observations * LINE_TOKENS)
    mean = tokens / people
    rows = max(1.0, batch.careers_per_step * mean / (ASSUMED_FILL * batch.row_length))
    return Workload(
        careers_per_epoch=round(people),
        tokens_per_epoch=tokens,
        num_steps=-(-round(people) // batch.careers_per_step) * settings.training.epochs,
        rows_per_step=rows,
        row_length=batch.row_length,
        fill=batch.careers_per_step * mean / (rows * batch.row_length),
        mean_square_length=mean**2 * (1 + ASSUMED_SPREAD**2),
        is_assumed=True,
    )


def find_workload(settings: RunSettings) -> tuple[Workload | None, int]:
    """Return what a run will be trained on, and the size of its vocabulary; None where nobody can know yet."""
    num_ids = settings.tokenizer.vocabulary_size or 32_000
    store = _store_if_there(settings)
    if store is not None:
        return known_workload(plan_training(store, settings, world_size=settings.plan.num_gpus)), store.num_ids
    return assumed_workload(settings), num_ids


def _store_if_there(settings: RunSettings) -> TokenStore | None:
    try:
        check_sources(settings.data)
        folder = store_folder(settings)
    except LaborError:
        return None  # the data are not there yet, which is no matter for a plan
    return open_store(folder) if (folder / MANIFEST).is_file() else None


def forecast(
    settings: RunSettings, work: Workload, shape: ModelShape, *, process_bytes: float | None = None
) -> Forecast:
    """Return what a run takes on `plan.num_gpus` GPUs.

    Args:
        settings: of the run.
        work: what it is trained on.
        shape: of its model.
        process_bytes: what a process has before the model, on a CPU; None: that of a GPU.
    """
    world, gpu = settings.plan.num_gpus, settings.plan.gpu
    passes = max(1, -(-round(work.rows_per_step) // (world * settings.batch.rows_per_pass)))
    rows = min(settings.batch.rows_per_pass, max(1, -(-round(work.rows_per_step) // world)))
    memory = plan_memory(shape, settings, Load(rows, work.row_length), world_size=world, process_bytes=process_bytes)
    # A step takes as long as the rank with most rows; ranks without a row wait for it.
    flops = passes * rows * work.row_length * work.fill * flops_per_token(shape, settings, work)
    computing = flops / (gpu.utilisation * gpu.bf16_tflops * 1e12)
    traffic = traffic_bytes(shape, settings, passes)
    # Traffic overlaps with computing as far as it goes; what is longer decides.
    seconds = max(computing, traffic / (gpu.link_gigabytes_per_second * 1e9))
    hours = seconds * work.num_steps / 3600
    on_host = process_bytes is not None
    return Forecast(settings, shape, work, memory, passes, traffic, seconds, hours, on_host)


def flops_per_token(shape: ModelShape, settings: RunSettings, work: Workload) -> float:
    """Return floating-point operations of forward and backward of a token; recomputation is no work.

    Two a weight in the forward, and four in the backward, two where the weight is frozen; attention 12 x hidden size x
    half the length of the career, summed over its tokens, in each layer.
    """
    backward = 4 if settings.adapter.kind == "none" else 2
    learnt = shape.num_learnt(settings.adapter)
    added = 0 if settings.adapter.kind == "none" else 6 * learnt
    mean_length = work.tokens_per_epoch / work.careers_per_epoch
    attention = 12 * shape.num_layers * shape.hidden_size * (work.mean_square_length / mean_length) / 2
    return (2 + backward) * shape.num_multiplied + added + attention


def traffic_bytes(shape: ModelShape, settings: RunSettings, passes: int) -> float:
    """Return the bytes a rank sends in a step: reductions of gradients in fp32, gathers of weights."""
    world, zero = settings.plan.num_gpus, settings.zero
    if world == 1:
        return 0.0
    share = (world - 1) / world
    gradients = 4.0 * shape.num_learnt(settings.adapter) * share
    number = 2 if zero.precision == "bf16" else 4
    if zero.stage == 0:
        return 2 * gradients
    if zero.stage == 1:
        return 2 * gradients + number * shape.num_learnt(settings.adapter) * share
    if zero.stage == 2:
        return passes * gradients + number * shape.num_learnt(settings.adapter) * share
    gathers = 3 if settings.compute.gradient_checkpointing else 2
    return passes * (gradients + gathers * weight_bytes(shape, settings, number) * share)


Change = tuple[str, Callable[[RunSettings], RunSettings]]


def changes_that_save(settings: RunSettings) -> Iterator[Change]:
    """Yield changes that save memory, those that cost least first; each says what to write on the command line."""
    zero, optimizer = settings.zero, settings.optimizer
    if not settings.compute.gradient_checkpointing:
        yield "compute.gradient_checkpointing=true", _set("compute", gradient_checkpointing=True)
    if settings.batch.rows_per_pass > 1:
        yield "batch.rows_per_pass=1", _set("batch", rows_per_pass=1)
    if zero.precision == "fp32":
        yield "zero.precision=bf16", _set("zero", precision="bf16")
    for stage in range(zero.stage + 1, 4 if settings.adapter.base == "full" else 3):
        yield f"zero.stage={stage}", _set("zero", stage=stage)
    if optimizer.kind == "adamw" and zero.offload_optimizer == "none":
        yield "optimizer.kind=adamw_8bit", _set("optimizer", kind="adamw_8bit")
    if settings.plan.num_gpus < 8:
        yield "8 GPUs", _set("plan", num_gpus=8)
    if settings.adapter.kind == "none" and settings.model.path is not None:
        yield "adapter=lora", _set("adapter", kind="lora")
    if settings.plan.num_gpus < 64:
        yield "64 GPUs", _set("plan", num_gpus=64)


def _set(group: str, **values: Any) -> Callable[[RunSettings], RunSettings]:
    def changed(settings: RunSettings) -> RunSettings:
        whole: dict[str, Any] = {group: dataclasses.replace(getattr(settings, group), **values)}
        return dataclasses.replace(settings, **whole)

    return changed


def nearest_that_fits(found: Forecast, *, process_bytes: float | None = None) -> tuple[list[str], Forecast] | None:
    """Return the fewest of these changes with which a run fits, and its forecast; None where not even all do."""
    changes = list(changes_that_save(found.settings))

    def with_all(chosen: list[Change]) -> Forecast:
        settings = found.settings
        for _, change in chosen:
            with contextlib.suppress(OutOfRange):  # what does not go together saves nothing
                settings = change(settings)
        return forecast(settings, found.work, found.shape, process_bytes=process_bytes)

    single = [[change] for change in changes]
    growing = [changes[: number + 1] for number in range(1, len(changes))]
    for chosen in (*single, *growing):
        other = with_all(chosen)
        if other.fits:
            return [name for name, _ in chosen], other
    return None


def shape_for(settings: RunSettings, num_ids: int) -> ModelShape:
    """Return the shape of the run's model."""
    return shape_of(settings.model, num_ids=num_ids)
