"""Attention of tokens that branch off shared histories: each attends to its own history and its ancestors only.

    history   h0 h1 h2 h3 h4              one forward of packed careers, whose keys and values are cached
    nodes        a ( b c ( d ) )          a sees h0 h1, itself; b sees h0 h1 a b; d sees h0 h1 a c d

Nodes are processed in blocks: neighbors of one history, which attend to mostly the same keys. A block's keys are its
history's and those of all its nodes' ancestors, under a mask, so a thousand branches cost little more than their own
tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

Integers = npt.NDArray[np.int64]
# Nodes of a block. On a CPU time is proportional to work: large blocks share the history's keys, small ones have
# smaller masks.
BLOCK_NODES = 128
# On a GPU kernel launches count too: five per block and layer take about 50 us of the host. 1,024 nodes of a 7B see
# S = 430 keys of a career and 1,024 of their own: 4 x 4,096 x S = 24 MFLOP a node and layer beside the 405 of its
# matrices, and keep the GPU busy for 0.7 ms. Blocks of 128 would save 15 of these 24, but leave it idle half the time.
# A block's mask has 1,024 x S x 2 bytes in bf16; those of a pass of 4,096 nodes have 12 MB.
CUDA_BLOCK_NODES = 1024


@dataclass(frozen=True, slots=True)
class NodeBlock:
    """C neighboring nodes after slots [start, stop) of a row, the next C of a pass; numpy, on the host.

    `stops_C`: the end of each node's history. `visible_U`: indices of the nodes and their ancestors among all nodes
    since the last `drop_nodes`. `visible_2E`: pairs of a node's index in the block, and the index in `visible_U` of a
    node that it attends to.
    """

    row: int
    start: int
    stop: int
    stops_C: Integers
    visible_U: Integers
    visible_2E: Integers

    def __len__(self) -> int:
        return len(self.stops_C)

    def on(self, device: torch.device, dtype: torch.dtype) -> NodeBlockTensors:
        """Return the block on a device, with a bias of the queries' dtype."""
        num_history, num_seen = self.stop - self.start, self.stop - self.start + len(self.visible_U)
        # Row strides of a multiple of 8: torch's memory-efficient kernel copies others at every call.
        bias_CS = torch.full((len(self), -(-num_seen // 8) * 8), -torch.inf, dtype=dtype, device=device)[:, :num_seen]
        nodes_E, columns_E = torch.from_numpy(self.visible_2E).to(device)
        bias_CS[nodes_E, columns_E + num_history] = 0.0
        slots = torch.arange(self.start, self.stop, device=device)
        is_seen_CT = slots < torch.from_numpy(self.stops_C).to(device)[:, None]
        bias_CS[:, :num_history].masked_fill_(is_seen_CT, 0.0)
        return NodeBlockTensors(
            slice(self.start, self.stop), self.row, torch.from_numpy(self.visible_U).to(device), bias_CS
        )


@dataclass(frozen=True, slots=True)
class NodeBlockTensors:
    """A block on a device. `bias_CS`: 0 where a node attends to a slot of the history or to a node, -inf elsewhere."""

    slots: slice
    row: int
    visible_U: Tensor
    bias_CS: Tensor


def block_size(device: torch.device) -> int:
    """Return the number of nodes of a block on a device."""
    return CUDA_BLOCK_NODES if device.type == "cuda" else BLOCK_NODES


def split_into_blocks(prefixes_N3: Integers, ancestors_NA: Integers, *, most_nodes: int) -> tuple[NodeBlock, ...]:
    """Split the nodes of a pass into blocks.

    Args:
        prefixes_N3: row, first slot and end slot of each node's history; nodes of one career are adjacent.
        ancestors_NA: indices of each node's ancestors and itself, padded with -1.
        most_nodes: of a block.
    """
    changes = np.flatnonzero((np.diff(prefixes_N3[:, :2], axis=0) != 0).any(axis=1)) + 1
    blocks: list[NodeBlock] = []
    for of_stem in np.split(np.arange(len(prefixes_N3)), changes):
        for first in range(0, len(of_stem), most_nodes):
            nodes = of_stem[first : first + most_nodes]
            (row, start, _), stops_C = prefixes_N3[nodes[0]].tolist(), prefixes_N3[nodes, 2]
            seen_CA = ancestors_NA[nodes]
            is_there_CA = seen_CA >= 0
            visible_U, columns_E = np.unique(seen_CA[is_there_CA], return_inverse=True)
            visible_2E = np.stack([np.nonzero(is_there_CA)[0], columns_E])
            blocks.append(NodeBlock(row, start, int(stops_C.max()), stops_C, visible_U, visible_2E))
    return tuple(blocks)


class KVCache:
    """KV cache: keys and values of histories, [B, H, T, D] per layer, and of the nodes after them, [H, N, D]."""

    def __init__(self) -> None:
        self._histories: dict[int, tuple[Tensor, Tensor]] = {}
        self._nodes: dict[int, tuple[Tensor, Tensor]] = {}

    def keep_history(self, layer: int, keys_BHTD: Tensor, values_BHTD: Tensor) -> None:
        """Store a layer's keys and values of the histories."""
        self._histories[layer] = (keys_BHTD, values_BHTD)

    def history(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return a layer's keys and values of the histories."""
        return self._histories[layer]

    def add_nodes(self, layer: int, keys_HND: Tensor, values_HND: Tensor) -> tuple[Tensor, Tensor]:
        """Append the keys and values of nodes; return those of all nodes."""
        before = self._nodes.get(layer)
        keys_and_values = (keys_HND, values_HND)
        if before is not None:
            keys_and_values = (torch.cat([before[0], keys_HND], dim=1), torch.cat([before[1], values_HND], dim=1))
        self._nodes[layer] = keys_and_values
        return keys_and_values

    def drop_nodes(self) -> None:
        """Remove the nodes; the histories stay."""
        self._nodes.clear()


def branch_attention(
    layer: int,
    tensors_BHTD: tuple[Tensor, Tensor, Tensor],
    cache: KVCache,
    blocks: tuple[NodeBlockTensors, ...],
    scaling: float | None,
) -> Tensor:
    """Return the attention output of every node over its history and its ancestors, [1, N, H, D].

    Args:
        layer: index into the cache.
        tensors_BHTD: queries, keys and values of the nodes, in one row; keys may have fewer heads than queries.
        cache: the cache of histories and earlier nodes; the keys and values of these nodes are appended.
        blocks: of the nodes, in order.
        scaling: of query-key products.
    """
    query_HND, keys_HND, values_HND = (each[0] for each in tensors_BHTD)
    num_heads, num_nodes, width = query_HND.shape
    num_shared = keys_HND.shape[0]  # key heads, each shared by G query heads
    query_HGND = query_HND.view(num_shared, num_heads // num_shared, num_nodes, width)
    all_nodes = cache.add_nodes(layer, keys_HND, values_HND)
    histories = cache.history(layer)
    attend = _attend_as_batch if query_HND.is_cuda else _attend_as_queries
    outputs: list[Tensor] = []
    first = 0
    for block in blocks:
        last = first + len(block.bias_CS)
        key_HSD, value_HSD = (
            torch.cat([history[block.row, :, block.slots], nodes.index_select(1, block.visible_U)], dim=1)
            for history, nodes in zip(histories, all_nodes, strict=True)
        )
        taken_CHGD = attend(query_HGND[:, :, first:last], key_HSD, value_HSD, block.bias_CS, scaling)
        outputs.append(taken_CHGD)
        first = last
    return torch.cat(outputs).reshape(1, num_nodes, num_heads, width)


def _attend_as_queries(
    query_HGCD: Tensor, key_HSD: Tensor, value_HSD: Tensor, bias_CS: Tensor, scaling: float | None
) -> Tensor:
    """Return [C, H, G, D]. Heads that share keys are extra queries of one head: a CPU reads the keys once."""
    num_shared, num_sharing, num_nodes, width = query_HGCD.shape
    taken_HQD = nn.functional.scaled_dot_product_attention(
        query_HGCD.reshape(1, num_shared, -1, width),
        key_HSD[None],
        value_HSD[None],
        attn_mask=bias_CS.repeat(num_sharing, 1),
        scale=scaling,
    )[0]
    return taken_HQD.view(num_shared, num_sharing, num_nodes, width).permute(2, 0, 1, 3)


def _attend_as_batch(
    query_HGCD: Tensor, key_HSD: Tensor, value_HSD: Tensor, bias_CS: Tensor, scaling: float | None
) -> Tensor:
    """Return [C, H, G, D]. Heads that share keys are a batch over views of one copy of keys and bias."""
    num_sharing = query_HGCD.shape[1]
    taken_GHCD = nn.functional.scaled_dot_product_attention(
        query_HGCD.transpose(0, 1),
        key_HSD.expand(num_sharing, -1, -1, -1),
        value_HSD.expand(num_sharing, -1, -1, -1),
        attn_mask=bias_CS,
        scale=scaling,
    )
    return taken_GHCD.permute(2, 1, 0, 3)
