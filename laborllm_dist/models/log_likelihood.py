"""From hidden states to log-likelihoods of tokens, without ever holding the logits of all tokens.

Logits of 4,096 tokens over 32,000 ids are 0.5 GiB in float32, and a softmax and its gradient need three copies. So they
are computed for `chunk_tokens` tokens at a time: log p(target) = logit of the target - logsumexp of all, in float32 or
better. In training the gradient of the sum, onehot - softmax, is available immediately, so each chunk adds to the
gradients of hidden states and weight before the next one, and nothing is recomputed.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn

from laborllm_dist.batching.batch import IGNORED

# The C library reuses blocks below 32 MiB; the system allocates larger ones as new pages each time.
HOST_CHUNK_BYTES = 2**24


def token_log_likelihood(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Return log p(target) in nats for every slot, [B, T]; 0 where the target is IGNORED.

    The softmax is float32, or float64 where the logits are.

    Raises:
        ValueError: if targets are not [B, T] of the logits.
    """
    if logits_BTV.shape[:-1] != targets_BT.shape:
        raise ValueError(f"targets {tuple(targets_BT.shape)} do not fit logits {tuple(logits_BTV.shape)}")
    loss_N = nn.functional.cross_entropy(
        logits_BTV.flatten(0, 1).to(_precise(logits_BTV.dtype)),
        targets_BT.flatten(),
        ignore_index=IGNORED,
        reduction="none",
    )
    return -loss_N.view(targets_BT.shape)


def chunked_log_likelihood(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, *, chunk_tokens: int, weights_N: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the weighted sum of log p(target), which has gradients, and log p(target) of every token, [N], without.

    Args:
        hidden_ND: hidden states of the tokens before the targets.
        weight_VD: of the output layer.
        targets_N: token ids.
        chunk_tokens: number of tokens whose logits are in memory at once.
        weights_N: of the tokens in the sum; None: all 1.
    """
    if hidden_ND.is_cuda and torch.is_autocast_enabled("cuda"):
        # The last norm returned float32, and float32 products do not use a GPU's tensor cores.
        hidden_ND = hidden_ND.to(torch.get_autocast_dtype("cuda"))
    apply: Any = _ChunkedLogLikelihood.apply
    total, scores_N = apply(hidden_ND, weight_VD, targets_N, weights_N, chunk_tokens)
    return total, scores_N


class _ChunkedLogLikelihood(torch.autograd.Function):
    """log p(target) by chunks; the forward computes gradients, and the backward scales them."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, weights_N: Tensor | None, chunk_tokens: int
    ) -> tuple[Tensor, Tensor]:
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        precise = _precise(hidden_ND.dtype)
        matrix_VD = weight_VD.to(hidden_ND.dtype)  # under autocast the weight is float32, the hidden states are bf16
        scores_N = torch.empty(len(targets_N), dtype=precise, device=hidden_ND.device)
        hidden_grad_ND = torch.empty_like(hidden_ND) if wants_hidden else None
        weight_grad_VD = torch.zeros_like(weight_VD, dtype=precise) if wants_weight else None
        if hidden_grad_ND is None and weight_grad_VD is None:
            chunk_tokens = _chunk_to_score(hidden_ND, matrix_VD.shape[0], chunk_tokens)
        with torch.autocast(hidden_ND.device.type, enabled=False):
            for first in range(0, len(targets_N), chunk_tokens):
                chunk = slice(first, first + chunk_tokens)
                logits_CV = _product(hidden_ND[chunk], matrix_VD.T, precise)
                targets_C1 = targets_N[chunk, None]
                own_C1 = logits_CV.gather(1, targets_C1)
                exponentials_CV, sums_C1, logsumexp_C1 = _exponentials(logits_CV)
                scores_N[chunk] = (own_C1 - logsumexp_C1)[:, 0]
                if hidden_grad_ND is None and weight_grad_VD is None:
                    continue
                gradient_CV = exponentials_CV.div_(-sums_C1)  # - softmax, in place of the logits
                gradient_CV.scatter_add_(1, targets_C1, torch.ones_like(sums_C1))
                if weights_N is not None:
                    gradient_CV.mul_(weights_N[chunk, None])
                narrow_CV = gradient_CV.to(hidden_ND.dtype)
                if hidden_grad_ND is not None:
                    hidden_grad_ND[chunk] = narrow_CV @ matrix_VD
                if weight_grad_VD is not None:
                    weight_grad_VD += _product(narrow_CV.T, hidden_ND[chunk], precise)
        ctx.save_for_backward(hidden_grad_ND, weight_grad_VD)
        ctx.weight_dtype = weight_VD.dtype
        ctx.mark_non_differentiable(scores_N)
        return (scores_N if weights_N is None else scores_N * weights_N).sum(), scores_N

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden_grad_ND, weight_grad_VD = ctx.saved_tensors
        scale = gradients[0]
        hidden = None if hidden_grad_ND is None else (hidden_grad_ND * scale).to(hidden_grad_ND.dtype)
        weight = None if weight_grad_VD is None else (weight_grad_VD * scale).to(ctx.weight_dtype)
        return hidden, weight, None, None, None


