"""Open a data file on disk or inside a .zip, as survey sites provide it.

A megabyte of a zip can hold gigabytes, so no function here reads more than a bounded number of bytes into memory.
"""

from __future__ import annotations

import io
import lzma
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from laborllm_dist.careers.readers.file_formats import reject_pointers
from laborllm_dist.errors import DataFileError

MOST_TEXT_BYTES = 256 << 20  # of a codebook, a list of variables or a set-up file; exceeds a survey's whole codebook
_LONGEST_LINE = 1 << 20
_BAD_ZIP = (
    zipfile.BadZipFile, NotImplementedError, RuntimeError, KeyError, ValueError, EOFError, struct.error, lzma.LZMAError,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ArchiveMember:
    """A file on disk (`name` is None), or a member of the zip file `path`."""

    path: Path
    name: str | None = None

    @property
    def label(self) -> Path:
        """The path in messages."""
        return self.path if self.name is None else self.path / self.name

    @property
    def suffix(self) -> str:
        """The file extension in lowercase, such as .csv."""
        return self.label.suffix.lower()

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """Open the file in binary mode.

        Raises:
            DataFileError: if the file cannot be read, or the zip is damaged.
        """
        with ExitStack() as stack:
            try:
                file = self._open(stack)
            except _BAD_ZIP as error:
                raise DataFileError(
                    f"{self.label}: the zip cannot be read ({error}); download it again", code="damaged-zip"
                ) from None
            except OSError as error:
                again = "" if self.name is None else "; download the zip again"
                raise DataFileError(
                    f"{self.label}: cannot be read ({error.strerror or error}){again}", code="unreadable-file"
                ) from None
            try:
                yield file
            except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError) as error:
                raise DataFileError(
                    f"{self.label}: it breaks off or is damaged ({error}); download it again", code="damaged-file"
                ) from None

    def _open(self, stack: ExitStack) -> IO[bytes]:
        reject_pointers(self.path)
        if self.name is None:
            return stack.enter_context(self.path.open("rb"))
        member = stack.enter_context(stack.enter_context(zipfile.ZipFile(self.path)).open(self.name))
        # The readline of zipfile reads one byte at a time if it has a limit.
        return stack.enter_context(io.BufferedReader(member))  # type: ignore[type-var]

    def read_text(self) -> str:
        """Return the whole file, decoded as Latin-1.

        Raises:
            DataFileError: as in `open`, or if the file is larger than MOST_TEXT_BYTES.
        """
        with self.open() as file:
            content = file.read(MOST_TEXT_BYTES + 1)
        if len(content) > MOST_TEXT_BYTES:
            raise DataFileError(f"{self.label}: {_TOO_LARGE}", code="file-too-large")
        return content.decode("latin-1")

    def lines(self) -> Iterator[str]:
        """Yield the lines of the file, decoded as Latin-1, with one line in memory at a time.

        Raises:
            DataFileError: as in `read_text`, or if a line is too long.
        """
        num_bytes = 0
        with self.open() as file:
            while line := file.readline(_LONGEST_LINE + 1):
                num_bytes += len(line)
                if len(line) > _LONGEST_LINE or num_bytes > MOST_TEXT_BYTES:
                    raise DataFileError(f"{self.label}: {_TOO_LARGE}", code="file-too-large")
                yield line.decode("latin-1").rstrip("\r\n")


_TOO_LARGE = (
    f"more than {MOST_TEXT_BYTES >> 20} MiB, or lines of more than {_LONGEST_LINE >> 20} MiB, so it is no file of its "
    "kind; download it again"
)


def members_of_zip(path: Path) -> list[ArchiveMember]:
    """Return the files in a zip, in order of name.

    Raises:
        DataFileError: if it is not a readable zip.
    """
    reject_pointers(path)
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(name for name in archive.namelist() if not name.endswith("/"))
            return [ArchiveMember(path, name) for name in names if not _is_macos_metadata(name)]
    except (*_BAD_ZIP, OSError) as error:
        raise DataFileError(
            f"{path}: not a readable zip file ({error}); download it again", code="damaged-zip"
        ) from None


def _is_macos_metadata(name: str) -> bool:
    """Return whether a member is metadata that macOS adds to a zip for every file."""
    return name.startswith("__MACOSX/") or name.rsplit("/", 1)[-1].startswith("._")
