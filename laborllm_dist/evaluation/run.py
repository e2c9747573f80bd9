"""Score a run's people, with its own export or any causal model: settings -> subject, plan, model -> evaluation."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from laborllm_dist.batching.observations import check_room
from laborllm_dist.careers.splits import Split
from laborllm_dist.config.prediction import PredictSettings
from laborllm_dist.config.reader import settings_errors
from laborllm_dist.config.run import EvaluateSettings, EvaluationSettings, RanksSettings, RunSettings
from laborllm_dist.distributed.context import DistributedContext, alone_on_table
from laborllm_dist.errors import RunError, SettingsError
from laborllm_dist.evaluation.generation import Generation, evaluate_generated
from laborllm_dist.evaluation.plan import EvaluationPlan, plan_evaluation
from laborllm_dist.evaluation.prompt_prefix import describe_cut, prompted, text_name
from laborllm_dist.evaluation.score import Evaluation, evaluate, evaluate_titles
from laborllm_dist.evaluation.target import (
    EvaluationTarget,
    base_suffix,
    default_name,
    external_target,
    longest_text,
    own_export,
    run_target,
    titles_of,
)
from laborllm_dist.evaluation.title_trie import TitleTrie, common_title_trie, ending_prompts
from laborllm_dist.io.files import fingerprint_of
from laborllm_dist.io.run_directory import read_run
from laborllm_dist.models.inference import InferenceModel, load_for_inference
from laborllm_dist.models.loading import check_fit, check_packing, context_of, longest_career
from laborllm_dist.store.store import TOKENIZER, CareerTable, checking_store
from laborllm_dist.store.tokenizer import load_tokenizer
from laborllm_dist.store.without_model import score_without_model, warning_if_no_better
from laborllm_dist.tables.generations import describe_generated, generated_table_path, read_generated_table
from laborllm_dist.tables.parquet import ScoreTableInfo, written_info
from laborllm_dist.tables.scores import read_score_table
from laborllm_dist.tables.title_distributions import title_table_path
from laborllm_dist.text.template import compile_template

logger = logging.getLogger(__name__)

Say = Callable[[str], None]


def evaluation_ranks(settings: EvaluateSettings | PredictSettings) -> RanksSettings:
    """Return how the ranks of an evaluation or prediction are set up: as the run's, unless told otherwise.

    Raises:
        RunError: if there is no such run.
    """
    return with_overrides(read_run(Path(settings.run))[1], settings).ranks


def score_run(settings: EvaluateSettings, ranks: DistributedContext, say: Say) -> Path:
    """Write the score table of a split, and tables of titles and continuations if they are wanted. Collective.

    What is there already is left as it is.

    Returns:
        The score table's path.

    Raises:
        LaborError: if the run is unfinished, the model is missing, or a career fits no row or context.
    """
    subject, wanted = ranks.run_on_main(
        lambda: resolve_target(settings, ranks, say), tuple[EvaluationTarget, EvaluationSettings]
    )
    careers = subject.store.careers(wanted.split)  # each rank opens them: they are never sent
    splits: tuple[Split, ...] = (wanted.split,) if ranks.is_main else ()
    trained_on: tuple[Split, ...] = ("train",) if ranks.is_main else ()
    with (
        checking_store(subject.store, splits) as check,
        checking_store(subject.store, trained_on) as check_trained_on,
        alone_on_table(ranks, subject.table),
    ):
        planned = ranks.run_on_main(lambda: _missing_tables(subject, careers, wanted, say), list[Planned])
        todo = [Evaluation(careers, plan, info, parts_folder(path, info, plan), path) for path, info, plan in planned]
        if todo:
            model, trie = _open(todo, settings, (subject, wanted), ranks)
            ranks.run_on_main(check.wait)
            _score(todo, (subject, wanted), (model, trie), ranks, say)
        if wanted.generated == "check":
            table = generated_table_path(subject.table, wanted.split)
            say(ranks.run_on_main(lambda: f"evaluate: {describe_generated(read_generated_table(table)[0])}"))
        ranks.run_on_main(check.wait)
        ranks.run_on_main(check_trained_on.wait)
        ranks.run_on_main(lambda: _warn_if_no_better(subject, wanted.split, read_run(Path(settings.run))[1]))
    return subject.table


def _warn_if_no_better(subject: EvaluationTarget, split: Split, run: RunSettings) -> None:
    """Say in one line where the model predicts the titles of a split worse than no model does."""
    nats_per_title = -float(np.mean(read_score_table(subject.table)[0]["title"].to_numpy()))
    warning = warning_if_no_better(
        subject.info.model, split, nats_per_title, score_without_model(subject.store, split, run)
    )
    if warning is not None:
        logger.warning(warning)


def _open(
    todo: list[Evaluation],
    settings: EvaluateSettings,
    asked: tuple[EvaluationTarget, EvaluationSettings],
    ranks: DistributedContext,
) -> tuple[InferenceModel, TitleTrie | None]:
    """Open the model, and make the tree of titles where it is needed. Collective."""
    (subject, wanted), careers = asked, todo[0].careers
    compute = read_run(Path(settings.run))[1].compute
    needs_trie = wanted.titles == "all" or wanted.generated == "check"
    trie = ranks.run_on_main(lambda: trie_of(settings, subject, careers), TitleTrie) if needs_trie else None
    ranks.run_on_main(lambda: _check_room(subject, careers, wanted, trie))
    model = load_for_inference(subject.model, wanted, compute, ranks)
    ranks.run_on_main(lambda: check_fit(model.hugging_face, subject.store, (wanted.split,)))
    if wanted.placement == "replicated":  # shards are of known types only
        longest = longest_career(subject.store, (wanted.split,))
        ranks.run_on_main(lambda: check_packing(model.hugging_face, device=ranks.device, longest=longest))
    return model, trie


def _score(
    todo: list[Evaluation],
    asked: tuple[EvaluationTarget, EvaluationSettings],
    opened: tuple[InferenceModel, TitleTrie | None],
    ranks: DistributedContext,
    say: Say,
) -> None:
    """Write the tables that are not there yet. Collective."""
    (subject, wanted), (model, trie) = asked, opened
    for work in todo:
        say(describe_evaluation(work, ranks))
        if work.table == subject.table:
            evaluate(work, model, ranks, say)
        elif work.table == generated_table_path(subject.table, wanted.split):
            evaluate_generated(work, _generation(subject, wanted, trie), model, ranks, say)
        else:
            assert trie is not None  # made where titles are wanted
            evaluate_titles(work, trie, wanted, model, ranks, say)
        say(f"evaluate: {work.table}")


def _check_room(
    subject: EvaluationTarget, careers: CareerTable, wanted: EvaluationSettings, trie: TitleTrie | None
) -> None:
    """Refuse prompts after which the longest title, or a continuation, goes past the model's context.

    Raises:
        SequenceTooLongError: naming a person and how many there are.
    """
    if trie is None:
        return
    context = context_of(subject.model)
    if wanted.titles == "all":
        check_room(careers, int(trie.depths_M.max()), context, "the longest title; take a longer context")
    if wanted.generated == "check":
        num_tokens = _generation(subject, wanted, trie).max_new_tokens
        what = f"max_new_tokens={num_tokens}; take fewer, or leave out generated=check"
        check_room(careers, num_tokens - 1, context, what)  # the last token is picked, not forwarded


def _generation(subject: EvaluationTarget, wanted: EvaluationSettings, trie: TitleTrie | None) -> Generation:
    """Return how continuations are made; by default they have room for the longest title and the line's end."""
    assert trie is not None  # made where continuations are wanted
    return Generation(
        num_samples=wanted.samples,
        seed=wanted.samples_seed,
        max_new_tokens=wanted.max_new_tokens or int(trie.depths_M.max()) + 1,
        max_tree_tokens=wanted.max_tree_tokens,
        tokenizer=load_tokenizer(str(subject.store.folder / TOKENIZER)),
    )


