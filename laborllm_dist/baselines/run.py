"""Train and score the baselines of a run on its own people, each into a score table beside the model's.

A baseline learns from the people that the run trains on, with their weights. Whatever is chosen (smoothing, strength of
a penalty, when to stop) is chosen on the validation people.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import tempfile
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from laborllm_dist import __version__
from laborllm_dist.baselines.average import average_scores, average_titles, mixture_weights, read_tables
from laborllm_dist.baselines.embedding import (
    StandardizedStates,
    embedding_model,
    embedding_store,
    moments,
    open_embedding_model,
    states_in_file,
)
from laborllm_dist.baselines.features import (
    STATIC,
    VARYING,
    CareerFeatures,
    Categories,
    categories_of,
    features_on_disk,
)
from laborllm_dist.baselines.frequency import FrequencyTable, first_order_table, marginal_table, second_order_table
from laborllm_dist.baselines.logit import STRENGTHS, CareerRegressors, Sample, fit_logit
from laborllm_dist.careers.corpus import fingerprint_sources
from laborllm_dist.careers.readers.synthetic.market import make_market
from laborllm_dist.careers.splits import SPLITS, Split
from laborllm_dist.config.baselines import (
    BASELINES,
    BaselineName,
    BaselineSettings,
    EmbeddingLogitSettings,
    FitSettings,
    WeighingBaseline,
)
from laborllm_dist.config.corpora import SyntheticSettings
from laborllm_dist.config.data import DataSettings, YearSplit
from laborllm_dist.config.model import HEAD_NAMES
from laborllm_dist.config.run import RunSettings
from laborllm_dist.errors import RunError
from laborllm_dist.evaluation.tasks import observation_facts, with_details
from laborllm_dist.io.files import ChecksumCheck, file_lock, fingerprint_of
from laborllm_dist.io.run_directory import RunDirectory, read_run
from laborllm_dist.models.loading import weights_identity
from laborllm_dist.store.pooling import TrainingPool, observation_weights, training_pool
from laborllm_dist.store.store import CareerTable, TokenStore, checking_store, open_store, whole_careers
from laborllm_dist.tables.log_domain import log_sum_exp, perplexity_of
from laborllm_dist.tables.parquet import ScoreTableInfo, key_order, written_info
from laborllm_dist.tables.scores import MASS_OUTSIDE_TITLES, NUM_TITLES, TRUE_MODEL, write_score_table
from laborllm_dist.tables.title_distributions import title_table_path, write_title_table

if TYPE_CHECKING:
    from laborllm_dist.baselines.two_stage import TwoStageModel

logger = logging.getLogger(__name__)

NAMES: dict[BaselineName, str] = {
    "marginal": "marginal",
    "first_order": "first-order",
    "second_order": "second-order",
    "logit": "logit",
    "logit_two_stage": "two-stage logit",
    "bag_of_jobs": "bag of jobs",
    "career": "CAREER",
    "embedding_logit": "embedding logit",
    "average": "average",
    "truth": "truth",
}
FORMAT = 5  # of the tables made here: raise it when what is in them changes
EMBEDDING_STRENGTHS = (3_000.0, 1_000.0, 300.0, 100.0, 30.0, 10.0, 3.0)  # of the penalty on standardized states
Codes = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
# The numbers of observations, and log P of every symbol, [observations, symbols]: first the occupations, then others.
Distributions = Iterator[tuple[Codes, Floats]]


@dataclasses.dataclass(frozen=True)
class BaselinePeople:
    """The people that baselines learn from and are scored on."""

    store: TokenStore
    settings: RunSettings
    split: Split
    folder: Path  # of the run
    survey: str | None = None  # of the validation people; None: all surveys

    @cached_property
    def scored(self) -> CareerTable:
        """The people that are scored."""
        return self.validation if self.split == "validation" else self.store.careers(self.split)

    @cached_property
    def train(self) -> CareerTable:
        """The training people, with those that the run does not train on."""
        return self.store.careers("train")

    @cached_property
    def validation(self) -> CareerTable:
        """The validation people."""
        careers = self.store.careers("validation")
        if self.survey is None:
            return careers
        rows = np.flatnonzero(careers.table["survey"].to_numpy() == self.survey)
        return dataclasses.replace(careers, table=careers.table.take(pa.array(rows)))

    @cached_property
    def pool(self) -> TrainingPool:
        """Who of the training people is trained on, and how often."""
        return training_pool(self.store, self.settings)

    @cached_property
    def categories(self) -> Categories:
        """The values of covariates among the training people."""
        return categories_of(self.train)

    def features(self, split: Split) -> CareerFeatures:
        """Return the features of a split."""
        careers = self.validation if split == "validation" else self.store.careers(split)
        return features_on_disk(careers, self.categories, self.folder, self.earlier(split))

    def earlier(self, split: Split) -> list[CareerTable]:
        """Return the careers whose jobs are a split's history: with split_by=year, those of the splits before it."""
        if not isinstance(self.settings.split, YearSplit):
            return []
        before = SPLITS[: SPLITS.index(split)]
        return [self.store.careers(each) for each in before if self.store.num_people(each)]

    def weights(self, surveys: tuple[str, ...]) -> Floats:
        """Return the weight of each training career, [people]; 0 for those of other surveys."""
        weights = np.zeros(len(self.train))
        weights[self.pool.rows] = self.pool.weights
        weights = np.where(np.isin(self.train.table["survey"].to_numpy(), surveys), weights, 0.0)
        return weights[self.train.first_rows()]  # all rows of a person have the same

    @property
    def surveys(self) -> tuple[str, ...]:
        """The dataset tags of the corpora."""
        return tuple(corpus.survey for corpus in self.settings.data.corpora.values())


