"""The plan of a run for people: tables in the terminal, and the short form that training prints."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table

from laborllm_dist.engine.capacity import Capacity
from laborllm_dist.engine.memory_plan import GIB
from laborllm_dist.engine.shape import ModelShape
from laborllm_dist.errors import DataFileError, DoesNotFit
from laborllm_dist.settings import RunSettings
from laborllm_dist.settings_reader import OutOfRange
from laborllm_dist.training.forecast import (
    Forecast,
    Workload,
    find_workload,
    forecast,
    known_workload,
    nearest_that_fits,
    shape_for,
)
from laborllm_dist.training.plan import TrainingPlan

ENOUGH_BUSY = 0.75
KINDS = (
    "weights", "gathered", "gradients", "optimizer", "activations", "logits", "buffers", "step", "slack", "process",
)  # fmt: skip


def show_plan(settings: RunSettings, console: Console) -> Forecast:
    """Print what a run will take; return it.

    Raises:
        DataFileError: if nobody can know what will be trained on, since the store is not there.
    """
    work, num_ids = find_workload(settings)
    if work is None:
        raise DataFileError(
            f"the token store of data={settings.data.name} is not there, and its size is not known; make it first: "
            f"python launch/prepare.py with the same settings"
        )
    shape = shape_for(settings, num_ids)
    found = forecast(settings, work, shape)
    for line in work_lines(found):
        console.print(line, soft_wrap=True, highlight=False)
    console.print()
    console.print(memory_table(settings, work, shape))
    for line in cost_lines(found):
        console.print(line, soft_wrap=True, highlight=False)
    return found


def work_lines(found: Forecast) -> list[str]:
    """Return what is trained on and what learns."""
    settings, work, shape = found.settings, found.work, found.shape
    learnt = shape.num_learnt(settings.adapter)
    about = "assumed, since the token store is not there" if work.is_assumed else "of the token store"
    share = "" if learnt == shape.num_parameters else f", {learnt:,} of them learnt"
    return [
        f"work     {work.careers_per_epoch:,} careers of {work.tokens_per_epoch / 1e6:,.2f} million tokens an epoch "
        f"({about})",
        f"         {work.num_steps:,} steps of {settings.batch.careers_per_step} careers; a step has about "
        f"{work.rows_per_step:.1f} rows of {work.row_length:,} tokens, {work.fill:.0%} full, in "
        f"{found.passes_per_step} pass{'' if found.passes_per_step == 1 else 'es'}",
        *_waiting(found),
        f"model    {settings.model.name}: {shape.num_parameters:,} parameters{share}",
        f"on       {settings.plan.num_gpus} x {settings.plan.gpu.name}, ZeRO-{settings.zero.stage} "
        f"{settings.zero.precision}, {settings.optimizer.kind}, base {settings.adapter.base}",
    ]


def _waiting(found: Forecast) -> list[str]:
    if found.busy > ENOUGH_BUSY:
        return []
    return [
        f"         {found.busy:.0%} of the GPUs' passes hold careers, the others wait; batch.row_length="
        f"{found.even_row_length} would give each a row (or more careers a step, or fewer GPUs)"
    ]


def memory_table(settings: RunSettings, work: Workload, shape: ModelShape) -> Table:
    """Return GiB of a GPU by kind, for the setting chosen and for the other ZeRO stages."""
    table = Table(title="Memory of a GPU, GiB", title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    columns = []
    table.add_column("")
    for stage in range(4):
        plain: dict[str, Any] = {"stage": stage}
        plain |= {"offload_weights": "none"} if stage != 3 else {}
        plain |= {"offload_optimizer": "none"} if stage == 0 else {}
        with contextlib.suppress(OutOfRange):  # a stage that does not go with the rest has no column
            zero = dataclasses.replace(settings.zero, **plain)
            columns.append(forecast(dataclasses.replace(settings, zero=zero), work, shape))
            chosen = " (chosen)" if stage == settings.zero.stage else ""
            table.add_column(f"ZeRO-{stage}{chosen}", justify="right")
    for kind in KINDS:
        sizes = [each.memory.device.get(kind, 0.0) / GIB for each in columns]
        if any(sizes):
            table.add_row(kind, *(f"{size:,.1f}" for size in sizes))
    table.add_row("together", *(f"{each.memory.total / GIB:,.1f}" for each in columns), style="bold")
    limit = f"of {settings.plan.gpu.memory_gib:,.1f}"
    table.add_row(limit, *("fits" if each.fits else "does not fit" for each in columns))
    if any(each.memory.host_total for each in columns):
        table.add_row("in the host's memory", *(f"{each.memory.host_total / GIB:,.1f}" for each in columns))
    return table


def cost_lines(found: Forecast) -> list[str]:
    """Return traffic, time and price, and what would fit where the setting does not."""
    gpu, num_gpus = found.settings.plan.gpu, found.settings.plan.num_gpus
    speed = found.work.tokens_per_step / found.seconds_per_step
    lines = [
        "",
        f"traffic  {found.traffic_bytes / GIB:,.1f} GiB a step and GPU",
        f"time     {found.seconds_per_step:.2f} s a step, {speed / num_gpus:,.0f} tokens/s and GPU at "
        f"{gpu.utilisation:.0%} of {gpu.bf16_tflops:,.0f} TFLOP/s (assumed); {found.hours:,.1f} hours, validation "
        "not counted",
        f"price    {found.dollars:,.0f} dollars at {gpu.dollars_per_hour:g} an hour and GPU",
    ]
    if found.fits:
        return [*lines, f"memory   fits: {found.memory.total / GIB:,.1f} of {gpu.memory_gib:,.1f} GiB"]
    return [
        *lines,
        f"memory   does not fit: {found.memory.total / GIB:,.1f} of {gpu.memory_gib:,.1f} GiB; {advice(found)}",
    ]


def advice(found: Forecast, *, process_bytes: float | None = None) -> str:
    """Return the nearest setting that fits."""
    nearest = nearest_that_fits(found, process_bytes=process_bytes)
    if nearest is None:
        return "no setting known here makes it fit; take a smaller model"
    names, other = nearest
    return f"with {' '.join(names)} it takes {other.memory.total / GIB:,.1f} GiB"


def check_memory(
    settings: RunSettings, plan: TrainingPlan, num_ids: int, capacity: Capacity, tell: Callable[[str], None]
) -> None:
    """Print the short form of the plan for the memory that is there.

    Raises:
        DoesNotFit: if it is not enough, unless settings.plan.go_on says to try.
    """
    there = dataclasses.replace(settings.plan.gpu, memory_gib=capacity.total / GIB)
    here = dataclasses.replace(settings.plan, num_gpus=plan.world_size, gpu=there)
    wanted = dataclasses.replace(settings, plan=here)
    shape = shape_for(settings, num_ids)
    found = forecast(wanted, known_workload(plan), shape, process_bytes=capacity.process)
    parts = ", ".join(
        f"{kind} {size / GIB:,.2f}" for kind, size in found.memory.device.items() if size >= 0.005 * found.memory.total
    )
    total = f"{found.memory.total / GIB:,.2f} of {capacity.total / GIB:,.2f} GiB"
    tell(f"plan: a rank needs about {total} ({parts})")
    if not found.fits and not settings.plan.go_on:
        raise DoesNotFit(
            f"a rank needs about {total}; {advice(found, process_bytes=capacity.process)}; to try all the same: "
            "plan.go_on=true"
        )
    in_host = found.memory.host_total
    if capacity.host is not None and in_host > capacity.host and not settings.plan.go_on:
        raise DoesNotFit(
            f"a rank offloads about {in_host / GIB:,.2f} GiB to its host, whose memory has {capacity.host / GIB:,.2f} "
            "GiB left for it; offload less, take more hosts, or zero.offload_optimizer=nvme; to try all the same: "
            "plan.go_on=true"
        )
