"""What training refuses about a model and its optimizer; here, without torch, so that a plan refuses the same."""

from __future__ import annotations

from collections.abc import Collection

from laborllm_dist.engine.memory_plan import SUB_GROUP
from laborllm_dist.engine.shape import ModelShape
from laborllm_dist.engine_settings import AdapterSettings, OptimizerSettings, ZeroSettings
from laborllm_dist.errors import ModelError, SettingsError

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


def largest_stretch(shape: ModelShape, adapter: AdapterSettings, *, stage: int, world_size: int) -> int:
    """Return how many weights lie in the longest stretch that a rank's optimizer updates at once.

    That is a matrix at stage 0; from stage 1 on all matrices that are learnt, in one piece, over the ranks (norms have
    a stretch of their own), which stage 3 cuts.
    """
    learns_all = adapter.kind == "none"
    if stage == 0:
        if learns_all:
            return shape.weights.largest
        return adapter.rank * max(shape.intermediate_size, shape.hidden_size, shape.query_size)
    matrices = shape.num_learnt(adapter) - (shape.num_norms if learns_all else 0)
    of_rank = -(-matrices // world_size)
    return min(of_rank, int(SUB_GROUP)) if stage == 3 else of_rank


def check_targets(targets: Collection[str], layers: Collection[str]) -> None:
    """Refuse an adapter for a linear layer that the model does not have.

    Raises:
        ModelError: naming it, and those there are.
    """
    if unknown := sorted(set(targets) - set(layers)):
        raise ModelError(
            f"adapter.targets: the model has no linear layer {unknown[0]}; it has {', '.join(sorted(layers))}"
        )
