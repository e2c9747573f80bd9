"""Sums and means of probabilities in the log domain, since the probabilities may be too small for float64.

Below about -745 nats exp(x) underflows to 0, so a naive log(sum(exp(x))) is minus infinity, and dividing by the sum
gives infinity. The project adds up log-likelihoods with `log_sum_exp` only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special

Floats = npt.NDArray[np.float64]
SMALLEST = float(np.finfo(np.float64).smallest_subnormal)


def log_sum_exp(log_values: Floats, axis: int) -> Floats:
    """Return log(sum(exp(x))) along an axis; minus infinity, never NaN, if all values are minus infinity."""
    return np.asarray(special.logsumexp(log_values, axis=axis), dtype=np.float64)


def upper_probability(log_values: Floats) -> Floats:
    """Return exp(x), rounded up to the smallest float64 on underflow, so that only an impossible event has 0."""
    return np.where(np.isneginf(log_values), 0.0, np.maximum(np.exp(log_values), SMALLEST))


def perplexity_of(mean_log_likelihood: Any) -> Floats:
    """Return exp(-mean) of a mean in nats; infinity below about -709 nats, where it overflows float64."""
    with np.errstate(over="ignore"):
        return np.asarray(np.exp(-np.asarray(mean_log_likelihood, dtype=np.float64)))
