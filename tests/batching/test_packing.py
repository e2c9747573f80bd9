"""Packing, sharding, order of careers, schedule: values that can be checked by hand or by brute force."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.errors import raises
from helpers.runs import settings_of
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import get_linear_schedule_with_warmup

from laborllm_dist.batching.batch import IGNORED, pack_batch
from laborllm_dist.batching.packing import assign_rows, pack_careers, pack_step
from laborllm_dist.batching.sampler import TrainingSampler
from laborllm_dist.batching.training_plan import TrainingPlan
from laborllm_dist.models.causal_lm import attention_mask
from laborllm_dist.training.lr_schedule import learning_rate_at
from laborllm_dist.training.step import peak_memory_gib


def order_of(num_careers: int, *, global_batch_size: int, seed: int) -> TrainingSampler:
    """Every career once an epoch."""
    return TrainingSampler(np.arange(num_careers), np.ones(num_careers), global_batch_size, seed)


LENGTHS = st.lists(st.integers(1, 50), min_size=1, max_size=60)


def first_fit_by_search(lengths: list[int], max_seq_length: int) -> list[list[int]]:
    """First-fit decreasing as its definition says, by looking at every row."""
    rows: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        for row in rows:
            if sum(lengths[member] for member in row) + lengths[index] <= max_seq_length:
                row.append(index)
                break
        else:
            rows.append([index])
    return rows


@settings(deadline=None)
@given(LENGTHS, st.integers(50, 120))
def test_packing_is_first_fit_decreasing(lengths: list[int], max_seq_length: int) -> None:
    plan = pack_careers(lengths, max_seq_length)
    assert [list(row) for row in plan.rows] == first_fit_by_search(lengths, max_seq_length)


@settings(deadline=None)
@given(LENGTHS, st.integers(50, 120))
def test_a_step_s_rows_are_as_few_and_not_longer(lengths: list[int], max_seq_length: int) -> None:
    step, widest = pack_step(lengths, max_seq_length), pack_careers(lengths, max_seq_length)
    assert sorted(career for row in step.rows for career in row) == list(range(len(lengths)))
    assert len(step.rows) == len(widest.rows)
    assert step.max_seq_length <= max_seq_length
    assert all(sum(lengths[career] for career in row) <= step.max_seq_length for row in step.rows)
    assert step.fill >= widest.fill


def test_a_career_longer_than_a_row_is_refused() -> None:
    with raises("sequence-too-long/career-exceeds-row", "1", "9", "8"):
        pack_careers([3, 9], 8)


@given(st.integers(0, 40), st.integers(1, 5), st.integers(1, 4))
def test_every_row_has_one_rank_and_all_ranks_make_equal_passes(rows: int, world: int, per_pass: int) -> None:
    plan = assign_rows(rows, world_size=world, micro_batch_size=per_pass)
    assert [row for ranks in plan.passes for members in ranks for row in members] == list(range(rows))
    assert all(len(ranks) == world for ranks in plan.passes)
    assert all(len(members) <= per_pass for ranks in plan.passes for members in ranks)
    assert len(plan.passes) == math.ceil(rows / (world * per_pass))


def test_peak_memory_is_the_one_the_system_has_seen() -> None:
    (line,) = (each for each in Path("/proc/self/status").read_text().splitlines() if each.startswith("VmHWM"))
    assert peak_memory_gib(torch.device("cpu")) == pytest.approx(int(line.split()[1]) / 2**20, rel=0.02)


def test_five_rows_on_two_ranks_by_hand() -> None:
    assert assign_rows(5, world_size=2, micro_batch_size=2).passes == (((0, 1), (2, 3)), ((), (4,)))


def test_an_epoch_takes_every_career_once_and_depends_on_seed_and_step_only() -> None:
    order = order_of(10, global_batch_size=4, seed=5)
    assert order.steps_per_epoch == 3
    epochs = [np.concatenate([order.careers_of_step(3 * epoch + at) for at in range(3)]) for epoch in range(3)]
    assert all(sorted(epoch.tolist()) == list(range(10)) for epoch in epochs)
    assert epochs[0].tolist() != epochs[1].tolist()
    again = order_of(10, global_batch_size=4, seed=5)
    np.testing.assert_array_equal(again.careers_of_step(7), order.careers_of_step(7))
    assert order.careers_of_step(2).tolist() != order_of(10, global_batch_size=4, seed=6).careers_of_step(2).tolist()


def test_a_batch_of_two_careers_by_hand() -> None:
    batch = pack_batch([[np.array([1, 5, 6], dtype=np.int32), np.array([1, 7], dtype=np.int32)]], 6)
    assert batch.token_ids_BT.tolist() == [[1, 5, 6, 1, 7, 0]]
    assert batch.positions_BT.tolist() == [[0, 1, 2, 0, 1, 0]]
    assert batch.lengths == (3, 2, 1)
    assert batch.scored_N.tolist() == [0, 1, 3]
    assert batch.scatter_to_slots(torch.tensor([-1.0, -2.0, -3.0])).tolist() == [[-1, -2, 0, -3, 0, 0]]
    assert batch.targets_BT.tolist() == [[5, 6, IGNORED, 7, IGNORED, IGNORED]]


def test_an_empty_pass_is_one_short_row_without_targets() -> None:
    batch = pack_batch([], 2048)
    assert batch.token_ids_BT.shape == (1, 8)
    assert (batch.targets_BT == IGNORED).all()
    assert batch.lengths == (8,)
    assert batch.scored_N.tolist() == []


def test_the_mask_by_its_definition() -> None:
    mask = attention_mask((2, 2, 1, 5), 5, torch.device("cpu"))
    assert mask.shape == (2, 1, 5, 5)
    stretches = [[0, 0, 1, 1, 2], [3, 3, 3, 3, 3]]
    for row, query, key in itertools.product(range(2), range(5), range(5)):
        assert bool(mask[row, 0, query, key]) == (key <= query and stretches[row][key] == stretches[row][query])


def test_the_learning_rate_by_hand() -> None:
    optimizer_settings = settings_of([
        "optimizer.learning_rate=1.0", "optimizer.warmup_ratio=0.2", "optimizer.lr_scheduler=linear",
        "optimizer.min_lr_ratio=0.1",
    ]).optimizer  # fmt: skip
    rates = [learning_rate_at(step, 10, optimizer_settings) for step in range(10)]
    # Two steps of warm-up towards the peak at step 2, then equal steps towards a tenth of it, had there been one more.
    assert rates == pytest.approx([1 / 3, 2 / 3, *(1 - 0.9 * at / 8 for at in range(8))])


@pytest.mark.parametrize("warmup_ratio", [0.0, 0.03, 0.5])
def test_linear_decay_is_transformers_and_the_last_step_learns(warmup_ratio: float) -> None:
    linear = settings_of(["optimizer=finetune", f"optimizer.warmup_ratio={warmup_ratio}"]).optimizer
    num_steps, num_warmup = 100, round(100 * warmup_ratio)
    adam = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=linear.learning_rate)
    schedule = get_linear_schedule_with_warmup(adam, num_warmup, num_steps)
    expected = []
    for _ in range(num_steps):
        expected.append(schedule.get_last_lr()[0])
        adam.step()
        schedule.step()
    rates = [learning_rate_at(step, num_steps, linear) for step in range(num_steps)]
    # transformers begins its warm-up with a step that learns nothing; here the first learns too.
    assert rates[num_warmup:] == pytest.approx(expected[num_warmup:])
    assert min(rates) > 0


def test_cosine_is_half_way_down_in_the_middle() -> None:
    optimizer_settings = settings_of(
        ["optimizer.learning_rate=2.0", "optimizer.warmup_ratio=0", "optimizer.min_lr_ratio=0"]
    ).optimizer
    assert learning_rate_at(50, 101, optimizer_settings) == pytest.approx(1.0)
    assert learning_rate_at(100, 101, optimizer_settings) == pytest.approx(0.0)


def test_validations_fall_at_even_places_and_at_the_end() -> None:
    run = settings_of(["training.epochs=2", "training.validations_per_epoch=2", "training.checkpoint_every_steps=3"])
    order = order_of(10, global_batch_size=2, seed=1)
    plan = TrainingPlan(
        order, np.full(10, 20), np.full(10, 5), np.full(10, 3), 20, run.batch, run.training, num_epochs=2,
        world_size=1, num_titles=9,
    )  # fmt: skip
    assert [step for step in range(1, 11) if plan.validates_after(step)] == [2, 5, 7, 10]
    assert [step for step in range(1, 11) if plan.saves_after(step)] == [2, 3, 5, 6, 7, 9, 10]
