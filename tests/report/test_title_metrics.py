"""Reports on distributions over all titles: shares and ranks by hand, tables that do not belong together refused."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from helpers.errors import raises
from helpers.scores import CODES, report_on, title_rows, write_scores, write_titles
from rich.console import Console

from laborllm_dist.report.title_metrics import observed_ranks
from laborllm_dist.report.write import terminal_tables
from laborllm_dist.tables.parquet import DistributionTable, ScoreTableInfo


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


def test_a_title_that_was_not_told_apart_counts_as_if_it_stood_above() -> None:
    # 0.3 is left. It could be one title above 0.2, and three above 0.1, of which there are two.
    table = title_rows([(0.2, None, 0.5), (0.1, None, None), (0.4, None, 0.3), (0.2, 0.5, 0.3), (0.5, None, 0.2)],
                       [0.3, 0.3, 0.3, 0.0, 0.3])  # fmt: skip
    info = ScoreTableInfo("m", "test", "c", "0", {})
    np.testing.assert_array_equal(observed_ranks(DistributionTable(table, info, CODES)), [3, 3, 1, 3, 1])


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
