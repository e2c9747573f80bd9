"""A causal language model over packed careers, and the one log-likelihood that training and scoring share.

Softmax and its logarithm are float32 or better whatever the weights are; only slots with a target get logits summed.
"""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn

from laborllm_dist.batches.packed import IGNORED, PackedBatch


def token_log_likelihood(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Return log p(target) in nats for every slot, [B, T]; 0 where the target is IGNORED.

    The softmax is float32, or float64 where the logits are.

    Raises:
        ValueError: if targets are not [B, T] of the logits.
    """
    if logits_BTV.shape[:-1] != targets_BT.shape:
        raise ValueError(f"targets {tuple(targets_BT.shape)} do not fit logits {tuple(logits_BTV.shape)}")
    precise = logits_BTV.dtype if logits_BTV.dtype == torch.float64 else torch.float32
    loss_N = nn.functional.cross_entropy(
        logits_BTV.flatten(0, 1).to(precise), targets_BT.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return -loss_N.view(targets_BT.shape)


def attention_mask(segments_BT: Tensor) -> Tensor:
    """Return [B, 1, T, T] bool: a slot sees itself and earlier slots of its own segment.

    Padding is a segment too, so that no row of the mask is empty.
    """
    num_slots = segments_BT.shape[1]
    causal_TT = torch.ones(num_slots, num_slots, dtype=torch.bool, device=segments_BT.device).tril()
    return (segments_BT[:, :, None] == segments_BT[:, None, :]).logical_and(causal_TT)[:, None]


class CareerLanguageModel(nn.Module):
    """Wraps a transformers model, so that DeepSpeed's hooks see one forward from ids to log-likelihoods."""

    def __init__(self, hugging_face: nn.Module) -> None:
        super().__init__()
        self.hugging_face = hugging_face
        # Models that can leave out logits nobody asks for are asked to.
        self._can_skip = "logits_to_keep" in inspect.signature(hugging_face.forward).parameters

    def forward(self, batch: PackedBatch) -> Tensor:
        """Return log p(target) of every slot, [B, T]; 0 where the target is IGNORED."""
        kept_K = (batch.targets_BT != IGNORED).any(dim=0).nonzero().flatten()
        if not self._can_skip or not len(kept_K):
            kept_K = torch.arange(batch.targets_BT.shape[1], device=batch.targets_BT.device)
        logits_BKV = self.hugging_face(
            input_ids=batch.token_ids_BT,
            position_ids=batch.positions_BT,
            attention_mask=attention_mask(batch.segments_BT),
            use_cache=False,
            **({"logits_to_keep": kept_K} if self._can_skip else {}),
        ).logits
        kept_BK = token_log_likelihood(logits_BKV, batch.targets_BT[:, kept_K])
        scores_BT = torch.zeros(batch.targets_BT.shape, dtype=kept_BK.dtype, device=kept_BK.device)
        return scores_BT.index_copy(1, kept_K, kept_BK)
