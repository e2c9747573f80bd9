"""What a step costs: operations, bytes, seconds and dollars against numbers worked out by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from helpers.runs import settings_of

from laborllm_dist.config.run import RunSettings
from laborllm_dist.models.dims import KNOWN
from laborllm_dist.planning.estimate import budget_of_gpu, estimate_resources
from laborllm_dist.planning.throughput import (
    Calibration,
    Cost,
    Traffic,
    added_by_links,
    cost_of_step,
    excess_of_slowest,
    flops_per_token,
    forward_seconds_of_token,
    offload_seconds,
    traffic_of_step,
    update_seconds,
)
from laborllm_dist.planning.workload import Passes, Workload

SEVEN = KNOWN["meta-llama/Llama-2-7b-hf"]  # 6,738,415,616 weights
# A career of 300 tokens at a step: a token reaches 150 others.
WORK = Workload(10, 3_000.0, 10, ((300,),), 300, 150.0, is_assumed=False)

# Nothing but operations: no recomputation, memory traffic, exposed links, noise or update.
PLAIN = Calibration(0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0)


def passes(num_passes: int, slots: int) -> Passes:
    return Passes(num_passes, num_passes * slots, num_passes, num_passes * slots, 1.0, 512, 1, ((slots,) * num_passes,))


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


def test_operations_by_hand() -> None:
    # All weights but the input embedding and the norms: 6,738,415,616 - 131,072,000 - 266,240 = 6,607,077,376; six each.
    # Attention: 12 x 32 layers x 4,096 x 150 = 235,929,600.
    plain, lora = settings_for().adapter, settings_for("adapter=lora").adapter
    assert flops_per_token(SEVEN, plain, attended=150) == 39_878_393_856
    # LoRA of rank 16 on seven layers learns 39,976,960 weights: four for the base, six for these.
    assert flops_per_token(SEVEN, lora, attended=150) == 4 * 6_607_077_376 + 6 * 39_976_960 + 235_929_600


def seconds_for(calibration: Calibration, *more: str, num_passes: int = 1, slots: int = 1_000) -> float:
    gpu = [
        "plan.gpu.bf16_tflops=100", "plan.gpu.fp32_tflops=10", "plan.gpu.matmul_utilization=0.5",
        "plan.gpu.attention_utilization=0.1", "plan.gpu.memory_gigabytes_per_second=1000", "plan.num_gpus=1",
        "compute=default",
    ]  # fmt: skip
    return cost_of_step(SEVEN, settings_for(*gpu, *more), WORK, passes(num_passes, slots), calibration).seconds


@pytest.mark.parametrize(("precision", "seconds"), [("bf16", 0.81644224512), ("fp32", 8.1644224512)])
def test_seconds_of_computing_by_hand(precision: str, seconds: float) -> None:
    # 1,000 tokens: 39,642,464,256 operations at half of 100 and of 10 TFLOP/s, 235,929,600 of attention at a tenth:
    # .79284928512 + .0235929600.
    assert seconds_for(PLAIN, f"zero.precision={precision}") == pytest.approx(seconds)


def test_checkpointing_repeats_the_forward_of_the_layers() -> None:
    # 6,476,005,376 weights in layers: two operations each, at 50 TFLOP/s; a third of attention's .02359296 s.
    whole = dataclasses.replace(PLAIN, recomputation=1.0)
    again = 2 * 6_476_005_376 * 1_000 / 50e12 + 0.0235929600 / 3
    assert seconds_for(whole, "compute=large") - seconds_for(whole) == pytest.approx(again)


def test_kernels_beside_matrix_products_take_the_memorys_time() -> None:
    moving = dataclasses.replace(PLAIN, layer_bytes=100.0, unfused=2.0, vocabulary_bytes=50.0)
    # 100 x 2 bytes x 32 layers x 4,096 + 50 x 32,000 = 27,814,400 bytes a token at 1 TB/s; in fp32 twice as many.
    assert seconds_for(moving) - seconds_for(PLAIN) == pytest.approx(0.0278144)
    fp32 = "zero.precision=fp32"
    assert seconds_for(moving, fp32) - seconds_for(PLAIN, fp32) == pytest.approx(0.0556288)
    # Fused ones move 100 bytes in place of 200: 13,107,200 + 1,600,000.
    for source in ("liger", "compiled"):
        assert seconds_for(moving, f"compute.kernels={source}") - seconds_for(PLAIN) == pytest.approx(0.0147072)


def test_the_seconds_of_a_forward_by_hand() -> None:
    # 2 x 6,607,077,376 operations at half of 989 TFLOP/s; 78,643,200 of attention at a quarter.
    settings = settings_for("plan.gpu.matmul_utilization=0.5", "plan.gpu.attention_utilization=0.25")
    seconds = forward_seconds_of_token(SEVEN, settings, 150.0, "bf16", PLAIN)
    assert seconds == pytest.approx(13_214_154_752 / 494.5e12 + 78_643_200 / 247.25e12)


def test_the_update_reads_and_writes_the_ranks_share() -> None:
    updating = dataclasses.replace(PLAIN, update_bytes=40.0)
    settings = settings_for("plan.num_gpus=4", "plan.gpu.memory_gigabytes_per_second=2000")
    assert update_seconds(SEVEN, settings, updating) == pytest.approx(6_738_415_616 * 40 / 4 / 2e12)
    assert update_seconds(SEVEN, settings_for("zero=stage3_bf16_offload", "optimizer.name=cpu_adamw"), updating) == 0.0


def test_the_slowest_of_many_ranks_is_slower() -> None:
    assert excess_of_slowest(1) == pytest.approx(0.0, abs=1e-12)
    draws = np.random.default_rng(1).standard_normal((20_000, 64)).max(axis=1)
    assert excess_of_slowest(64) == pytest.approx(float(np.median(draws)), abs=0.02)
    noisy = dataclasses.replace(PLAIN, spread=0.01)
    assert seconds_for(noisy) == pytest.approx(seconds_for(PLAIN))


def test_a_small_model_takes_as_long_as_its_kernels_take_to_launch() -> None:
    # Two layers, three passes, a millisecond each.
    settings = settings_of(["plan.num_gpus=1"])
    tiny = dataclasses.replace(SEVEN, hidden_size=64, intermediate_size=192, num_layers=2, num_ids=512)
    cost = cost_of_step(tiny, settings, WORK, passes(3, 300), PLAIN)
    assert (cost.seconds, cost.is_launch_bound) == (pytest.approx(0.006), True)


@pytest.mark.parametrize(
    ("overlapped", "exposed", "added"),
    [
        (2.0, 0.0, 0.0),  # a second of traffic in each pass, which computes for two and three
        (8.0, 0.0, 3.0),  # four seconds in each: two and one longer than it computes
        (2.0, 0.5, 1.0),  # half of it shows
        (8.0, 0.5, 5.5),  # and half of the computing beside it: 3 + (2 + 3) / 2
    ],
)
def test_traffic_beside_computing_by_hand(overlapped: float, exposed: float, added: float) -> None:
    calibration = dataclasses.replace(PLAIN, exposed=exposed)
    assert added_by_links((2.0, 3.0), overlapped, 0.25, calibration) == added + 0.25


def test_links_of_a_step_by_hand() -> None:
    # Two ranks at ZeRO-2, one pass, not overlapped: an all-reduce of 4 bytes a weight and bf16 weights gathered, half
    # of each leaves a rank: 4 P + 1 P bytes at 450 GB/s, 135 + 135 + 135 hops of a microsecond.
    settings = settings_for("zero=stage2_bf16", "plan.num_gpus=2", "zero.overlap_comm=false")
    seconds = cost_of_step(SEVEN, settings, WORK, passes(1, 1_000), PLAIN).links
    assert seconds == pytest.approx(5 * 6_738_415_616 / 450e9 + 405e-6)


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
    estimate = estimate_resources(
        settings, dataclasses.replace(WORK, num_steps=1_800), SEVEN, budget_of_gpu(settings.plan.gpu)
    )
    cost = Cost(Traffic(0, 0), computing=1.0, is_launch_bound=False, links=0.5, updating=0.25, offloading=0.25)
    estimate = dataclasses.replace(estimate, cost=cost)
    assert estimate.hours == 1.0  # 1,800 steps of 2 seconds
    assert estimate.dollars == 10.0  # four GPUs at 2.50
    assert estimate.tokens_per_second == 37.5  # 300 tokens in 2 seconds on four GPUs
