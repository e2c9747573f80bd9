"""The nearest setting that fits: few changes, each needed, as they are typed."""

from __future__ import annotations

import dataclasses

import pytest
from helpers.runs import settings_of

from laborllm_dist.models.dims import shape_of
from laborllm_dist.planning.estimate import ResourceEstimate, budget_of_gpu, estimate_resources
from laborllm_dist.planning.suggestions import (
    better_max_seq_length,
    suggest_faster_config,
    suggest_fitting_config,
    to_overrides,
    with_changes,
)
from laborllm_dist.planning.workload import find_workload


def forecast_of(*overrides: str) -> ResourceEstimate:
    settings = settings_of(list(overrides))
    work, num_ids = find_workload(settings)
    return estimate_resources(
        settings, work, shape_of(settings.model, num_ids=num_ids), budget_of_gpu(settings.plan.gpu)
    )


SEVEN_ON_ONE = ["+experiment=pooled_7b", "plan.num_gpus=1"]
THIRTEEN_ON_TWO = [
    "+experiment=pooled_13b", "zero=stage2", "compute=default", "batch.micro_batch_size=4", "gpu@plan.gpu=l40s",
    "plan.num_gpus=2",
]  # fmt: skip


@pytest.mark.parametrize(
    ("overrides", "typed"),
    [
        (SEVEN_ON_ONE, "zero.offload_optimizer=cpu"),
        # Without room for the temporaries of torch's Adam, 8 bytes a weight: 50 of 183 GiB.
        ([*SEVEN_ON_ONE, "plan.gpu.host_memory_gib=150"], "zero.offload_optimizer=cpu optimizer.name=cpu_adamw"),
        # A host that has no room for it: a second GPU.
        ([*SEVEN_ON_ONE, "plan.gpu.host_memory_gib=50"], "plan.num_gpus=2"),
        (["+experiment=pooled_7b", "zero=stage2_bf16", "plan.num_gpus=1", "compute=default", "adapter=lora", "plan.gpu.memory_gib=8"],
         "compute.gradient_checkpointing=true adapter.quantization=nf4"),
    ],
)  # fmt: skip
def test_the_nearest_setting(overrides: list[str], typed: str) -> None:
    estimate = forecast_of(*overrides)
    assert not estimate.fits
    nearest = suggest_fitting_config(estimate)
    assert nearest is not None
    assert to_overrides(nearest[0]) == typed
    assert nearest[1].fits


@pytest.mark.parametrize("overrides", [SEVEN_ON_ONE, THIRTEEN_ON_TWO])
def test_every_change_is_needed_and_can_be_typed(overrides: list[str]) -> None:
    estimate = forecast_of(*overrides)
    nearest = suggest_fitting_config(estimate)
    assert nearest is not None
    change, other = nearest
    assert settings_of([*overrides, *to_overrides(change).split()]) == other.settings
    for path in change:
        fewer = with_changes(estimate.settings, {name: value for name, value in change.items() if name != path})
        if fewer is not None:
            assert not estimate_resources(fewer, estimate.work, estimate.shape, estimate.room).fits


def test_where_nothing_helps_nothing_is_named() -> None:
    assert suggest_fitting_config(forecast_of(*SEVEN_ON_ONE, "plan.gpu.memory_gib=1")) is None


def test_8_bit_moments_that_training_refuses_are_not_advised() -> None:
    # On two H200, 7B with 8-bit moments would fit at stage 2: 3.4 billion weights a rank, more than it can count.
    estimate = forecast_of("+experiment=pooled_7b", "zero=stage2_bf16", "plan.num_gpus=1", "plan.gpu.memory_gib=100")
    nearest = suggest_fitting_config(estimate)
    assert nearest is not None
    assert nearest[0].get("optimizer.name") != "adamw_8bit" or nearest[1].settings.zero.stage == 3


def test_offload_must_fit_the_host() -> None:
    offload = [*SEVEN_ON_ONE, "zero=stage3_bf16_offload", "optimizer.name=cpu_adamw"]
    assert forecast_of(*offload).fits
    little = forecast_of(*offload, "plan.gpu.host_memory_gib=50")
    assert (little.fits_device, little.fits_host, little.fits) == (True, False, False)


def test_rows_that_give_more_gpus_work() -> None:
    # 64 GPUs for 32 careers of 302 tokens: 151 tokens for each, but rows hold the longest career, 586.
    better = better_max_seq_length(forecast_of("+experiment=pooled_13b", "plan.num_gpus=64"))
    assert better is not None
    assert better[0] == 592
    # Seven rows for eight GPUs, or several rows a pass: nothing to say.
    assert better_max_seq_length(forecast_of("+experiment=pooled_13b")) is None
    assert better_max_seq_length(forecast_of("+experiment=quickstart", "plan.num_gpus=2")) is None


def test_fused_kernels_are_named_where_they_save_time_and_the_model_has_them() -> None:
    estimate = forecast_of("+experiment=pooled_13b")
    faster = suggest_faster_config(estimate)
    assert faster is not None
    assert to_overrides(faster[0]) == "compute.kernels=liger"
    assert faster[1].memory.total < estimate.memory.total
    masked = dataclasses.replace(estimate, shape=dataclasses.replace(estimate.shape, attention="mask"))
    assert suggest_faster_config(masked) is None
    assert suggest_faster_config(forecast_of("+experiment=pooled_13b", "compute.kernels=compiled")) is None
