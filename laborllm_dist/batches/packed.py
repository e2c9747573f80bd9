"""The tensors of a forward: careers side by side in rows, each blind to the others.

tokens      <s> a  b  c  <s> d  e   .
positions    0  1  2  3   0  1  2   0      start anew in each career
lengths      4            3         1      attention stays inside a stretch; the last one is padding
targets      a  b  c  -   d  e  -   -      the next token; - is IGNORED
scored       0  1  2      4  5             slots with a target, counted through all rows
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from laborllm_dist.batches.packing import GRANULE

IGNORED = -100
TokenIds = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Rows of packed careers.

    Tensors are int64: `token_ids_BT`, `targets_BT`, `positions_BT`; `scored_N` are the slots with a target, as places
    in the flattened rows. `lengths` are those of all stretches, row by row; they add up to B x T.
    """

    token_ids_BT: Tensor
    targets_BT: Tensor
    positions_BT: Tensor
    scored_N: Tensor
    lengths: tuple[int, ...]

    def to(self, device: torch.device) -> PackedBatch:
        """Return the batch on a device."""
        return PackedBatch(
            self.token_ids_BT.to(device, non_blocking=True),
            self.targets_BT.to(device, non_blocking=True),
            self.positions_BT.to(device, non_blocking=True),
            self.scored_N.to(device, non_blocking=True),
            self.lengths,
        )

    def pinned(self) -> PackedBatch:
        """Return the batch in memory that a GPU fetches from by itself."""
        return PackedBatch(
            self.token_ids_BT.pin_memory(),
            self.targets_BT.pin_memory(),
            self.positions_BT.pin_memory(),
            self.scored_N.pin_memory(),
            self.lengths,
        )

    def with_targets(self, targets_BT: Tensor) -> PackedBatch:
        """Return the batch with other targets."""
        return PackedBatch(self.token_ids_BT, targets_BT, self.positions_BT, _scored(targets_BT), self.lengths)

    def at_their_slots(self, scores_N: Tensor) -> npt.NDArray[np.float64]:
        """Return scores of the slots with a target as [B, T]; 0 elsewhere."""
        scores = np.zeros(self.targets_BT.numel())
        scores[self.scored_N.cpu().numpy()] = scores_N.cpu().numpy()
        return scores.reshape(tuple(self.targets_BT.shape))


def pack_batch(rows: Sequence[Sequence[TokenIds]], row_length: int) -> PackedBatch:
    """Lay careers into rows, every next token of a career a target.

    Args:
        rows: for each row the token ids of its careers; no rows make one short row without targets.
        row_length: T, at least the sum of the careers of every row.
    """
    num_rows = max(1, len(rows))
    length = row_length if rows else min(GRANULE, row_length)
    token_ids, positions = (np.zeros((num_rows, length), dtype=np.int64) for _ in range(2))
    targets = np.full((num_rows, length), IGNORED, dtype=np.int64)
    lengths: list[int] = []
    for row, careers in enumerate(rows or [[]]):
        start = 0
        for ids in careers:
            end = start + len(ids)
            token_ids[row, start:end] = ids
            positions[row, start:end] = np.arange(len(ids))
            targets[row, start : end - 1] = ids[1:]
            lengths.append(len(ids))
            start = end
        if start < length:
            positions[row, start:] = np.arange(length - start)
            lengths.append(length - start)
    targets_BT = torch.from_numpy(targets)
    return PackedBatch(
        torch.from_numpy(token_ids), targets_BT, torch.from_numpy(positions), _scored(targets_BT), tuple(lengths)
    )


def _scored(targets_BT: Tensor) -> Tensor:
    return (targets_BT.flatten() != IGNORED).nonzero().flatten()
