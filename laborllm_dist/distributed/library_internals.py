"""Private names of DeepSpeed and torch, behind functions of plain meaning; no other module uses any.

A release may rename them, so pyproject.toml bounds DeepSpeed from above, and this is the file to read before the bound
is raised. Where DeepSpeed has public accessors, they do something else than what is needed here:

    safe_get_local_fp32_param, safe_get_local_optimizer_state   give a weight's stretch without its place in the flat
        buffer, by which bitsandbytes' blocks are counted; at ZeRO-3 only; with NVMe they read a group of weights from
        the disk for every weight in it; and before the first step there is no state to be given
    deepspeed.zero.GatheredParameters                           gathers whole weights, where a rank needs its own part

tests/distributed/test_library_internals.py compares what both give.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn


def import_deepspeed() -> Any:
    """Import deepspeed with its log turned down to errors, and with the repairs below."""
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed.*")
    warnings.filterwarnings("ignore", category=FutureWarning, message="`is_gradient_checkpointing` is deprecated")
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.ERROR)
    # It prints its memory whatever the level.
    importlib.import_module("deepspeed.runtime.bf16_optimizer").see_memory_usage = lambda *_, **__: None  # type: ignore
    # shm_comm serves inference_all_reduce alone, which nothing here calls; building it takes a compiler, a minute,
    # and a lock file that makes every later process wait forever after a kill.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    _honor_dtype(importlib.import_module("deepspeed.runtime.zero.partition_parameters"))
    return deepspeed


def _honor_dtype(partition_parameters: Any) -> None:
    """Make zero.Init hold parameters in the dtype that its caller asks for.

    Where the accelerator has no fp16 instructions it takes bf16 in place of any dtype (DeepSpeed 0.19, issue 8428):
    fp32 weights would be rounded to 8 bits of mantissa without a word.
    """
    init = partition_parameters.InsertPostInitMethodToModuleSubClasses
    set_dtype = init._set_dtype
    if hasattr(set_dtype, "honors_dtype"):
        return

    def set_requested_dtype(self: Any, ds_config: Any, dtype: Any) -> None:
        set_dtype(self, ds_config, dtype)
        if dtype is not None:
            self.dtype = dtype

    set_requested_dtype.honors_dtype = True  # type: ignore[attr-defined]
    init._set_dtype = set_requested_dtype


def import_muon() -> None:
    """Import DeepSpeed's optimizer Muon without torch's compiler.

    DeepSpeed imports it beside any optimizer, to look whether that is it; a function of it is marked for torch.compile,
    and the mark imports the whole compiler: almost a second of every start, for what nothing here calls.
    """
    before = os.environ.get("TORCHDYNAMO_DISABLE")
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    with contextlib.suppress(ImportError):
        importlib.import_module("deepspeed.runtime.zero.muon.original_muon")
    del os.environ["TORCHDYNAMO_DISABLE"]
    if before is not None:
        os.environ["TORCHDYNAMO_DISABLE"] = before


def keep_first_size_open(tensor: Tensor) -> None:
    """Let torch.compile make code for any first size of a tensor, where it would build in the size that it sees."""
    import torch._dynamo

    torch._dynamo.maybe_mark_dynamic(tensor, 0)


def build_folder(builder: Any) -> Path:
    """Return where torch compiles an operator of DeepSpeed's."""
    from torch.utils.cpp_extension import _get_build_directory

    return Path(_get_build_directory(builder.name, verbose=False))


def is_installed(builder: Any) -> bool:
    """Return whether an operator was compiled when DeepSpeed was installed."""
    from deepspeed.git_version_info import installed_ops

    return bool(installed_ops.get(builder.name, False))


def is_saved_buffer(module: nn.Module, name: str) -> bool:
    """Return whether a buffer of a module belongs into files."""
    return name not in module._non_persistent_buffers_set


