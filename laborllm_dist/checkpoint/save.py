"""Save checkpoints atomically: a temporary folder, renamed when complete; any world size and ZeRO stage reads them.

    checkpoints/step_00000120/
        rank_00000_000.safetensors ...   fragments of one rank: fp32 weights, Adam's moments (no pickle)
        manifest.json                    written last: step, state of the run, where every fragment lies, sizes, SHA-256
    checkpoints/step_00000110.damaged/   a damaged checkpoint: ignored, but kept for inspection

A rank's fragments are split into files of FILE_BYTES, since each file is copied to the host's memory before writing.

A folder without a valid manifest is not a checkpoint. checkpoint/load.py reads checkpoints.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from laborllm_dist.checkpoint.manifest import (
    CheckpointManifest,
    SavedFile,
    SavedOptimizerShard,
    check_checkpoint,
    read_manifest,
    write_manifest,
)
from laborllm_dist.checkpoint.optimizer_shards import OptimizerShard, fragment_groups
from laborllm_dist.distributed.zero_engine import ZeroEngine
from laborllm_dist.errors import CheckpointError, DiskError, DiskFullError, ForeignFileError
from laborllm_dist.io.files import (
    fsync_path,
    give_usual_mode,
    publish_folder,
    reject_link,
    sha256_of,
    translate_disk_errors,
)

logger = logging.getLogger(__name__)

FILE_BYTES = 2**30
# Of the files of a checkpoint, and of what safetensors writes to before it renames it: a kill leaves it.
_NAMES = re.compile(r"(rank_\d+_\d+\.safetensors|manifest\.json)(\.partial)?|\.tmp\w{6}")


@dataclass(frozen=True, slots=True)
class _Written:
    """The result of writing a rank's part of a checkpoint: its files, or the error that prevented it."""

    files: dict[str, SavedFile] = field(default_factory=dict)
    error: str | None = None
    code: str = ""  # of the error
    disk_is_full: bool = False


def checkpoint_folder(checkpoints: Path, step: int) -> Path:
    """Return the folder of a step's checkpoint."""
    return checkpoints / f"step_{step:08d}"


def save_checkpoint(engine: ZeroEngine, checkpoints: Path, *, step: int, run: str, state: Mapping[str, Any]) -> None:
    """Write a new checkpoint of this step, atomically. Collective.

    Raises:
        DiskError: on every rank, if any cannot write; older checkpoints are untouched.
    """
    ranks, folder = engine.ranks, checkpoint_folder(checkpoints, step)
    partial = folder.with_name(folder.name + ".partial")
    ranks.run_on_main(lambda: _make_new(partial))
    try:
        with translate_disk_errors(partial):
            written = _Written(files=write_fragments(fragment_groups(engine), partial, rank=ranks.rank))
    except DiskError as error:
        written = _Written(error=str(error), code=error.code, disk_is_full=isinstance(error, DiskFullError))
    parts = ranks.share(written, _Written)
    for failed in (part for part in parts if part.error is not None):
        if ranks.is_main:
            with contextlib.suppress(OSError, ForeignFileError):
                _remove(partial)
        raise (DiskFullError if failed.disk_is_full else DiskError)(failed.error, code=failed.code)
    files = {name: file for part in parts for name, file in part.files.items()}
    manifest = CheckpointManifest(
        step=step, run=run, world_size=ranks.world_size, stage=engine.settings.stage, state=dict(state), files=files
    )
    ranks.run_on_main(lambda: _finish(partial, folder, manifest))


def save_state(checkpoints: Path, step: int, state: Mapping[str, Any]) -> None:
    """Replace the run's state in a step's checkpoint; its weights are unchanged."""
    folder = checkpoint_folder(checkpoints, step)
    write_manifest(folder, dataclasses.replace(read_manifest(folder), state=dict(state)))


def newest_checkpoint(checkpoints: Path) -> tuple[Path, CheckpointManifest] | None:
    """Return the newest checkpoint whose files are all intact; None if none was ever saved.

    Newer, damaged ones are logged and renamed to NAME.damaged, so that they do not displace intact ones.

    Raises:
        CheckpointError: if there are checkpoints, but none is intact; all are left unchanged.
        UnsupportedFormatError: if this version does not read the format of one.
    """
    damaged = []
    for folder in _newest_first(checkpoints):
        try:
            manifest = check_checkpoint(folder)
        except CheckpointError as error:
            logger.info(f"checkpoint ignored: {error}")
            damaged.append(folder)
            continue
        for each in damaged:
            _set_aside(each)
        return folder, manifest
    if damaged or any(checkpoints.glob("step_*.damaged")):
        raise CheckpointError(
            f"no checkpoint in {checkpoints} is intact; bring one back from a copy, give this run another name "
            "(name=...), or delete that folder to start over",
            code="no-valid-checkpoint",
        )
    return None


