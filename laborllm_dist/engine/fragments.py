"""The state of training as fragments: for every weight, the stretch of it that this rank holds, as views.

    weight  model.layers.0.mlp.up_proj   [------------------------------]   flat, numel elements
    rank 0                               [-----------)                      start 0
    rank 1                                           [------------------)   start 17

Whatever the ZeRO stage, the state is: fp32 weight, Adam's first and second moment of every element. Fragments make
it addressable without regard to stage and world size, so a checkpoint written by 8 ranks is read by 3. The views
are DeepSpeed's own buffers: what is copied into them is what the next step uses (after `spread_weights`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from laborllm_dist.engine.zero import ZeroEngine

STATE_NAMES = ("weight", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True)
class Fragment:
    """A stretch [start, start + numel) of a flattened weight and its state; `is_mine`: this rank saves it."""

    name: str
    shape: tuple[int, ...]
    start: int
    views: tuple[Tensor, Tensor, Tensor]  # in the order of STATE_NAMES
    is_mine: bool

    @property
    def numel(self) -> int:
        """Number of elements."""
        return self.views[0].numel()


def state_fragments(engine: ZeroEngine) -> list[Fragment]:
    """Return this rank's fragments of every weight that is learnt; Adam's moments are made (zeros) where absent."""
    learnt = [
        (name.removeprefix("hugging_face."), parameter)
        for name, parameter in engine.deepspeed.module.named_parameters()
        if parameter.requires_grad
    ]
    if engine.settings.stage == 3:
        return [_stage3_fragment(engine, name, parameter) for name, parameter in learnt]
    if engine.settings.stage == 0:
        world = engine.ranks.world_size  # every rank holds all; each saves its share
        return [
            Fragment(
                name,
                tuple(parameter.shape),
                0,
                _views(engine, parameter, slice(0, parameter.numel())),
                index % world == engine.ranks.rank,
            )
            for index, (name, parameter) in enumerate(learnt)
        ]
    found = (_partition_fragment(engine, name, parameter) for name, parameter in learnt)
    return [fragment for fragment in found if fragment is not None]


def set_steps_taken(engine: ZeroEngine, num_steps: int) -> None:
    """Tell Adam how many updates it has made, which its bias correction depends on."""
    for state in engine.adam.state.values():
        state["step"] = torch.tensor(float(num_steps))


def spread_weights(engine: ZeroEngine) -> None:
    """Bring changed fp32 fragments into the weights that the forward uses, on all ranks. Collective."""
    optimizer = engine.deepspeed.optimizer
    if engine.settings.stage == 3:
        for fragment, parameter in zip(
            state_fragments(engine),
            (parameter for parameter in engine.deepspeed.module.parameters() if parameter.requires_grad),
            strict=True,
        ):
            parameter.ds_tensor.data.view(-1)[: fragment.numel].copy_(fragment.views[0])
        if optimizer.persistent_parameters:
            optimizer.persistent_parameters[0].partition(optimizer.persistent_parameters, has_been_updated=False)
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)
    elif hasattr(optimizer, "update_lp_params"):
        optimizer.update_lp_params()


def _stage3_fragment(engine: ZeroEngine, name: str, parameter: Any) -> Fragment:
    optimizer = engine.deepspeed.optimizer
    group, offset, _ = optimizer.grad_position[optimizer.get_param_id(parameter)]
    start = min(parameter.partition_numel() * engine.ranks.rank, parameter.ds_numel)
    numel = min(parameter.partition_numel(), parameter.ds_numel - start)  # the last ranks' stretches are padded
    views = _views(engine, optimizer.fp32_partitioned_groups_flat[group], slice(offset, offset + numel))
    return Fragment(name, tuple(parameter.ds_shape), start, views, is_mine=True)


def _partition_fragment(engine: ZeroEngine, name: str, parameter: Any) -> Fragment | None:
    mapping = parameter._hp_mapping
    if mapping is None:
        return None  # this weight lies wholly on other ranks
    optimizer = engine.deepspeed.optimizer
    groups = getattr(optimizer, "single_partition_of_fp32_groups", None) or optimizer.fp32_groups_flat_partition
    address = mapping.hp_fragment_address
    stretch = slice(address.start, address.start + address.numel)
    views = _views(engine, groups[mapping.param_group_index], stretch)
    return Fragment(name, tuple(parameter.shape), mapping.lp_fragment_address.start, views, is_mine=True)


def _views(engine: ZeroEngine, flat: Tensor, stretch: slice) -> tuple[Tensor, Tensor, Tensor]:
    state = engine.adam.state[flat]
    if not state:
        state["step"] = torch.tensor(0.0)
        state["exp_avg"] = torch.zeros_like(flat, memory_format=torch.preserve_format).detach()
        state["exp_avg_sq"] = torch.zeros_like(flat, memory_format=torch.preserve_format).detach()
    weight, first, second = (
        tensor.detach().view(-1)[stretch] for tensor in (flat, state["exp_avg"], state["exp_avg_sq"])
    )
    return weight, first, second
