"""Print progress, errors and results so that a failed write to the output never stops the work.

Progress, warnings and errors are records of the standard library's loggers, which `configure_logging` prints.

The reader of a pipe may have exited (`train.py | head`), the disk of a redirection may be full, the terminal closed, or
its encoding may lack a character. Progress and errors are then dropped, or printed with the nearest characters of the
encoding, and the work continues: metrics.jsonl and the tables record it. If the output is the result itself (plan,
predict, report, --help), a closed pipe ends the command quietly, as in other programs.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import logging
import os
import select
import sys
import unicodedata
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TextIO

from laborllm_dist.errors import DiskError, DiskFullError, OutputClosedError
from laborllm_dist.plain_text import ESCAPES

if TYPE_CHECKING:
    from rich.console import Console

# The reader of a pipe has exited, a terminal has hung up, or a socket is closed: no more output can be read.
GONE = (
    errno.EPIPE, errno.EIO, errno.EBADF, errno.ENXIO, errno.ECONNRESET, errno.ENOTCONN, errno.ESHUTDOWN,
)  # fmt: skip
FULL = (errno.ENOSPC, errno.EDQUOT)
LOGGER = "laborllm_dist"  # parent of all loggers of the package
EVERY_RANK = {"every_rank": True}  # `extra` of progress that every rank prints
LONGEST_WAIT_SECONDS = 5.0  # for a non-blocking terminal
NEAREST = "laborllm_dist.nearest"  # name of the codecs error handler
IN_ASCII = {
    "\N{EN DASH}": "-", "\N{EM DASH}": "-", "\N{MINUS SIGN}": "-", "\N{HORIZONTAL ELLIPSIS}": ".",
    "\N{RIGHTWARDS ARROW}": ">", "\N{BOX DRAWINGS LIGHT HORIZONTAL}": "-", "\N{LEFT SINGLE QUOTATION MARK}": "'",
    "\N{RIGHT SINGLE QUOTATION MARK}": "'", "\N{LEFT DOUBLE QUOTATION MARK}": '"',
    "\N{RIGHT DOUBLE QUOTATION MARK}": '"', **dict.fromkeys("▌▋▊▉█", "#"), **dict.fromkeys("▏▎▍", "|"),
}  # fmt: skip
# A terminal would obey escape sequences and other control characters inside names.
CONTROLS = {code: escape for code, escape in ESCAPES.items() if chr(code) not in "\n\t" and not 0xD800 <= code < 0xE000}


def configure_logging() -> None:
    """Print the package's log records: progress on standard output, warnings and errors on standard error.

    Only commands call this; a program that imports the package gets the records without handlers. With several ranks,
    rank 0 prints progress, except for records with `extra=EVERY_RANK`; every rank prints its own warnings and errors.
    torch's warnings from C++, such as 20 lines about the socket of a rank that has ended, are not printed, unless the
    user sets TORCH_CPP_LOG_LEVEL; an error of this package follows them. torch reads the variable when it is imported.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    logger = logging.getLogger(LOGGER)
    if not any(isinstance(handler, _StreamHandler) for handler in logger.handlers):
        progress, rest = _StreamHandler("stdout"), _StreamHandler("stderr")
        progress.addFilter(_is_shown_progress)
        rest.setLevel(logging.WARNING)
        logger.addHandler(progress)
        logger.addHandler(rest)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # libraries may have given the root logger a handler


def is_other_rank(environment: Mapping[str, str]) -> bool:
    """Return whether a launcher has started this process as a rank other than 0."""
    rank = environment.get("RANK", environment.get("SLURM_PROCID", "0"))  # of srun, before the rendezvous
    size = environment.get("WORLD_SIZE", environment.get("SLURM_STEP_NUM_TASKS", "1"))
    return all(text.isascii() and text.isdecimal() for text in (rank, size)) and 0 < int(rank) < int(size)


def _is_shown_progress(record: logging.LogRecord) -> bool:
    return record.levelno < logging.WARNING and (hasattr(record, "every_rank") or not is_other_rank(os.environ))


class _StreamHandler(logging.Handler):
    """Prints records as lines, unbuffered, on the current standard stream; ignores write errors.

    Each stream has a handler and lock of its own: an error is printed even while a full pipe blocks progress.
    """

    def __init__(self, stream: str) -> None:
        super().__init__()
        self._stream = stream

    def emit(self, record: logging.LogRecord) -> None:
        _write(getattr(sys, self._stream), self.format(record).translate(CONTROLS) + "\n")


def say_at_once(line: str) -> None:
    """Print one line on standard error from a signal handler, which may have interrupted another print."""
    with contextlib.suppress(OSError):
        os.write(2, line.encode("ascii", "replace") + b"\n")