def log_prob_of(
    hidden_ND: Tensor, weight_VD: Tensor | None, sources_E: Tensor, tokens_E: Tensor, *, chunk_tokens: int
) -> Tensor:
    """Return log p(token | slot) in nats for every requested pair, [E]; other tokens enter the normalizer only.

    Args:
        hidden_ND: hidden states of the slots; logits [N, V] where there is no weight.
        weight_VD: of the output layer.
        sources_E: slots, ascending, on the CPU.
        tokens_E: token ids, on the CPU.
        chunk_tokens: how many slots have their logits in memory at once.
    """
    precise = _precise(hidden_ND.dtype)
    scores_E = torch.empty(len(sources_E), dtype=precise, device=hidden_ND.device)
    matrix_DV = None if weight_VD is None else weight_VD.to(hidden_ND.dtype).T
    num_ids = hidden_ND.shape[1] if matrix_DV is None else matrix_DV.shape[1]
    chunk_tokens = _chunk_to_score(hidden_ND, num_ids, chunk_tokens)
    firsts = range(0, len(hidden_ND), chunk_tokens)
    cuts = torch.searchsorted(sources_E, torch.tensor([*firsts, len(hidden_ND)])).tolist()
    for first, (low, high) in zip(firsts, itertools.pairwise(cuts), strict=True):
        rows_CD = hidden_ND[first : first + chunk_tokens]
        logits_CV = rows_CD.to(precise, copy=True) if matrix_DV is None else _product(rows_CD, matrix_DV, precise)
        places = (sources_E[low:high] - first).to(logits_CV.device, non_blocking=True)
        asked_E = logits_CV[places, tokens_E[low:high].to(logits_CV.device)]
        scores_E[low:high] = asked_E - _exponentials(logits_CV)[2][places, 0]
    return scores_E


def _exponentials(logits_CV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Turn logits into exp(logit - largest) in place; return them, their sums [C, 1] and logsumexp [C, 1].

    A copy of the logits would cost about as much as the matrix product that computes them.
    """
    largest_C1 = logits_CV.amax(dim=1, keepdim=True)
    exponentials_CV = logits_CV.sub_(largest_C1).exp_()
    sums_C1 = exponentials_CV.sum(dim=1, keepdim=True)
    return exponentials_CV, sums_C1, sums_C1.log() + largest_C1


def _chunk_to_score(hidden_ND: Tensor, num_ids: int, chunk_tokens: int) -> int:
    """Return the number of tokens whose logits are computed at once without gradients."""
    if hidden_ND.is_cuda:
        return chunk_tokens
    return max(1, min(chunk_tokens, HOST_CHUNK_BYTES // (_precise(hidden_ND.dtype).itemsize * num_ids)))


def sample_tokens(hidden_ND: Tensor, weight_VD: Tensor | None, uniforms_N: Tensor, *, chunk_tokens: int) -> Tensor:
    """Return the next token of every slot, [N]: the most probable one, or a sample.

    Among equally probable tokens the lowest id wins. A sample is the first token whose cumulative probability, in
    float64 and in the order of ids, exceeds the uniform number.

    Args:
        hidden_ND: hidden states of the slots; logits [N, V] where there is no weight.
        weight_VD: of the output layer.
        uniforms_N: uniform on [0, 1), float64, on the CPU; NaN selects the most probable token.
        chunk_tokens: number of slots whose logits are in memory at once, in float32; a quarter of it in float64.
    """
    precise = _precise(hidden_ND.dtype)
    tokens_N = torch.empty(len(hidden_ND), dtype=torch.int64, device=hidden_ND.device)
    matrix_DV = None if weight_VD is None else weight_VD.to(hidden_ND.dtype).T
    num_ids = hidden_ND.shape[1] if matrix_DV is None else matrix_DV.shape[1]
    chunk_tokens = max(1, chunk_tokens // 4)  # two float64 tensors: probabilities and their sums
    if not hidden_ND.is_cuda:
        chunk_tokens = max(1, min(chunk_tokens, HOST_CHUNK_BYTES // (8 * num_ids)))
    for first in range(0, len(hidden_ND), chunk_tokens):
        chunk = slice(first, first + chunk_tokens)
        rows_CD, uniforms_C = hidden_ND[chunk], uniforms_N[chunk].to(hidden_ND.device)
        logits_CV = rows_CD.to(precise) if matrix_DV is None else _product(rows_CD, matrix_DV, precise)
        best_C = logits_CV.argmax(dim=1)  # the first of equally large ones
        cumulated_CV = (logits_CV - logits_CV.gather(1, best_C[:, None])).double().exp_().cumsum_(dim=1)
        reached_C1 = uniforms_C.nan_to_num()[:, None] * cumulated_CV[:, -1:]
        drawn_C = torch.searchsorted(cumulated_CV, reached_C1, right=True)[:, 0].clamp_max(num_ids - 1)
        tokens_N[chunk] = torch.where(uniforms_C.isnan(), best_C, drawn_C)
    return tokens_N


def _product(left: Tensor, right: Tensor, precise: torch.dtype) -> Tensor:
    """Return left @ right in `precise`: low-precision operands, high-precision result, if the device supports it."""
    if left.dtype == precise:
        return left @ right
    if left.is_cuda:
        wide: Tensor = torch.mm(left, right, out_dtype=precise)
        return wide
    return left.to(precise) @ right.to(precise)


def _precise(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype == torch.float64 else torch.float32


def fused_log_likelihood(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """Return what `chunked_log_likelihood` returns, by liger-kernel's fused kernel; the second value is empty."""
    if not len(targets_N):
        return chunked_log_likelihood(hidden_ND, weight_VD, targets_N, chunk_tokens=1)
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss: Tensor = LigerFusedLinearCrossEntropyLoss(reduction="sum")(weight_VD, hidden_ND, targets_N)
    return -loss, hidden_ND.new_empty(0)
