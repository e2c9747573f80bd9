"""A causal language model over packed careers, and the one log-likelihood that training and scoring share.

A model of a known type returns its hidden states; logits are computed only for slots with a target, a chunk at a time
(models/log_likelihood.py), and attention stays inside careers without a mask (models/varlen_attention.py). Any other
causal model computes its own logits, since they may be scaled, capped or biased: under a block mask, or, if the model
takes no such mask (ALiBi, recurrent layers, no position ids), with each career in a separate row.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from laborllm_dist.batching.batch import IGNORED, PackedBatch, PaddedBatch
from laborllm_dist.config.model import ComputeSettings
from laborllm_dist.errors import ModelError
from laborllm_dist.models.kernels import use_kernels
from laborllm_dist.models.log_likelihood import chunked_log_likelihood, fused_log_likelihood, token_log_likelihood
from laborllm_dist.models.pretrained_config import attention_window
from laborllm_dist.models.title_head import TitleHead
from laborllm_dist.models.varlen_attention import MODEL_TYPES, PACKED, career_bounds, register_packed_attention

HeadFn = Callable[..., Any]  # gets hidden states [N, D] and the output layer's weight [V, D]


def block_mask(model: Any, lengths: tuple[int, ...], num_slots: int, device: torch.device) -> Tensor:
    """Return `attention_mask` as the model's attention takes it."""
    return as_taken(model, attention_mask(lengths, num_slots, device))


def as_taken(model: Any, is_seen: Tensor) -> Tensor:
    """Return a boolean mask in the form that the model's attention takes: eager attention adds it to its scores."""
    if model.config._attn_implementation != "eager":
        return is_seen
    dtype = model.get_input_embeddings().weight.dtype
    return torch.zeros(is_seen.shape, dtype=dtype, device=is_seen.device).masked_fill(~is_seen, torch.finfo(dtype).min)


def attention_mask(lengths: tuple[int, ...], num_slots: int, device: torch.device) -> Tensor:
    """Return [B, 1, T, T] bool: a slot attends to itself and to earlier slots of its own stretch.

    Stretches lie end to end in rows of `num_slots`. Padding is a stretch too, so no row of the mask is empty.
    """
    stretch_BT = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)).view(-1, num_slots).to(device)
    causal_TT = torch.ones(num_slots, num_slots, dtype=torch.bool, device=device).tril()
    return (stretch_BT[:, :, None] == stretch_BT[:, None, :]).logical_and(causal_TT)[:, None]


class CareerLanguageModel(nn.Module):
    """Wraps a transformers model: one forward, which DeepSpeed's hooks see, from ids to log-likelihoods."""

    def __init__(self, hugging_face: nn.Module, compute: ComputeSettings, title_head: TitleHead | None = None) -> None:
        """Set the model up for packed careers.

        Raises:
            ModelError: if compute.attention=packed or compute.kernels, and the model does not support it.
        """
        super().__init__()
        self.hugging_face = hugging_face
        self.title_head = title_head
        self._compute = compute
        # Models that can skip logits that are not needed do so.
        self._can_skip = "logits_to_keep" in inspect.signature(hugging_face.forward).parameters
        self._is_known = is_known_type(hugging_face)
        self._is_packed = supports_varlen_attention(hugging_face, compute)
        self._takes_mask = takes_block_mask(hugging_face)
        use_kernels(hugging_face, compute.kernels)
        if self._is_known:
            enable_custom_head(hugging_face)

    def forward(self, batch: PackedBatch) -> tuple[Tensor, ...]:
        """Return the weighted sum of log p(target), which has gradients, and log p(target) of every slot with one, [N].

        The latter are in the order of `batch.scored_N`, and have no gradients; with `compute.loss=liger` they are
        computed in evaluation only, and empty in training. Of a batch with titles a third value is log P of the
        observed ones by the output layer over titles, [Q], which has gradients.
        """
        total, scores_N, hidden_QD = self._scored(batch)
        if self.title_head is None or batch.titles is None:
            return total, scores_N
        return total, scores_N, self.title_head(hidden_QD, batch.titles)

    def _scored(self, batch: PackedBatch) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the two values of the language model, and the hidden states at the prompts of a batch with titles."""
        slots_Q = None if self.title_head is None or batch.titles is None else batch.titles.slots_Q
        if self._is_known:
            hidden_MD = decoder_of(self.hugging_face)(**self._inputs(batch)).last_hidden_state.flatten(0, 1)
            total, scores_N = apply_head(self.hugging_face, hidden_MD[batch.scored_N], self._loss(batch))
            return total, scores_N, None if slots_Q is None else hidden_MD[slots_Q]
        with_states = {} if slots_Q is None else {"output_hidden_states": True}
        if not self._takes_mask:
            padded = batch.one_a_row(batch.scored_N)
            output = self.hugging_face(**padded_inputs(padded), **with_states)
            scores_ST = token_log_likelihood(output.logits, padded.targets_ST)
            total = batch.weighted(scores_ST, padded.slots_ST).sum()
            hidden_QD = None if slots_Q is None else padded.at_slots(output.hidden_states[-1], slots_Q)
            return total, scores_ST.detach()[padded.targets_ST != IGNORED], hidden_QD
        kept_K = (batch.targets_BT != IGNORED).any(dim=0).nonzero().flatten()
        if not self._can_skip or not len(kept_K):
            kept_K = torch.arange(batch.targets_BT.shape[1], device=batch.targets_BT.device)
        skipping = {"logits_to_keep": kept_K} if self._can_skip else {}
        output = self.hugging_face(**self._inputs(batch), **skipping, **with_states)
        targets_BK = batch.targets_BT[:, kept_K]
        scores_BK = token_log_likelihood(output.logits, targets_BK)
        slots_BT = torch.arange(batch.targets_BT.numel(), device=targets_BK.device).view_as(batch.targets_BT)
        total = batch.weighted(scores_BK, slots_BT[:, kept_K]).sum()
        hidden_QD = None if slots_Q is None else output.hidden_states[-1].flatten(0, 1)[slots_Q]
        return total, scores_BK.detach()[targets_BK != IGNORED], hidden_QD

    def hidden_states(self, batch: PackedBatch, layer: int, slots_P: Tensor) -> Tensor:
        """Return the hidden states after a layer at slots of the flattened rows, [P, D].

        Layers are counted from 0; -1 is the last one, with the last norm.
        """
        slots_P = slots_P.to(batch.token_ids_BT.device)
        if not self._takes_mask:
            padded = batch.one_a_row(slots_P)
            states = self.hugging_face(**padded_inputs(padded), output_hidden_states=True).hidden_states
            return padded.at_slots(states[layer], slots_P)
        model = decoder_of(self.hugging_face) if self._is_known else self.hugging_face
        if self._is_known and layer == -1:  # without those of the other layers in memory
            last_PD: Tensor = model(**self._inputs(batch)).last_hidden_state.flatten(0, 1)[slots_P]
            return last_PD
        states = model(**self._inputs(batch), output_hidden_states=True).hidden_states
        hidden_PD: Tensor = states[layer].flatten(0, 1)[slots_P]
        return hidden_PD

    def _loss(self, batch: PackedBatch) -> HeadFn:
        targets_N = batch.targets_BT.flatten()[batch.scored_N]
        if self._compute.loss == "liger" and torch.is_grad_enabled():
            return functools.partial(fused_log_likelihood, targets_N=targets_N)
        chunk = self._compute.loss_chunk_tokens
        weights_N = None if batch.weights_BT is None else batch.weights_BT.flatten()[batch.scored_N]
        return functools.partial(chunked_log_likelihood, targets_N=targets_N, weights_N=weights_N, chunk_tokens=chunk)

    def _inputs(self, batch: PackedBatch) -> dict[str, Any]:
        inputs = {"input_ids": batch.token_ids_BT, "position_ids": batch.positions_BT, "use_cache": False}
        device = batch.token_ids_BT.device
        if self._is_packed:
            return {**inputs, "bounds": career_bounds(batch.lengths, device)}
        mask = block_mask(self.hugging_face, batch.lengths, batch.token_ids_BT.shape[1], device)
        return {**inputs, "attention_mask": mask}


def padded_inputs(padded: PaddedBatch) -> dict[str, Any]:
    """Return the model's inputs for careers in separate rows."""
    return {"input_ids": padded.token_ids_ST, "attention_mask": padded.mask_ST.long(), "use_cache": False}


