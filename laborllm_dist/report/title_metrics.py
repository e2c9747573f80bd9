"""Metrics of the distribution over all titles, for models that have one (evaluate.py titles=all).

Valid titles: the mass that a model gives to titles at all; the rest goes to texts that are none. Top k (recall@k): the
observed title is among the k most probable ones. MRR: the mean of 1 / rank. Both are also reported for moves alone
(the title differs from the previous one), where a model cannot score by repeating the previous title.

A table is read once, a block of rows at a time, into a few numbers per observation (`TitleFacts`); titles that share a
rank share the mean of their places. In bounded mode unscored titles could rank above a rarer observed one; they
are then counted as if they did, so no share and no MRR is too high.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pyarrow as pa

from laborllm_dist.report.bootstrap import BoolArray, Estimate, ResampledPeople, estimate, resample_means
from laborllm_dist.report.load import CodeArray, ComparedScores, FloatArray
from laborllm_dist.report.nonemployment import LaborStates
from laborllm_dist.tables.log_domain import log_sum_exp, perplexity_of
from laborllm_dist.tables.parquet import DistributionTable
from laborllm_dist.tables.scores import transition_of

TOP = (1, 5, 10)
VALUES = ("valid", "normalised", "top_1", "top_5", "top_10", "mrr")
MOST_TITLES = 50.0  # nats: more than any list has
ROWS_AT_A_TIME = 4096
# Sets of titles whose probability a report needs.
UNEMPLOYED, OUT_OF_LABOR_FORCE, ANY_STATE, AT_WORK = range(4)


@dataclass(frozen=True, slots=True)
class TitleFacts:
    """What a report needs of a table of titles, a value for every observation.

    Probabilities are shares of the mass of all titles. `set_probability_SN`: by set of titles. `is_exact_SN`: every
    title of the set was scored individually; `bound` holds what was not.
    """

    model: str
    mass_N: FloatArray
    normalised_N: FloatArray
    largest_bound: float
    rank_N: FloatArray  # of the observed title, 1 for the most probable one
    top_probability_N: FloatArray  # of the most probable title
    top_is_observed_N: FloatArray  # 1 if it is the observed one; 1 / k if that is one of k equal ones
    top_is_exact_N: BoolArray  # no title that was not scored can be more probable
    previous_probability_N: FloatArray  # of the previous title; 0 at a person's first observation
    previous_is_exact_N: BoolArray
    set_probability_SN: FloatArray
    set_is_exact_SN: BoolArray


@dataclass(frozen=True, slots=True)
class TitleNumbers:
    """One model's distributions on all observations, and on moves. `largest_bound`: upper bound of the unscored mass.

    What concerns moves is None if nobody moves.
    """

    model: str
    valid_titles: Estimate  # mean mass of all titles
    normalised_perplexity: Estimate
    top_1: Estimate
    top_5: Estimate
    top_10: Estimate
    mrr: Estimate
    moves_mrr: Estimate | None
    moves_top_5: Estimate | None
    moves_top_10: Estimate | None
    num_moves: int
    num_moving_people: int
    largest_bound: float


@dataclass(frozen=True, slots=True)
class TitlePairNumbers:
    """Two models' ranks on the same resamples: first minus second, so above 0 the first is better."""

    first: str
    second: str
    mrr: Estimate
    moves_mrr: Estimate | None
    moves_top_10: Estimate | None


