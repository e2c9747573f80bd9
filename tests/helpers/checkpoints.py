"""Checkpoints written by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from laborllm_dist.checkpoint.manifest import CheckpointManifest, SavedFile, SavedOptimizerShard, write_manifest
from laborllm_dist.checkpoint.save import checkpoint_folder
from laborllm_dist.io.files import sha256_of, sha256_of_json


def write_checkpoint(checkpoints: Path, step: int, *, run: str = "r") -> Path:
    """Write a checkpoint of two ranks: a weight of 5 elements, 3 on one rank and 2 on the other."""
    folder = checkpoint_folder(checkpoints, step)
    folder.mkdir(parents=True)
    files = {}
    for rank, (start, values) in enumerate([(0, [1.0, 2.0, 3.0]), (3, [4.0, 5.0])]):
        path = folder / f"rank_{rank:05d}_000.safetensors"
        save_file({f"{kind}/w": torch.tensor(values) for kind in ("weight", "exp_avg", "exp_avg_sq")}, path)
        place = SavedOptimizerShard(name="w", shape=(5,), start=start, numel=len(values), block_offset=0)
        files[path.name] = SavedFile(path.stat().st_size, sha256_of(path), (place,))
    write_manifest(folder, CheckpointManifest(step=step, run=run, world_size=2, stage=2, state={}, files=files))
    return folder


def flip_a_bit(path: Path) -> None:
    """Damage a file as a disk does."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def change_manifest(folder: Path, change: Callable[[dict[str, Any]], object], *, signed: bool) -> None:
    """Change a manifest; `signed`: with the checksum of what it is then."""
    values = json.loads((folder / "manifest.json").read_text())
    checksum = values.pop("sha256")
    change(values)
    values["sha256"] = sha256_of_json(values) if signed else checksum
    (folder / "manifest.json").write_text(json.dumps(values))
