"""Write files atomically: write `NAME.partial`, flush it to disk, then rename it. Also locks and checksums."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import itertools
import json
import logging
import math
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, TypeVar

from filelock import SoftFileLock, Timeout

from laborllm_dist.errors import AlreadyRunningError, DiskError, DiskFullError, ForeignFileError, LaborError

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
# Error numbers of a file system without locks.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
SECONDS_UNTIL_SAID = 30.0  # of waiting for a lock that may have been left behind
MOST_CHECKING_THREADS = 4
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
# The folder or disk cannot be used; any other system error is a bug and keeps its traceback.
PATH_ERRORS = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ESTALE,
    errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.EFBIG, errno.ELOOP,
)  # fmt: skip


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to, and rename it to `path` if the block succeeds.

    The temporary file is locked while the block runs: another process that writes the same file waits.

    Raises:
        DiskError: if the file cannot be written; the partial file is removed and `path` is unchanged.
        ForeignFileError: if the partial file is a symbolic link, since the content would end up elsewhere.
    """
    partial = path.with_name(path.name + ".partial")
    reject_link(partial)
    with translate_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(partial) as file:
            file.truncate(0)  # a killed process may have left content
            try:
                yield partial
                fsync_path(partial)
                partial.replace(path)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise


def give_usual_mode(path: Path) -> None:
    """Set the mode of a file or folder to the default under the user's umask, since libraries set modes of their own.

    safetensors creates files with mode 0600, and tempfile creates folders with mode 0700.
    """
    path.chmod((0o777 if path.is_dir() else 0o666) & ~_umask())


def _umask() -> int:
    """Return the umask, read from /proc: os.umask() could only return it by changing it for all threads (Linux)."""
    status = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace")
    match = re.search(r"^Umask:\s*([0-7]+)$", status, re.MULTILINE)
    return int(match[1], 8) if match else 0o022


@contextmanager
def _locked(path: Path) -> Iterator[IO[bytes]]:
    """Open or create a file and wait for its lock; on a file system without locks, do not lock it."""
    while True:
        with path.open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
            if _is_at(file, path):  # else the previous holder has renamed or removed it
                yield file
                return