Planned = tuple[Path, ScoreTableInfo, EvaluationPlan]


def _missing_tables(
    subject: EvaluationTarget, careers: CareerTable, wanted: EvaluationSettings, say: Say
) -> list[Planned]:
    """Return the tables that are not there yet, each with what it must say of itself and its plan.

    Raises:
        RunError: if another distribution of the same weights has the name.
        SequenceTooLongError: if a career fits no row.
    """
    tables = [(subject.table, subject.info, wanted)]
    # A unit of these is hundreds of times the work: each is a part of its own.
    one_each = dataclasses.replace(wanted, batches_per_part=1)
    if wanted.titles == "all":
        tables.append((title_table_path(subject.table, wanted.split), subject.titles_info(wanted), one_each))
    if wanted.generated == "check":
        tables.append((generated_table_path(subject.table, wanted.split), subject.generated_info(wanted), one_each))
    missing: list[Planned] = []
    for path, info, how in tables:
        if is_there(path, info):
            say(f"evaluate: {info.model} is there ({path})")
            continue
        refuse_other_details(path, info)
        missing.append((path, info, plan_evaluation(careers, how)))
    return missing


def parts_folder(path: Path, info: ScoreTableInfo, plan: EvaluationPlan) -> Path:
    """Return where the parts of a table lie; those of other weights, settings or versions lie in other folders."""
    return path.with_suffix(f".{fingerprint_of([dataclasses.asdict(info), plan.batches_per_part])}.parts")


