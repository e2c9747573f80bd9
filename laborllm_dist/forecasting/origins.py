"""Forecast origins: every observation with another one of the same person `horizon` years later."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from laborllm_dist.baselines.frequency import markov_table, transition_counts
from laborllm_dist.careers.splits import Split
from laborllm_dist.config.evaluation import ForecastSettings
from laborllm_dist.errors import RunError
from laborllm_dist.forecasting.iterate import Floats, Integers, num_prompts
from laborllm_dist.randomness import rank_of
from laborllm_dist.store.store import CareerTable

STRENGTH = 10.0  # observations of the marginal in every row of the Markov table


@dataclass(frozen=True, slots=True)
class Origins:
    """Origins of forecasts with one horizon: row of the career in the store, job of the start, job that is forecast."""

    careers_S: Integers
    jobs_S: Integers
    targets_S: Integers

    def __len__(self) -> int:
        return len(self.careers_S)

    def of_career(self, career: int) -> Origins:
        """Return the origins of one person."""
        is_own_S = self.careers_S == career
        return Origins(self.careers_S[is_own_S], self.jobs_S[is_own_S], self.targets_S[is_own_S])


def find_origins(careers: CareerTable, horizon: int) -> Origins:
    """Return every job with another one of the same person `horizon` years later."""
    origins: list[tuple[int, int, int]] = []
    for career, years in enumerate(careers.table["years"].to_pylist()):
        place_of = {year: place for place, year in enumerate(years)}
        origins += [
            (career, job, place_of[year + horizon]) for job, year in enumerate(years) if year + horizon in place_of
        ]
    careers_S, jobs_S, targets_S = np.array(origins, dtype=np.int64).reshape(-1, 3).T
    return Origins(careers_S, jobs_S, targets_S)


def observed_titles(careers: CareerTable, origins: Origins) -> Integers:
    """Return the vocabulary index of the occupation in each target year, [S]."""
    return titles_at(careers, origins.careers_S, origins.targets_S)


def titles_at(careers: CareerTable, careers_S: Integers, jobs_S: Integers) -> Integers:
    """Return the vocabulary index of the occupation of jobs, [S]."""
    flat = np.asarray(pc.list_flatten(careers.table["occupations"]), dtype=np.int64)
    num_jobs = careers.num_observations()
    titles_S: Integers = flat[(np.cumsum(num_jobs) - num_jobs)[careers_S] + jobs_S]
    return titles_S


def chosen_origins(settings: ForecastSettings, careers: CareerTable, split: Split) -> Origins:
    """Return the forecasts of the people that are taken.

    Raises:
        RunError: if there are none, or too many paths.
    """
    origins = find_origins(careers, settings.horizon)
    if not len(origins):
        raise RunError(
            f"nobody in the {split} split has two observations {settings.horizon} years apart; "
            "take another horizon (surveys of every second year have even ones only)",
            code="no-forecast-origins",
        )
    people = np.unique(origins.careers_S)
    if settings.max_people is not None:
        # Drawn by a hash, since a store's order may be that of households or regions.
        drawn = sorted(people.tolist(), key=lambda career: rank_of(settings.seed, *careers.person(career)))
        people = np.array(sorted(drawn[: settings.max_people]))
    is_taken_S = np.isin(origins.careers_S, people)
    origins = Origins(origins.careers_S[is_taken_S], origins.jobs_S[is_taken_S], origins.targets_S[is_taken_S])
    num_titles, between = len(careers.vocabulary), settings.horizon - 1
    if settings.steps == "exact" and not settings.max_pruned_mass and num_titles**between > settings.max_paths:
        raise RunError(
            f"the full sum {settings.horizon} years ahead has {num_titles}^{between} = {num_titles**between:,} paths a "
            f"forecast, max_paths is {settings.max_paths:,}; {len(origins):,} forecasts would take "
            f"{len(origins) * num_prompts(num_titles, settings.horizon):,} prompts with all titles after each; "
            "take max_pruned_mass=0.001, steps=sampled, or a larger max_paths",
            code="too-many-paths",
        )
    return origins


def markov_scores(train: CareerTable, careers: CareerTable, origins: Origins, horizon: int) -> Floats:
    """Return log P of the target occupations, from the transition shares of training people.

    A first-order Markov model over the same number of years, smoothed by STRENGTH observations of the shares in target
    years, each title counted once more.
    """
    train_origins, num_titles = find_origins(train, horizon), len(careers.vocabulary)
    train_before_S = titles_at(train, train_origins.careers_S, train_origins.jobs_S)
    counts = transition_counts(train_before_S, observed_titles(train, train_origins), num_titles)
    marginal = (counts.sum(axis=0) + 1) / (counts.sum() + num_titles)
    before_S, after_S = titles_at(careers, origins.careers_S, origins.jobs_S), observed_titles(careers, origins)
    scores: Floats = markov_table(counts, marginal, STRENGTH)[before_S, after_S]
    return scores
