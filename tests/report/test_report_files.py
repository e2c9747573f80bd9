"""Score files in, report files out: what is found, what is refused, what is written."""

from __future__ import annotations

import base64
import csv
import hashlib
import html
import io
import json
import math
import re
from pathlib import Path

import pytest
from helpers.errors import raises
from helpers.scores import KEYS, report_on, step, write_metrics, write_scores
from rich.console import Console

from laborllm_dist.io.number_format import (
    format_nats,
    format_perplexity,
    format_probability,
    format_share,
    format_signed_perplexity,
)
from laborllm_dist.report.load import compare_runs
from laborllm_dist.report.write import ReportResult, terminal_tables


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Give a run with an LLM of perplexity 4 and a baseline of perplexity 8."""
    write_scores(tmp_path / "run/scores/test.parquet", "llm", [1, 2, 2, 3, 2])
    write_scores(tmp_path / "run/scores/test.marginal.parquet", "marginal", [3, 3, 3, 3, 3])
    return tmp_path / "run"


def test_a_run_without_a_folder_is_refused(tmp_path: Path) -> None:
    with raises("run/no-run-folder", "/absent"):
        report_on(tmp_path / "absent")


def test_a_run_without_scores_of_the_split_is_refused(tmp_path: Path) -> None:
    write_scores(tmp_path / "run/scores/validation.parquet", "llm", [1] * 5, info=("validation", "careers-1"))
    write_scores(tmp_path / "run/scores/test_titles.parquet", "llm", [1] * 5)  # another kind of table
    with raises("score-table/no-scores", "test"):
        report_on(tmp_path / "run")


def test_a_table_of_another_split_is_refused(tmp_path: Path) -> None:
    write_scores(tmp_path / "run/scores/test.parquet", "llm", [1] * 5, info=("validation", "careers-1"))
    with raises("score-table/scores-of-another-split", "validation", "test"):
        report_on(tmp_path / "run")


def test_an_empty_table_is_refused(tmp_path: Path) -> None:
    write_scores(tmp_path / "run/scores/test.parquet", "llm", [], keys=[])
    with raises("score-table/no-observations"):
        report_on(tmp_path / "run")


@pytest.mark.parametrize(
    ("keys", "lone"),
    [
        (KEYS[:1] + KEYS[2:], ("observation 1 of person 'a' of PSID", "that of 'llm'")),
        (KEYS[:4], ("observation 1 of person 'c' of PSID", "that of 'llm'")),
        ([*KEYS, ("PSID", "d", 0)], ("observation 0 of person 'd' of PSID", "that of 'logit'")),
        ([("NLSY79", "z", 0), *KEYS], ("observation 0 of person 'z' of NLSY79", "that of 'logit'")),
    ],
)
def test_other_observations_are_refused_with_the_first_that_differs(
    run: Path, keys: list[tuple[str, str, int]], lone: tuple[str, str]
) -> None:
    write_scores(run / "scores/test.logit.parquet", "logit", [1] * len(keys), keys=keys)
    with raises("score-table/different-observations", *lone, "'llm'", "'logit'"):
        report_on(run)


def test_other_covariates_are_refused(run: Path) -> None:
    write_scores(run / "scores/test.logit.parquet", "logit", [1] * 5, gender="male")
    values = ("observation 0 of person 'a' of PSID", "gender", "'female' in the first", "'male' in the second")
    with raises("score-table/different-observed-values", *values):
        report_on(run)


def test_other_careers_are_refused(run: Path) -> None:
    write_scores(run / "scores/test.logit.parquet", "logit", [1] * 5, info=("test", "careers-2"))
    with raises("score-table/different-careers", "'llm'", "'logit'", "careers-1", "careers-2"):
        report_on(run)


def test_equal_scores_of_two_runs_are_one_model_and_others_get_the_name_of_their_run(run: Path, tmp_path: Path) -> None:
    write_scores(tmp_path / "second/scores/test.parquet", "llm", [1, 1, 1, 1, 1])
    write_scores(tmp_path / "second/scores/test.marginal.parquet", "marginal", [3, 3, 3, 3, 3])
    models = compare_runs([str(run), str(tmp_path / "second")], split="test", measure="title").models
    assert [model.name for model in models] == ["llm (second)", "llm (run)", "marginal"]
    assert [len(model.files) for model in models] == [1, 1, 2]


def test_runs_of_one_folder_name_are_told_apart_by_their_files(run: Path, tmp_path: Path) -> None:
    write_scores(tmp_path / "elsewhere/run/scores/test.parquet", "llm", [1, 1, 1, 1, 1])
    models = compare_runs([str(run), str(tmp_path / "elsewhere/run")], split="test", measure="title").models
    second = f"llm ({tmp_path}/elsewhere/run/scores/test.parquet)"
    assert [model.name for model in models] == [second, f"llm ({run}/scores/test.parquet)", "marginal"]


def test_the_measure_decides_the_column(run: Path) -> None:
    assert report_on(run, measure="title").models[0].perplexity.value == pytest.approx(4)
    assert report_on(run, measure="terminated").models[0].perplexity.value == pytest.approx(8)


def test_the_page_shows_the_numbers_of_the_summary(run: Path) -> None:
    result = report_on(run)
    page, summary = result.page.read_text(), json.loads(result.summary.read_text())
    assert [(model["model"], round(model["perplexity"]["value"], 9)) for model in summary["models"]] == [
        ("llm", 4.0),
        ("marginal", 8.0),
    ]
    assert summary["pairs"][0]["difference_nats"]["value"] == pytest.approx(math.log(2))
    assert summary["pairs"][0]["share_first_better"] == 1.0
    assert summary["sources"][0]["details"] == {"weights": "w-llm"}
    for shown in ("<strong>4.000</strong>", "<strong>8.000</strong>", "+0.6931", "w-llm", "careers-1", "code-1"):
        assert shown in page
    low, high = (format_nats(summary["pairs"][0]["difference_nats"][end]) for end in ("low", "high"))
    assert f"The next is marginal; the difference is +0.6931 nats per observation ({low} to {high})." in page
    shown_groups = [
        score for grouping in summary["groupings"] for group in grouping["groups"] for score in group["scores"]
    ]
    assert len(shown_groups) == 2 * (
        2 + 1 + 2 + 2
    )  # two models; first and staying, female, two lengths of history, two years
    for score in shown_groups:
        assert f">{format_perplexity(score['perplexity']['value'])}<small>" in page


def test_the_page_loads_nothing_and_escapes_names(run: Path) -> None:
    write_scores(run / "scores/test.odd.parquet", "<b>odd</b> $x$", [2] * 5)
    page = report_on(run).page.read_text()
    body = page[page.index("<main>") : page.index("<script>")]
    loads = re.findall(r"""(?:src|href|url|@import)\s*[=(]?\s*["']?([^"'\s>)]+)""", body)
    assert len([load for load in loads if load.startswith("data:image/svg+xml;base64,")]) == 6
    assert all(load.startswith(("data:", "#")) for load in loads)
    assert page.count("<script") == 1 and not re.search("https?:", re.sub(r"base64,[A-Za-z0-9+/=]+", "", page))
    (script,) = re.findall("<script>(.*)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
        in html.unescape(page)
    )
    assert "&lt;b&gt;odd&lt;/b&gt;" in page and "<b>odd" not in page


def test_every_figure_has_a_caption_and_its_data_a_click_away(run: Path) -> None:
    write_metrics(run, [step(1, 5.0, 10), step(2, 4.0, 10, validation_nats_per_token=4.5)])
    result = report_on(run)
    page = result.page.read_text()
    figures = re.findall(r"<figure>.*?</figure>", page, re.DOTALL)
    shown: dict[str, list[dict[str, str]]] = {}
    for figure in figures:
        ((name, data),) = re.findall(
            r'<a download="(\w+).csv" href="data:text/csv;charset=utf-8;base64,([^"]+)"', figure
        )
        shown[name] = list(csv.DictReader(io.StringIO(base64.b64decode(data).decode())))
        settings = "2 steps with 20 tokens" if name == "training_1" else "5 observations of 3 people"
        assert settings in figure and 'alt="' in figure
    assert shown.keys() == {path.stem for path in result.figures}
    models = json.loads(result.summary.read_text())["models"]
    assert [float(row["estimate"]) for row in shown["perplexity"]] == [model["perplexity"]["value"] for model in models]
    assert {row["grouping"] for row in shown["by_year"]} == {"year"}
    rows = list(csv.DictReader((result.page.parent / "tables/training_curves.csv").open()))
    assert rows == shown["training_1"]
    assert [(row["term"], row["step"], row["estimate"]) for row in rows] == [
        ("training_nats_per_token", "1", "5.0"),
        ("training_nats_per_token", "2", "4.0"),
        ("validation_nats_per_token", "2", "4.5"),
    ]


def test_figures_lie_beside_the_page_and_nothing_partial_remains(run: Path, tmp_path: Path) -> None:
    result = report_on(run, output=tmp_path / "out")
    assert result.page == tmp_path / "out/report.html" and result.summary == tmp_path / "out/summary.json"
    names = {path.name for path in (tmp_path / "out/figures").iterdir()}
    figures = ("perplexity", "differences", "by_transition", "by_gender", "by_history", "by_year")
    assert names == {f"{name}.png" for name in figures}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in result.figures)
    assert not list((tmp_path / "out").rglob("*.partial"))


def test_a_second_call_writes_the_same_bytes(run: Path) -> None:
    first = {path: path.read_bytes() for path in _written(report_on(run))}
    second = {path: path.read_bytes() for path in _written(report_on(run))}
    assert len(first) == 2 + 6 + 3 + 2 + 4 and first == second  # page, summary, figures, CSV, LaTeX


def _written(result: ReportResult) -> list[Path]:
    return [result.page, result.summary, *result.figures, *result.tables]


def test_one_model_alone_has_a_report_without_differences(tmp_path: Path) -> None:
    write_scores(tmp_path / "run/scores/test.parquet", "llm", [1, 2, 3, 2, 2])
    result = report_on(tmp_path / "run")
    assert json.loads(result.summary.read_text())["pairs"] == []
    assert 'id="pairs"' not in result.page.read_text()


def test_a_perplexity_beyond_float64_is_null_in_the_summary_and_said_on_the_page(run: Path) -> None:
    write_scores(run / "scores/test.lost.parquet", "lost", [2000, 2000, 2000, 2000, 2000])
    result = report_on(run)
    lost = json.loads(result.summary.read_text())["models"][2]
    assert lost["model"] == "lost"
    assert lost["perplexity"]["value"] is None
    assert lost["mean_log_likelihood_nats"]["value"] == pytest.approx(-2000 * math.log(2))
    assert "<strong>too large</strong>" in result.page.read_text()


def test_the_true_model_is_marked_and_others_have_a_distance_to_it(run: Path) -> None:
    write_scores(run / "scores/test.truth.parquet", "truth", [1, 1, 1, 1, 1])
    result = report_on(run)
    assert [model.model for model in result.models] == ["truth", "llm", "marginal"]
    page = result.page.read_text()
    assert '<span class="tag">true model</span>' in page
    assert "The lowest perplexity after the true model is that of <strong>llm</strong>" in page
    llm = json.loads(result.summary.read_text())["models"][1]
    assert llm["nats_to_truth"]["value"] == pytest.approx(math.log(2))


def test_the_terminal_table_has_the_main_numbers_in_80_columns(run: Path) -> None:
    write_scores(run / "scores/test.truth.parquet", "truth", [1, 1, 1, 1, 1])
    screen = io.StringIO()
    Console(width=80, file=screen).print(*terminal_tables(report_on(run)))
    lines = [re.split(r"\s{2,}", line.strip()) for line in screen.getvalue().splitlines()]
    rows = [
        (line[0], line[1], line[3], line[4], line[5])
        for line in lines
        if line[0] in ("truth (true)", "llm", "marginal")
    ]
    assert rows == [
        ("truth (true)", "2.000", "3", "5", "0.0000"),
        ("llm", "4.000", "3", "5", "+0.6931"),
        ("marginal", "8.000", "3", "5", "+1.3863"),
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (8.1844, "8.184"),
        (364.655, "364.655"),
        (12345.6, "12,346"),
        (-0.5, "\N{MINUS SIGN}0.500"),
        (999_999.4, "999,999"),
        (272_900_000_000.0, "2.7e11"),
        (-1.5e300, "\N{MINUS SIGN}1.5e300"),
        (math.inf, "too large"),
        (-math.inf, "too far below 0"),
        (math.nan, "not defined"),
    ],
)
def test_perplexities_have_three_decimals_until_they_are_large(value: float, text: str) -> None:
    assert format_perplexity(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.01234, "+0.0123"), (-0.5, "\N{MINUS SIGN}0.5000"), (0.0, "0.0000"), (-2.5e12, "\N{MINUS SIGN}2.5e12"),
        (math.inf, "too large"), (math.nan, "not defined"),
    ],
)  # fmt: skip
def test_nats_have_four_decimals_and_a_sign(value: float, text: str) -> None:
    assert format_nats(value) == text


def test_no_number_of_a_report_is_shown_as_nan_or_inf() -> None:
    for shown in (format_share, format_probability, format_signed_perplexity, format_nats, format_perplexity):
        assert shown(math.nan) == "not defined"
        assert shown(math.inf) == "too large"
    assert format_signed_perplexity(2.7e11) == "+2.7e11"
