"""Frequency tables: the marginal distribution of occupations, and P(occupation | an earlier occupation).

The marginal has add-one smoothing over the vocabulary. A row of the first-order table is drawn towards the marginal
as by `strength` extra observations,  P(y | x) = (n_xy + strength * m_y) / (n_x + strength).  The baseline takes the
strength of a grid with the highest likelihood of the validation people, and has a row for "no occupation yet". A
forecast several years ahead is compared with the same table over that many years.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from laborllm_dist.store.pooling import TrainingPool, observation_weights, title_shares
from laborllm_dist.store.store import CareerTable

STRENGTHS = tuple(float(2**power) for power in range(-3, 11))
Table = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class FrequencyTable:
    """log P(y | x) in nats, [occupations + 1, occupations]; the last row is for a first observation."""

    log_probabilities: Table
    details: dict[str, str]

    def scores(self, careers: CareerTable) -> npt.NDArray[np.float64]:
        """Return log P of every observation, in the order of careers and jobs."""
        before, after = careers.transitions()
        return self.log_probabilities[before, after]


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


def transition_counts(before_N: Codes, after_N: Codes, num_occupations: int, weights_N: Table | float = 1.0) -> Table:
    """Return how often each occupation follows each, [occupations + 1, occupations]; the last row: no earlier one."""
    counts = np.zeros((num_occupations + 1, num_occupations))
    np.add.at(counts, (before_N, after_N), weights_N)
    return counts


def markov_table(counts: Table, marginal: Table, strength: float) -> Table:
    """Return log P(y | x) of a first-order Markov model whose rows are smoothed towards the marginal, as `counts`."""
    rows: Table = (counts + strength * marginal) / (counts.sum(axis=1, keepdims=True) + strength)
    return np.log(rows)
