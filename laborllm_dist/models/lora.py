"""LoRA: freeze the base, train low-rank additions to its linear layers; save them alone or merged into the base.

    W x + (alpha / rank) B A x,   A [rank, in] random, B [out, rank] zero at the start        (arXiv 2106.09685)

bitsandbytes can quantize the base to 8 bits (LLM.int8) or to 4 (nf4, QLoRA). Additions trained over a quantized base
are merged into the unquantized base, which differs from the one in training by the quantization error; the adapter
alone can be scored over the quantized base of training.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
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
BASE = "base"  # key of an adapter's record: path of its base, and the identity of the base's weights


def quantization(base: str, dtype: torch.dtype) -> transformers.BitsAndBytesConfig | None:
    """Return the quantization of the frozen weights; None: unquantized.

    Args:
        base: none, int8 or nf4.
        dtype: of matrix products.
    """
    if base == "int8":
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    if base == "nf4":
        return transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )
    return None


def check_blocks(model: nn.Module, path: str | None) -> None:
    """Check that layers fit blocks of 4-bit quantization.

    Raises:
        ModelError: naming the first layer that does not; on a CPU bitsandbytes splits each row into blocks of
        NF4_BLOCK.
    """
    for name, module in model.named_modules():
        if type(module).__name__ == "Linear4bit":
            inner: Any = module
            if inner.in_features % NF4_BLOCK and inner.weight.device.type == "cpu":
                raise ModelError(
                    f"{path}: quantization=nf4 on a CPU needs layers of a multiple of {NF4_BLOCK} inputs, {name} has "
                    f"{inner.in_features}; take int8 or full",
                    code="nf4-block-mismatch",
                )


def with_adapter(model: transformers.PreTrainedModel, settings: AdapterSettings, *, seed: int) -> nn.Module:
    """Return the model with frozen weights and LoRA additions, which are a function of shape and seed.

    Raises:
        ModelError: if the model lacks one of the target modules.
    """
    import peft

    head = model.get_output_embeddings()  # OutputLayer computes scores from the weight directly
    kinds = (nn.Linear, Conv1D)
    layers = {
        name.rsplit(".", 1)[-1]
        for name, module in model.named_modules()
        if isinstance(module, kinds) and module is not head
    }
    check_targets(settings.target_modules, layers)
    torch.manual_seed(seed)
    config = lora_config(settings, model.config.name_or_path)
    # In the model's precision at every ZeRO stage; DeepSpeed keeps fp32 master weights for bf16.
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
    weights: Iterable[tuple[str, Tensor]],
    settings: AdapterSettings,
    base: ModelSettings,
    dtype: torch.dtype,
    folder: Path,
) -> None:
    """Write additions as a peft folder, which AutoModelForCausalLM and PeftModel open; `base` is recorded in it."""
    folder.mkdir(parents=True, exist_ok=True)
    # peft's files leave out the adapter's name.
    tensors = {name.replace(".default.", "."): value.to(dtype).contiguous() for name, value in weights}
    save_file(tensors, folder / ADAPTER_FILE, metadata={"format": "pt"})
    config = lora_config(settings, str(base.path), base.revision)
    config.inference_mode = True
    config.save_pretrained(folder)


def base_of(settings: ModelSettings) -> ModelSettings | None:
    """Return the base of an adapter's folder, with its revision and subfolder; None if the folder is not an adapter's.

    peft's own file has no entry for a hub repository's subfolder, so this software writes it into the folder's record.

    Raises:
        ModelError: if the folder's entries about its base are damaged, or the base is an adapter itself.
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
    """Check that a base has the weights that an adapter was trained on.

    Args:
        folder: of the adapter.
        base: from `base_of`.
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
    """Raise for adapters that transformers would open with some tensors randomly initialized.

    Raises:
        ModelError: for DoRA, and for embeddings of single tokens, which a tied output layer would not get; or if the
        adapter's configuration is unreadable.
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
    """Load the additions of an adapter's folder into its opened base.

    Raises:
        ModelError: if they cannot be opened, or tensors are missing, unused, differ from the files, or do not fit the
        base's shapes.
    """
    check_adapter_kind(folder)
    record = FileRecord(model.dtype)
    try:
        report = recording(record, model.load_adapter)(str(folder), ignore_mismatched_sizes=True)  # reported below
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
    """Return the base with the additions merged: summed in fp32, and rounded once to the base's precision."""
    import peft

    record = FileRecord(torch.float32)
    opened = recording(record, peft.PeftModel.from_pretrained)
    wrapped = opened(base, str(adapter), autocast_adapter_dtype=True)  # additions in fp32
    check_adapter(wrapped, record, adapter)
    model: transformers.PreTrainedModel = wrapped.merge_and_unload()
    return model
