"""Read pretrained weights straight into ZeRO-3 shards: each rank reads only the stretches that it holds.

transformers reads whole weights into every rank's memory first, 26 GB for 13B times the ranks of a host. Here the model
is made with empty shards (deepspeed.zero.Init), and a rank reads [start, start + numel) of each flattened weight from
the safetensors files, whose headers have the offsets of all tensors:

    weight   [ rank 0 ......... | rank 1 ......... | rank 2 .... pad ]
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from torch import Tensor

from laborllm_dist.config.model import ModelSettings
from laborllm_dist.distributed.context import DistributedContext
from laborllm_dist.distributed.library_internals import import_deepspeed, own_partition, partition_of, whole_shape
from laborllm_dist.errors import ModelError
from laborllm_dist.io.json_files import read_json_object
from laborllm_dist.models.file_record import FileRecord
from laborllm_dist.models.pretrained_config import open_causal_config, set_attention_dropout
from laborllm_dist.models.weight_checks import (
    RECORD,
    UNQUANTIZED,
    FileNames,
    check_dtype,
    check_left_over,
    untie,
)
from laborllm_dist.store.auto_classes import UNREADABLE, model_of
from laborllm_dist.store.hub import look_for_hub

ONE_FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
# Settings of config.json, and files next to it, that describe quantization.
QUANTIZED = ("quantization_config", "compression_config")
QUANTIZED_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
ONE_PICKLE, INDEX_OF_PICKLES = "pytorch_model.bin", "pytorch_model.bin.index.json"


def folder_of(settings: ModelSettings) -> Path:
    """Return the folder of a model's files, if its path is a folder."""
    return Path(settings.path or "") / (settings.subfolder or "")


def is_adapter(settings: ModelSettings) -> bool:
    """Return whether the path is an adapter's folder."""
    return (folder_of(settings) / "adapter_config.json").is_file()


def weights_folder(settings: ModelSettings) -> Path:
    """Return the folder of the model's files; download missing files of a hub repository.

    Raises:
        ModelError: if they cannot be downloaded.
    """
    assert settings.path is not None
    if Path(settings.path).is_dir():
        return folder_of(settings)
    look_for_hub(settings.path)
    inside = settings.subfolder or ""
    patterns = [f"{inside}/{each}".lstrip("/") for each in ("*.json", "*.safetensors", "tokenizer.model")]
    try:
        return Path(snapshot_download(settings.path, revision=settings.revision, allow_patterns=patterns)) / inside
    except (OSError, ValueError) as error:
        raise ModelError(
            f"no weights at {settings.path}: {str(error).strip().splitlines()[0]}", code="no-weights"
        ) from None


def holds_safetensors(folder: Path) -> bool:
    """Return whether a folder has a model's safetensors, in one file or several."""
    return (folder / ONE_FILE).is_file() or (folder / INDEX).is_file()


def check_unquantized(path: str, where: Mapping[str, str]) -> None:
    """Raise if weights are quantized already: training and scoring begin with the original ones.

    Args:
        path: folder or hub id.
        where: revision and subfolder.

    Raises:
        ModelError: naming the kind of quantization.
    """
    config, _ = transformers.PretrainedConfig.get_config_dict(path, **where)
    parts = [config, *(config.get(name) or {} for name in ("text_config", "llm_config"))]
    settings = next((part[name] for part in parts for name in QUANTIZED if isinstance(part.get(name), dict)), None)
    folder = Path(path) / where.get("subfolder", "")
    if settings is None and not (beside := [name for name in QUANTIZED_FILES if (folder / name).is_file()]):
        return
    kind = str(settings.get("quant_method") or settings.get("quant_algo") or "") if settings else beside[0]
    if settings and "bitsandbytes" in kind:
        kind += " in 4 bits" if settings.get("load_in_4bit") else " in 8 bits"
    raise ModelError(
        f"{path} holds weights that are quantized already ({kind or 'its config.json says so'}); {UNQUANTIZED}",
        code="already-quantized",
    )


