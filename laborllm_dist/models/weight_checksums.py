"""Fast checksums of weights that are additive: those of a tensor's stretches add up to that of the whole.

    tensor     [ rank 0 ......... | rank 1 ......... | rank 2 .... ]       bytes, as 64-bit lanes in blocks of 512
    checksum   sum of w(block) x lane,  sum of v(column) x lane            modulo 2^64, w and v odd

They detect accidental changes, of a bit or of whole blocks; they are not secure against deliberate collisions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeAlias

import torch
from torch import Tensor, nn

Checksum: TypeAlias = tuple[int, int]

BLOCK_LANES, LANE_BYTES = 512, 8
CHUNK_BLOCKS = 256  # 1 MiB, which fits a core's cache for the two sums
CHUNK_ELEMENTS = 2**18  # converted at a time, for the same reason
MODULUS = 2**64


def checksum(flat_N: Tensor, start: int = 0) -> Checksum:
    """Return the checksum of elements that begin at index `start` of a flattened tensor; others count as zeros.

    The checksums of all stretches of a tensor add up to its own (`added`).
    """
    first_byte = start * flat_N.element_size()
    bytes_N = flat_N.detach().contiguous().view(-1).view(torch.uint8)
    before, after = first_byte % LANE_BYTES, -(first_byte + len(bytes_N)) % LANE_BYTES
    is_aligned = bytes_N.data_ptr() % LANE_BYTES == 0 and bytes_N.storage_offset() % LANE_BYTES == 0
    if before or after:
        bytes_N = nn.functional.pad(bytes_N, (before, after))
    elif not is_aligned:
        bytes_N = bytes_N.clone()
    lanes_N = bytes_N.view(torch.int64)
    blocks, columns = 0, 0
    for first_lane, lanes_BL in _in_blocks(lanes_N, first_byte // LANE_BYTES):
        block, column = divmod(first_lane, BLOCK_LANES)
        blocks += _weighted(lanes_BL.sum(dim=1), block, 0x9E3779B97F4A7C15)
        columns += _weighted(lanes_BL.sum(dim=0), column, 0xC2B2AE3D27D4EB4F)
    return blocks % MODULUS, columns % MODULUS


def added(checksums: Iterable[Checksum]) -> Checksum:
    """Return the checksum of a tensor from those of its stretches."""
    blocks, columns = zip(*checksums, strict=True)
    return sum(blocks) % MODULUS, sum(columns) % MODULUS


def checksums_of(stored: Tensor, dtype: torch.dtype, start: int = 0) -> dict[torch.dtype, Checksum]:
    """Return the checksum in the file's precision, and in `dtype` if that cannot represent all of its values."""
    sums = {stored.dtype: checksum(stored, start)}
    if not _holds(dtype, stored.dtype):
        sums[dtype] = checksum(stored.to(dtype), start)
    return sums


def checksum_in(value: Tensor, precision: torch.dtype, start: int) -> Checksum | None:
    """Return the checksum of weights in the precision that they were converted from; None if that loses information."""
    if value.dtype == precision:
        return checksum(value, start)
    flat_N = value.reshape(-1)
    parts = [(0, 0)]
    chunk = CHUNK_ELEMENTS if flat_N.device.type == "cpu" else max(1, len(flat_N))
    for at in range(0, len(flat_N), chunk):
        piece_N = flat_N[at : at + chunk]
        stored_N = _narrowed(piece_N, precision)
        if not _same_bits(stored_N.to(value.dtype), piece_N):
            return None
        parts.append(checksum(stored_N, start + at))
    return added(parts)


def _in_blocks(lanes_N: Tensor, first_lane: int) -> Iterator[tuple[int, Tensor]]:
    """Split lanes at the borders of blocks; yield each piece with the index of its first lane."""
    chunk = CHUNK_BLOCKS * BLOCK_LANES if lanes_N.device.type == "cpu" else len(lanes_N)
    at, end = 0, len(lanes_N)
    while at < end:
        place = first_lane + at
        if place % BLOCK_LANES or end - at < BLOCK_LANES:  # a piece inside one block
            size = min(BLOCK_LANES - place % BLOCK_LANES, end - at)
            yield place, lanes_N[at : at + size].view(1, size)
        else:
            size = min(chunk, (end - at) // BLOCK_LANES * BLOCK_LANES)
            yield place, lanes_N[at : at + size].view(-1, BLOCK_LANES)
        at += size


def _weighted(sums_N: Tensor, first: int, factor: int) -> int:
    """Return the sum of sums times odd weights, which are a function of their index; int64 wraps around."""
    places_N = torch.arange(first, first + len(sums_N), device=sums_N.device, dtype=torch.int64)
    return int((sums_N * (places_N * (factor - MODULUS) | 1)).sum())


def _holds(wide: torch.dtype, narrow: torch.dtype) -> bool:
    """Return whether one dtype can represent every value of the other; quantized dtypes cannot."""
    return not narrow.is_floating_point or narrow.itemsize == 1 or torch.promote_types(wide, narrow) == wide


def _narrowed(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Return weights in the precision that they were converted from, with the bits of NaNs unchanged."""
    if dtype != torch.bfloat16 or not value.is_floating_point():
        return value.to(dtype)
    return (value.float().view(torch.int32) >> 16).to(torch.int16).view(dtype)


def _same_bits(one: Tensor, other: Tensor) -> bool:
    """Return whether all bits are equal, those of NaNs too."""
    pair = [each.detach().contiguous().view(-1).view(torch.uint8) for each in (one, other)]
    if not any(each.numel() % LANE_BYTES or each.storage_offset() % LANE_BYTES for each in pair):
        pair = [each.view(torch.int64) for each in pair]  # several times as fast
    return torch.equal(*pair)
