"""Score a run's people, with its own export or any causal model: settings -> target, tasks, plan, model -> tables."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from laborllm_dist.batching.title_positions import check_room
from laborllm_dist.careers.splits import Split
from laborllm_dist.config.data import PromptSettings
from laborllm_dist.config.evaluation import EvaluateSettings, EvaluationSettings, OtherModelSettings, Truncation
from laborllm_dist.config.run import RunSettings
from laborllm_dist.distributed.context import DistributedContext, exclusive_table
from laborllm_dist.errors import RunError, SettingsError
from laborllm_dist.evaluation.all_titles import AllTitles
from laborllm_dist.evaluation.generation import Generations
from laborllm_dist.evaluation.head_titles import HeadTitles, head_target
from laborllm_dist.evaluation.target import (
    EvaluatedRun,
    EvaluationTarget,
    base_suffix,
    default_name,
    describe_cut,
    external_target,
    longest_text,
    other_target,
    own_export,
    prompted,
    run_target,
    text_name,
    titles_of,
    with_split,
    with_whole_model,
)
from laborllm_dist.evaluation.tasks import (
    Evaluation,
    EvaluationPlan,
    ObservedTitles,
    OpenTrie,
    Room,
    evaluate,
    plan_evaluation,
)
from laborllm_dist.evaluation.title_trie import TitleTrie, common_title_trie, ending_prompts
from laborllm_dist.io.files import fingerprint_of
from laborllm_dist.models.inference import InferenceModel, load_for_inference
from laborllm_dist.models.loading import check_fit, check_packing, context_of, longest_career
from laborllm_dist.models.safetensors_loading import folder_of
from laborllm_dist.store.naive_perplexity import score_without_model, warning_if_no_better
from laborllm_dist.store.other_data import OtherData, prepared_data
from laborllm_dist.store.store import TOKENIZER, CareerTable, TokenStore, checking_store
from laborllm_dist.store.tokenizer import load_tokenizer
from laborllm_dist.tables.generations import describe_generated, generated_table_path, read_generated_table
from laborllm_dist.tables.parquet import ScoreTableInfo, written_info
from laborllm_dist.tables.scores import read_score_table
from laborllm_dist.text.template import compile_template

logger = logging.getLogger(__name__)

EvaluationTask = ObservedTitles | AllTitles | Generations | HeadTitles


@dataclass(frozen=True, slots=True)
class PlannedTable:
    """A table still to be written: its metadata, and the plan of its batches."""

    place: int  # of its task
    path: Path
    info: ScoreTableInfo
    plan: EvaluationPlan


def score_run(settings: EvaluateSettings, run: EvaluatedRun, ranks: DistributedContext) -> Path:
    """Write the score table of a split, and the tables of all titles and generations if configured. Collective.

    Existing tables are kept.

    Returns:
        The score table's path.

    Raises:
        LaborError: if the run is unfinished, the model is missing, or a career fits no row or context.
    """
    if settings.has_other_data:  # all of it is in the test split of its store
        run = dataclasses.replace(run, settings=with_split(run.settings, "test"))
    if settings.title_head:
        run = with_whole_model(run)
    evaluation = run.settings.evaluation
    own = ranks.run_on_main(lambda: _own_target(settings, run, ranks), EvaluationTarget)
    target = own
    if (data := other_data_of(settings)) is not None:
        target = ranks.run_on_main(lambda: other_target(own, data, settings.match_by, run.settings), EvaluationTarget)
    careers = target.store.careers(evaluation.split)  # each rank opens them: they are never sent
    splits: tuple[Split, ...] = (evaluation.split,) if ranks.is_main else ()
    trained_on: tuple[Split, ...] = ("train",) if ranks.is_main else ()
    tasks = _head_tasks(evaluation, target) if settings.title_head else tasks_of(evaluation, target)
    with (
        checking_store(target.store, splits) as check,
        checking_store(own.store, trained_on) as check_trained_on,
        exclusive_table(ranks, target.table),
    ):
        missing = ranks.run_on_main(lambda: _missing_tables(tasks, target, careers), list[PlannedTable])
        if missing:
            trie = opened_trie(run, target, careers, ranks)
            rooms = [room for task in tasks if (room := task.room(trie)) is not None]
            ranks.run_on_main(lambda: _check_rooms(rooms, target, careers))
            model = load_checked(target, run, ranks)
            ranks.run_on_main(check.wait)
            for planned in missing:
                parts = parts_folder(planned.path, planned.info, planned.plan)
                task = tasks[planned.place]
                work = Evaluation(task, careers, planned.plan, planned.info, parts, planned.path)
                logger.info(describe_evaluation(work, ranks))
                evaluate(work, model, trie, ranks)
                logger.info(f"evaluate: {work.table}")
        if evaluation.check_generations and not settings.title_head:
            table = generated_table_path(target.table, target.info.split)
            logger.info(ranks.run_on_main(lambda: f"evaluate: {describe_generated(read_generated_table(table)[0])}"))
        ranks.run_on_main(check.wait)
        ranks.run_on_main(check_trained_on.wait)
        ranks.run_on_main(lambda: warn_if_no_better(target, own.store, run.settings))
    return target.table


def _own_target(settings: EvaluateSettings, run: EvaluatedRun, ranks: DistributedContext) -> EvaluationTarget:
    """Return the model to score on the run's people, or the output layer over titles that lies beside it."""
    target = resolve_target(settings.model, settings.prompt, settings.truncation, run, ranks)
    if not settings.title_head:
        return target
    return head_target(target, run.directory.path.name, is_named=settings.model.name is not None)


