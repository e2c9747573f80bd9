"""Turn scored observations into the numbers of a report: perplexities, paired differences, groups.

`ReportNumbers` is the whole report as a value; the page, the figures and summary.json only show it. Perplexity is
exp(-mean log-likelihood in nats), so its interval is that of the mean, mapped; a difference of two models is taken
resample by resample, on the same people, and only then summarized.

Two floors show which models are of no use: equal shares for all titles, and the titles' shares among training people.
Both are read from score tables: the number of titles from a table of all titles or a baseline's, the marginal from the
baseline's own table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from laborllm_dist.config.evaluation import ReportSettings
from laborllm_dist.report.bootstrap import LEVEL, Estimate, ResampledMeans, ResampledPeople, estimate, resample_means
from laborllm_dist.report.groupings import FEW_PEOPLE, NOT_RECORDED, Grouping, list_groupings
from laborllm_dist.report.load import (
    CodeArray,
    ComparedScores,
    FloatArray,
    ScoredModel,
    file_with_titles,
    title_codes,
    titles_of,
)
from laborllm_dist.report.nonemployment import LaborStates, find_states
from laborllm_dist.report.outcomes import OutcomeNumbers, list_outcomes, outcome_numbers
from laborllm_dist.report.refits import RefitNumbers, refit_numbers
from laborllm_dist.report.title_metrics import (
    TitleFacts,
    TitleNumbers,
    TitlePairNumbers,
    TitleRows,
    facts_of_table,
    rows_of_table,
    title_numbers,
)
from laborllm_dist.report.training_curves import TrainingNumbers, training_curves
from laborllm_dist.tables.log_domain import perplexity_of

MARGINAL = "marginal"  # the baseline's name in score tables
ROUNDING = 1e-9  # nats


@dataclass(frozen=True, slots=True)
class SourceNumbers:
    """The source of a model's scores: a score file and its metadata."""

    model: str
    name_in_file: str
    run: str
    file: str
    split: str
    careers: str
    code: str
    details: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ModelNumbers:
    """One model on all observations.

    `nats_to_truth`: mean log-likelihood of the true model minus that of this one. `worse_than`: floors it is below.
    """

    model: str
    true_model: bool
    perplexity: Estimate
    mean_log_likelihood_nats: Estimate
    nats_to_truth: Estimate | None
    num_people: int
    num_observations: int
    worse_than: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PairNumbers:
    """Two models on the same resamples. `difference_nats` is first minus second: above 0, the first is better."""

    first: str
    second: str
    difference_nats: Estimate
    perplexity_ratio: Estimate  # first / second
    perplexity_difference: Estimate  # first - second
    share_first_better: float  # of resamples; a tie counts half


@dataclass(frozen=True, slots=True)
class GroupScore:
    """One model in one group."""

    model: str
    perplexity: Estimate
    mean_log_likelihood_nats: Estimate


@dataclass(frozen=True, slots=True)
class GroupNumbers:
    """One group, with every model in the order of `ReportNumbers.models`."""

    group: str
    recorded: bool
    few_people: bool
    num_people: int
    num_observations: int
    scores: tuple[GroupScore, ...]


@dataclass(frozen=True, slots=True)
class GroupingNumbers:
    """All groups of one grouping."""

    name: str
    title: str
    note: str
    groups: tuple[GroupNumbers, ...]


@dataclass(frozen=True, slots=True)
class WeightNumbers:
    """Survey weights of a report, and how many equally weighted observations would be as informative (Kish)."""

    file: str
    column: str
    effective_observations: float


@dataclass(frozen=True, slots=True)
class OtherDataNumbers:
    """The models that were scored on other data, best first, all on the same observations."""

    data: str
    num_people: int
    num_observations: int
    models: tuple[ModelNumbers, ...]


