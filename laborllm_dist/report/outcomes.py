"""AUC and calibration of what labor economists predict: becoming unemployed, leaving work, changing occupation.

The probability of an outcome is exact: a sum over the distribution of titles, not a share of samples. Every outcome has
a rule for who is at risk, and is judged on those observations alone:

    becoming_unemployed    at work before               the state unemployed
    leaving_labor_force    at work or unemployed before the state out of the labor force
    stopping_work          at work before               any state without an occupation
    changing_occupation    at work before and now       another occupation, given that it is one
    moving                 any earlier observation      another title, be it an occupation or a state

At work: the title is none of the states (report/nonemployment.py). An outcome whose state a run does not have, or that
is the same as another, is left out. The most probable title is calibrated in the same way: its probability against how
often it is the observed one.

Calibration: predicted probabilities are cut into bins of equal numbers of observations; the expected calibration error
(ECE) is the mean distance over bins, weighted by their sizes, between mean prediction and observed share. It is above 0
for a perfect model too, since shares are noisy, the more so in small groups: `ece_by_chance` is what a perfectly
calibrated model would have with these people. The mean squared distance is without bias, since the variance over
resamples is taken out of it, and predicted minus observed has none, so these two compare groups of unequal size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from laborllm_dist.report.bootstrap import (
    BoolArray,
    Estimate,
    ResampledPeople,
    estimate,
    estimate_of_distance,
    resample_auc,
    resample_sums,
)
from laborllm_dist.report.groupings import FEW_PEOPLE, Grouping
from laborllm_dist.report.load import CodeArray, FloatArray
from laborllm_dist.report.nonemployment import LaborStates
from laborllm_dist.report.title_metrics import ANY_STATE, AT_WORK, OUT_OF_LABOR_FORCE, UNEMPLOYED, TitleFacts

TOP_TITLE = "top_title"
NOT_COMPARED = ("transition",)  # its groups are what happened, which an outcome predicts


@dataclass(frozen=True, slots=True)
class Outcome:
    """Observations at risk, what happened (1, else 0), and every model's probability of it.

    Without `has_auc` the event is one of the model, not of the person, so models have no common ranking.
    """

    name: str
    title: str
    rule: str
    at_risk_N: BoolArray
    event_MN: FloatArray
    probability_MN: FloatArray
    is_exact_MN: BoolArray
    has_auc: bool


@dataclass(frozen=True, slots=True)
class CalibrationBin:
    """Observations of similar predicted probability: the mean of the predictions, and the observed share."""

    predicted: float
    observed: Estimate
    num_people: int
    num_observations: int


@dataclass(frozen=True, slots=True)
class OutcomeScore:
    """One model's predictions of an outcome, on all observations at risk or on a group of them.

    `ece_by_chance`: mean and percentiles of the ECE that noise alone gives. `squared_error`: mean squared distance
    without the part of noise, so it may be below 0. `predicted_minus_observed`: mean probability minus share of events.
    `num_inexact`: observations of which a title of the outcome was not scored individually (max_unscored_mass).
    """

    model: str
    auc: Estimate | None
    ece: Estimate
    ece_by_chance: Estimate
    squared_error: Estimate
    predicted_minus_observed: Estimate
    num_inexact: int


@dataclass(frozen=True, slots=True)
class Gap:
    """One model in a group minus the same model in the largest group, on the same resamples."""

    model: str
    auc: Estimate | None
    ece: Estimate
    squared_error: Estimate
    predicted_minus_observed: Estimate


@dataclass(frozen=True, slots=True)
class OutcomeGroup:
    """One group of those at risk; `gaps` to the largest group, which has none itself."""

    group: str
    few_people: bool
    num_people: int
    num_observations: int
    num_events: int
    scores: tuple[OutcomeScore, ...]
    gaps: tuple[Gap, ...]


@dataclass(frozen=True, slots=True)
class OutcomeGrouping:
    """All groups of one grouping that have observations at risk."""

    name: str
    title: str
    largest_group: str
    groups: tuple[OutcomeGroup, ...]


@dataclass(frozen=True, slots=True)
class OutcomePair:
    """Two models on the same resamples, first minus second."""

    first: str
    second: str
    auc: Estimate | None
    ece: Estimate


@dataclass(frozen=True, slots=True)
class OutcomeNumbers:
    """Everything about one outcome, with the models in the order of the report.

    `num_events`: how often it happened; for the most probable title that of the first model.
    """

    name: str
    title: str
    rule: str
    num_people: int
    num_observations: int
    num_events: int
    scores: tuple[OutcomeScore, ...]
    curves: tuple[tuple[CalibrationBin, ...], ...]  # a curve per model
    pairs: tuple[OutcomePair, ...]
    groupings: tuple[OutcomeGrouping, ...]


@dataclass(frozen=True, slots=True)
class _StateOutcome:
    """An outcome that is a set of states; `which` is the set's place in the facts of titles."""

    name: str
    title: str
    rule: str
    which: int
    codes_of: Callable[[LaborStates], Collection[str]]
    unemployed_are_at_risk: bool = False


