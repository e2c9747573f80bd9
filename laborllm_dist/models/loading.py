"""Make models: a randomly initialized Llama or pretrained weights of a folder or the hub, whole or in ZeRO-3 shards."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers  # imports lazily: models cost three seconds
from safetensors import SafetensorError
from torch import Tensor

from laborllm_dist.batching.batch import TokenIds, pack_batch
from laborllm_dist.careers.readers.file_formats import pointer_in
from laborllm_dist.careers.splits import SPLITS, Split
from laborllm_dist.config.model import ComputeSettings, LlamaSettings, ModelSettings
from laborllm_dist.config.run import RunSettings
from laborllm_dist.distributed.context import DistributedContext
from laborllm_dist.distributed.deepspeed_config import deepspeed_config
from laborllm_dist.distributed.library_internals import is_partitioned, whole_shape
from laborllm_dist.errors import ModelError, SettingsError
from laborllm_dist.io.files import fingerprint_of
from laborllm_dist.models.causal_lm import CareerLanguageModel
from laborllm_dist.models.file_record import FileRecord, recording
from laborllm_dist.models.fingerprint import weights_fingerprint
from laborllm_dist.models.log_likelihood import token_log_likelihood
from laborllm_dist.models.lora import (
    ADAPTER_CONFIG,
    base_of,
    check_base,
    check_blocks,
    put_adapter,
    quantization,
    with_adapter,
)
from laborllm_dist.models.pretrained_config import (
    ModelConfig,
    attention_for,
    attention_window,
    context_tokens,
    open_causal_config,
    readable_tokens,
    scales_with_length,
    set_attention_dropout,
)
from laborllm_dist.models.safetensors_loading import (
    check_index,
    check_sizes,
    check_unquantized,
    folder_of,
    holds_safetensors,
    is_adapter,
    model_in_shards,
)
from laborllm_dist.models.title_head import TitleHead
from laborllm_dist.models.varlen_attention import MODEL_TYPES, PACKED
from laborllm_dist.models.weight_checks import check_loaded
from laborllm_dist.store.auto_classes import UNREADABLE, open_config, open_model, reason_of
from laborllm_dist.store.hub import is_hub_id, why_no_hub_id
from laborllm_dist.store.store import TokenStore, check_lengths
from laborllm_dist.store.tokenizer import hub_commit

# Errors that transformers, torch and the files' formats raise on weights, in addition to UNREADABLE.
BROKEN = (RuntimeError, AssertionError, SafetensorError, pickle.UnpicklingError)
# Patterns of the weight files to open, by model.weights.
OPENED = {"safetensors": ("model*.safetensors", "adapter_model.safetensors"), "pickle": ("pytorch_model*.bin",)}
MASKED = ComputeSettings(attention="mask", loss="chunked", loss_chunk_tokens=4096, gradient_checkpointing=False)


def check_weights(settings: ModelSettings) -> None:
    """Check, before any work, that weights are not missing, quantized already or of an unknown model type.

    Raises:
        ModelError: with advice on how to get them.
        CustomCodeError: if the model is defined by code that comes with it.
    """
    if settings.path is None:
        return
    if Path(settings.path).is_dir():
        _reject_pointers(settings)
        if (base := base_of(settings)) is not None:
            check_weights(base)
        elif (folder_of(settings) / "config.json").is_file():
            open_config(settings.path, **_where(settings))
            check_unquantized(settings.path, _where(settings))
        return
    try:
        if not is_hub_id(settings.path):
            raise ModelError(why_no_hub_id(settings.path), code="invalid-hub-id")
        open_config(settings.path, **_where(settings))
        check_unquantized(settings.path, _where(settings))
    except ModelError as error:
        raise ModelError(
            f"no weights for model.path={settings.path}: {error}. Either give a local folder (model.path=FOLDER, with "
            "config.json, *.safetensors and the tokenizer), or, for a hub id, accept the model's license on its page, "
            "log in (hf auth login) and start again where the hub can be reached",
            code="no-weights",
        ) from None


def _reject_pointers(settings: ModelSettings) -> None:
    """Raise if a model's folder was cloned without its large files (Git LFS).

    Raises:
        ModelError: naming the first file that is only a pointer.
    """
    folder, opened = folder_of(settings), ("*.json", *OPENED[settings.weights])
    if settings.path is not None and folder.is_dir() and (pointer := pointer_in(folder, opened)) is not None:
        raise ModelError(pointer, code="git-lfs-pointer")


def new_llama(
    shape: LlamaSettings, *, num_ids: int, attention_dropout: float, seed: int
) -> transformers.PreTrainedModel:
    """Return a Llama with random weights, a function of shape and seed."""
    torch.manual_seed(seed)  # transformers' set_seed does the same, and imports peft and bitsandbytes for it: a second
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=num_ids,
            hidden_size=shape.hidden_size,
            intermediate_size=shape.intermediate_size,
            num_hidden_layers=shape.num_layers,
            num_attention_heads=shape.num_heads,
            num_key_value_heads=shape.num_key_value_heads,
            max_position_embeddings=shape.max_positions,
            rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
            tie_word_embeddings=shape.tied_embeddings,
            initializer_range=shape.initializer_range,
            attention_dropout=attention_dropout,
            attn_implementation="sdpa",
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=None,
        )
    )


def pretrained_model(
    settings: ModelSettings, *, dtype: torch.dtype, base: str = "none", device: torch.device | None = None
) -> transformers.PreTrainedModel:
    """Open pretrained weights, safetensors only unless the settings say otherwise; an adapter's folder with its base.

    Args:
        settings: of the model.
        dtype: of the weights, and of products with quantized ones.
        base: quantization of the weights: none, int8 or nf4.
        device: of the weights; None: unquantized ones stay on the CPU.

    Raises:
        ModelError: if weights are missing, in another format or quantized already; if tensors of the model are missing
        from the files, have another shape or precision, or differ from the files; if a tensor of the files is unused.
    """
    _reject_pointers(settings)
    base_settings = base_of(settings)
    if base_settings is not None:  # transformers opens both at once, and does not report tensors that the base lacks
        model = pretrained_model(base_settings, dtype=dtype, base=base, device=device)
        put_adapter(model, folder_of(settings))
        return model
    check_index(settings)
    config = open_causal_config(str(settings.path), **_where(settings))
    set_attention_dropout(config, settings.attention_dropout)
    quantized = quantization(base, dtype)
    placed = {} if quantized is None else {"quantization_config": quantized, "device_map": {"": device}}
    record = FileRecord(dtype, base, None if quantized is None else device)
    _check_folder(settings)
    try:
        model, report = recording(record, open_model)(
            str(settings.path),
            **_where(settings),
            **placed,
            config=config,
            dtype=dtype,
            attn_implementation=attention_for(config),
            use_safetensors=settings.weights == "safetensors",
            output_loading_info=True,
            ignore_mismatched_sizes=Path(str(settings.path)).is_dir(),  # reported below; a hub id may be an adapter
        )
    except (*UNREADABLE, *BROKEN) as error:
        raise ModelError(
            f"cannot open the weights at {settings.path}: {reason_of(error)}", code="unreadable-weights"
        ) from None
    for name, stored, needed in sorted(report["mismatched_keys"]):
        raise ModelError(
            f"the weights at {settings.path}: {name} has shape {list(stored)}, the model of config.json {list(needed)}",
            code="shape-mismatch",
        )
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"the weights at {settings.path} lack {len(missing)} tensors of the model, first {missing[0]}",
            code="missing-tensors",
        )
    if base == "nf4":
        check_blocks(model, settings.path)
    if base == "none" and device is not None:
        model = model.to(device)
    check_loaded(model, record, settings.path)
    return model


def _check_folder(settings: ModelSettings) -> None:
    """Check, before allocating memory, that weights are not quantized and config.json fits the files.

    Raises:
        ModelError: if the weights are quantized, or config.json has other sizes than the files.
    """
    if not Path(str(settings.path)).is_dir():
        return
    folder = folder_of(settings)
    if not (folder / "config.json").is_file():
        return  # transformers raises the error
    check_unquantized(str(folder), {})
    if settings.weights == "safetensors" and holds_safetensors(folder):
        check_sizes(open_config(folder), folder)


def make_model(
    settings: RunSettings, ranks: DistributedContext, *, num_ids: int, num_titles: int = 0
) -> CareerLanguageModel:
    """Return the initial model of a run, with the adapter and the output layer over titles that its settings name.

    Collective if weights are read into shards.

    Args:
        settings: of the run.
        ranks: of the run.
        num_ids: size of the tokenizer's vocabulary, for a randomly initialized model.
        num_titles: number of titles, for an output layer over them.

    Raises:
        ModelError: if pretrained weights cannot be opened, the adapter does not fit the model, or the model does not
        support gradient checkpointing.
        SettingsError: if an output layer over titles has too few of them.
    """
    zero, adapter, compute = settings.zero, settings.adapter, settings.compute
    # At stage 0, bf16 is autocast over fp32 weights (distributed/zero_engine.py); above, DeepSpeed keeps fp32 masters.
    dtype = torch.bfloat16 if zero.precision == "bf16" and zero.stage > 0 else torch.float32
    shape = settings.model.llama
    if shape is not None:
        dropout = settings.model.attention_dropout
        model = new_llama(shape, num_ids=num_ids, attention_dropout=dropout, seed=settings.training.seed)
    elif _goes_into_shards(settings):
        on_gpu = ranks.device.type == "cuda"
        config = deepspeed_config(zero, settings.optimizer.max_grad_norm, ranks.world_size, on_gpu=on_gpu)
        model = model_in_shards(settings.model, dtype=dtype, config=config, ranks=ranks)
    else:
        # DeepSpeed moves whole weights itself: under ZeRO-3 they need not fit a GPU.
        device = None if adapter.quantization == "none" else ranks.device
        model = pretrained_model(settings.model, dtype=dtype, base=adapter.quantization, device=device)
    if zero.precision == "bf16":
        model.config.dtype = torch.bfloat16  # which the export uses
    if compute.gradient_checkpointing:
        if not model.supports_gradient_checkpointing:
            raise ModelError(
                f"models of type {model.config.model_type} cannot compute a layer again; set "
                "compute.gradient_checkpointing=false",
                code="gradient-checkpointing-unsupported",
            )
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    learned = model if adapter.kind == "none" else with_adapter(model, adapter, seed=settings.training.seed)
    kind, head = settings.title_head.kind, None
    if kind != "none":
        if num_titles < 2:
            raise SettingsError(
                f"setting title_head.kind: a distribution over titles needs two of them, there are {num_titles}; set "
                "title_head.kind=none",
                code="too-few-titles",
            )
        hidden_size = int(model.config.get_text_config().hidden_size)
        head = TitleHead(kind, settings.title_head.num_outputs(num_titles), hidden_size, dtype)
    return CareerLanguageModel(learned, compute, head)


def num_parameters(model: torch.nn.Module) -> tuple[int, int]:
    """Return the number of all weights and of trainable ones, of the whole model, sharded or not."""
    sizes = [(_num_elements(parameter), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, is_learned in sizes if is_learned)


def _num_elements(parameter: Any) -> int:
    packed = getattr(parameter, "quant_state", None)  # a byte holds two 4-bit weights
    return torch.Size(whole_shape(parameter) if packed is None else packed.shape).numel()


def _goes_into_shards(settings: RunSettings) -> bool:
    """Return whether pretrained weights are read straight into ZeRO-3 shards.

    Other types may use different tensor names in files, and are tested whole first (check_packing).
    """
    model, zero = settings.model, settings.zero
    if zero.stage != 3 or zero.offload_param == "nvme" or model.weights != "safetensors":
        return False
    return open_causal_config(str(model.path), **_where(model)).model_type in MODEL_TYPES


def check_sharded(settings: ModelSettings) -> None:
    """Check that weights can be read straight into ZeRO-3 shards.

    Raises:
        ModelError: for adapters, pickles, and model types that may use different tensor names in files.
    """
    if settings.weights != "safetensors" or is_adapter(settings):
        raise ModelError(
            f"{settings.path}: placement=partitioned reads whole models in safetensors only; merge an adapter first",
            code="partitioned-weights-unsupported",
        )
    model_type = open_causal_config(str(settings.path), **_where(settings)).model_type
    if model_type not in MODEL_TYPES:
        raise ModelError(
            f"{settings.path}: placement=partitioned knows models of type {', '.join(MODEL_TYPES)}, not {model_type}",
            code="partitioned-model-unsupported",
        )


def weights_identity(settings: ModelSettings) -> str:
    """Return what identifies pretrained weights: a fingerprint of a folder's files, or a hub repository's commit.

    Raises:
        ModelError: if the folder has no such weights, or the hub id is neither on the hub nor in the local cache.
    """
    assert settings.path is not None
    if Path(settings.path).is_dir():
        return _identity_of_folder(settings)
    _refuse_hub_adapter(settings)
    try:
        commit = hub_commit(settings.path, revision=settings.revision, subfolder=settings.subfolder, file="config.json")
    except OSError as error:
        raise ModelError(
            f"no weights at {settings.path}: {str(error).strip().splitlines()[0]}", code="no-weights"
        ) from None
    return "/".join(filter(None, (f"{settings.path}@{commit}", settings.subfolder)))


def _refuse_hub_adapter(settings: ModelSettings) -> None:
    """Raise if a hub id is an adapter: transformers would open it over a base that the identity does not include.

    Raises:
        ModelError: with advice.
    """
    try:
        hub_commit(str(settings.path), revision=settings.revision, subfolder=settings.subfolder, file=ADAPTER_CONFIG)
    except OSError:
        return  # it is not an adapter, or the hub is unreachable and nothing was downloaded
    raise ModelError(
        f"{settings.path} holds an adapter; download it (hf download {settings.path} --local-dir FOLDER) and give the "
        "folder, so that its base is known",
        code="hub-adapter",
    )


def _identity_of_folder(settings: ModelSettings) -> str:
    """Return a fingerprint of a folder's weights; that of an adapter includes its base."""
    own, base = weights_fingerprint(folder_of(settings), settings.weights), base_of(settings)
    if base is None:
        return own
    of_base = weights_identity(base)
    check_base(folder_of(settings), base, of_base)
    return fingerprint_of({"adapter": own, "base": of_base})


