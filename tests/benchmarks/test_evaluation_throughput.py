"""Scores beside other evaluators, on a run with random weights: their numbers agree, and everything is recorded."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from evaluation_throughput import HARNESS, OURS, Evaluators, measure_all, measure_bounded, measure_observed
from helpers.trained_runs import random_run
from records import RecordFile, summaries


@pytest.fixture
def evaluators(tmp_path: Path) -> Evaluators:
    file = RecordFile.begin("evaluation-throughput", "Scores", tmp_path / "results")
    return Evaluators.of(file, random_run(tmp_path), repeats=2, num_threads=1)


def test_all_titles_agree_with_a_scorer_of_single_titles_and_no_token_is_forwarded_twice(
    evaluators: Evaluators,
) -> None:
    alone = dataclasses.replace(evaluators, peer=None)
    measure_observed(alone, num_careers=2)
    measure_all(alone, num_observations=2, every=1)
    measure_bounded(alone, num_careers=1, tolerance=1e-3)
    rows = {(each.part, each.subject): each for each in summaries(alone.file.read()[2])}
    assert rows["agreement", "all titles, KV cache"].numbers["largest_difference_nats"].max < 1e-4
    assert rows["all titles", OURS].numbers["forwarded_tokens_over_distinct"].max == 1
    assert rows["all titles", OURS].numbers["observations_per_second"].repeats == 2
    assert rows["all titles", HARNESS].outcome == "skipped"
    bounded = rows["all titles, tolerance 0.001", "bounded"]
    assert bounded.numbers["within_bound_%"].min == 100
    speed = rows["observed titles", OURS].numbers
    # A core costs 0.05 dollars an hour in conf/gpu/cpu_core.yaml.
    dollars = 1e6 / speed["observations_per_second"].max / 3600 * 0.05
    assert speed["dollars_per_million_observations"].min == pytest.approx(dollars)


@pytest.mark.peers
def test_the_harness_agrees_on_observed_titles_and_on_a_share_of_all(evaluators: Evaluators) -> None:
    if evaluators.peer is None:
        pytest.skip("needs lm_eval: make peers")
    measure_observed(evaluators, num_careers=2)
    measure_all(evaluators, num_observations=1, every=2)
    rows = {(each.part, each.subject): each for each in summaries(evaluators.file.read()[2])}
    for part in ("observed titles", "all titles"):
        assert rows["agreement", f"{part}, {HARNESS}"].numbers["largest_difference_nats"].max < 1e-4
        ours, theirs = (rows[part, name].numbers["observations_per_second"] for name in (OURS, HARNESS))
        ratio = rows["goals", f"{part} / {HARNESS}"].numbers["ratio"].median
        assert ours.min / theirs.median <= ratio * 1.001
        assert ratio <= ours.max / theirs.median * 1.001
