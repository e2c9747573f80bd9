"""Check that a model has exactly the weights of its files, with checksums computed while reading.

Whole weights are compared after loading (`check_loaded`), and again after DeepSpeed has partitioned them
(`check_in_place`): there the checksums of the ranks' stretches add up to that of the file.

Weights with higher precision than the file are compared in the file's precision, and must equal its values exactly;
weights with lower precision are compared in the model's. Of quantized weights, the scales of rows or blocks must equal
those computed from the file, and the sums of rows may differ by rounding only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from laborllm_dist.distributed.context import DistributedContext
from laborllm_dist.distributed.library_internals import is_partitioned, is_saved_buffer, own_partition, partition_of
from laborllm_dist.errors import ModelError, PeerFailedError
from laborllm_dist.models.file_record import NF4_BLOCK, FileRecord, FileTensor
from laborllm_dist.models.weight_checksums import MODULUS, Checksum, checksum, checksum_in

# Attribute with the record of a model's files, until the last check.
RECORD = "_laborllm_file_record"
# Buffers in older files: rotary frequencies, causal masks and positions, all functions of the config.
# name pattern: numbers of dimensions
NOT_WEIGHTS: Mapping[str, tuple[int, ...]] = {
    r"(^|\.)(rotary_emb|rotary_pos_emb|rope)\.inv_freq$": (1,),
    r"(^|\.)rotary_emb\.(cos|sin)_cached$": (2, 4),
    r"(^|\.)(attn|attention|self_attn|self_attention)\.bias$": (2, 4),  # a causal mask; a bias has one dimension
    r"(^|\.)(attn|attention|self_attn|self_attention)\.masked_bias$": (0, 1),
    r"(^|\.)position_ids$": (1, 2),
}
# nf4 rounds to at most half of its largest gap, 0.304 of a block's largest weight; int8 to half of 1/127 of a row's,
# here 1 of them, since the products that follow are of half precision.
ROUNDING = {"nf4": 0.16, "int8": 1 / 127}
ADAPTER = "default"  # peft's name of the only adapter, a part of the names of all its weights
# Of whole models, which a decoder's own folder leaves out.
PREFIXES = ("model.", "transformer.", "gpt_neox.")
ADVICE = "read it again, and where this comes again, report it with the versions of torch, transformers and deepspeed"
UNQUANTIZED = "take the original weights, which adapter=qlora or adapter=lora_int8 quantizes as they are read"


def check_loaded(model: transformers.PreTrainedModel, record: FileRecord, where: object) -> None:
    """Check that a model has exactly the tensors of its files, all of them.

    Stores the record on the model, for `check_in_place`.

    Args:
        model: whole on this rank.
        record: of its files.
        where: path of the files, for the message.

    Raises:
        ModelError: naming the first tensor that is unused, missing or different.
    """
    tensor_of = dict(_saved_tensors(model))
    names = FileNames(record.shapes)
    file_of = {name: file for name in tensor_of if (file := names.of(name)) is not None}
    paired = {id(tensor_of[name]) for name in file_of}  # tied weights may have one of their names in the files
    apart = {name: value for name, value in tensor_of.items() if id(value) not in paired}
    files_used = set(file_of.values())
    for name, value in _as_in_files(model, apart):
        if (file := names.of(name)) is None:
            if is_no_weight(name, value.shape):
                continue
            raise ModelError(f"the weights at {where} lack a tensor of the model, {name}", code="missing-tensors")
        tensor_of[name] = value
        file_of[name] = file
        files_used.add(file)
    check_left_over(model, record.shapes, files_used, where)
    quantized = {f"{name}.weight": module for name, module in model.named_modules() if _is_quantized(module)}
    compared: dict[tuple[int, str], None] = {}  # tied weights once
    for name, file in file_of.items():
        value, tensor = tensor_of[name], record.tensors.get(file)
        if tensor is None:
            raise ModelError(f"the weights at {where}: {file} was never read", code="tensor-never-read")
        if (id(value), file) in compared:
            continue
        compared[id(value), file] = None
        if name in quantized:
            _check_quantized(quantized[name], tensor, f"the weights at {where}: {name}")
            continue
        what = f"the weights at {where}: {name}"
        check_dtype(model, value, tensor, record.dtype, what)
        if tuple(value.shape) != tensor.shape:
            raise ModelError(
                f"{what} has shape {list(tensor.shape)} in the files, the model {list(value.shape)}",
                code="shape-mismatch",
            )
        if not same_content(value, tensor):
            raise ModelError(f"{what} in the model is not what was read; {ADVICE}", code="weights-differ-from-files")
    _set_tied(model)
    setattr(model, RECORD, record)


def check_adapter(model: nn.Module, record: FileRecord, where: object) -> None:
    """Check that an adapter's additions in the model are exactly the tensors of its files, all of them.

    Raises:
        ModelError: naming the first tensor that is unused or different.
    """
    names = FileNames(record.shapes)
    tensor_of = {
        file: value
        for name, value in model.named_parameters(remove_duplicate=False)
        if {ADAPTER, "base_layer"} & set(name.split(".")) and (file := names.of(name)) is not None
    }
    if left_over := sorted(set(record.shapes) - set(tensor_of), key=_natural_order):
        raise ModelError(
            f"the adapter at {where} holds {len(left_over)} tensors without a place in its base, first {left_over[0]}",
            code="unexpected-adapter-tensors",
        )
    for file, value in tensor_of.items():
        tensor = record.tensors.get(file)
        if tensor is None or tuple(value.shape) != tensor.shape or not same_content(value, tensor):
            raise ModelError(
                f"the adapter at {where}: {file} in the model is not what was read; {ADVICE}",
                code="adapter-differs-from-files",
            )


def same_content(value: Tensor, tensor: FileTensor) -> bool:
    """Return whether a rank's elements are those that it read, compared in the lower of the two precisions."""
    precision = _compared_in(value, tensor)
    return checksum_in(value.detach(), precision, tensor.start) == tensor.checksums[precision]