def context_of(settings: ModelSettings) -> int | None:
    """Return the longest career, in tokens, that a pretrained model reads exactly, given context and window; None: any.

    Raises:
        ModelError: if there is no readable configuration.
    """
    return readable_tokens(_config_of(settings))


def num_layers_of(settings: ModelSettings) -> int:
    """Return the number of layers of a pretrained model.

    Raises:
        ModelError: if there is no readable configuration.
    """
    return int(_config_of(settings).get_text_config().num_hidden_layers)


def _config_of(settings: ModelSettings) -> ModelConfig:
    """Return the configuration of a pretrained model, or of an adapter's base."""
    base = base_of(settings) or settings
    try:
        return open_causal_config(str(base.path), **_where(base))
    except ModelError as error:
        raise ModelError(f"no model configuration at {base.path}: {error}", code="no-model-config") from None


def check_ids(model: transformers.PreTrainedModel, num_ids: int) -> None:
    """Check that the model has an embedding for every id of the tokenizer.

    Raises:
        ModelError: with both sizes.
    """
    num_embeddings = whole_shape(model.get_input_embeddings().weight)[0]
    if num_ids > num_embeddings:
        raise ModelError(
            f"the tokenizer has {num_ids:,} ids, the model embeds {num_embeddings:,}; they do not belong together",
            code="vocabulary-exceeds-embeddings",
        )


