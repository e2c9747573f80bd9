"""DeepSpeed's engine, configured such that a step over any number of ranks equals one process on the whole batch.

DeepSpeed averages gradients over ranks; the loss wanted is a sum over the step's tokens divided by their number over
all ranks and passes. So every pass back-propagates  sum of token losses x world_size / step_tokens,  and the
accumulation boundary is set by hand, since the number of passes differs from step to step.

A step whose gradient is not finite is never applied: from stage 1 on DeepSpeed sees to that, at stage 0 this module. So
a step that is to be left out is given such a gradient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from laborllm_dist.batching.batch import PackedBatch
from laborllm_dist.config.model import OptimizerSettings, ZeroSettings
from laborllm_dist.distributed.context import DistributedContext
from laborllm_dist.distributed.deepspeed_config import check_8bit, deepspeed_config
from laborllm_dist.distributed.jit_ops import check_nvme, load_operators
from laborllm_dist.distributed.library_internals import import_deepspeed, import_muon
from laborllm_dist.distributed.optimizers import make_optimizer


@dataclass(frozen=True, slots=True)
class ZeroEngine:
    """A model that trains under DeepSpeed: the DeepSpeedEngine, and the optimizer inside, which is of `kind`."""

    deepspeed: Any
    adam: torch.optim.Optimizer
    kind: str
    ranks: DistributedContext
    settings: ZeroSettings

    def forward(self, batch: PackedBatch, *, is_last_pass: bool) -> Tensor:
        """Return a batch's weighted sum of log-likelihoods in nats, a scalar with its graph. Collective."""
        self.deepspeed.set_gradient_accumulation_boundary(is_last_pass)
        total: Tensor = self.deepspeed(batch.to(self.ranks.device))[0]
        return total

    def backward(self, total: Tensor, *, loss_weight: float) -> None:
        """Add a batch's gradients to the step's. Collective.

        Args:
            total: from `forward`.
            loss_weight: sum of the weights of the step's targets, over all ranks and passes; their number if all are 1.
        """
        self.deepspeed.backward(-total * (self.ranks.world_size / loss_weight), scale_wrt_gas=False)

    def leave_out(self, total: Tensor) -> None:
        """Skip the step: make its gradient NaN in place of its last `backward`. Collective."""
        self.deepspeed.backward(total * math.nan, scale_wrt_gas=False)

    def update(self, *, learning_rate: float) -> float:
        """Apply the step's gradients; return their norm before clipping. Collective.

        A non-finite norm means that the update was not applied.
        """
        for group in self.adam.param_groups:
            group["lr"] = learning_rate
        own_norm = self._plain_gradient_norm()
        if own_norm is not None and not math.isfinite(own_norm):
            self.deepspeed.zero_grad()
            return own_norm
        self.deepspeed.step()
        norm = self.deepspeed.get_global_grad_norm() if own_norm is None else own_norm
        return float(norm)

    def log_likelihood(self, batch: PackedBatch) -> Tensor:
        """Return log p(target) of every slot with a target, [N], without gradients. Collective under ZeRO-3."""
        self.deepspeed.eval()
        with torch.no_grad():
            scores_N: Tensor = self.deepspeed(batch.to(self.ranks.device))[1]
        self.deepspeed.train()
        return scores_N

    def _plain_gradient_norm(self) -> float | None:
        """Return the gradient norm at stage 0, where DeepSpeed does not record it."""
        if self.settings.stage != 0:
            return None
        gradients = [parameter.grad for parameter in self.deepspeed.module.parameters() if parameter.grad is not None]
        return float(nn.utils.get_total_norm(gradients))


def make_engine(
    model: nn.Module, zero: ZeroSettings, optimizer: OptimizerSettings, ranks: DistributedContext
) -> ZeroEngine:
    """Put a model under DeepSpeed. Collective.

    Raises:
        SettingsError: if a rank has more weights in one stretch than 8-bit AdamW can count, or an operator of
            DeepSpeed's cannot be compiled.
    """
    on_gpu = ranks.device.type == "cuda"
    check_nvme(zero, is_on_gpu=on_gpu)
    deepspeed = import_deepspeed()
    load_operators(zero, optimizer)
    adam = make_optimizer(model, optimizer)
    import_muon()
    ranks.barrier()  # weights to read, operators to compile: one rank takes longer, and DeepSpeed begins collectively
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=adam,
        config=deepspeed_config(zero, optimizer.max_grad_norm, ranks.world_size, on_gpu=on_gpu),
        dist_init_required=False,
    )
    stretches = [stretch.numel() for group in adam.param_groups for stretch in group["params"]]
    check_8bit(optimizer, zero, largest=max(stretches, default=0))  # ZeRO-3 keeps its groups elsewhere
    made = ZeroEngine(deepspeed=engine, adam=adam, kind=optimizer.name, ranks=ranks, settings=zero)
    engine.train()
    return made