@dataclass(frozen=True, slots=True)
class ReportNumbers:
    """Every number of a report. `states` and `outcomes` are of the models with a table of titles."""

    split: str
    measure: str
    num_people: int
    num_observations: int
    interval_level: float
    bootstrap_draws: int
    seed: int
    few_people_below: int
    models: tuple[ModelNumbers, ...]
    pairs: tuple[PairNumbers, ...]
    groupings: tuple[GroupingNumbers, ...]
    titles: tuple[TitleNumbers, ...]  # of the models whose distributions over all titles are known
    title_pairs: tuple[TitlePairNumbers, ...]
    states: LaborStates | None
    outcomes: tuple[OutcomeNumbers, ...]
    weights: WeightNumbers | None
    refits: RefitNumbers | None
    other_data: tuple[OtherDataNumbers, ...]
    training: tuple[TrainingNumbers, ...]  # of the runs that have been trained
    sources: tuple[SourceNumbers, ...]


def analyze(
    compared: ComparedScores, settings: ReportSettings, other_data: Mapping[str, ComparedScores] | None = None
) -> ReportNumbers:
    """Compute the whole report, as `analyze_with_titles` does."""
    return analyze_with_titles(compared, settings, other_data, ())[0]


def analyze_with_titles(
    compared: ComparedScores,
    settings: ReportSettings,
    other_data: Mapping[str, ComparedScores] | None,
    drawn: Sequence[CodeArray],
) -> tuple[ReportNumbers, Mapping[str, TitleRows]]:
    """Compute the whole report; all parts use the same resamples of people, and every table of titles is read once.

    Args:
        compared: the models on the observations of the report.
        settings: of the report.
        other_data: the models that were scored on other data, by the name of the data.
        drawn: observations of single people (`draw_people`).

    Returns:
        The report, and for every model with a table of titles its distributions of these people, one after the other.

    Raises:
        RunError: if a run is no refit of the first one, or two refits are of one seed.
        ScoreTableError: if a refit has no scores of the model, or its observations are others.
    """
    groupings = list_groupings(compared.observations)
    num_rows = len(compared.person_of_row)
    # Group 0 is everybody; the groups of each grouping follow, numbered through.
    codes, offsets, next_code = [np.zeros(num_rows, dtype=np.int64)], [], 1
    for grouping in groupings:
        offsets.append(next_code)
        codes.append(grouping.group_of_row + next_code)
        next_code += len(grouping.labels)
    people = ResampledPeople(
        compared.person_of_row,
        compared.num_people,
        compared.weight_of_row,
        num_draws=settings.bootstrap_draws,
        seed=settings.seed,
    )
    refits = refit_numbers(compared, settings, people)
    means = resample_means(np.stack([model.log_likelihood for model in compared.models]), np.stack(codes), people)
    titles = _titles(compared, settings, groupings, people, drawn)
    numbers = ReportNumbers(
        split=settings.split,
        measure=settings.measure,
        num_people=compared.num_people,
        num_observations=num_rows,
        interval_level=LEVEL,
        bootstrap_draws=settings.bootstrap_draws,
        seed=settings.seed,
        few_people_below=FEW_PEOPLE,
        models=_model_numbers(compared, means),
        pairs=_pair_numbers(compared.models, means),
        groupings=tuple(
            _grouping_numbers(grouping, offset, compared.models, means)
            for grouping, offset in zip(groupings, offsets, strict=True)
        ),
        titles=titles.numbers,
        title_pairs=titles.pairs,
        states=titles.states,
        outcomes=titles.outcomes,
        weights=_weights(compared, settings),
        refits=refits,
        other_data=tuple(_on_other_data(name, each, settings) for name, each in (other_data or {}).items()),
        training=training_curves(settings.runs),
        sources=_sources(compared.models),
    )
    return numbers, titles.rows


@dataclass(frozen=True, slots=True)
class _Titles:
    numbers: tuple[TitleNumbers, ...] = ()
    pairs: tuple[TitlePairNumbers, ...] = ()
    states: LaborStates | None = None
    outcomes: tuple[OutcomeNumbers, ...] = ()
    rows: Mapping[str, TitleRows] = field(default_factory=dict)


