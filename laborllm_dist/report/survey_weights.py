"""Read survey weights for the observations of a report from a file of the survey.

A file has one row per person, or per person and year: often the panel that a run was made from. Score tables stay as
they are, so that one evaluation serves weighted and unweighted reports.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from laborllm_dist.careers.readers.cells import InexactIdError, person_id, whole_number, with_plain_blanks
from laborllm_dist.careers.readers.tabular import column_names, note_doubled, read_rows, unit_of
from laborllm_dist.careers.validation_report import Problems
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
    """Yield survey, person, year and weight of each row as texts; None: the file has no such column."""
    if not path.exists():
        raise DataFileError(f"no file of weights at {path} (weights.path)", code="no-weight-file")
    names = (settings.survey, settings.person, settings.year, settings.column)
    problems = Problems(path, unit_of(path))
    columns_read = [name for name in names if name is not None]
    rows = read_rows(path, problems, lambda header: columns_read, measured=(settings.column,))
    place, header = next(rows, (1, []))
    known = column_names(header)
    note_doubled([name for name in known if name in names], place, problems)
    for use, name in zip(("survey", "person", "year", "column"), names, strict=True):
        if name is not None and name not in known:
            problems.add(place, name, f"missing; the columns are {', '.join(known)}; weights.{use}= names another")
    problems.reject_if_any()
    columns = [None if name is None else known.index(name) for name in names]
    for place, values in rows:
        if len(values) != len(header):
            problems.add(place, None, f"{len(values)} values, the header has {len(header)}")
            continue
        survey, person, year, weight = (None if at is None else with_plain_blanks(values[at]) for at in columns)
        yield survey, person or "", year, weight or ""
    problems.reject_if_any()


def _year(cell: str, path: Path, settings: WeightSettings) -> int:
    year = whole_number(cell)
    if year is None:
        raise DataFileError(f"{path}, column {settings.year}: {cell!r} is no calendar year", code="invalid-weight-year")
    return year


def _number(cell: str) -> float | None:
    try:
        return float(cell) if cell.isascii() and "_" not in cell else None
    except ValueError:
        return None


def _describe(key: Key) -> str:
    survey, person, year = key
    parts = [f"person {person!r}", *([f"of {survey}"] if survey is not None else [])]
    return " ".join([*parts, *([f"in {year}"] if year is not None else [])])