def score_baselines(settings: BaselineSettings) -> list[Path]:
    """Write the score table of every requested baseline that does not have one yet, and the table of titles if asked.

    Raises:
        RunError: if the truth is requested for careers whose true probabilities nobody knows.
        AlreadyRunningError: if another process is at it.
    """
    run, run_settings, store_folder = read_run(Path(settings.run))
    store = open_store(store_folder)
    busy = f"another process is scoring baselines of {run.path}; wait for it, or end it first"
    with checking_store(store, SPLITS) as check, file_lock(run.path / "baselines.lock", busy=busy):
        return _score_missing(settings, run, (run_settings, store), check)


def _score_missing(
    settings: BaselineSettings, run: RunDirectory, of_run: tuple[RunSettings, TokenStore], check: ChecksumCheck
) -> list[Path]:
    (run_settings, store), written = of_run, list[Path]()
    people = BaselinePeople(store, run_settings, settings.split, run.path)
    for name in settings.baselines:
        path = run.scores(settings.split, name)
        if name == "average":
            written += _score_members(settings, run, of_run, check)
        details = {"baseline": _identity(name, settings, run_settings, run)}
        has_titles = settings.titles == "all" and name != "truth"
        tables = [path, *([title_table_path(path, settings.split)] if has_titles else [])]
        if all(table.is_file() and _is_same(table, store.careers_fingerprint, details) for table in tables):
            logger.info(f"baselines: {NAMES[name]} is there ({path})")
            continue
        check.wait()
        info = ScoreTableInfo(
            model=NAMES[name],
            split=settings.split,
            careers=store.careers_fingerprint,
            code=__version__,
            details={**details, NUM_TITLES: str(len(store.vocabulary))},
        )
        if name == "average":
            num_scores = _write_average(settings, run, info, tables, store.vocabulary.codes)
        else:
            scored = _scored(name, people, settings, run)
            num_scores = _write(scored.careers, scored.distributions, with_details(info, scored.details), tables)
        logger.info(f"baselines: {NAMES[name]} scored on {num_scores:,} observations ({path})")
        written.append(path)
    return written