_STATE_OUTCOMES = (
    _StateOutcome(
        "becoming_unemployed",
        "Becoming unemployed",
        "At risk: at work at the previous observation. Event: unemployed now.",
        UNEMPLOYED,
        lambda states: states.unemployed,
    ),
    _StateOutcome(
        "leaving_labor_force",
        "Leaving the labor force",
        "At risk: at work or unemployed at the previous observation. Event: out of the labor force now.",
        OUT_OF_LABOR_FORCE,
        lambda states: states.not_in_labor_force,
        unemployed_are_at_risk=True,
    ),
    _StateOutcome(
        "stopping_work",
        "Stopping work",
        "At risk: at work at the previous observation. Event: any state without an occupation now.",
        ANY_STATE,
        lambda states: states.all_codes,
    ),
)


@dataclass(frozen=True, slots=True)
class _Observed:
    """The title of each observation and the one before; None: a person's first observation."""

    previous: Sequence[str | None]
    occupations: Sequence[str]
    states: LaborStates

    def was(self, codes: Collection[str]) -> BoolArray:
        """Return where the title before is one of some codes."""
        return self.states.are_among(sorted(codes), self.previous)

    def is_now(self, codes: Collection[str]) -> BoolArray:
        """Return where the title is one of some codes."""
        return self.states.are_among(sorted(codes), self.occupations)

    @property
    def has_past(self) -> BoolArray:
        return np.array([code is not None for code in self.previous])

    @property
    def was_at_work(self) -> BoolArray:
        return self.has_past & ~self.was(self.states.all_codes)

    @property
    def has_moved(self) -> BoolArray:
        return np.array([before != code for before, code in zip(self.previous, self.occupations, strict=True)])


def list_outcomes(
    facts: Sequence[TitleFacts], previous: Sequence[str | None], occupations: Sequence[str], states: LaborStates
) -> tuple[Outcome, ...]:
    """Give the outcomes that the states of a run allow, each with somebody at risk; the most probable title last.

    Args:
        facts: of the models that have a table of titles.
        previous: the title before each observation; None: a person's first observation.
        occupations: the observed title of each observation.
        states: the states without an occupation.
    """
    observed = _Observed(previous, occupations, states)
    outcomes = (*_state_outcomes(facts, observed), *_changes(facts, observed), _top_title(facts))
    return tuple(each for each in outcomes if each.at_risk_N.any())


def _state_outcomes(facts: Sequence[TitleFacts], observed: _Observed) -> Iterator[Outcome]:
    known: list[set[str]] = [set()]
    for each in _STATE_OUTCOMES:
        codes = set(each.codes_of(observed.states))
        if codes in known:  # no such state; or stopping work where there is one state only
            continue
        known.append(codes)
        at_risk_N = observed.was_at_work
        if each.unemployed_are_at_risk:
            at_risk_N = at_risk_N | observed.was(observed.states.unemployed)
        yield Outcome(
            each.name,
            each.title,
            each.rule,
            at_risk_N,
            np.tile(observed.is_now(codes).astype(np.float64), (len(facts), 1)),
            np.stack([model.set_probability_SN[each.which] for model in facts]).clip(0, 1),
            np.stack([model.set_is_exact_SN[each.which] for model in facts]),
            has_auc=True,
        )


