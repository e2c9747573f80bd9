"""Suggest changes: the nearest setting that fits the memory, a faster one, a row length that keeps more GPUs busy."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from laborllm_dist.config.reader import OutOfRangeError
from laborllm_dist.config.run import RunSettings
from laborllm_dist.distributed.deepspeed_config import check_8bit
from laborllm_dist.errors import SettingsError
from laborllm_dist.planning.estimate import ResourceEstimate, estimate_resources
from laborllm_dist.planning.memory import largest_stretch
from laborllm_dist.planning.workload import passes_of, whole_granules

Change = Mapping[str, Any]  # new values by setting path
# A suggestion takes at most one change of each line. Earlier lines cost less: time, then precision, then hardware.
CHANGES: tuple[tuple[Change, ...], ...] = (
    ({"compute.gradient_checkpointing": True},),
    ({"batch.micro_batch_size": 1},),
    ({"zero.stage": 1}, {"zero.stage": 2}, {"zero.stage": 3}),
    ({"zero.precision": "bf16"},),
    (
        {"optimizer.name": "adamw_8bit"},
        {"zero.offload_optimizer": "cpu"},
        {"zero.offload_optimizer": "cpu", "optimizer.name": "cpu_adamw"},
    ),
    ({"zero.offload_param": "cpu"},),
)
MORE_GPUS: tuple[Change, ...] = tuple({"plan.num_gpus": number} for number in (2, 4, 8, 16, 32, 64))
# Trains other weights than the settings say: only if nothing else fits.
ADAPTERS: tuple[Change, ...] = ({"adapter.kind": "lora"}, {"adapter.kind": "lora", "adapter.quantization": "nf4"})
BETTER = 0.05  # share of the GPUs' time; a smaller gain is not worth a line
# Change speed and memory, and results by rounding only.
FASTER: tuple[tuple[Change, ...], ...] = (
    tuple({"compute.gradient_checkpointing": value} for value in (False, True)),
    tuple({"zero.stage": stage} for stage in (1, 2, 3)),
    tuple({"batch.micro_batch_size": number} for number in (1, 2, 4, 8, 16)),
    tuple({"compute.kernels": source} for source in ("plain", "liger")),
)


def suggest_fitting_config(
    estimate: ResourceEstimate, more_gpus: Sequence[Change] = MORE_GPUS
) -> tuple[Change, ResourceEstimate] | None:
    """Return the fewest changes with which a run fits, and its estimate; None if no changes suffice.

    Doubling the number of GPUs counts as one change.

    Args:
        estimate: the run that does not fit.
        more_gpus: possible changes of the number of GPUs.
    """
    choices = [*CHANGES, tuple(more_gpus)]
    if estimate.settings.model.path is not None:  # freezing randomly initialized weights makes no sense
        choices.append(ADAPTERS)
    for change in _nearest_first(estimate.settings, choices):
        settings = with_changes(estimate.settings, change)
        if settings is not None and _may_train(estimate, settings):
            other = estimate_resources(settings, estimate.work, estimate.shape, estimate.room)
            if other.fits:
                return change, other
    return None


def suggest_faster_config(estimate: ResourceEstimate) -> tuple[Change, ResourceEstimate] | None:
    """Return the changes with which a run that fits is fastest, and its estimate; None if nothing is much faster.

    Of settings that are equally fast, the one with fewest changes.
    """
    best: tuple[Change, ResourceEstimate] | None = None
    for picked in itertools.product(*FASTER):
        combined = itertools.chain.from_iterable(choice.items() for choice in picked)
        change = {path: value for path, value in dict(combined).items() if _value_of(estimate.settings, path) != value}
        settings = with_changes(estimate.settings, change)
        if settings is None or not _may_train(estimate, settings):
            continue
        if "compute.kernels" in change and estimate.shape.attention != "packed":
            continue  # models/kernels.py knows the types that packed attention does
        other = estimate_resources(settings, estimate.work, estimate.shape, estimate.room)
        if not other.fits:
            continue
        gain = 1.0 if best is None else best[1].cost.seconds / other.cost.seconds - 1
        if best is None or gain > 1e-3 or (gain > -1e-3 and len(change) < len(best[0])):
            best = change, other
    if best is None or estimate.cost.seconds / best[1].cost.seconds < 1 + BETTER:
        return None
    return best


def with_changes(settings: RunSettings, change: Change) -> RunSettings | None:
    """Return settings with a change; None if it conflicts with other settings."""
    groups: dict[str, dict[str, Any]] = {}
    for path, value in change.items():
        group, name = path.split(".")
        groups.setdefault(group, {})[name] = value
    try:
        new_groups = {
            group: dataclasses.replace(getattr(settings, group), **values) for group, values in groups.items()
        }
        return dataclasses.replace(settings, **new_groups)
    except OutOfRangeError:
        return None


def to_overrides(change: Change) -> str:
    """Return a change in the command line's syntax."""
    return " ".join(f"{path}={str(value).lower()}" for path, value in change.items())


