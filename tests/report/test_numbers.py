"""The numbers of a report against hand calculations and a slow bootstrap that repeats rows; models below a floor are marked."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from helpers.scores import report_on, write_scores, write_titles
from rich.console import Console

from laborllm_dist.config.evaluation import ReportSettings
from laborllm_dist.report.bootstrap import ResampledPeople, draw_weights, estimate, resample_means
from laborllm_dist.report.groupings import list_groupings
from laborllm_dist.report.load import ComparedScores, ScoredModel
from laborllm_dist.report.numbers import GroupingNumbers, ReportNumbers, analyze
from laborllm_dist.report.write import terminal_tables
from laborllm_dist.tables.parquet import ScoreTableInfo
from laborllm_dist.tables.scores import SCORE_SCHEMA, read_score_table, write_score_table

FACTS = pa.schema([field for field in SCORE_SCHEMA if field.name not in ("num_tokens", "title", "terminated")])

# A woman with one observation, another with two, a man with two. Nobody's region is known, nor his year of birth.
COLUMNS = ("person", "position", "year", "occupation", "previous", "gender", "birth_year")
ROWS: list[dict[str, Any]] = [
    dict(zip(COLUMNS, row, strict=True))
    for row in (
        ("a", 0, 1990, "1", None, "female", 1959),
        ("b", 0, 1990, "2", None, "female", 1960),
        ("b", 1, 1991, "2", "2", "female", 1960),
        ("c", 0, 1991, "1", None, "male", None),
        ("c", 1, 1992, "3", "1", "male", None),
    )
]
PEOPLE = np.array([0, 1, 1, 2, 2])
HALVES = np.log([1 / 2, 1 / 4, 1 / 8, 1 / 4, 1 / 2])


def observations(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist([{"survey": "PSID", **row} for row in rows], schema=FACTS)


def report_of(models: dict[str, np.ndarray], *, draws: int = 200) -> ReportNumbers:
    scored = tuple(ScoredModel(name, name == "truth", values, ()) for name, values in models.items())
    compared = ComparedScores(observations(ROWS), PEOPLE, 3, scored)
    return analyze(compared, ReportSettings(("run",), "test", None, "title", draws, 7))


def grouping(report: ReportNumbers, name: str) -> GroupingNumbers:
    return next(grouping for grouping in report.groupings if grouping.name == name)


def test_perplexity_is_two_to_the_mean_number_of_halvings() -> None:
    model = report_of({"m": HALVES}).models[0]
    assert model.perplexity.value == pytest.approx(2 ** ((1 + 2 + 3 + 2 + 1) / 5))
    assert model.mean_log_likelihood_nats.value == pytest.approx(-9 / 5 * math.log(2))
    assert (model.num_people, model.num_observations) == (3, 5)


def test_interval_is_that_of_a_bootstrap_that_repeats_the_rows_of_each_drawn_person() -> None:
    weights = np.concatenate(list(draw_weights(3, num_draws=200, seed=7)))
    perplexities = []
    for weight in weights:
        drawn = [HALVES[row] for row in range(5) for _ in range(int(weight[PEOPLE[row]]))]
        perplexities.append(math.exp(-math.fsum(drawn) / len(drawn)))
    model = report_of({"m": HALVES}).models[0]
    assert model.perplexity.low == pytest.approx(np.percentile(perplexities, 2.5))
    assert model.perplexity.high == pytest.approx(np.percentile(perplexities, 97.5))


def test_paired_difference_is_that_of_a_bootstrap_on_the_same_people() -> None:
    other = HALVES + np.array([-0.5, 0.3, 0.1, -0.2, 0.05])
    differences = []
    for weight in np.concatenate(list(draw_weights(3, num_draws=200, seed=7))):
        rows = [row for row in range(5) for _ in range(int(weight[PEOPLE[row]]))]
        differences.append(math.fsum(HALVES[row] - other[row] for row in rows) / len(rows))
    pair = report_of({"m": HALVES, "other": other}).pairs[0]
    assert pair.difference_nats.value == pytest.approx(0.25 / 5)
    assert pair.difference_nats.low == pytest.approx(np.percentile(differences, 2.5))
    assert pair.difference_nats.high == pytest.approx(np.percentile(differences, 97.5))
    assert pair.share_first_better == sum(difference > 0 for difference in differences) / 200
    assert pair.perplexity_ratio.value == pytest.approx(math.exp(-0.05))


def test_identical_models_differ_by_exactly_nothing() -> None:
    pair = report_of({"m": HALVES, "same": HALVES.copy()}).pairs[0]
    for difference in (pair.difference_nats, pair.perplexity_difference):
        assert (difference.value, difference.low, difference.high) == (0.0, 0.0, 0.0)
    assert (pair.perplexity_ratio.low, pair.perplexity_ratio.high) == (1.0, 1.0)
    assert pair.share_first_better == 0.5


def test_a_resample_draws_as_many_people_as_there_are_and_each_equally_often() -> None:
    weights = np.concatenate(list(draw_weights(50, num_draws=2000, seed=1)))
    assert weights.shape == (2000, 50)
    assert set(weights.sum(axis=1)) == {50.0}
    # A weight is binomial(50, 1/50) with variance .98, so a mean over 2,000 strays by more than .11 once in 1e6.
    assert np.abs(weights.mean(axis=0) - 1).max() < 0.12


def test_resamples_depend_on_the_seed_and_not_on_how_many_are_made_at_a_time() -> None:
    # Of 300,000 people few resamples fit in memory; nine are made in several pieces, two at once.
    chunks = list(draw_weights(300_000, num_draws=9, seed=1))
    assert len(chunks) > 1
    (at_once,) = draw_weights(300_000, num_draws=2, seed=1)
    assert np.array_equal(np.concatenate(chunks)[:2], at_once)
    assert sum(map(len, chunks)) == 9
    assert not np.array_equal(next(iter(draw_weights(300_000, num_draws=2, seed=2))), at_once)


def test_groups_are_those_of_a_hand_calculation() -> None:
    report = report_of({"m": HALVES})
    actual = {
        (each.name, group.group): (group.scores[0].perplexity.value, group.num_people, group.num_observations)
        for each in report.groupings
        for group in each.groups
    }
    expected = {
        ("transition", "first"): (2 ** (5 / 3), 3, 3),
        ("transition", "moving"): (2.0, 1, 1),
        ("transition", "staying"): (8.0, 1, 1),
        ("gender", "female"): (4.0, 2, 3),
        ("gender", "male"): (2**1.5, 1, 2),
        ("birth_decade", "1950s"): (2.0, 1, 1),
        ("birth_decade", "1960s"): (2**2.5, 1, 2),
        ("birth_decade", "not recorded"): (2**1.5, 1, 2),
        ("history", "0"): (2 ** (5 / 3), 3, 3),
        ("history", "1"): (4.0, 2, 2),
        ("year", "1990"): (2**1.5, 2, 2),
        ("year", "1991"): (2**2.5, 2, 2),
        ("year", "1992"): (2.0, 1, 1),
    }
    assert actual.keys() == expected.keys()  # no region, ethnicity, education (nowhere known), one survey only
    for key, (perplexity, num_people, num_observations) in expected.items():
        assert actual[key][0] == pytest.approx(perplexity)
        assert actual[key][1:] == (num_people, num_observations)


def test_groups_of_few_people_are_flagged_and_one_person_has_no_interval() -> None:
    men = grouping(report_of({"m": HALVES}), "gender").groups[1]
    assert men.group == "male" and men.few_people
    assert (men.scores[0].perplexity.low, men.scores[0].perplexity.high) == (None, None)


def test_absent_values_stand_last_and_are_not_a_recorded_group() -> None:
    groups = grouping(report_of({"m": HALVES}), "birth_decade").groups
    assert [(group.group, group.recorded) for group in groups][-1] == ("not recorded", False)
    assert all(group.recorded for group in groups[:-1])


def test_surveys_are_a_grouping_once_there_are_two() -> None:
    both = pa.Table.from_pylist([{**ROWS[0], "survey": "PSID"}, {**ROWS[1], "survey": "NLSY79"}], schema=FACTS)
    labels = {each.name: each.labels for each in list_groupings(both)}
    assert labels["survey"] == ("NLSY79", "PSID")
    assert "survey" not in {each.name for each in list_groupings(observations(ROWS))}


def test_distance_to_the_truth_is_the_mean_log_likelihood_lost() -> None:
    loss = np.array([0.1, 0.0, 0.4, 0.2, 0.3])
    truth, model = report_of({"truth": HALVES, "m": HALVES - loss}).models
    assert truth.true_model and not model.true_model
    assert truth.nats_to_truth is not None and truth.nats_to_truth.value == 0
    assert model.nats_to_truth is not None and model.nats_to_truth.value == pytest.approx(0.2)
    assert report_of({"m": HALVES}).models[0].nats_to_truth is None


def test_a_resample_without_the_group_does_not_count_in_its_interval() -> None:
    people = ResampledPeople(PEOPLE, 3, None, num_draws=400, seed=3)
    means = resample_means(HALVES[None], np.array([[0, 0, 0, 1, 1]]), people)
    weights = np.concatenate(list(draw_weights(3, num_draws=400, seed=3)))
    assert np.array_equal(np.isnan(means.draws_MGD[0, 1]), weights[:, 2] == 0)
    assert 0 < np.isnan(means.draws_MGD[0, 1]).sum() < 400
    spread = estimate(2.0, np.array([1.0, np.nan, 3.0]), num_people=2)
    assert [spread.low, spread.high] == pytest.approx([1.05, 2.95])


UNIFORM = "uniform over 10 titles"
MARGINAL = "the marginal shares"


def write_marginal(path: Path, halvings: list[float], num_titles: int | None = 10, name: str = "marginal") -> None:
    """Write scores as the baselines are written."""
    write_scores(path, name, halvings, num_tokens=0)
    table, info = read_score_table(path)
    details = {"baseline": "f", **({} if num_titles is None else {"num_titles": str(num_titles)})}
    write_score_table(table, ScoreTableInfo(info.model, info.split, info.careers, info.code, details), path)


def worse_than(*runs: Path) -> dict[str, list[str]]:
    summary = json.loads(report_on(*runs).summary.read_text())
    return {model["model"]: model["worse_than"] for model in summary["models"]}


# Ten titles: uniform is log2(10) = 3.32 halvings; the marginal has 3.
@pytest.mark.parametrize(("halvings", "missed"), [(2.9, []), (3.0, []), (3.1, [MARGINAL]), (3.4, [UNIFORM, MARGINAL])])
def test_a_model_is_held_against_uniform_and_marginal(halvings: float, missed: list[str], tmp_path: Path) -> None:
    write_scores(tmp_path / "scores/test.parquet", "llm", [halvings] * 5)
    write_marginal(tmp_path / "scores/test.marginal.parquet", [3.0] * 5)
    write_marginal(tmp_path / "scores/test.first_order.parquet", [4.0] * 5, name="first-order")
    assert worse_than(tmp_path) == {"llm": missed, "marginal": [], "first-order": [UNIFORM, MARGINAL]}


def test_page_and_terminal_say_it_of_the_models_concerned_only(tmp_path: Path) -> None:
    write_scores(tmp_path / "scores/test.parquet", "llm", [5.0] * 5)
    write_marginal(tmp_path / "scores/test.marginal.parquet", [3.0] * 5)
    result = report_on(tmp_path)
    page = result.page.read_text()
    assert page.count(f"worse than {UNIFORM} and {MARGINAL}") == 1
    assert "has learned nothing of use" in page
    screen = io.StringIO()
    Console(width=100, file=screen).print(*terminal_tables(result))
    assert f"llm is worse than {UNIFORM} and {MARGINAL}" in screen.getvalue()
    write_scores(tmp_path / "scores/test.parquet", "llm", [1.0] * 5)
    result = report_on(tmp_path)
    assert "worse than uniform" not in result.page.read_text()
    screen = io.StringIO()
    Console(width=100, file=screen).print(*terminal_tables(result))
    assert "worse than" not in screen.getvalue()


def test_the_number_of_titles_is_that_of_a_table_of_titles_where_no_comparator_says_it(tmp_path: Path) -> None:
    write_scores(tmp_path / "scores/test.parquet", "llm", [2.0] * 5)  # of three titles: uniform is 1.58 halvings
    write_marginal(tmp_path / "scores/test.marginal.parquet", [3.0] * 5, num_titles=None)
    assert worse_than(tmp_path) == {"llm": [], "marginal": []}
    write_titles(tmp_path / "scores/test_titles.parquet", "llm")
    of_three = "uniform over 3 titles"
    assert worse_than(tmp_path) == {"llm": [of_three], "marginal": [of_three]}


def test_a_model_named_marginal_is_no_floor(tmp_path: Path) -> None:
    write_scores(tmp_path / "scores/test.parquet", "marginal", [1.0] * 5)
    write_scores(tmp_path / "scores/test.other.parquet", "llm", [2.0] * 5)
    assert worse_than(tmp_path) == {"marginal": [], "llm": []}


def test_a_model_is_held_against_the_marginal_of_its_own_run(tmp_path: Path) -> None:
    for run, model, marginal in (("small", 3.5, 4.0), ("large", 2.5, 3.0)):
        write_scores(tmp_path / run / "scores/test.parquet", run, [model] * 5)
        write_marginal(tmp_path / run / "scores/test.marginal.parquet", [marginal] * 5, num_titles=None)
    missed = worse_than(tmp_path / "small", tmp_path / "large")
    assert (missed["small"], missed["large"]) == ([], [])
    assert missed["marginal (small)"] == []
    # A model whose run has no marginal of its own is held against the best one.
    write_scores(tmp_path / "alone/scores/test.parquet", "alone", [3.5] * 5)
    assert worse_than(tmp_path / "small", tmp_path / "large", tmp_path / "alone")["alone"] == [MARGINAL]
