"""Metrics of the distribution over all titles, for models that have one (evaluate.py titles=all).

Valid titles: the mass that a model gives to titles at all; the rest goes to texts that are none. Top k: the observed
title is among the k most probable ones. In bounded mode unscored titles could rank above a rarer
observed one; they are then counted as if they did, so a share is never too high.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from laborllm_dist.config.evaluation import ReportSettings
from laborllm_dist.report.bootstrap import Estimate, estimate, resample_means
from laborllm_dist.report.load import ComparedScores, FloatArray, ScoredModel, titles_of
from laborllm_dist.tables.log_domain import perplexity_of
from laborllm_dist.tables.parquet import DistributionTable

TOP = (1, 5, 10)
MOST_TITLES = 50.0  # nats: more than any list has


@dataclass(frozen=True, slots=True)
class TitleNumbers:
    """One model's distributions on all observations. `largest_bound`: upper bound of the unscored mass."""

    model: str
    valid_titles: Estimate  # mean mass of all titles
    normalised_perplexity: Estimate
    top_1: Estimate
    top_5: Estimate
    top_10: Estimate
    largest_bound: float


def title_numbers(compared: ComparedScores, settings: ReportSettings) -> tuple[TitleNumbers, ...]:
    """Give the numbers of every model that has a table of titles, in the order of the models."""
    numbers: list[TitleNumbers] = []
    for model in compared.models:
        table = _table_of(model, settings.split)
        if table is None:
            continue
        rank_N = observed_ranks(table)
        values_VN = np.stack(
            [
                np.asarray(table.table["mass"].to_numpy()),
                np.asarray(table.table["normalised"].to_numpy()),
                *((rank_N <= top).astype(np.float64) for top in TOP),
            ]
        )
        means = resample_means(
            values_VN,
            np.zeros((1, len(rank_N)), dtype=np.int64),
            compared.person_of_row,
            num_draws=settings.bootstrap_draws,
            seed=settings.seed,
        )
        values_V, draws_VD = means.sample_MG[:, 0], means.draws_MGD[:, 0]
        values_V[1], draws_VD[1] = perplexity_of(values_V[1]), perplexity_of(draws_VD[1])
        valid, normalised, top_1, top_5, top_10 = (
            estimate(float(value), draws_D, num_people=compared.num_people)
            for value, draws_D in zip(values_V, draws_VD, strict=True)
        )
        largest = float(np.max(table.table["bound"].to_numpy()))
        numbers.append(TitleNumbers(model.name, valid, normalised, top_1, top_5, top_10, largest))
    return tuple(numbers)


def observed_ranks(table: DistributionTable) -> FloatArray:
    """Return the rank of every observed title among all, 1 for the most probable one; at worst, where some are null."""
    place_of = {code: place for place, code in enumerate(table.occupations)}
    ranks = np.empty(table.table.num_rows)
    first = 0
    for batch in table.table.select(["occupation", "bound", "terminated"]).to_batches(max_chunksize=4096):
        num_rows = batch.num_rows
        lists = np.asarray(batch["terminated"].flatten().to_numpy(zero_copy_only=False), dtype=np.float64)
        scores_NT = lists.reshape(num_rows, len(table.occupations))
        own_N = scores_NT[np.arange(num_rows), [place_of[code] for code in batch["occupation"].to_pylist()]]
        num_above_N = (scores_NT > own_N[:, None]).sum(axis=1)  # null is NaN here, which is above nothing
        num_unscored_N = np.isnan(scores_NT).sum(axis=1)
        with np.errstate(divide="ignore"):  # log 0: nothing is left
            log_bound_N = np.log(np.asarray(batch["bound"].to_numpy()))
        could_N = np.floor(np.exp(np.minimum(log_bound_N - own_N, MOST_TITLES)))
        ranks[first : first + num_rows] = 1 + num_above_N + np.minimum(num_unscored_N, could_N)
        first += num_rows
    return ranks


def _table_of(model: ScoredModel, split: str) -> DistributionTable | None:
    return titles_of(model.files[0], split) if model.files else None
