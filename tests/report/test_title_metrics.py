"""Reports on distributions over all titles: shares and ranks by hand, tables that do not belong together refused."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from helpers.errors import raises
from helpers.scores import CODES, report_on, title_rows, write_scores, write_titles
from rich.console import Console

from laborllm_dist.report.nonemployment import LaborStates
from laborllm_dist.report.title_metrics import facts_of_table
from laborllm_dist.report.write import terminal_tables
from laborllm_dist.tables.parquet import DistributionTable, ScoreTableInfo
from laborllm_dist.tables.scores import read_score_table, write_score_table
from laborllm_dist.tables.title_distributions import TITLE_SCHEMA

NO_STATES = LaborStates((), (), (), ())


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Give a run with an LLM that has distributions, and a baseline without tokens."""
    write_scores(tmp_path / "run/scores/test.parquet", "llm", [0, 1, 1, 2, 1])
    write_scores(tmp_path / "run/scores/test.marginal.parquet", "marginal", [3, 3, 3, 3, 3], num_tokens=0)
    write_titles(tmp_path / "run/scores/test_titles.parquet", "llm")
    return tmp_path / "run"


def test_shares_of_a_report_by_hand(run: Path) -> None:
    (numbers,) = report_on(run).titles
    assert numbers.model == "llm"
    assert numbers.valid_titles.value == pytest.approx((0.8 + 1 + 0.9 + 0.875 + 0.55) / 5)
    normalised = [0.5 / 0.8, 0.25, 0.25 / 0.9, 0.125 / 0.875, 0.25 / 0.55]
    assert numbers.normalised_perplexity.value == pytest.approx(math.prod(normalised) ** (-1 / 5))
    # The observed title is the most probable one after the first and the last prompt, the second, third, third else.
    assert (numbers.top_1.value, numbers.top_5.value, numbers.top_10.value) == (2 / 5, 1, 1)
    assert numbers.largest_bound == 0
    summary = json.loads((run / "report/summary.json").read_text())["titles"][0]
    assert summary["top_1"]["value"] == 0.4
    page = (run / "report/report.html").read_text()
    assert '<section id="titles">' in page
    assert "82.5\N{NO-BREAK SPACE}%" in page


def test_the_normalised_measure_takes_distributions_and_comparators_as_they_are(run: Path) -> None:
    models = {model.model: model.perplexity.value for model in report_on(run, measure="normalised").models}
    normalised = [0.5 / 0.8, 0.25, 0.25 / 0.9, 0.125 / 0.875, 0.25 / 0.55]
    assert models["llm"] == pytest.approx(math.prod(normalised) ** (-1 / 5))
    assert models["marginal"] == pytest.approx(16)  # 2 ** (3 + 1): terminated


def test_titles_of_one_probability_share_the_mean_of_their_ranks() -> None:
    table = title_rows([(0.2, 0.2, 0.2), (0.1, 0.4, 0.1), (0.4, 0.2, 0.2), (0.2, 0.4, 0.4), (0.4, 0.4, 0.2)], [0.0] * 5)
    described = DistributionTable(table, ScoreTableInfo("m", "test", "c", "0", {}), CODES)
    assert facts_of_table("m", described, [None] * 5, NO_STATES).rank_N.tolist() == [2, 2.5, 1, 3, 1.5]


def test_equal_distributions_have_equal_probabilities_to_the_last_bit() -> None:
    # A first-order model gives many observations one distribution: rounding must not rank them.
    shares = np.random.default_rng(0).dirichlet(np.ones(301))
    logs = np.log(shares).tolist()
    codes = tuple(map(str, range(301)))
    rows = [
        {
            "survey": "S", "person": str(number), "position": 0, "occupation": "0", "mass": 1.0, "bound": 0.0,
            "normalised": logs[0], "title": logs, "terminated": logs,
        }
        for number in range(97)
    ]  # fmt: skip
    described = DistributionTable(
        pa.Table.from_pylist(rows, schema=TITLE_SCHEMA), ScoreTableInfo("m", "test", "c", "0", {}), codes
    )
    states = LaborStates(codes[:3], codes[3:90], codes[90:94], codes[94:131])
    facts = facts_of_table("m", described, ["7"] * 97, states)
    for probability in (*facts.set_probability_SN, facts.previous_probability_N, facts.top_probability_N):
        assert len(set(probability.tolist())) == 1


