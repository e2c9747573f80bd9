"""Means, sums and areas under ROC curves of many groups and models under resamples of people, all on the same ones.

People, not observations, are drawn: a person's years are alike, and treating them as independent would make intervals
too narrow. A resample is a weight per person (how often that person was drawn), so a resampled mean is a weighted
sum over people. All models and groups meet the same weights; a difference between two models is therefore paired. The
survey weight of an observation multiplies how often its person was drawn.

Shapes: M models, K groupings, G groups of all groupings together, N observations, P people, D resamples (draws),
V values, L levels of a score.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import numpy.typing as npt
from scipy import sparse

from laborllm_dist.randomness import resampling_generator
from laborllm_dist.report.load import CodeArray, FloatArray

BoolArray = npt.NDArray[np.bool_]
LEVEL = 0.95
_WEIGHTS_IN_MEMORY = 2_000_000  # 16 MiB of float64
_COUNTS_IN_MEMORY = 100_000_000  # 191 MiB of uint16
_DRAWS_IN_CACHE = 16  # resamples of all levels of a score that a CPU's cache holds; measured: 32 are slower, and 8


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number, its 95 % percentile interval and its standard error over resamples.

    None where the resamples cannot give them (a single person), or where float64 cannot hold the standard error.
    """

    value: float
    low: float | None
    high: float | None
    std_error: float | None


@dataclass(frozen=True, slots=True)
class ResampledMeans:
    """Mean log-likelihood in nats per observation of M models in G groups: in the sample, and in each of D resamples.

    A resample that draws nobody of a group has no mean there: NaN.
    """

    sample_MG: FloatArray
    draws_MGD: FloatArray
    num_people_G: CodeArray
    num_observations_G: CodeArray


@dataclass(frozen=True, slots=True)
class ResampledPeople:
    """Who is resampled: the person of each observation from 0, the survey weights, and the resamples.

    `weight_of_row`: of each observation; None: all count the same.
    """

    person_of_row: CodeArray
    num_people: int
    weight_of_row: FloatArray | None
    num_draws: int
    seed: int

    def rows(self, chosen: BoolArray) -> ResampledPeople:
        """Return the same people and resamples with some of the observations."""
        weights = None if self.weight_of_row is None else self.weight_of_row[chosen]
        return replace(self, person_of_row=self.person_of_row[chosen], weight_of_row=weights)

    @property
    def weights(self) -> FloatArray:
        """The weight of each observation; 1 without survey weights."""
        return np.ones(len(self.person_of_row)) if self.weight_of_row is None else self.weight_of_row

    def sums(self, values_N: FloatArray, group_of_row_N: CodeArray, num_groups: int) -> sparse.csr_array:
        """Return the sum of some values by (group, person): sparse, since few people are in few groups."""
        shape = (num_groups, self.num_people)
        return sparse.csr_array(sparse.coo_array((values_N, (group_of_row_N, self.person_of_row)), shape=shape))

    def draws(self) -> Iterator[FloatArray]:
        """Give how often each person is drawn, [a few draws, people] at a time."""
        if self.num_people * self.num_draws > _COUNTS_IN_MEMORY:
            return draw_weights(self.num_people, num_draws=self.num_draws, seed=self.seed)
        return (each.astype(np.float64) for each in _drawn_counts(self.num_people, self.num_draws, self.seed))


