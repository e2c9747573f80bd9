"""Pack careers into rows of equal length, so that a forward wastes few tokens.

First-fit decreasing: longest career first, into the first row with room. Depends on lengths only, never on ranks;
that is why scores do not move when the number of ranks changes. A step of training packs few careers (32 in the
paper), so its last row would stay half empty; its rows are therefore made as short as the same number of rows
allows, which spreads the careers evenly over them.

    max_seq_length 2048, 32 careers of 12,900 tokens: 7 rows of 2048 are 90 % full, 7 rows of 1856 are 99 % full
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from laborllm_dist.errors import SequenceTooLongError

PAD_TO_MULTIPLE_OF = 8  # row lengths are multiples of it, which matrix units like


@dataclass(frozen=True, slots=True)
class PackedRows:
    """Every career exactly once: `rows` holds indices into the lengths that were packed."""

    rows: tuple[tuple[int, ...], ...]
    max_seq_length: int
    num_tokens: int

    @property
    def fill(self) -> float:
        """Share of slots that hold a token."""
        return self.num_tokens / (len(self.rows) * self.max_seq_length) if self.rows else 1.0


def pack_careers(lengths: Sequence[int], max_seq_length: int) -> PackedRows:
    """Pack careers of these lengths into rows of `max_seq_length`.

    Raises:
        SequenceTooLongError: if one career is longer than a row; it is never cut.
    """
    if lengths and (longest := max(lengths)) > max_seq_length:
        raise SequenceTooLongError(
            f"career {list(lengths).index(longest)} has {longest} tokens, a row has {max_seq_length}"
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


def pack_step(lengths: Sequence[int], max_seq_length: int) -> PackedRows:
    """Pack the careers of one step into as few rows as `max_seq_length` allows, and these as short as they can be."""
    widest = pack_careers(lengths, max_seq_length)
    num_rows = len(widest.rows)
    shortest = max(max(lengths), -(-widest.num_tokens // num_rows))
    for length in range(-(-shortest // PAD_TO_MULTIPLE_OF) * PAD_TO_MULTIPLE_OF, max_seq_length, PAD_TO_MULTIPLE_OF):
        plan = pack_careers(lengths, length)
        if len(plan.rows) == num_rows:
            return plan
    return widest


class _FirstFit:
    """The first row with enough room, found in log(rows): a tree whose nodes hold the most room below them."""

    __slots__ = ("most", "size")

    def __init__(self, num_rows: int, max_seq_length: int) -> None:
        self.size = 1
        while self.size < num_rows:
            self.size *= 2
        self.most = [max_seq_length] * (2 * self.size)

    def take(self, length: int) -> int:
        """Return the first row with room for `length` tokens, and take them."""
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
