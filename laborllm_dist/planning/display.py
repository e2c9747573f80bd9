"""Print the plan of a run in a terminal of 80 columns: launch/plan.py."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console

from laborllm_dist.config.run import RunSettings
from laborllm_dist.distributed.deepspeed_config import check_8bit
from laborllm_dist.errors import SettingsError
from laborllm_dist.io.console_tables import Column, FoldingTable
from laborllm_dist.models.dims import ModelShape, check_targets, shape_of
from laborllm_dist.planning.estimate import ResourceEstimate, budget_of_gpu, estimate_resources
from laborllm_dist.planning.memory import GIB, largest_stretch
from laborllm_dist.planning.simulator import ClusterRun, compare_num_gpus, simulate_run
from laborllm_dist.planning.suggestions import (
    better_max_seq_length,
    suggest_faster_config,
    suggest_fitting_config,
    to_overrides,
    with_changes,
)
from laborllm_dist.planning.throughput import LAYER_SECONDS
from laborllm_dist.planning.workload import Workload, find_held_out, find_workload

ENOUGH_BUSY = 0.75
KINDS = (
    "weights", "gathered", "gradients", "optimizer", "activations", "logits", "buffers", "step", "slack", "process",
)  # fmt: skip


def show_plan(settings: RunSettings, console: Console) -> ResourceEstimate:
    """Print the memory, time and price of a run; return the estimate.

    Raises:
        LaborError: if training would raise, as far as a plan can know, or the work or the model's shape is unknown.
    """
    work, num_ids = find_workload(settings)
    shape = shape_of(settings.model, num_ids=num_ids)
    check_plan(settings, work, shape)
    estimate = estimate_resources(settings, work, shape, budget_of_gpu(settings.plan.gpu))
    for line in (*work_lines(estimate), ""):
        console.print(line, soft_wrap=True, highlight=False, markup=False, emoji=False)
    console.print(memory_table(estimate))
    held_out = find_held_out(settings)
    run = simulate_run(estimate, held_out)
    for line in ("", *cost_lines(estimate), *run_lines(run), *memory_lines(estimate)):
        console.print(line, soft_wrap=True, highlight=False, markup=False, emoji=False)
    if numbers := settings.plan.compare_num_gpus:
        console.print()
        console.print(comparison_table(compare_num_gpus(estimate, held_out, numbers)))
    return estimate


def check_plan(settings: RunSettings, work: Workload, shape: ModelShape) -> None:
    """Raise the errors that training raises after its start, and if a step has more careers than an epoch.

    Raises:
        SettingsError: naming the setting.
        ModelError: if an adapter targets a layer that the model does not have.
    """
    if settings.batch.global_batch_size > work.careers_per_epoch:
        raise SettingsError(
            f"batch.global_batch_size is {settings.batch.global_batch_size:,}, an epoch has {work.careers_per_epoch:,} "
            "careers; set batch.global_batch_size to that or less",
            code="batch-exceeds-epoch",
        )
    if settings.adapter.kind == "lora":
        check_targets(settings.adapter.target_modules, shape.weights.linear)
    largest = largest_stretch(shape, settings.adapter, stage=settings.zero.stage, world_size=settings.plan.num_gpus)
    check_8bit(settings.optimizer, settings.zero, largest=largest)


def work_lines(estimate: ResourceEstimate) -> Iterator[str]:
    """Yield lines about the training data, the model and the hardware."""
    settings, work, passes, shape = estimate.settings, estimate.work, estimate.passes, estimate.shape
    num_trainable = shape.num_trainable(settings.adapter)
    about = "assumed: no store yet" if work.is_assumed else "token store"
    yield f"work     {work.careers_per_epoch:,} careers of {_tokens(work.tokens_per_epoch)} tokens an epoch ({about})"
    yield (
        f"         {work.num_steps:,} steps of {settings.batch.global_batch_size:,} careers: "
        f"{passes.num_rows:.1f} rows "
        f"of up to {passes.max_seq_length:,} tokens, {passes.fill:.0%} full"
    )
    share = "" if num_trainable == shape.num_parameters else f", {num_trainable:,} learned"
    yield f"model    {settings.model.name}: {shape.num_parameters:,} parameters{share}"
    base = "" if settings.adapter.quantization == "none" else f", base {settings.adapter.quantization}"
    kernels = "" if settings.compute.kernels == "plain" else f", {settings.compute.kernels} kernels"
    yield (
        f"on       {settings.plan.num_gpus} x {settings.plan.gpu.name}, ZeRO-{settings.zero.stage} "
        f"{settings.zero.precision}, {settings.optimizer.name}{base}{kernels}"
    )
    busy = f"passes   {passes.num_passes:.3g} a step; GPUs {estimate.utilization:.0%} busy"
    better = better_max_seq_length(estimate) if estimate.utilization <= ENOUGH_BUSY else None
    if estimate.utilization > ENOUGH_BUSY:
        yield busy
    elif better is None:
        yield f"{busy}: take more careers a step or fewer GPUs"
    else:
        yield f"{busy}: take more careers a step, fewer GPUs,"
        yield f"         or batch.max_seq_length={better[0]} for {better[1]:.0%}"


def _tokens(number: float) -> str:
    """Return a number of tokens; a small one in full, since 0.06 million says little."""
    return f"{number / 1e6:,.2f} million" if number >= 1e6 else f"{number:,.0f}"


def memory_table(estimate: ResourceEstimate) -> FoldingTable:
    """Return a table of a GPU's memory in GiB by kind, for the chosen and the other ZeRO stages."""
    columns = list(_other_stages(estimate))
    stages = [each.settings.zero.stage for each in columns]
    headings = [f"ZeRO-{stage}{' (chosen)' if stage == estimate.settings.zero.stage else ''}" for stage in stages]
    numbers = (Column(heading, "number") for heading in headings)
    table = FoldingTable((Column("", "name"), *numbers), title="Memory of a GPU, GiB", box=None, gap=2)
    for kind in KINDS:
        sizes = [each.memory.device.get(kind, 0.0) / GIB for each in columns]
        if any(size >= 0.05 for size in sizes):
            table.add_row(kind, *(f"{size:,.1f}" for size in sizes))
    table.add_row("together", *(f"{each.memory.total / GIB:,.1f}" for each in columns), style="bold")
    gpu = estimate.settings.plan.gpu
    table.add_row(f"of {gpu.memory_gib:,.1f}", *("fits" if each.fits_device else "does not fit" for each in columns))
    if any(each.memory.host_total for each in columns):
        table.add_row("on the host", *(f"{each.memory.host_total / GIB:,.1f}" for each in columns), style="bold")
        table.add_row(
            f"of {gpu.host_memory_gib:,.1f}", *("fits" if each.fits_host else "does not fit" for each in columns)
        )
    return table


