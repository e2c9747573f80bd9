"""Mean log-likelihoods of many groups and models under resamples of people, all on the same resamples.

People, not observations, are drawn: a person's years are alike, and treating them as independent would make intervals
too narrow. A resample is a weight per person (how often that person was drawn), so a resampled mean is a weighted
sum over people. All models and groups meet the same weights; a difference between two models is therefore paired.

Shapes: M models, K groupings, G groups of all groupings together, N observations, P people, D resamples (draws).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from laborllm_dist.randomness import resampling_generator
from laborllm_dist.report.load import CodeArray, FloatArray

LEVEL = 0.95
_WEIGHTS_IN_MEMORY = 2_000_000  # 16 MiB of float64


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number and its 95 % percentile interval; None where the resamples cannot give one (a single person)."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class ResampledMeans:
    """Mean log-likelihood in nats per observation of M models in G groups: in the sample, and in each of D resamples.

    A resample that draws nobody of a group has no mean there: NaN.
    """

    sample_MG: FloatArray
    draws_MGD: FloatArray
    num_people_G: CodeArray
    num_observations_G: CodeArray


def resample_means(
    log_likelihood_MN: FloatArray, group_of_row_KN: CodeArray, person_of_row_N: CodeArray, *, num_draws: int, seed: int
) -> ResampledMeans:
    """Resample people and give the mean of every model in every group.

    Args:
        log_likelihood_MN: nats, [models, observations].
        group_of_row_KN: [groupings, observations]; the groups of all groupings are numbered through, from 0.
        person_of_row_N: number of the person of each observation, from 0 without gaps.
        num_draws: number of resamples.
        seed: decides the resamples and nothing else does, beside the number of people.
    """
    num_people, num_groups = int(person_of_row_N.max()) + 1, int(group_of_row_KN.max()) + 1
    groups = group_of_row_KN.ravel()
    people = np.tile(person_of_row_N, len(group_of_row_KN))

    def sum_by_group_and_person(values_N: FloatArray) -> sparse.csr_array:
        # Sparse, since few people are in few groups; scipy adds up the observations of one (group, person).
        values = np.tile(values_N, len(group_of_row_KN))
        return sparse.csr_array(sparse.coo_array((values, (groups, people)), shape=(num_groups, num_people)))

    counts_GP = sum_by_group_and_person(np.ones(len(person_of_row_N)))
    sums_MGP = [sum_by_group_and_person(row) for row in log_likelihood_MN]
    everyone_P = np.ones(num_people)
    draws_MGD = np.empty((len(sums_MGP), num_groups, num_draws))
    done = 0
    with np.errstate(invalid="ignore"):  # 0/0: nobody of the group was drawn
        for weights_DP in draw_weights(num_people, num_draws=num_draws, seed=seed):
            chunk = slice(done, done + len(weights_DP))
            counts_GD = counts_GP @ weights_DP.T
            for model, sums_GP in enumerate(sums_MGP):
                draws_MGD[model, :, chunk] = (sums_GP @ weights_DP.T) / counts_GD
            done += len(weights_DP)
    num_observations_G = counts_GP @ everyone_P
    sample_MG = np.stack([sums_GP @ everyone_P / num_observations_G for sums_GP in sums_MGP])
    num_people_G = np.diff(counts_GP.indptr).astype(np.int64)
    return ResampledMeans(sample_MG, draws_MGD, num_people_G, num_observations_G.astype(np.int64))


def draw_weights(num_people: int, *, num_draws: int, seed: int) -> Iterator[FloatArray]:
    """Give how often each person is drawn, [a few draws, people] at a time, so that memory stays bounded.

    Each row is multinomial: `num_people` picks with replacement, every person equally likely. How many rows come at
    a time changes nothing, since picks are made one resample after the other.
    """
    generator = resampling_generator(seed)
    rows_at_a_time = max(1, _WEIGHTS_IN_MEMORY // num_people)
    for start in range(0, num_draws, rows_at_a_time):
        rows = min(rows_at_a_time, num_draws - start)
        picks = (generator.integers(num_people, size=num_people) for _ in range(rows))
        yield np.stack([np.bincount(pick, minlength=num_people) for pick in picks]).astype(np.float64)


def estimate(value: float, draws: FloatArray, *, num_people: int) -> Estimate:
    """Give `value` with the percentile interval of its resamples; those that drew nobody (NaN) do not count."""
    usable = draws[~np.isnan(draws)]
    if num_people < 2 or not usable.size:
        return Estimate(float(value), None, None)
    tail = (1 - LEVEL) / 2
    with np.errstate(invalid="ignore"):  # between two infinite perplexities there is nothing to interpolate
        low, high = np.quantile(usable, [tail, 1 - tail])
    return Estimate(float(value), float(low), float(high))
