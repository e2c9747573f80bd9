"""Read survey weights for the observations of a report from a file of the survey.

A file has one row per person, or per person and year: often the panel that a run was made from. Score tables stay as
they are, so that one evaluation serves weighted and unweighted reports.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from laborllm_dist.careers.readers.cells import InexactIdError, person_id
from laborllm_dist.config.corpora import is_missing
from laborllm_dist.config.evaluation import WeightSettings
from laborllm_dist.errors import DataFileError
from laborllm_dist.tables.log_domain import Floats

Key = tuple[str | None, str, int | None]  # survey, person, year; None: the file has no such column


def read_weights(settings: WeightSettings, observations: pa.Table) -> Floats | None:
    """Return the weight of every observation, [observations]; None if no file is set.

    Raises:
        DataFileError: if the file cannot be read, a weight is not a number of 0 or more, a key has two weights, an
            observation has none, or all are 0.
    """
    if settings.path is None:
        return None
    path = Path(settings.path)
    surveys = observations["survey"].to_pylist()
    if settings.survey is None and len(set(surveys)) > 1:
        raise DataFileError(
            f"{path}: the observations are of {', '.join(sorted(set(surveys)))}, so people of several surveys may "
            "have one id; weights.survey= names the column of the survey",
            code="weights-without-survey",
        )
    weight_of = _weights_by_key(path, settings)
    none_N = [None] * len(surveys)
    keys: list[Key] = list(
        zip(
            surveys if settings.survey is not None else none_N,
            map(person_id, observations["person"].to_pylist()),
            observations["year"].to_pylist() if settings.year is not None else none_N,
            strict=True,
        )
    )
    absent = [key for key in keys if key not in weight_of]
    if absent:
        raise DataFileError(
            f"{path} has no weight in column {settings.column} for {len(absent):,} of {len(keys):,} observations, "
            f"first of {_describe(absent[0])}; an observation that is not to count has weight 0",
            code="observation-without-weight",
        )
    weights = np.array([weight_of[key] for key in keys])
    if not weights.any():
        raise DataFileError(f"{path}: the weights of all observations are 0", code="all-weights-zero")
    return weights


def _weights_by_key(path: Path, settings: WeightSettings) -> dict[Key, float]:
    weight_of: dict[Key, float] = {}
    for survey, person, year, cell in _rows(path, settings):
        if not person or is_missing(cell) or (year is not None and is_missing(year)):
            continue  # the observations that need a weight are checked
        try:
            key: Key = (survey, person_id(person), None if year is None else _year(year, path, settings))
        except InexactIdError as error:
            raise DataFileError(f"{path}, column {settings.person}: {error}", code="rounded-float-ids") from None
        weight = _number(cell)
        if weight is None or not 0 <= weight < np.inf:
            raise DataFileError(
                f"{path}, column {settings.column}: the weight of {_describe(key)} is {cell!r}; "
                "expected a number of 0 or more",
                code="invalid-weight",
            )
        if weight_of.setdefault(key, weight) != weight:
            hint = "; weights.year= names the column of the year" if settings.year is None else ""
            raise DataFileError(
                f"{path}, column {settings.column}: {_describe(key)} has the weights {weight_of[key]:g} and "
                f"{weight:g}{hint}",
                code="two-weights",
            )
    return weight_of


def _rows(path: Path, settings: WeightSettings) -> Iterator[tuple[str | None, str, str | None, str]]:
    """Give survey, person, year and weight of each row as texts."""
    names = (settings.survey, settings.person, settings.year, settings.column)
    chosen = [name for name in names if name is not None]
    table = _read(path, chosen)
    columns = dict(zip(chosen, (_texts(table[name]) for name in chosen), strict=True))
    absent: Sequence[Any] = [None] * table.num_rows
    yield from zip(*(absent if name is None else columns[name] for name in names), strict=True)


def _read(path: Path, names: Sequence[str]) -> pa.Table:
    if not path.is_file():
        raise DataFileError(f"no file of weights at {path} (weights.path)", code="no-weight-file")
    try:
        if path.suffix == ".parquet":
            return pq.read_table(path, columns=list(names)).select(list(names))
        options = pyarrow.csv.ConvertOptions(
            include_columns=list(names), column_types=dict.fromkeys(names, pa.string())
        )
        return pyarrow.csv.read_csv(path, convert_options=options)
    except (pa.ArrowException, KeyError, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise DataFileError(
            f"{path} cannot be read as a CSV or Parquet file with the columns {', '.join(names)}: {reason}",
            code="unreadable-weight-file",
        ) from None


def _texts(column: pa.ChunkedArray) -> list[str]:
    return ["" if value is None else str(value).strip() for value in column.to_pylist()]


def _year(cell: str, path: Path, settings: WeightSettings) -> int:
    number = _number(cell)
    if number is None or not number.is_integer():
        raise DataFileError(f"{path}, column {settings.year}: {cell!r} is no calendar year", code="invalid-weight-year")
    return int(number)


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _describe(key: Key) -> str:
    survey, person, year = key
    parts = [f"person {person!r}", *([f"of {survey}"] if survey is not None else [])]
    return " ".join([*parts, *([f"in {year}"] if year is not None else [])])
