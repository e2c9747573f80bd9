"""Tidy CSV, LaTeX and PDF files of a report: every number is that of summary.json; LaTeX is well-formed; fonts are embedded."""

from __future__ import annotations

import csv
import json
import re
import zlib
from dataclasses import replace
from typing import Any

import pytest
from helpers.scores import report_on, write_scores, write_titles

from laborllm_dist.config.evaluation import StateWords
from laborllm_dist.io.number_format import format_nats
from laborllm_dist.plain_text import latex_text
from laborllm_dist.report.bootstrap import Estimate
from laborllm_dist.report.export import number_cell, with_interval
from laborllm_dist.report.html import _cell
from laborllm_dist.report.write import ReportResult

NAME = "llm_7b & 50% {new}"


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> ReportResult:
    """Give a report on two models with tables of titles, in which "3" is a state, with PDF figures."""
    run = tmp_path_factory.mktemp("export") / "run"
    write_scores(run / "scores/test.parquet", NAME, [1, 2, 2, 3, 2])
    write_titles(run / "scores/test_titles.parquet", NAME, weights=f"w-{NAME}")
    write_scores(run / "scores/test.other.parquet", "=other", [2, 2, 2, 2, 2])
    write_titles(run / "scores/test_titles.other.parquet", "=other", weights="w-=other")
    return report_on(run, states=StateWords(unemployed=("3",)), figure_formats=("png", "pdf"))


