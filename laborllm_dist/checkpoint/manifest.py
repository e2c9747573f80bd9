"""The manifest of a checkpoint, read strictly, so that a reader gets exactly what was written.

The manifest holds the SHA-256 of its own content, and those of the files beside it. The format is checked first: a
checkpoint of another format is not damaged, and is never skipped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from laborllm_dist.config.reader import Strict, read_settings
from laborllm_dist.errors import CheckpointError, SettingsError, UnsupportedFormatError
from laborllm_dist.io.files import sha256_of, sha256_of_json, translate_disk_errors, write_json
from laborllm_dist.io.json_files import read_json_object

FORMAT = 3
MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class SavedOptimizerShard(Strict):
    """The stretch [start, start + numel) of a flattened weight that a file holds."""

    name: str
    shape: tuple[int, ...]  # of the whole weight
    start: int
    numel: int
    block_offset: int  # place of the first element in its block of 8-bit moments


@dataclass(frozen=True, slots=True)
class SavedFile(Strict):
    """A file of a checkpoint."""

    bytes: int
    sha256: str
    fragments: tuple[SavedOptimizerShard, ...]


@dataclass(frozen=True, slots=True)
class CheckpointManifest(Strict):
    """The entries of a manifest. `state` is the run's, as plain JSON values."""

    step: int
    run: str  # fingerprint of the run's settings
    world_size: int
    stage: int
    state: dict[str, object]
    files: dict[str, SavedFile]


def write_manifest(folder: Path, manifest: CheckpointManifest) -> None:
    """Write a manifest, replacing an existing one."""
    values = {"format": FORMAT, **dataclasses.asdict(manifest)}
    write_json(folder / MANIFEST, {**values, "sha256": sha256_of_json(values)})


def read_manifest(folder: Path) -> CheckpointManifest:
    """Read a manifest without checking the files.

    Raises:
        CheckpointError: if it is missing or damaged.
        UnsupportedFormatError: if this version does not read its format.
    """
    path = folder / MANIFEST
    try:
        with _reading(path):
            values = read_json_object(path)
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(f"{folder} has no {MANIFEST}: it was never finished", code="no-manifest") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged ({error})", code="damaged-manifest") from None
    if isinstance(number := values.get("format"), int) and number != FORMAT:
        raise UnsupportedFormatError(
            f"{folder} has format {number}, this version reads {FORMAT}; resume with the version that wrote it, or "
            "give this run another name (name=...)",
            code="unsupported-checkpoint-format",
        )
    if values.pop("sha256", None) != sha256_of_json(values):
        raise CheckpointError(
            f"{path} is damaged (its content has changed since it was written, SHA-256)",
            code="manifest-checksum-mismatch",
        )
    try:
        return read_settings(CheckpointManifest, {name: values[name] for name in values if name != "format"})
    except SettingsError as error:
        raise CheckpointError(f"{path} is damaged ({error})", code="damaged-manifest") from None


def check_checkpoint(folder: Path) -> CheckpointManifest:
    """Read the manifest and compare every file with it.

    Raises:
        CheckpointError: if the manifest is missing or damaged, or a file has another size or checksum.
        UnsupportedFormatError: if this version does not read its format.
        DiskError: if a file may not be read.
    """
    manifest = read_manifest(folder)
    for name, entry in manifest.files.items():
        path = folder / name
        with _reading(path):
            if not path.is_file() or path.stat().st_size != entry.bytes:
                actual = f"{path.stat().st_size:,} bytes" if path.is_file() else "nothing"
                raise CheckpointError(
                    f"{path}: {actual}, the manifest says {entry.bytes:,} bytes", code="missing-or-incomplete-file"
                )
            if sha256_of(path) != entry.sha256:
                raise CheckpointError(
                    f"{path}: the content has changed since it was written (SHA-256)", code="file-checksum-mismatch"
                )
    return manifest


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raise CheckpointError on a read error of the disk, DiskError on other errors of the system."""
    with translate_disk_errors(path):
        try:
            yield
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            raise CheckpointError(
                f"{path}: the disk cannot read it ({error.strerror})", code="unreadable-file"
            ) from None
