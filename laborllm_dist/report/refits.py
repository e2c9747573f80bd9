"""Uncertainty from the training people: the spread of refits on resampled training people, beside that of test people.

A refit is a run that differs from the first one of a report in its name and in `training.bootstrap_seed` alone, so its
models have learned from a resample of the same training people. All refits meet the same resamples of the test people
as every number of the report; percentiles over all pairs of a refit and a resample then cover both sources. A pair of
models is compared within each refit, so what both have from a resample of the training people cancels out.

A resample holds about 63 % of the people, so refits are usually worse than the run that learned from all of them, the
more so the fewer people there are. Their spread is what counts; the interval lies around their mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from laborllm_dist.config.evaluation import ReportSettings
from laborllm_dist.errors import RunError, ScoreTableError
from laborllm_dist.io.run_directory import read_run, refit_difference
from laborllm_dist.report.bootstrap import Estimate, ResampledPeople, estimate, resample_means
from laborllm_dist.report.load import (
    ComparedScores,
    FloatArray,
    ScoreFile,
    check_same_observations,
    find_score_files,
    log_likelihoods,
)
from laborllm_dist.tables.log_domain import perplexity_of

Role = tuple[str, str]  # of a table in its run: the name of its file, and of its model


@dataclass(frozen=True, slots=True)
class Refit:
    """A run on resampled training people."""

    run: str
    bootstrap_seed: int


@dataclass(frozen=True, slots=True)
class RefitModelNumbers:
    """One model over all refits: the mean of their perplexities, and its interval over training and test people.

    `std_error_training`: standard deviation of the refits' perplexities; None: float64 cannot hold it.
    """

    model: str
    perplexity: Estimate
    std_error_training: float | None
    perplexity_of_refit: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class RefitPairNumbers:
    """Two models of the same refit; `difference_nats` is first minus second, its mean over all refits."""

    first: str
    second: str
    difference_nats: Estimate
    std_error_training: float | None


@dataclass(frozen=True, slots=True)
class RefitNumbers:
    """The models that the first run and all its refits have scored, in the report's order.

    `left_out`: other models of that run.
    """

    run: str
    num_refits: int
    refits: tuple[Refit, ...]
    models: tuple[RefitModelNumbers, ...]
    pairs: tuple[RefitPairNumbers, ...]
    left_out: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _RefitMeans:
    """Mean log-likelihood in nats of one model of one refit: in the sample, and in each resample of test people."""

    sample: float
    draws_D: FloatArray


def refit_numbers(compared: ComparedScores, settings: ReportSettings, people: ResampledPeople) -> RefitNumbers | None:
    """Compute the uncertainty from training and test people; None if the settings name no refits.

    Args:
        compared: the models of the report's runs on its observations.
        settings: of the report.
        people: of the observations, with the resamples of the report.

    Raises:
        RunError: if a run is no refit of the first one, or two refits are of one seed.
        ScoreTableError: if a refit has no scores of the model, or its observations are others.
    """
    if not settings.refits:
        return None
    run = settings.runs[0]
    refits = _checked_refits(run, settings.refits)
    files = {
        _role(file, settings.split): (model.name, file)
        for model in compared.models
        for file in model.files
        if file.run == run
    }
    means = [_means_of_refit(refit.run, files, settings, people) for refit in refits]
    roles = [role for role in files if all(role in each for each in means)]
    for role, (_, file) in files.items():
        if role not in roles and (not roles or role == _own(settings.split)):
            refit = next(refit for refit, each in zip(refits, means, strict=True) if role not in each)
            raise ScoreTableError(
                f"{refit.run} has no scores of the {settings.split} people like {file.path}; make them by the command "
                "that has made these",
                code="refit-without-scores",
            )
    sample_MR = np.array([[each[role].sample for each in means] for role in roles])
    draws_MRD = np.array([[each[role].draws_D for each in means] for role in roles])
    names = [files[role][0] for role in roles]
    models = []
    for name, sample_R, draws_RD in zip(names, perplexity_of(sample_MR), perplexity_of(draws_MRD), strict=True):
        over_refits, std_error = _over_refits(sample_R, draws_RD, compared.num_people)
        models.append(RefitModelNumbers(name, over_refits, std_error, tuple(map(float, sample_R))))
    pairs = []
    for first, second in combinations(range(len(roles)), 2):
        apart_R, apart_RD = sample_MR[first] - sample_MR[second], draws_MRD[first] - draws_MRD[second]
        pairs.append(
            RefitPairNumbers(names[first], names[second], *_over_refits(apart_R, apart_RD, compared.num_people))
        )
    left_out = tuple(name for role, (name, _) in files.items() if role not in roles)
    return RefitNumbers(run, len(refits), refits, tuple(models), tuple(pairs), left_out)


def _checked_refits(run: str, folders: tuple[str, ...]) -> tuple[Refit, ...]:
    """Return the refits with their seeds, after a check that they are refits of a run."""
    own_seed = read_run(Path(run))[1].training.bootstrap_seed
    if own_seed is not None:
        raise RunError(
            f"{run} has itself training.bootstrap_seed={own_seed}; the first of runs= is the run that learned from "
            "all training people, and refits= lists those on resampled ones",
            code="run-is-a-refit",
        )
    run_of_seed: dict[int, str] = {}
    for folder in folders:
        seed = read_run(Path(folder))[1].training.bootstrap_seed
        if seed is None:
            raise RunError(
                f"{folder} has no training.bootstrap_seed, so it is no refit on resampled training people; train it "
                "with one, or leave it out of refits=",
                code="refit-without-seed",
            )
        if (difference := refit_difference(Path(run), Path(folder))) is not None:
            raise RunError(
                f"{folder} is no refit of {run} ({difference}); a refit differs from its run in name and "
                "training.bootstrap_seed alone",
                code="refit-with-other-settings",
            )
        if seed in run_of_seed:
            raise RunError(
                f"{run_of_seed[seed]} and {folder} both have training.bootstrap_seed={seed}, so they learned from the "
                "same people; each refit needs a seed of its own",
                code="refits-of-one-seed",
            )
        run_of_seed[seed] = folder
    return tuple(Refit(folder, seed) for seed, folder in run_of_seed.items())


def _own(split: str) -> Role:
    """Return the role of the table of a run's own model, which is called after the run."""
    return f"{split}.parquet", ""


