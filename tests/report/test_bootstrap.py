"""Resampled areas under ROC curves, sums and weighted means against scikit-learn, numpy and a simulation of coverage."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from laborllm_dist.report.bootstrap import (
    ResampledPeople,
    draw_weights,
    estimate,
    resample_auc,
    resample_means,
    resample_sums,
)


def population(
    num_people: int, num_rows: int, *, weighted: bool = False
) -> tuple[np.random.Generator, ResampledPeople]:
    generator = np.random.default_rng(0)
    person_of_row = np.sort(np.r_[np.arange(num_people), generator.integers(0, num_people, num_rows - num_people)])
    weights = generator.uniform(0, 3, num_rows) if weighted else None
    return generator, ResampledPeople(person_of_row, num_people, weights, num_draws=40, seed=7)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("decimals", [1, 2, 15])  # nearly everything tied; many ties; none
def test_the_area_is_that_of_scikit_learn_in_the_sample_and_in_every_resample(weighted: bool, decimals: int) -> None:
    generator, people = population(30, 400, weighted=weighted)
    event = generator.random(400) < 0.3
    scores = np.round(generator.random((2, 400)) + 0.3 * event, decimals)
    areas = resample_auc(scores, event, people)
    (draws,) = draw_weights(30, num_draws=40, seed=7)
    for number, times_drawn in enumerate([np.ones(30), *draws]):
        weights = times_drawn[people.person_of_row] * people.weights
        for model in range(2):
            expected = roc_auc_score(event, scores[model], sample_weight=weights)
            assert areas[model, number] == pytest.approx(expected, abs=1e-12)


def test_without_a_pair_of_event_and_other_there_is_no_area() -> None:
    _, people = population(5, 20)
    assert np.isnan(resample_auc(np.zeros((1, 20)), np.zeros(20, dtype=bool), people)).all()
    assert np.isnan(resample_auc(np.zeros((1, 20)), np.ones(20, dtype=bool), people)).all()
    # The events are one person's: resamples without that person have none.
    first = people.person_of_row == 0
    draws = resample_auc(np.arange(20.0)[None], first, people)[0, 1:]
    (times_drawn,) = draw_weights(5, num_draws=40, seed=7)
    assert np.array_equal(np.isnan(draws), (times_drawn[:, 0] == 0) | (times_drawn[:, 0] == 5))


def test_weighted_means_and_sums_are_those_of_numpy_in_every_resample() -> None:
    generator, people = population(30, 400, weighted=True)
    values, groups = generator.random((2, 400)), generator.integers(0, 3, 400)
    means = resample_means(values, groups[None], people)
    sums = resample_sums(values, groups, 3, people)
    (draws,) = draw_weights(30, num_draws=40, seed=7)
    for number, times_drawn in enumerate([np.ones(30), *draws]):
        weights = times_drawn[people.person_of_row] * people.weights
        for group in range(3):
            inside = groups == group
            expected = np.average(values[:, inside], weights=weights[inside], axis=1)
            mean = means.sample_MG[:, group] if number == 0 else means.draws_MGD[:, group, number - 1]
            assert mean == pytest.approx(expected)
            assert sums[:, group, number] == pytest.approx(values[:, inside] @ weights[inside])
    assert means.num_observations_G.tolist() == np.bincount(groups).tolist()


def test_equal_weights_change_no_bit() -> None:
    generator, people = population(30, 400)
    values, groups = generator.random((2, 400)), generator.integers(0, 3, (1, 400))
    weighted = ResampledPeople(people.person_of_row, 30, np.ones(400), num_draws=40, seed=7)
    plain, same = resample_means(values, groups, people), resample_means(values, groups, weighted)
    assert np.array_equal(plain.draws_MGD, same.draws_MGD) and np.array_equal(plain.sample_MG, same.sample_MG)


def test_the_standard_error_is_the_deviation_of_the_resamples() -> None:
    draws = np.array([1.0, np.nan, 3.0, 2.0])
    assert estimate(2.0, draws, num_people=3).std_error == pytest.approx(1.0)
    assert estimate(2.0, draws, num_people=1).std_error is None
    assert estimate(2.0, np.array([1.0, np.inf]), num_people=3).std_error is None


def test_intervals_of_an_area_cover_the_true_one() -> None:
    # Scores of events are N(1, 1), of others N(0, 1): the area is the normal distribution's value at 1 / sqrt(2), .7602.
    # People have five alike observations each, so intervals that took rows for independent would cover far less.
    generator, covered = np.random.default_rng(5), 0
    for repetition in range(300):
        event = np.repeat(generator.random(80) < 0.4, 5)
        score = np.repeat(generator.normal(size=80), 5) + event
        people = ResampledPeople(np.repeat(np.arange(80), 5), 80, None, num_draws=200, seed=repetition)
        areas = resample_auc(score[None], event, people)[0]
        interval = estimate(areas[0], areas[1:], num_people=80)
        assert interval.low is not None and interval.high is not None
        covered += interval.low <= 0.7602499 <= interval.high
    # 95 % of 300 are 285; a binomial with p = .95 is outside 272 to 295 once in 1,000.
    assert 272 <= covered <= 296
