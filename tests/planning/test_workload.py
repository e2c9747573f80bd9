"""What is trained on: lengths that are assumed, and passes as the packer lays them out, by hand."""

from __future__ import annotations

import dataclasses

import pytest
from helpers.errors import raises
from helpers.runs import settings_of

from laborllm_dist.config.run import BatchSettings, RunSettings
from laborllm_dist.planning.workload import Workload, assumed_plan, find_workload, passes_of, workload_of


def settings_for(*more: str) -> RunSettings:
    return settings_of(["+experiment=pooled_7b", *more])


def work_of(*steps: tuple[int, ...]) -> Workload:
    return Workload(1, 1.0, len(steps), steps, max(map(max, steps)), 1.0, is_assumed=False)


def test_three_rows_on_two_ranks_by_hand() -> None:
    # No two of 600 fit 1,024: three rows, as short as the longest career. Two passes of one row and 600 tokens each for
    # the rank with most: 1,200 tokens on each of two ranks for 1,800 of work.
    passes = passes_of(work_of((600, 600, 600)), BatchSettings(3, 1024, 1), num_ranks=2)
    assert (passes.num_rows, passes.num_passes, passes.max_seq_length, passes.rows_of_rank) == (3, 2, 600, 1)
    assert (passes.num_tokens, passes.slowest_tokens, passes.fill) == (1800, 1200, 1)
    assert passes.utilization(2) == 0.75


def test_rows_are_never_rounded_and_passes_are_a_mean() -> None:
    # Steps of two and of three rows on two ranks: one pass and two.
    work = work_of((500, 500), (500, 500, 500))
    passes = passes_of(work, BatchSettings(3, 512, 1), num_ranks=2)
    assert (passes.num_rows, passes.num_passes) == (2.5, 1.5)
    assert passes.slowest_tokens == (500 + 1000) / 2
    # With two rows a pass: one pass each, and the rank with two rows of three is waited for.
    both = passes_of(work, BatchSettings(3, 512, 2), num_ranks=2)
    assert (both.num_passes, both.rows_of_rank, both.slowest_tokens) == (1, 2, (500 + 1000) / 2)


def test_careers_tokens_and_steps_of_the_surveys_by_hand() -> None:
    workload, num_ids = find_workload(settings_for())
    assert num_ids == 32_000
    # 0.7 of 31,056 and 12,479 and 8,984 people: 21,739 + 8,735 + 6,289; 32 a step, 1,149 steps, three epochs.
    assert (workload.careers_per_epoch, workload.num_steps) == (36_763, 3 * 1_149)
    # Tokens of a person: 83 + 15.9 x lines, 313,622 and 259,778 and 148,795 of them in all.
    # 21,739 x 243.569 + 8,735 x 413.994 + 6,289 x 346.340 = 5,294,946 + 3,616,238 + 2,178,132.
    assert workload.tokens_per_epoch == pytest.approx(11_089_316, rel=1e-4)
    # The longest is of the NLSY79: 413.994 x (1 + 1.732 x 0.24) = 586.1.
    assert workload.longest_career == 586
    assert workload.is_assumed


def test_titles_of_one_token_each_make_a_line_of_four_tokens() -> None:
    """Year, education, title and line break; measured on two stores: 113.7 and 103.0 tokens of 22.3 and 19.7 lines."""
    workload, _ = find_workload(settings_of(["data=synthetic", "tokenizer=whole_titles"]))
    assert workload.tokens_per_epoch / workload.careers_per_epoch == pytest.approx(103.0, rel=0.01)


def test_lengths_have_the_spread_that_is_assumed() -> None:
    lengths = assumed_plan(settings_of(["+experiment=psid81_7b"])).lengths
    assert lengths.mean() == pytest.approx(243.57, rel=1e-3)
    assert lengths.std() == pytest.approx(0.24 * 243.57, rel=1e-3)
    # Half of E[length squared] over E[length]: 243.57 x (1 + 0.24^2) / 2.
    workload, _ = find_workload(settings_of(["+experiment=psid81_7b"]))
    assert workload.attended == pytest.approx(128.8, rel=1e-3)


def test_fractions_and_weights_count_as_in_training() -> None:
    workload = workload_of(
        assumed_plan(
            settings_for(
                "data.corpora.psid81.weight=0", "data.corpora.nlsy79.weight=1.5", "data.corpora.nlsy97.fraction=0.5"
            )
        ),
        is_assumed=True,
    )
    # 8,735 people one and a half times (to even: 13,102), and half of 6,288.8 people.
    assert workload.careers_per_epoch == 13_102 + 3_144
    with raises("data-file/no-training-people"):
        find_workload(settings_of(["+experiment=psid81_7b", "data.corpora.psid81.weight=0"]))


@pytest.mark.parametrize(
    ("more", "error"),
    [
        (
            ["batch.max_seq_length=580"],
            ("sequence-too-long/career-exceeds-row", "586", "580", "batch.max_seq_length=592"),
        ),
        (["template=titles_first"], ("data-file/unknown-corpus-size", "data=pooled")),
        (["template=last_10_lines"], ("data-file/unknown-corpus-size", "data=pooled")),
    ],
)
def test_what_nobody_can_plan_is_refused(more: list[str], error: tuple[str, ...]) -> None:
    with raises(*error):
        find_workload(settings_for(*more))


def test_a_step_holds_the_careers_that_training_takes() -> None:
    settings = settings_for()
    workload, plan = workload_of(assumed_plan(settings), is_assumed=True), assumed_plan(settings)
    assert [sum(step) for step in workload.steps[:5]] == [plan.step(step).packing.num_tokens for step in range(5)]
    eight = passes_of(dataclasses.replace(workload, steps=workload.steps[:5]), settings.batch, num_ranks=8)
    assert eight.num_passes == sum(len(plan.step(step).assignment.passes) for step in range(5)) / 5


def test_careers_that_are_cut_are_not_planned() -> None:
    settings = settings_for()
    cut = dataclasses.replace(settings, template=dataclasses.replace(settings.template, max_tokens=100))
    with raises("settings/truncation-in-training"):
        find_workload(cut)
