"""DeepSpeed's engine for a model, so set up that a step over any ranks equals one process on the whole batch.

DeepSpeed averages gradients over ranks; the loss wanted is a sum over the step's tokens divided by their number over
all ranks and passes. So every pass back-propagates  sum of token losses x world_size / step_tokens,  and the
accumulation boundary is set by hand, since the number of passes differs from step to step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from laborllm_dist.batches.packed import PackedBatch
from laborllm_dist.engine.language_model import CareerLanguageModel
from laborllm_dist.engine.ranks import Ranks, import_deepspeed
from laborllm_dist.settings import OptimizerSettings, ZeroSettings


@dataclass(frozen=True, slots=True)
class ZeroEngine:
    """A model that trains under DeepSpeed. `deepspeed` is the DeepSpeedEngine, `adam` the torch optimizer inside."""

    deepspeed: Any
    adam: torch.optim.AdamW
    ranks: Ranks
    settings: ZeroSettings

    def learn_from(self, batch: PackedBatch, *, step_tokens: int, is_last_pass: bool) -> Tensor:
        """Add a batch's gradients to the step's; return its summed log-likelihood, nats, float64. Collective."""
        self.deepspeed.set_gradient_accumulation_boundary(is_last_pass)
        scores_BT = self.deepspeed(batch.to(self.ranks.device))
        loss = -scores_BT.sum() * (self.ranks.world_size / step_tokens)
        self.deepspeed.backward(loss, scale_wrt_gas=False)
        total: Tensor = scores_BT.detach().sum(dtype=torch.float64)
        return total

    def update(self, *, learning_rate: float) -> float:
        """Apply the step's gradients; return their norm before clipping. Collective."""
        for group in self.adam.param_groups:
            group["lr"] = learning_rate
        own_norm = self._plain_gradient_norm()
        self.deepspeed.step()
        norm = self.deepspeed.get_global_grad_norm() if own_norm is None else own_norm
        return float(norm)

    def log_likelihood(self, batch: PackedBatch) -> Tensor:
        """Return log p(target) of every slot without gradients, [B, T] float32. Collective under ZeRO-3."""
        self.deepspeed.eval()
        with torch.no_grad():
            scores_BT: Tensor = self.deepspeed(batch.to(self.ranks.device))
        self.deepspeed.train()
        return scores_BT

    def _plain_gradient_norm(self) -> float | None:
        """Return the norm at stage 0, where DeepSpeed does not keep it; the gradients are complete by now."""
        if self.settings.stage != 0:
            return None
        gradients = [parameter.grad for parameter in self.deepspeed.module.parameters() if parameter.grad is not None]
        return float(nn.utils.get_total_norm(gradients))


def make_engine(
    model: CareerLanguageModel, zero: ZeroSettings, optimizer: OptimizerSettings, ranks: Ranks
) -> ZeroEngine:
    """Put a model under DeepSpeed. Collective."""
    deepspeed = import_deepspeed()
    adam = torch.optim.AdamW(
        parameter_groups(model, optimizer.weight_decay),
        lr=optimizer.learning_rate,
        betas=(optimizer.beta1, optimizer.beta2),
        eps=optimizer.epsilon,
    )
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=adam,
        config=deepspeed_config(zero, optimizer.max_gradient_norm, ranks.world_size),
        dist_init_required=False,
    )
    made = ZeroEngine(deepspeed=engine, adam=adam, ranks=ranks, settings=zero)
    engine.train()
    return made


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return matrices, which decay, and vectors (norms, biases), which do not."""
    learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in learnt if parameter.dim() >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in learnt if parameter.dim() < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def deepspeed_config(zero: ZeroSettings, max_gradient_norm: float | None, world_size: int) -> dict[str, Any]:
    """Return DeepSpeed's configuration. Defaults that have changed between its versions are all set."""
    bucket = zero.bucket_elements
    # Stage 0 has no fp32 master weights of its own: there, bf16 is autocast over fp32 weights.
    is_autocast = zero.stage == 0 and zero.precision == "bf16"
    return {
        "train_batch_size": world_size,  # nominal: passes and tokens are counted by the plan
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": max_gradient_norm or 0.0,
        "bf16": {"enabled": zero.precision == "bf16" and not is_autocast},
        "torch_autocast": {"enabled": is_autocast, "dtype": "bfloat16"},
        "fp16": {"enabled": False},
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {
            "stage": zero.stage,
            "overlap_comm": False,
            "contiguous_gradients": True,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            "stage3_prefetch_bucket_size": bucket,
            "stage3_max_live_parameters": 10 * bucket,
            "stage3_gather_16bit_weights_on_model_save": False,
        },
        "steps_per_print": None,
        "wall_clock_breakdown": False,
    }
