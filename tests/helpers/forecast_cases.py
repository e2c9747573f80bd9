"""Forecasts of chains whose probabilities are known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from laborllm_dist.forecasting.iterate import Distributions, IteratedForecast, Query, iterate_exact

CHAIN = np.array([[0.7, 0.2, 0.1], [0.3, 0.3, 0.4], [0.05, 0.05, 0.9]])


def full_sum(ask, num_starts: int, horizon: int) -> IteratedForecast:
    return iterate_exact(ask, num_starts, horizon=horizon, tolerance=0, max_paths=10**6)


def ask_chain(questions: Sequence[Query]) -> Distributions:
    """Answer as a first-order chain: start s holds title s, and years without a imputed title are summed over."""
    careers = [
        np.linalg.matrix_power(CHAIN, question.years_ahead - len(question.imputed))[
            question.imputed[-1] if question.imputed else question.start
        ]
        for question in questions
    ]
    return Distributions(np.log(np.array(careers)), np.zeros(len(questions)))