def test_ranks_on_moves_by_hand(tmp_path: Path) -> None:
    # The observed title "1" has ranks 1, 2.5 (a tie), 3, 3, 1; its observations 1 and 4 follow another title.
    path = tmp_path / "run/scores/test.parquet"
    write_scores(path, "llm", [1] * 5)
    table, info = read_score_table(path)
    previous = pa.array([None, "2", None, None, "3"], pa.string())
    write_score_table(table.set_column(table.schema.get_field_index("previous"), "previous", previous), info, path)
    write_titles(tmp_path / "run/scores/test_titles.parquet", "llm")
    (numbers,) = report_on(tmp_path / "run").titles
    assert numbers.mrr.value == pytest.approx((1 + 1 / 2.5 + 1 / 3 + 1 / 3 + 1) / 5)
    assert numbers.moves_mrr is not None and numbers.moves_top_5 is not None and numbers.moves_top_10 is not None
    assert numbers.moves_mrr.value == pytest.approx((1 / 2.5 + 1) / 2)
    assert (numbers.moves_top_5.value, numbers.moves_top_10.value) == (1, 1)
    assert (numbers.num_moves, numbers.num_moving_people) == (2, 2)


def test_a_model_of_two_runs_has_its_titles_from_the_run_that_has_them(run: Path, tmp_path: Path) -> None:
    write_scores(tmp_path / "first/scores/test.parquet", "llm", [0, 1, 1, 2, 1])
    (numbers,) = report_on(tmp_path / "first", run).titles
    assert numbers.model == "llm"


def test_pairs_of_models_and_reports_without_moves(run: Path) -> None:
    write_scores(run / "scores/test.other.parquet", "other", [2] * 5)
    write_titles(run / "scores/test_titles.other.parquet", "other", weights="w-other")
    summary = json.loads(report_on(run).summary.read_text())
    (pair,) = summary["title_pairs"]
    assert (pair["first"], pair["second"], pair["mrr"]["value"], pair["moves_mrr"]) == ("llm", "other", 0, None)
    assert summary["titles"][0]["moves_mrr"] is None and summary["titles"][0]["num_moves"] == 0


def test_a_title_that_was_not_told_apart_counts_as_if_it_stood_above() -> None:
    # 0.3 is left. It could be one title above 0.2, and three above 0.1, of which there are two.
    table = title_rows([(0.2, None, 0.5), (0.1, None, None), (0.4, None, 0.3), (0.2, 0.5, 0.3), (0.5, None, 0.2)],
                       [0.3, 0.3, 0.3, 0.0, 0.3])  # fmt: skip
    info = ScoreTableInfo("m", "test", "c", "0", {})
    np.testing.assert_array_equal(
        facts_of_table("m", DistributionTable(table, info, CODES), [None] * 5, NO_STATES).rank_N, [3, 3, 1, 3, 1]
    )


def test_the_normalised_measure_without_distributions_is_refused(run: Path) -> None:
    (run / "scores/test_titles.parquet").unlink()
    assert report_on(run).titles == ()
    with raises("score-table/no-title-table", "'llm'"):
        report_on(run, measure="normalised")


@pytest.mark.parametrize(("model", "details"), [("other", {}), ("llm", {"weights": "changed"})])
def test_distributions_of_other_scores_are_refused(run: Path, model: str, details: dict[str, str]) -> None:
    write_titles(run / "scores/test_titles.parquet", model, **details)
    with raises("score-table/titles-of-other-scores", "test_titles.parquet"):
        report_on(run)


def test_the_terminal_table_of_all_titles_fits_80_columns(run: Path) -> None:
    screen = io.StringIO()
    Console(width=80, file=screen).print(terminal_tables(report_on(run))[1])
    # (0.625 x 0.25 x 0.2778 x 0.1429 x 0.4545) ** (-1 / 5) = 3.236
    assert " ".join(screen.getvalue().splitlines()[-2].split()) == "llm 82.5 % 3.236 40.0 % 100.0 % 100.0 %"
