"""Iterated forecasts: distributions several years ahead, composed from one-year-ahead distributions of a model.

    P(y3 | history) = sum over y1, y2 of  P(y1 | history) P(y2 | history y1) P(y3 | history y1 y2)

A start is a history; a path is the titles imputed for the years between start and target. The sum takes all paths, or
the most probable ones, or a mean over sampled ones estimates it. Nothing here knows texts or models: a function answers
questions. Two facts make the bound of what was left out. A distribution known but for a mass of r differs from the true
one by at most r, of any title and in total variation; and so does one whose paths of mass r were not followed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from laborllm_dist.errors import RunError
from laborllm_dist.randomness import uniform_of
from laborllm_dist.tables.log_domain import log_sum_exp

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, order=True)
class Query:
    """A query: the title `years_ahead` years after an origin, given the titles `imputed` in the years after it."""

    start: int
    imputed: tuple[int, ...]
    years_ahead: int


@dataclass(frozen=True, slots=True)
class Distributions:
    """Distributions over T titles in nats, each of sum 1, [Q, T]; `left_Q`: the unscored mass."""

    log_probabilities_QT: Floats
    left_Q: Floats

    @property
    def probabilities_QT(self) -> Floats:
        """The distributions as probabilities."""
        return np.exp(self.log_probabilities_QT)


@dataclass(frozen=True, slots=True)
class IteratedForecast:
    """Distributions over titles in the target year in nats, each of sum 1, [S, T].

    `bound_S`: the most that any probability is off, by what was left out; of the total variation too.
    `errors_ST`: standard errors of drawn paths; None where nothing was drawn.
    """

    log_probabilities_ST: Floats
    bound_S: Floats
    errors_ST: Floats | None

    @property
    def probabilities_ST(self) -> Floats:
        """The distributions as probabilities."""
        return np.exp(self.log_probabilities_ST)


Ask = Callable[[Sequence[Query]], Distributions]


def num_prompts(num_titles: int, horizon: int) -> int:
    """Return the number of prompts of the full sum for one origin, including the direct forecast."""
    total: int = 1 + sum(num_titles**step for step in range(horizon))
    return total


def iterate_exact(ask: Ask, num_starts: int, *, horizon: int, tolerance: float, max_paths: int) -> IteratedForecast:
    """Sum over paths, all of them or the most probable ones.

    Args:
        ask: answers queries whose `years_ahead` is one more than the number of imputed titles.
        num_starts: S.
        horizon: years from start to target.
        tolerance: the mass of paths that may be left out of an origin's sum; 0: none.
        max_paths: of one start.

    Raises:
        RunError: if more paths than that would be followed.
    """
    paths: list[tuple[int, tuple[int, ...]]] = [(start, ()) for start in range(num_starts)]
    log_weights_P, left_S, bound_S = np.zeros(num_starts), np.zeros(num_starts), np.zeros(num_starts)
    for step in range(1, horizon):
        answers = ask([Query(start, imputed, step) for start, imputed in paths])
        starts_P = np.array([start for start, _ in paths])
        np.add.at(bound_S, starts_P, np.exp(log_weights_P) * answers.left_Q)
        log_mass_PT = log_weights_P[:, None] + answers.log_probabilities_QT
        longer: list[tuple[int, tuple[int, ...]]] = []
        log_weights: list[Floats] = [np.zeros(0)]
        for start in range(num_starts):
            places = np.flatnonzero(starts_P == start)
            log_mass_N = log_mass_PT[places].ravel()
            mass_N = np.exp(log_mass_N)
            followed_N = _most_probable(
                mass_N, tolerance * step / (horizon - 1) - left_S[start], keeps_all=not tolerance
            )
            if len(followed_N) > max_paths:
                raise RunError(
                    f"a forecast follows {len(followed_N):,} paths of {step} imputed years, max_paths is "
                    f"{max_paths:,}; take a larger max_pruned_mass or max_paths, or steps=sampled",
                    code="too-many-paths",
                )
            left_S[start] += mass_N.sum() - mass_N[followed_N].sum() if len(followed_N) < len(mass_N) else 0.0
            of_path_N, titles_N = np.divmod(followed_N, log_mass_PT.shape[1])
            longer += [
                (start, (*paths[places[path]][1], title))
                for path, title in zip(of_path_N.tolist(), titles_N.tolist(), strict=True)
            ]
            log_weights.append(log_mass_N[followed_N])
        paths, log_weights_P = longer, np.concatenate(log_weights)
    answers = ask([Query(start, imputed, horizon) for start, imputed in paths])
    starts_P = np.array([start for start, _ in paths])
    np.add.at(bound_S, starts_P, np.exp(log_weights_P) * answers.left_Q)
    log_mass_PT = log_weights_P[:, None] + answers.log_probabilities_QT
    log_sums_ST = np.stack([log_sum_exp(log_mass_PT[starts_P == start], axis=0) for start in range(num_starts)])
    log_probabilities_ST = log_sums_ST - log_sum_exp(log_sums_ST, axis=1)[:, None]
    return IteratedForecast(log_probabilities_ST, np.minimum(bound_S + left_S, 1.0), None)


def _most_probable(mass_N: Floats, allowed: float, *, keeps_all: bool) -> Integers:
    """Return the indices of the paths to follow, in order, without the smallest ones of total mass `allowed`."""
    if keeps_all:
        return np.arange(len(mass_N))
    order_N = np.argsort(mass_N, kind="stable")
    num_left = min(int((np.cumsum(mass_N[order_N]) <= allowed).sum()), len(mass_N) - 1)
    return np.sort(order_N[num_left:])


def iterate_sampled(ask: Ask, draws_SPK: Floats) -> IteratedForecast:
    """Return the mean of the last step over sampled paths.

    Args:
        ask: answers queries whose `years_ahead` is one more than the number of imputed titles.
        draws_SPK: a number from 0 to 1 for each start, path and year between start and target.
    """
    num_starts, num_paths, num_between = draws_SPK.shape
    keys = [(start, path) for start in range(num_starts) for path in range(num_paths)]
    imputed: list[tuple[int, ...]] = [()] * len(keys)
    bound_N = np.zeros(len(keys))
    for step in range(num_between):
        answers, places_N = _ask_once(ask, keys, imputed)
        bound_N += answers.left_Q[places_N]
        steps_QT = np.cumsum(answers.probabilities_QT, axis=1)
        for number, (start, path) in enumerate(keys):
            heights_T = steps_QT[places_N[number]]
            title = int(np.searchsorted(heights_T, draws_SPK[start, path, step] * heights_T[-1], side="right"))
            imputed[number] = (*imputed[number], min(title, len(heights_T) - 1))
    answers, places_N = _ask_once(ask, keys, imputed)
    bound_N += answers.left_Q[places_N]
    last_SPT = answers.log_probabilities_QT[places_N].reshape(num_starts, num_paths, -1)
    return IteratedForecast(
        log_sum_exp(last_SPT, axis=1) - np.log(num_paths),
        bound_N.reshape(num_starts, num_paths).mean(axis=1),
        np.exp(last_SPT).std(axis=1, ddof=1) / np.sqrt(num_paths),
    )


def _ask_once(
    ask: Ask, keys: Sequence[tuple[int, int]], imputed: Sequence[tuple[int, ...]]
) -> tuple[Distributions, Integers]:
    """Query the next year of every path, equal queries once; return the answers and the index of each path's answer."""
    queries = [Query(key[0], titles, len(titles) + 1) for key, titles in zip(keys, imputed, strict=True)]
    different = sorted(set(queries))
    place_of = {query: place for place, query in enumerate(different)}
    return ask(different), np.array([place_of[query] for query in queries])


def path_draws(seed: int, survey: str, person: str, position: int, *, num_paths: int, num_years: int) -> Floats:
    """Return numbers from 0 to 1 for the years of each path, [paths, years]: a function of these values and no others.

    That of path p and year k is a keyed hash, so that more paths or years change none that were there.
    """
    draws = np.empty((num_paths, num_years))
    for path in range(num_paths):
        for year in range(num_years):
            draws[path, year] = uniform_of(seed, survey, person, position, path, year)
    return draws
