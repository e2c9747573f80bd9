"""AUC and calibration of what labor economists predict: becoming unemployed, leaving work, changing occupation.

The probability of an outcome is exact: a sum over the distribution of titles, not a share of samples. Every outcome has
a rule for who is at risk, and is judged on those observations alone:

    becoming_unemployed    at work before               the state unemployed
    leaving_labor_force    at work or unemployed before the state out of the labor force
    stopping_work          at work before               any state without an occupation
    changing_occupation    at work before and now       another occupation, given that it is one
    moving                 any earlier observation      another title, be it an occupation or a state

At work: the title is none of the states (report/states.py). An outcome whose state a run does not have, or that is the
same as another, is left out. The most probable title is calibrated in the same way: its probability against how often
it is the observed one.

Calibration: predicted probabilities are cut into bins of equal numbers of observations; the expected calibration error
(ECE) is the mean distance over bins, weighted by their sizes, between mean prediction and observed share. It is above 0
for a perfect model too, since shares are noisy, the more so in small groups: `ece_by_chance` is what a perfectly
calibrated model would have with these people. Predicted minus observed has no such floor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy import sparse

from laborllm_dist.report.bootstrap import (
    BoolArray,
    Estimate,
    ResampledPeople,
    estimate,
    resample_auc,
    resample_sums,
)
from laborllm_dist.report.groupings import FEW_PEOPLE, Grouping
from laborllm_dist.report.load import CodeArray, FloatArray
from laborllm_dist.report.states import LaborStates
from laborllm_dist.report.title_metrics import ANY_STATE, AT_WORK, OUT_OF_LABOR_FORCE, UNEMPLOYED, TitleFacts

TOP_TITLE = "top_title"
# Groupings whose groups are compared with each other.
GAP_GROUPINGS = ("gender", "ethnicity", "region", "education", "birth_decade", "survey")


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

    `predicted_minus_observed`: mean probability minus share of events. `num_inexact`: observations of which a title of
    the outcome was not scored individually (max_unscored_mass).
    """

    model: str
    auc: Estimate | None
    ece: Estimate
    ece_by_chance: float
    predicted_minus_observed: Estimate
    num_inexact: int