def model_in_shards(
    settings: ModelSettings, *, dtype: torch.dtype, config: Mapping[str, Any], ranks: DistributedContext
) -> transformers.PreTrainedModel:
    """Return a pretrained model whose weights are ZeRO-3 shards from the start. Collective.

    Args:
        settings: of the model.
        dtype: of the weights.
        config: DeepSpeed's configuration.
        ranks: of the run.

    Raises:
        ModelError: if a tensor of the model is missing or has another shape, a tensor of the files is unused, or a file
        is damaged.
    """
    folder = weights_folder(settings)
    check_unquantized(str(folder), {})
    ranks.barrier()  # a rank may download for long what another one has cached, and zero.Init is collective
    shape = open_causal_config(str(folder))
    set_attention_dropout(shape, settings.attention_dropout)
    shape.dtype = dtype
    shape._name_or_path = settings.path
    check_sizes(shape, folder)
    if _holds_own_head(shape, folder, ranks):
        untie(shape)
    # check_sizes has imported the model's module: zero.Init wraps classes wrongly that are first imported inside it.
    with import_deepspeed().zero.Init(config_dict_or_path=dict(config), dtype=dtype):
        model: transformers.PreTrainedModel = model_of(shape, attn_implementation="sdpa")
    # zero.Init casts every buffer that is made inside it; RoPE's frequencies are fp32 in any precision.
    decoder = model.get_decoder()
    # DeepSpeed does not move tensors made outside: on the CPU, every forward would copy them.
    decoder.rotary_emb = type(decoder.rotary_emb)(config=shape).to(ranks.device)
    _fill(model, folder, dtype, ranks)
    return model


def _fill(model: transformers.PreTrainedModel, folder: Path, dtype: torch.dtype, ranks: DistributedContext) -> None:
    file_of, record = files_by_tensor(folder), FileRecord(dtype)
    names, opened = FileNames(file_of), _OpenedFiles(folder)
    with damage_is_told(folder):
        record.shapes.update({name: opened.shape(name, file) for name, file in file_of.items()})
        stored_as = _stored_names(model, names, folder)
        for parameter, stored_name in stored_as:
            file = file_of[stored_name]
            stored = opened.slice(stored_name, file)
            shape = whole_shape(parameter)
            if tuple(stored.get_shape()) != shape:
                raise ModelError(
                    f"{folder / file}: {stored_name} has shape {stored.get_shape()}, the model {list(shape)}",
                    code="shape-mismatch",
                )
            start, end = partition_of(parameter, ranks.rank)
            values_N = flat_stretch(stored, start, end)
            record.add_stretch(stored_name, shape, values_N, start)
            shard = own_partition(parameter)
            assert shard is not None  # weights on a disk are read whole first (models/loading.py)
            what = f"the weights at {folder}: {stored_name}"
            check_dtype(model, shard, record.tensors[stored_name], dtype, what)
            shard[: end - start].copy_(values_N)
            shard[end - start :].zero_()
    check_left_over(model, record.shapes, {name for _, name in stored_as}, folder)
    setattr(model, RECORD, record)


