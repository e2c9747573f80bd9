"""Folders that this software writes as a whole, each with a record of its files, laborllm_dist.json.

A folder is replaced only if its record names everything in it: any other file belongs to the user and is never
deleted. The record holds a checksum of each file and of itself, so changes are detected.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from laborllm_dist.errors import AlreadyRunningError, ForeignFileError
from laborllm_dist.io.files import (
    NO_LOCKS,
    checksums_of,
    give_usual_mode,
    publish_folder,
    reject_link,
    sha256_of_json,
    translate_disk_errors,
    write_json,
)
from laborllm_dist.io.json_files import read_json_object

RECORD = "laborllm_dist.json"
FORMAT = 2  # format 1 had no list of files
# Names that a model or adapter folder may contain if its record has no list of files or is damaged.
_NAMES = re.compile(
    r"(adapter_)?config\.json|generation_config\.json|(adapter_)?model[\w-]*\.safetensors(\.index\.json)?|"
    r"tokenizer(_config)?\.(json|model)|special_tokens_map\.json|added_tokens\.json|vocab\.json|merges\.txt|"
    r"chat_template\.jinja|title_head\.safetensors"
)


# Files of ours that people edit. An edited one does no harm to the folder, and is never replaced.
EDITABLE = frozenset({"README.md"})
_MARK = "\n<!-- written by laborllm_dist, SHA-256 {} -->\n"
LONGEST_NAME, LONGEST_PATH = 255, 1024  # bytes, well within what Linux takes


class DamagedRecordError(ValueError):
    """A folder's record is damaged."""


@dataclass(frozen=True, slots=True)
class FolderRecord:
    """The content of a record: the `facts` of its writer, and the SHA-256 of each file; None: an older record."""

    facts: Mapping[str, Any]
    files: Mapping[str, str] | None


def read_record(folder: Path) -> FolderRecord | None:
    """Return the record of a folder; None if it has none.

    Raises:
        DamagedRecordError: if the record is damaged, with the reason.
    """
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        values = read_json_object(path)
        if values.keys() == {"run", "step"}:
            return FolderRecord(values, None)
        if values.pop("sha256", None) != sha256_of_json(values):
            raise DamagedRecordError("its content has changed since it was written, SHA-256")
        files = {str(name): str(checksum) for name, checksum in values.pop("files").items()}
        if impossible := [name for name in files if not _is_inside(name)]:
            raise DamagedRecordError(f"no file in a folder can have the name {impossible[0][:40]!r}")
    except (ValueError, KeyError, AttributeError) as error:
        raise DamagedRecordError(f"{path} is damaged ({error})") from None
    return FolderRecord({name: value for name, value in values.items() if name != "format"}, files)


def _is_inside(name: str) -> bool:
    """Return whether a relative path can be that of a file in a folder or below it."""
    parts = PurePosixPath(name).parts
    return (
        bool(parts)
        and not name.startswith("/")
        and all(part != ".." and "\0" not in part and len(os.fsencode(part)) <= LONGEST_NAME for part in parts)
        and len(os.fsencode(name)) < LONGEST_PATH
    )


def is_whole(folder: Path, record: FolderRecord) -> bool:
    """Return whether all files that a record names exist and are unchanged, but for those that people edit."""
    names = (record.files or {}).keys() - EDITABLE
    return all((folder / name).is_file() for name in names) and changed_file(folder, record) is None


def changed_file(folder: Path, record: FolderRecord) -> str | None:
    """Return a message about the first existing file that has changed, but for those that people edit; None: none."""
    files = {
        name: checksum
        for name, checksum in (record.files or {}).items()
        if name not in EDITABLE and (folder / name).is_file()
    }
    checksums = checksums_of([folder / name for name in files])
    for (name, before), now in zip(files.items(), checksums, strict=True):
        if now != before:
            return f"{folder / name} has changed since it was written (SHA-256)"
    return None