def is_partitioned(parameter: Any) -> bool:
    """Return whether ZeRO-3 partitions a weight; its own shape is then meaningless."""
    return hasattr(parameter, "ds_tensor")


def whole_shape(parameter: Any) -> tuple[int, ...]:
    """Return the shape of a weight when it is whole."""
    return tuple(parameter.ds_shape if is_partitioned(parameter) else parameter.shape)


def partition_of(parameter: Any, rank: int) -> tuple[int, int]:
    """Return which elements [start, end) of a flattened weight ZeRO-3 keeps on a rank; the last ones are padded."""
    size, numel = parameter.partition_numel(), parameter.ds_numel
    start = min(size * rank, numel)
    return start, min(start + size, numel)


def own_partition(parameter: Any) -> Tensor | None:
    """Return what ZeRO-3 holds of a weight on this rank, flat, with padding; None while it is on a disk."""
    if parameter.ds_tensor.status.name != "AVAILABLE":
        return None
    partition: Tensor = parameter.ds_tensor.detach().view(-1)
    return partition


@dataclass(frozen=True, slots=True)
class MasterSlice:
    """Elements [start, start + numel) of a flattened weight, in fp32: those from `offset` on of a flat buffer.

    The optimizer updates the buffer as one parameter, and its state is of the buffer's shape.
    """

    start: int
    flat: Tensor
    offset: int
    numel: int


def master_slice(optimizer: Any, parameter: Any, rank: int) -> MasterSlice | None:
    """Return where a rank keeps its fp32 part of a weight that is trained; None if the rank has no part of it.

    Args:
        optimizer: DeepSpeed's, of ZeRO stage 1, 2 or 3.
        parameter: the weight.
        rank: this one.
    """
    if is_partitioned(parameter):
        group, offset, _ = optimizer.grad_position[optimizer.get_param_id(parameter)]
        start, end = partition_of(parameter, rank)
        return MasterSlice(start, optimizer.fp32_partitioned_groups_flat[group], offset, end - start)
    mapping = parameter._hp_mapping
    if mapping is None:
        return None
    # The second name is that of stage 1 in bf16, where DeepSpeed has another class.
    groups = getattr(optimizer, "single_partition_of_fp32_groups", None) or optimizer.fp32_groups_flat_partition
    address = mapping.hp_fragment_address
    return MasterSlice(
        mapping.lp_fragment_address.start, groups[mapping.param_group_index], address.start, address.numel
    )


def stage3_groups(optimizer: Any) -> Iterator[list[Any]]:
    """Yield the weights that ZeRO-3 updates at once, group by group, with their state in memory meanwhile.

    State on NVMe is written back, with its changes, before the next group.
    """
    for number, group in enumerate(optimizer.fp16_groups):
        with _in_memory(optimizer, number):
            yield list(group)


def sync_model_params(optimizer: Any) -> None:
    """Bring changed fp32 parts into the weights that the forward uses, on all ranks. Collective.

    Args:
        optimizer: DeepSpeed's; at stage 0 there is one copy of the weights, and nothing to do.
    """
    if hasattr(optimizer, "fp16_groups"):  # ZeRO-3
        for group in range(len(optimizer.fp16_groups)):
            with _in_memory(optimizer, group):
                optimizer._reassign_or_swap_out_partitioned_parameters(group)
        if optimizer.persistent_parameters:
            optimizer.persistent_parameters[0].partition(optimizer.persistent_parameters, has_been_updated=False)
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)
    elif hasattr(optimizer, "update_lp_params"):
        optimizer.update_lp_params()


@contextlib.contextmanager
def _in_memory(optimizer: Any, group: int) -> Iterator[None]:
    """Hold a group of ZeRO-3's optimizer state in memory, and write it back if it is on NVMe."""
    if not optimizer._swappable_optimizer_subgroup(group):
        yield
        return
    optimizer._optimizer_states_and_gradient_swap_in(group)
    yield
    optimizer._optimizer_states_and_gradient_swap_out(group)