def _other_stages(estimate: ResourceEstimate) -> Iterator[ResourceEstimate]:
    for stage in range(4):
        change: dict[str, Any] = {"zero.stage": stage}
        change |= {"zero.offload_param": "none"} if stage != 3 else {}
        change |= {"zero.offload_optimizer": "none"} if stage == 0 else {}
        settings = with_changes(estimate.settings, change)
        if settings is not None:  # a stage that conflicts with other settings has no column
            yield estimate_resources(settings, estimate.work, estimate.shape, estimate.room)


def cost_lines(estimate: ResourceEstimate) -> Iterator[str]:
    """Yield lines about traffic, the time of a step, and the speed, and settings that are much faster."""
    gpu, cost = estimate.settings.plan.gpu, estimate.cost
    if cost.traffic.total:
        yield f"traffic  {_size(cost.traffic.total)} a step and GPU"
    unit, each, digits = ("s", 1.0, 2) if cost.seconds >= 0.1 else ("ms", 1e3, 1)
    parts = {"computing": cost.computing, "links": cost.links, "update": cost.updating, "offload": cost.offloading}
    times = ", ".join(f"{name} {seconds * each:.{digits}f}" for name, seconds in parts.items() if seconds)
    yield f"time     {cost.seconds * each:.{digits}f} {unit} a step: {times}"
    peak = gpu.bf16_tflops if estimate.settings.zero.precision == "bf16" else gpu.fp32_tflops
    pace = f"matmul at {gpu.matmul_utilization:.0%} of {peak:,.4g} TFLOP/s"
    if cost.is_launch_bound:
        pace = f"kernels take {LAYER_SECONDS * 1e3:.0f} ms a layer to launch"
    yield f"speed    {estimate.tokens_per_second:,.0f} tokens/s and GPU; {pace} (planned)"
    faster = suggest_faster_config(estimate) if estimate.fits else None
    if faster is not None:
        change, other = faster
        yield from _indented(to_overrides(change), "faster")
        yield f"         {other.tokens_per_second:,.0f} tokens/s and GPU, {other.memory.total / GIB:,.1f} GiB"


