"""DeepSpeed's engine for a model, so set up that a step over any ranks equals one process on the whole batch.

DeepSpeed averages gradients over ranks; the loss wanted is a sum over the step's tokens divided by their number over
all ranks and passes. So every pass back-propagates  sum of token losses x world_size / step_tokens,  and the
accumulation boundary is set by hand, since the number of passes differs from step to step.

A step whose gradient is no number is never applied: from stage 1 on DeepSpeed sees to that, at stage 0 this module. So
a step that is to be left out is given such a gradient.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from laborllm_dist.batching.batch import PackedBatch
from laborllm_dist.config.model import OptimizerSettings, ZeroSettings
from laborllm_dist.distributed.context import DistributedContext
from laborllm_dist.distributed.deepspeed_limits import LIVE_BUCKETS, check_8bit
from laborllm_dist.distributed.jit_ops import check_nvme, load_operators
from laborllm_dist.distributed.optimizers import make_optimizer
from laborllm_dist.distributed.quiet_imports import import_deepspeed


@dataclass(frozen=True, slots=True)
class ZeroEngine:
    """A model that trains under DeepSpeed: the DeepSpeedEngine, and the optimizer inside, which is of `kind`."""

    deepspeed: Any
    adam: torch.optim.Optimizer
    kind: str
    ranks: DistributedContext
    settings: ZeroSettings

    def forward(self, batch: PackedBatch, *, is_last_pass: bool) -> Tensor:
        """Return a batch's summed log-likelihood, nats, with its graph. Collective."""
        self.deepspeed.set_gradient_accumulation_boundary(is_last_pass)
        total: Tensor = self.deepspeed(batch.to(self.ranks.device))[0]
        return total

    def backward(self, total: Tensor, *, step_tokens: int) -> None:
        """Add a batch's gradients to the step's. Collective.

        Args:
            total: from `forward`.
            step_tokens: targets of the step, over all ranks and passes.
        """
        self.deepspeed.backward(-total * (self.ranks.world_size / step_tokens), scale_wrt_gas=False)

    def leave_out(self, total: Tensor) -> None:
        """Make the gradient of the step no number, in place of its last `backward`: nothing is applied. Collective."""
        self.deepspeed.backward(total * math.nan, scale_wrt_gas=False)

    def update(self, *, learning_rate: float) -> float:
        """Apply the step's gradients; return their norm before clipping. Collective.

        A norm that is no finite number says that nothing has been applied.
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
        """Return the norm at stage 0, where DeepSpeed does not keep it; the gradients are complete by now."""
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
    check_nvme(zero, is_on_gpu=ranks.device.type == "cuda")
    deepspeed = import_deepspeed()
    load_operators(zero, optimizer)
    adam = make_optimizer(model, optimizer)
    _import_muon()
    ranks.barrier()  # weights to read, operators to compile: one rank takes longer, and DeepSpeed begins collectively
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=adam,
        config=deepspeed_config(zero, optimizer.max_grad_norm, ranks.world_size),
        dist_init_required=False,
    )
    stretches = [stretch.numel() for group in adam.param_groups for stretch in group["params"]]
    check_8bit(optimizer, zero, largest=max(stretches, default=0))  # ZeRO-3 keeps its groups elsewhere
    made = ZeroEngine(deepspeed=engine, adam=adam, kind=optimizer.kind, ranks=ranks, settings=zero)
    engine.train()
    return made


def _import_muon() -> None:
    """Import DeepSpeed's optimizer Muon without its compiler.

    DeepSpeed imports it beside any optimizer, to look whether that is it; a function of it is marked for torch.compile,
    and the mark imports the whole compiler: almost a second of every start, for what nothing here calls.
    """
    wish = os.environ.get("TORCHDYNAMO_DISABLE")
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    with contextlib.suppress(ImportError):
        importlib.import_module("deepspeed.runtime.zero.muon.original_muon")
    del os.environ["TORCHDYNAMO_DISABLE"]
    if wish is not None:
        os.environ["TORCHDYNAMO_DISABLE"] = wish


def deepspeed_config(zero: ZeroSettings, max_grad_norm: float | None, world_size: int) -> dict[str, Any]:
    """Return DeepSpeed's configuration. Defaults that have changed between its versions are all set."""
    bucket = zero.bucket_size
    # Stage 0 has no fp32 master weights of its own: there, bf16 is autocast over fp32 weights.
    is_autocast = zero.stage == 0 and zero.precision == "bf16"
    placed = {
        name: {"device": place, "nvme_path": zero.nvme_path, "pin_memory": torch.cuda.is_available()}
        for name, place in (("offload_optimizer", zero.offload_optimizer), ("offload_param", zero.offload_param))
        if place != "none"
    }
    return {
        "train_batch_size": world_size,  # nominal: passes and tokens are counted by the plan
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": max_grad_norm or 0.0,
        "bf16": {"enabled": zero.precision == "bf16" and not is_autocast, "check_grad_overflow": True},
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
            "stage3_max_live_parameters": LIVE_BUCKETS * bucket,
            # A weight stays gathered from forward to backward if both come within so many weights: the last ones do.
            "stage3_max_reuse_distance": 2 * LIVE_BUCKETS * bucket,
            "stage3_gather_16bit_weights_on_model_save": False,
            **placed,
        },
        "steps_per_print": None,
        "timers": {"throughput": {"enabled": False}},  # it waits for the GPU before and after every pass
        "wall_clock_breakdown": False,
    }
