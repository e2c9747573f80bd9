"""What a step costs: operations, bytes, seconds and dollars against numbers worked out by hand."""

from __future__ import annotations

import dataclasses

import pytest
from helpers.runs import settings_of

from laborllm_dist.config.run import RunSettings
from laborllm_dist.models.dims import KNOWN
from laborllm_dist.planning.estimate import budget_of_gpu, forecast
from laborllm_dist.planning.throughput import (
    Cost,
    Traffic,
    cost_of_step,
    flops_per_token,
    link_speed,
    offload_seconds,
    traffic_of_step,
)
from laborllm_dist.planning.workload import Passes, Workload

SEVEN = KNOWN["meta-llama/Llama-2-7b-hf"]  # 6,738,415,616 weights
# A career of 300 tokens at a step: a token reaches 150 others.
WORK = Workload(10, 3_000.0, 10, ((300,),), 300, 150.0, is_assumed=False)


def passes(num_passes: float, slowest_tokens: float) -> Passes:
    return Passes(num_passes, slowest_tokens, num_passes, slowest_tokens, 1.0, 512, 1)


def settings_for(*more: str) -> RunSettings:
    return settings_of(["+experiment=pooled_7b", *more])


@pytest.mark.parametrize(
    ("zero", "num_passes", "num_bytes"),
    [
        # P weights on 4 ranks, each of which sends 3/4 of a reduction to shards or a gathering.
        ("stage0", 3, 40_430_493_696),  # 3/4 x 2 x 4 P = 6 P
        ("stage1", 3, 60_645_740_544),  # and fp32 weights gathered: 6 P + 3/4 x 4 P = 9 P
        ("stage2", 1, 60_645_740_544),  # the same with one pass
        ("stage2_bf16", 3, 131_399_104_512),  # three reductions, bf16 weights: 18 P + 3/4 x 2 P = 19.5 P
        # Reduced to shards: 3/4 x 4 P = 3 P. Gathered twice but for 500 million weights: 3/4 x 2 x (2 P - 500 million).
        ("stage3_bf16", 1, 39_680_493_696),  # 3 P + 3 P - 750 million
        ("stage3_bf16", 2, 79_360_987_392),  # twice that
    ],
)
def test_traffic_by_hand(zero: str, num_passes: int, num_bytes: int) -> None:
    settings = settings_for(f"zero={zero}", "plan.num_gpus=4")
    assert traffic_of_step(SEVEN, settings, num_passes).total == pytest.approx(num_bytes, rel=1e-12)


def test_one_gpu_sends_nothing() -> None:
    assert traffic_of_step(SEVEN, settings_for("plan.num_gpus=1"), 3) == Traffic(0.0, 0.0)


@pytest.mark.parametrize(("stage", "moved"), [(0, 0.0), (1, 0.0), (2, 2 * 2 * 4.0), (3, 2 * 4.0)])
def test_overlapping_reductions_are_not_waited_for(stage: int, moved: float) -> None:
    apart, beside = (
        traffic_of_step(SEVEN, settings_for(f"zero.stage={stage}", "plan.num_gpus=2", f"zero.overlap_comm={each}"), 2)
        for each in ("false", "true")
    )
    assert beside.total == apart.total
    # Half of a reduction's bytes leave a rank of two; stage 2 reduces everywhere, stage 3 to the owner; two passes.
    assert beside.overlapped - apart.overlapped == moved * SEVEN.num_parameters / 2


def test_an_adapter_sends_its_own_gradients_and_gathers_its_base() -> None:
    adapter = ["adapter=lora", "adapter.rank=8", "adapter.target_modules=[q_proj,v_proj]"]  # 4,194,304 weights
    stage_2 = settings_for(*adapter, "zero=stage2_bf16", "plan.num_gpus=2")
    assert traffic_of_step(SEVEN, stage_2, 1).total == 4_194_304 * (2 * 4 + 2) / 2
    stage_3 = settings_for(*adapter, "plan.num_gpus=2", "zero.overlap_comm=false")
    assert traffic_of_step(SEVEN, stage_3, 1).exposed == 4_194_304 * 4 / 2
    # 6,742,609,920 weights in bf16, to and fro but for 500 of 6,738 million, half of it.
    assert traffic_of_step(SEVEN, stage_3, 1).overlapped == pytest.approx(6_742_609_920 * (2 - 0.0742014), rel=1e-6)


@pytest.mark.parametrize(
    ("gpu", "num_gpus", "gigabytes"),
    [
        ("h100", 8, 450),  # NVLink
        ("h100", 16, 400),  # two hosts: eight adapters of 50
        ("h100", 12, 300),  # two hosts of six
        ("a100_80gb", 64, 200),  # eight adapters of 25
        ("l40s", 16, 32),  # PCIe is narrower than eight adapters
    ],
)
def test_links_by_hand(gpu: str, num_gpus: int, gigabytes: float) -> None:
    assert link_speed(settings_for(f"gpu@plan.gpu={gpu}").plan.gpu, num_gpus) == gigabytes * 1e9