@dataclass(frozen=True, slots=True)
class Gap:
    """One model in a group minus the same model in the largest group, on the same resamples."""

    model: str
    auc: Estimate | None
    ece: Estimate
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
    num_rows = len(occupations)
    was_state_N = states.are_among(sorted(states.all_codes), previous)
    is_state_N = states.are_among(sorted(states.all_codes), occupations)
    has_past_N = np.array([code is not None for code in previous])
    was_at_work_N = has_past_N & ~was_state_N
    was_unemployed_N = states.are_among(states.unemployed, previous)
    has_moved_N = np.array([before != code for before, code in zip(previous, occupations, strict=True)])
    probability_SMN = np.stack([each.set_probability_SN for each in facts], axis=1)
    is_exact_SMN = np.stack([each.set_is_exact_SN for each in facts], axis=1)
    before_MN = np.stack([each.previous_probability_N for each in facts])
    before_is_exact_MN = np.stack([each.previous_is_exact_N for each in facts])

    def outcome(
        name: str,
        title: str,
        rule: str,
        at_risk_N: BoolArray,
        event_N: BoolArray,
        p_MN: FloatArray,
        exact_MN: BoolArray,
    ) -> Outcome:
        event_MN = np.tile(event_N.astype(np.float64), (len(facts), 1))
        return Outcome(name, title, rule, at_risk_N, event_MN, np.clip(p_MN, 0.0, 1.0), exact_MN, has_auc=True)

    outcomes: list[Outcome] = []
    for codes, name, title, rule, at_risk_N, which in (
        (
            states.unemployed, "becoming_unemployed", "Becoming unemployed",
            "At risk: at work at the previous observation. Event: unemployed now.", was_at_work_N, UNEMPLOYED,
        ),
        (
            states.not_in_labor_force, "leaving_labor_force", "Leaving the labor force",
            "At risk: at work or unemployed at the previous observation. Event: out of the labor force now.",
            was_at_work_N | was_unemployed_N, OUT_OF_LABOR_FORCE,
        ),
        (
            tuple(sorted(states.all_codes)), "stopping_work", "Stopping work",
            "At risk: at work at the previous observation. Event: any state without an occupation now.",
            was_at_work_N, ANY_STATE,
        ),
    ):  # fmt: skip
        is_other = name != "stopping_work" or set(codes) not in (
            set(states.unemployed), set(states.not_in_labor_force)
        )  # fmt: skip
        if codes and is_other:
            event_N = states.are_among(codes, occupations)
            outcomes.append(outcome(name, title, rule, at_risk_N, event_N, probability_SMN[which], is_exact_SMN[which]))
    with np.errstate(invalid="ignore", divide="ignore"):  # no occupation has any probability: stays likely as not
        given_work_MN = np.nan_to_num(1 - before_MN / probability_SMN[AT_WORK], nan=0.5)
    outcomes.append(
        outcome(
            "changing_occupation", "Changing occupation",
            "At risk: at work at the previous observation and now. Event: another occupation; its probability is that "
            "of another occupation given that the person is at work.",
            was_at_work_N & ~is_state_N, has_moved_N, given_work_MN, before_is_exact_MN & is_exact_SMN[AT_WORK],
        )
    )  # fmt: skip
    if states.all_codes:
        outcomes.append(
            outcome(
                "moving", "Moving",
                "At risk: everybody with an earlier observation. Event: another title than before, be it an occupation "
                "or a state.",
                has_past_N, has_moved_N, 1 - before_MN, before_is_exact_MN,
            )
        )  # fmt: skip
    outcomes.append(
        Outcome(
            name=TOP_TITLE,
            title="The most probable title",
            rule="All observations. Event: the most probable title is the observed one.",
            at_risk_N=np.ones(num_rows, dtype=bool),
            event_MN=np.stack([each.top_is_observed_N for each in facts]),
            probability_MN=np.stack([each.top_probability_N for each in facts]),
            is_exact_MN=np.stack([each.top_is_exact_N for each in facts]),
            has_auc=False,
        )
    )
    return tuple(each for each in outcomes if each.at_risk_N.any())


