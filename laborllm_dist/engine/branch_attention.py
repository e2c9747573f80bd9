"""Attention of tokens that branch off shared histories: each sees its own history and its ancestors, nothing else.

    history   h0 h1 h2 h3 h4              one forward of packed careers, whose keys and values are kept
    nodes        a ( b c ( d ) )          a sees h0 h1, itself; b sees h0 h1 a b; d sees h0 h1 a c d

Nodes are taken a bough at a time: neighbours of one history, which share most of what they see. A bough's keys are its
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
BOUGH_NODES = 128  # more of them share keys; fewer have smaller masks


@dataclass(frozen=True, slots=True)
class Bough:
    """C neighbouring nodes after slots [start, stop) of a row, the next C of a pass.

    `places_U` are their ancestors and themselves among all nodes since the last `drop_nodes`; `mask_CS` is true where a
    node sees a slot, then a place.
    """

    row: int
    start: int
    stop: int
    places_U: Tensor
    mask_CS: Tensor


def boughs_of(stems_N3: Integers, ancestors_NA: Integers, device: torch.device) -> tuple[Bough, ...]:
    """Cut the nodes of a pass into boughs.

    Args:
        stems_N3: row, first slot and slot past the last one of each node's history; those of one career side by side.
        ancestors_NA: places of each node's ancestors and itself, -1 where there are fewer than A.
        device: of the model.
    """
    changes = np.flatnonzero((np.diff(stems_N3[:, :2], axis=0) != 0).any(axis=1)) + 1
    boughs: list[Bough] = []
    for of_stem in np.split(np.arange(len(stems_N3)), changes):
        for first in range(0, len(of_stem), BOUGH_NODES):
            nodes = of_stem[first : first + BOUGH_NODES]
            (row, start, _), stops_C = stems_N3[nodes[0]].tolist(), stems_N3[nodes, 2]
            stop, seen_CA = int(stops_C.max()), ancestors_NA[nodes]
            is_there_CA = seen_CA >= 0
            places_U, columns = np.unique(seen_CA[is_there_CA], return_inverse=True)
            mask_CS = np.zeros((len(nodes), stop - start + len(places_U)), dtype=bool)
            mask_CS[:, : stop - start] = np.arange(start, stop) < stops_C[:, None]
            mask_CS[np.nonzero(is_there_CA)[0], stop - start + columns] = True
            boughs.append(
                Bough(row, start, stop, torch.from_numpy(places_U).to(device), torch.from_numpy(mask_CS).to(device))
            )
    return tuple(boughs)


class KeptStates:
    """Keys and values of histories, [B, H, T, D] a layer, and of the nodes that have followed them, [H, N, D]."""

    def __init__(self) -> None:
        self._histories: dict[int, tuple[Tensor, Tensor]] = {}
        self._nodes: dict[int, tuple[Tensor, Tensor]] = {}

    def keep_history(self, layer: int, keys_BHTD: Tensor, values_BHTD: Tensor) -> None:
        """Keep what a layer has made of the histories."""
        self._histories[layer] = (keys_BHTD, values_BHTD)

    def history(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return what was kept."""
        return self._histories[layer]

    def add_nodes(self, layer: int, keys_HND: Tensor, values_HND: Tensor) -> tuple[Tensor, Tensor]:
        """Keep nodes behind those that are there; return all."""
        before = self._nodes.get(layer)
        both = (keys_HND, values_HND)
        if before is not None:
            both = (torch.cat([before[0], keys_HND], dim=1), torch.cat([before[1], values_HND], dim=1))
        self._nodes[layer] = both
        return both

    def drop_nodes(self) -> None:
        """Forget the nodes; the histories stay."""
        self._nodes.clear()


def branch_attention(
    layer: int,
    tensors_BHTD: tuple[Tensor, Tensor, Tensor],
    kept: KeptStates,
    boughs: tuple[Bough, ...],
    scaling: float | None,
) -> Tensor:
    """Return what every node takes from its history and its ancestors, [1, N, H, D].

    Args:
        layer: whose kept states are meant.
        tensors_BHTD: queries, keys and values of the nodes, in one row; keys may have fewer heads than queries.
        kept: states of the histories and of earlier nodes; the keys and values of these nodes join them.
        boughs: of the nodes, in order.
        scaling: of the products.
    """
    query_HND, keys_HND, values_HND = (each[0] for each in tensors_BHTD)
    num_heads, num_nodes, width = query_HND.shape
    num_shared = keys_HND.shape[0]  # heads of keys, each shared by G heads of queries
    query_HGND = query_HND.view(num_shared, num_heads // num_shared, num_nodes, width)
    all_nodes = kept.add_nodes(layer, keys_HND, values_HND)
    histories = kept.history(layer)
    found: list[Tensor] = []
    first = 0
    for bough in boughs:
        last = first + len(bough.mask_CS)
        key_HSD, value_HSD = (
            torch.cat([history[bough.row, :, bough.start : bough.stop], nodes[:, bough.places_U]], dim=1)
            for history, nodes in zip(histories, all_nodes, strict=True)
        )
        # Heads that share keys stand side by side as more queries, so that the keys are read once.
        query_HCD = query_HGND[:, :, first:last].reshape(num_shared, -1, width)
        mask_CS = bough.mask_CS.repeat(num_heads // num_shared, 1)
        taken_HCD = nn.functional.scaled_dot_product_attention(
            query_HCD[None], key_HSD[None], value_HSD[None], attn_mask=mask_CS, scale=scaling
        )[0]
        found.append(taken_HCD.reshape(num_heads, last - first, width))
        first = last
    return torch.cat(found, dim=1).transpose(0, 1)[None]
