"""The tensors of a forward: careers side by side in rows, each blind to the others.

tokens      <s> a  b  c  <s> d  e   .
positions    0  1  2  3   0  1  2   0      start anew in each career
segments     1  1  1  1   2  2  2   0      attention stays inside a segment; 0 is padding
targets      a  b  c  -   d  e  -   -      the next token; - is IGNORED
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
    """Rows of packed careers; every tensor is [B, T] int64."""

    token_ids_BT: Tensor
    targets_BT: Tensor
    positions_BT: Tensor
    segments_BT: Tensor

    def to(self, device: torch.device) -> PackedBatch:
        """Return the batch on a device."""
        return PackedBatch(
            self.token_ids_BT.to(device, non_blocking=True),
            self.targets_BT.to(device, non_blocking=True),
            self.positions_BT.to(device, non_blocking=True),
            self.segments_BT.to(device, non_blocking=True),
        )


def pack_batch(rows: Sequence[Sequence[TokenIds]], row_length: int) -> PackedBatch:
    """Lay careers into rows, every next token of a career a target.

    Args:
        rows: for each row the token ids of its careers; no rows make one short row without targets.
        row_length: T, at least the sum of the careers of every row.
    """
    num_rows = max(1, len(rows))
    length = row_length if rows else min(GRANULE, row_length)
    token_ids, positions, segments = (np.zeros((num_rows, length), dtype=np.int64) for _ in range(3))
    targets = np.full((num_rows, length), IGNORED, dtype=np.int64)
    for row, careers in enumerate(rows):
        start = 0
        for segment, ids in enumerate(careers, start=1):
            end = start + len(ids)
            token_ids[row, start:end] = ids
            positions[row, start:end] = np.arange(len(ids))
            segments[row, start:end] = segment
            targets[row, start : end - 1] = ids[1:]
            start = end
    return PackedBatch(*map(torch.from_numpy, (token_ids, targets, positions, segments)))