def _is_at(file: IO[bytes], path: Path) -> bool:
    """Return whether an open file is still the one at this path."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def reject_link(path: Path) -> None:
    """Check that a file or folder to write is not a symbolic link.

    Raises:
        ForeignFileError: naming the link and its target.
    """
    if path.is_symlink():
        raise ForeignFileError(
            f"{path} is a symbolic link (to {path.readlink()}), which is not followed; remove the link",
            code="symbolic-link",
        )


def reject_irregular(path: Path) -> None:
    """Check that a file to read or append to is not a folder, a device or a pipe, which would block forever.

    Raises:
        ForeignFileError: naming it.
    """
    if path.exists() and not path.is_file():
        raise ForeignFileError(
            f"{path} is not a regular file (a folder, pipe or device); move it away", code="not-a-regular-file"
        )


@contextmanager
def translate_disk_errors(path: Path) -> Iterator[None]:
    """Translate system errors about a disk or folder into errors of this project with a clear message.

    Raises:
        DiskFullError: naming the file that could not be written.
        DiskError: naming the file or folder that cannot be used, and why.
    """
    try:
        yield
    except Exception as error:  # Rust libraries raise plain Exception
        number = _number_of(error)
        if number in NO_ROOM:
            raise DiskFullError(
                f"no room left on the disk of {path.parent} while writing {path.name}; "
                "make room and start the same command again: what was complete before is untouched",
                code="no-room-left",
            ) from None
        if number in PATH_ERRORS:
            raise DiskError(
                f"cannot use {getattr(error, 'filename', None) or path}: {os.strerror(number)}; fix that, or name "
                "another folder, and start the same command again: what was complete before is untouched",
                code="file-access-failed",
            ) from None
        raise


def _number_of(error: Exception) -> int:
    """Return the errno of an error; 0 if it has none.

    Rust libraries and shutil.copytree give it in the message only.
    """
    if isinstance(error, LaborError):
        return 0
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    match = re.search(r"\(os error (\d+)\)|\bOs \{ code: (\d+)|\[Errno (\d+)\]", str(error))
    return int(match[1] or match[2] or match[3]) if match else 0


@contextmanager
def file_lock(path: Path, *, busy: str | None) -> Iterator[None]:
    """Hold a lock that the operating system releases when this process ends, even if it is killed.

    On a file system without locks (Lustre without `flock`, some NFS), a second file next to the first serves as the
    lock while the block runs. A killed process leaves that file behind; the next one on the same host takes it over.

    If the block raises an error, the lock file is removed, and so are the folders created for it that are still empty.

    Args:
        path: the lock file, created if it is missing.
        busy: error message if another process holds the lock; None: wait for the lock.

    Raises:
        AlreadyRunningError: with `busy` as the message.
        DiskError: if the lock file cannot be created.
    """
    new_folders = [folder for folder in path.parents if not folder.exists()]
    with ExitStack() as stack:
        while True:
            with translate_disk_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context(path.open("ab"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if busy is None else fcntl.LOCK_NB))
            except BlockingIOError:
                raise AlreadyRunningError(str(busy), code="locked-by-another-process") from None
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                stack.enter_context(_marked(path.with_name(path.name + ".held"), busy=busy))
                break
            if _is_at(file, path):
                break
            file.close()  # the previous holder has removed it
        try:
            yield
        except BaseException:
            path.unlink(missing_ok=True)
            for folder in new_folders:
                with suppress(OSError):  # it is no longer empty
                    folder.rmdir()
            raise


@contextmanager
def _marked(marker: Path, *, busy: str | None) -> Iterator[None]:
    """Hold a lock that is the existence of a file.

    Raises:
        AlreadyRunningError: with `busy`, and what to do if a killed process left the file behind.
    """
    lock, is_said = SoftFileLock(marker), False
    while not lock.is_locked:
        try:
            with translate_disk_errors(marker):
                lock.acquire(timeout=0 if busy is not None else SECONDS_UNTIL_SAID)
        except Timeout:
            advice = f"{marker} says so ({_holder_of(marker)}); if that process is gone, delete the file"
            if busy is not None:
                raise AlreadyRunningError(f"{busy}; {advice}", code="lock-file-present") from None
            if not is_said:
                logger.warning(f"waits for another process: {advice}")
                is_said = True
    try:
        yield
    finally:
        lock.release()


def _holder_of(marker: Path) -> str:
    """Return the process and host that wrote a lock file, from its first two lines."""
    try:
        number, host, *_ = marker.read_text(encoding="utf-8", errors="replace").split()
    except (OSError, ValueError):
        return "of a process that it does not name"
    return f"process {number} on {host}"


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically; bytes of paths that are not characters are written as escapes, as in JSON."""
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, with sorted keys."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def finite_or_null(value: Any) -> Any:
    """Return a JSON value with NaN and infinities, which JSON lacks, replaced by null."""
    if isinstance(value, Mapping):
        return {key: finite_or_null(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite_or_null(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def fsync_path(path: Path) -> None:
    """Flush a file or folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish_folder(
    partial: Path, folder: Path, files: Iterable[Path], *, make_room: Callable[[], None] = lambda: None
) -> None:
    """Rename a complete folder to its final name, after flushing its files and the folder itself to disk.

    Args:
        partial: the folder as it was written.
        folder: its final path.
        files: files in it that are not flushed yet.
        make_room: removes an older folder at that path, once the new one is on disk.
    """
    for path in files:
        fsync_path(path)
    fsync_path(partial)
    make_room()
    partial.rename(folder)
    fsync_path(folder.parent)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def checksums_of(paths: Sequence[Path]) -> list[str]:
    """Return the SHA-256 of files, read by several threads at once."""
    with ThreadPoolExecutor(MOST_CHECKING_THREADS) as threads:
        return list(threads.map(sha256_of, paths))


def sha256_of_all(paths: Sequence[Path]) -> str:
    """Return a fingerprint of 16 hexadecimal digits of the content of files, in this order."""
    return sha256_of_checksums(checksums_of(paths))


def sha256_of_checksums(checksums: Iterable[str]) -> str:
    """Return a fingerprint of 16 hexadecimal digits of files with these SHA-256 checksums, in this order."""
    return hashlib.sha256("".join(checksums).encode()).hexdigest()[:16]


class ChecksumCheck:
    """Compares checksums of files in background threads; `wait` raises an error if one differs.

    As a context manager: if the block raises an error and a file has changed, the changed file is reported instead,
    since it is the likely cause.
    """

    def __init__(self, expected: Mapping[Path, str], error_for: Callable[[Path], LaborError]) -> None:
        """Start reading the files; `error_for` returns the error for a file that is missing or has changed."""
        self._waiting = sorted(expected, key=_size_of, reverse=True)
        self._expected, self._error_for = expected, error_for
        self._changed: list[Path] = []
        self._lock = threading.Lock()
        num_threads = min(len(expected), MOST_CHECKING_THREADS, os.cpu_count() or 1)
        self._threads = [threading.Thread(target=self._work, daemon=True, name="checksums") for _ in range(num_threads)]
        for thread in self._threads:
            thread.start()

    def wait(self) -> None:
        """Wait until all files have been compared.

        Raises:
            LaborError: that of `error_for`, for the first file that is missing or has changed.
        """
        for thread in self._threads:
            thread.join()
        if self._changed:
            raise self._error_for(min(self._changed))

    def __enter__(self) -> ChecksumCheck:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception):
            self.wait()
        with self._lock:
            self._waiting.clear()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    return
                path = self._waiting.pop(0)
            try:
                is_same = sha256_of(path) == self._expected[path]
            except OSError:
                is_same = False
            if not is_same:
                self._changed.append(path)


def _size_of(path: Path) -> int:
    """Return a file's size in bytes; 0 if it does not exist."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def sha256_of_json(value: Any) -> str:
    """Return the SHA-256 of a JSON value, which writing and reading the value does not change."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def fingerprint_of(value: Any) -> str:
    """Return a fingerprint of 16 hexadecimal digits of a JSON value."""
    return sha256_of_json(value)[:16]


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield lists of `size` items; the last one may be shorter."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
