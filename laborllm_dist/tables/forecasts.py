"""Table of forecasts several years ahead, scores/SPLIT_forecast_hYEARS.parquet, and measures of their coherence.

Rows are sorted by (survey, person, position). Lists are probabilities that sum to 1, in the order of the file's
occupations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from laborllm_dist.errors import ScoreTableError
from laborllm_dist.io.number_format import format_decimals, format_perplexity
from laborllm_dist.tables.log_domain import perplexity_of
from laborllm_dist.tables.parquet import DistributionTable, ScoreTableInfo, read_lists, write_lists

Floats = npt.NDArray[np.float64]
ROUNDING = 1e-6  # of a probability, and of the sum of all
SMALLEST = float(np.finfo(np.float64).tiny)  # lower bound of a probability before its logarithm is taken
FORECAST_SCHEMA = pa.schema(
    [
        pa.field("survey", pa.string(), nullable=False),  # dataset tag of the corpus
        pa.field("person", pa.string(), nullable=False),  # id of the person in the corpus
        pa.field("position", pa.int32(), nullable=False),  # index of the start in the person's career
        pa.field("year", pa.int32(), nullable=False),  # calendar year of the start, the last year of history
        pa.field("target_year", pa.int32(), nullable=False),  # calendar year of the target
        pa.field("occupation", pa.string(), nullable=False),  # code of the observed occupation in the target year
        pa.field("direct", pa.float64(), nullable=False),  # log P of that occupation in the direct forecast, in nats
        pa.field("composed", pa.float64(), nullable=False),  # log P of it in the composed forecast, in nats
        pa.field("bound", pa.float64(), nullable=False),  # largest error of a probability, from paths left out
        pa.field("direct_all", pa.list_(pa.float64()), nullable=False),  # probabilities in the direct forecast
        pa.field("composed_all", pa.list_(pa.float64()), nullable=False),  # probabilities in the composed forecast
        pa.field("standard_error", pa.list_(pa.float64())),  # of composed_all; null: no sampled paths
    ]
)


@dataclass(frozen=True, slots=True)
class Coherence:
    """Agreement of direct and composed forecasts. Perplexities are of the observed titles, divergences in nats.

    `divergence_*`: KL(direct || composed). `correlation_*`: Pearson's, of the probabilities of observed or all titles;
    None where they do not vary.
    """

    num_forecasts: int
    num_people: int
    perplexity_direct: float
    perplexity_composed: float
    correlation_observed: float | None
    correlation_all: float | None
    divergence_mean: float
    divergence_median: float
    total_variation_mean: float
    total_variation_median: float
    bound_largest: float
    standard_error_mean: float | None


def forecast_table_path(score_table: Path, split: str, horizon: int) -> Path:
    """Return the path of the forecasts of a score table: test_forecast_h2.parquet, test_forecast_h2.MODEL.parquet."""
    return score_table.with_name(score_table.name.replace(split, f"{split}_forecast_h{horizon}", 1))


def write_forecast_table(table: pa.Table, info: ScoreTableInfo, occupations: Sequence[str], path: Path) -> None:
    """Sort by key and write atomically.

    Args:
        table: columns of FORECAST_SCHEMA, any row order.
        info: model and data of the forecasts, stored in the file's metadata.
        occupations: codes, in the order of the lists.
        path: Parquet file to write.
    """
    write_lists(table, FORECAST_SCHEMA, info, occupations, path)


def read_forecast_table(path: Path) -> DistributionTable:
    """Return forecasts with their metadata.

    Raises:
        ScoreTableError: if the file is missing, damaged or not a table of forecasts, or a number is no probability.
    """
    made_by = "deepspeed launch/forecast.py run=..."
    forecasts = read_lists(path, FORECAST_SCHEMA, kind="table of forecasts", made_by=made_by)
    if (problem := _problem_of(forecasts.table)) is not None:
        raise ScoreTableError(
            f"{path} is damaged: {problem}; delete it, and `{made_by}` writes it again", code="invalid-forecasts"
        )
    return forecasts


def _problem_of(table: pa.Table) -> str | None:
    """Return why forecasts are invalid, such as a value that is not a probability; None if they are valid."""
    if not table.num_rows:
        return "it has no forecasts"
    within = {"direct": (-np.inf, 0.0), "composed": (-np.inf, 0.0), "bound": (0.0, 1.0)}
    within |= dict.fromkeys(("direct_all", "composed_all", "standard_error"), (0.0, 1.0))
    for name, (least, most) in within.items():
        column = table[name].combine_chunks()
        values = (column.flatten() if pa.types.is_list(column.type) else column).to_numpy(zero_copy_only=False)
        if not ((values >= least) & (values <= most + ROUNDING)).all():  # NaN is not
            return f"column {name} has a number that no forecast has"
    for name in ("direct_all", "composed_all"):
        if np.abs(_matrix(table[name]).sum(axis=1) - 1).max() > ROUNDING:
            return f"the probabilities in a list {name} do not add up to 1"
    if table["standard_error"].null_count not in (0, table.num_rows):
        return "some forecasts are of sampled paths, and some are not"
    return None


def coherence_of(table: pa.Table) -> Coherence:
    """Compare the direct and the composed forecasts of a table."""
    direct_N, composed_N = (table[name].to_numpy() for name in ("direct", "composed"))
    direct_NT, composed_NT = (_matrix(table[name]) for name in ("direct_all", "composed_all"))
    ratios_NT = np.log(np.maximum(direct_NT, SMALLEST)) - np.log(np.maximum(composed_NT, SMALLEST))
    divergence_N = (direct_NT * ratios_NT).sum(axis=1)
    variation_N = 0.5 * np.abs(direct_NT - composed_NT).sum(axis=1)
    is_drawn = table["standard_error"].null_count == 0
    return Coherence(
        num_forecasts=table.num_rows,
        num_people=table.group_by(["survey", "person"]).aggregate([]).num_rows,
        perplexity_direct=float(perplexity_of(direct_N.mean())),
        perplexity_composed=float(perplexity_of(composed_N.mean())),
        correlation_observed=_correlation(np.exp(direct_N), np.exp(composed_N)),
        correlation_all=_correlation(direct_NT.ravel(), composed_NT.ravel()),
        divergence_mean=float(divergence_N.mean()),
        divergence_median=float(np.median(divergence_N)),
        total_variation_mean=float(variation_N.mean()),
        total_variation_median=float(np.median(variation_N)),
        bound_largest=float(table["bound"].to_numpy().max()),
        standard_error_mean=float(_matrix(table["standard_error"]).mean()) if is_drawn else None,
    )


def describe_coherence(coherence: Coherence, baseline: float | None) -> list[str]:
    """Describe the comparison in lines; `baseline` is the perplexity of a forecast from the last occupation alone."""
    alone = "" if baseline is None else f"; {format_perplexity(baseline)} from the last occupation alone"
    standard_error = coherence.standard_error_mean
    drawn = "" if standard_error is None else f", mean standard error {standard_error:.2g}"
    return [
        f"{coherence.num_forecasts:,} forecasts of {coherence.num_people:,} people",
        f"perplexity direct {format_perplexity(coherence.perplexity_direct)}, "
        f"composed {format_perplexity(coherence.perplexity_composed)}{alone}",
        f"correlation of probabilities {_number(coherence.correlation_observed)} (observed titles), "
        f"{_number(coherence.correlation_all)} (all titles)",
        f"KL(direct || composed) mean {_number(coherence.divergence_mean)}, "
        f"median {_number(coherence.divergence_median)} nats; "
        f"total variation mean {_number(coherence.total_variation_mean)}, "
        f"median {_number(coherence.total_variation_median)}",
        f"largest bound {coherence.bound_largest:.2g}{drawn}",
    ]


def _matrix(lists: pa.ChunkedArray) -> Floats:
    flat = lists.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return np.asarray(flat, dtype=np.float64).reshape(len(lists), -1)


def _correlation(left_N: Floats, right_N: Floats) -> float | None:
    if len(left_N) < 2 or not left_N.std() or not right_N.std():
        return None
    return float(np.corrcoef(left_N, right_N)[0, 1])


def _number(value: float | None) -> str:
    return "not defined" if value is None else format_decimals(value, 4)
