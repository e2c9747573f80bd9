"""The target of an evaluation: which model, after which text, under what name, and everything that decides its scores.

A run's people may be scored after another text than the run's own: with another prefix before every career, or with
the history of too long careers truncated. Such scores are a table of their own, under a name that says so.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from laborllm_dist import __version__
from laborllm_dist.careers.corpus import pooled_vocabulary
from laborllm_dist.careers.splits import Split
from laborllm_dist.config.data import EXAMPLES_LINE, TITLES_LINE, PromptSettings, TemplateSettings, TokenizerSettings
from laborllm_dist.config.evaluation import (
    NAMES_OF_OTHERS,
    EvaluationOverrides,
    EvaluationSettings,
    OtherModelSettings,
    Truncation,
)
from laborllm_dist.config.model import ModelSettings
from laborllm_dist.config.reader import is_file_name, read_settings, settings_errors
from laborllm_dist.config.run import RunSettings
from laborllm_dist.errors import RunError, SettingsError
from laborllm_dist.io.run_directory import RunDirectory, read_run
from laborllm_dist.models.loading import check_weights, context_of, weights_identity
from laborllm_dist.store.build import prepare_store
from laborllm_dist.store.other_data import Matching, OtherData, match_counts, other_store
from laborllm_dist.store.store import TokenStore, check_lengths, open_store
from laborllm_dist.store.tokenizer import load_tokenizer
from laborllm_dist.tables.parquet import ScoreTableInfo
from laborllm_dist.tables.scores import other_split, read_score_table
from laborllm_dist.text.title_variants import display_vocabulary

logger = logging.getLogger(__name__)

# Details of a score table that say what its text was; absent where it was the plain one.
TEXT_DETAILS = ("prefix", "num_fewshot", "fewshot_seed", "max_tokens")
OWN_TOKENIZER = TokenizerSettings(kind="pretrained", path=None, vocabulary_size=None, training_people=None)


@dataclass(frozen=True, slots=True)
class EvaluationTarget:
    """A model with the store of its tokens, its score table's file, and what that table must say of itself."""

    model: ModelSettings
    store: TokenStore
    table: Path
    info: ScoreTableInfo


@dataclass(frozen=True, slots=True)
class EvaluatedRun:
    """A run, read once a command: its settings are those of its record with what the command changes of them."""

    directory: RunDirectory
    settings: RunSettings
    store: Path


def evaluated_run(path: str, overrides: EvaluationOverrides) -> EvaluatedRun:
    """Read the run at a path, and change its settings for an evaluation, prediction or forecast.

    Raises:
        RunError: if there is no such run.
        SettingsError: if what is changed does not go together with the run's own settings.
    """
    directory, run_settings, store = read_run(Path(path))
    return EvaluatedRun(directory, with_overrides(run_settings, overrides), store)


def with_overrides(run: RunSettings, overrides: EvaluationOverrides) -> RunSettings:
    """Return the settings of a run with those that a command changes.

    Raises:
        SettingsError: if that does not go together with the run's own settings.
    """
    values = {field.name: getattr(overrides, field.name) for field in dataclasses.fields(EvaluationOverrides)}
    threads = values.pop("threads_per_rank") or run.ranks.threads_per_rank
    kernels = values.pop("kernels") or run.compute.kernels
    changes: dict[str, Any] = {name: value for name, value in values.items() if value is not None}
    with settings_errors():
        evaluation = dataclasses.replace(run.evaluation, **changes)
    return dataclasses.replace(
        run,
        evaluation=evaluation,
        compute=dataclasses.replace(run.compute, kernels=kernels),
        ranks=dataclasses.replace(run.ranks, threads_per_rank=threads),
    )


def with_split(run: RunSettings, split: Split) -> RunSettings:
    """Return the settings of a run with another split to evaluate."""
    return dataclasses.replace(run, evaluation=dataclasses.replace(run.evaluation, split=split))


def with_whole_model(run: EvaluatedRun) -> EvaluatedRun:
    """Return a run whose model is whole on every rank, for hidden states."""
    evaluation = dataclasses.replace(run.settings.evaluation, placement="replicated")
    return dataclasses.replace(run, settings=dataclasses.replace(run.settings, evaluation=evaluation))


def run_target(model: OtherModelSettings, run: EvaluatedRun, device: torch.device) -> EvaluationTarget:
    """Return the run's own export; held in 8 or 4 bits, or under a name of its own, it has a table of its own.

    Raises:
        RunError: if training has not finished, or another model's scores have that name.
    """
    evaluation, own_name = run.settings.evaluation, run.directory.path.name
    name = model.name or f"{own_name}{base_suffix(evaluation)}"
    table = run.directory.scores(evaluation.split, None if name == own_name else name)
    exported, store = as_pretrained(name, own_export(run.directory)), open_store(run.store)
    target = _target(exported, store, table, run.settings, device)
    if name != own_name:
        _check_no_other_scores(target)
    return target


