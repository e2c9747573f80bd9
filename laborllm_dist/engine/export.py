"""Write the weights of a checkpoint as a Hugging Face folder, which AutoModelForCausalLM opens. No ranks needed.

What LoRA has learnt is written twice: alone (run/adapter, a peft folder), and merged into the base (run/export).
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import torch
import transformers

from laborllm_dist.engine.adapters import ADAPTER_FILE, merged, write_adapter
from laborllm_dist.engine.loaded_weights import FileRecord, check_loaded, recording
from laborllm_dist.engine.manifest import CheckpointManifest
from laborllm_dist.engine.restore import full_weights
from laborllm_dist.engine_settings import ModelSettings
from laborllm_dist.errors import ModelError
from laborllm_dist.files import disk_errors_are_said, flush_to_disk, sha256_of_all, write_json
from laborllm_dist.run_folder import RunFolder
from laborllm_dist.settings import RunSettings

ModelConfig: TypeAlias = "transformers.PretrainedConfig"
ORIGIN = "laborllm_dist.json"
PICKLES = "pytorch_model*.bin"


def export_checkpoint(
    checkpoint: Path, manifest: CheckpointManifest, config: ModelConfig, tokenizer: Path, export: Path
) -> None:
    """Write config, weights (in the config's dtype) and tokenizer to `export`, atomically.

    Raises:
        DiskFull: if there is no room; an older export is untouched.
    """
    dtype = _dtype_of(config)
    with _writing_folder(export, tokenizer, manifest) as partial:
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(config)
        weights = {name: value.to(dtype) for name, value in full_weights(checkpoint, manifest)}
        model.save_pretrained(partial, state_dict=weights)


def export_adapter(
    saved: tuple[Path, CheckpointManifest],
    settings: RunSettings,
    config: ModelConfig,
    tokenizer: Path,
    run: RunFolder,
) -> None:
    """Write what LoRA has learnt alone, and merged into the base as it is on disk, unquantised.

    Args:
        saved: checkpoint and its manifest.
        settings: of the run.
        config: of the base.
        tokenizer: folder.
        run: whose folders are written.

    Raises:
        DiskFull: if there is no room; older exports are untouched.
    """
    checkpoint, manifest = saved
    dtype, base = _dtype_of(config), settings.model
    with _writing_folder(run.adapter, tokenizer, manifest) as partial:
        write_adapter(full_weights(checkpoint, manifest), settings.adapter, _place_of(base), dtype, partial)
    with _writing_folder(run.export, tokenizer, manifest) as partial:
        record = FileRecord(dtype)
        model = recording(record, transformers.AutoModelForCausalLM.from_pretrained)(
            base.path,
            revision=base.revision or "main",
            subfolder=base.subfolder or "",
            dtype=dtype,
            use_safetensors=base.weights == "safetensors",
        )
        check_loaded(model, record, base.path)
        merged(model, run.adapter).save_pretrained(partial)


@contextlib.contextmanager
def _writing_folder(folder: Path, tokenizer: Path, manifest: CheckpointManifest) -> Iterator[Path]:
    """Give a folder that holds the tokenizer to write to, and rename it to `folder` when the block ends well."""
    partial = folder.with_name(folder.name + ".partial")
    with disk_errors_are_said(folder):
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(tokenizer, partial)
        yield partial
        if (partial / "config.json").is_file():
            _with_both_rope_forms(partial / "config.json")
        write_json(partial / ORIGIN, {"run": manifest.run, "step": manifest.step})
        for path in partial.iterdir():
            flush_to_disk(path)
        flush_to_disk(partial)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
        flush_to_disk(folder.parent)


def _place_of(base: ModelSettings) -> str:
    """Return where an adapter's base is found; peft knows no subfolders of hub repositories."""
    path = Path(str(base.path))
    return str(path / (base.subfolder or "")) if path.is_dir() else str(base.path)


def _dtype_of(config: ModelConfig) -> torch.dtype:
    return config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32


def exported_step(export: Path, run: str) -> int | None:
    """Return the step an export was made from; None if there is none of this run, or it does not say."""
    try:
        origin = json.loads((export / ORIGIN).read_bytes())
        return int(origin["step"]) if origin["run"] == run else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def weights_fingerprint(folder: Path, weights: str) -> str:
    """Return 16 hexadecimal digits that stand for the weights and configuration of a model's or adapter's folder.

    Args:
        folder: of the model.
        weights: what is opened: safetensors or pickle.

    Raises:
        ModelError: if it holds none of these.
    """
    if (folder / ADAPTER_FILE).is_file():
        return sha256_of_all([folder / "adapter_config.json", folder / ADAPTER_FILE])
    pattern = "*.safetensors" if weights == "safetensors" else PICKLES
    files = [folder / "config.json", *sorted(folder.glob(pattern))]
    if len(files) < 2 or not files[0].is_file():
        others = "; model.weights=pickle opens its *.bin files, which can run code of whoever made them"
        hint = others if weights == "safetensors" and any(folder.glob(PICKLES)) else ""
        raise ModelError(f"{folder} is not a model folder: wanted config.json and {pattern}{hint}")
    return sha256_of_all(files)


def _with_both_rope_forms(path: Path) -> None:
    """Write rope_theta beside rope_parameters: transformers 4 reads only the former, or takes 10,000 silently."""
    config = json.loads(path.read_text(encoding="utf-8"))
    rope = config.get("rope_parameters") or {}
    if "rope_theta" in rope:
        write_json(path, {**config, "rope_theta": rope["rope_theta"]})
