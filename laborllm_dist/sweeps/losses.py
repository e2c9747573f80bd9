"""The losses that a law is fitted to: of one family of runs, on the same test people, with resamples of these people.

Models that were trained from scratch and pretrained ones, or models on other sources of data, have no N and D in
common, so a law is of one family.

Shapes: P points (runs), N observations, D draws.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    """The loss of a baseline: in the sample, then on each resample of people, [1 + D]; of one person alone [1]."""

    file: ScoreFile
    num_observations: int  # that it was trained on
    loss_F: FloatArray


@dataclass(frozen=True, slots=True)
class SweepLosses:
    """The loss of each point: in the sample, and on each resample of people."""

    loss_P: FloatArray
    draws_DP: FloatArray | None  # None: a file gave the losses, and people are unknown
    is_excess: bool
    num_people: int | None
    num_observations: int | None
    files: tuple[ScoreFile, ...]  # score tables of the points
    truth: ScoreFile | None
    baselines: tuple[BaselineLoss, ...] = ()


def choose_family(points: Sequence[SweepPoint], settings: FitLawSettings) -> tuple[SweepPoint, ...]:
    """Return the points of one family: trained from scratch, or from base models that are one; on the same sources.

    Base models of one family differ in their size and have a name each; `pretrained` says which ones belong together,
    with + between their names.

    Raises:
        LawError: if the settings choose no points, name a base model that no point has, or choose points of several
            families.
    """
    together = () if settings.pretrained is None else (settings.pretrained, *settings.pretrained.split("+"))
    chosen = [
        point
        for point in points
        if settings.sources in (None, point.sources) and (not together or _base_of(point) in together)
    ]
    families = sorted({(_base_of(point), point.sources) for point in chosen or points})
    names = "; ".join(
        f"pretrained={visible(base)} sources={visible(data) or '(empty: fill the column sources)'}"
        for base, data in families
    )
    if not chosen:
        raise LawError(f"no run is of that family; {settings.points} has {names}", code="no-such-runs")
    present = {_base_of(point) for point in chosen}
    absent = [] if settings.pretrained in {None, *present} else sorted({*together[1:]} - present)
    if absent:
        raise LawError(
            f"pretrained={settings.pretrained}: no run is from {visible(absent[0])}; the others are {names}",
            code="no-such-runs",
        )
    bases, sources = ({family[part] for family in families} for part in (0, 1))
    if len(sources) > 1 or (len(bases) > 1 and (not together or FROM_SCRATCH in bases)):
        raise LawError(
            f"{settings.points} has runs of {len(families)} families, which have no law in common: {names}; choose one "
            "by pretrained= and sources=; base models that differ in their size alone are joined by +",
            code="families-mixed",
        )
    return tuple(chosen)


def _base_of(point: SweepPoint) -> str:
    """Return the name of a point's base model, or that it has none."""
    return point.pretrained or FROM_SCRATCH


def read_losses(points: Sequence[SweepPoint], settings: FitLawSettings) -> SweepLosses:
    """Return the losses of points: from their file, or from score tables of the same people, with resamples.

    Raises:
        RunError: if a run's folder does not exist.
        ScoreTableError: if a run has no scores, or two tables are not about the same observations.
        LawError: if the excess is requested and no run has scores of the truth.
    """
    given = [point.nats_per_observation for point in points if point.nats_per_observation is not None]
    if given:
        if settings.loss == "excess":
            raise _without_truth(settings)
        if settings.baselines:
            raise LawError(
                f"baselines={','.join(settings.baselines)}: {settings.points} gives losses, and baselines need the "
                "score tables of runs",
                code="baselines-without-runs",
            )
        return SweepLosses(np.array(given), None, False, None, None, (), None)
    runs = [point.run for point in points if point.run is not None]
    files = tuple(read_model_scores(run, split=settings.split) for run in runs)
    truth = None
    if settings.loss != "nats":
        truth = next((file for run in runs if (file := find_true_scores(run, split=settings.split)) is not None), None)
        if truth is None and settings.loss == "excess":
            raise _without_truth(settings)
    baselines = [_find_baseline(name, points, settings) for name in settings.baselines]
    others = [*(file for file, _ in baselines), *([truth] if truth is not None else [])]
    for file in [*files[1:], *others]:
        check_same_observations(files[0], file)
    scored = [log_likelihoods(file, settings.split, settings.measure) for file in (*files, *others)]
    person_of_row, num_people = number_people(files[0].table)
    people = ResampledPeople(person_of_row, num_people, None, settings.bootstrap_draws, settings.seed)
    means = resample_means(np.stack(scored), np.zeros((1, len(person_of_row)), dtype=np.int64), people)
    loss_FM = -np.concatenate([means.sample_MG.T, means.draws_MGD[:, 0].T] if num_people > 1 else [means.sample_MG.T])
    if truth is not None:
        loss_FM = loss_FM[:, :-1] - loss_FM[:, -1:]
    num_points = len(files)
    return SweepLosses(
        loss_P=loss_FM[0, :num_points],
        draws_DP=loss_FM[1:, :num_points] if num_people > 1 else None,
        is_excess=truth is not None,
        num_people=num_people,
        num_observations=len(person_of_row),
        files=files,
        truth=truth,
        baselines=tuple(
            BaselineLoss(file, trained_on, loss_FM[:, num_points + place])
            for place, (file, trained_on) in enumerate(baselines)
        ),
    )


def _find_baseline(name: str, points: Sequence[SweepPoint], settings: FitLawSettings) -> tuple[ScoreFile, int]:
    """Return the scores of a baseline in the run on most data that has them, and the observations of that run."""
    for point in sorted(points, key=lambda point: -point.num_observations):
        if point.run is not None and (file := find_baseline_scores(point.run, name, split=settings.split)) is not None:
            return file, point.num_observations
    largest = max(points, key=lambda point: point.num_observations)
    raise LawError(
        f"no run has scores of {name}; `python launch/baselines.py run={largest.run} split={settings.split} "
        f"baselines='[{name}]'` makes them",
        code="no-baseline",
    )


def _without_truth(settings: FitLawSettings) -> LawError:
    return LawError(
        f"loss=excess, and no run has scores of the truth; `python launch/baselines.py run=... split={settings.split} "
        "baselines='[truth]'` makes them for synthetic careers",
        code="no-truth",
    )
