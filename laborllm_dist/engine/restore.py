"""Read checkpoints: each rank the stretches it holds, whatever ranks and ZeRO stage wrote them; or whole weights.

Moments of 8 bits come back bit by bit where the stretches are the same as when they were written. Elsewhere their
blocks are cut anew, so they are read as fp32 and rounded to 8 bits once more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from laborllm_dist.engine import optimizers
from laborllm_dist.engine.checkpoint import CheckpointManifest, tensor_key
from laborllm_dist.engine.fragments import SCALES, Fragment, fragment_groups, spread_weights
from laborllm_dist.engine.zero import ZeroEngine
from laborllm_dist.errors import CheckpointError

Place = tuple[str, Mapping[str, Any]]  # file, and what the manifest says of a fragment in it


def load_checkpoint(engine: ZeroEngine, folder: Path, manifest: CheckpointManifest, *, updates: int) -> None:
    """Bring weights and Adam's state back, each rank reading the stretches it holds. Collective.

    Args:
        engine: of the run that goes on.
        folder: of the checkpoint.
        manifest: its manifest.
        updates: how many updates Adam has made.

    Raises:
        CheckpointError: if the checkpoint has not every element of every weight of this model.
    """
    reader = _Reader(folder, manifest)
    for group in fragment_groups(engine):
        for fragment in group:
            reader.fill(fragment, "weight", fragment.weight.copy_)
        if any(fragment.scales for fragment in group):
            _restore_8bit(group, reader)
        else:
            for fragment in group:
                for kind, view in fragment.moments.items():
                    reader.fill(fragment, kind, view.copy_)
    optimizers.set_steps_taken(engine.adam, updates)
    spread_weights(engine)


def full_weights(folder: Path, manifest: CheckpointManifest) -> Iterator[tuple[str, Tensor]]:
    """Yield every learnt weight's name and fp32 value, put together from its fragments.

    Raises:
        CheckpointError: if elements are missing.
    """
    reader = _Reader(folder, manifest)
    for name, places in reader.index.items():
        shape = tuple(places[0][1]["shape"])
        yield name, reader.values("weight", name, 0, torch.Size(shape).numel()).view(shape)


class _Reader:
    """The files of a checkpoint, opened, and where in them each weight's fragments lie."""

    def __init__(self, folder: Path, manifest: CheckpointManifest) -> None:
        self.folder = folder
        self.files: dict[str, Any] = {name: safe_open(folder / name, framework="pt") for name in manifest.files}
        self.keys = {name: set(file.keys()) for name, file in self.files.items()}
        self.index: dict[str, list[Place]] = {}
        for name, entry in manifest.files.items():
            for saved in entry["fragments"]:
                self.index.setdefault(saved["name"], []).append((name, saved))

    def fill(self, fragment: Fragment, kind: str, put: Callable[[Tensor], object]) -> None:
        """Give a fragment's saved values to `put`."""
        for _, saved in self.index.get(fragment.name, ()):
            if tuple(saved["shape"]) != fragment.shape:
                raise CheckpointError(
                    f"{self.folder}: {fragment.name} has shape {saved['shape']}, the model {fragment.shape}"
                )
        put(self.values(kind, fragment.name, fragment.start, fragment.numel))

    def values(self, kind: str, name: str, start: int, numel: int) -> Tensor:
        """Return elements [start, start + numel) of a weight or moment, [numel], in fp32."""
        found = torch.empty(numel, dtype=torch.float32)
        num_found = 0
        for file, saved in self.index.get(name, ()):
            low, high = max(saved["start"], start), min(saved["start"] + saved["numel"], start + numel)
            if low < high:
                found[low - start : high - start] = self._stretch(file, saved, kind, low, high)
                num_found += high - low
        if num_found != numel:
            raise CheckpointError(f"{self.folder}: holds {num_found} of {numel} elements of {kind} of {name}")
        return found

    def same_stretch(self, fragment: Fragment) -> Place | None:
        """Return where the very stretch of a fragment was saved, with the same blocks; None if nowhere."""
        wanted = (fragment.start, fragment.numel, fragment.block_offset)
        for file, saved in self.index.get(fragment.name, ()):
            same = (saved["start"], saved["numel"], saved["block_offset"]) == wanted
            if same and tensor_key("absmax1", fragment.name) in self.keys[file]:
                return file, saved
        return None

    def raw(self, file: str, kind: str, name: str) -> Tensor:
        """Return a saved tensor as it is."""
        tensor: Tensor = self.files[file].get_tensor(tensor_key(kind, name))
        return tensor

    def _stretch(self, file: str, saved: Mapping[str, Any], kind: str, low: int, high: int) -> Tensor:
        name, first = saved["name"], saved["start"]
        key = tensor_key(kind, name)
        if key not in self.keys[file]:
            raise CheckpointError(f"{self.folder / file}: no {kind} of {name}")
        stored: Tensor = self.files[file].get_slice(key)[low - first : high - first]
        if stored.dtype != torch.uint8:
            return stored
        scales = self.raw(file, SCALES[kind], name)
        return optimizers.from_8bit(stored, scales, moment=kind, block_offset=saved["block_offset"] + low - first)


def _restore_8bit(group: list[Fragment], reader: _Reader) -> None:
    places = [reader.same_stretch(fragment) for fragment in group if fragment.numel]
    fragments = [fragment for fragment in group if fragment.numel]
    if all(place is not None and fragment.scales for place, fragment in zip(places, fragments, strict=True)):
        for fragment, place in zip(fragments, places, strict=True):
            assert place is not None
            for kind, view in {**fragment.moments, **fragment.scales}.items():
                view.copy_(reader.raw(place[0], kind, fragment.name))
        return
    stretches = {id(fragment.flat): fragment.flat for fragment in fragments}
    for key, flat in stretches.items():
        inside = [fragment for fragment in fragments if id(fragment.flat) == key]
        for kind in inside[0].moments:
            values = torch.zeros(flat.numel())
            for fragment in inside:
                stretch = values[fragment.offset : fragment.offset + fragment.numel]
                reader.fill(fragment, kind, stretch.copy_)
            _put_moment(inside, kind, values.to(flat.device))


def _put_moment(fragments: list[Fragment], kind: str, values: Tensor) -> None:
    """Write a whole stretch's moment into its fragments' views, rounding it to 8 bits where they have 8."""
    codes, scales = optimizers.to_8bit(values, kind) if fragments[0].scales else (values, None)
    for fragment in fragments:
        fragment.moments[kind].copy_(codes[fragment.offset : fragment.offset + fragment.numel])
        if scales is not None:
            first = fragment.offset // optimizers.BLOCK
            view = fragment.scales[SCALES[kind]]
            view.copy_(scales[first : first + len(view)])