def _score_members(
    settings: BaselineSettings, run: RunDirectory, of_run: tuple[RunSettings, TokenStore], check: ChecksumCheck
) -> list[Path]:
    """Score the baselines of an average, on the validation people too, whom its weights are chosen by."""
    members = tuple(name for name in BASELINES if name in settings.average.of)
    splits: tuple[Split, ...] = tuple(dict.fromkeys((settings.split, "validation")))
    written: list[Path] = []
    for split in splits:  # before any of the work
        _member_tables(settings, run, split, tuple(name for name in settings.average.of if name not in members))
    for split in splits:
        titles = settings.titles if split == settings.split else "observed"
        of_split = dataclasses.replace(settings, baselines=members, split=split, titles=titles)
        written += _score_missing(of_split, run, of_run, check)
    return written


def _member_tables(
    settings: BaselineSettings, run: RunDirectory, split: Split, names: tuple[str, ...] | None = None
) -> list[Path]:
    """Return the score tables of the models of an average, or of some of them.

    Raises:
        RunError: if one has not been scored on these people.
    """
    paths = []
    for name in settings.average.of if names is None else names:
        is_own = name == "language_model"
        path = run.scores(split, None if is_own else name)
        if not path.is_file():
            of_other = "" if is_own else f" model.path=... model.name={name}"
            of_other = " title_head=true" if name in HEAD_NAMES.values() else of_other
            raise RunError(
                f"the average needs scores of {name} on the {split} people ({path}); "
                f"`deepspeed launch/evaluate.py run={run.path} split={split}{of_other}` makes them",
                code="no-scores-to-average",
            )
        paths.append(path)
    return paths


def _write_average(
    settings: BaselineSettings, run: RunDirectory, info: ScoreTableInfo, tables: list[Path], codes: tuple[str, ...]
) -> int:
    """Write the tables of an average; return the number of observations."""
    paths = _member_tables(settings, run, settings.split)
    weights = mixture_weights(read_tables(_member_tables(settings, run, "validation")).matrix("terminated"))
    parts = ", ".join(f"{name} {weight:.4f}" for name, weight in zip(settings.average.of, weights, strict=True))
    info = with_details(info, {"weights": parts, **MASS_OUTSIDE_TITLES})
    scores = average_scores(read_tables(paths), weights)
    if len(tables) > 1:
        titles = average_titles([title_table_path(path, settings.split) for path in paths], weights)
        write_title_table(titles, info, codes, tables[1])
    write_score_table(scores, info, tables[0])
    return int(scores.num_rows)


def _identity(name: BaselineName, settings: BaselineSettings, of_run: RunSettings, run: RunDirectory) -> str:
    """Return what stands for everything that decides a baseline's numbers, but the careers."""
    own = getattr(settings, name, None)
    facts: list[Any] = [
        FORMAT,
        name,
        settings.split,
        trained_on(of_run),
        None if own is None else dataclasses.asdict(own),
    ]
    if name == "average":
        paths = [path for split in (settings.split, "validation") for path in _member_tables(settings, run, split)]
        facts.append([dataclasses.asdict(written_info(path)) for path in paths])
    elif name == "embedding_logit":
        facts.append(weights_identity(embedding_model(settings.embedding_logit, run)))
    return fingerprint_of(facts)


def trained_on(run: RunSettings) -> list[object]:
    """Return what decides which training people count, and how much."""
    weights = {name: (corpus.fraction, corpus.weight) for name, corpus in run.data.corpora.items()}
    return [weights, run.training.bootstrap_seed]


@dataclasses.dataclass(frozen=True)
class Scored:
    """The careers that a baseline scores, the distributions of their observations, and what the table says of it."""

    careers: CareerTable
    distributions: Distributions
    details: dict[str, str]


def _scored(name: BaselineName, people: BaselinePeople, settings: BaselineSettings, run: RunDirectory) -> Scored:
    """Train a baseline, and return the distributions of the scored observations.

    The truth has the observed occupation alone as its symbol.
    """
    if name == "embedding_logit":
        return _embedding_logit(people, settings.embedding_logit, run)
    distributions, details = _distributions(name, people, settings, run.path / "baselines" / f"{name}.pt")
    return Scored(people.scored, distributions, details)