def _titles(
    compared: ComparedScores,
    settings: ReportSettings,
    groupings: Sequence[Grouping],
    people: ResampledPeople,
    drawn: Sequence[CodeArray],
) -> _Titles:
    """Compute what the tables of titles give, for the models that have one."""
    files = {model.name: file for model in compared.models if (file := file_with_titles(model, settings.split))}
    if not files:
        return _Titles()
    codes = dict.fromkeys(code for file in files.values() for code in title_codes(file, settings.split))
    states = find_states((file.run for file in files.values()), tuple(codes), settings.states)
    previous, occupations = (compared.observations[name].to_pylist() for name in ("previous", "occupation"))
    facts, taken = list[TitleFacts](), dict[str, TitleRows]()
    for name, file in files.items():
        if (table := titles_of(file, settings.split)) is not None:
            facts.append(facts_of_table(name, table, previous, states))
            if drawn:
                taken[name] = rows_of_table(table, np.concatenate(drawn))
    numbers, pairs = title_numbers(facts, compared, people)
    names = [each.model for each in facts]
    outcomes = (
        outcome_numbers(outcome, names, groupings, people, settings.calibration_bins)
        for outcome in list_outcomes(facts, previous, occupations, states)
    )
    return _Titles(numbers, pairs, states, tuple(outcomes), taken)


def _weights(compared: ComparedScores, settings: ReportSettings) -> WeightNumbers | None:
    if compared.weight_of_row is None or settings.weights.path is None:
        return None
    effective = compared.weight_of_row.sum() ** 2 / (compared.weight_of_row**2).sum()
    return WeightNumbers(settings.weights.path, settings.weights.column, float(effective))


def _on_other_data(data: str, compared: ComparedScores, settings: ReportSettings) -> OtherDataNumbers:
    num_rows = len(compared.person_of_row)
    people = ResampledPeople(
        compared.person_of_row, compared.num_people, None, num_draws=settings.bootstrap_draws, seed=settings.seed
    )
    scores = np.stack([model.log_likelihood for model in compared.models])
    means = resample_means(scores, np.zeros((1, num_rows), dtype=np.int64), people)
    return OtherDataNumbers(data, compared.num_people, num_rows, _model_numbers(compared, means))


def _estimates(means: ResampledMeans, model: int, group: int) -> tuple[Estimate, Estimate]:
    """Give (perplexity, mean log-likelihood) of one model in one group."""
    value, draws = means.sample_MG[model, group], means.draws_MGD[model, group]
    num_people = int(means.num_people_G[group])
    return (
        estimate(float(perplexity_of(value)), perplexity_of(draws), num_people=num_people),
        estimate(value, draws, num_people=num_people),
    )


def _difference(means: ResampledMeans, first: int, second: int) -> tuple[Estimate, FloatArray]:
    """Give first minus second in nats on all observations, and the same in every resample."""
    draws = means.draws_MGD[first, 0] - means.draws_MGD[second, 0]
    value = means.sample_MG[first, 0] - means.sample_MG[second, 0]
    return estimate(value, draws, num_people=int(means.num_people_G[0])), draws


def _model_numbers(compared: ComparedScores, means: ResampledMeans) -> tuple[ModelNumbers, ...]:
    models = compared.models
    missed = floors_missed(models, means.sample_MG[:, 0], compared.num_titles)
    truth = next((index for index, model in enumerate(models) if model.is_true), None)
    numbers = []
    for index, model in enumerate(models):
        perplexity, mean = _estimates(means, index, 0)
        numbers.append(
            ModelNumbers(
                model=model.name,
                true_model=model.is_true,
                perplexity=perplexity,
                mean_log_likelihood_nats=mean,
                nats_to_truth=None if truth is None else _difference(means, truth, index)[0],
                num_people=int(means.num_people_G[0]),
                num_observations=int(means.num_observations_G[0]),
                worse_than=missed[index],
            )
        )
    return tuple(numbers)


