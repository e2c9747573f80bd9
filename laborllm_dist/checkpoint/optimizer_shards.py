"""The state of training as fragments: for every weight, the stretch of it that this rank holds, as views.

    weight  model.layers.0.mlp.up_proj   [------------------------------]   flat, numel elements
    rank 0                               [-----------)                      start 0
    rank 1                                           [------------------)   start 17

Whatever the ZeRO stage and wherever it lies (device, host, NVMe), the state is: the fp32 weight and Adam's two moments
of every element that is learned. Fragments make it addressable without regard to stage and world size, so a checkpoint
written by 8 ranks is read by 3. The views are DeepSpeed's own buffers: what is copied into them is what the next step
uses (after `sync_model_params`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from laborllm_dist.distributed import optimizers
from laborllm_dist.distributed.optimizers import BLOCK
from laborllm_dist.distributed.zero_engine import ZeroEngine

SCALES = {"state1": "absmax1", "state2": "absmax2"}


@dataclass(frozen=True, slots=True)
class OptimizerShard:
    """A stretch [start, start + numel) of a flattened weight and its state.

    `weight` and each of `moments` are views of numel elements. Where moments have 8 bits, `scales` are those of the
    blocks that the stretch touches, and it begins `block_offset` elements into the first of them. `flat` is the long
    stretch of the optimizer in which this one begins at `offset`. `is_owned`: this rank saves it.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    weight: Tensor
    moments: Mapping[str, Tensor]
    scales: Mapping[str, Tensor]
    flat: Tensor
    offset: int
    is_owned: bool

    @property
    def numel(self) -> int:
        """Number of elements."""
        return self.weight.numel()

    @property
    def block_offset(self) -> int:
        """Place of the first element in its block of 8-bit moments."""
        return self.offset % BLOCK if self.scales else 0


def fragment_groups(engine: ZeroEngine) -> Iterator[list[OptimizerShard]]:
    """Yield this rank's fragments in groups; the views of a group are good until the next one is asked for.

    A group is what DeepSpeed holds in memory at once: everything, or one group of ZeRO-3's weights where the
    optimizer's state lies on NVMe.
    """
    learned = [
        (name.removeprefix("hugging_face."), parameter)
        for name, parameter in engine.deepspeed.module.named_parameters()
        if parameter.requires_grad
    ]
    if engine.settings.stage == 3:
        yield from _stage3_groups(engine, learned)
    elif engine.settings.stage == 0:
        world = engine.ranks.world_size  # every rank holds all; each saves its share
        yield [
            _fragment(engine, (name, tuple(parameter.shape), 0), (parameter, 0, parameter.numel()), index % world)
            for index, (name, parameter) in enumerate(learned)
        ]
    else:
        found = (_partition_fragment(engine, name, parameter) for name, parameter in learned)
        yield [fragment for fragment in found if fragment is not None]


def sync_model_params(engine: ZeroEngine) -> None:
    """Bring changed fp32 fragments into the weights that the forward uses, on all ranks. Collective."""
    optimizer = engine.deepspeed.optimizer
    if engine.settings.stage == 3:
        for group in range(len(optimizer.fp16_groups)):
            with _swapped_in(optimizer, group):
                optimizer._reassign_or_swap_out_partitioned_parameters(group)
        if optimizer.persistent_parameters:
            optimizer.persistent_parameters[0].partition(optimizer.persistent_parameters, has_been_updated=False)
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)
    elif hasattr(optimizer, "update_lp_params"):
        optimizer.update_lp_params()


def _stage3_groups(engine: ZeroEngine, learned: list[tuple[str, Any]]) -> Iterator[list[OptimizerShard]]:
    optimizer = engine.deepspeed.optimizer
    name_of = {id(parameter): name for name, parameter in learned}
    for number, group in enumerate(optimizer.fp16_groups):
        with _swapped_in(optimizer, number):
            yield [_stage3_fragment(engine, name_of[id(parameter)], parameter) for parameter in group]


@contextlib.contextmanager
def _swapped_in(optimizer: Any, group: int) -> Iterator[None]:
    """Hold a group of ZeRO-3's optimizer state in memory, and write it back where it lies on NVMe."""
    if not optimizer._swappable_optimizer_subgroup(group):
        yield
        return
    optimizer._optimizer_states_and_gradient_swap_in(group)
    yield
    optimizer._optimizer_states_and_gradient_swap_out(group)


def _stage3_fragment(engine: ZeroEngine, name: str, parameter: Any) -> OptimizerShard:
    optimizer = engine.deepspeed.optimizer
    group, offset, _ = optimizer.grad_position[optimizer.get_param_id(parameter)]
    start = min(parameter.partition_numel() * engine.ranks.rank, parameter.ds_numel)
    numel = min(parameter.partition_numel(), parameter.ds_numel - start)  # the last ranks' stretches are padded
    place = (optimizer.fp32_partitioned_groups_flat[group], offset, numel)
    return _fragment(engine, (name, tuple(parameter.ds_shape), start), place)


def _partition_fragment(engine: ZeroEngine, name: str, parameter: Any) -> OptimizerShard | None:
    mapping = parameter._hp_mapping
    if mapping is None:
        return None  # this weight lies wholly on other ranks
    optimizer = engine.deepspeed.optimizer
    groups = getattr(optimizer, "single_partition_of_fp32_groups", None) or optimizer.fp32_groups_flat_partition
    address = mapping.hp_fragment_address
    place = (groups[mapping.param_group_index], address.start, address.numel)
    return _fragment(engine, (name, tuple(parameter.shape), mapping.lp_fragment_address.start), place)


def _fragment(
    engine: ZeroEngine,
    what: tuple[str, tuple[int, ...], int],
    place: tuple[Tensor, int, int],
    owner: int | None = None,
) -> OptimizerShard:
    """Make the views of a weight (name, shape, start of the stretch) at a place (flat, offset, numel) of the optimizer.

    `owner` is the rank that saves it; None: each rank has a stretch of its own.
    """
    name, shape, start = what
    flat, offset, numel = place
    stretch = slice(offset, offset + numel)
    blocks = slice(offset // BLOCK, -(-(offset + numel) // BLOCK))
    kept = optimizers.moments(engine.adam, engine.kind, flat)
    state = {each: tensor.detach().view(-1) for each, tensor in kept.items()}
    return OptimizerShard(
        name=name,
        shape=shape,
        start=start,
        weight=flat.detach().view(-1)[stretch],
        moments={each: tensor[stretch] for each, tensor in state.items() if each not in SCALES.values()},
        scales={each: tensor[blocks] for each, tensor in state.items() if each in SCALES.values()},
        flat=flat,
        offset=offset,
        is_owned=owner in (None, engine.ranks.rank),
    )