def _compared_in(value: Tensor, tensor: FileTensor) -> torch.dtype:
    """Return the precision in which weights are compared with their file."""
    return value.dtype if value.dtype in tensor.checksums else tensor.dtype


def check_dtype(model: Any, value: Tensor, tensor: FileTensor, dtype: torch.dtype, what: str) -> None:
    """Check that weights have the requested dtype; some model types keep some modules in fp32.

    Raises:
        ModelError: naming both dtypes.
    """
    if not tensor.dtype.is_floating_point and value.dtype.is_floating_point:
        raise ModelError(
            f"{what} is stored as {_text(tensor.dtype)}, as quantized weights are; {UNQUANTIZED}",
            code="already-quantized",
        )
    if tensor.dtype.is_floating_point and tensor.dtype.itemsize == 1:
        raise ModelError(
            f"{what} is stored as {_text(tensor.dtype)}, as quantized weights are; {UNQUANTIZED}",
            code="already-quantized",
        )
    held_wide = any(getattr(model, f"_keep_in_fp32_modules{strict}", None) for strict in ("", "_strict"))
    if value.is_floating_point() and value.dtype != dtype and not (held_wide and value.dtype == torch.float32):
        raise ModelError(
            f"{what} is held in {_text(value.dtype)}, not in {_text(dtype)}; {ADVICE}", code="dtype-mismatch"
        )


def check_left_over(model: Any, shapes: Mapping[str, tuple[int, ...]], used: set[str], where: object) -> None:
    """Check that the model uses all tensors of its files; extra layers, for example, are an error.

    Raises:
        ModelError: with the number of unused tensors and the first of them.
    """
    ignored = [re.compile(pattern) for pattern in getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()]
    left_over = sorted(
        (
            name
            for name, shape in shapes.items()
            if name not in used and not is_no_weight(name, shape) and not any(rule.search(name) for rule in ignored)
        ),
        key=_natural_order,
    )
    if left_over:
        raise ModelError(
            f"the weights at {where} hold {len(left_over)} tensors that the model of config.json has no place for, "
            f"first {left_over[0]}; look whether config.json belongs to these files",
            code="unexpected-tensors",
        )