def other_target(target: EvaluationTarget, data: OtherData, by: Matching, run: RunSettings) -> EvaluationTarget:
    """Return the same model after other careers, whose scores have a file named after the data.

    Raises:
        LaborError: if the data are unusable, no occupation has a match, or people who may be cut do not fit all the
            same.
    """
    store = other_store(target.store, data, by, run.store.people_per_shard)
    counts = match_counts(store)
    logger.info(f"evaluate: {data.name}: {counts.describe(by)}")
    check_cut(store, read_settings(TemplateSettings, store.facts["identity"]["template"]).max_tokens, "test")
    split = other_split(data.name)
    details = {
        **target.info.details,
        "store": store.fingerprint,
        "matched_by": by,
        "observations_without_match": str(counts.num_observations_left_out),
        "people_without_match": str(counts.num_people_left_out),
    }
    if "max_tokens" in details:
        details |= {name: str(count) for name, count in store.num_truncated("test").items()}
    return dataclasses.replace(
        target,
        store=store,
        table=target.table.with_name(target.table.name.replace(target.info.split, split, 1)),
        info=dataclasses.replace(target.info, split=split, careers=store.careers_fingerprint, details=details),
    )


def own_export(run: RunDirectory) -> OtherModelSettings:
    """Return where a run's own weights are.

    Raises:
        RunError: if training has not finished.
    """
    if not (run.export / "config.json").is_file():
        raise RunError(
            f"{run.path} has no export yet; its training has not finished (start train.py again to resume it)",
            code="training-not-finished",
        )
    return OtherModelSettings(str(run.export), None, None, None, "safetensors")


def external_target(other: OtherModelSettings, run: EvaluatedRun, device: torch.device) -> EvaluationTarget:
    """Return another model, after the run's people in its own tokens, written as the settings' template says.

    Raises:
        RunError: if the run has scores of other weights, or of another text, under the same name.
        SequenceTooLongError: if people who may be cut do not fit all the same.
    """
    settings, evaluation = run.settings, run.settings.evaluation
    model = as_pretrained(other.name or default_name(other) + base_suffix(evaluation), other)
    check_weights(model)
    store = prepare_store(dataclasses.replace(settings, model=model, tokenizer=OWN_TOKENIZER))
    check_cut(store, settings.template.max_tokens, evaluation.split)
    target = _target(model, store, run.directory.scores(evaluation.split, model.name), settings, device)
    _check_no_other_scores(target)
    return target


def _check_no_other_scores(target: EvaluationTarget) -> None:
    if target.table.is_file():
        known, own = read_score_table(target.table)[1].details, target.info.details
        other_text = any(known.get(name) != own.get(name) for name in TEXT_DETAILS)
        if known.get("weights") != own["weights"] or other_text:
            what = "another prompt or limit" if known.get("weights") == own["weights"] else "other weights"
            raise RunError(
                f"{target.table} holds the scores of {what}; give these another name (model.name=...)",
                code="scores-of-other-weights",
            )


def base_suffix(evaluation: EvaluationSettings) -> str:
    """Return what a model's name gets where its weights are quantized, such as -int8."""
    return "" if evaluation.quantization == "none" else f"-{evaluation.quantization}"


def longest_text(other: OtherModelSettings, evaluation: EvaluationSettings, titles: Sequence[str]) -> int:
    """Return how many tokens of a career fit both a row and what a model reads exactly.

    Where other titles than the observed one, or continuations, are to follow its prompts, there is room for them.

    Raises:
        ModelError: if the model is missing.
        TokenizerError: if its tokenizer is.
    """
    model = as_pretrained("", other)
    check_weights(model)
    context = context_of(model)
    if context is None:
        return evaluation.max_seq_length
    room = 0
    if evaluation.titles == "all" or evaluation.check_generations:
        tokenizer = load_tokenizer(str(other.path), revision=other.revision, subfolder=other.subfolder)
        encoded = tokenizer.backend.encode_batch([f": {title}" for title in titles], add_special_tokens=False)
        room = max(max(len(each.ids) for each in encoded), evaluation.max_new_tokens or 0)
    return min(context - room, evaluation.max_seq_length)


def titles_of(run: RunSettings) -> tuple[str, ...]:
    """Return the titles as the run's texts show them."""
    return display_vocabulary(pooled_vocabulary(run.data), run.template.titles).titles