@dataclass(frozen=True, slots=True)
class TitleScores:
    """Rows of a table of titles: log-likelihoods (NaN: not scored), shares of the mass of all, observed titles."""

    scores_NT: FloatArray
    log_bound_N: FloatArray
    shares_NT: FloatArray
    own_N: CodeArray

    @staticmethod
    def of(batch: pa.RecordBatch, occupations: Sequence[str]) -> TitleScores:
        """Return the scores of rows whose lists have the order of `occupations`."""
        lists = np.asarray(batch["terminated"].flatten().to_numpy(zero_copy_only=False), dtype=np.float64)
        scores_NT = lists.reshape(batch.num_rows, len(occupations))  # null is NaN here
        with np.errstate(divide="ignore"):  # log 0: nothing is left
            log_bound_N = np.log(np.asarray(batch["bound"].to_numpy()))
        place_of = {code: place for place, code in enumerate(occupations)}
        own_N = np.array([place_of[code] for code in batch["occupation"].to_pylist()])
        scored_NT = np.where(np.isnan(scores_NT), -np.inf, scores_NT)
        log_total_N = np.logaddexp(log_sum_exp(scored_NT, axis=1), log_bound_N)
        return TitleScores(scores_NT, log_bound_N, np.exp(scored_NT - log_total_N[:, None]), own_N)

    def ranks(self, place_N: CodeArray) -> FloatArray:
        """Return the rank of a title of every row among all titles; at worst, where some are null."""
        own_N = self.scores_NT[np.arange(len(place_N)), place_N]
        num_above_N = (self.scores_NT > own_N[:, None]).sum(axis=1)
        num_tied_N = (self.scores_NT == own_N[:, None]).sum(
            axis=1
        ) - 1  # one that ranks nothing: the mean of all places
        num_unscored_N = np.isnan(self.scores_NT).sum(axis=1)
        could_N = np.floor(np.exp(np.minimum(self.log_bound_N - own_N, MOST_TITLES)))
        ranks: FloatArray = 1 + num_above_N + num_tied_N / 2 + np.minimum(num_unscored_N, could_N)
        return ranks


@dataclass(frozen=True, slots=True)
class TitleRows:
    """Some rows of a table of titles; `occupations` are the codes of its lists."""

    occupations: tuple[str, ...]
    scores: TitleScores


def rows_of_table(table: DistributionTable, rows: CodeArray) -> TitleRows:
    """Return some rows of a table of titles, at least one."""
    taken = table.table.select(["occupation", "bound", "terminated"]).take(pa.array(rows))
    (batch,) = taken.combine_chunks().to_batches()
    return TitleRows(table.occupations, TitleScores.of(batch, table.occupations))


def facts_of_table(
    model: str, table: DistributionTable, previous: Sequence[str | None], states: LaborStates
) -> TitleFacts:
    """Reduce a table of titles to its facts.

    Args:
        model: name of the model.
        table: distributions over all titles.
        previous: the previous occupation of each observation; None: the first one of a person.
        states: the states without an occupation.
    """
    blocks, first = [], 0
    for batch in table.table.select(["occupation", "bound", "terminated"]).to_batches(max_chunksize=ROWS_AT_A_TIME):
        before = previous[first : first + batch.num_rows]
        blocks.append(_facts_of_block(batch, table.occupations, before, states))
        first += batch.num_rows
    return TitleFacts(
        model,
        np.asarray(table.table["mass"].to_numpy()),
        np.asarray(table.table["normalised"].to_numpy()),
        float(np.max(table.table["bound"].to_numpy())),
        *(np.concatenate(parts, axis=-1) for parts in zip(*blocks, strict=True)),
    )


def _facts_of_block(
    batch: pa.RecordBatch, occupations: tuple[str, ...], previous: Sequence[str | None], states: LaborStates
) -> tuple[FloatArray | BoolArray, ...]:
    """Return rank, top probability, ..., in the order of TitleFacts."""
    scores = TitleScores.of(batch, occupations)
    own, shares_NT, is_scored_NT = scores.own_N, scores.shares_NT, ~np.isnan(scores.scores_NT)
    rows, place_of = np.arange(batch.num_rows), {code: place for place, code in enumerate(occupations)}
    before = np.array([-1 if code is None else place_of.get(code, -1) for code in previous])
    top_N = np.argmax(np.where(is_scored_NT, scores.scores_NT, -np.inf), axis=1)
    is_state_T = states.are_among(sorted(states.all_codes), occupations)
    sets_ST = np.stack(
        [
            states.are_among(states.unemployed, occupations),
            states.are_among(states.not_in_labor_force, occupations),
            is_state_T,
            ~is_state_T,
        ]
    )
    return (
        scores.ranks(own),
        shares_NT[rows, top_N],
        (shares_NT[rows, own] == shares_NT[rows, top_N]) / (shares_NT == shares_NT[rows, top_N, None]).sum(axis=1),
        scores.log_bound_N <= scores.scores_NT[rows, top_N],
        np.where(before >= 0, shares_NT[rows, before], 0.0),
        (before < 0) | is_scored_NT[rows, before],
        # Sums of rows, not a matrix product: equal distributions get equal sums, to the last bit, so ties stay ties.
        np.stack([shares_NT[:, each].sum(axis=1) for each in sets_ST]),
        np.stack([is_scored_NT[:, each].all(axis=1) for each in sets_ST]),
    )