def _changes(facts: Sequence[TitleFacts], observed: _Observed) -> Iterator[Outcome]:
    """Give another occupation among those at work before and now, and any other title."""
    has_moved_MN = np.tile(observed.has_moved.astype(np.float64), (len(facts), 1))
    before_MN = np.stack([model.previous_probability_N for model in facts])
    before_is_exact_MN = np.stack([model.previous_is_exact_N for model in facts])
    at_work_MN = np.stack([model.set_probability_SN[AT_WORK] for model in facts])
    with np.errstate(invalid="ignore"):  # 0/0: no occupation has any probability
        stays_MN = np.nan_to_num(before_MN / at_work_MN, nan=0.5)
    yield Outcome(
        "changing_occupation",
        "Changing occupation",
        "At risk: at work at the previous observation and now. Event: another occupation; its probability is that of "
        "another occupation given that the person is at work.",
        observed.was_at_work & ~observed.is_now(observed.states.all_codes),
        has_moved_MN,
        (1 - stays_MN).clip(0, 1),
        before_is_exact_MN & np.stack([model.set_is_exact_SN[AT_WORK] for model in facts]),
        has_auc=True,
    )
    if observed.states.all_codes:
        yield Outcome(
            "moving",
            "Moving",
            "At risk: everybody with an earlier observation. Event: another title than before, be it an occupation "
            "or a state.",
            observed.has_past,
            has_moved_MN,
            (1 - before_MN).clip(0, 1),
            before_is_exact_MN,
            has_auc=True,
        )


def _top_title(facts: Sequence[TitleFacts]) -> Outcome:
    return Outcome(
        TOP_TITLE,
        "The most probable title",
        "All observations. Event: the most probable title is the observed one.",
        np.ones(len(facts[0].rank_N), dtype=bool),
        np.stack([model.top_is_observed_N for model in facts]),
        np.stack([model.top_probability_N for model in facts]),
        np.stack([model.top_is_exact_N for model in facts]),
        has_auc=False,
    )


def outcome_numbers(
    outcome: Outcome, models: Sequence[str], groupings: Sequence[Grouping], people: ResampledPeople, num_bins: int
) -> OutcomeNumbers:
    """Compute everything about one outcome; all parts use the same resamples of people.

    Args:
        outcome: of all observations.
        models: names, in the order of the outcome.
        groupings: of all observations.
        people: of all observations.
        num_bins: most bins of a calibration curve.
    """
    at_risk = outcome.at_risk_N
    chosen = people.rows(at_risk)
    event_MN, probability_MN = outcome.event_MN[:, at_risk], outcome.probability_MN[:, at_risk]
    bins_MN = np.stack([quantile_bins(probability_N, num_bins) for probability_N in probability_MN])
    judged = _Judged(models, event_MN, probability_MN, outcome.is_exact_MN[:, at_risk], bins_MN, outcome.has_auc)
    everybody = np.zeros(int(at_risk.sum()), dtype=np.int64)
    (overall,) = judged.by_group(everybody, 1, chosen)
    return OutcomeNumbers(
        name=outcome.name,
        title=outcome.title,
        rule=outcome.rule,
        num_people=overall.num_people,
        num_observations=len(everybody),
        num_events=round(float(event_MN[0].sum())),
        scores=overall.scores(models),
        curves=tuple(
            _curve(probability_N, event_N, bin_N, chosen)
            for probability_N, event_N, bin_N in zip(probability_MN, event_MN, bins_MN, strict=True)
        ),
        pairs=overall.pairs(models),
        groupings=tuple(
            judged.grouping(grouping, at_risk, chosen) for grouping in groupings if grouping.name not in NOT_COMPARED
        ),
    )


def quantile_bins(probability_N: FloatArray, num_bins: int) -> CodeArray:
    """Return the bin of each prediction, numbered without gaps; equal predictions are in one bin."""
    edges = np.quantile(probability_N, np.linspace(0, 1, num_bins + 1)[1:-1])
    return np.unique(np.searchsorted(edges, probability_N), return_inverse=True)[1].astype(np.int64)


def _curve(
    probability_N: FloatArray, event_N: FloatArray, bin_N: CodeArray, people: ResampledPeople
) -> tuple[CalibrationBin, ...]:
    num_bins = int(bin_N.max()) + 1
    values = np.stack([np.ones(len(bin_N)), probability_N, event_N])
    weight_BD, predicted_BD, observed_BD = resample_sums(values, bin_N, num_bins, people)
    bins = []
    for number in range(num_bins):
        num_people = len(np.unique(people.person_of_row[bin_N == number]))
        with np.errstate(invalid="ignore"):  # 0/0: nobody of the bin was drawn, or has a weight
            predicted = predicted_BD[number, 0] / weight_BD[number, 0]
            observed = observed_BD[number] / weight_BD[number]
        share = estimate(observed[0], observed[1:], num_people=num_people)
        bins.append(CalibrationBin(float(predicted), share, num_people, int((bin_N == number).sum())))
    return tuple(bins)


