"""Pack careers into rows of equal length, so that a forward pass has little padding.

First-fit decreasing: each career, longest first, goes into the first row with room. The result depends on the lengths
only, so scores do not depend on the number of ranks. A training step packs few careers (32 in the paper), so its last
row would be half empty; its rows are therefore as short as possible for the same number of rows, which spreads the
careers evenly over them.

    max_seq_length 2048, 32 careers of 12,900 tokens: 7 rows of 2048 are 90 % full, 7 rows of 1856 are 99 % full
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from laborllm_dist.errors import SequenceTooLongError

PAD_TO_MULTIPLE_OF = 8  # row lengths are multiples of it, which suits tensor cores


@dataclass(frozen=True, slots=True)
class PackedRows:
    """Every career exactly once: `rows` has indices into the packed lengths."""

    rows: tuple[tuple[int, ...], ...]
    max_seq_length: int
    num_tokens: int

    @property
    def fill(self) -> float:
        """Share of slots that are not padding."""
        return self.num_tokens / (len(self.rows) * self.max_seq_length) if self.rows else 1.0


def pack_careers(lengths: Sequence[int], max_seq_length: int) -> PackedRows:
    """Pack careers of these lengths into rows of `max_seq_length`.

    Raises:
        SequenceTooLongError: if a career is longer than a row; careers are never truncated.
    """
    if lengths and (longest := max(lengths)) > max_seq_length:
        raise SequenceTooLongError(
            f"career {list(lengths).index(longest)} has {longest} tokens, a row has {max_seq_length}",
            code="career-exceeds-row",
        )
    by_length = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    room = _FirstFit(len(lengths), max_seq_length)
    rows: list[list[int]] = []
    for index in by_length:
        row = room.take(lengths[index])
        if row == len(rows):
            rows.append([])
        rows[row].append(index)
    return PackedRows(rows=tuple(map(tuple, rows)), max_seq_length=max_seq_length, num_tokens=sum(lengths))


def pack_batches(
    lengths: Sequence[int], max_seq_length: int, batch_size: int
) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """Pack texts into rows of `max_seq_length`, and group the rows in order into batches of `batch_size`.

    Raises:
        SequenceTooLongError: if a text is longer than a row.
    """
    rows = pack_careers(lengths, max_seq_length).rows
    return tuple(rows[first : first + batch_size] for first in range(0, len(rows), batch_size))


def pack_step(lengths: Sequence[int], max_seq_length: int) -> PackedRows:
    """Pack the careers of one step into as few rows as `max_seq_length` allows, with rows as short as possible."""
    widest = pack_careers(lengths, max_seq_length)
    num_rows = len(widest.rows)
    shortest = max(max(lengths), -(-widest.num_tokens // num_rows))
    for length in range(-(-shortest // PAD_TO_MULTIPLE_OF) * PAD_TO_MULTIPLE_OF, max_seq_length, PAD_TO_MULTIPLE_OF):
        plan = pack_careers(lengths, length)
        if len(plan.rows) == num_rows:
            return plan
    return widest


@dataclass(frozen=True, slots=True)
class RankAssignment:
    """`passes[p][rank]` has the rows of a rank in micro-batch p; an empty tuple is an empty micro-batch.

    Every rank runs the same number of micro-batches, since ZeRO-3 gathers weights collectively: a rank without rows
    forwards one short row without targets.
    """

    passes: tuple[tuple[tuple[int, ...], ...], ...]


def assign_rows(num_rows: int, *, world_size: int, micro_batch_size: int) -> RankAssignment:
    """Assign rows in order to micro-batches, and split each micro-batch as evenly as possible over the ranks."""
    passes: list[tuple[tuple[int, ...], ...]] = []
    for first in range(0, num_rows, world_size * micro_batch_size):
        rows = range(first, min(first + world_size * micro_batch_size, num_rows))
        cuts = [len(rows) * rank // world_size for rank in range(world_size + 1)]
        passes.append(tuple(tuple(rows[cuts[rank] : cuts[rank + 1]]) for rank in range(world_size)))
    return RankAssignment(passes=tuple(passes))


class _FirstFit:
    """Finds the first row with enough room in O(log rows): each node of a tree holds the maximum of its children."""

    __slots__ = ("most", "size")

    def __init__(self, num_rows: int, max_seq_length: int) -> None:
        self.size = 1
        while self.size < num_rows:
            self.size *= 2
        self.most = [max_seq_length] * (2 * self.size)

    def take(self, length: int) -> int:
        """Return the first row with room for `length` tokens, and subtract them from its room."""
        node = 1
        while node < self.size:
            node *= 2
            if self.most[node] < length:
                node += 1
        self.most[node] -= length
        row = node - self.size
        while node > 1:
            node //= 2
            self.most[node] = max(self.most[2 * node], self.most[2 * node + 1])
        return row
