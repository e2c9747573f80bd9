"""A record of the tensors read from a model's files: shape, precision and checksum, computed while reading.

Nothing is read from the disk twice: `recording` observes transformers' own reads.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import transformers
from torch import Tensor, nn

from laborllm_dist.models.weight_checksums import Checksum, checksum, checksums_of

Result = TypeVar("Result")
NF4_BLOCK = 64


@dataclass(frozen=True, slots=True)
class QuantizedMarks:
    """What a matrix shares with its quantized form: its scales, and the sums of its rows up to rounding."""

    shape: tuple[int, ...]
    scales: Checksum
    row_sums: Tensor


@dataclass(frozen=True, slots=True)
class FileTensor:
    """A tensor of the files, or the stretch [start, start + numel) of it, as this rank has read it.

    `checksums` are by precision: that of the file, and the model's where that is narrower. `marks` are those of the
    matrix and of its transpose, where weights are quantized.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    start: int
    numel: int
    checksums: Mapping[torch.dtype, Checksum]
    marks: tuple[QuantizedMarks, ...] = ()
    is_own: bool = False  # every rank has read exactly the stretches that it holds


@dataclass(slots=True)
class FileRecord:
    """The tensors in a model's files (`shapes`), and those that have been read (`tensors`)."""

    dtype: torch.dtype  # requested for the model
    base: str = "none"  # none, int8 or nf4: quantization of the model's linear layers
    device: torch.device | None = None  # on which tensors are quantized, and their checksums computed
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    tensors: dict[str, FileTensor] = field(default_factory=dict)

    def add(self, name: str, stored: Tensor) -> None:
        """Record a whole tensor that was read."""
        self.shapes[name] = tuple(stored.shape)
        marks = () if self.base == "none" or stored.ndim != 2 else _quantized_marks(stored.to(self.dtype), self.base)
        sums = checksums_of(stored, self.dtype)
        self.tensors[name] = FileTensor(tuple(stored.shape), stored.dtype, 0, stored.numel(), sums, marks)

    def add_stretch(self, name: str, shape: Sequence[int], stored_N: Tensor, start: int) -> None:
        """Record the elements of a flattened tensor from `start` on."""
        self.shapes[name] = tuple(shape)
        sums = checksums_of(stored_N, self.dtype, start)
        self.tensors[name] = FileTensor(tuple(shape), stored_N.dtype, start, stored_N.numel(), sums, is_own=True)


def recording(record: FileRecord, opened: Callable[..., Result]) -> Callable[..., Result]:
    """Wrap a function of transformers that opens weights, so that all tensors that it reads are recorded."""

    @functools.wraps(opened)
    def opened_and_recorded(*args: Any, **more: Any) -> Result:
        with _recorded_reads(record):
            return opened(*args, **more)

    return opened_and_recorded


@contextlib.contextmanager
def _recorded_reads(record: FileRecord) -> Iterator[None]:
    def opens_file(opened: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **more: _RecordedFile(opened(*args, **more), record)

    def reads_all(read: Callable[..., dict[str, Tensor]]) -> Callable[..., dict[str, Tensor]]:
        def read_and_record(*args: Any, **more: Any) -> dict[str, Tensor]:
            tensors = read(*args, **more)
            for name, value in tensors.items():
                record.add(name, value)
            return tensors

        return read_and_record

    library: Any = transformers.modeling_utils
    readers = [(library, "safe_open", opens_file), (library, "load_state_dict", reads_all)]  # the latter of pickles
    if (peft := sys.modules.get("peft.utils.save_and_load")) is not None:
        readers.append((peft, "safe_load_file", reads_all))
    before = [getattr(module, name) for module, name, _ in readers]
    for (module, name, recorded), read in zip(readers, before, strict=True):
        setattr(module, name, recorded(read))
    try:
        yield
    finally:
        for (module, name, _), read in zip(readers, before, strict=True):
            setattr(module, name, read)


class _RecordedSlice:
    """A tensor of a safetensors file that has not been read yet; reading records it."""

    def __init__(self, stored: Any, name: str, record: FileRecord) -> None:
        self._stored, self._name, self._record = stored, name, record

    def __getitem__(self, index: Any) -> Tensor:
        value: Tensor = self._stored[index].to(self._record.device)
        if tuple(value.shape) == tuple(self._stored.get_shape()):
            self._record.add(self._name, value)
        return value

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stored, name)


class _RecordedFile:
    """A safetensors file whose tensors are recorded when they are read."""

    def __init__(self, opened: Any, record: FileRecord) -> None:
        self._opened, self._record = opened, record

    def get_slice(self, name: str) -> _RecordedSlice:
        stored = self._opened.get_slice(name)
        self._record.shapes[name] = tuple(stored.get_shape())
        return _RecordedSlice(stored, name, self._record)

    def __enter__(self) -> _RecordedFile:
        self._opened.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._opened.__exit__(*error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._opened, name)


def _quantized_marks(stored: Tensor, base: str) -> tuple[QuantizedMarks, ...]:
    """Return the marks of a matrix and of its transpose, since GPT-2's layers are quantized transposed."""
    marks = []
    for matrix in (stored, stored.T):
        if base == "int8":
            scales = matrix.half().abs().amax(dim=1).float()  # bitsandbytes converts the rows to half precision
        else:
            padded = nn.functional.pad(matrix.reshape(-1), (0, -matrix.numel() % NF4_BLOCK))  # fills the last block
            scales = padded.reshape(-1, NF4_BLOCK).abs().amax(dim=1).float()
        marks.append(QuantizedMarks(tuple(matrix.shape), checksum(scales), matrix.sum(dim=1, dtype=torch.float64)))
    return tuple(marks)
