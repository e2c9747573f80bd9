"""Checkpoints that survive anything: written beside, checked, renamed; read by any number of ranks at any ZeRO stage.

    checkpoints/step_00000120/
        rank_00000_000.safetensors ...   fragments of one rank: fp32 weights, Adam's moments (no pickle)
        manifest.json                    written last: step, state of the run, where every fragment lies, sizes, SHA-256

A rank's fragments are cut into files of FILE_BYTES, since a file is copied to the host's memory before it is written.

A folder without a valid manifest is not a checkpoint. engine/restore.py reads what is written here.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from safetensors.torch import save_file

from laborllm_dist.engine.fragments import Fragment, fragment_groups
from laborllm_dist.engine.ranks import Ranks
from laborllm_dist.engine.zero import ZeroEngine
from laborllm_dist.errors import CheckpointError, DiskFull
from laborllm_dist.files import flush_to_disk, no_room_is_said, sha256_of, write_json

FORMAT = 2
MANIFEST = "manifest.json"
FILE_BYTES = 2**30


@dataclass(frozen=True, slots=True)
class CheckpointManifest:
    """What a complete checkpoint says of itself. `state` is the run's, as plain values."""

    step: int
    run: str  # fingerprint of the run's settings
    world_size: int
    stage: int
    state: Mapping[str, Any]
    files: Mapping[str, Mapping[str, Any]]  # name -> bytes, sha256, fragments
    format: int = FORMAT


def checkpoint_folder(checkpoints: Path, step: int) -> Path:
    """Return the folder of a step's checkpoint."""
    return checkpoints / f"step_{step:08d}"


def save_checkpoint(engine: ZeroEngine, checkpoints: Path, *, step: int, run: str, state: Mapping[str, Any]) -> None:
    """Write a checkpoint of this step; it exists as a whole or not at all. Collective.

    Raises:
        DiskFull: on every rank, if any has no room; older checkpoints are untouched.
    """
    ranks, folder = engine.ranks, checkpoint_folder(checkpoints, step)
    partial = folder.with_name(folder.name + ".partial")
    if ranks.is_first:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True, exist_ok=True)
    ranks.barrier()
    outcome: dict[str, Any] | str
    try:
        with no_room_is_said(partial):
            outcome = write_fragments(fragment_groups(engine), partial, rank=ranks.rank)
    except DiskFull as error:
        outcome = str(error)
    outcomes = _everyones(outcome, ranks)
    if full := [each for each in outcomes if isinstance(each, str)]:
        if ranks.is_first:
            shutil.rmtree(partial, ignore_errors=True)
        raise DiskFull(full[0])
    files = {name: entry for each in outcomes for name, entry in each.items()}
    manifest = CheckpointManifest(
        step=step, run=run, world_size=ranks.world_size, stage=engine.settings.stage, state=dict(state), files=files
    )
    ranks.on_first(lambda: _finish(partial, folder, manifest))


def newest_checkpoint(checkpoints: Path, say: Callable[[str], None]) -> tuple[Path, CheckpointManifest] | None:
    """Return the newest checkpoint whose files are all as they were written; what is passed over is said."""
    for folder in sorted(checkpoints.glob("step_????????"), reverse=True):
        try:
            return folder, check_checkpoint(folder)
        except CheckpointError as error:
            say(f"checkpoint passed over: {error}")
    return None


def check_checkpoint(folder: Path) -> CheckpointManifest:
    """Read the manifest and compare every file with it.

    Raises:
        CheckpointError: if the manifest is missing or damaged, or a file has another size or checksum.
    """
    manifest = read_manifest(folder)
    for name, entry in manifest.files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != entry["bytes"]:
            found = f"{path.stat().st_size:,} bytes" if path.is_file() else "nothing"
            raise CheckpointError(f"{path}: {found}, the manifest says {entry['bytes']:,} bytes")
        if sha256_of(path) != entry["sha256"]:
            raise CheckpointError(f"{path}: the content has changed since it was written (SHA-256)")
    return manifest


def read_manifest(folder: Path) -> CheckpointManifest:
    """Read a manifest without a look at the files.

    Raises:
        CheckpointError: if it is missing, damaged or of another format.
    """
    try:
        manifest = CheckpointManifest(**json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise CheckpointError(f"{folder} has no {MANIFEST}: it was never finished") from None
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{folder / MANIFEST} is damaged ({error})") from None
    if manifest.format != FORMAT:
        raise CheckpointError(f"{folder} has format {manifest.format}, this version reads {FORMAT}")
    return manifest


def keep_checkpoints(checkpoints: Path, *, num_newest: int, best_step: int | None) -> None:
    """Delete all but the newest checkpoints and the best one."""
    for leftover in checkpoints.glob("step_*.partial"):  # of a kill
        shutil.rmtree(leftover)
    folders = sorted(checkpoints.glob("step_????????"), reverse=True)
    best = None if best_step is None else checkpoint_folder(checkpoints, best_step)
    for folder in folders[num_newest:]:
        if folder != best:
            doomed = folder.with_name(folder.name + ".partial")  # first it stops being a checkpoint, then it goes
            folder.rename(doomed)
            shutil.rmtree(doomed)


def write_fragments(groups: Iterable[list[Fragment]], folder: Path, *, rank: int) -> dict[str, dict[str, Any]]:
    """Write the fragments that a rank saves as files of about FILE_BYTES; return what the manifest says of each."""
    files: dict[str, dict[str, Any]] = {}
    tensors: dict[str, torch.Tensor] = {}
    places: list[dict[str, Any]] = []

    def write() -> None:
        path = folder / f"rank_{rank:05d}_{len(files):03d}.safetensors"
        save_file(tensors, path)
        flush_to_disk(path)
        files[path.name] = {"bytes": path.stat().st_size, "sha256": sha256_of(path), "fragments": list(places)}
        tensors.clear()
        places.clear()

    for group in groups:
        for fragment in group:
            if not fragment.is_mine or not fragment.numel:
                continue
            kept = {"weight": fragment.weight, **fragment.moments, **fragment.scales}
            # A copy even on the host: views of one buffer cannot stand in one safetensors file.
            tensors |= {tensor_key(kind, fragment.name): view.cpu().contiguous().clone() for kind, view in kept.items()}
            places.append(
                {
                    "name": fragment.name,
                    "shape": list(fragment.shape),
                    "start": fragment.start,
                    "numel": fragment.numel,
                    "block_offset": fragment.block_offset,
                }
            )
            if sum(tensor.nbytes for tensor in tensors.values()) >= FILE_BYTES:
                write()
    if tensors:
        write()
    return files


def _finish(partial: Path, folder: Path, manifest: CheckpointManifest) -> None:
    values = {name: getattr(manifest, name) for name in CheckpointManifest.__slots__}
    with no_room_is_said(folder):
        write_json(partial / MANIFEST, values)
        flush_to_disk(partial)
        older = folder.with_name(folder.name + ".old.partial")
        if folder.exists():  # a checkpoint of this very step, which goes when the new one is there
            folder.rename(older)
        partial.rename(folder)
        flush_to_disk(folder.parent)
        shutil.rmtree(older, ignore_errors=True)


def tensor_key(kind: str, name: str) -> str:
    """Return the name in a file of a weight's `weight`, `exp_avg` and so on."""
    return f"{kind}/{name}"


def _everyones(outcome: Any, ranks: Ranks) -> list[Any]:
    if ranks.world_size == 1:
        return [outcome]
    outcomes: list[Any] = [None] * ranks.world_size
    torch.distributed.all_gather_object(outcomes, outcome)
    return outcomes