def _distributions(
    name: BaselineName, people: BaselinePeople, settings: BaselineSettings, state_file: Path
) -> tuple[Distributions, dict[str, str]]:
    """Return the distributions of the scored observations, and what the table says of the baseline.

    The truth has the observed occupation alone as its symbol.
    """
    match name:
        case "truth":
            truth = _true_scores(people.store, people.scored, people.earlier(settings.split), people.settings.data)
            return iter([(np.arange(len(truth)), truth[:, None])]), TRUE_MODEL
        case "marginal" | "first_order" | "second_order" | "logit":
            return _without_fit_settings(name, people)
        case _:
            return _two_stage(name, people, settings, state_file)


def mean_log_likelihood(name: WeighingBaseline, people: BaselinePeople) -> float:
    """Fit a baseline, and return the mean log P of the observed occupations of the scored people, in nats."""
    distributions, _ = _without_fit_settings(name, people)
    _, occupation = people.scored.transitions()
    parts = [log_p[np.arange(len(rows)), occupation[rows]] for rows, log_p in distributions]
    return float(np.concatenate(parts).mean())


def _without_fit_settings(
    name: Literal["marginal", "first_order", "second_order", "logit"], people: BaselinePeople
) -> tuple[Distributions, dict[str, str]]:
    """Return the distributions of a baseline that has no settings of its own, and what the table says of it."""
    match name:
        case "marginal":
            marginal = marginal_table(people.train, people.pool)
            return marginal.distributions(people.scored), marginal.details
        case "first_order":
            first = _first_order(people)
            return first.distributions(people.scored), first.details
        case "second_order":
            weights = observation_weights(people.train, people.pool)
            train, validation = people.features("train"), people.features("validation").scored()
            second = second_order_table(train, weights, validation, _first_order(people))
            return second.distributions(people.features(people.split).scored()), second.details
        case "logit":
            train, validation = people.features("train"), people.features("validation").scored()
            weights = observation_weights(people.train, people.pool)
            rows = np.flatnonzero(weights)
            logit = fit_logit(
                Sample(CareerRegressors(train, rows), train.occupation[rows], weights[rows]),
                _whole_sample(validation),
                train.num_occupations,
                "logit",
                STRENGTHS,
            )
            design = _whole_sample(people.features(people.split).scored()).design
            return logit.distributions(design), {"strength": f"{logit.strength:g}"}


def _embedding_logit(people: BaselinePeople, settings: EmbeddingLogitSettings, run: RunDirectory) -> Scored:
    """Fit a logit on hidden states, and return its distributions of the scored observations."""
    model = embedding_model(settings, run)
    store = embedding_store(settings, model, people.store, people.settings)
    if store.careers_fingerprint != people.store.careers_fingerprint:
        raise RunError(
            f"the data of {run.path} have changed since it was prepared, and embedding_logit.path={settings.path} has "
            "another tokenizer, which needs them as they were; bring them back, or prepare the run under another name",
            code="data-changed",
        )
    evaluation, pool = people.settings.evaluation, training_pool(store, people.settings)
    train = store.careers("train")
    if len(pool.rows) < len(train):
        train = dataclasses.replace(train, table=train.table.take(pa.array(pool.rows)))
    careers: dict[str, CareerTable] = {
        "fitted": train,
        "validation": store.careers("validation"),
        people.split: store.careers(people.split),
    }
    facts = [weights_identity(model), store.fingerprint, settings.layer, evaluation.precision]
    identity = fingerprint_of([FORMAT, __version__, trained_on(people.settings), *facts])
    opened = functools.cache(lambda: open_embedding_model(model, store, evaluation))
    states: dict[str, npt.NDArray[np.float32]] = {}
    for part, of_part in careers.items():
        states[part] = states_in_file(
            run.path / "baselines" / f"embedding_logit.{part}.{identity}.npy",
            of_part,
            opened,
            people.settings.compute,
            settings.layer,
            f"embedding logit, {part} people",
        )
    weights = np.repeat(pool.weights, train.num_observations())
    mean, deviation = moments(states["fitted"], weights)

    def sample(part: str, weights: Floats) -> Sample:
        design = StandardizedStates(states[part], mean, deviation)
        return Sample(design, careers[part].transitions()[1], weights)

    logit = fit_logit(
        sample("fitted", weights),
        sample("validation", np.ones(len(states["validation"]))),
        len(store.vocabulary),
        "embedding logit",
        EMBEDDING_STRENGTHS,
    )
    design = sample(people.split, np.ones(len(states[people.split]))).design
    details = {"strength": f"{logit.strength:g}", "weights": weights_identity(model), "layer": str(settings.layer)}
    return Scored(careers[people.split], logit.distributions(design), details)


