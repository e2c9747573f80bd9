"""LoRA: freeze the base, learn low-rank additions to its linear layers; keep them alone or merged into the base.

    W x + (alpha / rank) B A x,   A [rank, in] random, B [out, rank] zero at the start        (arXiv 2106.09685)

The base may be held in 8 bits (LLM.int8) or in 4 (nf4, QLoRA) by bitsandbytes. Additions learned over a quantized base
are merged into the base in its own precision, which differs from what they were learned over by the quantization's
rounding; the adapter alone can be scored over the quantized base as it was learned.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from laborllm_dist.config.model import AdapterSettings, ModelSettings
from laborllm_dist.errors import ModelError
from laborllm_dist.io.json_files import NotJsonError, read_json_object
from laborllm_dist.io.recorded_folder import RECORD, DamagedRecordError, read_record
from laborllm_dist.models.dims import check_targets
from laborllm_dist.models.file_record import FileRecord, recording
from laborllm_dist.models.safetensors_loading import folder_of
from laborllm_dist.models.weight_checks import check_adapter
from laborllm_dist.store.auto_classes import UNREADABLE, reason_of

NF4_BLOCK = 64
ADAPTER_FILE, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
BASE = "base"  # of an adapter's record: where its base is found, and what identified the base's weights


def quantization(base: str, dtype: torch.dtype) -> transformers.BitsAndBytesConfig | None:
    """Return how the frozen weights are held; None: as they are.

    Args:
        base: none, int8 or nf4.
        dtype: that products are computed in.
    """
    if base == "int8":
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    if base == "nf4":
        return transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )
    return None


def check_blocks(model: nn.Module, path: str | None) -> None:
    """Refuse layers that 4-bit blocks do not fit.

    Raises:
        ModelError: naming the first one; on a CPU bitsandbytes cuts each row into blocks of NF4_BLOCK weights.
    """
    for name, module in model.named_modules():
        if type(module).__name__ == "Linear4bit":
            inner: Any = module
            if inner.in_features % NF4_BLOCK and inner.weight.device.type == "cpu":
                raise ModelError(
                    f"{path}: quantization=nf4 on a CPU wants layers of a multiple of {NF4_BLOCK} inputs, {name} has "
                    f"{inner.in_features}; take int8 or full",
                    code="nf4-block-mismatch",
                )


def with_adapter(model: transformers.PreTrainedModel, settings: AdapterSettings, *, seed: int) -> nn.Module:
    """Return the model with its weights frozen and additions in their place, a function of shape and seed.

    Raises:
        ModelError: if the model has no layer of one of the names.
    """
    import peft

    head = model.get_output_embeddings()  # scores are computed from its weight itself
    kinds = (nn.Linear, Conv1D)
    layers = {
        name.rsplit(".", 1)[-1]
        for name, module in model.named_modules()
        if isinstance(module, kinds) and module is not head
    }
    check_targets(settings.target_modules, layers)
    torch.manual_seed(seed)
    config = lora_config(settings, model.config.name_or_path)
    # In the model's precision at every ZeRO stage; DeepSpeed keeps fp32 master weights where that is narrow.
    wrapped: nn.Module = peft.get_peft_model(model, config, autocast_adapter_dtype=False)
    return wrapped


def lora_config(settings: AdapterSettings, base: str, revision: str | None = None) -> Any:
    """Return peft's configuration."""
    import peft

    return peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(settings.target_modules),
        bias="none",
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
        revision=revision,
    )


def write_adapter(
    weights: Iterator[tuple[str, Tensor]],
    settings: AdapterSettings,
    base: ModelSettings,
    dtype: torch.dtype,
    folder: Path,
) -> None:
    """Write additions as a peft folder, which AutoModelForCausalLM and PeftModel open; `base` is where they find it."""
    folder.mkdir(parents=True, exist_ok=True)
    # peft's files leave out the adapter's name.
    tensors = {name.replace(".default.", "."): value.to(dtype).contiguous() for name, value in weights}
    save_file(tensors, folder / ADAPTER_FILE, metadata={"format": "pt"})
    config = lora_config(settings, str(base.path), base.revision)
    config.inference_mode = True
    config.save_pretrained(folder)


