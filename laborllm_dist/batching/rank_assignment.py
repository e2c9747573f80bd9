"""Say which rank forwards which rows in which pass.

Every rank makes the same number of passes, since ZeRO-3 gathers weights in step: where rows run out, a rank's pass is
explicitly empty and forwards one short row without targets.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RankAssignment:
    """`passes[p][rank]` are the rows that a rank forwards in pass p; an empty tuple is an empty pass."""

    passes: tuple[tuple[tuple[int, ...], ...], ...]


def shard_rows(num_rows: int, *, world_size: int, micro_batch_size: int) -> RankAssignment:
    """Spread rows over ranks and passes, in order: pass by pass, and within a pass as evenly as it goes."""
    passes: list[tuple[tuple[int, ...], ...]] = []
    for first in range(0, num_rows, world_size * micro_batch_size):
        rows = range(first, min(first + world_size * micro_batch_size, num_rows))
        cuts = [len(rows) * rank // world_size for rank in range(world_size + 1)]
        passes.append(tuple(tuple(rows[cuts[rank] : cuts[rank + 1]]) for rank in range(world_size)))
    return RankAssignment(passes=tuple(passes))