def _head_tasks(settings: EvaluationSettings, target: EvaluationTarget) -> list[EvaluationTask]:
    """Return the task of an output layer over titles."""
    return [HeadTitles(settings, folder_of(target.model))]


def tasks_of(settings: EvaluationSettings, target: EvaluationTarget) -> list[EvaluationTask]:
    """Return the tasks of an evaluation; each writes one table."""
    tasks: list[EvaluationTask] = [ObservedTitles(settings)]
    if settings.titles == "all":
        tasks.append(AllTitles(settings))
    if settings.check_generations:
        tasks.append(Generations(settings, target.store.folder / TOKENIZER))
    return tasks


def other_data_of(settings: EvaluateSettings) -> OtherData | None:
    """Return the careers to score in place of the run's people, if there are any.

    Raises:
        StoreError: if there is no complete store.
    """
    if settings.store is not None:
        return prepared_data(Path(settings.store), settings.split)
    return None if settings.data is None else OtherData(settings.data.name, settings.data)


def warn_if_no_better(target: EvaluationTarget, trained_on: TokenStore, run: RunSettings) -> None:
    """Warn if the model predicts the titles worse than a frequency table of the training people."""
    scored = target.store.careers(run.evaluation.split)
    nats_per_title = -float(np.mean(read_score_table(target.table)[0]["title"].to_numpy()))
    warning = warning_if_no_better(
        target.info.model, target.info.split, nats_per_title, score_without_model(trained_on, scored, run)
    )
    if warning is not None:
        logger.warning(warning)


def opened_trie(
    run: EvaluatedRun, target: EvaluationTarget, careers: CareerTable, ranks: DistributedContext
) -> OpenTrie:
    """Return a function that builds the title trie of a split at its first call and caches it. Collective.

    That call raises TitleBoundaryError if the tokenizer does not keep titles apart from the prompts or from each other,
    or cuts one differently after some of the prompts.
    """

    def make() -> TitleTrie:
        template = compile_template(run.settings.template)
        tokenizer = load_tokenizer(str(target.store.folder / TOKENIZER))
        return common_title_trie(ending_prompts(careers, template), target.store.vocabulary, tokenizer)

    return functools.cache(lambda: ranks.run_on_main(make, TitleTrie))


def _check_rooms(rooms: Sequence[Room], target: EvaluationTarget, careers: CareerTable) -> None:
    """Check that the longest title or continuation after each prompt fits the model's context.

    Raises:
        SequenceTooLongError: naming a person and how many there are.
    """
    for room in rooms:
        check_room(careers, room.num_tokens, context_of(target.model), room.reason)


def load_checked(target: EvaluationTarget, run: EvaluatedRun, ranks: DistributedContext) -> InferenceModel:
    """Open a target's model, and check that it reads the split's careers exactly. Collective.

    Raises:
        LaborError: if it cannot be opened, or a career does not fit.
    """
    evaluation = run.settings.evaluation
    model = load_for_inference(target.model, evaluation, run.settings.compute, ranks)
    ranks.run_on_main(lambda: check_fit(model.hugging_face, target.store, (evaluation.split,)))
    if evaluation.placement == "replicated":  # shards are of known types only
        longest = longest_career(target.store, (evaluation.split,))
        ranks.run_on_main(lambda: check_packing(model.hugging_face, device=ranks.device, longest=longest))
    return model


