"""Score a run's people, with its own export or any causal model: settings -> subject, plan, model -> evaluation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch

from laborllm_dist.engine.language_model import CareerLanguageModel
from laborllm_dist.engine.model import check_fit, check_packing, pretrained_model
from laborllm_dist.engine.ranks import Ranks, alone
from laborllm_dist.files import fingerprint_of
from laborllm_dist.run_folder import read_run
from laborllm_dist.score_table import read_score_table
from laborllm_dist.scoring.evaluate import Evaluation, evaluate
from laborllm_dist.scoring.prompts import describe_cut, prompted, text_name
from laborllm_dist.scoring.subject import (
    Subject,
    default_name,
    longest_text,
    other_subject,
    own_export,
    own_subject,
)
from laborllm_dist.scoring.units import EvaluationPlan, plan_evaluation
from laborllm_dist.settings import EvaluateSettings, EvaluationSettings, RanksSettings, RunSettings
from laborllm_dist.tokens.store import CareerRows

Say = Callable[[str], None]
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}


def evaluation_ranks(settings: EvaluateSettings) -> RanksSettings:
    """Return how the ranks of an evaluation are set up: as the run's, unless told otherwise.

    Raises:
        RunError: if there is no such run.
    """
    return _as_told(read_run(Path(settings.run))[1], settings).ranks


def score_run(settings: EvaluateSettings, ranks: Ranks, say: Say) -> Path:
    """Write the score table of a split, unless it is there; return its path. Collective.

    Raises:
        LaborError: if the run is unfinished, the model is missing, or a career fits no row or context.
    """
    subject, wanted = ranks.on_first(lambda: _find_subject(settings, ranks, say))
    careers = subject.store.careers(wanted.split)
    plan = ranks.on_first(lambda: plan_evaluation(careers, wanted))
    with alone(ranks, subject.table.parent):
        if ranks.on_first(lambda: _is_there(subject)):
            say(f"evaluate: {subject.info.model} is there ({subject.table})")
            return subject.table
        say(describe_evaluation(subject, careers, plan, ranks))
        compute = read_run(Path(settings.run))[1].compute
        model = pretrained_model(subject.model, dtype=DTYPES[wanted.precision]).to(ranks.device)
        ranks.on_first(lambda: check_fit(model, subject.store, (wanted.split,)))
        ranks.on_first(lambda: check_packing(model, device=ranks.device))
        # Parts of other weights, settings or versions lie in other folders.
        identity = fingerprint_of([dataclasses.asdict(subject.info), plan.units_per_part])
        parts = subject.table.with_suffix(f".{identity}.parts")
        work = Evaluation(careers=careers, plan=plan, info=subject.info, parts=parts, table=subject.table)
        evaluate(work, CareerLanguageModel(model, compute), ranks, say)
    say(f"evaluate: {subject.table}")
    return subject.table


def describe_evaluation(subject: Subject, careers: CareerRows, plan: EvaluationPlan, ranks: Ranks) -> str:
    """Return the plan as a line."""
    num_rows = sum(len(unit) for unit in plan.units)
    fill = int(careers.num_tokens().sum()) / (num_rows * plan.row_length)
    num_observations = int(careers.num_observations().sum())
    return (
        f"evaluate: {subject.info.model} on {careers.num_people():,} {subject.info.split} people, "
        f"{num_observations:,} observations; {len(plan.units):,} forwards of rows of {plan.row_length} tokens, "
        f"{fill:.0%} full, over {ranks.world_size} rank{'s' if ranks.world_size > 1 else ''}"
    )


def _find_subject(settings: EvaluateSettings, ranks: Ranks, say: Say) -> tuple[Subject, EvaluationSettings]:
    run, run_settings, store = read_run(Path(settings.run))
    run_settings = _as_told(run_settings, settings)
    wanted, own = run_settings.evaluation, run_settings.template
    template = prompted(own, settings.prompt, wanted.split)
    if settings.model.path is None and template == own and settings.too_long == "refuse":
        return own_subject(run, run_settings, store, wanted, ranks.device), wanted
    other = settings.model if settings.model.path is not None else own_export(run)
    name = settings.model.name or default_name(other) + text_name(settings, own, template)
    if settings.too_long == "last_lines":
        template = dataclasses.replace(template, max_tokens=longest_text(other, wanted))
    told, other = dataclasses.replace(run_settings, template=template), dataclasses.replace(other, name=name)
    subject = other_subject(other, run, told, wanted, ranks.device, say)
    if template.max_tokens is not None:
        say(describe_cut(subject.store, template.max_tokens, wanted.split))
    return subject, wanted


def _as_told(run: RunSettings, settings: EvaluateSettings) -> RunSettings:
    """Return the run's settings with what this evaluation is told otherwise."""
    names = ("split", "row_length", "rows_per_unit", "precision")
    changes = {name: value for name in names if (value := getattr(settings, name)) is not None}
    evaluation = dataclasses.replace(run.evaluation, **changes)
    threads = settings.threads_per_rank or run.ranks.threads_per_rank
    return dataclasses.replace(
        run, evaluation=evaluation, ranks=dataclasses.replace(run.ranks, threads_per_rank=threads)
    )


def _is_there(subject: Subject) -> bool:
    return subject.table.is_file() and read_score_table(subject.table)[1] == subject.info
