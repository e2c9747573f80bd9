"""Read checkpoints: each rank the stretches it holds, whatever world size and ZeRO stage wrote them; or whole weights.

8-bit moments are restored bit for bit if the stretches are those that were saved. Otherwise their blocks differ, so
they are dequantized to fp32 and quantized to 8 bits again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from laborllm_dist.checkpoint.manifest import CheckpointManifest, SavedOptimizerShard
from laborllm_dist.checkpoint.optimizer_shards import SCALES, OptimizerShard, fragment_groups
from laborllm_dist.checkpoint.save import tensor_key
from laborllm_dist.distributed import optimizers
from laborllm_dist.distributed.library_internals import sync_model_params
from laborllm_dist.distributed.zero_engine import ZeroEngine
from laborllm_dist.errors import CheckpointError

Place = tuple[str, SavedOptimizerShard]  # a file, and a fragment in it


def load_checkpoint(engine: ZeroEngine, folder: Path, manifest: CheckpointManifest, *, updates: int) -> None:
    """Restore weights and Adam's state; each rank reads the stretches that it holds. Collective.

    Args:
        engine: of the run that resumes.
        folder: of the checkpoint.
        manifest: its manifest.
        updates: the number of updates that Adam has made.

    Raises:
        CheckpointError: if the checkpoint lacks an element of one of the model's weights.
    """
    reader = _Reader(folder, manifest)
    for group in fragment_groups(engine):
        of_stretch: dict[int, list[OptimizerShard]] = {}
        for fragment in group:
            reader.fill(fragment, "weight", fragment.weight.copy_)
            if fragment.numel:
                of_stretch.setdefault(id(fragment.flat), []).append(fragment)
        for fragments in of_stretch.values():
            _restore_moments(fragments, reader)
    optimizers.set_steps_taken(engine.adam, updates)
    engine.ranks.barrier()  # ranks take different times to read
    sync_model_params(engine.deepspeed.optimizer)


def full_weights(folder: Path, manifest: CheckpointManifest) -> Iterator[tuple[str, Tensor]]:
    """Yield every learned weight's name and fp32 value, put together from its fragments.

    Raises:
        CheckpointError: if elements are missing.
    """
    reader = _Reader(folder, manifest)
    for name, places in reader.index.items():
        shape = places[0][1].shape
        yield name, reader.values("weight", name, 0, torch.Size(shape).numel()).view(shape)


class _Reader:
    """The open files of a checkpoint, and an index of each weight's fragments in them."""

    def __init__(self, folder: Path, manifest: CheckpointManifest) -> None:
        self.folder = folder
        self.files: dict[str, Any] = {name: safe_open(folder / name, framework="pt") for name in manifest.files}
        self.keys = {name: set(file.keys()) for name, file in self.files.items()}
        self.index: dict[str, list[Place]] = {}
        for name, entry in manifest.files.items():
            for saved in entry.fragments:
                self.index.setdefault(saved.name, []).append((name, saved))

    def fill(self, fragment: OptimizerShard, kind: str, put: Callable[[Tensor], object]) -> None:
        """Pass a fragment's saved values to `put`."""
        for _, saved in self.index.get(fragment.name, ()):
            if saved.shape != fragment.shape:
                raise CheckpointError(
                    f"{self.folder}: {fragment.name} has shape {saved.shape}, the model {fragment.shape}",
                    code="shape-mismatch",
                )
        put(self.values(kind, fragment.name, fragment.start, fragment.numel))

    def values(self, kind: str, name: str, start: int, numel: int) -> Tensor:
        """Return elements [start, start + numel) of a weight or moment, [numel], in fp32."""
        elements = torch.empty(numel, dtype=torch.float32)
        num_found = 0
        for file, saved in self.index.get(name, ()):
            low, high = max(saved.start, start), min(saved.start + saved.numel, start + numel)
            if low < high:
                elements[low - start : high - start] = self._stretch(file, saved, kind, low, high)
                num_found += high - low
        if num_found != numel:
            raise CheckpointError(
                f"{self.folder}: holds {num_found} of {numel} elements of {kind} of {name}", code="missing-elements"
            )
        return elements

    def same_stretch(self, fragment: OptimizerShard) -> Place | None:
        """Return the file and entry with exactly a fragment's stretch and the same blocks; None if there is none."""
        stretch = (fragment.start, fragment.numel, fragment.block_offset)
        for file, saved in self.index.get(fragment.name, ()):
            same = (saved.start, saved.numel, saved.block_offset) == stretch
            if same and tensor_key("absmax1", fragment.name) in self.keys[file]:
                return file, saved
        return None

    def raw(self, file: str, kind: str, name: str) -> Tensor:
        """Return a saved tensor as it is."""
        tensor: Tensor = self.files[file].get_tensor(tensor_key(kind, name))
        return tensor

    def _stretch(self, file: str, saved: SavedOptimizerShard, kind: str, low: int, high: int) -> Tensor:
        name, first = saved.name, saved.start
        key = tensor_key(kind, name)
        if key not in self.keys[file]:
            raise CheckpointError(f"{self.folder / file}: no {kind} of {name}", code="missing-tensor")
        stored: Tensor = self.files[file].get_slice(key)[low - first : high - first]
        if stored.dtype != torch.uint8:
            return stored
        scales = self.raw(file, SCALES[kind], name)
        return optimizers.from_8bit(stored, scales, moment=kind, block_offset=saved.block_offset + low - first)


def _restore_moments(fragments: list[OptimizerShard], reader: _Reader) -> None:
    """Restore the moments of the fragments of one flat stretch."""
    if not fragments[0].scales:
        for fragment in fragments:
            for kind, view in fragment.moments.items():
                reader.fill(fragment, kind, view.copy_)
        return
    places = [reader.same_stretch(fragment) for fragment in fragments]
    if None not in places:
        for fragment, place in zip(fragments, places, strict=True):
            assert place is not None
            for kind, view in {**fragment.moments, **fragment.scales}.items():
                view.copy_(reader.raw(place[0], kind, fragment.name))
        return
    flat = fragments[0].flat
    for kind in fragments[0].moments:
        values = torch.zeros(flat.numel())
        for fragment in fragments:
            stretch = values[fragment.offset : fragment.offset + fragment.numel]
            reader.fill(fragment, kind, stretch.copy_)
        _put_8bit(fragments, kind, values.to(flat.device))


def _put_8bit(fragments: list[OptimizerShard], kind: str, values: Tensor) -> None:
    """Quantize a whole stretch's moment to 8 bits, into its fragments' views."""
    codes, scales = optimizers.to_8bit(values, kind)
    for fragment in fragments:
        fragment.moments[kind].copy_(codes[fragment.offset : fragment.offset + fragment.numel])
        first = fragment.offset // optimizers.BLOCK
        view = fragment.scales[SCALES[kind]]
        view.copy_(scales[first : first + len(view)])