def is_no_weight(name: str, shape: Sequence[int]) -> bool:
    """Return whether a tensor of a file is a buffer that is a function of the configuration."""
    return any(len(shape) in dimensions and re.search(rule, name) for rule, dimensions in NOT_WEIGHTS.items())


class FileNames:
    """Maps names of the model's tensors to names in files, which may differ in prefixes."""

    def __init__(self, names: Iterable[str]) -> None:
        self._file_of = {_plain(name): name for name in names}

    def of(self, name: str) -> str | None:
        """Return the name of a model's tensor in the files; None if they lack it."""
        plain = _plain(name)
        if plain in self._file_of:
            return self._file_of[plain]
        without = plain.partition(".")[2]  # files of a decoder, without the prefix of the whole model
        if without in self._file_of:
            return self._file_of[without]
        return next(
            (self._file_of[f"{prefix}{plain}"] for prefix in PREFIXES if f"{prefix}{plain}" in self._file_of), None
        )


def _plain(name: str) -> str:
    """Return a name without the parts that wrappers and peft add."""
    name = name.removeprefix("hugging_face.").removeprefix("base_model.model.").removesuffix(".default")
    for inserted in (".base_layer.", ".modules_to_save.default.", ".original_module.", ".default."):
        name = name.replace(inserted, ".")
    return name


def _saved_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield parameters and persistent buffers, tied ones under each of their names."""
    yield from model.named_parameters(remove_duplicate=False)
    for prefix, module in model.named_modules():
        if _is_quantized(module):
            continue
        for name, buffer in module.named_buffers(recurse=False):
            if is_saved_buffer(module, name):
                yield f"{prefix}.{name}".removeprefix("."), buffer


def _as_in_files(model: transformers.PreTrainedModel, tensor_of: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield tensors of the model with the names and shapes that they have in files, a layer at a time.

    transformers fuses the matrices of experts, for example, and splits them for saving.
    """
    layers: dict[tuple[str, ...], dict[str, Tensor]] = {}
    for name, value in tensor_of.items():
        layers.setdefault(tuple(re.findall(r"\d+", name)[:1]), {})[name] = value.detach()
    for tensors in layers.values():
        yield from transformers.core_model_loading.revert_weight_conversion(model, tensors).items()


def _is_quantized(module: nn.Module) -> bool:
    return type(module).__name__ in ("Linear4bit", "Linear8bitLt")


def _check_quantized(module: Any, tensor: FileTensor, what: str) -> None:
    """Check that a quantized layer has the scales of the file, and row sums that differ by rounding only."""
    state = module.weight.quant_state if type(module).__name__ == "Linear4bit" else None
    if state is None:
        kind, scales = "int8", module.weight.SCB
        rounded = (scales / 127)[:, None] * module.weight.data
        widths = scales * ROUNDING[kind] * module.in_features
    else:
        from bitsandbytes.functional import dequantize_4bit

        kind, scales = "nf4", state.absmax
        rounded = dequantize_4bit(module.weight.data, state).view(module.out_features, module.in_features)
        blocks = scales.float().view(module.out_features, -1) if not module.in_features % NF4_BLOCK else None
        sums = blocks.sum(dim=1) if blocks is not None else scales.float().max() * (module.in_features / NF4_BLOCK)
        widths = sums * (ROUNDING[kind] * NF4_BLOCK)
    marks = tensor.marks[1 if module.source_cls is transformers.pytorch_utils.Conv1D else 0]
    if tuple(rounded.shape) != marks.shape:
        raise ModelError(
            f"{what} has shape {list(marks.shape)} in the files, the model {list(rounded.shape)}", code="shape-mismatch"
        )
    errors = (rounded.sum(dim=1, dtype=torch.float64) - marks.row_sums.to(rounded.device)).abs()
    if checksum(scales.float().flatten()) != marks.scales or not bool((errors <= widths.double()).all()):
        raise ModelError(
            f"{what}, quantized to {kind}, is not what was read; {ADVICE}", code="weights-differ-from-files"
        )


