"""Predicted next occupations in a terminal: for every person the most probable titles, with bars."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import rich.box
from rich.console import Console
from rich.text import Text

from laborllm_dist.io.console_tables import Column, FoldingTable
from laborllm_dist.io.number_format import format_share
from laborllm_dist.plain_text import visible
from laborllm_dist.tables.parquet import ScoreTableInfo
from laborllm_dist.tables.scores import TITLE_HEAD_DETAIL

SHOWN_PEOPLE = 10  # where a file has all of them
BAR_WIDTH = 12
EIGHTHS = " ▏▎▍▌▋▊▉█"
MEASURES = {"normalised": "among all titles", "terminated": "of the title and the line's end"}
LEAST_SHARE = 0.0005  # shown as a number


def show_predictions(table: pa.Table, info: ScoreTableInfo, output: str | None, console: Console) -> None:
    """Print the people's most probable titles: of all people, or of the first few where a file holds the rest."""
    people = _people(table)
    shown = people if output is None else people[:SHOWN_PEOPLE]
    console.print(predictions_table(shown, info))
    lines: list[str] = []
    if TITLE_HEAD_DETAIL not in info.details:
        mass = format_share(pc.mean(table.filter(pc.equal(table["rank"], 1))["mass"]).as_py())
        at_least = "at least " if pc.any(pc.greater(table["bound"], 0)).as_py() else ""
        lines = [f"titles have {at_least}{mass} of the probability, on average; the rest is of texts that are no title"]
    if num_open := sum(_is_open(rows, info) for rows in people):
        lines.append(
            f"{num_open:,} of {len(people):,} people have a title here that an unscored one may outrank; "
            "max_unscored_mass=0 scores all"
        )
    if len(people) > len(shown):
        lines.append(f"and {len(people) - len(shown):,} more people")
    if output is not None:
        lines.append(f"predictions: {output}")
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False, emoji=False)


def predictions_table(people: list[list[dict[str, Any]]], info: ScoreTableInfo) -> FoldingTable:
    """Return a table of predictions; `people` are the rows of one person each, best first."""
    measure = info.details["measure"]
    title = f"Next occupations by {info.model}, probability {MEASURES[measure]}"
    columns = (
        Column("person", "name"),
        Column("year", "number"),
        Column("", "number", style="dim"),
        Column("occupation", "name"),
        Column("", "bar", style="cyan"),
        Column("probability", "number"),
    )
    table = FoldingTable(columns, title=title, box=rich.box.SIMPLE_HEAD)
    has_surveys = len({rows[0]["survey"] for rows in people}) > 1
    for number, rows in enumerate(people):
        if number:
            table.add_section()
        first = rows[0]
        person, survey = visible(first["person"]), visible(first["survey"])
        head = (Text(f"{person}\n{survey}" if has_surveys else person, style="bold"), str(first["year"]))
        for row in rows:
            share = row["probability"]
            table.add_row(*head, str(row["rank"]), row["title"], _bar(share), _share(share))
            head = (Text(), "")
        for label, share in _rest(rows, measure):
            table.add_row("", "", "", Text(label, style="dim"), Text(_bar(share), style="dim"), _share(share))
    return table


def _people(table: pa.Table) -> list[list[dict[str, Any]]]:
    rows = table.to_pylist()
    return [list(group) for _, group in groupby(rows, key=lambda row: (row["survey"], row["person"]))]


def _rest(rows: list[dict[str, Any]], measure: str) -> list[tuple[str, float]]:
    """Return the mass of everything besides the shown titles, as parts of the same whole."""
    scored, left = _parts_of_whole(rows, measure)
    parts = [("other titles", scored - sum(row["probability"] for row in rows)), ("not scored", left)]
    if measure == "terminated":
        parts.append(("no title", 1 - scored - left))
    return [(label, share) for label, share in parts if share > 1e-9]


def _is_open(rows: list[dict[str, Any]], info: ScoreTableInfo) -> bool:
    """Return whether an unscored title may be more probable than a shown one."""
    return bool(rows[-1]["probability"] < _parts_of_whole(rows, info.details["measure"])[1])


def _parts_of_whole(rows: list[dict[str, Any]], measure: str) -> tuple[float, float]:
    """Return the scored and the unscored mass, as parts of the whole of a measure."""
    mass, bound = rows[0]["mass"], rows[0]["bound"]
    if measure == "terminated":
        return mass, bound
    whole = mass + bound
    # Titles may all be too improbable for float64; the scored ones are then the whole.
    return (mass / whole, bound / whole) if whole else (1.0, 0.0)


def _bar(share: float) -> str:
    eighths = round(max(share, 0.0) * BAR_WIDTH * 8)
    return "█" * (eighths // 8) + EIGHTHS[eighths % 8].strip()


def _share(share: float) -> str:
    return format_share(share) if share >= LEAST_SHARE else "<0.1\N{NO-BREAK SPACE}%"
