"""Sums and means of probabilities by their logarithms, since the probabilities themselves may be too small for float64.

Below about -745 nats exp() is 0, so log(sum(exp(x))) is minus infinity, and whatever is divided by that sum infinite.
`log_sum_exp` is the only way that log-likelihoods are added up here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special

Floats = npt.NDArray[np.float64]
SMALLEST = float(np.finfo(np.float64).smallest_subnormal)


def log_sum_exp(log_values: Floats, axis: int) -> Floats:
    """Return log(sum(exp(x))) along an axis: of impossible events alone (minus infinity) minus infinity, never NaN."""
    return np.asarray(special.logsumexp(log_values, axis=axis), dtype=np.float64)


def upper_probability(log_values: Floats) -> Floats:
    """Return exp(x), rounded up where it is too small for float64: 0 is an impossible event, and no other one."""
    return np.where(np.isneginf(log_values), 0.0, np.maximum(np.exp(log_values), SMALLEST))


def perplexity_of(mean_log_likelihood: Any) -> Floats:
    """Return exp of minus a mean in nats; infinite below about -709 nats, where it is too large for float64."""
    with np.errstate(over="ignore"):
        return np.asarray(np.exp(-np.asarray(mean_log_likelihood, dtype=np.float64)))
