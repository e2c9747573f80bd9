"""The files of a law: page, JSON, tables and figures; what stands there is what was computed."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from helpers.browser import AXE, CHROMIUM, MISSING, open_browser
from helpers.errors import raises
from rich.console import Console

from laborllm_dist.config.evaluation import FitLawSettings
from laborllm_dist.io.number_format import format_interval, format_multiple, format_significant
from laborllm_dist.report.bootstrap import Estimate
from laborllm_dist.report.write import publish
from laborllm_dist.sweeps import law_report
from laborllm_dist.sweeps.law_export import COLUMNS, export_tables
from laborllm_dist.sweeps.law_figures import draw_figures
from laborllm_dist.sweeps.law_report import LawResult, law_page, summary_text, write_law
from laborllm_dist.sweeps.law_results import BaselineNumbers, BreakEvenNumbers
from laborllm_dist.sweeps.law_tables import terminal_tables
from laborllm_dist.sweeps.points import SweepPoint, write_points

SIZES = {"60k": 60_000, "<b>250k": 250_000, "1m": 1_000_000, "4m": 4_000_000}


def settings(table: Path, **changes: object) -> FitLawSettings:
    plain = FitLawSettings(
        points=str(table), output=None, form="additive", method="variable_projection", num_params="non_embedding",
        sources=None, pretrained=None, split="test", measure="title", loss="auto", baselines=(), bootstrap_draws=40, seed=1,
        figure_formats=("png",),
    )  # fmt: skip
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def law(tmp_path_factory: pytest.TempPathFactory) -> LawResult:
    random = np.random.default_rng(2)
    points = [
        SweepPoint(
            size=name, num_params=2 * n, num_non_embedding_params=n, num_observations=d, flops=6.0 * n * d, epochs=2.0,
            sources="PSID81+NLSY79",
            nats_per_observation=1.9 + 35 * n**-0.5 + 90 * d**-0.6 + float(random.normal(0, 0.002)),
        )
        for name, n in SIZES.items()
        for d in (10_000, 20_000, 40_000, 80_000)
    ]  # fmt: skip
    table = tmp_path_factory.mktemp("sweep") / "points.csv"
    write_points(points, table)
    return write_law(settings(table))


def rows(law: LawResult, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((law.page.parent / "tables" / name).read_text())))


def test_the_json_has_every_number_and_names_every_file(law: LawResult) -> None:
    content = json.loads(law.summary.read_text())
    assert content["format"] == 1
    assert content["formula"] == "L = E + A N^-a + B D^-b"
    assert content["parameters"]["b"]["value"] == law.numbers.parameters["b"].value
    assert set(content["parameters"]["b"]) == {"value", "low", "high", "std_error"}
    assert len(content["points"]) == 16
    written = {str(path.relative_to(law.page.parent)) for path in law.page.parent.rglob("*") if path.is_file()}
    assert written == {*content["files"], "law.html", "law.json"}
    never = next(each for each in content["break_even"] if each["small"] == "60k")
    assert (never["multiple"]["value"], never["share_never"]) == (None, 1.0)
    # Every key is described at the head of the module that writes it.
    described = law_report.__doc__ or ""
    assert [key for key in content if not re.search(rf"\b{key}\b", described)] == []


def test_tables_have_the_names_of_broom_and_the_numbers_of_the_law(law: LawResult) -> None:
    tables = {path.name: rows(law, path.name) for path in (law.page.parent / "tables").glob("*.csv")}
    assert set(tables) == {
        "law_parameters.csv", "law_forms.csv", "law_points.csv", "law_break_even.csv", "law_held_out.csv",
        "law_frontier.csv",
    }  # fmt: skip
    for each in tables.values():
        assert tuple(each[0]) == COLUMNS
    by_term = {row["term"]: row for row in tables["law_parameters.csv"]}
    estimate = law.numbers.parameters["a"]
    assert float(by_term["a"]["estimate"]) == estimate.value
    assert float(by_term["a"]["std.error"]) == estimate.std_error
    assert (float(by_term["a"]["conf.low"]), float(by_term["a"]["conf.high"])) == (estimate.low, estimate.high)
    assert (by_term["a"]["n"], by_term["a"]["people"]) == ("16", "")
    never = next(row for row in tables["law_break_even.csv"] if row["size"] == "60k")
    assert float(never["estimate"]) == math.inf  # as R and Python read it
    losses = [float(row["estimate"]) for row in tables["law_points.csv"] if row["term"] == "loss"]
    assert losses == [point.loss.value for point in law.numbers.points]
    latex = (law.page.parent / "tables" / "law_parameters.tex").read_text()
    assert r"\toprule" in latex
    assert r"L = E + A N\textasciicircum{}-a" in latex
    assert f"{{[}}{format_significant(estimate.low or 0)}, {format_significant(estimate.high or 0)}{{]}}" in latex


def test_notes_of_latex_tables_say_what_the_intervals_are_of(law: LawResult) -> None:
    def note(**changes: int | None) -> str:
        tables = export_tables(dataclasses.replace(law.numbers, **changes))  # type: ignore[arg-type]
        return next(table.content for table in tables if table.name == "law_parameters.tex")

    assert "40 refits, with the noise between runs" in note()  # a file gave the losses, and nobody is resampled
    people = note(num_people=300, num_observations=900)
    assert "40 refits, on resamples of people with the noise" in people
    assert "900 observations of 300 test people" in people
    assert "intervals" not in note(bootstrap_draws=0)
    alone = dataclasses.replace(law.numbers, num_people=300, noise=dataclasses.replace(law.numbers.noise, runs=None))
    tables = export_tables(alone)
    assert "40 refits, on resamples of people." in next(
        table.content for table in tables if table.name == "law_parameters.tex"
    )


def test_the_page_says_what_a_draw_is_and_which_sign_the_constant_may_have(law: LawResult) -> None:
    def words(**changes: object) -> str:
        numbers = dataclasses.replace(law.numbers, **changes)  # type: ignore[arg-type]
        return " ".join(law_page(numbers, draw_figures(numbers)).split())

    no_noise = dataclasses.replace(law.numbers.noise, runs=None)
    assert "A draw adds independent noise to each run." in words()
    assert "A draw resamples the test people, the same for all runs, and adds independent noise to each run." in words(
        num_people=300, num_observations=900
    )
    assert "A draw resamples the test people, the same for all runs." in words(
        num_people=300, num_observations=900, noise=no_noise
    )
    assert "may be negative" not in words()
    assert "(<i>E</i>, whose true value is 0, may be negative)" in words(is_excess=True)


def test_the_page_has_the_numbers_and_fetches_nothing(law: LawResult) -> None:
    page = law.page.read_text()
    estimate = law.numbers.parameters["b"]
    assert f"<strong>{format_significant(estimate.value)}</strong>" in page
    assert format_interval(estimate.low, estimate.high, format_significant) in page
    assert "&lt;b&gt;250k" in page
    assert "<b>250k" not in page
    assert set(re.findall(r'(?:src|href)="([a-z]+):', page)) == {"data"}
    assert "no amount" in page
    ids = set(re.findall(r'<section id="([^"]+)"', page))
    assert set(re.findall(r'<a href="#([^"]+)"', page)) == ids
    assert ids == {"law", "forms", "fit", "held-out", "frontier", "break-even", "runs", "definitions"}


def test_figures_are_written_as_they_are_shown(law: LawResult) -> None:
    figures = law.page.parent / "figures"
    names = {"law_by_size", "law_by_data", "law_errors", "law_frontier"}
    assert {path.name for path in figures.iterdir()} == {f"{name}.{kind}" for name in names for kind in ("svg", "png")}
    assert all((figures / f"{name}.svg").read_bytes().startswith(b"<?xml") for name in names)


@pytest.mark.parametrize("width", [40, 80, 160])
def test_terminal_tables_show_every_number_at_any_width(law: LawResult, width: int) -> None:
    console = Console(width=width, file=io.StringIO(), record=True)
    for table in terminal_tables(law.numbers):
        console.print(table)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    for name, estimate in law.numbers.parameters.items():
        assert format_significant(estimate.value) in text, name
    assert text.count("no amount") >= 2  # the number, and its interval
    assert "no amount to no amount" not in text


def test_baselines_stand_on_the_page_and_in_every_table(law: LawResult) -> None:
    by_size = (
        BreakEvenNumbers("4m", "CAR<i>", 80_000, Estimate(1.5, 1.25, 2.0, 0.2), 0.0),
        BreakEvenNumbers("60k", "CAR<i>", 80_000, Estimate(math.inf, 7.5, math.inf, None), 0.75),
    )
    size = Estimate(2.5e6, 1.5e6, math.inf, None)
    baseline = BaselineNumbers("CAR<i>", 80_000, Estimate(1.9876, 1.9, 2.1, 0.05), size, by_size)
    never = dataclasses.replace(baseline, model="truth", num_params=Estimate(math.inf, None, None, None))
    numbers = dataclasses.replace(law.numbers, baselines=(baseline, never))
    page = law_page(numbers, draw_figures(numbers))
    section = page[page.index('<section id="baselines">') : page.index('<section id="runs">')]
    assert '<a href="#baselines">' in page
    assert "CAR&lt;i&gt;" in section
    assert "CAR<i>" not in section
    console = Console(width=100, file=io.StringIO(), record=True)
    console.print(terminal_tables(numbers)[-1])
    for text in (section, console.export_text()):
        plain = " ".join(re.sub(r"<[^>]+>", " ", text).split())
        assert all(each in plain for each in ("1.9876", "1.5", "1.25", "7.5", "no amount")), plain
        assert "at 2.5e6 parameters (1.5e6 to infinite)" in plain
        assert "at no model size" in plain
    tables = {each.name: each.content for each in export_tables(numbers)}
    rows = list(csv.DictReader(io.StringIO(tables["law_baselines.csv"])))[: 2 + len(by_size)]
    assert [(row["term"], row["size"], row["compared_with"], float(row["estimate"])) for row in rows] == [
        ("loss", "", "CAR<i>", 1.9876), ("num_params", "", "CAR<i>", 2.5e6),
        ("data_multiple", "4m", "CAR<i>", 1.5), ("data_multiple", "60k", "CAR<i>", math.inf),
    ]  # fmt: skip
    assert "1.9876" in tables["law_baselines.tex"]
    assert json.loads(summary_text(numbers))["baselines"][0]["by_size"][0]["multiple"]["low"] == 1.25


def test_a_law_replaces_only_an_earlier_law(law: LawResult, tmp_path: Path) -> None:
    page, summary, old, new = (tmp_path / name for name in ("law.html", "law.json", "tables/old.csv", "tables/new.csv"))
    numbers = {files: summary_text(law.numbers, files) for files in (("tables/old.csv",), ("tables/new.csv",))}
    publish(page, law.page.read_text(), summary, numbers["tables/old.csv",], {old: b"old"})
    publish(page, law.page.read_text(), summary, numbers["tables/new.csv",], {new: b"new"})
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"law.html", "law.json", "new.csv"}
    page.write_text("mine")
    with raises("foreign-file/not-a-report-file", "law.html"):
        publish(page, law.page.read_text(), summary, numbers["tables/old.csv",], {old: b"old"})
    assert page.read_text() == "mine"


def test_numbers_are_shown_with_significant_digits() -> None:
    shown = [format_significant(value) for value in (477.84, 2143.86, 0.34731, 1.81724, 0.0, 1.2e7, 3.21e-5, -0.5)]
    assert shown == [
        "477.8",
        "2,144",
        "0.3473",
        "1.817",
        "0.000",
        "1.2e7",
        "3.210e\N{MINUS SIGN}5",
        "\N{MINUS SIGN}0.5000",
    ]
    assert [format_multiple(value) for value in (1.807, 12.34, math.inf)] == ["1.81", "12.3", "no amount"]
    assert format_interval(1.5, math.inf, format_multiple) == "1.50 to no amount"
    assert format_interval(math.inf, math.inf, format_multiple) == "no amount"


@pytest.mark.skipif(CHROMIUM is None, reason=MISSING.format("Chromium"))
def test_the_page_fits_a_phone_and_a_desk_and_its_figures_are_whole(law: LawResult, tmp_path: Path) -> None:
    with open_browser(tmp_path) as browser:
        for width in (375, 1280):
            browser.load(law.page, width=width)
            browser.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
            assert browser.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [width, width]
            assert (browser.requests(), browser.errors()) == ([law.page.as_uri()], [])
            assert (
                browser.evaluate("[...document.images].map((each) => each.complete && each.naturalWidth > 100)")
                == [True] * 4
            )
            if AXE.is_file():
                browser.evaluate(AXE.read_text(encoding="utf-8"))
                run = (
                    "axe.run(document, {resultTypes: ['violations'], runOnly: ['wcag2a', 'wcag2aa', 'best-practice']})"
                )
                shown = ".then(({violations}) => violations.map(({id, nodes}) => [id, nodes[0].html]))"
                assert browser.evaluate(run + shown) == []