def _whole_sample(features: CareerFeatures) -> Sample:
    """Return all observations with equal weights."""
    return Sample(CareerRegressors(features, np.arange(len(features))), features.occupation, np.ones(len(features)))


def _first_order(people: BaselinePeople) -> FrequencyTable:
    return first_order_table(people.train, people.pool, people.validation)


def _two_stage(
    name: BaselineName, people: BaselinePeople, settings: BaselineSettings, state_file: Path
) -> tuple[Distributions, dict[str, str]]:
    """Train a two-stage model and return its distributions of the scored observations."""
    import torch

    from laborllm_dist.baselines.fit import fit, log_probabilities

    torch.set_num_threads(settings.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train, validation = people.features("train"), people.features("validation")
    schedule: FitSettings = getattr(settings, name).fit
    torch.manual_seed(schedule.seed)
    model = _new_model(name, train, settings).to(device)
    details = dict(MASS_OUTSIDE_TITLES)

    def fitted(surveys: tuple[str, ...], schedule: FitSettings, file: Path, label: str) -> dict[str, str]:
        of_people = people.validation.table["survey"].to_numpy()[people.validation.first_rows()]
        chosen = validation.of_careers(np.isin(of_people, surveys))
        weights = people.weights(surveys)
        if not weights.any() or not len(chosen.scored()):
            raise RunError(
                f"{label} has nobody of {', '.join(surveys)} to "
                f"{'train on (a weight of 0?)' if not weights.any() else 'validate on'}",
                code="nobody-to-fit-on",
            )
        state = fit(
            model, train, weights, chosen, schedule, file, label,
            {"format": FORMAT, **dataclasses.asdict(getattr(settings, name))},
        )  # fmt: skip
        return {"best_update": str(state.best_step), "validation_perplexity": f"{perplexity_of(-state.best_loss):.4f}"}

    later = people.surveys
    if name == "career" and settings.career.pretrain_on:
        first, later = (
            settings.career.pretrain_on,
            tuple(survey for survey in people.surveys if survey not in settings.career.pretrain_on),
        )
        if not later or not set(first) <= set(people.surveys):
            raise RunError(
                f"setting career.pretrain_on: expected some of {', '.join(people.surveys)}, and one left to fine-tune",
                code="no-survey-to-pretrain-on",
            )
        pretraining = settings.career.pretraining
        before = fitted(first, pretraining, state_file.with_suffix(".pretraining.pt"), "CAREER's pretraining")
        details |= {f"pretraining_{key}": value for key, value in before.items()}
    details |= fitted(later, schedule, state_file, NAMES[name])
    return log_probabilities(model, people.features(settings.split)), details


def _new_model(name: BaselineName, train: CareerFeatures, settings: BaselineSettings) -> TwoStageModel:
    """Return a randomly initialized model."""
    from laborllm_dist.baselines.career import Career
    from laborllm_dist.baselines.two_stage import BagOfJobs, TwoStageLogit

    used = [*STATIC, *VARYING]
    if not getattr(settings, name).birth_year:
        used.remove("birth_year")
    sizes = {covariate: train.num_categories[covariate] for covariate in used}
    match name:
        case "logit_two_stage":
            return TwoStageLogit(train.num_occupations, sizes)
        case "bag_of_jobs":
            return BagOfJobs(train.num_occupations, sizes, settings.bag_of_jobs.width, VARYING)
        case _:
            career = settings.career
            return Career(
                train.num_occupations,
                sizes,
                num_layers=career.num_layers,
                width=career.width,
                num_heads=career.num_heads,
                feed_forward=career.feed_forward,
                dropout=career.dropout,
            )


def _true_scores(store: TokenStore, careers: CareerTable, earlier: Sequence[CareerTable], data: DataSettings) -> Floats:
    """Return the true log-likelihood of each observation of a synthetic market, [observations]."""
    markets = {
        corpus.survey: make_market(corpus) for corpus in data.corpora.values() if isinstance(corpus, SyntheticSettings)
    }
    if len(markets) < len(data.corpora):
        raise RunError(
            "the true probabilities are known for synthetic careers only; leave `truth` out of baselines",
            code="truth-unknown",
        )
    if fingerprint_sources(data) != store.facts["identity"]["careers"]["sources"]:
        raise RunError(
            "the synthetic market's code has changed since these careers were drawn, so their true probabilities are "
            "not known any more; train again under another name",
            code="market-changed",
        )
    careers, is_scored = whole_careers(careers, earlier)
    scores: list[float] = []
    for row in range(len(careers)):
        career = careers.history(row)
        scores.extend(markets[career.survey].log_probabilities(career))
    return np.asarray(scores)[is_scored]


def _write(careers: CareerTable, distributions: Distributions, info: ScoreTableInfo, tables: list[Path]) -> int:
    """Write the score table, and the table of titles where there is a path for it; return the number of rows."""
    tables[0].parent.mkdir(parents=True, exist_ok=True)
    facts = observation_facts(careers).drop_columns(["career"])
    order, (_, occupations) = key_order(facts), careers.transitions()
    num_rows, num_titles = len(occupations), len(careers.vocabulary)
    place = np.empty(num_rows, dtype=np.int64)
    place[order] = np.arange(num_rows)
    scores, log_mass = np.full(num_rows, np.nan), np.zeros(num_rows)
    with tempfile.TemporaryFile(dir=tables[0].parent) as file:  # on disk: a row has hundreds of numbers
        logs = np.memmap(file, np.float64, "w+", shape=(num_rows, num_titles)) if len(tables) > 1 else None
        for rows, log_p in distributions:
            observed = occupations[rows] if log_p.shape[1] > 1 else np.zeros(len(rows), dtype=np.int64)
            scores[place[rows]] = log_p[np.arange(len(rows)), observed]
            if logs is not None:
                logs[place[rows]] = log_p[:, :num_titles]
                log_mass[place[rows]] = log_sum_exp(log_p[:, :num_titles], axis=1)
        # Occupations are disjoint events without tokens: `title` and `terminated` are the same number.
        facts = facts.take(pa.array(order))
        columns: dict[str, Any] = {name: facts[name] for name in facts.column_names}
        columns["num_tokens"] = pa.array(np.zeros(num_rows, dtype=np.int32))
        columns["title"] = columns["terminated"] = pa.array(scores)
        if logs is not None:
            firsts = np.arange(0, logs.size + 1, num_titles, dtype=np.int32)
            lists = pa.ListArray.from_arrays(firsts, pa.array(logs.reshape(-1)))
            titles = {
                **{name: columns[name] for name in ("survey", "person", "position", "occupation")},
                "mass": pa.array(np.exp(log_mass)),
                "bound": pa.array(np.zeros(num_rows)),
                "normalised": pa.array(np.minimum(scores - log_mass, 0.0)),
                "title": lists,
                "terminated": lists,
            }
            write_title_table(pa.table(titles), info, careers.vocabulary.codes, tables[1])
    write_score_table(pa.table(columns), info, tables[0])
    return num_rows


def _is_same(path: Path, careers: str, details: dict[str, str]) -> bool:
    info = written_info(path)
    if "baseline" not in info.details:
        raise RunError(
            f"{path} holds the scores of a model, {info.model}, not of a baseline; move it away",
            code="scores-of-a-model",
        )
    same_details = all(info.details.get(name) == value for name, value in details.items())
    return (info.careers, info.code) == (careers, __version__) and same_details
