"""Outcomes, their AUC and their calibration: by hand on ten observations, and against scikit-learn."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import roc_auc_score

from laborllm_dist.report.bootstrap import ResampledPeople, draw_weights
from laborllm_dist.report.groupings import Grouping
from laborllm_dist.report.nonemployment import LaborStates
from laborllm_dist.report.outcomes import Outcome, OutcomeNumbers, list_outcomes, outcome_numbers, quantile_bins
from laborllm_dist.report.title_metrics import TitleFacts, facts_of_table
from laborllm_dist.tables.parquet import DistributionTable, ScoreTableInfo
from laborllm_dist.tables.title_distributions import TITLE_SCHEMA

CODES = ("1", "2", "U", "N")  # two occupations, unemployed, out of the labor force
STATES = LaborStates(("U",), ("N",), (), ())
# previous, observed, P(1), P(2), P(U), P(N); None: not scored individually.
ROWS: list[tuple[str | None, str, tuple[float | None, ...]]] = [
    (None, "1", (0.4, 0.3, 0.2, 0.1)),
    ("1", "1", (0.6, 0.2, 0.1, 0.1)),
    ("1", "U", (0.5, 0.1, 0.3, 0.1)),
    ("U", "N", (0.2, 0.2, 0.2, 0.4)),
    ("N", "2", (0.1, 0.3, 0.1, 0.5)),
    ("2", "1", (0.2, 0.4, 0.2, 0.1)),  # a tenth goes to texts that are no title
    ("1", "2", (0.7, 0.1, 0.1, 0.1)),
    ("2", "2", (0.1, 0.8, 0.05, 0.05)),
    ("2", "N", (0.2, 0.5, 0.1, 0.2)),
    ("N", "U", (0.1, 0.1, 0.4, 0.4)),
]
PREVIOUS, OBSERVED = [row[0] for row in ROWS], [row[1] for row in ROWS]
PEOPLE = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 2])


def facts(rows: Sequence[tuple[str | None, str, tuple[float | None, ...]]] = ROWS, bound: float = 0.0) -> TitleFacts:
    table = pa.Table.from_pylist(
        [
            {
                "survey": "S", "person": "1", "position": place, "occupation": observed,
                "mass": sum(share or 0 for share in shares), "bound": bound, "normalised": -1.0,
                "title": [None if share is None else math.log(share) for share in shares],
                "terminated": [None if share is None else math.log(share) for share in shares],
            }
            for place, (_, observed, shares) in enumerate(rows)
        ],
        schema=TITLE_SCHEMA,
    )  # fmt: skip
    described = DistributionTable(table, ScoreTableInfo("m", "test", "c", "0", {}), CODES)
    return facts_of_table("m", described, [row[0] for row in rows], STATES)


def outcomes(states: LaborStates = STATES, *models: TitleFacts) -> dict[str, Outcome]:
    listed = list_outcomes(models or (facts(),), PREVIOUS, OBSERVED, states)
    return {outcome.name: outcome for outcome in listed}


def resampled(num_draws: int = 60) -> ResampledPeople:
    return ResampledPeople(PEOPLE, 3, None, num_draws=num_draws, seed=3)


# Rows at risk, rows where it happened, probabilities of those at risk.
BY_HAND: dict[str, tuple[list[int], list[int], list[float]]] = {
    "becoming_unemployed": ([1, 2, 5, 6, 7, 8], [2], [0.1, 0.3, 0.2 / 0.9, 0.1, 0.05, 0.1]),
    "leaving_labor_force": ([1, 2, 3, 5, 6, 7, 8], [3, 8], [0.1, 0.1, 0.4, 0.1 / 0.9, 0.1, 0.05, 0.2]),
    "stopping_work": ([1, 2, 5, 6, 7, 8], [2, 8], [0.2, 0.4, 0.3 / 0.9, 0.2, 0.1, 0.3]),
    "changing_occupation": ([1, 5, 6, 7], [5, 6], [2 / 8, 2 / 6, 1 / 8, 1 / 9]),
    "moving": (
        [1, 2, 3, 4, 5, 6, 7, 8, 9], [2, 3, 4, 5, 6, 8, 9],
        [0.4, 0.5, 0.8, 0.5, 5 / 9, 0.3, 0.2, 0.5, 0.6],
    ),
    "top_title": (
        list(range(10)), [0, 1, 3, 7, 9],
        [0.4, 0.6, 0.5, 0.4, 0.5, 4 / 9, 0.7, 0.8, 0.5, 0.4],  # in the last row two titles are equal
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BY_HAND)
def test_risk_event_and_probability_are_those_of_a_hand_calculation(name: str) -> None:
    outcome, (at_risk, events, probabilities) = outcomes()[name], BY_HAND[name]
    assert np.flatnonzero(outcome.at_risk_N).tolist() == at_risk
    happened = np.zeros(10)
    happened[events] = 1
    if name == "top_title":
        happened[9] = 0.5
    assert outcome.event_MN[0, at_risk].tolist() == happened[at_risk].tolist()
    assert outcome.probability_MN[0, at_risk] == pytest.approx(probabilities)
    assert outcome.is_exact_MN.all()


@pytest.mark.parametrize("name", [name for name in BY_HAND if name != "top_title"])
def test_the_area_of_an_outcome_is_that_of_scikit_learn(name: str) -> None:
    at_risk, events, probabilities = BY_HAND[name]
    numbers = outcome_numbers(outcomes()[name], ["m"], (), resampled(), 4)
    auc = numbers.scores[0].auc
    assert auc is not None
    assert auc.value == pytest.approx(roc_auc_score([row in events for row in at_risk], probabilities))
    assert (numbers.num_observations, numbers.num_events) == (len(at_risk), len(events))
    assert numbers.num_people == 3


def test_outcomes_without_a_state_are_left_out() -> None:
    nobody = LaborStates((), (), (), ())
    assert list(outcomes(nobody)) == ["changing_occupation", "top_title"]
    unemployed = LaborStates(("U",), (), (), ())
    # Stopping work would be the same as becoming unemployed.
    assert list(outcomes(unemployed)) == ["becoming_unemployed", "changing_occupation", "moving", "top_title"]
    merged = LaborStates((), (), ("U",), ("N",))
    assert list(outcomes(merged)) == ["stopping_work", "changing_occupation", "moving", "top_title"]


def test_titles_that_were_not_scored_are_counted() -> None:
    rows = [(before, now, (*shares[:3], None)) for before, now, shares in ROWS if now != "N"]
    bounded = facts(rows, bound=0.1)
    listed = {
        outcome.name: outcome
        for outcome in list_outcomes((bounded,), [row[0] for row in rows], [row[1] for row in rows], STATES)
    }
    assert listed["becoming_unemployed"].is_exact_MN.all()
    assert not listed["leaving_labor_force"].is_exact_MN.any()
    changing = listed["changing_occupation"]
    assert changing.is_exact_MN[0, changing.at_risk_N].all()
    assert (~listed["moving"].is_exact_MN[0]).tolist() == [row[0] == "N" for row in rows]
    assert listed["top_title"].is_exact_MN.all()  # a tenth is left, and the most probable title has more
    # 0.1 is left, so P(unemployed) of row 1 is 0.1 / (0.9 + 0.1).
    assert listed["becoming_unemployed"].probability_MN[0, 1] == pytest.approx(0.1)


def made(num_rows: int, *, excess: float = 0.0) -> tuple[Outcome, ResampledPeople, np.ndarray, np.ndarray]:
    """Make an outcome of rows with probability p that happens with probability p + excess."""
    generator = np.random.default_rng(1)
    probability = generator.uniform(0, 0.9, num_rows)
    event = generator.random(num_rows) < probability + excess
    all_rows = np.ones(num_rows, dtype=bool)
    outcome = Outcome(
        "o", "O", "", all_rows, event[None].astype(float), probability[None], all_rows[None], has_auc=True
    )
    people = ResampledPeople(np.arange(num_rows) // 2, (num_rows + 1) // 2, None, num_draws=100, seed=1)
    return outcome, people, probability, event


@pytest.mark.parametrize("num_bins", [2, 5, 10])
def test_the_calibration_curve_is_that_of_scikit_learn(num_bins: int) -> None:
    outcome, people, probability, event = made(311)
    (curve,) = outcome_numbers(outcome, ["m"], (), people, num_bins).curves
    observed, predicted = calibration_curve(event, probability, n_bins=num_bins, strategy="quantile")
    assert [point.predicted for point in curve] == pytest.approx(predicted)
    assert [point.observed.value for point in curve] == pytest.approx(observed)
    assert sum(point.num_observations for point in curve) == 311


def test_equal_predictions_share_a_bin_and_no_bin_is_empty() -> None:
    assert quantile_bins(np.array([0.1, 0.1, 0.1, 0.1, 0.9]), 4).tolist() == [0, 0, 0, 0, 1]
    assert quantile_bins(np.full(5, 0.3), 10).tolist() == [0] * 5


def ece_of(probability: np.ndarray, event: np.ndarray, bins: np.ndarray, weights: np.ndarray) -> float:
    """Return the ECE by its definition, a bin at a time."""
    total = 0.0
    for number in set(bins.tolist()):
        inside = bins == number
        if weights[inside].sum():
            mean = np.average(probability[inside], weights=weights[inside])
            share = np.average(event[inside], weights=weights[inside])
            total += weights[inside].sum() * abs(mean - share)
    return total / float(weights.sum())


def noise_of(
    probability: np.ndarray, event: np.ndarray, bins: np.ndarray, weights: np.ndarray, all_rows: np.ndarray
) -> float:
    """Return the ECE of a resample around the curve of the sample."""
    total = 0.0
    for number in set(bins.tolist()):
        inside = bins == number
        excess = probability[inside] - event[inside]
        num_people = len(set((np.flatnonzero(inside) // 2).tolist()))
        around = (weights[inside] * (excess - np.average(excess, weights=all_rows[inside]))).sum()
        total += math.sqrt(num_people / (num_people - 1)) * abs(around)
    return total / float(weights.sum())


def grouped(labels: Sequence[str], group_of_row: np.ndarray) -> Grouping:
    return Grouping("gender", "By gender", "", tuple(labels), group_of_row)


def test_outcomes_are_reported_by_calendar_year_and_by_length_of_history() -> None:
    outcome, people, probability, event = made(200, excess=0.1)
    third = np.arange(200) % 3
    groupings = [Grouping(name, "", "", ("0", "1", "2"), third) for name in ("transition", "history", "year")]
    numbers = outcome_numbers(outcome, ["m"], groupings, people, 5)
    assert [grouping.name for grouping in numbers.groupings] == ["history", "year"]
    bins = quantile_bins(probability, 5)
    for grouping in numbers.groupings:
        for code, group in enumerate(grouping.groups):
            inside = third == code
            (score,) = group.scores
            assert score.auc is not None
            assert score.auc.value == pytest.approx(roc_auc_score(event[inside], probability[inside]))
            ece = ece_of(probability[inside], event[inside], bins[inside], np.ones(int(inside.sum())))
            assert score.ece.value == pytest.approx(ece)


def test_calibration_error_gaps_and_their_intervals_are_those_of_a_slow_bootstrap() -> None:
    outcome, people, probability, event = made(200, excess=0.1)
    group = (np.arange(200) % 3 == 0).astype(np.int64)  # the first is the larger one
    numbers = outcome_numbers(outcome, ["m"], [grouped(["men", "women"], group)], people, 5)
    bins = quantile_bins(probability, 5)
    (draws,) = draw_weights(100, num_draws=100, seed=1)
    row_weights = [np.ones(200), *(times[people.person_of_row] for times in draws)]
    eces = [ece_of(probability, event, bins, weights) for weights in row_weights]
    score = numbers.scores[0]
    assert score.ece.value == pytest.approx(eces[0])
    deviation = np.std(eces[1:], ddof=1)
    assert score.ece.std_error == pytest.approx(deviation)
    noise = [noise_of(probability, event, bins, weights, row_weights[0]) for weights in row_weights[1:]]
    assert score.ece_by_chance.value == pytest.approx(np.mean(noise))
    low, high = np.percentile(eces[1:], [2.5, 97.5]) - 2 * (np.mean(eces[1:]) - eces[0])
    assert score.ece.low == pytest.approx(max(0, min(low, eces[0] - np.percentile(noise, 97.5))))
    assert score.ece.high == pytest.approx(max(high, eces[0]))
    assert score.predicted_minus_observed.value == pytest.approx(probability.mean() - event.mean())
    (grouping,) = numbers.groupings
    men, women = grouping.groups
    assert grouping.largest_group == "men" and men.gaps == ()
    gaps = [
        ece_of(probability[group == 1], event[group == 1], bins[group == 1], weights[group == 1])
        - ece_of(probability[group == 0], event[group == 0], bins[group == 0], weights[group == 0])
        for weights in row_weights
    ]
    (gap,) = women.gaps
    assert gap.ece.value == pytest.approx(gaps[0])
    assert gap.ece.std_error == pytest.approx(np.std(gaps[1:], ddof=1))
    areas = [
        roc_auc_score(event[group == 1], probability[group == 1], sample_weight=weights[group == 1])
        - roc_auc_score(event[group == 0], probability[group == 0], sample_weight=weights[group == 0])
        for weights in row_weights
    ]
    assert gap.auc is not None and gap.auc.value == pytest.approx(areas[0])
    assert [gap.auc.low, gap.auc.high] == pytest.approx(np.percentile(areas[1:], [2.5, 97.5]))
    assert (women.num_people, women.num_observations, women.num_events) == (
        len(set(people.person_of_row[group == 1].tolist())), int((group == 1).sum()), int(event[group == 1].sum()),
    )  # fmt: skip


def test_the_error_by_chance_is_that_of_a_calibrated_model_whatever_the_model() -> None:
    # Two alike observations of each person: each pair of events is drawn once. Over many such samples the mean error of
    # the true probabilities is what chance gives; a model that is off by 0.2 has about the same chance.
    generator = np.random.default_rng(2)
    probability = np.repeat(generator.uniform(0.05, 0.6, 200), 2)
    people, all_rows = ResampledPeople(np.arange(400) // 2, 200, None, num_draws=40, seed=1), np.ones(400, dtype=bool)
    errors, by_chance = [], []
    for _ in range(100):
        event = (np.repeat(generator.random(200), 2) < probability).astype(float)
        predictions = np.stack([probability, probability + 0.2])
        exact = np.ones((2, 400), dtype=bool)
        outcome = Outcome("o", "O", "", all_rows, np.tile(event, (2, 1)), predictions, exact, has_auc=False)
        scores = outcome_numbers(outcome, ["true", "off"], (), people, 8).scores
        errors.append(scores[0].ece.value)
        by_chance.append([score.ece_by_chance.value for score in scores])
    assert np.mean(by_chance, axis=0) == pytest.approx([np.mean(errors)] * 2, rel=0.06)


@pytest.mark.parametrize("off", [0.0, 0.15])
def test_intervals_of_calibration_errors_and_gaps_cover_the_true_ones(off: float) -> None:
    # The smaller group's predictions are too high by `off` everywhere, those of the larger group are right.
    generator, covered = np.random.default_rng(3), np.zeros(4)
    group = (np.arange(800) // 2 % 4 == 0).astype(np.int64)
    all_rows = np.ones((1, 800), dtype=bool)
    for repetition in range(150):
        truth = np.repeat(generator.uniform(0.1, 0.6, 400), 2)
        event = (np.repeat(generator.random(400), 2) < truth).astype(float)
        outcome = Outcome("o", "O", "", all_rows[0], event[None], (truth + off * group)[None], all_rows, has_auc=False)
        people = ResampledPeople(np.arange(800) // 2, 400, None, num_draws=100, seed=repetition)
        numbers = outcome_numbers(outcome, ["m"], [grouped(["large", "small"], group)], people, 5)
        small = numbers.groupings[0].groups[1]
        for place, (interval, true_value) in enumerate(
            [
                (small.scores[0].ece, off), (small.gaps[0].ece, off), (small.gaps[0].squared_error, off**2),
                (small.gaps[0].predicted_minus_observed, off),
            ]
        ):  # fmt: skip
            assert interval.low is not None and interval.high is not None
            covered[place] += interval.low <= true_value <= interval.high
    # At least 87 % of 150: a binomial with p = .95 has fewer once in 20,000.
    assert (covered >= 130).all(), covered


def test_two_models_are_compared_on_the_same_resamples() -> None:
    other = facts([(before, now, shares[::-1]) for before, now, shares in ROWS])
    numbers = outcome_numbers(outcomes(STATES, facts(), other)["moving"], ["m", "other"], (), resampled(), 4)
    (pair,) = numbers.pairs
    first, second = (score.auc for score in numbers.scores)
    assert first is not None and second is not None and pair.auc is not None
    assert pair.auc.value == pytest.approx(first.value - second.value)
    same = outcome_numbers(outcomes(STATES, facts(), facts())["moving"], ["m", "same"], (), resampled(), 4).pairs[0]
    assert same.auc is not None and (same.auc.value, same.auc.low, same.auc.high) == (0, 0, 0)


def test_survey_weights_count_in_area_and_calibration() -> None:
    outcome, people, probability, event = made(200)
    weights = np.random.default_rng(4).uniform(0, 2, 200)
    weighted = ResampledPeople(people.person_of_row, 100, weights, num_draws=10, seed=1)
    numbers: OutcomeNumbers = outcome_numbers(outcome, ["m"], (), weighted, 5)
    auc = numbers.scores[0].auc
    assert auc is not None
    assert auc.value == pytest.approx(roc_auc_score(event, probability, sample_weight=weights))
    assert numbers.scores[0].ece.value == pytest.approx(
        ece_of(probability, event, quantile_bins(probability, 5), weights)
    )
