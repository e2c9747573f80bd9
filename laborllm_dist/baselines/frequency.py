"""Frequency tables: the marginal distribution of occupations, and P(occupation | occupation before).

The marginal has add-one smoothing over the vocabulary. A row of the first-order table is drawn towards the marginal
as by `strength` extra observations,  P(y | x) = (n_xy + strength * m_y) / (n_x + strength),  and the strength is the
one of a grid with the highest likelihood of the validation people. "No occupation yet" is a row of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from laborllm_dist.store.pooling import TrainingPool, observation_weights, title_shares
from laborllm_dist.store.store import CareerTable

STRENGTHS = tuple(float(2**power) for power in range(-3, 11))
Table = npt.NDArray[np.float64]


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
    """Return P(occupation | occupation before) of those a run trains on, smoothed as validation people like it best."""
    num_occupations = len(train.vocabulary)
    before, after = train.transitions()
    weights = observation_weights(train, pool)
    counts = np.zeros((num_occupations + 1, num_occupations))
    np.add.at(counts, (before, after), weights)
    marginal = title_shares(train, weights)
    seen = validation.transitions()
    tables = {strength: _smoothed(counts, marginal, strength) for strength in STRENGTHS}
    best = max(tables, key=lambda strength: float(tables[strength][seen].sum()))
    return FrequencyTable(tables[best], {"smoothing": f"{best:g} observations of the marginal"})


def _smoothed(counts: Table, marginal: Table, strength: float) -> Table:
    rows: Table = (counts + strength * marginal) / (counts.sum(axis=1, keepdims=True) + strength)
    return np.log(rows)
