"""LoRA: freeze the base, learn low-rank additions to its linear layers; keep them alone or merged into the base.

    W x + (alpha / rank) B A x,   A [rank, in] random, B [out, rank] zero at the start        (arXiv 2106.09685)

The base may be held in 8 bits (LLM.int8) or in 4 (nf4, QLoRA) by bitsandbytes. Additions learnt over a quantised base
are merged into the base in its own precision, which differs from what they were learnt over by the quantisation's
rounding; the adapter alone can be scored over the quantised base as it was learnt.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from laborllm_dist.engine.limits import check_targets
from laborllm_dist.engine.loaded_weights import FileRecord, check_adapter, recording
from laborllm_dist.engine_settings import AdapterSettings
from laborllm_dist.errors import ModelError

NF4_BLOCK = 64
ADAPTER_FILE = "adapter_model.safetensors"


def quantisation(base: str, dtype: torch.dtype) -> transformers.BitsAndBytesConfig | None:
    """Return how the frozen weights are held; None: as they are.

    Args:
        base: full, int8 or nf4.
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
                    f"{path}: base=nf4 on a CPU wants layers of a multiple of {NF4_BLOCK} inputs, {name} has "
                    f"{inner.in_features}; take int8 or full"
                )


def with_adapter(model: transformers.PreTrainedModel, settings: AdapterSettings, *, seed: int) -> nn.Module:
    """Return the model with its weights frozen and additions in their place, a function of shape and seed.

    Raises:
        ModelError: if the model has no layer of one of the names.
    """
    import peft

    layers = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    layers -= {"lm_head"}  # scores are computed from its weight itself
    check_targets(settings.targets, layers)
    torch.manual_seed(seed)
    config = lora_config(settings, model.config.name_or_path)
    # In the model's precision at every ZeRO stage; DeepSpeed keeps fp32 master weights where that is narrow.
    wrapped: nn.Module = peft.get_peft_model(model, config, autocast_adapter_dtype=False)
    return wrapped


def lora_config(settings: AdapterSettings, base: str) -> Any:
    """Return peft's configuration."""
    import peft

    return peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(settings.targets),
        bias="none",
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
    )


def write_adapter(
    weights: Iterator[tuple[str, Tensor]], settings: AdapterSettings, base: str, dtype: torch.dtype, folder: Path
) -> None:
    """Write additions as a peft folder, which AutoModelForCausalLM and PeftModel open."""
    folder.mkdir(parents=True, exist_ok=True)
    # peft's files leave out the adapter's name.
    tensors = {name.replace(".default.", "."): value.to(dtype).contiguous() for name, value in weights}
    save_file(tensors, folder / ADAPTER_FILE, metadata={"format": "pt"})
    config = lora_config(settings, base)
    config.inference_mode = True
    config.save_pretrained(folder)


def base_of(folder: Path) -> str | None:
    """Return where the base of an adapter's folder is found; None where the folder holds no adapter."""
    config = folder / "adapter_config.json"
    if not config.is_file():
        return None
    return str(json.loads(config.read_text(encoding="utf-8"))["base_model_name_or_path"])


def put_adapter(model: transformers.PreTrainedModel, folder: Path) -> None:
    """Put the additions of an adapter's folder into its base, which is open.

    Raises:
        ModelError: if they cannot be opened, some are missing, left over or not what was read, or have another shape
            than the base wants.
    """
    record = FileRecord(model.dtype)
    try:
        report = recording(record, model.load_adapter)(str(folder), ignore_mismatched_sizes=True)  # told below, by name
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"cannot open the adapter at {folder}: {str(error).strip().splitlines()[0]}") from None
    if unfit := sorted(report.missing_and_mismatched()):
        raise ModelError(
            f"the adapter at {folder} does not fit its base: {len(unfit)} tensors are missing or have another shape, "
            f"first {unfit[0]}"
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
