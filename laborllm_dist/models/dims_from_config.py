"""The shape of a pretrained model, counted on the model that its config.json describes, without memory for weights.

Formulas for one family miss features of others: wider heads, biases, norms of queries and keys, feed-forward layers
without a gate, experts, learned positions, layers that differ from each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from laborllm_dist.errors import ModelError
from laborllm_dist.models.dims import AttentionKind, CountedWeights, LinearLayers, ModelShape
from laborllm_dist.models.pretrained_config import ModelConfig, attention_for, attention_window, open_causal_config
from laborllm_dist.models.varlen_attention import MODEL_TYPES
from laborllm_dist.store.auto_classes import UNREADABLE, model_of, reason_of

WIDTHS = ("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner")
EXPERT_WIDTHS = ("moe_intermediate_size", "expert_dim")
CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k")
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


def counted_shape(path: str, *, revision: str | None, subfolder: str | None) -> ModelShape:
    """Return the shape of the model that a configuration describes.

    Args:
        path: a folder or hub id.
        revision: of the hub's repository.
        subfolder: in it.

    Raises:
        ModelError: if there is no configuration, or no model can be made from it.
    """
    config = open_causal_config(path, revision=revision, subfolder=subfolder)
    try:
        with torch.device("meta"):
            model = model_of(config, attn_implementation=attention_for(config))
    except (*UNREADABLE, RuntimeError, AssertionError) as error:
        raise ModelError(
            f"{path}: config.json makes no model: {reason_of(error)}", code="invalid-model-config"
        ) from None
    inner = config.get_text_config()
    hidden, num_heads = int(inner.hidden_size), _first(inner, "num_attention_heads") or 1
    num_shared = _first(inner, "num_key_value_heads", "num_kv_heads") or num_heads
    if getattr(inner, "multi_query", False) and not getattr(inner, "new_decoder_architecture", False):
        num_shared = 1
    head = model.get_output_embeddings()
    counted = _count(model, inner)
    return ModelShape(
        hidden_size=hidden,
        intermediate_size=_active_width(inner),
        num_layers=int(inner.num_hidden_layers),
        num_heads=num_heads,
        num_key_value_heads=int(num_shared),
        num_ids=int(model.get_input_embeddings().weight.shape[0]),
        tied_embeddings=head is not None and head.weight is model.get_input_embeddings().weight,
        head_size=_first(inner, "head_dim"),
        is_gated=any("gate" in name or "glu" in name for name, _ in model.named_parameters()),
        attention=_attention_kind(config),
        has_plain_head=config.model_type in MODEL_TYPES,
        counted=counted,
    )


def _first(config: ModelConfig, *names: str) -> int | None:
    """Return the first of these settings that the configuration has."""
    numbers = (getattr(config, name, None) for name in names)
    return next((number for number in numbers if isinstance(number, int) and not isinstance(number, bool)), None)


def _active_width(config: ModelConfig) -> int:
    """Return the width of the feed-forward layers that a token passes, the sum over its experts."""
    width = _first(config, *WIDTHS) or getattr(config, "expansion_ratio", 4) * config.hidden_size
    chosen = _first(config, *CHOSEN) if _first(config, *EXPERTS) else None
    if not chosen:
        return int(width)
    of_expert = _first(config, *EXPERT_WIDTHS) or width
    return int(chosen * of_expert + (_first(config, "shared_expert_intermediate_size") or 0))


def _attention_kind(config: ModelConfig) -> AttentionKind:
    if attention_for(config) == "eager":
        return "eager"
    return "packed" if config.model_type in MODEL_TYPES and attention_window(config) is None else "mask"


def _count(model: Any, config: ModelConfig) -> CountedWeights:
    head = model.get_output_embeddings()
    linear: dict[str, LinearLayers] = {}
    for name, inputs, outputs in _linear_layers(model, head):
        linear[name] = linear.get(name, LinearLayers(0, 0, 0, inputs)).with_one(inputs, outputs)
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    idle_share = 1 - (_first(config, *CHOSEN) or 1) / (_first(config, *EXPERTS) or 1)
    num_vectors = num_matmul_params = largest = num_all = 0
    for name, parameter in model.named_parameters():
        size = parameter.numel()
        num_all, largest = num_all + size, max(largest, size)
        if parameter.dim() < 2:
            num_vectors += size
        elif id(parameter) not in tables:
            is_expert = ".experts." in name and "shared" not in name
            num_matmul_params += size - round(size * idle_share) if is_expert else size
    if head is not None and id(head.weight) in tables:
        num_matmul_params += head.weight.numel()
    return CountedWeights(num_all, num_matmul_params, num_vectors, largest, linear)


def _linear_layers(model: Any, head: nn.Module | None) -> Iterator[tuple[str, int, int]]:
    """Yield name, inputs and outputs of every linear layer but the output layer."""
    for path, module in model.named_modules():
        name = path.rsplit(".", 1)[-1]
        if module is head:
            continue
        if isinstance(module, nn.Linear):
            yield name, module.in_features, module.out_features
        elif isinstance(module, Conv1D):
            yield name, module.nx, module.nf