def better_max_seq_length(estimate: ResourceEstimate) -> tuple[int, float] | None:
    """Return a row length that keeps more GPUs busy, and the busy share of their time; None if there is none.

    Rows are never shorter than the longest career. With several rows per pass, the packer already balances them.
    """
    batch, num_gpus = estimate.settings.batch, estimate.settings.plan.num_gpus
    if batch.micro_batch_size > 1:
        return None
    best, best_busy = batch.max_seq_length, estimate.utilization + BETTER
    for room in (1.0, 1.02, 1.05, 1.1, 1.2):  # one row per GPU, with some slack for careers that do not fit evenly
        length = whole_granules(max(estimate.work.longest_career, room * estimate.passes.num_tokens / num_gpus))
        if length < batch.max_seq_length:
            passes = passes_of(estimate.work, dataclasses.replace(batch, max_seq_length=length), num_ranks=num_gpus)
            if passes.utilization(num_gpus) > best_busy:
                best, best_busy = length, passes.utilization(num_gpus)
    return None if best == batch.max_seq_length else (best, best_busy)


def _nearest_first(settings: RunSettings, choices: Sequence[Sequence[Change]]) -> Iterator[Change]:
    """Yield all combinations of these choices: without an adapter first, then fewest changes, then cheapest."""
    ranked: list[tuple[bool, int, list[int], int, Change]] = []
    for picked in itertools.product(*([{}, *_reducing_changes(settings, choice)] for choice in choices)):
        combined: dict[str, Any] = functools.reduce(lambda one, other: {**one, **other}, picked, {})
        taken = [number for number, change in enumerate(picked) if change]
        num_changes = len(taken)
        if "plan.num_gpus" in combined:  # each doubling is one change
            num_changes += math.ceil(math.log2(combined["plan.num_gpus"] / settings.plan.num_gpus)) - 1
        ranked.append(("adapter.kind" in combined, num_changes, taken[::-1], len(ranked), combined))
    return (combined for *_, combined in sorted(ranked, key=lambda each: each[:4]) if combined)


def _reducing_changes(settings: RunSettings, choice: Sequence[Change]) -> list[Change]:
    """Return the effective changes, without steps back to a lower stage or fewer GPUs."""
    effective: list[Change] = []
    for change in choice:
        new: dict[str, Any] = {}
        for path, value in change.items():
            now = _value_of(settings, path)
            is_back = path in ("zero.stage", "plan.num_gpus") and value < now
            new |= {} if value == now or is_back else {path: value}
        effective += [new] if new else []
    return effective


def _value_of(settings: RunSettings, path: str) -> Any:
    group, name = path.split(".")
    return getattr(getattr(settings, group), name)


def _may_train(estimate: ResourceEstimate, settings: RunSettings) -> bool:
    largest = largest_stretch(
        estimate.shape, settings.adapter, stage=settings.zero.stage, world_size=settings.plan.num_gpus
    )
    try:
        check_8bit(settings.optimizer, settings.zero, largest=largest)
    except SettingsError:
        return False
    return True