def takes_block_mask(model: Any) -> bool:
    """Return whether the model can take several careers in a row, each with positions from 0 on.

    It cannot if it computes distances from a two-dimensional mask (ALiBi), counts positions itself, or carries a state
    from token to token.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    has_positions = "position_ids" in inspect.signature(base.forward).parameters
    return has_positions and not getattr(base.config, "alibi", False) and not getattr(base, "_is_stateful", False)


def is_known_type(model: nn.Module) -> bool:
    """Return whether the logits are just the output layer's product with the hidden states.

    A head that an adapter wraps, or that is quantized, is a layer of another type.
    """
    config: Any = model.config
    if config.model_type not in MODEL_TYPES:
        return False
    head = model.get_output_embeddings()  # type: ignore[operator]
    return isinstance(head, OutputLayer) or (type(head) is nn.Linear and head.bias is None)


def supports_varlen_attention(model: nn.Module, compute: ComputeSettings) -> bool:
    """Set packed attention if the model supports it and the settings allow it; return whether it is set.

    Raises:
        ModelError: if the settings require it and the model does not support it.
    """
    config: Any = model.config
    can = config.model_type in MODEL_TYPES and attention_window(config) is None
    if compute.attention == "packed" and not can:
        raise ModelError(
            f"compute.attention=packed knows models of type {', '.join(MODEL_TYPES)} without a sliding window, "
            f"this one is {config.model_type}; set compute.attention=mask",
            code="packed-attention-unsupported",
        )
    if not can or compute.attention == "mask":
        return False
    register_packed_attention()
    model.set_attn_implementation(PACKED)  # type: ignore[operator]
    return True


def decoder_of(model: Any) -> nn.Module:
    """Return the model's decoder, without the output layer, also inside an adapter."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    decoder: nn.Module = base.get_decoder()
    return decoder


class OutputLayer(nn.Module):
    """The output layer of a known type: returns logits, or a function of the hidden states and the weight.

    ZeRO-3 gathers a weight around the forward and the backward of the module that holds it. So the function, which
    needs the whole weight, runs inside this module's forward. Its only weight keeps its name.
    """

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, hidden_ND: Tensor, head_fn: HeadFn | None = None) -> Any:
        """Return logits, [N, V], or what `head_fn` returns."""
        return nn.functional.linear(hidden_ND, self.weight) if head_fn is None else head_fn(hidden_ND, self.weight)


def enable_custom_head(model: Any) -> None:
    """Replace the output layer of a known type with an `OutputLayer` over the same weight; idempotent."""
    head = model.get_output_embeddings()
    if not isinstance(head, OutputLayer):
        model.set_output_embeddings(OutputLayer(head.weight))


def apply_head(model: Any, hidden_ND: Tensor, head_fn: HeadFn) -> Any:
    """Return `head_fn` of the hidden states and the output layer's weight, which ZeRO-3 gathers for it."""
    return model.get_output_embeddings()(hidden_ND, head_fn)
