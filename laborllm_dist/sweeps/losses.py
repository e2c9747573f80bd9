"""The losses that a law is fitted to: of one family of runs, on the same test people, with resamples of these people.

A family is the models trained from scratch, or those fine-tuned from the base models of one family, on one mix of
sources. N and D are comparable only within a family, so a law is fitted to one.

Shapes: P points (runs), N observations, D draws of people, F = 1 + D for the sample and then the draws, M score tables:
those of the points, then of baselines, then of the truth.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from laborllm_dist.config.evaluation import FitLawSettings
from laborllm_dist.errors import LawError
from laborllm_dist.plain_text import visible
from laborllm_dist.report.bootstrap import ResampledPeople, resample_means
from laborllm_dist.report.load import (
    FloatArray,
    ScoreFile,
    check_same_observations,
    find_baseline_scores,
    find_true_scores,
    log_likelihoods,
    number_people,
    read_model_scores,
)
from laborllm_dist.sweeps.points import SweepPoint

FROM_SCRATCH = "scratch"


@dataclass(frozen=True, slots=True)
class BaselineLoss:
    """The loss of a baseline: in the sample, then in each draw, [F]. A single person has no draws: F is 1."""

    file: ScoreFile
    num_observations: int  # that it was trained on
    loss_F: FloatArray


@dataclass(frozen=True, slots=True)
class SweepLosses:
    """The loss of each point: in the sample, and in each draw of people."""

    loss_P: FloatArray
    draws_DP: FloatArray | None  # None: a file gave the losses, or there is a single person
    is_excess: bool  # losses are above that of the true probabilities
    num_people: int | None  # None: a file gave the losses
    num_observations: int | None
    files: tuple[ScoreFile, ...]  # score tables of the points
    truth: ScoreFile | None
    baselines: tuple[BaselineLoss, ...] = ()


def choose_family(points: Sequence[SweepPoint], settings: FitLawSettings) -> tuple[SweepPoint, ...]:
    """Return the points of the family that the settings choose.

    The base models of a family differ in size and have different names. `pretrained` joins these names by +.

    Raises:
        LawError: if no point is chosen, a base model of the settings has no point, or the chosen points are of several
            families.
    """
    joined = [] if settings.pretrained is None else settings.pretrained.split("+")
    requested = {settings.pretrained, *joined}  # the name of a single base model may itself contain +
    chosen = tuple(
        point
        for point in points
        if settings.sources in (None, point.sources) and (settings.pretrained is None or _base_of(point) in requested)
    )
    if not chosen:
        raise LawError(
            f"no run belongs to that family; {settings.points} has {_family_names(points)}", code="no-such-runs"
        )
    bases, sources = {_base_of(point) for point in chosen}, {point.sources for point in chosen}
    missing = [] if settings.pretrained in bases else sorted(set(joined) - bases)
    if missing:
        raise LawError(
            f"pretrained={settings.pretrained}: no run is from {visible(missing[0])}; the other runs are of "
            f"{_family_names(chosen)}",
            code="no-such-runs",
        )
    are_joined = settings.pretrained is not None and FROM_SCRATCH not in bases
    if len(sources) > 1 or (len(bases) > 1 and not are_joined):
        raise LawError(
            f"{settings.points} has runs of {len(_families(chosen))} families, which have no law in common: "
            f"{_family_names(chosen)}; choose one by pretrained= and sources=; base models of one "
            "family are joined by +",
            code="families-mixed",
        )
    return chosen


def _base_of(point: SweepPoint) -> str:
    """Return the name of the base model of a point, or FROM_SCRATCH."""
    return point.pretrained or FROM_SCRATCH


def _families(points: Iterable[SweepPoint]) -> list[tuple[str, str]]:
    """Return the distinct pairs of base model and sources, in alphabetical order."""
    return sorted({(_base_of(point), point.sources) for point in points})


def _family_names(points: Iterable[SweepPoint]) -> str:
    """Return the settings that choose each family of some points."""
    return "; ".join(
        f"pretrained={visible(base)} sources={visible(sources) or '(empty: fill the column sources)'}"
        for base, sources in _families(points)
    )


def read_losses(points: Sequence[SweepPoint], settings: FitLawSettings) -> SweepLosses:
    """Return the losses of points, from the table of points or from the score tables of their runs.

    Raises:
        RunError: if a run's folder does not exist.
        ScoreTableError: if a run has no scores, or two score tables are not about the same observations.
        LawError: if scores of a baseline or of the truth are requested and no run has them.
    """
    given = [point.nats_per_observation for point in points if point.nats_per_observation is not None]
    return _table_losses(given, settings) if given else _scored_losses(points, settings)


def _table_losses(losses: Sequence[float], settings: FitLawSettings) -> SweepLosses:
    """Return losses that the table of points gives; nothing is known of their test people."""
    if settings.loss == "excess":
        raise _no_truth(settings)
    if settings.baselines:
        raise LawError(
            f"baselines={','.join(settings.baselines)}: {settings.points} gives losses, and baselines need the "
            "score tables of runs",
            code="baselines-without-runs",
        )
    return SweepLosses(
        np.array(losses), draws_DP=None, is_excess=False, num_people=None, num_observations=None, files=(), truth=None
    )


def _scored_losses(points: Sequence[SweepPoint], settings: FitLawSettings) -> SweepLosses:
    """Return the losses of runs, and those of baselines, by their score tables of the same people."""
    runs = [point.run for point in points if point.run is not None]
    files = tuple(read_model_scores(run, split=settings.split) for run in runs)
    truth = None if settings.loss == "nats" else _find_truth(runs, settings)
    baselines = [_find_baseline(name, points, settings) for name in settings.baselines]
    tables = [*files, *(file for file, _ in baselines), *([] if truth is None else [truth])]
    for table in tables[1:]:
        check_same_observations(tables[0], table)

    person_of_row, num_people = number_people(tables[0].table)
    people = ResampledPeople(person_of_row, num_people, None, settings.bootstrap_draws, settings.seed)
    loss_FM = _mean_losses(tables, people, settings)
    if truth is not None:
        loss_FM = loss_FM[:, :-1] - loss_FM[:, -1:]
    loss_FP, baseline_loss_FM = loss_FM[:, : len(files)], loss_FM[:, len(files) :]
    return SweepLosses(
        loss_P=loss_FP[0],
        draws_DP=loss_FP[1:] if num_people > 1 else None,
        is_excess=truth is not None,
        num_people=num_people,
        num_observations=len(person_of_row),
        files=files,
        truth=truth,
        baselines=tuple(
            BaselineLoss(file, num_observations, loss_F)
            for (file, num_observations), loss_F in zip(baselines, baseline_loss_FM.T, strict=True)
        ),
    )


def _mean_losses(tables: Sequence[ScoreFile], people: ResampledPeople, settings: FitLawSettings) -> FloatArray:
    """Return the loss of each score table in the sample, then in each draw of people, [F, M]."""
    log_likelihood_MN = np.stack([log_likelihoods(table, settings.split, settings.measure) for table in tables])
    one_group = np.zeros((1, len(people.person_of_row)), dtype=np.int64)
    means = resample_means(log_likelihood_MN, one_group, people)
    loss_FM: FloatArray = -means.sample_MG.T
    if people.num_people > 1:
        loss_FM = np.concatenate([loss_FM, -means.draws_MGD[:, 0].T])
    return loss_FM


def _find_truth(runs: Sequence[str], settings: FitLawSettings) -> ScoreFile | None:
    """Return the scores of the true probabilities, from the first run that has them; None if none has.

    Raises:
        LawError: if the settings request them and no run has them.
    """
    for run in runs:
        if (file := find_true_scores(run, split=settings.split)) is not None:
            return file
    if settings.loss == "excess":
        raise _no_truth(settings)
    return None


def _find_baseline(name: str, points: Sequence[SweepPoint], settings: FitLawSettings) -> tuple[ScoreFile, int]:
    """Return the scores of a baseline and the number of observations it was trained on.

    They come from the run on most data that has scores of the baseline.

    Raises:
        LawError: if no run has them.
    """
    by_data = sorted(points, key=lambda point: point.num_observations, reverse=True)
    for point in by_data:
        if point.run is not None and (file := find_baseline_scores(point.run, name, split=settings.split)) is not None:
            return file, point.num_observations
    raise LawError(
        f"no run has scores of {name}; `python launch/baselines.py run={by_data[0].run} split={settings.split} "
        f"baselines='[{name}]'` makes them",
        code="no-baseline",
    )


def _no_truth(settings: FitLawSettings) -> LawError:
    return LawError(
        f"loss=excess, but no run has scores of the truth; `python launch/baselines.py run=... split={settings.split} "
        "baselines='[truth]'` makes them for synthetic careers",
        code="no-truth",
    )
