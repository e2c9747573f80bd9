"""Small models with random weights, of types that people have, saved as anybody's pretrained model."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

from laborllm_dist.config.model import ModelSettings

LLAMA_LIKE = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
GPT_LIKE = {"vocab_size": 96, "n_embd": 64, "n_layer": 2, "n_head": 4, "bos_token_id": 0, "eos_token_id": 1}
SHARDED_TYPES = ("Llama", "Mistral", "Qwen2", "Qwen3")
TYPES = (*SHARDED_TYPES, "GPTNeoX", "GPT2", "Mixtral", "Falcon", "Gemma", "OPT", "Bloom")


def saved_model(folder: Path, kind: str, *, dtype: torch.dtype = torch.float32, **more: Any) -> Path:
    """Save a model of a type, whose biases and norms are random too, and return its folder."""
    shape = dict(GPT_LIKE if kind == "GPT2" else LLAMA_LIKE)
    if kind == "OPT":
        shape.update(word_embed_proj_dim=64, ffn_dim=128)
    if kind == "Mixtral":
        shape.update(num_local_experts=4)
    torch.manual_seed(1)
    config = getattr(transformers, f"{kind}Config")(**{**shape, **more})
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.1)
    model.save_pretrained(folder)
    return folder


def settings_for(path: Path | str, weights: str = "safetensors", **more: Any) -> ModelSettings:
    """Return the settings that open a folder or a published model."""
    known = ModelSettings("m", str(path), None, None, None, 0.0, weights)  # type: ignore[arg-type]
    return dataclasses.replace(known, **more)


def change_config(folder: Path, **values: Any) -> None:
    """Write other values into a folder's config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def change_weights(folder: Path, **values: torch.Tensor | None) -> None:
    """Write tensors into a folder's file, by their names with __ for dots; None takes one out."""
    tensors = load_file(folder / "model.safetensors")
    for name, value in values.items():
        tensors.pop(name.replace("__", "."), None)
        if value is not None:
            tensors[name.replace("__", ".")] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