def check_fit(model: transformers.PreTrainedModel, store: TokenStore, splits: Sequence[Split] = SPLITS) -> None:
    """Check that a model can read the careers of these splits exactly.

    Raises:
        ModelError: if the tokenizer has ids without an embedding, or a career is longer than the attention window.
        SequenceTooLongError: naming the person, if a career is longer than the model's context.
    """
    check_ids(model, store.num_ids)
    context = context_tokens(model.config)
    advice = (
        "take a model with a longer context or a shorter template; only an evaluation with truncation=last_lines cuts"
    )
    if context is not None:
        because = ", beyond which its rotation changes with the longest text of a batch"
        why = because if scales_with_length(model.config) else ""
        check_lengths(store, context, f"the model's context is {context}{why}; {advice}", splits)
    window = attention_window(model.config)
    if window is not None:
        advice = f"the model's attention reaches back {window}; take a model without such a window"
        check_lengths(store, window, advice, splits)


def longest_career(store: TokenStore, splits: Sequence[Split] = SPLITS) -> int:
    """Return the length, in tokens, of the longest career of these splits."""
    return max(int(store.careers(split).num_tokens().max()) for split in splits)


def check_packing(model: transformers.PreTrainedModel, *, device: torch.device, longest: int = 12) -> None:
    """Check that a model keeps packed careers apart, and that its scores do not depend on later tokens.

    A short career and one of the longest length must get the same scores packed together as alone, and the first half
    of the long one the same as without the second half. Known types whose RoPE does not depend on the length are
    skipped: the tests cover them, and a large model would take long here on a CPU.

    Args:
        model: whole on this rank.
        device: of the model.
        longest: length, in tokens, of the longest career.

    Raises:
        ModelError: if the model cannot take packed careers, or their scores differ.
    """
    kind = model.config.model_type
    is_sharded = any(is_partitioned(parameter) for parameter in model.parameters())  # known types only
    if kind in MODEL_TYPES and (is_sharded or not scales_with_length(model.config)):
        return
    limit = readable_tokens(model.config)
    length = max(12, longest if limit is None else min(longest, limit))
    num_ids = min(int(model.config.get_text_config().vocab_size), 50_000)
    long, short = (np.arange(start, start + size, dtype=np.int32) % num_ids for start, size in ((3, length), (7, 12)))
    is_packed = model.config._attn_implementation == PACKED
    wrapped = CareerLanguageModel(model, dataclasses.replace(MASKED, attention="auto") if is_packed else MASKED).eval()
    try:
        with torch.inference_mode():
            rows = pack_batch([[long, short]], length + 24)  # with padding
            together_N = wrapped(rows.to(device))[1]
            results = [_scores_alone(model, ids, device) for ids in (long, short, long[: length // 2])]
    except (*UNREADABLE, RuntimeError, AssertionError) as error:
        raise ModelError(
            f"models of type {kind} cannot score packed careers: {reason_of(error)}", code="packed-scoring-failed"
        ) from None
    alone, tolerance = [scores for scores, _ in results], 1e-3
    if model.dtype in (torch.bfloat16, torch.float16):
        # The model rounds its logits, around -100 in GPT-2, to this dtype: in bf16 that is 0.5 nats. With a mask, a GPU
        # uses another kernel, which differs in the last bit on some tokens of a long career.
        tolerance = max(0.2, 2 * torch.finfo(model.dtype).eps * max(largest for _, largest in results))
    error_nats = float((together_N - torch.cat(alone[:2])).abs().max())
    if not error_nats <= tolerance:
        raise ModelError(
            f"models of type {kind} do not keep packed careers apart ({error_nats:.2g} nats on one token)",
            code="packed-careers-interact",
        )
    error_nats = float((alone[0][: length // 2 - 1] - alone[2]).abs().max())
    if not error_nats <= tolerance:
        raise ModelError(
            f"models of type {kind} let a token's score change with what comes after it ({error_nats:.2g} nats); "
            "careers want a causal model",
            code="not-causal",
        )


def _scores_alone(model: transformers.PreTrainedModel, ids: TokenIds, device: torch.device) -> tuple[Tensor, float]:
    """Return log p of every next token of one career, and the largest logit, by the model's own logits.

    The model gets neither masks nor positions.
    """
    logits_1TV = model(input_ids=torch.from_numpy(ids).long()[None].to(device)).logits[:, :-1]
    scores_1T = token_log_likelihood(logits_1TV, torch.from_numpy(ids[1:]).long()[None].to(device))
    return scores_1T[0], float(logits_1TV.abs().max())


def _where(settings: ModelSettings) -> dict[str, str]:
    return {"revision": settings.revision or "main", "subfolder": settings.subfolder or ""}
