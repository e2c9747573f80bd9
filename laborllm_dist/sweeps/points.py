"""The points of a sweep, one per trained model: a CSV that launch/sweep.py writes and the scaling law is fitted to.

Runs that differ only in their seed have the same N and D. A user's own file may give the loss itself
(nats_per_observation) in place of a run's folder with a score table, and may leave out every column with a default.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from laborllm_dist.careers.readers.cells import whole_number
from laborllm_dist.careers.readers.tabular import column_names, note_doubled, read_rows
from laborllm_dist.careers.validation_report import Problems
from laborllm_dist.errors import DataFileError
from laborllm_dist.io.files import write_text


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepPoint:
    """One trained model of a sweep. None where a user's own file lacks the column or the cell is empty."""

    size: str  # name of the model size
    num_params: int  # with embeddings
    num_non_embedding_params: int
    num_observations: int  # D: observed occupations in the training people's careers, each counted once for all epochs
    run: str | None = None  # folder of the run, whose scores give the loss; relative to the working directory
    num_people: int | None = None  # distinct training people
    num_tokens: int | None = None  # of one epoch
    epochs: float = 1.0
    flops: float | None = None  # of the whole training
    seed: int = 1
    sources: str = ""  # names of the data's sources, joined by +
    pretrained: str = ""  # name of the base model; empty: trained from scratch
    nats_per_observation: float | None = None  # loss on test people, in place of the run's scores


def write_points(points: Sequence[SweepPoint], path: Path) -> None:
    """Write points as a CSV in the given order, atomically."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(SweepPoint)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(point) for point in points)  # None is an empty cell
    write_text(path, text.getvalue())


def read_points(path: Path) -> tuple[SweepPoint, ...]:
    """Read the points of a sweep, or of a user's own file; unknown columns are ignored.

    Raises:
        DataFileError: if the file is missing or not a CSV, lacks a column, has a column twice, has no rows, or has an
            invalid cell; or if a point has neither a run nor a loss, or only some points have a loss.
    """
    if not path.is_file():
        raise DataFileError(
            f"no table of points at {path}; launch/sweep.py writes points.csv into the sweep's folder",
            code="no-points-file",
        )
    problems = Problems(path, "line")
    table = read_rows(path, problems)
    place, header = next(table, (1, []))
    names = column_names(header)
    note_doubled(names, place, problems)
    rows = [values for _, values in table]
    problems.reject_if_any()
    if absent := [name for name in _REQUIRED if name not in names]:
        raise DataFileError(
            f"{path} has no column {', '.join(absent)}; a table of points has {', '.join(_REQUIRED)} and run or "
            "nats_per_observation",
            code="points-without-column",
        )
    if not rows:
        raise DataFileError(f"{path} has no points; expected a header and one row per run", code="no-points")
    points = tuple(_point(names, values, f"{path}, row {number}") for number, values in enumerate(rows, start=1))
    with_loss = sum(point.nats_per_observation is not None for point in points)
    if 0 < with_loss < len(points):
        raise DataFileError(
            f"{path} has nats_per_observation for {with_loss} of {len(points)} points; losses from a file and from "
            "score tables are not mixed: fill the column, or leave it empty",
            code="points-with-and-without-loss",
        )
    return points


def _point(names: Sequence[str], cells: Sequence[str], where: str) -> SweepPoint:
    if len(cells) != len(names):
        raise DataFileError(
            f"{where}, has {len(cells)} cells, the header has {len(names)}", code="points-row-of-another-length"
        )
    row, values = dict(zip(names, cells, strict=True)), dict[str, Any]()
    for name, (parse, expected) in _CELLS.items():
        cell = row.get(name, "").strip()
        if not cell and name not in _REQUIRED:
            continue
        try:
            values[name] = parse(cell)
        except (ValueError, OverflowError):
            raise DataFileError(
                f"{where}, column {name}: {cell!r} is not {expected}", code="invalid-points-cell"
            ) from None
    point = SweepPoint(**values)
    if point.run is None and point.nats_per_observation is None:
        raise DataFileError(
            f"{where}: a point needs a run's folder (run) or its loss (nats_per_observation)", code="point-without-loss"
        )
    return point


def _text(cell: str) -> str:
    if not cell or not cell.isprintable():
        raise ValueError
    return cell


def _integer(cell: str) -> int:
    number = whole_number(cell)
    if number is None:
        raise ValueError
    return number


def _count(cell: str) -> int:
    number = _positive(cell)  # 1e6 is a count too
    if not number.is_integer():
        raise ValueError
    return int(cell) if cell.isdecimal() else int(number)


def _positive(cell: str) -> float:
    number = float(cell)
    if not 0 < number < math.inf or "_" in cell or not cell.isascii():
        raise ValueError
    return number


_COUNT = (_count, "a whole number above 0")
_POSITIVE = (_positive, "a number above 0")
_NAME = (_text, "a name without control characters")
_CELLS: Mapping[str, tuple[Callable[[str], object], str]] = {
    "size": _NAME,
    "num_params": _COUNT,
    "num_non_embedding_params": _COUNT,
    "num_observations": _COUNT,
    "run": _NAME,
    "num_people": _COUNT,
    "num_tokens": _COUNT,
    "epochs": _POSITIVE,
    "flops": _POSITIVE,
    "seed": (_integer, "a whole number"),
    "sources": _NAME,
    "pretrained": _NAME,
    "nats_per_observation": _POSITIVE,
}
_REQUIRED = ("size", "num_params", "num_non_embedding_params", "num_observations")
