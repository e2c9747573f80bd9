"""Forecast several years ahead for a run's people, directly and composed: settings -> origins, parts -> table, result.

A person is a part: its prompts depend only on that person and the settings.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from laborllm_dist.careers.splits import Split
from laborllm_dist.config.data import YearSplit
from laborllm_dist.config.evaluation import EvaluationOverrides, EvaluationSettings, ForecastSettings, evaluation_of
from laborllm_dist.config.model import HEAD_NAMES
from laborllm_dist.distributed.context import DistributedContext, exclusive_table
from laborllm_dist.errors import ForeignFileError, RunError
from laborllm_dist.evaluation.head_titles import head_target
from laborllm_dist.evaluation.resumable_parts import ResumableJob, finish_parts, read_parts, remove_parts
from laborllm_dist.evaluation.run import is_there, load_checked, opened_trie, reject_other_details, resolve_target
from laborllm_dist.evaluation.target import (
    EvaluatedRun,
    EvaluationTarget,
    evaluated_run,
    prompted,
    with_whole_model,
)
from laborllm_dist.evaluation.title_trie import TitleTrie
from laborllm_dist.forecasting.iterate import (
    Distributions,
    IteratedForecast,
    Query,
    iterate_exact,
    iterate_sampled,
    path_draws,
)
from laborllm_dist.forecasting.origins import (
    Origins,
    chosen_origins,
    markov_scores,
    observed_titles,
)
from laborllm_dist.forecasting.prompts import ForecastTexts, ask_titles, check_longest
from laborllm_dist.io.files import ChecksumCheck, fingerprint_of, finite_or_null, write_json
from laborllm_dist.io.json_files import NotJsonError, read_json_object
from laborllm_dist.models.inference import InferenceModel
from laborllm_dist.models.loading import context_of
from laborllm_dist.models.safetensors_loading import folder_of
from laborllm_dist.models.title_head import read_title_head
from laborllm_dist.store.few_shot import read_prefix
from laborllm_dist.store.store import PREFIX, TOKENIZER, CareerTable, checking_store
from laborllm_dist.store.tokenizer import load_tokenizer
from laborllm_dist.tables.forecasts import (
    coherence_of,
    describe_coherence,
    forecast_table_path,
    read_forecast_table,
    write_forecast_table,
)
from laborllm_dist.tables.log_domain import perplexity_of
from laborllm_dist.tables.parquet import ScoreTableInfo, written_info
from laborllm_dist.text.template import compile_template

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Forecasting:
    """The origins, settings, and files of a forecast. `info` holds everything that decides the numbers."""

    settings: ForecastSettings
    evaluation: EvaluationSettings
    texts: ForecastTexts
    origins: Origins
    info: ScoreTableInfo
    table: Path


def forecast_run(settings: ForecastSettings) -> EvaluatedRun:
    """Read the run that forecasts are about.

    Raises:
        RunError: if there is no such run.
        SettingsError: if what is changed does not go together with the run's own settings.
    """
    run = evaluated_run(settings.run, _overrides(settings))
    return with_whole_model(run) if settings.title_head else run


def run_forecasts(settings: ForecastSettings, run: EvaluatedRun, ranks: DistributedContext) -> Path:
    """Write the forecasts of a split if missing, and log how direct and iterated ones agree. Collective.

    Returns:
        The table's path.

    Raises:
        LaborError: if the run is unfinished or limits the history, the model is missing, nobody has two observations so
            far apart, the full sum has too many paths, or a text fits no row or context.
    """
    ranks.run_on_main(lambda: _check_history(settings, run))
    split = run.settings.evaluation.split
    target = ranks.run_on_main(lambda: _target(settings, run, ranks), EvaluationTarget)
    splits: tuple[Split, ...] = tuple({split, "train"}) if ranks.is_main else ()
    with checking_store(target.store, splits) as check:
        return _run_checked(settings, run, target, (ranks, check))


def _target(settings: ForecastSettings, run: EvaluatedRun, ranks: DistributedContext) -> EvaluationTarget:
    target = resolve_target(settings.model, settings.prompt, "error", run, ranks)
    if not settings.title_head:
        return target
    return head_target(target, run.directory.path.name, is_named=settings.model.name is not None)


def _run_checked(
    settings: ForecastSettings,
    run: EvaluatedRun,
    target: EvaluationTarget,
    ranks_and_check: tuple[DistributedContext, ChecksumCheck],
) -> Path:
    (ranks, check), evaluation = ranks_and_check, run.settings.evaluation
    careers = target.store.careers(evaluation.split)
    origins = ranks.run_on_main(lambda: chosen_origins(settings, careers, evaluation.split), Origins)
    table = forecast_table_path(target.table, evaluation.split, settings.horizon)
    with exclusive_table(ranks, table):
        info = _info(settings, target, evaluation)
        if not ranks.run_on_main(lambda: _is_done(table, info)):
            texts = _texts(settings, run, target, careers, opened_trie(run, target, careers, ranks)())
            if settings.title_head:
                head = read_title_head(folder_of(target.model)).head.to(ranks.device)
                texts = dataclasses.replace(texts, head=head)
            work = Forecasting(settings, evaluation, texts, origins, info, table)
            ranks.run_on_main(lambda: check_longest(texts, origins, settings.horizon, evaluation.max_seq_length))
            logger.info(_describe(work, ranks))
            model = load_checked(target, run, ranks)
            ranks.run_on_main(check.wait)
            _forecast(work, model, ranks)
        ranks.run_on_main(check.wait)
        ranks.run_on_main(lambda: _conclude(table, _markov_perplexity(target, careers, origins, settings.horizon)))
    return table


def _overrides(settings: ForecastSettings) -> EvaluationOverrides:
    """Return the evaluation of all titles that the forecast is made of."""
    return evaluation_of(settings, titles="all", split=settings.split, max_unscored_mass=settings.max_unscored_mass)


def _check_history(settings: ForecastSettings, run: EvaluatedRun) -> None:
    limit = run.settings.template.max_history
    if limit is not None:
        raise RunError(
            f"{settings.run} was made with template.max_history={limit}; a forecast imputes years after the whole "
            "history, so take a run without that limit",
            code="forecast-with-max-history",
        )
    if isinstance(run.settings.split, YearSplit):
        raise RunError(
            f"{settings.run} was made with split_by=year, whose test texts predict the last years alone; a forecast "
            "starts from any year of a whole history, so take a run that splits people",
            code="forecast-with-split-by-year",
        )


def _info(settings: ForecastSettings, target: EvaluationTarget, evaluation: EvaluationSettings) -> ScoreTableInfo:
    details = {
        "horizon": str(settings.horizon),
        "steps": settings.steps,
        "max_tree_tokens": str(evaluation.max_tree_tokens),
    }
    if not settings.title_head:
        details["max_unscored_mass"] = str(evaluation.max_unscored_mass)
    if settings.steps == "exact":
        details["max_pruned_mass"] = str(settings.max_pruned_mass)
    else:
        details |= {"paths": str(settings.paths), "seed": str(settings.seed)}
    if settings.max_people is not None:
        details |= {"max_people": str(settings.max_people), "seed": str(settings.seed)}
    return dataclasses.replace(target.info, details={**target.info.details, **details})


def _is_done(table: Path, info: ScoreTableInfo) -> bool:
    """Return whether the table exists.

    Raises:
        RunError: if other forecasts have that name: of another model, or with other settings.
        ForeignFileError: if something else has the name of the table or of the result.
        ScoreTableError: if the table is damaged.
    """
    _check_result(table.with_suffix(".json"))
    if is_there(table, info):
        logger.info(f"forecast: {info.model} is there ({table})")
        return True
    if table.is_file():
        is_own = table.name.count(".") == 1 or info.model in HEAD_NAMES.values()  # may have been trained again
        if not is_own and written_info(table).details.get("weights") != info.details["weights"]:
            raise RunError(
                f"{table} holds the forecasts of other weights; give these another name (model.name=...)",
                code="forecasts-of-other-weights",
            )
    reject_other_details(table, info)
    return False


def _check_result(path: Path) -> None:
    """Check that no foreign file has the name of a result."""
    try:
        is_result = {"model", "split", "details", "num_forecasts"} <= read_json_object(path).keys()
    except FileNotFoundError:
        return
    except (OSError, NotJsonError):
        is_result = False
    if not is_result:
        raise ForeignFileError(
            f"{path} was not written by forecast.py, and is not replaced; move it away", code="not-a-forecast-result"
        )


def _texts(
    settings: ForecastSettings, run: EvaluatedRun, target: EvaluationTarget, careers: CareerTable, trie: TitleTrie
) -> ForecastTexts:
    template = prompted(run.settings.template, settings.prompt, run.settings.evaluation.split)
    return ForecastTexts(
        careers=careers,
        template=compile_template(template, read_prefix(target.store.folder / PREFIX)),
        tokenizer=load_tokenizer(str(target.store.folder / TOKENIZER)),
        trie=trie,
        context=context_of(target.model),
    )


def _describe(work: Forecasting, ranks: DistributedContext) -> str:
    settings, num_people = work.settings, len(np.unique(work.origins.careers_S))
    how = f"over {settings.paths:,} drawn paths"
    if settings.steps == "exact":
        how = f"but for {settings.max_pruned_mass:g} of paths" if settings.max_pruned_mass else "over all paths"
    return (
        f"forecast: {work.info.model}, {settings.horizon} years ahead, {len(work.origins):,} forecasts of "
        f"{num_people:,} {work.info.split} people; yearly steps {how}; over {ranks.world_size} "
        f"rank{'s' if ranks.world_size > 1 else ''}"
    )


def _forecast(work: Forecasting, model: InferenceModel, ranks: DistributedContext) -> None:
    """Compute the parts that have no file yet, then write the table. Collective."""
    people = np.unique(work.origins.careers_S).tolist()
    folder = work.table.with_suffix(f".{fingerprint_of(dataclasses.asdict(work.info))}.parts")
    parted = ResumableJob(
        folder, len(people), lambda part: _of_person(work, model, people[part]), model.join_remaining, "forecast"
    )
    finish_parts(parted, ranks)
    ranks.run_on_main(lambda: _merge(work, parted))


def _of_person(work: Forecasting, model: InferenceModel, career: int) -> pa.Table:
    """Forecast from every origin of one person."""
    origins = work.origins.of_career(career)

    def ask(queries: Sequence[Query]) -> Distributions:
        return ask_titles(work.texts, origins, queries, work.evaluation, model)

    direct = ask([Query(start, (), work.settings.horizon) for start in range(len(origins))])
    composed = _composed(work, origins, ask)
    observed_S = observed_titles(work.texts.careers, origins)
    places = (np.arange(len(origins)), observed_S)
    errors = None if composed.errors_ST is None else composed.errors_ST.tolist()
    return pa.table(
        {
            "career": origins.careers_S,
            "position": origins.jobs_S.astype(np.int32),
            "direct": direct.log_probabilities_QT[places],
            "composed": composed.log_probabilities_ST[places],
            "bound": np.maximum(direct.left_Q, composed.bound_S),
            "direct_all": direct.probabilities_QT.tolist(),
            "composed_all": composed.probabilities_ST.tolist(),
            "standard_error": pa.array(errors or [None] * len(origins), type=pa.list_(pa.float64())),
        }
    )


def _composed(work: Forecasting, origins: Origins, ask: Callable[[Sequence[Query]], Distributions]) -> IteratedForecast:
    settings = work.settings
    if settings.steps == "exact":
        return iterate_exact(
            ask,
            len(origins),
            horizon=settings.horizon,
            tolerance=settings.max_pruned_mass,
            max_paths=settings.max_paths,
        )
    survey, person = work.texts.careers.person(int(origins.careers_S[0]))
    counts = {"num_paths": settings.paths, "num_years": settings.horizon - 1}
    draws = [path_draws(settings.seed, survey, person, job, **counts) for job in origins.jobs_S.tolist()]
    return iterate_sampled(ask, np.stack(draws))


def _merge(work: Forecasting, parted: ResumableJob) -> None:
    origins, careers = work.origins, work.texts.careers
    people = [careers.person(career) for career in origins.careers_S.tolist()]
    years = careers.table["years"].to_pylist()
    places = careers.table["occupations"].to_pylist()
    codes = careers.vocabulary.codes
    jobs = list(zip(origins.careers_S.tolist(), origins.jobs_S.tolist(), origins.targets_S.tolist(), strict=True))
    table = pa.table(
        {
            "career": origins.careers_S,
            "position": origins.jobs_S.astype(np.int32),
            "survey": [survey for survey, _ in people],
            "person": [person for _, person in people],
            "year": [years[career][job] for career, job, _ in jobs],
            "target_year": [years[career][target] for career, _, target in jobs],
            "occupation": [codes[places[career][target]] for career, _, target in jobs],
        }
    )
    scores = read_parts(parted, table)
    for name in ("direct", "composed", "bound", "direct_all", "composed_all", "standard_error"):
        table = table.append_column(name, scores[name])
    write_forecast_table(table, work.info, codes, work.table)
    remove_parts(parted)


def _markov_perplexity(target: EvaluationTarget, careers: CareerTable, origins: Origins, horizon: int) -> float | None:
    """Return the perplexity of the transition shares; None for training people, from whom they are counted."""
    if target.info.split == "train":
        return None
    scores = markov_scores(target.store.careers("train"), careers, origins, horizon)
    return float(perplexity_of(scores.mean()))


def _conclude(table: Path, markov_perplexity: float | None) -> None:
    """Write and log the agreement of direct and iterated forecasts."""
    forecasts = read_forecast_table(table)
    coherence, info = coherence_of(forecasts.table), forecasts.info
    facts = {"model": info.model, "split": info.split, "details": dict(info.details)}
    result = {**facts, **dataclasses.asdict(coherence), "perplexity_last_occupation": markov_perplexity}
    write_json(table.with_suffix(".json"), finite_or_null(result))
    for line in describe_coherence(coherence, markov_perplexity):
        logger.info(f"forecast: {line}")
    logger.info(f"forecast: {table}")
