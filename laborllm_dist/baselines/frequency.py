"""Frequency tables: the marginal distribution of occupations, and P(occupation | one or two earlier occupations).

The marginal has add-one smoothing over the vocabulary. A row of the first-order table is drawn towards the marginal
as by `strength` extra observations,  P(y | x) = (n_xy + strength * m_y) / (n_x + strength).  The baseline takes the
strength of a grid with the highest likelihood of the validation people, and has a row for "no occupation yet". A
forecast several years ahead is compared with the same table over that many years. A row of the second-order table is
drawn towards that of the first-order table in the same way.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

from laborllm_dist.baselines.features import CareerFeatures
from laborllm_dist.store.pooling import TrainingPool, observation_weights, title_shares
from laborllm_dist.store.store import CareerTable

CHUNK = 8_192  # observations whose probabilities are in memory at once
STRENGTHS = tuple(float(2**power) for power in range(-3, 11))
Table = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class FrequencyTable:
    """log P(y | x) in nats, [occupations + 1, occupations]; the last row is for a first observation."""

    log_probabilities: Table
    details: dict[str, str]

    def distributions(self, careers: CareerTable) -> Iterator[tuple[Codes, Table]]:
        """Yield the numbers of observations and log P of every occupation, [observations, occupations]."""
        before, _ = careers.transitions()
        for rows in _chunks(len(before)):
            yield rows, self.log_probabilities[before[rows]]


@dataclass(frozen=True, slots=True)
class SecondOrderTable:
    """Counts of the occupation after each pair of earlier occupations, and the first-order table behind them.

    Attributes:
        pairs: pairs that were observed, sorted, [pairs]; `_pairs` says how a pair is one number.
        counts: of the occupations after each pair, [pairs, occupations].
        first_order: log P(y | x), [occupations + 1, occupations].
        strength: number of observations of the first-order table that each row is drawn towards it by.
    """

    pairs: Codes
    counts: sparse.csr_matrix
    first_order: Table
    strength: float

    @property
    def details(self) -> dict[str, str]:
        """What a score table says of it."""
        return {"smoothing": f"{self.strength:g} observations of the first-order table"}

    def distributions(self, features: CareerFeatures) -> Iterator[tuple[Codes, Table]]:
        """Yield the numbers of observations and log P of every occupation, [observations, occupations]."""
        pairs = _pairs(features)
        places = np.minimum(np.searchsorted(self.pairs, pairs), len(self.pairs) - 1)
        is_known = self.pairs[places] == pairs
        for rows in _chunks(len(pairs)):
            counts = np.asarray(self.counts[places[rows]].todense()) * is_known[rows, None]
            smoothed = counts + self.strength * np.exp(self.first_order[features.previous[rows]])
            yield rows, np.log(smoothed / smoothed.sum(axis=1, keepdims=True))

    def log_likelihood(self, features: CareerFeatures) -> float:
        """Return the log-likelihood of the observed occupations, in nats."""
        parts = self.distributions(features)
        return sum(float(log_p[np.arange(len(rows)), features.occupation[rows]].sum()) for rows, log_p in parts)


def marginal_table(train: CareerTable, pool: TrainingPool) -> FrequencyTable:
    """Return the share of every occupation, whatever was held before, among those a run trains on."""
    shares = title_shares(train, observation_weights(train, pool))
    rows = np.broadcast_to(np.log(shares), (len(shares) + 1, len(shares)))
    return FrequencyTable(rows.copy(), {"smoothing": "add one"})


def first_order_table(train: CareerTable, pool: TrainingPool, validation: CareerTable) -> FrequencyTable:
    """Return P(occupation | occupation before) of those a run trains on, smoothed as fits validation people best."""
    weights = observation_weights(train, pool)
    counts = transition_counts(*train.transitions(), len(train.vocabulary), weights)
    marginal = title_shares(train, weights)
    seen = validation.transitions()
    tables = {strength: markov_table(counts, marginal, strength) for strength in STRENGTHS}
    best = max(tables, key=lambda strength: float(tables[strength][seen].sum()))
    return FrequencyTable(tables[best], {"smoothing": f"{best:g} observations of the marginal"})


def second_order_table(
    train: CareerFeatures, weights: Table, validation: CareerFeatures, first_order: FrequencyTable
) -> SecondOrderTable:
    """Return P(occupation | the two before) of weighted training people, smoothed as fits validation people best.

    Args:
        train: features of the training people.
        weights: how many times an epoch takes each observation, [observations].
        validation: features of the validation people.
        first_order: the table that rows are drawn towards.
    """
    rows = np.flatnonzero(weights)
    pairs, places = np.unique(_pairs(train)[rows], return_inverse=True)
    shape = (len(pairs), train.num_occupations)
    counts = sparse.csr_matrix((weights[rows], (places, train.occupation[rows])), shape=shape)
    tables = [SecondOrderTable(pairs, counts, first_order.log_probabilities, strength) for strength in STRENGTHS]
    return max(tables, key=lambda table: table.log_likelihood(validation))


def _pairs(features: CareerFeatures) -> Codes:
    return features.second_previous * (features.num_occupations + 1) + features.previous


def _chunks(num_rows: int) -> Iterator[Codes]:
    return (np.arange(start, min(start + CHUNK, num_rows)) for start in range(0, num_rows, CHUNK))


def transition_counts(before_N: Codes, after_N: Codes, num_occupations: int, weights_N: Table | float = 1.0) -> Table:
    """Return how often each occupation follows each, [occupations + 1, occupations]; the last row: no earlier one."""
    counts = np.zeros((num_occupations + 1, num_occupations))
    np.add.at(counts, (before_N, after_N), weights_N)
    return counts


def markov_table(counts: Table, marginal: Table, strength: float) -> Table:
    """Return log P(y | x) of a first-order Markov model whose rows are smoothed towards the marginal, as `counts`."""
    rows: Table = (counts + strength * marginal) / (counts.sum(axis=1, keepdims=True) + strength)
    return np.log(rows)
