"""Follow single people of a report: what every model predicted, year by year, and what came.

People are drawn by a hash of the seed and their key and then numbered, so that no id is shown. A model with a table of
titles has the most probable titles of every year, and the rank and probability of the observed one, as shares of the
mass of all titles; of any other model only the probability of the observed title is known, by the report's measure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from laborllm_dist.config.evaluation import ReportSettings
from laborllm_dist.randomness import rank_of
from laborllm_dist.report.load import CodeArray, ComparedScores, ScoredModel
from laborllm_dist.report.nonemployment import titles_of_store
from laborllm_dist.report.title_metrics import TitleRows
from laborllm_dist.tables.log_domain import perplexity_of

MOST_PROBABLE = 5  # titles of every year


@dataclass(frozen=True, slots=True)
class PredictedTitle:
    """One title of a predicted distribution; equal titles share the mean of their ranks."""

    rank: float
    title: str
    probability: float
    observed: bool


@dataclass(frozen=True, slots=True)
class Prediction:
    """One model's prediction of one year: probability and rank of the observed title, and the most probable titles.

    Without a table of titles `rank` is None and there are no `titles`; with one, the observed title is among them.
    """

    probability: float
    rank: float | None
    titles: tuple[PredictedTitle, ...]


@dataclass(frozen=True, slots=True)
class CareerYear:
    """One observation of a person; `before` is the previous title, None at the first observation."""

    year: int
    title: str
    before: str | None
    education: str | None
    predictions: tuple[Prediction, ...]  # of the models in their order


@dataclass(frozen=True, slots=True)
class Career:
    """All observations of a person; `perplexities` of the models on this person alone, by the report's measure."""

    number: int
    facts: Mapping[str, str]
    years: tuple[CareerYear, ...]
    perplexities: tuple[float, ...]

    def num_first(self, model: int) -> int | None:
        """Return in how many years the observed title was the most probable one of a model; None: not known."""
        ranks = [year.predictions[model].rank for year in self.years]
        return None if None in ranks else ranks.count(1.0)


def draw_people(compared: ComparedScores, settings: ReportSettings) -> tuple[CodeArray, ...]:
    """Return the observations of `settings.num_careers` people of a report, or of all if there are fewer."""
    starts = np.flatnonzero(np.diff(compared.person_of_row, prepend=-1))
    rows_of = np.split(np.arange(len(compared.person_of_row)), starts[1:])
    surveys, people = (compared.observations[name].take(pa.array(starts)).to_pylist() for name in ("survey", "person"))
    keys = [rank_of("single careers", settings.seed, *key) for key in zip(surveys, people, strict=True)]
    drawn = sorted(range(len(keys)), key=keys.__getitem__)[: settings.num_careers]
    return tuple(rows_of[person] for person in drawn)


def single_careers(
    compared: ComparedScores, drawn: Sequence[CodeArray], titles: Mapping[str, TitleRows]
) -> tuple[Career, ...]:
    """Return people of a report, with the models in its order.

    Args:
        compared: the models on the observations of the report.
        drawn: observations of the people, of `draw_people`.
        titles: of the models that have a table of titles, its rows of these observations, person by person.
    """
    if not drawn:
        return ()
    rows, title_of = np.concatenate(drawn), _titles(compared.models)
    predictions = [_predictions(model, rows, titles.get(model.name), title_of) for model in compared.models]
    careers, first = [], 0
    for number, rows_of_person in enumerate(drawn, start=1):
        facts = compared.observations.take(pa.array(rows_of_person)).to_pylist()
        years = tuple(
            CareerYear(
                year=fact["year"],
                title=title_of.get(fact["occupation"], fact["occupation"]),
                before=None if fact["previous"] is None else title_of.get(fact["previous"], fact["previous"]),
                education=fact["education"],
                predictions=tuple(of_model[place] for of_model in predictions),
            )
            for place, fact in enumerate(facts, start=first)
        )
        first += len(facts)
        perplexities = (perplexity_of(model.log_likelihood[rows_of_person].mean()) for model in compared.models)
        careers.append(Career(number, _facts(facts[0]), years, tuple(map(float, perplexities))))
    return tuple(careers)


def _facts(fact: Mapping[str, object]) -> dict[str, str]:
    names = {"survey": "Survey", "birth_year": "Born", "gender": "Gender", "ethnicity": "Ethnicity", "region": "Region"}
    return {shown: str(fact[name]) for name, shown in names.items() if fact[name] is not None}


def _titles(models: Sequence[ScoredModel]) -> dict[str, str]:
    """Return the titles of codes, as far as the runs' token stores are there."""
    title_of: dict[str, str] = {}
    for run in dict.fromkeys(file.run for model in models for file in model.files):
        title_of = {**titles_of_store(run), **title_of}
    return title_of


def _predictions(
    model: ScoredModel, rows: CodeArray, titles: TitleRows | None, title_of: Mapping[str, str]
) -> tuple[Prediction, ...]:
    """Return a model's predictions of some observations."""
    if titles is None:
        return tuple(Prediction(float(np.exp(nats)), None, ()) for nats in model.log_likelihood[rows])
    codes, scores = titles.occupations, titles.scores
    # Stable: titles of one probability keep the order of the table. The observed title comes last.
    order_NK = np.argsort(-scores.shares_NT, axis=1, kind="stable")[:, :MOST_PROBABLE]
    places_NK = np.column_stack([order_NK, scores.own_N])
    ranks_NK = np.column_stack([scores.ranks(place_N) for place_N in places_NK.T])
    predictions = []
    for row, (*order, own) in enumerate(places_NK.tolist()):
        predicted = [
            PredictedTitle(
                rank=float(ranks_NK[row, column]),
                title=title_of.get(codes[place], codes[place]),
                probability=float(scores.shares_NT[row, place]),
                observed=place == own,
            )
            for column, place in enumerate([*order, own])
        ]
        last = predicted.pop() if own in order else predicted[-1]
        predictions.append(Prediction(last.probability, last.rank, tuple(predicted)))
    return tuple(predictions)
