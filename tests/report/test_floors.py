"""Models that are worse than equal shares or the marginal are marked in the report, wherever its numbers are read."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from helpers.scores import report_on, write_scores, write_titles
from rich.console import Console

from laborllm_dist.report.write import terminal_tables
from laborllm_dist.tables.parquet import ScoreTableInfo
from laborllm_dist.tables.scores import read_score_table, write_score_table

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
