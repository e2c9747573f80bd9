"""How fast is training at a shape, what share of the GPU's arithmetic is the model's, and does memory fit its plan?

benchmarks/utilization.py says what utilization counts.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from records import Record, host_memory, num_cpus
from utilization import find_machine, training_numbers

from gpu_suite.workload import BF16, Row, new_model, rows_of_careers, settings_for, synchronize, workload_of
from laborllm_dist.batching.batch import PackedBatch, pack_batch
from laborllm_dist.config.run import RunSettings
from laborllm_dist.distributed.context import DistributedContext, init_distributed
from laborllm_dist.distributed.zero_engine import ZeroEngine, make_engine
from laborllm_dist.models.dims import ModelShape
from laborllm_dist.models.loading import num_parameters
from laborllm_dist.planning.memory import GIB, Memory, MicroBatchShape, plan_memory

SETTINGS = {
    "lora": (*BF16, "adapter=lora"),
    "adam8": (*BF16, "compute=large", "zero.stage=3", "optimizer.name=adamw_8bit"),
    "offload": (*BF16, "compute=large", "zero.stage=2", "zero.offload_optimizer=cpu", "optimizer.name=cpu_adamw"),
}
ROW_LENGTHS = (2048, 4096)
PASS_TOKENS = 8192
WARM_UP, TIMED = (3, 5) if torch.cuda.is_available() else (1, 1)  # steps; the speed of a CPU is of no interest here
FILLED = 0.95  # of the GPU's memory, by the plan: it may be off by some percent
HOST_PROCESS_BYTES = 6 * GIB  # interpreter, libraries, and what loading leaves behind


@dataclass(frozen=True, slots=True)
class Timed:
    """Steps that were timed: the median of their seconds, and the first and last loss of all steps, nats a token."""

    seconds: float
    first_loss: float
    last_loss: float


def train(name: str, max_seq_length: int, shape: ModelShape) -> Iterator[Record]:
    """Measure training with as many rows a pass as fit by the plan."""
    subject = f"rows of {max_seq_length:,}"
    with init_distributed(settings_for(shape, f"ranks.threads_per_rank={num_cpus()}").ranks) as ranks:
        num_rows = PASS_TOKENS // max_seq_length if torch.cuda.is_available() else 1
        while True:
            batch = (f"batch.max_seq_length={max_seq_length}", f"batch.micro_batch_size={num_rows}")
            settings = settings_for(shape, *batch, *SETTINGS[name])
            load = MicroBatchShape(num_rows, max_seq_length)
            planned = plan_memory(shape, settings, load, world_size=1, process_bytes=None)
            lacking = what_lacks(planned)
            if lacking is None:
                yield measured(Record(name, subject, "measured"), settings, shape, planned, ranks)
                return
            if num_rows == 1:
                yield Record(name, subject, "skipped", note=lacking)
                return
            num_rows //= 2


def what_lacks(planned: Memory) -> str | None:
    """Return which memory is too small by the plan; None where it fits."""
    if torch.cuda.is_available():
        capacity = torch.cuda.mem_get_info()[1]
        if planned.total > FILLED * capacity:
            return f"planned {planned.total / GIB:.1f} GiB, of {capacity / GIB:.1f} of the GPU: does not fit"
    free = host_memory()
    if planned.host_total + HOST_PROCESS_BYTES > free:
        return f"planned {planned.host_total / GIB:.1f} GiB of the host, {free / GIB:.1f} are free: does not fit"
    return None


def measured(
    blank: Record, settings: RunSettings, shape: ModelShape, planned: Memory, ranks: DistributedContext
) -> Record:
    """Fill a record with what a training of a few steps shows."""
    model = new_model(settings, shape, ranks.device)
    num_all, num_trainable = num_parameters(model)
    engine = make_engine(model, settings.zero, settings.optimizer, ranks)
    rows, max_seq_length = settings.batch.micro_batch_size, settings.batch.max_seq_length
    steps = [rows_of_careers(rows, max_seq_length, shape.num_ids, seed) for seed in range(WARM_UP + TIMED)]
    timed = timed_steps(engine, steps, max_seq_length)
    work, machine = workload_of(steps[WARM_UP:], max_seq_length), find_machine(ranks)
    numbers = {
        "micro_batch_size": rows, "parameters": num_all, "learned": num_trainable, "seconds_per_step": timed.seconds,
        **training_numbers(shape, settings, work, timed.seconds * work.num_steps, machine),
    }  # fmt: skip
    notes = []
    if machine is None:
        notes.append("utilization not measured: the peak of this device is not known")
    if torch.cuda.is_available():
        numbers |= against_plan(planned)
    else:
        notes.append("memory not measured: there is no GPU")
    if planned.host_total:
        numbers["planned_host_gib"] = planned.host_total / GIB
    numbers |= {"first_loss_nats_per_token": timed.first_loss, "last_loss_nats_per_token": timed.last_loss}
    is_finite = math.isfinite(timed.last_loss)
    if not is_finite:
        notes.append("the loss is not finite")
    return Record(blank.part, blank.subject, "measured" if is_finite else "failed", numbers, "; ".join(notes) or None)


def against_plan(planned: Memory) -> dict[str, float]:
    """Return the peak of the GPU's memory beside the plan: what the allocator held, and what others hold beside it."""
    free, total = torch.cuda.mem_get_info()
    beside = total - free - torch.cuda.memory_reserved()  # CUDA's context, libraries
    peak = torch.cuda.max_memory_reserved() + beside
    return {"peak_gib": peak / GIB, "planned_gib": planned.total / GIB, "planned_over_peak": planned.total / peak}


def timed_steps(engine: ZeroEngine, steps: Sequence[Sequence[Row]], max_seq_length: int) -> Timed:
    """Train steps of one pass each; those after the warm-up are timed."""
    seconds: list[float] = []
    losses: list[torch.Tensor] = []
    for batch in [pack_batch(step, max_seq_length) for step in steps]:
        (weight,) = engine.ranks.sum(len(batch.scored_N))
        synchronize()
        started = time.perf_counter()
        losses.append(take_step(engine, batch, weight) / len(batch.scored_N))
        synchronize()
        seconds.append(time.perf_counter() - started)
    return Timed(statistics.median(seconds[WARM_UP:]), float(losses[0]), float(losses[-1]))


def take_step(engine: ZeroEngine, batch: PackedBatch, weight: float) -> torch.Tensor:
    """Train a step of one pass with `weight` targets on all ranks; return this rank's loss, a sum. Collective."""
    sums = engine.forward(batch, is_last_pass=True)
    engine.backward(sums, loss_weight=weight)
    engine.update(learning_rate=1e-5)
    return -sums.tokens.detach()
