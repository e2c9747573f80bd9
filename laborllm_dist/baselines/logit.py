"""Multinomial logit of the next occupation: one stage, all occupations in one softmax.

Regressors are dummies of the occupation before, of education, calendar year, gender, ethnicity, region and birth year,
and tenure and experience in decades. The objective is

    sum_i w_i (-log P_i)  +  strength / 2 ||B||^2

over all coefficients but the intercepts, as in scikit-learn's LogisticRegression with C = 1 / strength. The strength is
the one of a grid with the highest likelihood of the validation people. Regressors may be any others: `embedding_logit`
takes the hidden states of a language model.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from scipy import optimize, sparse

from laborllm_dist.baselines.features import CareerFeatures, Integers
from laborllm_dist.io.number_format import format_perplexity
from laborllm_dist.tables.log_domain import perplexity_of

logger = logging.getLogger(__name__)

STRENGTHS = (30.0, 10.0, 3.0, 1.0, 0.3)  # each fit begins where the one before ended
MOST_ITERATIONS = 1_000
TOLERANCE = 1e-7  # relative change of the objective that ends a fit
SEARCH_TOLERANCE = 1e-6  # while a strength is chosen
CHUNK = 4_096  # observations whose probabilities are in memory at once
DECADE = 10.0  # years, so that regressors are of one size
Floats = npt.NDArray[np.float64]


class Design(Protocol):
    """Regressors, [observations, regressors]: a sparse or dense matrix, or what reads rows of one from a file."""

    @property
    def shape(self) -> tuple[int, int]:
        """Number of observations and of regressors."""

    @property
    def dtype(self) -> Any:
        """Precision of the products."""

    def __getitem__(self, rows: slice) -> Any:
        """Return the matrix of these rows."""

    def astype(self, dtype: npt.DTypeLike) -> Any:
        """Return it in another precision."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Observations of a logit: regressors, [observations, regressors]; occupation and weight of each."""

    design: Design
    occupation: Integers
    weights: Floats

    def in_precision(self, precision: type[np.floating[Any]]) -> Sample:
        """Return the sample with regressors of another precision."""
        return Sample(self.design.astype(precision), self.occupation, self.weights)


@dataclass(frozen=True, slots=True)
class Logit:
    """Coefficients, [regressors, seen], and intercepts, [seen], of the occupations that training people have.

    `log_shares` is the log of the share of every occupation in training, each counted once more, [occupations]. An
    occupation that nobody has in training has no coefficients, so it has this share; the logit divides the rest.
    """

    coefficients: Floats
    intercepts: Floats
    seen: Integers
    log_shares: Floats
    strength: float

    def distributions(self, design: Design) -> Iterator[tuple[Integers, Floats]]:
        """Yield the numbers of observations and log P of every occupation in nats, [observations, occupations]."""
        numbers = np.arange(design.shape[0])
        log_rest = np.log(np.exp(self.log_shares[self.seen]).sum())
        for rows in _chunks(len(numbers)):
            logits = torch.from_numpy(design[rows] @ self.coefficients + self.intercepts)
            log_p = np.tile(self.log_shares, (len(logits), 1))
            log_p[:, self.seen] = torch.log_softmax(logits, dim=1).numpy() + log_rest
            yield numbers[rows], log_p

    def log_likelihood(self, sample: Sample) -> float:
        """Return the weighted mean log-likelihood of observations, in nats."""
        total = 0.0
        for rows, log_p in self.distributions(sample.design):
            total += float(sample.weights[rows] @ log_p[np.arange(len(rows)), sample.occupation[rows]])
        return total / float(sample.weights.sum())


def fit_logit(train: Sample, validation: Sample, num_occupations: int, label: str, strengths: Sequence[float]) -> Logit:
    """Return the logit of the training sample whose strength the validation sample likes best.

    Strengths are tried from the strongest on, in single precision, and each search begins where the one before ended;
    the first that is no better than the one before ends them. The best is then fitted to the end in double precision.

    Args:
        train: the sample to fit; its weights say how many times an epoch takes each observation.
        validation: the sample that chooses.
        num_occupations: size of the vocabulary.
        label: names the baseline in the line of progress of each strength.
        strengths: of the penalty, falling.
    """
    best, best_likelihood = None, -np.inf
    single = train.in_precision(np.float32)
    for strength in strengths:
        model = fit_with_strength(single, num_occupations, strength, best, SEARCH_TOLERANCE)
        likelihood = model.log_likelihood(validation)
        perplexity = format_perplexity(float(perplexity_of(likelihood)))
        logger.info(f"baselines: {label}, strength {strength:g}, validation perplexity {perplexity}")
        if likelihood <= best_likelihood:
            break
        best, best_likelihood = model, likelihood
    assert best is not None
    return fit_with_strength(train, num_occupations, best.strength, best)