def run_of_checkpoints(checkpoints: Path) -> str | None:
    """Return the fingerprint of the settings that the newest checkpoint was made with; None if there is none.

    Raises:
        UnsupportedFormatError: if this version does not read its format.
    """
    for folder in _newest_first(checkpoints):
        with contextlib.suppress(CheckpointError):
            return read_manifest(folder).run
    return None


def save_total_limit(checkpoints: Path, *, saved_step: int, num_newest: int, best_step: int | None) -> None:
    """Delete all but the newest checkpoints, of which that of `saved_step` is the last, and the best one."""
    saved = checkpoint_folder(checkpoints, saved_step)
    best = None if best_step is None else checkpoint_folder(checkpoints, best_step)
    known = [folder for folder in _newest_first(checkpoints) if folder.name <= saved.name]
    with translate_disk_errors(checkpoints):
        for leftover in checkpoints.glob("step_????????.partial"):  # of a killed run
            _remove(leftover)
        for folder in known[num_newest:]:
            if folder != best and not _foreign_files(folder):
                # Rename first, so that a partly deleted folder is not a checkpoint.
                doomed = folder.with_name(folder.name + ".partial")
                _remove(doomed)
                folder.rename(doomed)
                _remove(doomed)


def write_fragments(groups: Iterable[list[OptimizerShard]], folder: Path, *, rank: int) -> dict[str, SavedFile]:
    """Write a rank's fragments as files of about FILE_BYTES; return their manifest entries by name."""
    files: dict[str, SavedFile] = {}
    tensors: dict[str, torch.Tensor] = {}
    places: list[SavedOptimizerShard] = []

    def write() -> None:
        path = folder / f"rank_{rank:05d}_{len(files):03d}.safetensors"
        save_file(tensors, path)
        give_usual_mode(path)
        fsync_path(path)
        files[path.name] = SavedFile(path.stat().st_size, sha256_of(path), tuple(places))
        tensors.clear()
        places.clear()

    for group in groups:
        for fragment in group:
            if not fragment.is_owned or not fragment.numel:
                continue
            parts = {"weight": fragment.weight, **fragment.moments, **fragment.scales}
            # Clone even on the host: safetensors rejects views that share a buffer.
            tensors |= {
                tensor_key(kind, fragment.name): view.cpu().contiguous().clone() for kind, view in parts.items()
            }
            places.append(
                SavedOptimizerShard(
                    fragment.name, fragment.shape, fragment.start, fragment.numel, block_offset=fragment.block_offset
                )
            )
            if sum(tensor.nbytes for tensor in tensors.values()) >= FILE_BYTES:
                write()
    if tensors:
        write()
    return files


def tensor_key(kind: str, name: str) -> str:
    """Return the key in a file of a weight's `weight`, `exp_avg` and so on."""
    return f"{kind}/{name}"


def _newest_first(checkpoints: Path) -> list[Path]:
    return sorted(checkpoints.glob("step_????????"), reverse=True)


def _set_aside(folder: Path) -> None:
    aside = folder.with_name(folder.name + ".damaged")
    with translate_disk_errors(folder):
        _remove(aside)  # from an earlier run
        folder.rename(aside)


def _make_new(folder: Path) -> None:
    with translate_disk_errors(folder):
        _remove(folder)
        folder.mkdir(parents=True)


def _remove(folder: Path) -> None:
    """Remove the folder of a partial or old checkpoint.

    Raises:
        ForeignFileError: if it has other files.
    """
    reject_link(folder)
    if not folder.exists():
        return
    if foreign := _foreign_files(folder):
        raise ForeignFileError(
            f"{foreign[0]} is no part of a checkpoint, so {folder} is not removed; move it away",
            code="foreign-file-in-checkpoint",
        )
    shutil.rmtree(folder)


def _foreign_files(folder: Path) -> list[Path]:
    """Return the files in a checkpoint's folder that are not part of a checkpoint."""
    return sorted(path for path in folder.iterdir() if not _NAMES.fullmatch(path.name) or path.is_dir())


def _finish(partial: Path, folder: Path, manifest: CheckpointManifest) -> None:
    with translate_disk_errors(folder):
        write_manifest(partial, manifest)
        publish_folder(partial, folder, ())  # each rank has already synced its own files
