"""FLOPs utilization as llm-foundry and torchtitan define it, and the roofline, by hand for Llama-2 7B."""

from __future__ import annotations

import dataclasses

import pytest
from gpu_suite.workload import settings_for, workload_of
from utilization import (
    Machine,
    Work,
    dollars_per_million,
    llm_foundry_flops,
    probe_cpu,
    roofline,
    torchtitan_flops,
    training_numbers,
)

from laborllm_dist.models.dims import KNOWN, CountedWeights, ModelShape

SEVEN = KNOWN["meta-llama/Llama-2-7b-hf"]  # 6,738,415,616 weights, 131,072,000 of them the embedding
H100 = Machine(flops=989e12, bandwidth=3.35e12, dollars_per_hour=3.6)
BF16 = ("zero=stage3_bf16",)


def test_operations_of_llama_2_7b_in_rows_of_4096_are_those_of_the_two_projects() -> None:
    attention = 12 * 32 * 4096 * 4096
    assert attention == 6_442_450_944
    assert llm_foundry_flops(SEVEN, 4096) == 6 * 6_738_415_616 + attention == 46_872_944_640
    assert llm_foundry_flops(SEVEN, 4096, recomputed=True) == 62_497_259_520
    assert torchtitan_flops(SEVEN, 4096) == 6 * 6_607_343_616 + attention == 46_086_512_640


def test_llm_foundrys_own_figure_of_7b_on_an_h100_comes_out() -> None:
    # Published for MPT-7B, 6,658,859,008 weights in 32 layers of 4,096: 10,643 tokens a second in rows of 2,048, 46.44 %.
    weights = CountedWeights(6_658_859_008, num_matmul_params=0, num_vectors=0, largest=0, linear={})
    mpt = dataclasses.replace(SEVEN, counted=weights)
    assert 100 * llm_foundry_flops(mpt, 2048) * 10_643 / 989e12 == pytest.approx(46.44, abs=0.05)
    # With gradient checkpointing in rows of 4,096, 8,611 tokens: 6,667,247,616 weights, MFU 40.42 and HFU 53.9 %.
    mpt = dataclasses.replace(SEVEN, counted=dataclasses.replace(weights, num_parameters=6_667_247_616))
    assert 100 * llm_foundry_flops(mpt, 4096) * 8_611 / 989e12 == pytest.approx(40.42, abs=0.05)
    assert 100 * llm_foundry_flops(mpt, 4096, recomputed=True) * 8_611 / 989e12 == pytest.approx(53.9, abs=0.05)


def test_figures_of_a_step_by_hand() -> None:
    settings = settings_for(SEVEN, *BF16, "compute=large")
    # Two rows of 4,096 slots hold four careers of 1,000 tokens; a step takes two seconds.
    work = Work(num_steps=1, slots=8192, row_length=4096, lengths=[1000] * 4)
    numbers = training_numbers(SEVEN, settings, work, 2.0, H100)
    assert numbers["tokens_per_second"] == 4096
    assert numbers["non_padding_tokens_per_second"] == 2000
    assert numbers["careers_per_second"] == 2
    assert numbers["padding_%"] == pytest.approx(100 * 4192 / 8192)
    assert numbers["MFU_%_llm-foundry"] == pytest.approx(100 * 46_872_944_640 * 4096 / 989e12)
    assert numbers["HFU_%_llm-foundry"] == pytest.approx(100 * 62_497_259_520 * 4096 / 989e12)
    assert numbers["MFU_%_torchtitan"] == pytest.approx(100 * 46_086_512_640 * 4096 / 989e12)
    # A token of a career of 1,000 attends to 500 on average; embeddings and norms are in no product.
    needed = 6 * 6_607_077_376 + 12 * 32 * 4096 * 500
    assert numbers["MFU_%_careers"] == pytest.approx(100 * needed * 2000 / 989e12)
    # 44 observations a second at 3.60 dollars an hour, which is a tenth of a cent a second.
    assert numbers["dollars_per_million_observations"] == pytest.approx(1e6 / 44 * 1e-3)


def test_an_adapter_has_no_utilization_by_formulas_that_train_all_weights() -> None:
    work = Work(1, 8192, 4096, [4000, 4000])
    numbers = training_numbers(SEVEN, settings_for(SEVEN, *BF16, "adapter=lora"), work, 2.0, H100)
    assert numbers["MFU_%_careers"] > 0
    assert not any("llm-foundry" in name or "torchtitan" in name for name in numbers)


def test_nothing_that_needs_the_limits_of_an_unknown_machine_is_given() -> None:
    numbers = training_numbers(SEVEN, settings_for(SEVEN, *BF16), Work(1, 8192, 4096, [4000, 4000]), 2.0, None)
    assert "tokens_per_second" in numbers
    assert not any("MFU" in name or "roofline" in name or "dollars" in name for name in numbers)


def test_the_roofline_is_that_of_arithmetic_where_memory_is_free_and_the_other_way_round() -> None:
    settings, work = settings_for(SEVEN, *BF16), Work(1, 4096, 4096, [4000])
    needed = 6 * 6_607_077_376 + 12 * 32 * 4096 * 2000
    arithmetic = roofline(SEVEN, settings, work, dataclasses.replace(H100, bandwidth=1e30))
    assert arithmetic == pytest.approx(989e12 / needed)
    memory = roofline(SEVEN, settings, work, dataclasses.replace(H100, flops=1e30))
    both = roofline(SEVEN, settings, work, H100)
    assert 1 / both == pytest.approx(1 / arithmetic + 1 / memory)
    assert roofline(SEVEN, settings, work, dataclasses.replace(H100, flops=1e30, bandwidth=6.7e12)) == pytest.approx(
        2 * memory
    )


def test_tied_embeddings_count_as_the_matrix_product_that_they_are() -> None:
    tied = ModelShape(8, 16, 1, 2, 2, 100, tied_embeddings=True)
    assert torchtitan_flops(tied, 10) == 6 * tied.num_parameters + 12 * 8 * 10
    untied = dataclasses.replace(tied, tied_embeddings=False)
    assert torchtitan_flops(untied, 10) == torchtitan_flops(tied, 10)


def test_the_work_of_steps_counts_slots_and_the_tokens_of_every_career() -> None:
    steps = [[[[1] * 5, [1] * 3], [[1] * 8]], [[[1] * 6], [[1] * 4]]]
    work = workload_of(steps, row_length=10)  # type: ignore[arg-type]
    assert (work.num_steps, work.slots, work.tokens) == (2, 40, 26)
    assert work.attended == pytest.approx((25 + 9 + 64 + 36 + 16) / 26 / 2)


def test_a_million_observations_cost_the_hours_they_take() -> None:
    assert dollars_per_million(1e6 / 7200, Machine(1, 1, dollars_per_hour=1.5)) == pytest.approx(3.0)


def test_a_probe_finds_limits() -> None:
    flops, bandwidth = probe_cpu()
    assert flops > 1e8
    assert bandwidth > 1e7