def _stored_names(model: transformers.PreTrainedModel, names: FileNames, folder: Path) -> list[tuple[Any, str]]:
    """Return the sharded weights of a model, each with its tensor's name in the files; tied ones occur once.

    Raises:
        ModelError: if the files lack some.
    """
    aliases: dict[int, tuple[Any, list[str]]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        aliases.setdefault(id(parameter), (parameter, []))[1].append(name)
    stored, missing = [], []
    for parameter, of_parameter in aliases.values():
        file_names = [file_name for name in of_parameter if (file_name := names.of(name)) is not None]
        missing += [] if file_names else of_parameter[:1]
        stored += [(parameter, file_name) for file_name in file_names]  # several if tied weights are stored twice
    if missing:
        raise ModelError(
            f"the weights at {folder} lack {len(missing)} tensors of the model, first {missing[0]}",
            code="missing-tensors",
        )
    return stored


class _OpenedFiles:
    """The safetensors files of a folder, each of which is opened once."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._opened = folder, dict[str, Any]()

    def slice(self, name: str, file: str) -> Any:
        """Return a tensor that has not been read yet."""
        if file not in self._opened:
            self._opened[file] = safe_open(self._folder / file, framework="pt")
        return self._opened[file].get_slice(name)

    def shape(self, name: str, file: str) -> tuple[int, ...]:
        """Return the shape of a tensor, from its file's header."""
        return tuple(self.slice(name, file).get_shape())


@contextlib.contextmanager
def damage_is_told(folder: Path) -> Iterator[None]:
    """Translate errors on damaged files into a ModelError.

    Raises:
        ModelError: with the reason.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"the weights at {folder} are damaged: {str(error).strip().splitlines()[0]}", code="damaged-weights"
        ) from None


def check_sizes(config: Any, folder: Path) -> None:
    """Check that a configuration's sizes are those of the files, before allocating memory for the model.

    Raises:
        ModelError: naming the setting or the first tensor that differs.
    """
    file_of, opened = files_by_tensor(folder), _OpenedFiles(folder)
    layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    if layers is not None and not 0 < layers <= len(file_of):
        raise ModelError(
            f"{folder}: config.json says num_hidden_layers={layers}, and the files hold {len(file_of)} tensors, first "
            f"{next(iter(sorted(file_of)), None)}; look whether config.json belongs to these files",
            code="layer-count-mismatch",
        )
    try:
        with torch.device("meta"):
            # Eager, which every model type has without further packages, whatever config.json says.
            model: Any = model_of(config, attn_implementation="eager")
    except (*UNREADABLE, RuntimeError, AssertionError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{folder}: config.json makes no model: {reason}", code="invalid-model-config") from None
    names = FileNames(file_of)
    with damage_is_told(folder):
        for name, parameter in model.named_parameters():
            stored_name = names.of(name)
            if stored_name is None:
                continue
            shape = opened.shape(stored_name, file_of[stored_name])
            if shape != tuple(parameter.shape):
                raise ModelError(
                    f"the weights at {folder}: {name} has shape {list(shape)}, the model of config.json "
                    f"{list(parameter.shape)}",
                    code="shape-mismatch",
                )


def _holds_own_head(config: Any, folder: Path, ranks: DistributedContext) -> bool:
    """Return whether the files hold an output layer that differs from the embedding it is tied to. Collective.

    Each rank compares the stretch that it will load.
    """
    if not getattr(config, "tie_word_embeddings", False):
        return False
    file_of, opened = files_by_tensor(folder), _OpenedFiles(folder)
    names = FileNames(file_of)
    pair = [names.of(name) for name in ("lm_head.weight", "model.embed_tokens.weight")]
    if pair[0] is None or pair[1] is None or pair[0] == pair[1]:
        return False
    with damage_is_told(folder):
        head, embedding = (opened.slice(name, file_of[name]) for name in pair if name is not None)
        differ = list(head.get_shape()) != list(embedding.get_shape())
        if not differ:
            numel = math.prod(head.get_shape())
            size = -(-numel // ranks.world_size)
            start, end = min(size * ranks.rank, numel), min(size * (ranks.rank + 1), numel)
            differ = not torch.equal(flat_stretch(head, start, end), flat_stretch(embedding, start, end))
    return any(ranks.share(differ))  # ranks take different times to read


def flat_stretch(stored: Any, start: int, end: int) -> Tensor:
    """Return elements [start, end) of a flattened tensor of a safetensors file; read only the rows that hold them."""
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
    """Check a folder's index, on which transformers would fail with an obscure error.

    Raises:
        ModelError: if it is damaged, or names a file that is not there.
    """
    folder = folder_of(settings)
    single, index = (ONE_FILE, INDEX) if settings.weights == "safetensors" else (ONE_PICKLE, INDEX_OF_PICKLES)
    if not (folder / single).is_file() and (folder / index).is_file():
        read_index(folder / index)


def read_index(path: Path) -> dict[str, str]:
    """Return the file of every tensor, from the index of the folder.

    Raises:
        ModelError: if it is damaged, or names a file that is not there.
    """
    try:
        index = read_json_object(path)
        file_of = {str(name): str(file) for name, file in index["weight_map"].items()}
        dict(index["metadata"])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ModelError(
            f"{path} is damaged: expected metadata, and a weight_map of tensors; fetch it again",
            code="damaged-weight-index",
        ) from None
    if missing := sorted(file for file in set(file_of.values()) if not (path.parent / file).is_file()):
        raise ModelError(
            f"{path.parent} lacks {len(missing)} files of weights that {path.name} names, first {missing[0]}",
            code="missing-weight-files",
        )
    return file_of


def files_of_weights(folder: Path, weights: str) -> list[Path]:
    """Return the files to open for a model's weights: one whole file, or those that an index names.

    A folder may have the same weights twice, as Mistral's do (consolidated.safetensors).

    Args:
        folder: of the model.
        weights: safetensors or pickle.

    Raises:
        ModelError: if the index is damaged, or names a missing file.
    """
    single, index = (ONE_FILE, INDEX) if weights == "safetensors" else (ONE_PICKLE, INDEX_OF_PICKLES)
    if (folder / single).is_file():
        return [folder / single]
    if not (folder / index).is_file():
        return []
    return [folder / name for name in sorted(set(read_index(folder / index).values()))]


def files_by_tensor(folder: Path) -> dict[str, str]:
    """Return the file of every tensor; one whole file takes precedence over an index, as in transformers.

    Raises:
        ModelError: if there are no weights, or they are damaged.
    """
    if not (folder / ONE_FILE).is_file() and (folder / INDEX).is_file():
        return read_index(folder / INDEX)
    try:
        with safe_open(folder / ONE_FILE, framework="pt") as file:
            return dict.fromkeys(file.keys(), ONE_FILE)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"cannot open the weights at {folder}: {str(error).strip().splitlines()[0]}", code="unreadable-weights"
        ) from None