def moves_of(observations: pa.Table) -> BoolArray:
    """Return which observations are moves."""
    pairs = zip(observations["previous"].to_pylist(), observations["occupation"].to_pylist(), strict=True)
    return np.array([transition_of(*pair) == "moving" for pair in pairs])


def title_numbers(
    facts: Sequence[TitleFacts], compared: ComparedScores, people: ResampledPeople
) -> tuple[tuple[TitleNumbers, ...], tuple[TitlePairNumbers, ...]]:
    """Give the numbers of every model that has a table of titles, in the order of the models, and of their pairs."""
    if not facts:
        return (), ()
    is_move_N = moves_of(compared.observations)
    everybody, moving = 0, 1
    groups_KN = np.stack([np.full(len(is_move_N), everybody), np.where(is_move_N, moving, moving + 1)])
    values_VN = np.stack([value_N for each in facts for value_N in _values_of(each)])
    means = resample_means(values_VN, groups_KN, people)
    num_people_G = means.num_people_G

    def sample_and_draws(model: int, value: str, group: int) -> tuple[float, FloatArray]:
        row = model * len(VALUES) + VALUES.index(value)
        sample, draws_D = float(means.sample_MG[row, group]), means.draws_MGD[row, group]
        return (float(perplexity_of(sample)), perplexity_of(draws_D)) if value == "normalised" else (sample, draws_D)

    def one(model: int, value: str, group: int = everybody) -> Estimate:
        return estimate(*sample_and_draws(model, value, group), num_people=int(num_people_G[group]))

    def apart(first: int, second: int, value: str, group: int = everybody) -> Estimate:
        (sample, draws_D), (other, other_D) = (sample_and_draws(model, value, group) for model in (first, second))
        return estimate(sample - other, draws_D - other_D, num_people=int(num_people_G[group]))

    has_moves = bool(is_move_N.any())
    numbers = tuple(
        TitleNumbers(
            model=each.model,
            valid_titles=one(place, "valid"),
            normalised_perplexity=one(place, "normalised"),
            top_1=one(place, "top_1"),
            top_5=one(place, "top_5"),
            top_10=one(place, "top_10"),
            mrr=one(place, "mrr"),
            moves_mrr=one(place, "mrr", moving) if has_moves else None,
            moves_top_5=one(place, "top_5", moving) if has_moves else None,
            moves_top_10=one(place, "top_10", moving) if has_moves else None,
            num_moves=int(is_move_N.sum()),
            num_moving_people=int(num_people_G[moving]) if has_moves else 0,
            largest_bound=each.largest_bound,
        )
        for place, each in enumerate(facts)
    )
    pairs = tuple(
        TitlePairNumbers(
            first=facts[first].model,
            second=facts[second].model,
            mrr=apart(first, second, "mrr"),
            moves_mrr=apart(first, second, "mrr", moving) if has_moves else None,
            moves_top_10=apart(first, second, "top_10", moving) if has_moves else None,
        )
        for first, second in combinations(range(len(facts)), 2)
    )
    return numbers, pairs


def _values_of(facts: TitleFacts) -> tuple[FloatArray, ...]:
    """Return what is averaged, in the order of VALUES."""
    tops = ((facts.rank_N <= top).astype(np.float64) for top in TOP)
    return facts.mass_N, facts.normalised_N, *tops, 1 / facts.rank_N