def _set_tied(model: transformers.PreTrainedModel) -> None:
    """Set tie_word_embeddings=False if the files have separate weights for the output layer.

    transformers loads them separately, but would tie them again when it reads the configuration of an export.
    """
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is not None and getattr(head, "weight", None) is not getattr(embedding, "weight", None):
        untie(model.config)


def untie(config: Any) -> None:
    """Set tie_word_embeddings=False in a configuration."""
    for part in (config, config.get_text_config()):
        if getattr(part, "tie_word_embeddings", False):
            part.tie_word_embeddings = False


def check_in_place(model: nn.Module, ranks: DistributedContext) -> None:
    """Check that DeepSpeed's copies of weights are what was read; drop the record. Collective.

    A rank that holds the stretches that it read compares them. If every rank read whole weights, the checksums of the
    stretches are summed over ranks. Weights on NVMe, quantized ones, and those that transformers has fused were
    compared after loading.

    Raises:
        ModelError: on a rank with a difference, naming it.
        PeerFailedError: on the others.
    """
    carrier = next((module for module in model.modules() if RECORD in vars(module)), None)
    if carrier is None:
        return
    record: FileRecord = getattr(carrier, RECORD)
    delattr(carrier, RECORD)
    names, wrong = FileNames(record.shapes), None
    expected: list[Checksum] = []
    parts: list[Checksum] = []
    compared: list[str] = []
    for name, parameter in model.named_parameters():
        tensor = record.tensors.get(names.of(name) or "")
        stretch = _stretch_of(parameter, ranks)
        if tensor is None or stretch is None or not parameter.is_floating_point():
            continue
        value, start = stretch
        precision = _compared_in(value, tensor)
        part = checksum_in(value, precision, start)
        # Decided by what all ranks have in common: the sums below are collective, and one rank may hold all of a small
        # weight.
        if tensor.is_own or not is_partitioned(parameter):
            wrong = wrong or (name if part != tensor.checksums[precision] else None)
            continue
        if part is None:
            wrong = wrong or name
        expected.append(tensor.checksums[precision])
        parts.append(part or (0, 0))
        compared.append(name)
    for name, total, total_in_files in zip(compared, _over_ranks(parts, ranks), expected, strict=True):
        wrong = wrong or (name if total != total_in_files else None)
    is_wrong_somewhere = any(ranks.share(wrong is not None))
    if wrong is not None:
        raise ModelError(
            f"{wrong} on rank {ranks.rank} is not what was read from the files; {ADVICE}",
            code="weights-differ-from-files",
        )
    if is_wrong_somewhere:
        raise PeerFailedError("another rank holds weights that are not those of the files")


def _stretch_of(parameter: Any, ranks: DistributedContext) -> tuple[Tensor, int] | None:
    """Return this rank's elements of a flattened weight, and the index of the first; None if they are on a disk."""
    if not is_partitioned(parameter):
        return parameter.detach().flatten(), 0
    partition, (start, end) = own_partition(parameter), partition_of(parameter, ranks.rank)
    return None if partition is None else (partition[: end - start], start)


def _over_ranks(checksums: Sequence[Checksum], ranks: DistributedContext) -> list[Checksum]:
    """Return checksums summed over the ranks, which may take different times to compute them. Collective."""
    everyones = ranks.share(list(checksums), list[Checksum])
    return [
        (sum(first for first, _ in each) % MODULUS, sum(second for _, second in each) % MODULUS)
        for each in zip(*everyones, strict=True)
    ]


def _natural_order(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _text(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
