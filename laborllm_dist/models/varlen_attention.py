"""Attention inside careers that are packed in rows, without a T x T mask.

    row    [ career a | career b b b | . . ]      lengths (1, 3, 2): padding is a separate stretch
    work     1          9              4          instead of 36 with a block mask

Registered with transformers as an attention implementation: bf16 and fp16 on CUDA use torch's variable-length kernel,
everything else scaled_dot_product_attention, career by career. A career's attention does not depend on its row.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from laborllm_dist.models.tree_attention import KVCache, NodeBlockTensors, branch_attention

PACKED = "laborllm_packed"
KERNEL_DTYPES = (torch.bfloat16, torch.float16)
# Model types whose attention receives the keyword arguments of the forward; others get a mask.
MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")


@dataclass(frozen=True, slots=True)
class CareerBounds:
    """Bounds of careers in flattened rows.

    `lengths`: of every stretch, padding included, row by row. `cu_seqlens_N`: [stretches + 1] int32 on the device.
    """

    lengths: tuple[int, ...]
    cu_seqlens_N: Tensor


def career_bounds(lengths: Sequence[int], device: torch.device) -> CareerBounds:
    """Return the bounds of stretches of these lengths."""
    cu_seqlens_N = torch.zeros(len(lengths) + 1, dtype=torch.int32)
    torch.cumsum(torch.tensor(lengths, dtype=torch.int32), dim=0, out=cu_seqlens_N[1:])
    return CareerBounds(tuple(lengths), cu_seqlens_N.to(device, non_blocking=True))


def register_packed_attention() -> None:
    """Register the attention with transformers under the name PACKED."""
    from transformers import AttentionInterface

    AttentionInterface.register(PACKED, packed_attention)


def packed_attention(
    module: nn.Module,
    query_BHTD: Tensor,
    key_BHTD: Tensor,
    value_BHTD: Tensor,
    attention_mask: Tensor | None,
    *,
    bounds: CareerBounds | None = None,
    tree_cache: KVCache | None = None,
    blocks: tuple[NodeBlockTensors, ...] | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Return causal attention inside careers, [B, T, H, D].

    The arguments are those of transformers' attention interface; keys and values may have fewer heads than queries.
    Without bounds every row is one career. With `tree_cache`, keys and values are cached there; with `blocks` too,
    the slots are nodes that attend to the cache (models/tree_attention.py).

    Raises:
        ValueError: if a mask is given, which this attention does not support.
    """
    if attention_mask is not None:
        raise ValueError("packed attention takes bounds, not a mask")
    if tree_cache is not None:
        layer = int(module.layer_idx)  # type: ignore[arg-type]
        if blocks is not None:
            return branch_attention(layer, (query_BHTD, key_BHTD, value_BHTD), tree_cache, blocks, scaling), None
        tree_cache.keep_history(layer, key_BHTD, value_BHTD)
    if bounds is None:
        num_rows, num_slots = query_BHTD.shape[0], query_BHTD.shape[2]
        bounds = career_bounds([num_slots] * num_rows, query_BHTD.device)
    if query_BHTD.is_cuda and torch.is_autocast_enabled("cuda"):
        # RoPE returned float32 queries and keys.
        narrow = torch.get_autocast_dtype("cuda")
        query_BHTD, key_BHTD, value_BHTD = (each.to(narrow) for each in (query_BHTD, key_BHTD, value_BHTD))
    if query_BHTD.is_cuda and not dropout and kernel_takes(query_BHTD.dtype, width=query_BHTD.shape[3]):
        return by_kernel(query_BHTD, key_BHTD, value_BHTD, bounds, scaling), None
    return _career_by_career(query_BHTD, key_BHTD, value_BHTD, bounds, (scaling, dropout)), None


def kernel_takes(dtype: torch.dtype, *, width: int) -> bool:
    """Return whether torch's kernel supports this head size: a multiple of 8, up to 256."""
    return dtype in KERNEL_DTYPES and width % 8 == 0 and width <= 256


def by_kernel(
    query_BHTD: Tensor, key_BHTD: Tensor, value_BHTD: Tensor, bounds: CareerBounds, scaling: float | None
) -> Tensor:
    """Return attention inside careers, [B, T, H, D], by torch's variable-length kernel (bf16 and fp16 on CUDA)."""
    from torch.nn.attention.varlen import varlen_attn

    num_rows, num_heads, num_slots, width = query_BHTD.shape
    query_NHD, key_NHD, value_NHD = (
        each.transpose(1, 2).reshape(num_rows * num_slots, each.shape[1], width)
        for each in (query_BHTD, key_BHTD, value_BHTD)
    )
    longest = max(bounds.lengths)
    causal = (-1, 0)
    shares_keys = num_heads != key_BHTD.shape[1] and _asks_for_shared_keys(varlen_attn)
    more: dict[str, Any] = {"enable_gqa": True} if shares_keys else {}
    found_NHD = varlen_attn(
        query_NHD,
        key_NHD,
        value_NHD,
        bounds.cu_seqlens_N,
        bounds.cu_seqlens_N,
        longest,
        longest,
        scale=scaling,
        window_size=causal,
        **more,
    )
    assert isinstance(found_NHD, Tensor)  # a pair only if auxiliary values are requested
    return found_NHD.reshape(num_rows, num_slots, num_heads, width)


@functools.cache
def _asks_for_shared_keys(varlen_attn: Callable[..., Any]) -> bool:
    """Return the kernel's argument for heads that share keys, which torch 2.11 does not have."""
    return "enable_gqa" in inspect.signature(varlen_attn).parameters


def _career_by_career(
    query_BHTD: Tensor, key_BHTD: Tensor, value_BHTD: Tensor, bounds: CareerBounds, how: tuple[float | None, float]
) -> Tensor:
    scaling, dropout = how
    num_sharing = query_BHTD.shape[1] // key_BHTD.shape[1]
    if query_BHTD.is_cuda and num_sharing > 1:
        # On a GPU, float32 with shared keys has no kernel except the one that stores all T x T weights.
        key_BHTD, value_BHTD = (each.repeat_interleave(num_sharing, dim=1) for each in (key_BHTD, value_BHTD))
    shares_keys = query_BHTD.shape[1] != key_BHTD.shape[1]
    rows: list[Tensor] = []
    lengths = iter(bounds.lengths)
    num_slots = query_BHTD.shape[2]
    for row in range(query_BHTD.shape[0]):
        cuts: list[int] = []
        while sum(cuts) < num_slots:
            cuts.append(next(lengths))
        of_row = (torch.split(each[row : row + 1], cuts, dim=2) for each in (query_BHTD, key_BHTD, value_BHTD))
        parts = [
            nn.functional.scaled_dot_product_attention(
                query, key, value, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=shares_keys
            )
            for query, key, value in zip(*of_row, strict=True)
        ]
        rows.append(torch.cat(parts, dim=2))
    return torch.cat(rows).transpose(1, 2)