def _pair_numbers(models: tuple[ScoredModel, ...], means: ResampledMeans) -> tuple[PairNumbers, ...]:
    num_people = int(means.num_people_G[0])
    perplexity_M, perplexity_MD = perplexity_of(means.sample_MG[:, 0]), perplexity_of(means.draws_MGD[:, 0])
    numbers = []
    for first, second in combinations(range(len(models)), 2):
        difference, draws = _difference(means, first, second)
        # perplexity(first) / perplexity(second) = exp(-difference); an infinite perplexity leaves the ratio finite.
        ratio = estimate(float(perplexity_of(difference.value)), perplexity_of(draws), num_people=num_people)
        with np.errstate(invalid="ignore"):
            apart = perplexity_M[first] - perplexity_M[second]
            apart_D = perplexity_MD[first] - perplexity_MD[second]
        numbers.append(
            PairNumbers(
                first=models[first].name,
                second=models[second].name,
                difference_nats=difference,
                perplexity_ratio=ratio,
                perplexity_difference=estimate(apart, apart_D, num_people=num_people),
                share_first_better=float(np.mean(draws > 0) + np.mean(draws == 0) / 2),
            )
        )
    return tuple(numbers)


def _grouping_numbers(
    grouping: Grouping, offset: int, models: tuple[ScoredModel, ...], means: ResampledMeans
) -> GroupingNumbers:
    groups = []
    for code, label in enumerate(grouping.labels, start=offset):
        num_people = int(means.num_people_G[code])
        scores = (GroupScore(model.name, *_estimates(means, index, code)) for index, model in enumerate(models))
        groups.append(
            GroupNumbers(
                group=label,
                recorded=label != NOT_RECORDED,
                few_people=num_people < FEW_PEOPLE,
                num_people=num_people,
                num_observations=int(means.num_observations_G[code]),
                scores=tuple(scores),
            )
        )
    return GroupingNumbers(grouping.name, grouping.title, grouping.note, tuple(groups))


def _sources(models: tuple[ScoredModel, ...]) -> tuple[SourceNumbers, ...]:
    return tuple(
        SourceNumbers(
            model=model.name,
            name_in_file=file.info.model,
            run=file.run,
            file=str(file.path),
            split=file.info.split,
            careers=file.info.careers,
            code=file.info.code,
            details=dict(sorted(file.info.details.items())),
        )
        for model in models
        for file in model.files
    )


def floors_missed(
    models: Sequence[ScoredModel], mean_M: FloatArray, num_titles: int | None
) -> tuple[tuple[str, ...], ...]:
    """Return, for each model, the floors that it is worse than, as words.

    Args:
        models: of a report.
        mean_M: their mean log-likelihoods in nats, on the same observations.
        num_titles: that there are to choose from; None: not known.
    """
    missed: list[tuple[str, ...]] = []
    for place, model in enumerate(models):
        words: list[str] = []
        if num_titles is not None and mean_M[place] < -math.log(num_titles) - ROUNDING:
            words.append(f"uniform over {num_titles:,} titles")
        marginals = _marginals_for(model, models)
        if marginals and mean_M[place] < max(mean_M[at] for at in marginals) - ROUNDING:
            words.append("the marginal shares")
        missed.append(tuple(words))
    return tuple(missed)


def _marginals_for(model: ScoredModel, models: Sequence[ScoredModel]) -> list[int]:
    """Return the places of the marginals of a model's own runs; where they have none, of all runs."""
    places = [place for place, other in enumerate(models) if _is_marginal(other)]
    runs = {file.run for file in model.files}
    own = [place for place in places if runs & {file.run for file in models[place].files}]
    return own or places


def _is_marginal(model: ScoredModel) -> bool:
    return any(file.info.model == MARGINAL and "baseline" in file.info.details for file in model.files)