def fit_with_strength(
    sample: Sample, num_occupations: int, strength: float, start: Logit | None = None, tolerance: float = TOLERANCE
) -> Logit:
    """Return the coefficients that minimize the objective, by L-BFGS from the shares or from another fit of the sample.

    A rare category has little curvature and a frequent one much. So the search is for each coefficient times the square
    root of its curvature where all coefficients are 0 and P is the share of the occupation, which is

        h_jk = sum_i w_i x_ij^2 p_k (1 - p_k) + strength,

    and takes half the steps. Products are in the precision of the design, sums over chunks in double precision.

    Args:
        sample: the observations; those of weight 0 only take time.
        num_occupations: size of the vocabulary.
        strength: of the penalty.
        start: another fit.
        tolerance: relative change of the objective that ends the search.
    """
    counts = np.bincount(sample.occupation, sample.weights, minlength=num_occupations)
    seen = np.flatnonzero(counts)
    place = np.cumsum(counts > 0) - 1
    shape = (sample.design.shape[1] + 1, len(seen))  # the last row: intercepts
    total, precision = float(counts.sum()), sample.design.dtype
    scale = np.sqrt(_curvature(sample, counts[seen] / total, strength))

    def objective(flat: Floats) -> tuple[float, Floats]:
        parameters = flat.reshape(shape) / scale
        coefficients, intercepts = parameters[:-1].astype(precision), parameters[-1].astype(precision)
        loss, gradient = 0.0, np.zeros(shape)
        for chunk in _chunks(len(sample.occupation)):
            design, occupation = sample.design[chunk], place[sample.occupation[chunk]]
            weight = sample.weights[chunk, None].astype(precision)
            rows, logits = np.arange(len(occupation)), design @ coefficients
            logits += intercepts
            log_p = torch.log_softmax(torch.from_numpy(logits), dim=1)
            loss -= float(weight[:, 0].astype(float) @ log_p.numpy()[rows, occupation].astype(float))
            residual = log_p.exp_().numpy()
            residual[rows, occupation] -= 1
            residual *= weight
            gradient[:-1] += design.T @ residual
            gradient[-1] += residual.sum(axis=0)
        gradient[:-1] += strength * parameters[:-1]
        penalty = strength / 2 * float(np.square(parameters[:-1]).sum())
        return (loss + penalty) / total, (gradient / scale).ravel() / total

    first = np.zeros(shape)
    if start is None:
        first[-1] = np.log(counts[seen] / total) * scale[-1]
    else:
        first = np.vstack([start.coefficients, start.intercepts]) * scale
    solution, _, _ = optimize.fmin_l_bfgs_b(
        objective, first.ravel(), factr=tolerance / np.finfo(float).eps, pgtol=tolerance / 10, maxiter=MOST_ITERATIONS
    )
    parameters = solution.reshape(shape) / scale
    log_shares = np.log((counts + 1) / (counts + 1).sum())
    return Logit(parameters[:-1], parameters[-1], seen, log_shares, strength)


def _curvature(sample: Sample, shares: Floats, strength: float) -> Floats:
    """Return the second derivatives by each coefficient at P = shares, [regressors + 1, seen]."""
    sizes = np.zeros(sample.design.shape[1] + 1)
    sizes[-1] = sample.weights.sum()
    for chunk in _chunks(len(sample.occupation)):
        design = sample.design[chunk]
        squares = design.power(2) if isinstance(design, sparse.csr_matrix) else np.square(design)
        sizes[:-1] += squares.T @ sample.weights[chunk]
    curvature: Floats = sizes[:, None] * (shares * (1 - shares))
    curvature[:-1] += strength
    return np.where(curvature > 0, curvature, 1.0)  # with one occupation in training, intercepts have none


@dataclass(frozen=True, slots=True)
class CareerRegressors:
    """The regressors of careers, [observations, regressors], made from their features when rows are read.

    Attributes:
        features: of all observations.
        rows: which observations.
        dtype: precision.
    """

    features: CareerFeatures
    rows: Integers
    dtype: npt.DTypeLike = np.float64

    @property
    def shape(self) -> tuple[int, int]:
        """Number of observations and of regressors."""
        num_dummies = sum(size - 1 for size in self.features.num_categories.values())
        return len(self.rows), self.features.num_occupations + 1 + num_dummies + 2

    def __getitem__(self, rows: slice) -> sparse.csr_matrix:
        return sparse.csr_matrix(regressors(self.features, self.rows[rows]), dtype=np.dtype(self.dtype))

    def astype(self, dtype: npt.DTypeLike) -> CareerRegressors:
        """Return them in another precision."""
        return dataclasses.replace(self, dtype=dtype)


def regressors(features: CareerFeatures, rows: Integers) -> sparse.csr_matrix:
    """Return the regressors of some observations, [rows, regressors]; category 0 of a covariate is its reference."""
    sizes = [features.num_occupations + 1, *(size - 1 for size in features.num_categories.values()), 1, 1]
    firsts = np.cumsum(sizes) - sizes
    categories = [features.previous[rows], *(features.covariates[name][rows] - 1 for name in features.num_categories)]
    dummies = np.stack(categories, axis=1)
    decades = np.stack([features.tenure[rows], features.experience[rows]], axis=1) / DECADE
    values = np.concatenate([(dummies >= 0).astype(np.float64), decades], axis=1)
    places = np.concatenate([np.maximum(dummies, 0), np.zeros_like(decades, dtype=np.int64)], axis=1) + firsts
    ends = np.arange(0, values.size + 1, values.shape[1])
    matrix = sparse.csr_matrix((values.ravel(), places.ravel(), ends), shape=(len(values), int(np.sum(sizes))))
    matrix.eliminate_zeros()
    return matrix


def _chunks(num_rows: int) -> Iterator[slice]:
    return (slice(start, start + CHUNK) for start in range(0, num_rows, CHUNK))
