"""Single careers: numbers by hand on five observations; who is shown; and what the page must not hold."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.errors import raises
from helpers.scores import DISTRIBUTIONS, report_on, write_scores, write_titles

from laborllm_dist.config.evaluation import ReportSettings
from laborllm_dist.config.reader import read_settings
from laborllm_dist.report.careers import Career, draw_people, single_careers
from laborllm_dist.report.load import compare_runs
from laborllm_dist.report.numbers import analyze_with_titles
from laborllm_dist.report.write import write_report

SETTINGS = ReportSettings(("run",), "test", None, "title", 50, 1, num_careers=3)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Give a run of three people with an LLM that has a table of titles and a baseline that has none."""
    write_scores(tmp_path / "run/scores/test.parquet", "llm", [1, 2, 2, 3, 2])
    write_titles(tmp_path / "run/scores/test_titles.parquet", "llm")
    write_scores(tmp_path / "run/scores/test.marginal.parquet", "marginal", [3, 3, 3, 3, 4])
    return tmp_path / "run"


def careers_of(run: Path, number: int = 3, seed: int = 1) -> tuple[Career, ...]:
    compared = compare_runs([str(run)], split="test", measure="title")
    people = draw_people(compared, chosen := replace(SETTINGS, num_careers=number, seed=seed))
    _, titles = analyze_with_titles(compared, chosen, None, people)
    return single_careers(compared, people, titles)


def test_a_report_with_single_careers_reads_every_table_of_titles_once(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    class Counted(pq.ParquetFile):  # type: ignore[misc]
        def __init__(self, file: Any, **options: Any) -> None:
            super().__init__(file, **options)
            self.name = Path(file.name).name

        def read(self, *arguments: Any, **options: Any) -> pa.Table:
            opened.append(self.name)
            return super().read(*arguments, **options)

    monkeypatch.setattr(pq, "ParquetFile", Counted)
    write_report(replace(SETTINGS, runs=(str(run),), figure_formats=()))
    assert sorted(opened) == ["test.marginal.parquet", "test.parquet", "test_titles.parquet"]


def test_ranks_and_probabilities_are_shares_of_the_mass_of_all_titles(run: Path) -> None:
    careers = careers_of(run)
    # In the table: person a has the first two rows, b the third, c the last two; "1" is what was observed.
    first, second = next(career for career in careers if math.isclose(career.perplexities[0], 2**1.5)).years
    assert (first.year, first.before, second.before, first.title) == (1990, None, "1", "1")
    llm, marginal = first.predictions
    mass = sum(DISTRIBUTIONS[0])
    assert [(title.title, title.rank, title.observed) for title in llm.titles] == [
        ("1", 1.0, True), ("2", 2.0, False), ("3", 3.0, False),
    ]  # fmt: skip
    assert [title.probability for title in llm.titles] == pytest.approx([p / mass for p in DISTRIBUTIONS[0]])
    assert llm.probability == pytest.approx(0.5 / mass) and llm.rank == 1
    assert (marginal.probability, marginal.rank, marginal.titles) == (pytest.approx(1 / 8), None, ())
    # .25, .5, .25: two titles share the ranks 2 and 3.
    assert [(title.title, title.rank) for title in second.predictions[0].titles] == [("2", 1.0), ("1", 2.5), ("3", 2.5)]
    assert second.predictions[0].rank == 2.5


def test_perplexities_and_hits_are_those_of_the_person(run: Path) -> None:
    by_length = {(len(career.years), round(career.perplexities[0], 6)): career for career in careers_of(run)}
    assert by_length.keys() == {(2, round(2**1.5, 6)), (1, 4.0), (2, round(2**2.5, 6))}
    person_c = by_length[2, round(2**2.5, 6)]
    assert person_c.perplexities[1] == pytest.approx(2**3.5)
    # .125 of .125, .5, .25 is last; .25 of .25, .2, .1 comes first.
    assert [year.predictions[0].rank for year in person_c.years] == [3.0, 1.0]
    assert person_c.num_first(0) == 1 and person_c.num_first(1) is None


def test_an_observed_title_below_the_most_probable_ones_is_shown_last(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("laborllm_dist.report.careers.MOST_PROBABLE", 1)
    titles = [year.predictions[0].titles for career in careers_of(run) for year in career.years]
    assert sorted(tuple((entry.title, entry.observed) for entry in shown) for shown in titles) == [
        (("1", True),), (("1", True),), (("2", False), ("1", True)), (("2", False), ("1", True)),
        (("3", False), ("1", True)),
    ]  # fmt: skip


def test_the_seed_draws_people_and_a_larger_number_keeps_those_of_a_smaller_one(run: Path) -> None:
    def drawn(number: int, seed: int) -> list[float]:
        return [career.perplexities[0] for career in careers_of(run, number, seed)]

    assert len(drawn(1, 1)) == 1 and len(drawn(200, 1)) == 3
    assert drawn(2, 1) == drawn(3, 1)[:2]
    assert len({drawn(1, seed)[0] for seed in range(20)}) == 3
    assert careers_of(run, 0) == ()


def test_the_page_says_on_top_that_it_shows_single_people_and_holds_no_id(run: Path, tmp_path: Path) -> None:
    keys = [("PSID", "secret-7", 0), ("PSID", "secret-7", 1), ("PSID", "secret-8", 0), ("PSID", "x-9", 0)]
    for path in (run / "scores").iterdir():
        path.unlink()
    write_scores(run / "scores/test.parquet", "<i>llm</i>", [1, 2, 2, 3], keys=keys)
    result = report_on(run, output=tmp_path / "out", num_careers=2)
    assert result.careers == tmp_path / "out/careers.html"
    page = result.careers.read_text()
    text = page[page.index("<main>") :]
    assert text.index("This page shows single people.") < text.index('id="person-1"')
    assert "secret" not in page and "x-9" not in page and "person-3" not in page
    assert "&lt;i&gt;llm" in page and "<i>llm" not in page
    assert page.count("<script") == 1 and not re.search("https?:", page)
    assert 'href="careers.html"' in result.page.read_text() and 'href="report.html"' in page
    other = result.page.read_text() + result.summary.read_text()
    assert "secret" not in other
    assert "careers.html" in json.loads(result.summary.read_text())["files"]


def test_without_careers_there_is_no_page_and_one_of_before_is_removed(run: Path) -> None:
    first = report_on(run, num_careers=1)
    assert first.careers is not None and first.careers.is_file()
    second = report_on(run, num_careers=0)
    assert second.careers is None and "careers.html" not in second.page.read_text()
    assert not first.careers.exists()


def test_a_page_of_another_program_is_not_replaced(run: Path) -> None:
    report_on(run)
    (run / "report/careers.html").write_text("<p>mine</p>")
    with raises("foreign-file/not-a-report-file", "careers.html"):
        report_on(run, num_careers=1)
    assert (run / "report/careers.html").read_text() == "<p>mine</p>"


@pytest.mark.parametrize("number", [-1, 201])
def test_a_number_of_people_outside_its_range_is_refused(number: int) -> None:
    values = {"runs": ["a"], "split": "test", "output": None, "measure": "title", "bootstrap_draws": 5, "seed": 1}
    with raises("settings/invalid", "num_careers", number):
        read_settings(ReportSettings, {**values, "num_careers": number})
