"""Score tables written by hand, and reports on them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from laborllm_dist.config.evaluation import ReportSettings
from laborllm_dist.report.write import ReportResult, write_report
from laborllm_dist.tables.parquet import ScoreTableInfo
from laborllm_dist.tables.predictions import OWN_CAREERS
from laborllm_dist.tables.scores import SCORE_SCHEMA, TRUE_MODEL, write_score_table
from laborllm_dist.tables.title_distributions import TITLE_SCHEMA, write_title_table


def scores(**changes: object) -> pa.Table:
    row = {
        "survey": "S", "person": "1", "position": 0, "year": 1984, "occupation": "a", "previous": None,
        "birth_year": 1960, "gender": None, "ethnicity": None, "region": None, "education": None, "num_tokens": 2,
        "title": -1.0, "terminated": -1.5,
    }  # fmt: skip
    return pa.Table.from_pylist([{**row, "position": 1}, {**row, **changes}], schema=SCORE_SCHEMA)


INFO = ScoreTableInfo(model="m", split="test", careers="c", code="0", details={"b": "2", "a": "1"})
KEYS = [("PSID", "a", 0), ("PSID", "a", 1), ("PSID", "b", 0), ("PSID", "c", 0), ("PSID", "c", 1)]


def write_scores(
    path: Path,
    model: str,
    halvings: Sequence[float],
    *,
    keys: Sequence[tuple[str, str, int]] = KEYS,
    gender: str = "female",
    num_tokens: int = 1,
    info: tuple[str, str] = ("test", "careers-1"),
    **more_details: str,
) -> None:
    """Write a table in which observation i has probability 2 ** -halvings[i]."""
    rows = [
        {
            "survey": survey, "person": person, "position": position, "year": 1990 + position, "occupation": "1",
            "previous": "1" if position else None, "gender": gender, "num_tokens": num_tokens,
            "title": -halving * math.log(2), "terminated": -(halving + 1) * math.log(2),
        }
        for (survey, person, position), halving in zip(keys, halvings, strict=True)
    ]  # fmt: skip
    table = pa.Table.from_pylist(rows, schema=SCORE_SCHEMA)
    details = {"weights": "w-" + model, **(TRUE_MODEL if model == "truth" else {}), **more_details}
    write_score_table(table, ScoreTableInfo(model, info[0], info[1], "code-1", details), path)


def report_on(*runs: Path, output: Path | None = None, measure: str = "title", **settings: Any) -> ReportResult:
    """Write a report of 50 resamples, with PNG figures alone, since fonts of a PDF take a second each."""
    folder = None if output is None else str(output)
    given: dict[str, Any] = {"figure_formats": ("png",), **settings}
    return write_report(ReportSettings(tuple(map(str, runs)), "test", folder, measure, 50, 1, **given))  # type: ignore[arg-type]


CODES = ("1", "2", "3")
# P of the three titles after each of the five prompts; "1" is what was observed.
DISTRIBUTIONS = [(0.5, 0.25, 0.05), (0.25, 0.5, 0.25), (0.25, 0.3, 0.35), (0.125, 0.5, 0.25), (0.25, 0.2, 0.1)]


def title_rows(distributions: list[tuple[float | None, ...]], bounds: list[float]) -> pa.Table:
    rows = []
    for (survey, person, position), values, bound in zip(KEYS, distributions, bounds, strict=True):
        logs = [None if value is None else math.log(value) for value in values]
        mass = sum(value for value in values if value is not None)
        rows.append(
            {
                "survey": survey, "person": person, "position": position, "occupation": "1", "mass": mass,
                "bound": bound, "normalised": logs[0] - math.log(mass + bound), "title": logs, "terminated": logs,
            }
        )  # fmt: skip
    return pa.Table.from_pylist(rows, schema=TITLE_SCHEMA)


def write_titles(path: Path, model: str, **details: str) -> None:
    info = ScoreTableInfo(
        model, "test", "careers-1", "code-1", {"weights": "w-llm", "max_unscored_mass": "0", **details}
    )
    write_title_table(title_rows(DISTRIBUTIONS, [0.0] * 5), info, CODES, path)


def write_metrics(run: Path, lines: list[dict[str, Any]], rest: bytes = b"") -> None:
    """Write the metrics of a training, and after them what a kill has left."""
    run.mkdir(parents=True, exist_ok=True)
    (run / "metrics.jsonl").write_bytes("".join(json.dumps(line) + "\n" for line in lines).encode() + rest)


def step(number: int, loss: float, num_tokens: int, **more: float) -> dict[str, Any]:
    """Return the line of a step; two steps make an epoch."""
    facts = {"step": number, "epoch": number / 2, "loss_nats_per_token": loss, "step_tokens": num_tokens}
    return {**facts, "learning_rate": 0.1 / number, **more}


def prediction_info(measure: str = "normalised") -> ScoreTableInfo:
    return ScoreTableInfo("small", OWN_CAREERS, "f", "0", {"measure": measure})
