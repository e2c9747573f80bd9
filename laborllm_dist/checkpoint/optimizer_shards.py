"""The state of training as fragments: for every weight, the stretch of it that this rank holds, as views.

    weight  model.layers.0.mlp.up_proj   [------------------------------]   flat, numel elements
    rank 0                               [-----------)                      start 0
    rank 1                                           [------------------)   start 17

At every ZeRO stage and on every memory (device, host, NVMe) the state is the fp32 weight and Adam's two moments of
every trainable element. Fragments address it independently of stage and world size, so 3 ranks can read a checkpoint
that 8 ranks wrote. The views are DeepSpeed's own buffers: the next step uses what is copied into them (after
`sync_model_params`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from laborllm_dist.distributed import optimizers
from laborllm_dist.distributed.library_internals import MasterSlice, master_slice, stage3_groups, whole_shape
from laborllm_dist.distributed.optimizers import BLOCK
from laborllm_dist.distributed.zero_engine import ZeroEngine

SCALES = {"state1": "absmax1", "state2": "absmax2"}


@dataclass(frozen=True, slots=True)
class OptimizerShard:
    """A stretch [start, start + numel) of a flattened weight and its state.

    `weight` and each of `moments` are views of numel elements. For 8-bit moments, `scales` are those of the blocks that
    the stretch touches; it begins `block_offset` elements into the first block. `flat` is the optimizer's flat tensor,
    in which this stretch begins at `offset`. `is_owned`: this rank saves it.
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
    """Yield this rank's fragments in groups; the views of a group are valid until the next group.

    A group is what DeepSpeed holds in memory at once: everything, or one group of ZeRO-3's weights where the
    optimizer's state lies on NVMe.
    """
    trained = [
        (name.removeprefix("hugging_face."), parameter)
        for name, parameter in engine.deepspeed.module.named_parameters()
        if parameter.requires_grad
    ]
    optimizer, rank = engine.deepspeed.optimizer, engine.ranks.rank
    if engine.settings.stage == 0:
        world = engine.ranks.world_size  # every rank holds all; each saves its share
        yield [
            _fragment(engine, name, parameter, MasterSlice(0, parameter, 0, parameter.numel()), index % world)
            for index, (name, parameter) in enumerate(trained)
        ]
        return
    name_of = {id(parameter): name for name, parameter in trained}
    groups = stage3_groups(optimizer) if engine.settings.stage == 3 else [[parameter for _, parameter in trained]]
    for group in groups:
        slices = [(parameter, master_slice(optimizer, parameter, rank)) for parameter in group]
        yield [
            _fragment(engine, name_of[id(parameter)], parameter, place, rank)
            for parameter, place in slices
            if place is not None
        ]


def _fragment(engine: ZeroEngine, name: str, parameter: Any, place: MasterSlice, owner: int) -> OptimizerShard:
    """Make the views of a weight's fp32 part and its state; `owner` is the rank that saves them."""
    stretch = slice(place.offset, place.offset + place.numel)
    blocks = slice(place.offset // BLOCK, -(-(place.offset + place.numel) // BLOCK))
    moments = optimizers.moments(engine.adam, engine.kind, place.flat)
    state = {kind: tensor.detach().view(-1) for kind, tensor in moments.items()}
    return OptimizerShard(
        name=name,
        shape=whole_shape(parameter),
        start=place.start,
        weight=place.flat.detach().view(-1)[stretch],
        moments={kind: tensor[stretch] for kind, tensor in state.items() if kind not in SCALES.values()},
        scales={kind: tensor[blocks] for kind, tensor in state.items() if kind in SCALES.values()},
        flat=place.flat,
        offset=place.offset,
        is_owned=owner == engine.ranks.rank,
    )