def test_operations_by_hand() -> None:
    # All weights but the input embedding and the norms: 6,738,415,616 - 131,072,000 - 266,240 = 6,607,077,376; six each.
    # Attention: 12 x 32 layers x 4,096 x 150 = 235,929,600.
    plain, lora = settings_for().adapter, settings_for("adapter=lora").adapter
    assert flops_per_token(SEVEN, plain, attended=150) == 39_878_393_856
    # LoRA of rank 16 on seven layers learns 39,976,960 weights: four for the base, six for these.
    assert flops_per_token(SEVEN, lora, attended=150) == 4 * 6_607_077_376 + 6 * 39_976_960 + 235_929_600


@pytest.mark.parametrize(("precision", "seconds"), [("bf16", 0.79756787712), ("fp32", 7.9756787712)])
def test_seconds_of_computing_by_hand(precision: str, seconds: float) -> None:
    # 1,000 tokens x 39,878,393,856 operations at half of 100 and of 10 TFLOP/s.
    gpu = ["plan.gpu.bf16_tflops=100", "plan.gpu.fp32_tflops=10", "plan.gpu.utilization=0.5", "plan.num_gpus=1"]
    cost = cost_of_step(SEVEN, settings_for(*gpu, f"zero.precision={precision}"), WORK, passes(1, 1_000))
    assert cost.seconds == pytest.approx(seconds)


def test_a_small_model_takes_as_long_as_its_kernels_take_to_launch() -> None:
    # Two layers, three passes, a millisecond each.
    settings = settings_of(["plan.num_gpus=1"])
    tiny = dataclasses.replace(SEVEN, hidden_size=64, intermediate_size=192, num_layers=2, num_ids=512)
    assert cost_of_step(tiny, settings, WORK, passes(3, 1_000)).seconds == pytest.approx(0.006)


def test_gathers_run_beside_computing_and_the_rest_is_waited_for() -> None:
    cost = Cost(Traffic(0, 0), working=2.0, kernel_launch=1.0, gathering=3.0, waiting=0.5, offloading=0.25)
    assert (cost.computing, cost.links, cost.seconds) == (2.0, 1.5, 3.75)
    assert dataclasses.replace(cost, gathering=1.0).seconds == 2.75


def test_seconds_of_offload_by_hand() -> None:
    offload = ["zero=stage3_bf16_offload", "optimizer.name=cpu_adamw"]
    # Over PCIe, 64 GB/s: gradients there, back, there (12 bytes a weight), new weights back (2): 14 P = 94.338 GB.
    # Adam in the host's memory, 60 GB/s: 28 bytes and 2: 30 P = 202.152 GB.
    expected = 94.337818624 / 64 + 202.15246848 / 60
    assert offload_seconds(SEVEN, settings_for(*offload, "plan.num_gpus=1"), 2) == pytest.approx(expected)
    assert offload_seconds(SEVEN, settings_for(*offload, "plan.num_gpus=2"), 2) == pytest.approx(expected / 2)
    # torch's Adam: 80 bytes and 2.
    torchs = expected + 52 * 6.738415616 / 60
    assert offload_seconds(SEVEN, settings_for("zero=stage3_bf16_offload", "plan.num_gpus=1"), 2) == pytest.approx(
        torchs
    )
    # Disks, 3 GB/s: gradient, weight and two moments of 4 bytes there and back: 32 P = 215.629 GB.
    nvme = ["zero.offload_optimizer=nvme", "zero.nvme_path=/nvme", "plan.num_gpus=1"]
    assert offload_seconds(SEVEN, settings_for(*offload, *nvme), 2) == pytest.approx(expected + 215.629299712 / 3)
    # Weights in the host's memory: 2 bytes, gathered twice but for 500 million.
    weights = ["zero.offload_param=cpu", "plan.num_gpus=1"]
    assert offload_seconds(SEVEN, settings_for(*weights), 1) == pytest.approx(2 * (2 * 6.738415616 - 0.5) / 64)


def test_hours_dollars_and_speed_by_hand() -> None:
    settings = settings_for("plan.num_gpus=4")
    estimate = forecast(settings, dataclasses.replace(WORK, num_steps=1_800), SEVEN, budget_of_gpu(settings.plan.gpu))
    cost = Cost(Traffic(0, 0), working=2.0, kernel_launch=0.0, gathering=0.0, waiting=0.0, offloading=0.0)
    estimate = dataclasses.replace(estimate, cost=cost)
    assert estimate.hours == 1.0  # 1,800 steps of 2 seconds
    assert estimate.dollars == 10.0  # four GPUs at 2.50
    assert estimate.tokens_per_second == 37.5  # 300 tokens in 2 seconds on four GPUs
