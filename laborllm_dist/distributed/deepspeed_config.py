"""DeepSpeed's configuration, and the numbers of it that a plan counts with. Imports no torch."""

from __future__ import annotations

from typing import Any

from laborllm_dist.config.model import OptimizerSettings, ZeroSettings
from laborllm_dist.errors import SettingsError

LIVE_BUCKETS = 10  # as many of ZeRO-3's weights may be whole at once
SUB_GROUP = 1e9  # weights that ZeRO-3 updates at once, DeepSpeed's sub_group_size
MOST_8BIT = 2**31


def overlaps_communication(zero: ZeroSettings, *, on_gpu: bool) -> bool:
    """Return whether gradients are reduced while the backward pass computes those of earlier layers.

    That takes a stream of its own, which GPUs have; and, at stages 1 and 2, a second buffer to reduce from. DeepSpeed
    reads the setting at no other stage but 3, where one buffer serves both.
    """
    return on_gpu and zero.stage > 0 and zero.overlap_comm


def deepspeed_config(
    zero: ZeroSettings, max_grad_norm: float | None, world_size: int, *, on_gpu: bool
) -> dict[str, Any]:
    """Return DeepSpeed's configuration. Defaults that have changed between its versions are all set."""
    bucket = zero.bucket_size
    # Stage 0 has no fp32 master weights of its own: there, bf16 is autocast over fp32 weights.
    is_autocast = zero.stage == 0 and zero.precision == "bf16"
    offload = {
        name: {"device": place, "nvme_path": zero.nvme_path, "pin_memory": on_gpu}
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
            "overlap_comm": overlaps_communication(zero, on_gpu=on_gpu),
            "contiguous_gradients": True,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            "stage3_prefetch_bucket_size": bucket,
            "stage3_max_live_parameters": LIVE_BUCKETS * bucket,
            # A weight stays gathered from forward to backward if at most this many weights come between: the last ones.
            "stage3_max_reuse_distance": 2 * LIVE_BUCKETS * bucket,
            "stage3_gather_16bit_weights_on_model_save": False,
            **offload,
        },
        "steps_per_print": None,
        "timers": {"throughput": {"enabled": False}},  # it waits for the GPU before and after every pass
        "wall_clock_breakdown": False,
    }


def check_8bit(optimizer: OptimizerSettings, zero: ZeroSettings, *, largest: int) -> None:
    """Check that bitsandbytes can count the weights of the largest stretch (`largest`).

    Raises:
        SettingsError: saying what to set.
    """
    if optimizer.name == "adamw_8bit" and largest >= MOST_8BIT:
        raise SettingsError(
            f"optimizer.name=adamw_8bit: bitsandbytes counts the {largest:,} weights of a rank in 31 bits; set "
            f"zero.stage=3, which holds them in smaller groups (here it is {zero.stage})",
            code="too-many-weights-for-8bit",
        )