def check_replaceable(folder: Path, advice: str) -> None:
    """Check that everything in a folder was written by this software, so that it may be replaced.

    Args:
        folder: the folder to write.
        advice: end of the error message, with what to do.

    Raises:
        ForeignFileError: naming the first file that this software did not write.
    """
    reject_link(folder)
    if folder.exists() and not folder.is_dir():
        raise ForeignFileError(f"{folder} is a file, and is not replaced; {advice}", code="file-instead-of-folder")
    foreign = sorted(_foreign_files(folder))
    if foreign:
        raise ForeignFileError(
            f"{foreign[0]} was not written by this software or was edited, so {folder} is not replaced; {advice}",
            code="foreign-file-in-folder",
        )


def _foreign_files(folder: Path) -> Iterator[Path]:
    """Yield the files in a folder that its record does not name, or that people have edited."""
    try:
        record = read_record(folder)
        files = None if record is None else record.files
        is_marked = record is not None
    except DamagedRecordError:
        files, is_marked = None, True
    for path in folder.rglob("*"):
        if path.is_dir() and not path.is_symlink():
            continue
        name = path.relative_to(folder).as_posix()
        is_listed = name in files if files is not None else _NAMES.fullmatch(name) is not None
        if name in EDITABLE:
            is_listed = _is_unedited(path)
        if path.is_symlink() or not is_marked or not (is_listed or name == RECORD):
            yield path


def with_mark(text: str) -> str:
    """Return the text of an editable file with a last line that tells whether somebody has edited it since."""
    return f"{text}{_MARK.format(sha256_of_json(text))}"


def _is_unedited(path: Path) -> bool:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    own, begin, _ = text.rpartition(_MARK.partition("{")[0])
    return bool(begin) and with_mark(own) == text


@contextlib.contextmanager
def replacing_folder(folder: Path, facts: Mapping[str, Any], advice: str) -> Iterator[Path]:
    """Yield a temporary folder to write to; if the block succeeds, write its record and rename it to `folder`.

    Args:
        folder: the folder to create or replace.
        facts: content of its record besides the files.
        advice: end of the error message if `folder` has other files, with what to do.

    Raises:
        ForeignFileError: if `folder` or its temporary folder has files that this software did not write.
        DiskError: if it cannot be written; the existing folder is untouched.
    """
    check_replaceable(folder, advice)
    partial = folder.with_name(folder.name + ".partial")
    with translate_disk_errors(folder), ExitStack() as stack:
        make_new_folder(partial)
        stack.enter_context(_locked_folder(partial))  # another process would take it for the remains of a killed one
        yield partial
        names = sorted(path.relative_to(partial).as_posix() for path in partial.rglob("*") if path.is_file())
        names.remove(RECORD)
        files = dict(zip(names, checksums_of([partial / name for name in names]), strict=True))
        values = {"format": FORMAT, **facts, "files": files}
        write_json(partial / RECORD, {**values, "sha256": sha256_of_json(values)})
        for name in files:
            give_usual_mode(partial / name)
        publish_folder(partial, folder, [partial / name for name in files], make_room=lambda: _remove(folder, advice))


def _remove(folder: Path, advice: str) -> None:
    check_replaceable(folder, advice)  # files may have been added meanwhile
    if folder.exists():
        shutil.rmtree(folder)


@contextlib.contextmanager
def _locked_folder(folder: Path) -> Iterator[None]:
    """Hold a folder's lock while the block runs; on a file system without locks, do not lock it.

    Raises:
        AlreadyRunningError: if another process holds it.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise AlreadyRunningError(
            f"another process is writing to {folder}; wait for it, or end it first", code="folder-being-written"
        ) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            os.close(descriptor)
            raise
    try:
        yield
    finally:
        os.close(descriptor)


def make_new_folder(partial: Path) -> None:
    """Create a temporary folder to fill and rename, after removing what a killed process has left of it.

    Raises:
        AlreadyRunningError: if another process is writing to it.
        ForeignFileError: if a folder exists at this path that this software did not create.
    """
    reject_link(partial)
    if partial.exists():
        with _locked_folder(partial):
            pass  # no other process is writing to it
        if any(partial.iterdir()) and not (partial / RECORD).is_file():
            raise ForeignFileError(
                f"{partial} is there and was not begun by this software; move it away and start again",
                code="foreign-partial-folder",
            )
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    write_json(partial / RECORD, {"format": FORMAT, "unfinished": True})
