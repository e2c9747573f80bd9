"""Read the config.json of a pretrained model: the longest text that it reads exactly, and how to open it.

A model reads up to a number of tokens exactly. Beyond it positions have no embedding, a layer's window truncates the
career, or RoPE's factors change with the longest text of a batch (longrope, dynamic), so a score would depend on
others:

    max_position_embeddings 131072
    longrope, original_max_position_embeddings 4096        ->  4096 tokens
    sliding_window 2047 (of 0, or of no layer: none)          ->  2047 tokens
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import transformers

from laborllm_dist.errors import ModelError
from laborllm_dist.store.auto_classes import UNREADABLE, open_config, reason_of

ModelConfig: TypeAlias = "transformers.PretrainedConfig"
MOST_LAYERS = 1000  # no model is deeper; an invalid number would build modules for minutes
MOST_SIZE = 2**31
SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)
POSITIONS = ("max_position_embeddings", "attention_chunk_size")
DROPOUTS = ("attention_dropout", "attn_pdrop")  # two names of one setting
SLIDING = "sliding_attention"


def open_causal_config(path: str, *, revision: str | None = None, subfolder: str | None = None) -> ModelConfig:
    """Return the configuration of a causal model in a folder or at a hub id; a window of no tokens means no window.

    Args:
        path: a folder or a hub id.
        revision: of the hub's repository.
        subfolder: in it.

    Raises:
        ModelError: if it is missing or invalid, or transformers has no causal model of its type.
    """
    try:
        config = open_config(path, revision=revision, subfolder=subfolder)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            f"transformers cannot read the model configuration at {path}: {reason_of(error)}",
            code="unreadable-model-config",
        ) from None
    if type(config) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(
            f"{path}: transformers has no causal language model of type {config.model_type or 'unknown'}",
            code="not-a-causal-model",
        )
    _check_sizes(config, path)
    _drop_empty_windows(config)
    return config


def model_class(config: ModelConfig) -> Any:
    """Return the class of transformers' causal models of this configuration."""
    return transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]


def attention_for(config: ModelConfig) -> str:
    """Return the attention implementation to open a model with: sdpa, or eager if the model has no other."""
    return "sdpa" if getattr(model_class(config), "_supports_sdpa", False) else "eager"


def attention_window(config: ModelConfig) -> int | None:
    """Return the narrowest attention window in tokens; None: no window."""
    inner = config.get_text_config()
    window = getattr(inner, "sliding_window", None)
    layers = getattr(inner, "layer_types", None)
    if not window or window < 0:  # if use_sliding_window is false, types that have it have already removed the window
        return None
    if layers is not None and SLIDING not in layers:
        return None
    return int(window)


def context_tokens(config: ModelConfig) -> int | None:
    """Return the largest number of positions that do not depend on the rest of the batch; None: any number."""
    inner = config.get_text_config()
    limits = [getattr(inner, name, None) for name in POSITIONS] + [
        rope.get("original_max_position_embeddings") for rope in _ropes(inner) if rope.get("rope_type") == "longrope"
    ]
    return min((int(limit) for limit in limits if limit), default=None)


def readable_tokens(config: ModelConfig) -> int | None:
    """Return the largest number of tokens that the model reads exactly, given context and windows; None: any number."""
    limits = [limit for limit in (context_tokens(config), attention_window(config)) if limit is not None]
    return min(limits, default=None)


def scales_with_length(config: ModelConfig) -> bool:
    """Return whether RoPE's factors change with the longest text of a batch."""
    kinds = {str(rope.get("rope_type")) for rope in _ropes(config.get_text_config())}
    return any(kind == "longrope" or "dynamic" in kind for kind in kinds)


def set_attention_dropout(config: ModelConfig, share: float) -> None:
    """Set the attention dropout, under whichever name the configuration has for it, if any.

    Raises:
        ModelError: if the configuration rejects the value.
    """
    for holder in (config.get_text_config(), getattr(config, "attn_config", None)):
        for name in DROPOUTS:
            own = getattr(holder, name, None)
            if own is not None and own != share:
                try:
                    setattr(holder, name, share)
                except UNREADABLE as error:  # a configuration checks the types of its values
                    raise ModelError(
                        f"models of type {config.model_type} cannot have model.attention_dropout={share}: "
                        f"{reason_of(error)}",
                        code="attention-dropout-unsupported",
                    ) from None


def _ropes(config: ModelConfig) -> Iterator[Mapping[str, Any]]:
    """Yield the model's RoPE parameters: of all layers, or by layer type."""
    parameters = getattr(config, "rope_parameters", None) or {}
    if "rope_type" in parameters:
        yield parameters
    yield from (each for each in parameters.values() if isinstance(each, Mapping))


def _check_sizes(config: ModelConfig, path: str) -> None:
    inner = config.get_text_config()
    for name in SIZES:
        size = getattr(inner, name, None)
        most = MOST_LAYERS if name == "num_hidden_layers" else MOST_SIZE
        if size is not None and not (isinstance(size, int) and 0 < size <= most):
            raise ModelError(
                f"{path}: config.json says {name} = {str(size)[:40]}; expected 1 to {most:,}",
                code="model-size-out-of-range",
            )


def _drop_empty_windows(config: ModelConfig) -> None:
    """Replace a window of no tokens by none, its meaning: transformers would mask all tokens."""
    inner = config.get_text_config()
    window, layers = getattr(inner, "sliding_window", None), getattr(inner, "layer_types", None)
    if window is not None and window > 0:
        return
    if layers is None and window is not None:
        inner.sliding_window = None
    if layers is not None and SLIDING in layers:  # a layer type of its own, which needs a window
        inner.sliding_window = inner.max_position_embeddings
