"""The subject of an evaluation: which model, whose tokens, under what name, and everything that decides its scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from laborllm_dist import __version__
from laborllm_dist.careers.corpus import pooled_vocabulary
from laborllm_dist.config.data import TokenizerSettings
from laborllm_dist.config.model import ModelSettings
from laborllm_dist.config.reader import is_file_name
from laborllm_dist.config.run import BASELINES, EvaluationSettings, OtherModelSettings, RunSettings
from laborllm_dist.errors import RunError, SettingsError
from laborllm_dist.evaluation.prompt_prefix import TEXT_DETAILS, check_cut, text_details
from laborllm_dist.io.run_directory import RunDirectory
from laborllm_dist.models.loading import check_weights, context_of, weights_identity
from laborllm_dist.store.build import prepare_store
from laborllm_dist.store.store import TokenStore, open_store
from laborllm_dist.store.tokenizer import load_tokenizer
from laborllm_dist.tables.parquet import ScoreTableInfo
from laborllm_dist.tables.scores import read_score_table
from laborllm_dist.text.title_variants import display_vocabulary

OWN_TOKENIZER = TokenizerSettings(kind="pretrained", path=None, vocabulary_size=None, training_people=None)


@dataclass(frozen=True, slots=True)
class EvaluationTarget:
    """A model with the store of its tokens, its score table's file, and what that table must say of itself."""

    model: ModelSettings
    store: TokenStore
    table: Path
    info: ScoreTableInfo

    def titles_info(self, wanted: EvaluationSettings) -> ScoreTableInfo:
        """Return what the table of titles must say of itself."""
        details = {"tolerance": str(wanted.tolerance), "max_tree_tokens": str(wanted.max_tree_tokens)}
        return dataclasses.replace(self.info, details={**self.info.details, **details})

    def generated_info(self, wanted: EvaluationSettings) -> ScoreTableInfo:
        """Return what the table of continuations must say of itself."""
        names = ("samples", "samples_seed", "max_new_tokens", "max_tree_tokens")
        details = {name: str(getattr(wanted, name)) for name in names}
        return dataclasses.replace(self.info, details={**self.info.details, **details})


def run_target(
    model: OtherModelSettings, run: RunDirectory, settings: RunSettings, store: Path, device: torch.device
) -> EvaluationTarget:
    """Return the run's own export; held in 8 or 4 bits, or under a name of its own, it has a table of its own.

    Raises:
        RunError: if training has not finished, or another model's scores have that name.
    """
    name = model.name or f"{run.path.name}{base_suffix(settings.evaluation)}"
    table = run.scores(settings.evaluation.split, None if name == run.path.name else name)
    subject = _subject(as_pretrained(name, own_export(run)), open_store(store), table, settings, device)
    if name != run.path.name:
        _refuse_other_scores(subject)
    return subject


def own_export(run: RunDirectory) -> OtherModelSettings:
    """Return where a run's own weights are.

    Raises:
        RunError: if training has not finished.
    """
    if not (run.export / "config.json").is_file():
        raise RunError(f"{run.path} has no export yet; its training has not finished (start train.py again to go on)")
    return OtherModelSettings(str(run.export), None, None, None, "safetensors")


def external_target(
    other: OtherModelSettings,
    run: RunDirectory,
    settings: RunSettings,
    device: torch.device,
    say: Callable[[str], None],
) -> EvaluationTarget:
    """Return another model, the run's people told with its own tokenizer, as the settings' template says.

    Raises:
        RunError: if the run has scores of other weights, or of another text, under the same name.
        SequenceTooLongError: if people who may be cut do not fit all the same.
    """
    model = as_pretrained(other.name or default_name(other) + base_suffix(settings.evaluation), other)
    check_weights(model)
    store = prepare_store(dataclasses.replace(settings, model=model, tokenizer=OWN_TOKENIZER), say)
    check_cut(store, settings.template.max_tokens, settings.evaluation.split)
    subject = _subject(model, store, run.scores(settings.evaluation.split, model.name), settings, device)
    _refuse_other_scores(subject)
    return subject


def _refuse_other_scores(subject: EvaluationTarget) -> None:
    if subject.table.is_file():
        known, wished = read_score_table(subject.table)[1].details, subject.info.details
        other_text = any(known.get(name) != wished.get(name) for name in TEXT_DETAILS)
        if known.get("weights") != wished["weights"] or other_text:
            what = "another prompt or limit" if known.get("weights") == wished["weights"] else "other weights"
            raise RunError(f"{subject.table} holds the scores of {what}; give these another name (model.name=...)")


def base_suffix(wanted: EvaluationSettings) -> str:
    """Return what a model's name gets where its weights are quantized, such as -int8."""
    return "" if wanted.base == "full" else f"-{wanted.base}"


def longest_text(other: OtherModelSettings, wanted: EvaluationSettings, titles: Sequence[str]) -> int:
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
        return wanted.max_seq_length
    room = 0
    if wanted.titles == "all" or wanted.generated == "check":
        tokenizer = load_tokenizer(str(other.path), revision=other.revision, subfolder=other.subfolder)
        encoded = tokenizer.backend.encode_batch([f": {title}" for title in titles], add_special_tokens=False)
        room = max(max(len(each.ids) for each in encoded), wanted.max_new_tokens or 0)
    return min(context - room, wanted.max_seq_length)


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
    if not is_file_name(name) or name in BASELINES:
        raise SettingsError(
            f"scores of {other.path} would be called {name!r}, which cannot be or is another table's name; give them "
            "a name (model.name=...)"
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


def _subject(
    model: ModelSettings, store: TokenStore, table: Path, settings: RunSettings, device: torch.device
) -> EvaluationTarget:
    wanted = settings.evaluation
    details = {
        "weights": weights_identity(model),
        "store": store.fingerprint,
        "max_seq_length": str(wanted.max_seq_length),
        "batch_size": str(wanted.batch_size),
        "precision": wanted.precision,
        "attention": settings.compute.attention,
        "loss_chunk_tokens": str(settings.compute.loss_chunk_tokens),
        "threads_per_rank": str(settings.ranks.threads_per_rank),
        "device": device.type,
        "torch": torch.__version__,
        **text_details(settings.template, store, wanted.split),
    }
    if wanted.base != "full":
        details["base"] = wanted.base
    info = ScoreTableInfo(
        model=model.name, split=wanted.split, careers=store.careers_fingerprint, code=__version__, details=details
    )
    return EvaluationTarget(model=model, store=store, table=table, info=info)