def resample_means(
    log_likelihood_MN: FloatArray, group_of_row_KN: CodeArray, people: ResampledPeople
) -> ResampledMeans:
    """Resample people and give the mean of every model in every group.

    Args:
        log_likelihood_MN: nats, or other values, [models, observations].
        group_of_row_KN: [groupings, observations]; the groups of all groupings are numbered through, from 0.
        people: of the observations.
    """
    num_groups, num_groupings = int(group_of_row_KN.max()) + 1, len(group_of_row_KN)
    groups = group_of_row_KN.ravel()
    tiled = replace(people, person_of_row=np.tile(people.person_of_row, num_groupings))

    def sums_of(values_N: FloatArray) -> sparse.csr_array:
        return tiled.sums(np.tile(values_N, num_groupings), groups, num_groups)

    counts_GP = sums_of(np.ones(len(people.person_of_row)))
    weights_GP = counts_GP if people.weight_of_row is None else sums_of(people.weight_of_row)
    sums_MGP = [sums_of(row * people.weights) for row in log_likelihood_MN]
    everyone_P = np.ones(people.num_people)
    draws_MGD = np.empty((len(sums_MGP), num_groups, people.num_draws))
    done = 0
    with np.errstate(invalid="ignore"):  # 0/0: nobody of the group was drawn, or has a weight
        for weights_DP in people.draws():
            chunk = slice(done, done + len(weights_DP))
            weights_GD = weights_GP @ weights_DP.T
            for model, sums_GP in enumerate(sums_MGP):
                draws_MGD[model, :, chunk] = (sums_GP @ weights_DP.T) / weights_GD
            done += len(weights_DP)
        weight_G = weights_GP @ everyone_P
        sample_MG = np.stack([sums_GP @ everyone_P / weight_G for sums_GP in sums_MGP])
    num_people_G = np.diff(counts_GP.indptr).astype(np.int64)
    return ResampledMeans(sample_MG, draws_MGD, num_people_G, (counts_GP @ everyone_P).astype(np.int64))


def resample_sums(
    values_VN: FloatArray, group_of_row_N: CodeArray, num_groups: int, people: ResampledPeople
) -> FloatArray:
    """Give the weighted sum of values in every group: in the sample, then in each resample, [V, G, 1 + D]."""
    sums_VGP = [people.sums(values_N * people.weights, group_of_row_N, num_groups) for values_N in values_VN]
    result_VGD = np.empty((len(values_VN), num_groups, 1 + people.num_draws))
    done = 0
    for weights_DP in chain([np.ones((1, people.num_people))], people.draws()):
        for value, sums_GP in enumerate(sums_VGP):
            result_VGD[value, :, done : done + len(weights_DP)] = sums_GP @ weights_DP.T
        done += len(weights_DP)
    return result_VGD


def resample_auc(score_MN: FloatArray, event_N: BoolArray, people: ResampledPeople) -> FloatArray:
    """Give the area under the ROC curve of every model: in the sample, then in each resample, [M, 1 + D].

    It is the weighted share of pairs of an event and a non-event in which the event has the higher score; a tie counts
    half. NaN without such a pair. Scores are sorted once; a resample then costs a sum over levels.
    """
    levels = [_Levels.of(score_N, event_N, people) for score_N in score_MN]
    result_MD = np.empty((len(levels), 1 + people.num_draws))
    done = 0
    for weights_DP in chain([np.ones((1, people.num_people))], people.draws()):
        for start in range(0, len(weights_DP), _DRAWS_IN_CACHE):
            weights_PD = np.ascontiguousarray(weights_DP[start : start + _DRAWS_IN_CACHE].T)
            for model, each in enumerate(levels):
                result_MD[model, done : done + weights_PD.shape[1]] = each.auc(weights_PD)
            done += weights_PD.shape[1]
    return result_MD