def rows_of(result: ReportResult, name: str) -> list[dict[str, str]]:
    with (result.page.parent / "tables" / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def summary_of(result: ReportResult) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads(result.summary.read_text())
    return summary


def numbers_of(row: dict[str, str]) -> list[float | None]:
    return [float(row[name]) if row[name] else None for name in ("estimate", "conf.low", "conf.high", "std.error")]


def test_every_table_has_the_columns_that_statistics_packages_read(result: ReportResult) -> None:
    names = {path.name for path in result.tables}
    expected = {
        "perplexity",
        "differences",
        "by_group",
        "titles",
        "outcomes",
        "outcomes_by_group",
        "calibration_curves",
    }
    assert {name for name in names if name.endswith(".csv")} == {f"{name}.csv" for name in expected}
    for name in expected:
        rows = rows_of(result, name)
        assert rows
        for column in ("term", "model", "estimate", "std.error", "conf.low", "conf.high", "n", "people"):
            assert column in rows[0]
        assert all(row["term"] and row["model"] and int(row["n"]) >= int(row["people"]) for row in rows)
        identity = [tuple(value for key, value in row.items() if key not in ("estimate", "predicted")) for row in rows]
        assert len({each[:7] for each in identity}) == len(rows)  # a row is named by its first columns


def test_tidy_numbers_are_those_of_the_summary(result: ReportResult) -> None:
    summary = summary_of(result)
    for model, row in zip(summary["models"], rows_of(result, "perplexity")[::2], strict=True):
        assert row["term"] == "perplexity" and row["model"].lstrip("'") == model["model"]
        assert numbers_of(row) == [model["perplexity"][key] for key in ("value", "low", "high", "std_error")]
        assert (row["n"], row["people"]) == ("5", "3")
    (pair,) = summary["pairs"]
    difference = rows_of(result, "differences")[0]
    assert (difference["model"].lstrip("'"), difference["compared_with"].lstrip("'")) == (pair["first"], pair["second"])
    assert numbers_of(difference)[0] == pair["difference_nats"]["value"]
    # Not in mass of titles, but in both: 0.05 + .25 + .35 + .25 + .1 of the state "3".
    outcomes = {outcome["name"]: outcome for outcome in summary["outcomes"]}
    assert list(outcomes) == ["becoming_unemployed", "changing_occupation", "moving", "top_title"]
    rows = [row for row in rows_of(result, "outcomes") if row["outcome"] == "top_title" and row["term"] == "ece"]
    ece = outcomes["top_title"]["scores"][0]["ece"]
    assert numbers_of(rows[0]) == [ece[key] for key in ("value", "low", "high", "std_error")]


def test_a_number_that_does_not_exist_is_an_empty_cell(result: ReportResult) -> None:
    # Nobody moves, so there is no pair of a mover and a stayer.
    auc = next(row for row in rows_of(result, "outcomes") if row["term"] == "auc")
    assert numbers_of(auc) == [None, None, None, None]
    assert summary_of(result)["outcomes"][0]["scores"][0]["auc"]["value"] is None


def test_a_name_is_no_formula_in_a_spreadsheet(result: ReportResult) -> None:
    assert "'=other" in {row["model"] for row in rows_of(result, "perplexity")}


def test_latex_tables_are_well_formed(result: ReportResult) -> None:
    tables = [path for path in result.tables if path.suffix == ".tex"]
    assert {"perplexity.tex", "differences.tex", "by_gender.tex", "titles.tex", "auc.tex", "calibration.tex"} <= {
        path.name for path in tables
    }
    for path in tables:
        text = path.read_text()
        begun = re.findall(r"\\(begin|end)\{(\w+)\}", text)
        opened: list[str] = []
        for kind, name in begun:
            if kind == "begin":
                opened.append(name)
            else:
                assert opened.pop() == name
        assert not opened
        plain = re.sub(r"\\[&%$#_{}\\]", "", text)
        assert plain.count("{") == plain.count("}") and plain.count("$") % 2 == 0 and "%" not in plain
        for rule in (
            r"\toprule",
            r"\midrule",
            r"\bottomrule",
            r"\begin{threeparttable}",
            r"\begin{adjustbox}",
            r"\begin{tablenotes}",
        ):
            assert rule in text
        (columns,) = re.findall(r"\\begin\{tabular\}\{(l+r+)\}", text)
        body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
        lines = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert len(lines) > 1
        assert {len(re.split(r"(?<!\\)&", line)) for line in lines} == {len(columns)}


def test_latex_shows_number_interval_and_note(result: ReportResult) -> None:
    text = (result.page.parent / "tables/perplexity.tex").read_text()
    perplexity = summary_of(result)["models"][0]["perplexity"]
    assert r"llm\_7b \& 50\% \{new\} & 4.000 & $-$1.3863 \\" in text
    assert f"{{[}}{perplexity['low']:.3f}, {perplexity['high']:.3f}{{]}}" in text
    assert (
        "5 observations of 3 test people. In brackets: 95 \\% intervals of a bootstrap over people (50 draws)" in text
    )


def test_latex_text_escapes_every_command_character() -> None:
    assert latex_text("a\\b_{c}^~$&#%") == (r"a\textbackslash{}b\_\{c\}\textasciicircum{}\textasciitilde{}\$\&\#\%")
    assert latex_text("\N{MINUS SIGN}1 [x]\n") == r"$-$1 {[}x{]}\textbackslash{}n"


def test_pdf_figures_embed_truetype_fonts_and_no_date(result: ReportResult) -> None:
    paths = [path for path in result.figures if path.suffix == ".pdf"]
    assert len(paths) == len(result.figures) / 2
    for path in paths:
        content = path.read_bytes()
        assert content.startswith(b"%PDF") and b"/CreationDate" not in content
        assert b"/Type3" not in content and b"/FontFile2" in content
        # Every simple font is a TrueType one whose descriptor has a font file.
        assert len(re.findall(rb"/Type /FontDescriptor", content)) == len(re.findall(rb"/FontFile2 \d+ 0 R", content))
    streams = re.findall(rb"stream\n(.*?)\nendstream", paths[0].read_bytes(), re.DOTALL)
    assert any(b" Tj" in _plain(stream) or b" TJ" in _plain(stream) for stream in streams)  # text stays text


def _plain(stream: bytes) -> bytes:
    try:
        return zlib.decompress(stream)
    except zlib.error:
        return stream


def test_the_page_has_a_section_of_each_and_no_number_that_is_none(result: ReportResult) -> None:
    page = result.page.read_text()
    for heading in ("auc", "calibration", "calibration-top_title", "ranks"):
        assert f'id="{heading}"' in page
    shown = re.sub(r"base64,[A-Za-z0-9+/=]+", "", page)
    assert "None" not in shown and not re.search(r">(nan|inf)<", shown)
    assert "unemployed 3;" in shown


def test_a_number_that_rounds_to_zero_has_no_sign_and_stays_as_it_is_in_the_files() -> None:
    small = Estimate(-4e-5, -6e-5, -1e-9, 1e-5)
    page_cell = str(_cell(small, "nats"))
    assert page_cell == ('<td data-number="-4e-05">0.0000<small>\N{MINUS SIGN}0.0001 to 0.0000</small></td>')
    assert with_interval(small, format_nats) == ("0.0000", "[\N{MINUS SIGN}0.0001, 0.0000]")
    assert [number_cell(value) for value in (-4e-5, -0.0, None)] == ["-4e-05", "0.0", ""]
    assert 'data-number="0.0"' in _cell(replace(small, value=-0.0), "nats")
