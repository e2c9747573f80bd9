"""Choose the people that a run trains on, and how much each counts: fractions and weights of the pooled corpora.

A fraction selects people by a keyed hash, so the people of 20 % are a subset of those of 40 %, whatever else is pooled.
A weight is the number of times that an epoch takes each person of a corpus. Both leave validation and
test people alone: a corpus of weight 0 is evaluated without having been trained on. With a bootstrap seed, the weight
of a person is multiplied by a Poisson variable of mean 1 that depends on seed and person alone: a resample of the
training people that one more person does not change.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

from laborllm_dist.careers.splits import in_fraction
from laborllm_dist.config.run import RunSettings
from laborllm_dist.errors import DataFileError
from laborllm_dist.randomness import uniform_of
from laborllm_dist.store.store import CareerTable, TokenStore

_POISSON_CUMULATIVE = special.pdtr(np.arange(30), 1.0)  # P(count <= k) at mean 1; a double holds no more beyond 17


@dataclass(frozen=True, slots=True)
class TrainingPool:
    """Rows of the training split, [rows], and how many times an epoch takes each, [rows]; none has weight 0."""

    rows: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float64]


def training_pool(store: TokenStore, settings: RunSettings) -> TrainingPool:
    """Return what a run trains on.

    Raises:
        DataFileError: if fractions and weights leave nobody.
    """
    careers = store.careers("train")
    weights = _weights_of_rows(careers, settings)
    rows = np.flatnonzero(weights)
    if not len(rows):
        raise DataFileError(
            "fractions and weights leave nobody to train on; raise data.corpora.NAME.fraction or .weight of a corpus",
            code="no-training-people",
        )
    return TrainingPool(rows, weights[rows])


def observation_weights(train: CareerTable, pool: TrainingPool) -> npt.NDArray[np.float64]:
    """Return how many times an epoch takes every observation, [observations]; 0 where its person is not trained on."""
    weights = np.zeros(len(train))
    weights[pool.rows] = pool.weights
    return np.repeat(weights, train.num_observations())


def title_shares(train: CareerTable, weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the share of every title of the vocabulary among weighted observations, each title counted once more."""
    counts = np.bincount(train.transitions()[1], weights, minlength=len(train.vocabulary)) + 1.0
    shares: npt.NDArray[np.float64] = counts / counts.sum()
    return shares


def _weights_of_rows(careers: CareerTable, settings: RunSettings) -> npt.NDArray[np.float64]:
    corpus_of = {corpus.survey: corpus for corpus in settings.data.corpora.values()}
    seed = settings.training.bootstrap_seed
    if seed is None and all((corpus.fraction, corpus.weight) == (1, 1) for corpus in corpus_of.values()):
        return np.ones(len(careers))
    weights, uniforms = np.zeros(len(careers)), np.zeros(len(careers))
    people = zip(careers.table["survey"].to_pylist(), careers.table["person"].to_pylist(), strict=True)
    for row, (survey, person) in enumerate(people):
        corpus = corpus_of[survey]
        if corpus.fraction == 1 or in_fraction(corpus.people_of, person, settings.split, corpus.fraction):
            weights[row] = corpus.weight
        if seed is not None:
            uniforms[row] = uniform_of("bootstrap", seed, corpus.people_of, person)
    return weights if seed is None else weights * np.searchsorted(_POISSON_CUMULATIVE, uniforms, side="right")