def refuse_other_details(path: Path, info: ScoreTableInfo) -> None:
    """Refuse to write over hours of work: a table of the same weights with other settings stays.

    Raises:
        RunError: naming the first setting that differs.
        ForeignFileError: if something else has the table's name.
        ScoreTableError: if the table is damaged.
    """
    if not path.exists() and not path.is_symlink():
        return
    known = written_info(path).details
    if known.get("weights") != info.details["weights"]:
        return  # the run was trained anew
    changes = [
        f"{name} {known.get(name, 'plain')} there, {info.details.get(name, 'plain')} now"
        for name in sorted({*known, *info.details})
        if known.get(name) != info.details.get(name)
    ]
    raise RunError(
        f"{path} was made with other settings ({changes[0] if changes else 'another version'}); "
        "give this one another name (model.name=...), or delete it"
    )


def trie_of(settings: EvaluateSettings, subject: EvaluationTarget, careers: CareerTable) -> TitleTrie:
    """Return the tree of the titles as they stand after the prompts of this split.

    Raises:
        TitleBoundaryError: if the tokenizer does not keep titles apart from the prompts or from each other, or cuts one
            differently after some of the prompts.
    """
    template = compile_template(read_run(Path(settings.run))[1].template)
    tokenizer = load_tokenizer(str(subject.store.folder / TOKENIZER))
    return common_title_trie(ending_prompts(careers, template), subject.store.vocabulary, tokenizer)


def describe_evaluation(work: Evaluation, ranks: DistributedContext) -> str:
    """Return the plan as a line."""
    num_rows = sum(len(unit) for unit in work.plan.units)
    fill = int(work.careers.num_tokens().sum()) / (num_rows * work.plan.max_seq_length)
    num_observations = int(work.careers.num_observations().sum())
    details = work.info.details
    what = "all titles of " if "tolerance" in details else "continuations by " if "samples" in details else ""
    return (
        f"evaluate: {what}{work.info.model} on {work.careers.num_people():,} {work.info.split} people, "
        f"{num_observations:,} observations; {len(work.plan.units):,} units of rows of {work.plan.max_seq_length} "
        f"tokens, {fill:.0%} full, over {ranks.world_size} rank{'s' if ranks.world_size > 1 else ''}"
    )


def resolve_target(
    settings: EvaluateSettings, ranks: DistributedContext, say: Say
) -> tuple[EvaluationTarget, EvaluationSettings]:
    """Return whom these settings score, with its store, and how.

    Raises:
        LaborError: if the run is unfinished, the model is missing, or its scores have another model's name.
    """
    run, run_settings, store = read_run(Path(settings.run))
    run_settings = with_overrides(run_settings, settings)
    wanted, own = run_settings.evaluation, run_settings.template
    if wanted.tolerance and wanted.titles == "observed":
        raise SettingsError("setting tolerance: it is the mass left of all titles; add titles=all, or leave it out")
    template = prompted(own, settings.prompt, wanted.split)
    if settings.model.path is None and template == own and settings.truncation == "refuse":
        return run_target(settings.model, run, run_settings, store, ranks.device), wanted
    other = settings.model if settings.model.path is not None else own_export(run)
    name = settings.model.name or default_name(other) + text_name(settings, own, template) + base_suffix(wanted)
    if settings.truncation == "last_lines":
        template = dataclasses.replace(template, max_tokens=longest_text(other, wanted, titles_of(run_settings)))
    told, other = dataclasses.replace(run_settings, template=template), dataclasses.replace(other, name=name)
    subject = external_target(other, run, told, ranks.device, say)
    if template.max_tokens is not None:
        say(describe_cut(subject.store, template.max_tokens, wanted.split))
    return subject, wanted


def with_overrides(run: RunSettings, settings: EvaluateSettings | PredictSettings) -> RunSettings:
    """Return the run's settings with what this evaluation or prediction is told otherwise.

    Raises:
        SettingsError: if that does not go together with the run's own settings.
    """
    told = {field.name: getattr(settings, field.name, None) for field in dataclasses.fields(EvaluationSettings)}
    changes: dict[str, Any] = {name: value for name, value in told.items() if value is not None}
    with settings_errors():
        evaluation = dataclasses.replace(run.evaluation, **changes)
    threads = settings.threads_per_rank or run.ranks.threads_per_rank
    return dataclasses.replace(
        run, evaluation=evaluation, ranks=dataclasses.replace(run.ranks, threads_per_rank=threads)
    )


def is_there(path: Path, info: ScoreTableInfo) -> bool:
    """Return whether a table of just these numbers has been written, and is as it was written.

    Raises:
        ForeignFileError: if something else has the table's name.
        ScoreTableError: if the table is damaged.
    """
    return path.is_file() and written_info(path) == info
