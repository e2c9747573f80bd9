"""Terminal tables at any width: no number is cut or broken, every letter of every name is there."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import rich.box
from helpers.runs import settings_of
from helpers.scores import report_on, write_scores, write_titles
from rich.cells import cell_len
from rich.console import Console

from laborllm_dist.io.console_tables import Column, FoldingTable
from laborllm_dist.planning.display import show_plan
from laborllm_dist.report.terminal import show_predictions
from laborllm_dist.report.write import terminal_tables
from laborllm_dist.tables.parquet import ScoreTableInfo
from laborllm_dist.tables.predictions import PREDICTION_SCHEMA

WIDTHS = (20, 40, 60, 80, 200)


def printed(width: int, *renderables: object) -> str:
    screen = io.StringIO()
    Console(width=width, file=screen).print(*renderables)
    return screen.getvalue()


def assert_whole(text: str, width: int, *, numbers: Iterable[str], letters: dict[str, int]) -> None:
    """Every number stands unbroken between blanks, every letter as often as in the names, no line is too long."""
    lines = text.splitlines()
    assert max(map(cell_len, lines)) <= width
    parts = [part for line in lines for part in re.split(r"[ \t]+", line)]  # a no-break space is part of a number
    for number in numbers:
        assert number in parts, (width, number, text)
    assert {letter: text.count(letter) for letter in letters} == letters, text


@pytest.mark.parametrize("width", [*range(14, 30), *WIDTHS])
def test_a_table_folds_names_then_drops_bars_then_becomes_a_list(width: int) -> None:
    columns = (Column("", "name"), Column("share (all)", "number"), Column("", "bar"), Column("count", "number"))
    table = FoldingTable(columns, title="QQQQ", box=rich.box.SIMPLE_HEAD)
    table.add_row("Ж" * 30, "46.4\N{NO-BREAK SPACE}%", "█████", "1,234,567")
    table.add_section()
    table.add_row("Щ Щ Щ", "<0.1\N{NO-BREAK SPACE}%", "", "\N{MINUS SIGN}0.5")
    table.add_row("中" * 9, "7", "", "8")
    table.caption = "ЮЮЮ " * 9
    numbers = ["46.4\N{NO-BREAK SPACE}%", "1,234,567", "<0.1\N{NO-BREAK SPACE}%", "\N{MINUS SIGN}0.5", "7", "8"]
    text = printed(width, table)
    assert_whole(text, width, numbers=numbers, letters={"Ж": 30, "Щ": 3, "Q": 4, "中": 9, "Ю": 27})
    assert ("█" in text) == (width >= 45), text


def test_a_list_goes_on_below_the_width_of_a_number() -> None:
    table = FoldingTable((Column("model", "name"), Column("interval", "number")), title="T", box=None, gap=2)
    table.add_row("Ж" * 9, "178.83-189.18")
    for width in range(1, 13):
        text = printed(width, table)
        assert "".join(text.split()) == "T" + "Ж" * 9 + "interval178.83-189.18"


@pytest.mark.parametrize("width", WIDTHS)
def test_predictions_are_whole_at_any_width(width: int) -> None:
    names = ["Managers, officials, Щ proprietors [red]", "Ж" * 60, "a\x1b[31m\nЮ"]
    rows = [
        {"person": "Ы" * 25, "survey": survey, "year": 1990, "rank": rank, "occupation": "a", "title": title,
         "probability": share, "log_likelihood": float(np.log(share)), "mass": 0.8, "bound": 0.0}
        for survey in ("PSID", "NLSY79") for rank, (title, share) in enumerate(zip(names, (0.464, 0.152, 0.0001), strict=True), 1)
    ]  # fmt: skip
    info = ScoreTableInfo("model [bold] Ъ", "own careers", "c", "0", {"measure": "normalised"})
    screen = io.StringIO()
    show_predictions(
        pa.Table.from_pylist(rows, schema=PREDICTION_SCHEMA), info, None, Console(width=width, file=screen)
    )
    table = screen.getvalue()[: screen.getvalue().index("titles have")]
    numbers = [f"{share}\N{NO-BREAK SPACE}%" for share in ("46.4", "15.2", "<0.1", "38.4")] + ["1990"]
    letters = {"Ы": 50, "Ж": 120, "Щ": 2, "Ъ": 1, "Ю": 2, "\x1b": 0}
    assert_whole(table, width, numbers=numbers, letters=letters)
    assert "[red]" in table
    assert "[bold]" in " ".join(table.split())


@pytest.mark.parametrize("width", WIDTHS)
def test_the_report_s_tables_are_whole_at_any_width(width: int, tmp_path: Path) -> None:
    write_scores(tmp_path / "scores/test.parquet", "llm", [0, 1, 1, 2, 1])
    write_scores(tmp_path / "scores/test.marginal.parquet", "Ж" * 30 + "[x]", [1.5] * 5, num_tokens=0)  # of 3 titles
    write_titles(tmp_path / "scores/test_titles.parquet", "llm")
    result = report_on(tmp_path)
    text = printed(width, *terminal_tables(result))
    numbers = []
    for model in result.models:
        numbers += [f"{model.perplexity.value:.3f}", f"{model.perplexity.low:.3f}–{model.perplexity.high:.3f}"]
    numbers += ["82.5\N{NO-BREAK SPACE}%", "3.236", "40.0\N{NO-BREAK SPACE}%"]
    assert_whole(text, width, numbers=numbers, letters={"Ж": 30})
    for heading in ("perplexity", "people", "observations", "valid titles", "top 10"):
        assert heading in " ".join(text.split())


@pytest.mark.parametrize("width", WIDTHS)
def test_the_plan_s_table_is_whole_at_any_width(width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    texts = {}
    for columns in (width, 200):
        screen = io.StringIO()
        show_plan(settings_of(["+experiment=pooled_13b"]), Console(width=columns, file=screen))
        texts[columns] = screen.getvalue()
    table = texts[width][texts[width].index("Memory of") : texts[width].index("traffic ")]
    wide = texts[200][texts[200].index("Memory of") : texts[200].index("traffic ")]
    assert max(map(cell_len, table.splitlines())) <= width
    assert sorted(re.findall(r"\d[\d,.]*\d", table)) >= sorted(re.findall(r"\d[\d,.]*\d", wide))
    for word in re.findall(r"[A-Za-z]{3,}", wide):
        assert word in table