def show(text: str) -> None:
    """Print a result.

    Raises:
        OutputClosedError: if the reader of the pipe has exited.
        DiskFullError: if the output is a file on a full disk.
        DiskError: if another system error prevents the write.
    """
    error = _write(sys.stdout, text)
    number = getattr(error, "errno", None)
    if number == errno.EPIPE:
        raise OutputClosedError("the reader of the output is gone")
    if number in FULL:
        raise DiskFullError(
            "no room left on the disk that the output goes to; make room and start the same command again",
            code="output-disk-full",
        )
    if number is not None:
        raise DiskError(f"the output cannot be written: {os.strerror(number)}", code="output-not-writable")


@contextlib.contextmanager
def results() -> Iterator[Console]:
    """Yield a console to print results to; they are printed if the block succeeds.

    Raises:
        LaborError: as in `show`.
    """
    from rich.console import Console  # imported late: training ranks print log lines only
    from rich.text import Text

    class PlainConsole(Console):
        """A console without markup, which prints control characters as escapes."""

        def render_str(self, text: str, **style: Any) -> Text:
            return super().render_str(text.translate(CONTROLS), **style)

    buffer = _Buffer(sys.stdout)
    yield PlainConsole(markup=False, emoji=False, highlight=False, file=buffer)
    show(buffer.getvalue())


def guard_output() -> None:
    """Replace the standard streams by streams that ignore write errors, also for prints of libraries.

    A closed descriptor would be reused by the next file that is opened, and prints would be written into that file;
    closed descriptors are therefore connected with the null device.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            _lead_nowhere(descriptor)
    if sys.stdout is None or sys.stdout is sys.__stdout__:
        sys.stdout = _guarded(sys.stdout, 1)
    if sys.stderr is None or sys.stderr is sys.__stderr__:
        sys.stderr = _guarded(sys.stderr, 2)


class _Buffer(io.StringIO):
    """A buffer with the encoding and terminal state of the stream that the text is printed to later."""

    def __init__(self, stream: TextIO | None) -> None:
        super().__init__()
        self._stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Encoding of the stream."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        """Return whether the stream is a terminal."""
        return self._stream is not None and not self._stream.closed and self._stream.isatty()


class _Unfailing(io.FileIO):
    """An output file that drops what it cannot write; `failure` is the last error."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "wb", closefd=False)
        self.failure: OSError | None = None

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        try:
            written = super().write(data)
            if written is None:  # a non-blocking descriptor is full
                select.select([], [self.fileno()], [], LONGEST_WAIT_SECONDS)
                written = super().write(data)
        except OSError as error:
            self.failure = error
            if error.errno in GONE:
                _lead_nowhere(self.fileno())
            return size
        if written is None:
            self.failure = BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            return size
        return int(written)


def _guarded(stream: TextIO | None, descriptor: int) -> TextIO:
    codecs.register_error(NEAREST, _nearest)
    encoding, has_lines, is_direct = "utf-8", False, False
    if isinstance(stream, io.TextIOWrapper):
        with contextlib.suppress(OSError):
            stream.flush()
        with contextlib.suppress(OSError):
            stream.reconfigure(errors=NEAREST)  # library code may hold a reference to this stream
        encoding, has_lines, is_direct = stream.encoding, stream.line_buffering, stream.write_through
    return io.TextIOWrapper(
        io.BufferedWriter(_Unfailing(descriptor)),
        encoding=encoding,
        errors=NEAREST,
        line_buffering=has_lines or descriptor == 2,
        write_through=is_direct,
    )


def _lead_nowhere(descriptor: int) -> None:
    """Connect a descriptor with the null device."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere != descriptor:
        os.dup2(nowhere, descriptor)
        os.close(nowhere)


def _write(stream: TextIO | None, text: str) -> OSError | None:
    """Write and flush a text; return the error that prevented it, if any."""
    if stream is None:
        return None
    file = getattr(getattr(stream, "buffer", None), "raw", None)
    if isinstance(file, _Unfailing) and file.failure is not None and file.failure.errno not in GONE:
        file.failure = None
    try:
        try:
            stream.write(text)
        except UnicodeEncodeError as error:
            codecs.register_error(NEAREST, _nearest)
            stream.write(text.encode(error.encoding, NEAREST).decode(error.encoding))
        stream.flush()
    except OSError as error:
        return error
    except ValueError:  # the stream is closed
        return None
    return file.failure if isinstance(file, _Unfailing) else None


def _nearest(error: UnicodeError) -> tuple[str, int]:
    """Replace each character that an encoding lacks by one ASCII character, so that columns stay aligned."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_in_ascii, error.object[error.start : error.end])), error.end


def _in_ascii(character: str) -> str:
    nearest = IN_ASCII.get(character) or unicodedata.normalize("NFKD", character)[0]
    return nearest if nearest.isascii() else "?"