@dataclass(frozen=True, slots=True)
class _GroupDraws:
    """One group: its sizes, and for every model the sample's number and then that of each resample, [M, 1 + D]."""

    num_people: int
    num_observations: int
    num_events: int
    auc_MD: FloatArray | None
    calibration_M: tuple[_Calibration, ...]
    num_inexact_M: CodeArray

    def estimate_of(self, values_D: FloatArray) -> Estimate:
        """Return the estimate of a number that is known for the sample and every resample, [1 + draws]."""
        return estimate(values_D[0], values_D[1:], num_people=self.num_people)

    def ece_apart(self, one: _Calibration, other: _Calibration) -> Estimate:
        """Return the difference of two calibration errors."""
        difference_D = one.ece_D - other.ece_D
        return estimate_of_distance(difference_D, one.noise_D, other.noise_D, num_people=self.num_people)

    def scores(self, models: Sequence[str]) -> tuple[OutcomeScore, ...]:
        scores = []
        for place, (model, own) in enumerate(zip(models, self.calibration_M, strict=True)):
            ece = estimate_of_distance(own.ece_D, own.noise_D, num_people=self.num_people)
            by_chance = float(np.nanmean(own.noise_D[1:])) if ece.low is not None else math.nan
            scores.append(
                OutcomeScore(
                    model=model,
                    auc=None if self.auc_MD is None else self.estimate_of(self.auc_MD[place]),
                    ece=ece if ece.low is None else replace(ece, low=max(ece.low, 0.0)),
                    ece_by_chance=estimate(by_chance, own.noise_D[1:], num_people=self.num_people),
                    squared_error=self.estimate_of(own.squared_D),
                    predicted_minus_observed=self.estimate_of(own.excess_D),
                    num_inexact=int(self.num_inexact_M[place]),
                )
            )
        return tuple(scores)

    def pairs(self, models: Sequence[str]) -> tuple[OutcomePair, ...]:
        pairs = []
        for first, second in combinations(range(len(models)), 2):
            one, other = self.calibration_M[first], self.calibration_M[second]
            pairs.append(
                OutcomePair(
                    first=models[first],
                    second=models[second],
                    auc=None if self.auc_MD is None else self.estimate_of(self.auc_MD[first] - self.auc_MD[second]),
                    ece=self.ece_apart(one, other),
                )
            )
        return tuple(pairs)

    def gaps(self, models: Sequence[str], largest: _GroupDraws) -> tuple[Gap, ...]:
        both = replace(self, num_people=min(self.num_people, largest.num_people))
        gaps = []
        for place, model in enumerate(models):
            own, other = self.calibration_M[place], largest.calibration_M[place]
            has_auc = self.auc_MD is not None and largest.auc_MD is not None
            gaps.append(
                Gap(
                    model=model,
                    auc=both.estimate_of(self.auc_MD[place] - largest.auc_MD[place]) if has_auc else None,  # type: ignore[index]
                    ece=both.ece_apart(own, other),
                    squared_error=both.estimate_of(own.squared_D - other.squared_D),
                    predicted_minus_observed=both.estimate_of(own.excess_D - other.excess_D),
                )
            )
        return tuple(gaps)


