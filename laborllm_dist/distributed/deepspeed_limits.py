"""Numbers of DeepSpeed's that the engine is configured by and a plan counts with; without torch."""

from __future__ import annotations

from laborllm_dist.config.model import OptimizerSettings, ZeroSettings
from laborllm_dist.errors import SettingsError

LIVE_BUCKETS = 10  # as many of ZeRO-3's weights may be whole at once
SUB_GROUP = 1e9  # weights that ZeRO-3 updates at once, DeepSpeed's sub_group_size
MOST_8BIT = 2**31


def check_8bit(optimizer: OptimizerSettings, zero: ZeroSettings, *, largest: int) -> None:
    """Refuse more weights in one stretch (`largest`) than bitsandbytes can count.

    Raises:
        SettingsError: saying what to set.
    """
    if optimizer.kind == "adamw_8bit" and largest >= MOST_8BIT:
        raise SettingsError(
            f"optimizer.kind=adamw_8bit: bitsandbytes counts the {largest:,} weights of a rank in 31 bits; set "
            f"zero.stage=3, which holds them in smaller groups (here it is {zero.stage})"
        )
