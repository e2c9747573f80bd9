"""Multinomial logit of the next occupation: one stage, all occupations in one softmax.

Regressors are dummies of the occupation before, of education, calendar year, gender, ethnicity, region and birth year,
and tenure and experience in decades. The objective is

    sum_i w_i (-log P_i)  +  strength / 2 ||B||^2

over all coefficients but the intercepts, as in scikit-learn's LogisticRegression with C = 1 / strength. The strength is
the one of a grid with the highest likelihood of the validation people.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import optimize, sparse, special

from laborllm_dist.baselines.features import CareerFeatures, Integers

STRENGTHS = (30.0, 10.0, 3.0, 1.0, 0.3)  # each fit begins where the one before ended
MOST_ITERATIONS = 500
CHUNK = 8_192  # observations whose probabilities are in memory at once
DECADE = 10.0  # years, so that regressors are of one size
Floats = npt.NDArray[np.float64]
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Logit:
    """Coefficients, [regressors, occupations], and intercepts, [occupations]."""

    coefficients: Floats
    intercepts: Floats
    strength: float

    def distributions(self, features: CareerFeatures) -> Iterator[tuple[Integers, Floats]]:
        """Yield the numbers of observations and log P of every occupation in nats, [observations, occupations]."""
        design, numbers = regressors(features), np.arange(len(features))
        for rows in _chunks(len(features)):
            yield numbers[rows], special.log_softmax(design[rows] @ self.coefficients + self.intercepts, axis=1)

    def log_likelihood(self, features: CareerFeatures) -> float:
        """Return the mean log-likelihood of observations, in nats."""
        parts = self.distributions(features)
        total = sum(float(_observed(log_p, features.occupation[rows]).sum()) for rows, log_p in parts)
        return total / len(features)


def fit_logit(train: CareerFeatures, weights: Floats, validation: CareerFeatures, say: Say) -> Logit:
    """Return the logit of weighted training people whose strength validation people like best.

    Args:
        train: features of the training people.
        weights: how many times an epoch takes each observation, [observations].
        validation: features of the validation people.
        say: takes a line of progress for each strength.
    """
    best, best_likelihood, start = None, -np.inf, None
    for strength in STRENGTHS:
        model = fit_with_strength(train, weights, strength, start)
        likelihood = model.log_likelihood(validation)
        say(f"logit: strength {strength:g}, validation perplexity {np.exp(-likelihood):.3f}")
        if best is not None and likelihood <= best_likelihood:
            break
        best, best_likelihood, start = model, likelihood, model
    assert best is not None
    return best


def fit_with_strength(
    train: CareerFeatures, weights: Floats, strength: float, start: Logit | None = None, tolerance: float = 1e-7
) -> Logit:
    """Return the coefficients that minimize the objective, by L-BFGS from zero or from another fit.

    Args:
        train: features of the training people.
        weights: of the observations, [observations]; those of weight 0 are left out.
        strength: of the penalty.
        start: another fit.
        tolerance: relative change of the objective that ends the search.
    """
    rows = np.flatnonzero(weights)
    design = sparse.csr_matrix(regressors(train)[rows])
    occupation, weight = train.occupation[rows], weights[rows]
    shape = (design.shape[1] + 1, train.num_occupations)  # the last row: intercepts

    def objective(flat: Floats) -> tuple[float, Floats]:
        parameters = flat.reshape(shape)
        loss, gradient = 0.0, np.zeros(shape)
        for chunk in _chunks(len(rows)):
            log_p = special.log_softmax(design[chunk] @ parameters[:-1] + parameters[-1], axis=1)
            loss -= float(weight[chunk] @ _observed(log_p, occupation[chunk]))
            residual = np.exp(log_p)
            residual[np.arange(len(residual)), occupation[chunk]] -= 1.0
            residual *= weight[chunk, None]
            gradient[:-1] += design[chunk].T @ residual
            gradient[-1] += residual.sum(axis=0)
        gradient[:-1] += strength * parameters[:-1]
        penalty = strength / 2 * float(np.square(parameters[:-1]).sum())
        total = float(weight.sum())
        return (loss + penalty) / total, gradient.ravel() / total

    first = np.zeros(shape) if start is None else np.vstack([start.coefficients, start.intercepts])
    found, _, _ = optimize.fmin_l_bfgs_b(
        objective, first.ravel(), factr=tolerance / np.finfo(float).eps, pgtol=tolerance / 10, maxiter=MOST_ITERATIONS
    )
    parameters = found.reshape(shape)
    return Logit(parameters[:-1], parameters[-1], strength)


def regressors(features: CareerFeatures) -> sparse.csr_matrix:
    """Return the regressors, [observations, regressors]; category 0 of a covariate is its reference."""
    columns = [_dummies(features.previous, features.num_occupations + 1)]
    for name, column in features.covariates.items():
        columns.append(_dummies(column - 1, features.num_categories[name] - 1))
    decades = np.stack([features.tenure, features.experience], axis=1) / DECADE
    return sparse.csr_matrix(sparse.hstack([*columns, sparse.csr_matrix(decades)]))


def _dummies(column: npt.NDArray[np.int64], size: int) -> sparse.csr_matrix:
    """Return a dummy for each category from 0 on; a row of -1 has none."""
    rows = np.flatnonzero(column >= 0)
    return sparse.csr_matrix((np.ones(len(rows)), (rows, column[rows])), shape=(len(column), size))


def _chunks(num_rows: int) -> Iterator[slice]:
    return (slice(start, start + CHUNK) for start in range(0, num_rows, CHUNK))


def _observed(log_p: Floats, occupation: npt.NDArray[np.int64]) -> Floats:
    """Return log P of the observed occupations, [observations]."""
    observed: Floats = log_p[np.arange(len(log_p)), occupation]
    return observed