def base_of(settings: ModelSettings) -> ModelSettings | None:
    """Return the base of an adapter's folder, with its revision and subfolder; None where the folder holds no adapter.

    peft's own file has no subfolder of a hub repository: it stands in the folder's record, where we have written it.

    Raises:
        ModelError: if what the folder says of its base is damaged, or the base is an adapter itself.
    """
    folder = folder_of(settings)
    if not (folder / ADAPTER_CONFIG).is_file():
        return None
    try:
        config = read_json_object(folder / ADAPTER_CONFIG)
        path, revision = config["base_model_name_or_path"], config.get("revision")
        recorded = _recorded_base(folder)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"{folder / ADAPTER_CONFIG} is damaged, or names no base ({error})", code="damaged-adapter-config"
        ) from None
    if not isinstance(path, str) or not isinstance(revision, str | None):
        raise ModelError(
            f"{folder / ADAPTER_CONFIG} names no base: base_model_name_or_path is {path!r}", code="adapter-without-base"
        )
    subfolder = recorded.get("subfolder") if recorded.get("path") == path else None
    base = dataclasses.replace(settings, path=path, revision=revision, subfolder=subfolder)
    if (folder_of(base) / ADAPTER_CONFIG).is_file():
        raise ModelError(
            f"the base of the adapter at {folder} is an adapter itself ({path}); merge that one first",
            code="adapter-on-adapter",
        )
    return base


def _recorded_base(folder: Path) -> dict[str, Any]:
    record = read_record(folder)
    base = {} if record is None else record.facts.get(BASE) or {}
    if not isinstance(base, dict):
        raise DamagedRecordError(f"{folder / RECORD} is damaged (its base is no group of names)")
    return base


def check_base(folder: Path, base: ModelSettings, identity: str) -> None:
    """Refuse a base whose weights are not those that an adapter was trained on.

    Args:
        folder: of the adapter.
        base: as `base_of` finds it.
        identity: of the base's weights now.

    Raises:
        ModelError: with both identities.
    """
    try:
        trained_on = _recorded_base(folder).get("weights")
    except DamagedRecordError as error:
        raise ModelError(str(error), code="damaged-adapter-record") from None
    if trained_on not in (None, identity):
        raise ModelError(
            f"the adapter at {folder} was trained on other weights than those at {base.path} now ({trained_on} then, "
            f"{identity} now); bring the former back, or train again",
            code="adapter-base-changed",
        )


def check_adapter_kind(folder: Path) -> None:
    """Refuse adapters that transformers opens with some of their tensors newly made.

    Raises:
        ModelError: for DoRA, and for single tokens' embeddings, which a tied output layer would not get; or if the
            adapter's configuration is none.
    """
    try:
        config = read_json_object(folder / ADAPTER_CONFIG)
    except (OSError, NotJsonError) as error:
        raise ModelError(f"{folder / ADAPTER_CONFIG} is damaged ({error})", code="damaged-adapter-config") from None
    kinds = {"use_dora": "DoRA", "trainable_token_indices": "embeddings of single tokens (trainable_token_indices)"}
    for name, kind in kinds.items():
        if config.get(name):
            raise ModelError(
                f"the adapter at {folder} has {kind}, which is not opened here; merge it into its base with peft "
                "(merge_and_unload, save_pretrained), and give the merged folder",
                code="unsupported-adapter-kind",
            )


def put_adapter(model: transformers.PreTrainedModel, folder: Path) -> None:
    """Put the additions of an adapter's folder into its base, which is open.

    Raises:
        ModelError: if they cannot be opened, some are missing, left over or not what was read, or have another shape
            than the base wants.
    """
    check_adapter_kind(folder)
    record = FileRecord(model.dtype)
    try:
        report = recording(record, model.load_adapter)(str(folder), ignore_mismatched_sizes=True)  # told below, by name
    except (*UNREADABLE, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"cannot open the adapter at {folder}: {reason_of(error)}", code="unreadable-adapter"
        ) from None
    if unfit := sorted(report.missing_and_mismatched()):
        raise ModelError(
            f"the adapter at {folder} does not fit its base: {len(unfit)} tensors are missing or have another shape, "
            f"first {unfit[0]}",
            code="adapter-base-mismatch",
        )
    check_adapter(model, record, folder)


def merged(base: transformers.PreTrainedModel, adapter: Path) -> transformers.PreTrainedModel:
    """Return the base with the additions in its weights: summed in fp32, and rounded once to the base's precision."""
    import peft

    record = FileRecord(torch.float32)
    opened = recording(record, peft.PeftModel.from_pretrained)
    wrapped = opened(base, str(adapter), autocast_adapter_dtype=True)  # additions in fp32
    check_adapter(wrapped, record, adapter)
    model: transformers.PreTrainedModel = wrapped.merge_and_unload()
    return model