@dataclass(frozen=True, slots=True)
class _Calibration:
    """Errors of a model in a group: the sample's number, then that of each resample, [1 + D].

    `noise_D` is the ECE of the deviations from the sample's distances.
    """

    ece_D: FloatArray
    noise_D: FloatArray
    squared_D: FloatArray
    excess_D: FloatArray

    @staticmethod
    def of(weight_BD: FloatArray, excess_BD: FloatArray, num_people_B: CodeArray) -> _Calibration:
        """Return the errors from sums over bins.

        Args:
            weight_BD: sum of weights.
            excess_BD: weighted sum of prediction minus event.
            num_people_B: people in each bin; a variance over few is made up for as usual, by n / (n - 1).
        """
        with np.errstate(invalid="ignore", divide="ignore"):  # nobody was drawn, or has a weight
            weight_D = weight_BD.sum(axis=0)
            distance_BD = np.nan_to_num(excess_BD / weight_BD)
            correction_B = np.where(num_people_B > 1, num_people_B / np.maximum(num_people_B - 1, 1), 1.0)
            # The one person of a bin deviates from 0, since there is nobody else to tell what is usual.
            expected_BD = np.where(num_people_B[:, None] > 1, distance_BD[:, :1] * weight_BD, excess_BD[:, :1])
            noise_BD = np.sqrt(correction_B)[:, None] * (excess_BD - expected_BD)
            noise_D = np.where(weight_D > 0, np.abs(noise_BD).sum(axis=0) / weight_D, np.nan)
            squared_D = (weight_BD * distance_BD**2).sum(axis=0) / weight_D
            variance_B = correction_B * np.var(distance_BD[:, 1:], axis=1)
            bias = float((weight_BD[:, 0] * variance_B).sum() / weight_D[0])
            # A resample's distances have the sample's noise and their own.
            unbiased_D = np.concatenate([squared_D[:1] - bias, squared_D[1:] - 2 * bias])
            return _Calibration(
                np.abs(excess_BD).sum(axis=0) / weight_D,
                noise_D,
                unbiased_D,
                excess_BD.sum(axis=0) / weight_D,
            )


@dataclass(frozen=True, slots=True)
class _Judged:
    """The observations at risk: what happened, what was predicted, and the bins of the predictions."""

    models: Sequence[str]
    event_MN: FloatArray
    probability_MN: FloatArray
    is_exact_MN: BoolArray
    bins_MN: CodeArray
    has_auc: bool

    def grouping(self, grouping: Grouping, at_risk: BoolArray, people: ResampledPeople) -> OutcomeGrouping:
        present, group_N = np.unique(grouping.group_of_row[at_risk], return_inverse=True)
        labels = [grouping.labels[code] for code in present]
        draws = self.by_group(group_N.astype(np.int64), len(labels), people)
        largest = max(range(len(labels)), key=lambda group: draws[group].num_observations)
        return OutcomeGrouping(
            grouping.name,
            grouping.title,
            labels[largest],
            tuple(
                OutcomeGroup(
                    group=label,
                    few_people=each.num_people < FEW_PEOPLE,
                    num_people=each.num_people,
                    num_observations=each.num_observations,
                    num_events=each.num_events,
                    scores=each.scores(self.models),
                    gaps=() if each is draws[largest] else each.gaps(self.models, draws[largest]),
                )
                for label, each in zip(labels, draws, strict=True)
            ),
        )

    def by_group(self, group_N: CodeArray, num_groups: int, people: ResampledPeople) -> list[_GroupDraws]:
        errors = [self._calibrations(model, group_N, num_groups, people) for model in range(len(self.models))]
        groups = []
        for group in range(num_groups):
            inside = group_N == group
            groups.append(
                _GroupDraws(
                    num_people=len(np.unique(people.person_of_row[inside])),
                    num_observations=int(inside.sum()),
                    num_events=round(float(self.event_MN[0, inside].sum())),
                    auc_MD=self._auc(inside, people) if self.has_auc else None,
                    calibration_M=tuple(of_model[group] for of_model in errors),
                    num_inexact_M=(~self.is_exact_MN[:, inside]).sum(axis=1),
                )
            )
        return groups

    def _auc(self, inside: BoolArray, people: ResampledPeople) -> FloatArray:
        return resample_auc(self.probability_MN[:, inside], self.event_MN[0, inside] > 0, people.rows(inside))

    def _calibrations(
        self, model: int, group_N: CodeArray, num_groups: int, people: ResampledPeople
    ) -> list[_Calibration]:
        """Return the errors of a model in every group."""
        num_bins = int(self.bins_MN[model].max()) + 1
        cell_N, num_cells = group_N * num_bins + self.bins_MN[model], num_groups * num_bins
        ones_N = np.ones(len(cell_N))
        excess_N = self.probability_MN[model] - self.event_MN[model]
        sums = resample_sums(np.stack([ones_N, excess_N]), cell_N, num_cells, people)
        weight_GBD, excess_GBD = sums.reshape(2, num_groups, num_bins, -1)
        num_people_GB = np.diff(people.sums(ones_N, cell_N, num_cells).indptr).reshape(num_groups, num_bins)
        return [_Calibration.of(*parts) for parts in zip(weight_GBD, excess_GBD, num_people_GB, strict=True)]
