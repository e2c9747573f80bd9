"""Write the weights of a checkpoint as a Hugging Face folder, which AutoModelForCausalLM opens. No ranks needed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TypeAlias

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from laborllm_dist.engine.checkpoint import CheckpointManifest, full_weights
from laborllm_dist.errors import ModelError
from laborllm_dist.files import flush_to_disk, no_room_is_said, sha256_of_all, write_json

ModelConfig: TypeAlias = PretrainedConfig
ORIGIN = "laborllm_dist.json"


def export_checkpoint(
    checkpoint: Path, manifest: CheckpointManifest, config: ModelConfig, tokenizer: Path, export: Path
) -> None:
    """Write config, weights (in the config's dtype) and tokenizer to `export`, atomically.

    Raises:
        DiskFull: if there is no room; an older export is untouched.
    """
    partial = export.with_name(export.name + ".partial")
    dtype = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    with no_room_is_said(export):
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(tokenizer, partial)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        weights = {name: value.to(dtype) for name, value in full_weights(checkpoint, manifest)}
        model.save_pretrained(partial, state_dict=weights)
        _with_both_rope_forms(partial / "config.json")
        write_json(partial / ORIGIN, {"run": manifest.run, "step": manifest.step})
        for path in partial.iterdir():
            flush_to_disk(path)
        shutil.rmtree(export, ignore_errors=True)
        partial.rename(export)
        flush_to_disk(export.parent)


def exported_step(export: Path, run: str) -> int | None:
    """Return the step an export was made from; None if there is none of this run."""
    try:
        origin = json.loads((export / ORIGIN).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return int(origin["step"]) if origin["run"] == run else None


def weights_fingerprint(folder: Path) -> str:
    """Return 16 hexadecimal digits that stand for the weights and configuration of a model folder.

    Raises:
        ModelError: if it holds no safetensors.
    """
    files = [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
    if len(files) < 2 or not files[0].is_file():
        raise ModelError(f"{folder} is not a model folder: wanted config.json and *.safetensors")
    return sha256_of_all(files)


def _with_both_rope_forms(path: Path) -> None:
    """Write rope_theta beside rope_parameters: transformers 4 reads only the former, or takes 10,000 silently."""
    config = json.loads(path.read_text(encoding="utf-8"))
    rope = config.get("rope_parameters") or {}
    if "rope_theta" in rope:
        write_json(path, {**config, "rope_theta": rope["rope_theta"]})
