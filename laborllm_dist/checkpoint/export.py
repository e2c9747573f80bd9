"""Write the weights of a checkpoint as a Hugging Face folder, which AutoModelForCausalLM opens. No ranks needed.

What LoRA has learned is written twice: alone (run/adapter, a peft folder), and merged into the base (run/export).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Iterator, Mapping
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
)
from laborllm_dist.io.run_directory import RunDirectory, weights_of_run
from laborllm_dist.models.file_record import FileRecord, recording
from laborllm_dist.models.lora import BASE, merged, write_adapter
from laborllm_dist.models.weight_checks import check_loaded
from laborllm_dist.store.auto_classes import model_of, open_config, open_model
from laborllm_dist.store.tokenizer import hub_commit

ModelConfig: TypeAlias = "transformers.PretrainedConfig"
ADVICE = "move what you want to keep out of it, or give the run another name (name=...)"


def export_checkpoint(
    checkpoint: Path, manifest: CheckpointManifest, config: ModelConfig, tokenizer: Path, export: Path
) -> None:
    """Write config, weights (in the config's dtype) and tokenizer to `export`, atomically.

    Raises:
        DiskFullError: if there is no room; an older export is untouched.
        ForeignFileError: if files that no run has written lie there.
    """
    dtype = _dtype_of(config)
    with _writing_folder(export, tokenizer, _origin(manifest)) as partial:
        with torch.device("meta"):
            model = model_of(config)
        weights = {name: value.to(dtype) for name, value in full_weights(checkpoint, manifest)}
        model.save_pretrained(partial, state_dict=weights)


def export_adapter(
    saved: tuple[Path, CheckpointManifest],
    settings: RunSettings,
    config: ModelConfig,
    tokenizer: Path,
    run: RunDirectory,
) -> None:
    """Write what LoRA has learned alone, and merged into the base as it is on disk, unquantized.

    Args:
        saved: checkpoint and its manifest.
        settings: of the run.
        config: of the base.
        tokenizer: folder.
        run: whose folders are written.

    Raises:
        DiskFullError: if there is no room; older exports are untouched.
        ForeignFileError: if files that no run has written lie there.
    """
    checkpoint, manifest = saved
    dtype, base = _dtype_of(config), settings.model
    place = place_of_base(base)
    where = {"path": place.path, "revision": place.revision, "subfolder": place.subfolder}
    facts = {**_origin(manifest), BASE: {**where, "weights": weights_of_run(run)}}
    with _writing_folder(run.adapter, tokenizer, facts) as partial:
        write_adapter(full_weights(checkpoint, manifest), settings.adapter, place, dtype, partial)
    with _writing_folder(run.export, tokenizer, _origin(manifest)) as partial:
        record = FileRecord(dtype)
        model = recording(record, open_model)(
            str(base.path),
            revision=base.revision,
            subfolder=base.subfolder,
            dtype=dtype,
            attn_implementation="eager",  # nothing is computed with it, whatever config.json asks for
            use_safetensors=base.weights == "safetensors",
        )
        check_loaded(model, record, base.path)
        merged(model, run.adapter).save_pretrained(partial)


def check_exports(run: RunDirectory, *, unless_written: bool = False) -> None:
    """Refuse to train under a name whose export holds what no run has written, before any work is done.

    Args:
        run: whose export is to be written.
        unless_written: pass over exports that a run has written: the run may be finished, and then nothing is replaced,
            whatever people have put beside its files (a README.md, a GGUF).

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
    """Give a folder that holds the tokenizer to write to, and rename it to `folder` when the block ends well."""
    with replacing_folder(folder, facts, ADVICE) as partial:
        shutil.copytree(tokenizer, partial, dirs_exist_ok=True)
        yield partial
        if (partial / "config.json").is_file():
            _with_both_rope_forms(partial / "config.json")


def _origin(manifest: CheckpointManifest) -> dict[str, Any]:
    return {"run": manifest.run, "step": manifest.step}


def place_of_base(base: ModelSettings) -> ModelSettings:
    """Return where an adapter's base is found ever after: a hub repository by its commit, a folder as a whole path."""
    path = Path(str(base.path))
    if path.is_dir():
        # Without its beginning, models/llama would be a hub id where it is opened from another folder.
        whole = (path / (base.subfolder or "")).absolute()
        return dataclasses.replace(base, path=str(whole), revision=None, subfolder=None)
    commit = hub_commit(str(base.path), revision=base.revision, subfolder=base.subfolder, file="config.json")
    return dataclasses.replace(base, revision=commit)


def _dtype_of(config: ModelConfig) -> torch.dtype:
    return config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32


def finished_step(run: RunDirectory, settings: RunSettings) -> int | None:
    """Return the step that all that a run exports was made from; None if something is missing or damaged."""
    folders = [run.export] if settings.adapter.kind == "none" else [run.export, run.adapter]
    steps = {exported_step(folder, run.fingerprint) for folder in folders}
    return steps.pop() if len(steps) == 1 else None


def exported_step(export: Path, run: str) -> int | None:
    """Return the step an export was made from; None if there is none of this run, it does not say, or is damaged."""
    try:
        record = read_record(export)
        if record is None or record.facts["run"] != run or not is_whole(export, record):
            return None
        return int(record.facts["step"])
    except (ValueError, KeyError, TypeError):
        return None


def _with_both_rope_forms(path: Path) -> None:
    """Write what transformers 4 reads of rotations beside rope_parameters, without which it takes others silently.

    Transformers 5 prefers these forms where it meets them, so they stay only if it reads the same out of them.
    """
    config = json.loads(path.read_text(encoding="utf-8"))
    older = {**config, **rope_of_transformers_4(config)}
    if older == config:
        return
    write_json(path, older)
    found = open_config(path.parent)
    if not _holds(getattr(found, "rope_parameters", None), config["rope_parameters"]):
        write_json(path, {**older, "rope_scaling": None})


def rope_of_transformers_4(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of config.json that tell transformers 4 what `rope_parameters` tell transformers 5.

    There, theta stands beside the scaling; so does the share of a head that is rotated, and, of longrope, the original
    context. GPT-NeoX has names of its own. Where kinds of layers have rotations of their own, the scaling is that of
    full attention, and sliding layers have another theta.
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
        if config.get("model_type") == "phi3":  # which takes these three and no other
            scaling = {name: scaling.get(name) for name in ("short_factor", "long_factor")}
        scaling["type"] = kind
    older["rope_scaling"] = None if kind == "default" else scaling
    return older


def _holds(found: Any, wanted: Mapping[str, Any]) -> bool:
    """Return whether parameters of rotations say what is wanted, whatever else they say."""
    if not isinstance(found, Mapping):
        return False
    return all(
        _holds(found.get(key), value) if isinstance(value, Mapping) else found.get(key) == value
        for key, value in wanted.items()
    )