def outcome_numbers(
    outcome: Outcome, models: Sequence[str], groupings: Sequence[Grouping], people: ResampledPeople, num_bins: int
) -> OutcomeNumbers:
    """Compute everything about one outcome; all parts use the same resamples of people.

    Args:
        outcome: of all observations.
        models: names, in the order of the outcome.
        groupings: of all observations; those whose groups are compared with each other are taken.
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
            judged.grouping(grouping, at_risk, chosen) for grouping in groupings if grouping.name in GAP_GROUPINGS
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
    ece_MD: FloatArray
    excess_MD: FloatArray
    by_chance_M: FloatArray
    num_inexact_M: CodeArray

    def _estimate(self, values_D: FloatArray) -> Estimate:
        return estimate(values_D[0], values_D[1:], num_people=self.num_people)

    def scores(self, models: Sequence[str]) -> tuple[OutcomeScore, ...]:
        return tuple(
            OutcomeScore(
                model=model,
                auc=None if self.auc_MD is None else self._estimate(self.auc_MD[place]),
                ece=self._estimate(self.ece_MD[place]),
                ece_by_chance=float(self.by_chance_M[place]),
                predicted_minus_observed=self._estimate(self.excess_MD[place]),
                num_inexact=int(self.num_inexact_M[place]),
            )
            for place, model in enumerate(models)
        )

    def pairs(self, models: Sequence[str]) -> tuple[OutcomePair, ...]:
        return tuple(
            OutcomePair(
                first=models[first],
                second=models[second],
                auc=None if self.auc_MD is None else self._estimate(self.auc_MD[first] - self.auc_MD[second]),
                ece=self._estimate(self.ece_MD[first] - self.ece_MD[second]),
            )
            for first, second in combinations(range(len(models)), 2)
        )

    def gaps(self, models: Sequence[str], largest: _GroupDraws) -> tuple[Gap, ...]:
        num_people = min(self.num_people, largest.num_people)

        def apart(own_D: FloatArray, other_D: FloatArray) -> Estimate:
            return estimate(own_D[0] - other_D[0], own_D[1:] - other_D[1:], num_people=num_people)

        has_auc = self.auc_MD is not None and largest.auc_MD is not None
        return tuple(
            Gap(
                model=model,
                auc=apart(self.auc_MD[place], largest.auc_MD[place]) if has_auc else None,  # type: ignore[index]
                ece=apart(self.ece_MD[place], largest.ece_MD[place]),
                predicted_minus_observed=apart(self.excess_MD[place], largest.excess_MD[place]),
            )
            for place, model in enumerate(models)
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
        errors = [self._calibration(model, group_N, num_groups, people) for model in range(len(self.models))]
        ece_MGD, excess_MGD, by_chance_MG = (np.stack(parts) for parts in zip(*errors, strict=True))
        groups = []
        for group in range(num_groups):
            inside = group_N == group
            groups.append(
                _GroupDraws(
                    num_people=len(np.unique(people.person_of_row[inside])),
                    num_observations=int(inside.sum()),
                    num_events=round(float(self.event_MN[0, inside].sum())),
                    auc_MD=self._auc(inside, people) if self.has_auc else None,
                    ece_MD=ece_MGD[:, group],
                    excess_MD=excess_MGD[:, group],
                    by_chance_M=by_chance_MG[:, group],
                    num_inexact_M=(~self.is_exact_MN[:, inside]).sum(axis=1),
                )
            )
        return groups

    def _auc(self, inside: BoolArray, people: ResampledPeople) -> FloatArray:
        return resample_auc(self.probability_MN[:, inside], self.event_MN[0, inside] > 0, people.rows(inside))

    def _calibration(
        self, model: int, group_N: CodeArray, num_groups: int, people: ResampledPeople
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return the ECE and the excess of predictions, [groups, 1 + D], and the ECE by chance, [groups]."""
        num_bins = int(self.bins_MN[model].max()) + 1
        cell_N, num_cells = group_N * num_bins + self.bins_MN[model], num_groups * num_bins
        excess_N = self.probability_MN[model] - self.event_MN[model]
        weight_CD, excess_CD = resample_sums(np.stack([np.ones(len(excess_N)), excess_N]), cell_N, num_cells, people)
        shape = (num_groups, num_bins, -1)
        weight_GD, excess_GBD = weight_CD.reshape(shape).sum(axis=1), excess_CD.reshape(shape)
        deviation_GB = _deviation_of_cells(excess_N, cell_N, num_cells, people).reshape(num_groups, num_bins)
        with np.errstate(invalid="ignore"):  # 0/0: nobody of the group was drawn, or has a weight
            return (
                np.abs(excess_GBD).sum(axis=1) / weight_GD,
                excess_GBD.sum(axis=1) / weight_GD,
                math.sqrt(2 / math.pi) * deviation_GB.sum(axis=1) / weight_GD[:, 0],
            )


def _deviation_of_cells(excess_N: FloatArray, cell_N: CodeArray, num_cells: int, people: ResampledPeople) -> FloatArray:
    """Return the standard deviation of the sum of excess in every cell, over samples of people, [cells].

    A person's observations are alike, so the people's sums vary, around the cell's mean excess; that of a single person
    varies around 0. The mean absolute value of a normal variable is sqrt(2 / pi) of this.
    """
    weights_CP = people.sums(people.weights, cell_N, num_cells)
    excess_CP = people.sums(excess_N * people.weights, cell_N, num_cells)
    num_people_C = np.diff(weights_CP.indptr)
    everyone_P = np.ones(people.num_people)
    with np.errstate(invalid="ignore", divide="ignore"):  # cells without people, or of one
        mean_C = np.where(num_people_C > 1, (excess_CP @ everyone_P) / (weights_CP @ everyone_P), 0.0)
        correction_C = np.where(num_people_C > 1, num_people_C / (num_people_C - 1), 1.0)
    deviations_CP = excess_CP - sparse.diags_array(np.nan_to_num(mean_C)) @ weights_CP
    return np.asarray(np.sqrt(correction_C * deviations_CP.power(2).sum(axis=1)), dtype=np.float64)