def default_name(other: OtherModelSettings) -> str:
    """Return a name made from path and subfolder: that of the run for a run's export, else their last parts.

    Raises:
        SettingsError: if no table can have that name.
    """
    path = Path(other.path or "").absolute()
    last = path.parent.name if path.name == "export" else path.name
    name = "-".join(filter(None, (last, other.subfolder and Path(other.subfolder).name)))
    if not is_file_name(name) or name in NAMES_OF_OTHERS:
        raise SettingsError(
            f"scores of {other.path} would be called {name!r}, which cannot be or is another table's name; give them "
            "a name (model.name=...)",
            code="invalid-score-name",
        )
    return name


def as_pretrained(name: str, other: OtherModelSettings) -> ModelSettings:
    """Return a model to be scored as a model to be opened, under its name in tables."""
    return ModelSettings(
        name=name,
        path=other.path,
        revision=other.revision,
        subfolder=other.subfolder,
        llama=None,
        attention_dropout=0.0,
        weights=other.weights,
    )


def _target(
    model: ModelSettings, store: TokenStore, table: Path, settings: RunSettings, device: torch.device
) -> EvaluationTarget:
    evaluation = settings.evaluation
    details = {
        "weights": weights_identity(model),
        "store": store.fingerprint,
        "max_seq_length": str(evaluation.max_seq_length),
        "batch_size": str(evaluation.batch_size),
        "precision": evaluation.precision,
        "attention": settings.compute.attention,
        "loss_chunk_tokens": str(settings.compute.loss_chunk_tokens),
        "threads_per_rank": str(settings.ranks.threads_per_rank),
        "device": device.type,
        "torch": torch.__version__,
        **text_details(settings.template, store, evaluation.split),
    }
    if evaluation.quantization != "none":
        details["quantization"] = evaluation.quantization
    if settings.compute.kernels != "plain":
        details["kernels"] = settings.compute.kernels
    info = ScoreTableInfo(
        model=model.name, split=evaluation.split, careers=store.careers_fingerprint, code=__version__, details=details
    )
    return EvaluationTarget(model=model, store=store, table=table, info=info)


def prompted(template: TemplateSettings, prompt: PromptSettings, split: Split) -> TemplateSettings:
    """Return a run's template with what an evaluation puts before every career.

    Raises:
        RunError: if people of the split that is scored may be among the examples.
    """
    if prompt.prefix is not None:
        template = dataclasses.replace(
            template,
            prefix=prompt.prefix,
            num_fewshot=prompt.num_fewshot,
            fewshot_seed=prompt.fewshot_seed,
        )
    if template.num_fewshot and split == "train":
        raise RunError(
            "the examples are training people, so split=train would be shown its own answers; take test",
            code="examples-from-scored-split",
        )
    return template


def text_name(truncation: Truncation, own: TemplateSettings, template: TemplateSettings) -> str:
    """Return what a model's name gets where its text is another than the run's own, such as -titles-3-examples."""
    parts: list[str] = []
    if template != own:
        if TITLES_LINE in template.prefix:
            parts.append("titles")
        if EXAMPLES_LINE in template.prefix:
            parts.append(f"{template.num_fewshot}-examples")
        if not parts:
            parts.append("prefix" if template.prefix else "plain")
    if truncation == "last_lines":
        parts.append("last-lines")
    return "".join(f"-{part}" for part in parts)


def text_details(template: TemplateSettings, store: TokenStore, split: Split) -> dict[str, str]:
    """Return what a score table says of its text: prefix, examples, and how many people and observations were cut."""
    details: dict[str, str] = {}
    if template.prefix:
        details["prefix"] = json.dumps(template.prefix, ensure_ascii=False)
    if template.num_fewshot:
        details |= {"num_fewshot": str(template.num_fewshot), "fewshot_seed": str(template.fewshot_seed)}
    if template.max_tokens is not None:
        details["max_tokens"] = str(template.max_tokens)
    return details | {name: str(count) for name, count in store.num_truncated(split).items()}


def check_cut(store: TokenStore, max_tokens: int | None, split: Split) -> None:
    """Check that everybody fits, at least without any line of history.

    Raises:
        SequenceTooLongError: naming the longest and how many there are.
    """
    if max_tokens is not None:
        reason = f"without a line of history, and {max_tokens} fit the model's context and a row"
        check_lengths(
            store, max_tokens, f"{reason}; take a longer context, a larger max_seq_length or a shorter prompt", (split,)
        )


def describe_cut(store: TokenStore, max_tokens: int, split: Split) -> str:
    """Return as a line how many people and observations were cut."""
    counts = store.num_truncated(split)
    return (
        f"evaluate: {counts['cut_people']:,} of {store.num_people(split):,} {split} people have more than "
        f"{max_tokens:,} tokens; {counts['cut_observations']:,} observations of theirs are scored after "
        "a truncated history"
    )
