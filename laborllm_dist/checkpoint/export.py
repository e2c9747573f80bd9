"""Write the weights of a checkpoint as a Hugging Face folder, which AutoModelForCausalLM opens. One process suffices.

LoRA weights are written twice: alone (run/adapter, a peft folder), and merged into the base (run/export).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
import transformers

from laborllm_dist.checkpoint.load import full_weights
from laborllm_dist.checkpoint.manifest import CheckpointManifest
from laborllm_dist.config.model import ModelSettings
from laborllm_dist.config.run import RunSettings
from laborllm_dist.io.files import write_json
from laborllm_dist.io.recorded_folder import (
    DamagedRecordError,
    check_replaceable,
    is_whole,
    read_record,
    replacing_folder,
    with_mark,
)
from laborllm_dist.io.run_directory import RunDirectory, weights_of_run
from laborllm_dist.models.file_record import FileRecord, recording
from laborllm_dist.models.lora import BASE, merged, write_adapter
from laborllm_dist.models.title_head import TITLE_HEAD, write_title_head
from laborllm_dist.models.weight_checks import check_loaded
from laborllm_dist.store.auto_classes import model_of, open_config, open_model
from laborllm_dist.store.tokenizer import hub_commit

ModelConfig: TypeAlias = "transformers.PretrainedConfig"
ADVICE = "move what you want to keep out of it, or give the run another name (name=...)"


def export_checkpoint(
    checkpoint: Path,
    manifest: CheckpointManifest,
    config: ModelConfig,
    tokenizer: Path,
    export: Path,
    card: str | None = None,
    titles: Sequence[str] = (),
) -> None:
    """Write config, weights (in the config's dtype), tokenizer and a model card to `export`, atomically.

    An output layer over titles is a file of its own; `titles` are the codes of its titles.

    Raises:
        DiskFullError: if there is no room; an older export is untouched.
        ForeignFileError: if files that no run has written lie there.
    """
    dtype = _dtype_of(config)
    with _writing_folder(export, tokenizer, _origin(manifest)) as partial:
        with torch.device("meta"):
            model = model_of(config)
        weights = {name: value.to(dtype) for name, value in full_weights(checkpoint, manifest)}
        _write_head(weights.pop(TITLE_HEAD, None), titles, partial)
        model.save_pretrained(partial, state_dict=weights)
        _write_card(partial, card)


def export_adapter(
    saved: tuple[Path, CheckpointManifest],
    settings: RunSettings,
    config: ModelConfig,
    tokenizer: Path,
    run: RunDirectory,
    card: str | None = None,
    titles: Sequence[str] = (),
) -> None:
    """Write the LoRA weights alone, and merged into the base as it is on disk, unquantized; each with the model card.

    Each has the output layer over titles too, if there is one.

    Args:
        saved: checkpoint and its manifest.
        settings: of the run.
        config: of the base.
        tokenizer: folder.
        run: whose folders are written.
        card: the model card; None: none.
        titles: codes of the titles of an output layer over them.

    Raises:
        DiskFullError: if there is no room; older exports are untouched.
        ForeignFileError: if files that no run has written lie there.
    """
    checkpoint, manifest = saved
    dtype, base = _dtype_of(config), settings.model
    place = place_of_base(base)
    where = {"path": place.path, "revision": place.revision, "subfolder": place.subfolder}
    facts = {**_origin(manifest), BASE: {**where, "weights": weights_of_run(run)}}
    additions = dict(full_weights(checkpoint, manifest))
    head = additions.pop(TITLE_HEAD, None)
    head = None if head is None else head.to(dtype)
    with _writing_folder(run.adapter, tokenizer, facts) as partial:
        write_adapter(additions.items(), settings.adapter, place, dtype, partial)
        _write_head(head, titles, partial)
        _write_card(partial, card)
    with _writing_folder(run.export, tokenizer, _origin(manifest)) as partial:
        record = FileRecord(dtype)
        model = recording(record, open_model)(
            str(base.path),
            revision=base.revision,
            subfolder=base.subfolder,
            dtype=dtype,
            attn_implementation="eager",  # no forward is computed, so config.json's choice does not matter
            use_safetensors=base.weights == "safetensors",
        )
        check_loaded(model, record, base.path)
        merged(model, run.adapter).save_pretrained(partial)
        _write_head(head, titles, partial)
        _write_card(partial, card)


def _write_head(weight: torch.Tensor | None, titles: Sequence[str], folder: Path) -> None:
    if weight is not None:
        write_title_head(folder, weight, titles)


def _write_card(folder: Path, card: str | None) -> None:
    if card is not None:
        (folder / "README.md").write_text(with_mark(card), encoding="utf-8")  # in place of peft's own


def check_exports(run: RunDirectory, *, unless_written: bool = False) -> None:
    """Check, before any work, that the folders of this name's exports have no foreign files.

    Args:
        run: whose export is to be written.
        unless_written: skip exports that a run has written: the run may be finished, and then nothing is replaced,
            whatever files people have added (a README.md, a GGUF).

    Raises:
        ForeignFileError: naming the first such file.
    """
    for folder in (run.export, run.adapter):
        with contextlib.suppress(DamagedRecordError):
            if unless_written and (record := read_record(folder)) is not None and "run" in record.facts:
                continue
        check_replaceable(folder, ADVICE)


@contextlib.contextmanager
def _writing_folder(folder: Path, tokenizer: Path, facts: Mapping[str, Any]) -> Iterator[Path]:
    """Yield a temporary folder with the tokenizer, and rename it to `folder` if the block succeeds."""
    with replacing_folder(folder, facts, ADVICE) as partial:
        shutil.copytree(tokenizer, partial, dirs_exist_ok=True)
        yield partial
        if (partial / "config.json").is_file():
            _with_both_rope_forms(partial / "config.json")


def _origin(manifest: CheckpointManifest) -> dict[str, Any]:
    return {"run": manifest.run, "step": manifest.step}


def place_of_base(base: ModelSettings) -> ModelSettings:
    """Return a permanent reference to an adapter's base: a hub repository with its commit, a folder's absolute path."""
    path = Path(str(base.path))
    if path.is_dir():
        # A relative path such as models/llama would be taken for a hub id in another working directory.
        absolute = (path / (base.subfolder or "")).absolute()
        return dataclasses.replace(base, path=str(absolute), revision=None, subfolder=None)
    commit = hub_commit(str(base.path), revision=base.revision, subfolder=base.subfolder, file="config.json")
    return dataclasses.replace(base, revision=commit)


def _dtype_of(config: ModelConfig) -> torch.dtype:
    return config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32


def finished_step(run: RunDirectory, settings: RunSettings) -> int | None:
    """Return the step of all of a run's exports; None if one is missing or damaged, or they differ."""
    folders = [run.export] if settings.adapter.kind == "none" else [run.export, run.adapter]
    steps = {exported_step(folder, run.fingerprint) for folder in folders}
    return steps.pop() if len(steps) == 1 else None


def exported_step(export: Path, run: str) -> int | None:
    """Return the step of an export; None if it is missing, damaged, of another run, or does not record its step."""
    try:
        record = read_record(export)
        if record is None or record.facts["run"] != run or not is_whole(export, record):
            return None
        return int(record.facts["step"])
    except (ValueError, KeyError, TypeError):
        return None


def _with_both_rope_forms(path: Path) -> None:
    """Add the RoPE entries of transformers 4 to rope_parameters; without them it silently uses its defaults.

    Transformers 5 prefers these entries where present, so they are kept only if it reads the same parameters from them.
    """
    config = json.loads(path.read_text(encoding="utf-8"))
    older = {**config, **rope_of_transformers_4(config)}
    if older == config:
        return
    write_json(path, older)
    loaded = open_config(path.parent)
    if not _holds(getattr(loaded, "rope_parameters", None), config["rope_parameters"]):
        write_json(path, {**older, "rope_scaling": None})


def rope_of_transformers_4(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config.json entries of transformers 4 that are equivalent to `rope_parameters` of transformers 5.

    In transformers 4, theta is next to the scaling; so are the share of a head that is rotated and longrope's original
    context. GPT-NeoX uses different names. Where layer types have different rotations, the scaling is that of full
    attention, and sliding layers have another theta.
    """
    rope = config.get("rope_parameters") or {}
    older: dict[str, Any] = {}
    if "full_attention" in rope:
        sliding = rope.get("sliding_attention") or {}
        rope = rope["full_attention"] or {}
        if sliding.get("rope_theta") != rope.get("rope_theta"):
            older["rope_local_base_freq"] = sliding.get("rope_theta")
    if "rope_theta" not in rope:
        return older
    older["rope_theta"] = rope["rope_theta"]
    share = rope.get("partial_rotary_factor")
    if share is not None:
        older["partial_rotary_factor"] = share
    if config.get("model_type") == "gpt_neox":
        older |= {"rotary_emb_base": rope["rope_theta"], "rotary_pct": 0.25 if share is None else share}
    kind = rope.get("rope_type", "default")
    scaling = {key: value for key, value in rope.items() if key not in ("rope_theta", "partial_rotary_factor")}
    if kind == "longrope":
        older["original_max_position_embeddings"] = scaling.get("original_max_position_embeddings")
        if config.get("model_type") == "phi3":  # phi3 accepts exactly these three entries
            scaling = {name: scaling.get(name) for name in ("short_factor", "long_factor")}
        scaling["type"] = kind
    older["rope_scaling"] = None if kind == "default" else scaling
    return older


def _holds(actual: Any, expected: Mapping[str, Any]) -> bool:
    """Return whether RoPE parameters contain the expected entries; others may differ."""
    if not isinstance(actual, Mapping):
        return False
    return all(
        _holds(actual.get(key), value) if isinstance(value, Mapping) else actual.get(key) == value
        for key, value in expected.items()
    )
