"""Average of several models: the probabilities of their score tables, weighted as fits the validation people best.

    P(y) = sum_m w_m P_m(y),   w_m >= 0, sum_m w_m = 1

An average of probabilities is exact: what a table of titles says of every occupation is the average of what the tables
of the models say. The weights maximize the likelihood of the validation people, of titles with their line breaks; a
weight below LEAST_WEIGHT is 0. With split=validation the scored people are those who chose the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from laborllm_dist.errors import ScoreTableError
from laborllm_dist.tables.log_domain import log_sum_exp
from laborllm_dist.tables.parquet import KEY, ScoreTableInfo
from laborllm_dist.tables.scores import read_score_table
from laborllm_dist.tables.title_distributions import read_title_table

MOST_ITERATIONS = 100_000
LEAST_WEIGHT = 1e-6
LEAST_GAIN = 1e-12  # nats per observation
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Tables:
    """Score tables of the same observations, in the same order, a table a model."""

    tables: tuple[pa.Table, ...]
    infos: tuple[ScoreTableInfo, ...]

    def matrix(self, column: str) -> Floats:
        """Return a column of log-likelihoods of every model, [observations, models]."""
        return np.stack([table[column].to_numpy() for table in self.tables], axis=1)


def read_tables(paths: Sequence[Path]) -> Tables:
    """Read the score tables of several models.

    Raises:
        ScoreTableError: if one is missing or damaged, or they are not of the same observations.
    """
    parts = [read_score_table(path) for path in paths]
    first, keys = parts[0][1], parts[0][0].select(list(KEY))
    for path, (table, info) in zip(paths, parts, strict=True):
        if info.careers != first.careers or not table.select(list(KEY)).equals(keys):
            raise ScoreTableError(
                f"{path} and {paths[0]} are not of the same observations, so they have no average; score both models "
                "on the same data",
                code="average-of-different-observations",
            )
    return Tables(tuple(table for table, _ in parts), tuple(info for _, info in parts))


def mixture_weights(log_p_NM: Floats) -> Floats:
    """Return the weights on the simplex with the highest mean log-likelihood of a mixture, [models].

    The likelihood is concave in the weights; expectation maximization climbs it from equal weights.

    Args:
        log_p_NM: log P of the observed occupation by each model, [observations, models].
    """
    weights = np.full(log_p_NM.shape[1], 1 / log_p_NM.shape[1])
    largest_N1 = log_p_NM.max(axis=1, keepdims=True)
    relative_NM = np.exp(log_p_NM - largest_N1)
    before = -np.inf
    for _ in range(MOST_ITERATIONS):
        mixed_N = relative_NM @ weights
        likelihood = float(np.log(mixed_N).mean())
        if likelihood - before < LEAST_GAIN:
            break
        before, weights = likelihood, weights * (relative_NM / mixed_N[:, None]).mean(axis=0)
        weights /= weights.sum()
    weights = np.where(weights < LEAST_WEIGHT, 0.0, weights)
    return weights / float(weights.sum())


def averaged(log_p_NM: Floats, weights_M: Floats) -> Floats:
    """Return the log of the weighted mean of probabilities, [observations]."""
    used = weights_M > 0
    return log_sum_exp(log_p_NM[:, used] + np.log(weights_M[used]), axis=1)


def average_scores(tables: Tables, weights_M: Floats) -> pa.Table:
    """Return the rows of the average's score table."""
    table = tables.tables[0]
    table = table.set_column(
        table.schema.get_field_index("num_tokens"), "num_tokens", pa.array(np.zeros(len(table), dtype=np.int32))
    )
    for column in ("title", "terminated"):
        place = table.schema.get_field_index(column)
        table = table.set_column(place, column, pa.array(averaged(tables.matrix(column), weights_M)))
    return table


def average_titles(paths: Sequence[Path], weights_M: Floats) -> pa.Table:
    """Return the rows of the average's table of titles.

    Raises:
        ScoreTableError: if a table is missing, leaves titles out, or has titles that another one does not have.
    """
    parts = [read_title_table(path) for path in paths]
    first = parts[0]
    for path, part in zip(paths, parts, strict=True):
        is_whole = float(np.max(part.table["bound"].to_numpy(), initial=0.0)) == 0.0
        same_rows = part.table.select(list(KEY)).equals(first.table.select(list(KEY)))
        if part.occupations != first.occupations or not is_whole or not same_rows:
            what = "leaves titles out" if not is_whole else f"has other occupations or observations than {paths[0]}"
            raise ScoreTableError(
                f"{path} {what}, so it has no average with the others; score all titles of each model",
                code="average-of-different-titles",
            )
    mass = np.average([part.table["mass"].to_numpy() for part in parts], axis=0, weights=weights_M)
    columns = {name: first.table[name] for name in (*KEY, "occupation")}
    columns |= {"mass": pa.array(mass), "bound": pa.array(np.zeros(len(mass)))}
    num_titles = len(first.occupations)
    offsets = np.arange(0, len(mass) * num_titles + 1, num_titles, dtype=np.int32)
    observed = np.asarray(
        pa.compute.index_in(first.table["occupation"].combine_chunks(), pa.array(first.occupations)), dtype=np.int64
    )
    for column in ("title", "terminated"):
        flat = np.stack([np.asarray(pa.compute.list_flatten(part.table[column])) for part in parts], axis=1)
        mixed = averaged(flat, weights_M)
        columns[column] = pa.ListArray.from_arrays(offsets, pa.array(mixed))
    own = mixed.reshape(len(mass), num_titles)[np.arange(len(mass)), observed]
    columns["normalised"] = pa.array(np.minimum(own - np.log(mass), 0.0))
    return pa.table(columns)
