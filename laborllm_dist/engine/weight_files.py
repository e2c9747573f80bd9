"""Pretrained weights on their way into ZeRO-3 shards: each rank reads the stretches it holds, and nothing else.

transformers reads whole weights into every rank's memory first, 26 GB for 13B times the ranks of a host. Here the model
is made of empty shards (deepspeed.zero.Init), and a rank reads [start, start + numel) of each flattened weight out of
the safetensors files, whose header says where every tensor lies:

    weight   [ rank 0 ......... | rank 1 ......... | rank 2 .... pad ]
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from torch import Tensor

from laborllm_dist.engine.libraries import import_deepspeed
from laborllm_dist.engine.model_config import open_causal_config, set_attention_dropout
from laborllm_dist.engine.ranks import Ranks
from laborllm_dist.engine_settings import ModelSettings
from laborllm_dist.errors import ModelError
from laborllm_dist.tokens.auto_classes import model_of

ONE_FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
ONE_PICKLE, INDEX_OF_PICKLES = "pytorch_model.bin", "pytorch_model.bin.index.json"


def folder_of(settings: ModelSettings) -> Path:
    """Return the folder of a model's files, where its path is a folder."""
    return Path(settings.path or "") / (settings.subfolder or "")


def is_adapter(settings: ModelSettings) -> bool:
    """Return whether the weights are an adapter's folder."""
    return (folder_of(settings) / "adapter_config.json").is_file()


def weights_folder(settings: ModelSettings) -> Path:
    """Return the folder with the model's files; those of a hub repository are downloaded where they are missing.

    Raises:
        ModelError: if they cannot be had.
    """
    assert settings.path is not None
    if Path(settings.path).is_dir():
        return folder_of(settings)
    inside = settings.subfolder or ""
    patterns = [f"{inside}/{each}".lstrip("/") for each in ("*.json", "*.safetensors", "tokenizer.model")]
    try:
        return Path(snapshot_download(settings.path, revision=settings.revision, allow_patterns=patterns)) / inside
    except (OSError, ValueError) as error:
        raise ModelError(f"no weights at {settings.path}: {str(error).strip().splitlines()[0]}") from None


def model_in_shards(
    settings: ModelSettings, *, dtype: torch.dtype, config: Mapping[str, Any], ranks: Ranks
) -> transformers.PreTrainedModel:
    """Return a pretrained model whose weights are ZeRO-3 shards from the start. Collective.

    Args:
        settings: of the model.
        dtype: of the weights.
        config: DeepSpeed's configuration.
        ranks: of the run.

    Raises:
        ModelError: if a tensor of the model is missing or has another shape, or a file is damaged.
    """
    folder = weights_folder(settings)
    ranks.barrier()  # one rank may fetch for long what another one has, and zero.Init is collective
    shape = open_causal_config(str(folder))
    set_attention_dropout(shape, settings.attention_dropout)
    shape.dtype = dtype
    shape._name_or_path = settings.path
    with import_deepspeed().zero.Init(config_dict_or_path=dict(config), dtype=dtype):
        model: transformers.PreTrainedModel = model_of(shape, attn_implementation="sdpa")
    # zero.Init narrows every buffer that is made inside it; the rotation's frequencies are fp32 in any precision.
    decoder = model.get_decoder()
    # DeepSpeed leaves what is made outside where it is: on the CPU they would be fetched in every forward.
    decoder.rotary_emb = type(decoder.rotary_emb)(config=shape).to(ranks.device)
    _fill(model, folder, ranks)
    return model


def _fill(model: transformers.PreTrainedModel, folder: Path, ranks: Ranks) -> None:
    file_of = files_by_tensor(folder)
    opened: dict[str, Any] = {}
    parameters: list[tuple[str, Any]] = list(model.named_parameters())
    if missing := [name for name, _ in parameters if name not in file_of]:
        raise ModelError(f"the weights at {folder} lack {len(missing)} tensors of the model, first {missing[0]}")
    try:
        for name, parameter in parameters:
            file = file_of[name]
            if file not in opened:
                opened[file] = safe_open(folder / file, framework="pt")
            stored = opened[file].get_slice(name)
            if tuple(stored.get_shape()) != tuple(parameter.ds_shape):
                raise ModelError(
                    f"{folder / file}: {name} has shape {stored.get_shape()}, the model {list(parameter.ds_shape)}"
                )
            start = min(parameter.partition_numel() * ranks.rank, parameter.ds_numel)
            end = min(start + parameter.partition_numel(), parameter.ds_numel)
            shard = parameter.ds_tensor.data.view(-1)
            shard[: end - start].copy_(flat_stretch(stored, start, end))
            shard[end - start :].zero_()
    except (OSError, SafetensorError) as error:
        raise ModelError(f"the weights at {folder} are damaged: {str(error).strip().splitlines()[0]}") from None


def flat_stretch(stored: Any, start: int, end: int) -> Tensor:
    """Return elements [start, end) of a tensor of a safetensors file as if it were flat, reading its rows alone."""
    if start >= end:
        return torch.empty(0)
    shape = stored.get_shape()
    width = 1
    for size in shape[1:]:
        width *= size
    first = start // width
    rows: Tensor = stored[first : -(-end // width)]
    return rows.reshape(-1)[start - first * width : end - first * width]


def check_index(settings: ModelSettings) -> None:
    """Refuse a folder's index that transformers would stumble over.

    Raises:
        ModelError: if it is damaged, or names a file that is not there.
    """
    folder = folder_of(settings)
    one, index = (ONE_FILE, INDEX) if settings.weights == "safetensors" else (ONE_PICKLE, INDEX_OF_PICKLES)
    if not (folder / one).is_file() and (folder / index).is_file():
        read_index(folder / index)


def read_index(path: Path) -> dict[str, str]:
    """Return the file of every tensor, as an index beside the files says.

    Raises:
        ModelError: if it is damaged, or names a file that is not there.
    """
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        file_of = {str(name): str(file) for name, file in index["weight_map"].items()}
        dict(index["metadata"])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ModelError(f"{path} is damaged: wanted metadata, and a weight_map of tensors; fetch it again") from None
    if missing := sorted(file for file in set(file_of.values()) if not (path.parent / file).is_file()):
        raise ModelError(
            f"{path.parent} lacks {len(missing)} files of weights that {path.name} names, first {missing[0]}"
        )
    return file_of


def files_by_tensor(folder: Path) -> dict[str, str]:
    """Return the file of every tensor; one whole file goes before an index, as in transformers.

    Raises:
        ModelError: if there are no weights, or they are damaged.
    """
    if not (folder / ONE_FILE).is_file() and (folder / INDEX).is_file():
        return read_index(folder / INDEX)
    try:
        with safe_open(folder / ONE_FILE, framework="pt") as file:
            return dict.fromkeys(file.keys(), ONE_FILE)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"no weights in {folder}: {str(error).strip().splitlines()[0]}") from None