def _missing_tables(
    tasks: Sequence[EvaluationTask], target: EvaluationTarget, careers: CareerTable
) -> list[PlannedTable]:
    """Return the tables that do not exist yet.

    Raises:
        RunError: if another distribution of the same weights has the name.
        SequenceTooLongError: if a career fits no row.
    """
    missing: list[PlannedTable] = []
    for place, task in enumerate(tasks):
        paths, info = task.tables(target), task.info(target)
        absent = [path for path in paths if not is_there(path, info)]
        if not absent:
            logger.info(f"evaluate: {info.model} is there ({', '.join(map(str, paths))})")
            continue
        for path in absent:
            reject_other_details(path, info)
        settings = dataclasses.replace(task.settings, batches_per_part=task.batches_per_part)
        missing.append(PlannedTable(place, paths[0], info, plan_evaluation(careers, settings)))
    return missing


def parts_folder(path: Path, info: ScoreTableInfo, plan: EvaluationPlan) -> Path:
    """Return the folder of a table's parts; every combination of weights, settings and version has its own."""
    return path.with_suffix(f".{fingerprint_of([dataclasses.asdict(info), plan.batches_per_part])}.parts")


def reject_other_details(path: Path, info: ScoreTableInfo) -> None:
    """Check that no table of the same weights with other settings would be overwritten.

    Raises:
        RunError: naming the first setting that differs.
        ForeignFileError: if something else has the table's name.
        ScoreTableError: if the table is damaged.
    """
    if not path.exists() and not path.is_symlink():
        return
    known = written_info(path).details
    if known.get("weights") != info.details["weights"]:
        return  # the run was trained again
    changes = [
        f"{name} {known.get(name, 'plain')} there, {info.details.get(name, 'plain')} now"
        for name in sorted({*known, *info.details})
        if known.get(name) != info.details.get(name)
    ]
    raise RunError(
        f"{path} was made with other settings ({changes[0] if changes else 'another version'}); "
        "give this one another name (model.name=...), or delete it",
        code="scored-with-other-settings",
    )


def describe_evaluation(work: Evaluation, ranks: DistributedContext) -> str:
    """Return the plan as a line."""
    num_rows = sum(len(rows) for rows in work.plan.batches)
    fill = int(work.careers.num_tokens().sum()) / (num_rows * work.plan.max_seq_length)
    num_observations = int(work.careers.num_observations().sum())
    return (
        f"evaluate: {work.task.subject}{work.info.model} on {work.careers.num_people():,} {work.info.split} people, "
        f"{num_observations:,} observations; {len(work.plan.batches):,} units of rows of {work.plan.max_seq_length} "
        f"tokens, {fill:.0%} full, over {ranks.world_size} rank{'s' if ranks.world_size > 1 else ''}"
    )


def resolve_target(
    chosen: OtherModelSettings,
    prompt: PromptSettings,
    truncation: Truncation,
    run: EvaluatedRun,
    ranks: DistributedContext,
) -> EvaluationTarget:
    """Return the model to score with the store of the texts to score it on.

    Args:
        chosen: the model, if it is not the run's own.
        prompt: the lines before every career, if they differ from the run's own.
        truncation: how to treat careers that are too long.
        run: the run, with the settings of the evaluation.
        ranks: the ranks, of which this one reads and writes the store.

    Raises:
        LaborError: if the run is unfinished, the model is missing, or its scores have another model's name.
    """
    evaluation, own = run.settings.evaluation, run.settings.template
    if evaluation.max_unscored_mass and evaluation.titles == "observed":
        raise SettingsError(
            "setting max_unscored_mass: it is the mass left of all titles; add titles=all, or leave it out",
            code="unscored-mass-without-titles",
        )
    template = prompted(own, prompt, evaluation.split)
    if chosen.path is None and template == own and truncation == "error":
        return run_target(chosen, run, ranks.device)
    other = chosen if chosen.path is not None else own_export(run.directory)
    name = chosen.name or default_name(other) + text_name(truncation, own, template) + base_suffix(evaluation)
    if truncation == "last_lines":
        template = dataclasses.replace(template, max_tokens=longest_text(other, evaluation, titles_of(run.settings)))
    rewritten = dataclasses.replace(run, settings=dataclasses.replace(run.settings, template=template))
    target = external_target(dataclasses.replace(other, name=name), rewritten, ranks.device)
    if template.max_tokens is not None:
        logger.info(describe_cut(target.store, template.max_tokens, evaluation.split))
    return target


def is_there(path: Path, info: ScoreTableInfo) -> bool:
    """Return whether a table with exactly this metadata exists and is undamaged.

    Raises:
        ForeignFileError: if something else has the table's name.
        ScoreTableError: if the table is damaged.
    """
    return path.is_file() and written_info(path) == info
