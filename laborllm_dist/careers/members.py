"""Open a data file that lies on its own or inside of a .zip, as sites give it."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from laborllm_dist.errors import DataFileError


@dataclass(frozen=True, slots=True)
class Member:
    """A file on its own (`name` is None), or one inside of the zip file `path`."""

    path: Path
    name: str | None = None

    @property
    def label(self) -> Path:
        """The name for messages."""
        return self.path if self.name is None else self.path / self.name

    @property
    def suffix(self) -> str:
        """The ending of the file's name in small letters, such as .csv."""
        return self.label.suffix.lower()

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """Open for reading bytes.

        Raises:
            DataFileError: if the file cannot be read, or the zip is damaged.
        """
        with ExitStack() as stack:
            try:
                file = self._open(stack)
            except (zipfile.BadZipFile, NotImplementedError, RuntimeError, KeyError) as error:
                raise DataFileError(f"{self.label}: the zip cannot be read ({error}); download it again") from None
            except OSError as error:
                again = "" if self.name is None else "; download the zip again"
                raise DataFileError(f"{self.label}: cannot be read ({error.strerror or error}){again}") from None
            try:
                yield file
            except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
                raise DataFileError(f"{self.label}: it breaks off or is damaged ({error}); download it again") from None

    def _open(self, stack: ExitStack) -> IO[bytes]:
        if self.name is None:
            return stack.enter_context(self.path.open("rb"))
        return stack.enter_context(stack.enter_context(zipfile.ZipFile(self.path)).open(self.name))

    def read_text(self) -> str:
        """Return the whole file as text, whatever its bytes above 127 mean.

        Raises:
            DataFileError: as `open`.
        """
        with self.open() as file:
            return file.read().decode("latin-1")


def members_of_zip(path: Path) -> list[Member]:
    """Return the files in a zip, in order of name.

    Raises:
        DataFileError: if it is no readable zip.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(name for name in archive.namelist() if not name.endswith("/"))
            return [Member(path, name) for name in names if not _is_of_a_mac(name)]
    except (zipfile.BadZipFile, OSError, NotImplementedError, UnicodeDecodeError) as error:
        raise DataFileError(f"{path}: not a readable zip file ({error}); download it again") from None


def _is_of_a_mac(name: str) -> bool:
    """Return whether a member is what macOS adds to a zip beside every file."""
    return name.startswith("__MACOSX/") or name.rsplit("/", 1)[-1].startswith("._")