def _role(file: ScoreFile, split: str) -> Role:
    """Return what a table is of in its run; the same for tables of a run and of its refits."""
    if file.path.name == _own(split)[0]:
        return _own(split)
    own_name = f"{Path(file.run).name}-"
    if "quantization" in file.info.details and file.info.model.startswith(own_name):
        return "", file.info.model.removeprefix(own_name)  # the run's own model with quantized weights
    return file.path.name, file.info.model


def _means_of_refit(
    refit: str, files: Mapping[Role, tuple[str, ScoreFile]], settings: ReportSettings, people: ResampledPeople
) -> dict[Role, _RefitMeans]:
    """Resample the test people for those tables of a refit that its run has too, by role."""
    tables = {_role(file, settings.split): file for file in find_score_files(refit, split=settings.split)}
    tables = {role: file for role, file in tables.items() if role in files}
    if not tables:
        return {}
    for role, file in tables.items():
        check_same_observations(files[role][1], file)
    scores_MN = np.stack([log_likelihoods(file, settings.split, settings.measure) for file in tables.values()])
    means = resample_means(scores_MN, np.zeros((1, scores_MN.shape[1]), dtype=np.int64), people)
    return {
        role: _RefitMeans(float(means.sample_MG[place, 0]), means.draws_MGD[place, 0])
        for place, role in enumerate(tables)
    }


def _over_refits(value_R: FloatArray, draws_RD: FloatArray, num_people: int) -> tuple[Estimate, float | None]:
    """Return the mean over refits with its interval over both sources, and the standard error from training people."""
    with np.errstate(invalid="ignore"):  # infinite perplexities have no spread
        std_error = float(np.std(value_R, ddof=1))
    over_both = estimate(float(np.mean(value_R)), draws_RD.ravel(), num_people=num_people)
    return over_both, std_error if math.isfinite(std_error) else None