@dataclass(frozen=True, slots=True)
class _Levels:
    """Scores in ascending order as levels: ties are one level, and so are neighbors that are all events, or none.

    `events_LP`: weight of the events by (level with events, person); `with_events_L`: which levels these are.
    """

    events_LP: sparse.csr_array
    with_events_L: CodeArray
    others_LP: sparse.csr_array

    @staticmethod
    def of(score_N: FloatArray, event_N: BoolArray, people: ResampledPeople) -> _Levels:
        scores, place_N = np.unique(score_N, return_inverse=True)
        num_events = np.bincount(place_N, weights=event_N, minlength=len(scores))
        num_all = np.bincount(place_N, minlength=len(scores))
        kind = np.where(num_events == 0, 0, np.where(num_events == num_all, 1, 2))  # no events, events alone, both
        begins = np.ones(len(scores), dtype=bool)
        begins[1:] = (kind[1:] != kind[:-1]) | (kind[1:] == 2)
        level_N = (np.cumsum(begins) - 1)[place_N]
        num_levels = int(begins.sum())
        with_events_L, event_level = np.unique(level_N[event_N], return_inverse=True)
        of_events, of_others = people.rows(event_N), people.rows(~event_N)
        return _Levels(
            of_events.sums(of_events.weights, event_level, len(with_events_L)),
            with_events_L,
            of_others.sums(of_others.weights, level_N[~event_N], num_levels),
        )

    def auc(self, weights_PD: FloatArray) -> FloatArray:
        """Return the area in each of some resamples, [draws]."""
        events_LD, others_LD = self.events_LP @ weights_PD, self.others_LP @ weights_PD
        ties_LD = others_LD[self.with_events_L] / 2
        below_LD = np.cumsum(others_LD, axis=0, out=others_LD)[self.with_events_L] - ties_LD
        with np.errstate(invalid="ignore"):  # 0/0: no events, or nothing else
            area: FloatArray = np.einsum("ld,ld->d", events_LD, below_LD) / (events_LD.sum(axis=0) * others_LD[-1])
        return area


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


@functools.lru_cache(maxsize=1)
def _drawn_counts(num_people: int, num_draws: int, seed: int) -> tuple[npt.NDArray[np.uint16], ...]:
    """Return what `draw_weights` gives, which all numbers of a report ask for again."""
    chunks = draw_weights(num_people, num_draws=num_draws, seed=seed)
    return tuple(chunk.astype(np.uint16) for chunk in chunks)  # nobody is drawn 65,536 times


def estimate(value: float, draws: FloatArray, *, num_people: int) -> Estimate:
    """Give `value` with the percentile interval of its resamples; those that drew nobody (NaN) do not count."""
    usable = draws[~np.isnan(draws)]
    if num_people < 2 or not usable.size:
        return Estimate(float(value), None, None, None)
    tail = (1 - LEVEL) / 2
    with np.errstate(invalid="ignore", over="ignore"):  # between two infinite perplexities is nothing to interpolate
        low, high = np.quantile(usable, [tail, 1 - tail])
        std_error = float(np.std(usable, ddof=1)) if usable.size > 1 else math.nan
    return Estimate(float(value), float(low), float(high), std_error if math.isfinite(std_error) else None)


def estimate_of_distance(
    values_D: FloatArray, noise_D: FloatArray, other_noise_D: FloatArray | None = None, *, num_people: int
) -> Estimate:
    """Give a mean of absolute values, or a difference of two such means, with an interval.

    Noise makes absolute values greater, in a resample once more than in the sample, so percentiles lie too high and
    nearly never cover a small distance. The interval is therefore made of percentiles without twice the mean increase,
    and reaches at least as far as noise alone moves the value. It is conservative where the distance is small
    (tests/report/test_outcomes.py simulates its coverage).

    Args:
        values_D: in the sample, then in each resample.
        noise_D: the same, with absolute values of the deviations from the sample's values, so that no distance is left.
        other_noise_D: of the subtracted mean; None: nothing was subtracted.
        num_people: that the number is about.
    """
    plain = estimate(values_D[0], values_D[1:], num_people=num_people)
    if plain.low is None or plain.high is None:
        return plain
    most = (1 + LEVEL) / 2
    twice = 2 * (float(np.nanmean(values_D[1:])) - plain.value)
    down = float(np.nanquantile(noise_D[1:], most))
    up = 0.0 if other_noise_D is None else float(np.nanquantile(other_noise_D[1:], most))
    return replace(
        plain, low=min(plain.low - twice, plain.value - down), high=max(plain.high - twice, plain.value + up)
    )