def run_lines(run: ClusterRun) -> Iterator[str]:
    """Yield lines about the time and price of the whole run on its cluster."""
    plan = run.estimate.settings.plan
    low, half, high = run.hours
    spread = "" if high < 1.01 * low else f"80% of runs take {_duration(low)} to {_duration(high)}"
    price = f"{_price(run.dollars[1])} at {plan.gpu.dollars_per_hour:g} a GPU-hour (assumed)"
    yield f"run      {_duration(half)}; {price}"
    if spread:
        yield f"         {spread}"
    parts = {
        "steps": run.steps, "validation": run.validation, "start": run.start, "checkpoints": run.saving,
        "interruptions": run.lost + run.waiting, "scoring": run.scoring,
    }  # fmt: skip
    unit, each = ("hours", 1.0) if half >= 1 else ("minutes", 60.0)
    shown = ", ".join(f"{name} {hours * each:.1f}" for name, hours in parts.items() if hours * each >= 0.05)
    yield from _indented(f"{unit}: {shown}", "")
    best = run.best_checkpoint_steps
    if best is not None and best < run.estimate.work.num_steps:
        between = plan.cluster.gpu_hours_between_failures
        assert between is not None  # something fails where there is a best interval
        yield f"saves    a failure in {_duration(between / plan.num_gpus)} (assumed); least is lost with"
        yield f"         training.checkpoint_every_steps={best}"


def comparison_table(runs: Sequence[ClusterRun]) -> FoldingTable:
    """Return a table of the run on several numbers of GPUs."""
    headings = ("GPUs", "tokens/s", "busy", "links", "hours", "80% of runs", "failures", "dollars", "memory")
    columns = [Column(heading, "number") for heading in headings]
    cluster = runs[0].estimate.settings.plan.cluster.name
    table = FoldingTable(columns, title=f"Other numbers of GPUs, {cluster}; tokens/s of one", box=None)
    for run in runs:
        estimate, (low, half, high) = run.estimate, run.hours
        table.add_row(
            f"{estimate.settings.plan.num_gpus:,}", f"{estimate.tokens_per_second:,.0f}",
            f"{estimate.utilization:.0%}", f"{estimate.cost.links / estimate.cost.seconds:.0%}", f"{half:,.1f}",
            f"{low:,.1f}-{high:,.1f}", f"{run.num_failures:,.2f}", f"{run.dollars[1]:,.0f}",
            "fits" if estimate.fits else "too small",
        )  # fmt: skip
    return table


def memory_lines(estimate: ResourceEstimate) -> Iterator[str]:
    """Yield a line that says whether the run fits, and the nearest setting that fits if it does not."""
    verdict = f"{'fits' if estimate.fits else 'does not fit'}: {estimate.memory.total / GIB:,.1f} of "
    verdict += f"{estimate.room.total / GIB:,.1f} GiB"
    if estimate.memory.host_total and estimate.room.host is not None:
        verdict += f", {estimate.memory.host_total / GIB:,.1f} of {estimate.room.host / GIB:,.1f} on the host (assumed)"
    yield f"memory   {verdict}"
    if estimate.fits:
        return
    nearest = suggest_fitting_config(estimate)
    if nearest is None:
        yield "         no setting known here fits; take a smaller model"
        return
    change, other = nearest
    seconds = f"{other.cost.seconds:.2f} s a step"
    yield from _indented(to_overrides(change), "nearest")
    yield f"         fits: {other.memory.total / GIB:,.1f} GiB, {seconds}"


def _indented(text: str, heading: str) -> list[str]:
    """Wrap a text at 80 columns, without breaking a setting, so that it can be copied."""
    return textwrap.wrap(
        text, 80, initial_indent=f"{heading:<9}", subsequent_indent=" " * 9,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def _size(num_bytes: float) -> str:
    return f"{num_bytes / GIB:,.1f} GiB" if num_bytes >= GIB / 10 else f"{num_bytes / 2**20:,.1f} MiB"


def _duration(hours: float) -> str:
    units = {"hours": 1.0, "minutes": 1 / 60, "seconds": 1 / 3600}
    unit = next((name for name, size in units.items() if hours >= size), "seconds")
    return f"{hours / units[unit]:,.1f} {unit}"


def _price(dollars: float) -> str:
    if 0 < dollars < 0.01:
        return "under a cent"
    return f"{dollars:,.0f} dollars" if dollars >= 10 else f"{dollars:.2f} dollars"
