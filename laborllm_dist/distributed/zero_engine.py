"""DeepSpeed's engine, configured such that a step over any number of ranks equals one process on the whole batch.

DeepSpeed averages gradients over ranks; the loss is a sum over the step's tokens divided by their number over all
ranks and passes. So every pass back-propagates  sum of token losses x world_size / step_tokens,  and the accumulation
boundary is set by hand, since the number of passes differs from step to step.

DeepSpeed skips the update if a gradient is not finite (stages 1 to 3; this module does so at stage 0). To skip a step
on purpose, `skip_step` gives it such a gradient.
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
class LogLikelihoods:
    """Sums of log-likelihoods of a pass in nats: of tokens, weighted, and of titles by an output layer over them."""

    tokens: Tensor
    titles: Tensor | None

    def detached(self) -> Tensor:
        """Return both without their graphs, [2] float64; 0 where there is no such layer."""
        titles = torch.zeros_like(self.tokens) if self.titles is None else self.titles
        return torch.stack([self.tokens.detach().double(), titles.detach().double()])


@dataclass(frozen=True, slots=True)
class ZeroEngine:
    """A model that trains under DeepSpeed: the DeepSpeedEngine, and the optimizer inside, which is of `kind`."""

    deepspeed: Any
    adam: torch.optim.Optimizer
    kind: str
    ranks: DistributedContext
    settings: ZeroSettings

    def forward(self, batch: PackedBatch, *, is_last_pass: bool) -> LogLikelihoods:
        """Return a batch's sums of log-likelihoods in nats, with their graphs. Collective."""
        self.deepspeed.set_gradient_accumulation_boundary(is_last_pass)
        tokens, _, *of_titles = self.deepspeed(batch.to(self.ranks.device))
        return LogLikelihoods(tokens, of_titles[0].sum() if of_titles else None)

    def backward(self, sums: LogLikelihoods, *, loss_weight: float, title_weight: float = 0.0) -> None:
        """Add a batch's gradients to the step's. Collective.

        Args:
            sums: from `forward`.
            loss_weight: sum of the weights of the step's targets, over all ranks and passes; their number if all are 1.
            title_weight: weight of each title's log-likelihood by the output layer over titles.
        """
        loss = -sums.tokens * (self.ranks.world_size / loss_weight)
        if sums.titles is not None:
            loss = loss - sums.titles * (self.ranks.world_size * title_weight)
        self.deepspeed.backward(loss, scale_wrt_gas=False)

    def skip_step(self, sums: LogLikelihoods) -> None:
        """Skip the step: make its gradient NaN in place of its last `backward`. Collective."""
        everything = sums.tokens if sums.titles is None else sums.tokens + sums.titles
        self.deepspeed.backward(everything * math.nan, scale_wrt_gas=False)

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

    def log_likelihood(self, batch: PackedBatch) -> tuple[Tensor, Tensor | None]:
        """Return log p(target) of every slot with a target, [N], and the sum of log P of the titles by their layer.

        Both are without gradients; the latter is None without such a layer. Collective under ZeRO-3.
        """
        self.deepspeed.eval()
        with torch.no_grad():
            _, scores_N, *of_titles = self.deepspeed(batch.to(self.ranks.device))
        self.deepspeed.train()
        return scores_N, of_titles[0].double().sum() if of_titles else None

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
    zero_engine = ZeroEngine(deepspeed=engine, adam=adam, kind=optimizer.name, ranks=ranks, settings=zero)
    engine.train()
    return zero_engine
