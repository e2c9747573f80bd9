"""Score a run's people with its own export, or with any causal model: settings -> store, plan, model -> evaluation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from laborllm_dist import __version__
from laborllm_dist.data_settings import TokenizerSettings
from laborllm_dist.engine.export import weights_fingerprint
from laborllm_dist.engine.language_model import CareerLanguageModel
from laborllm_dist.engine.model import check_fit, check_weights, pretrained_model
from laborllm_dist.engine.ranks import Ranks, alone
from laborllm_dist.errors import RunError
from laborllm_dist.files import fingerprint_of
from laborllm_dist.run_folder import RunFolder, read_run
from laborllm_dist.score_table import ScoreTableInfo, read_score_table
from laborllm_dist.scoring.evaluate import Evaluation, evaluate
from laborllm_dist.scoring.units import EvaluationPlan, plan_evaluation
from laborllm_dist.settings import EvaluateSettings, EvaluationSettings, ModelSettings, RunSettings
from laborllm_dist.tokens.prepare import prepare_store
from laborllm_dist.tokens.store import CareerRows, TokenStore, open_store

Say = Callable[[str], None]
OWN_TOKENIZER = TokenizerSettings(kind="pretrained", path=None, vocabulary_size=None, training_people=None)
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}


@dataclass(frozen=True, slots=True)
class Subject:
    """The model that is scored: its weights, the store of its tokens, its name, and its table's file."""

    model: ModelSettings
    store: TokenStore
    name: str
    table: Path


def score_run(settings: EvaluateSettings, ranks: Ranks, say: Say) -> Path:
    """Write the score table of a split, unless it is there; return its path. Collective.

    Raises:
        LaborError: if the run is unfinished, the model is missing, or a career fits no row or context.
    """
    run, run_settings, store_folder = ranks.on_first(lambda: read_run(Path(settings.run)))
    wanted = _evaluation_settings(settings, run_settings)
    if settings.model.path is None:
        subject = ranks.on_first(lambda: _own_model(run, store_folder, run_settings, wanted))
    else:
        subject = ranks.on_first(lambda: _other_model(settings, run, run_settings, wanted, say))
    careers = subject.store.careers(wanted.split)
    plan = ranks.on_first(lambda: plan_evaluation(careers, wanted))
    info = ranks.on_first(lambda: _info(subject, wanted, run_settings if settings.ranks is None else settings, ranks))
    with alone(ranks, run.path / "scores"):
        _score_alone(subject, wanted, plan, info, ranks, say)
    return subject.table


def _score_alone(
    subject: Subject, wanted: EvaluationSettings, plan: EvaluationPlan, info: ScoreTableInfo, ranks: Ranks, say: Say
) -> None:
    careers = subject.store.careers(wanted.split)
    if ranks.on_first(lambda: _is_there(subject.table, info)):
        say(f"evaluate: {subject.name} is there ({subject.table})")
        return
    model = pretrained_model(subject.model, dtype=DTYPES[wanted.precision])
    longest = int(careers.num_tokens().max())
    ranks.on_first(
        lambda: check_fit(
            model,
            num_ids=subject.store.num_ids,
            longest_career=longest,
            row_of=f"the longest {wanted.split} career",
        )
    )
    say(describe_evaluation(subject, careers, plan, wanted, ranks))
    parts = subject.table.with_suffix(f".{fingerprint_of(dataclasses.asdict(info))}.parts")
    work = Evaluation(careers=careers, plan=plan, info=info, parts=parts, table=subject.table)
    evaluate(work, CareerLanguageModel(model).to(ranks.device), ranks, say)
    say(f"evaluate: {subject.table}")


def describe_evaluation(
    subject: Subject, careers: CareerRows, plan: EvaluationPlan, wanted: EvaluationSettings, ranks: Ranks
) -> str:
    """Return the plan as a line."""
    num_rows = sum(len(unit) for unit in plan.units)
    fill = int(careers.num_tokens().sum()) / (num_rows * plan.row_length)
    num_observations = int(careers.num_observations().sum())
    return (
        f"evaluate: {subject.name} on {len(careers):,} {wanted.split} people, {num_observations:,} observations; "
        f"{len(plan.units):,} forwards of {wanted.rows_per_unit} x {plan.row_length} tokens, {fill:.0%} full, "
        f"over {ranks.world_size} rank{'s' if ranks.world_size > 1 else ''}"
    )


def _evaluation_settings(settings: EvaluateSettings, run: RunSettings) -> EvaluationSettings:
    changes = {
        name: value
        for name in ("split", "row_length", "rows_per_unit", "precision")
        if (value := getattr(settings, name)) is not None
    }
    return dataclasses.replace(run.evaluation, **changes)


def _own_model(run: RunFolder, store: Path, settings: RunSettings, wanted: EvaluationSettings) -> Subject:
    if not (run.export / "config.json").is_file():
        raise RunError(f"{run.path} has no export yet; its training has not finished (start train.py again to go on)")
    return Subject(
        model=_pretrained(settings.model.name, str(run.export)),
        store=open_store(store),
        name=run.path.name,
        table=run.scores(wanted.split),
    )


def _other_model(
    settings: EvaluateSettings, run: RunFolder, run_settings: RunSettings, wanted: EvaluationSettings, say: Say
) -> Subject:
    other = settings.model
    assert other.path is not None
    name = other.name or "-".join(filter(None, (Path(other.path).name, other.subfolder and Path(other.subfolder).name)))
    model = _pretrained(name, other.path, other.revision, other.subfolder)
    check_weights(model)
    store = prepare_store(dataclasses.replace(run_settings, model=model, tokenizer=OWN_TOKENIZER), say)
    return Subject(model=model, store=store, name=name, table=run.scores(wanted.split, name))


def _pretrained(name: str, path: str, revision: str | None = None, subfolder: str | None = None) -> ModelSettings:
    return ModelSettings(
        name=name, path=path, revision=revision, subfolder=subfolder, llama=None, attention_dropout=0.0
    )


def _info(
    subject: Subject, wanted: EvaluationSettings, threads_of: RunSettings | EvaluateSettings, ranks: Ranks
) -> ScoreTableInfo:
    folder = Path(subject.model.path or "") / (subject.model.subfolder or "")
    weights = (
        weights_fingerprint(folder) if folder.is_dir() else f"{subject.model.path}@{subject.model.revision or 'main'}"
    )
    assert threads_of.ranks is not None
    return ScoreTableInfo(
        model=subject.name,
        split=wanted.split,
        careers=subject.store.careers_fingerprint,
        code=__version__,
        details={
            "weights": weights,
            "store": subject.store.fingerprint,
            "row_length": str(wanted.row_length),
            "rows_per_unit": str(wanted.rows_per_unit),
            "precision": wanted.precision,
            "threads_per_rank": str(threads_of.ranks.threads_per_rank),
            "device": ranks.device.type,
        },
    )


def _is_there(table: Path, info: ScoreTableInfo) -> bool:
    return table.is_file() and read_score_table(table)[1] == info
