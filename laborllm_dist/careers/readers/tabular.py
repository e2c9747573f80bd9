"""Read the rows of a CSV (plain or gzip) or Parquet file as text, with the line or row each one stands in.

A row that cannot be read as text is noted in `problems` and passed over, so that one look finds every problem.
"""

from __future__ import annotations

import csv
import gzip
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from laborllm_dist.careers.readers.cells import DATE_PARTS, date_text, float_text, with_plain_blanks
from laborllm_dist.careers.readers.file_formats import refuse_other_formats
from laborllm_dist.careers.validation_report import Problems
from laborllm_dist.errors import DataFileError

Row = tuple[int, list[str]]
_LONGEST_LINE = 8 << 20  # bytes; a longer one is no row of a table, and might be endless
_MOST_BLANK_LINES = 1_000_000  # one after the other


class ByteLines(Protocol):
    """An open file of bytes, plain or decompressed as it is read."""

    def readline(self, size: int = -1, /) -> bytes:
        """Return the next line, or its first `size` bytes; nothing at the end of the file."""
        ...


def is_parquet(path: Path) -> bool:
    """Return whether the file's name says Parquet."""
    return path.suffix.lower() in (".parquet", ".pq")


def unit_of(path: Path) -> str:
    """Return what places of a file are counted in."""
    return "row" if is_parquet(path) else "line"


def column_names(header: Sequence[str]) -> list[str]:
    """Return the names of a header, without outer blanks."""
    return list(map(with_plain_blanks, header))


def note_doubled(names: Sequence[str], place: int, problems: Problems) -> None:
    """Note every column that stands twice."""
    for name, times in sorted(Counter(names).items()):
        if times > 1:
            problems.add(place, name, "this column stands twice")


def missing_column(use: str, names: Sequence[str], *, is_optional: bool) -> str:
    """Return in words that a column is not there, and what to do about it.

    Args:
        use: what the column is for, as in the settings.
        names: the columns that are there.
        is_optional: whether a file may have none.
    """
    none = f", ...columns.{use}=null says that the file has none" if is_optional else ""
    return f"missing (wanted for {use}); the columns are {', '.join(names)}; ...columns.{use}=NAME names another{none}"


def read_rows(path: Path, problems: Problems) -> Iterator[Row]:
    """Yield (place, values) with the header first, at place 1 of a CSV and 0 of a Parquet file.

    Raises:
        DataFileError: if the file is missing, empty, of another format, or breaks off (cut gzip, damaged Parquet).
    """
    if not path.exists():
        raise DataFileError(f"no file at {path}")
    if path.is_dir():
        raise DataFileError(f"{path} is a folder, not a file")
    refuse_other_formats(path)
    if path.stat().st_size == 0:
        raise DataFileError(f"{path}: the file is empty")
    yield from _parquet_rows(path) if is_parquet(path) else _csv_rows(path, problems)


def _parquet_rows(path: Path) -> Iterator[Row]:
    place = 0
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if odd := [each.name for each in file.schema_arrow if _is_no_text(each.type)]:
                raise DataFileError(
                    f"{path}: column {odd[0]} holds {file.schema_arrow.field(odd[0]).type}, wanted texts, numbers or "
                    "dates; save it as text, or leave the column out"
                )
            yield 0, names
            for batch in file.iter_batches(batch_size=10_000):
                columns = [_texts(column, path, name) for name, column in zip(names, batch.columns, strict=True)]
                for values in zip(*columns, strict=True):
                    place += 1
                    yield place, list(values)
    except (pa.ArrowException, ValueError, OSError) as error:  # ValueError: a column's name is no UTF-8
        lines = str(error).splitlines() or [type(error).__name__]
        raise DataFileError(f"{path}: not a readable Parquet file: {lines[0]}") from None


def _is_no_text(kind: pa.DataType) -> bool:
    """Return whether values of a column cannot be written as one cell: lists, true and false, bytes, durations."""
    types = pa.types
    if types.is_dictionary(kind):
        return _is_no_text(kind.value_type)
    if types.is_struct(kind):
        return not {field.name.lower() for field in kind} <= DATE_PARTS
    is_bytes = types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind)
    is_span = types.is_duration(kind) or types.is_interval(kind)
    return bool(types.is_nested(kind) or types.is_boolean(kind) or is_bytes or is_span)


def _texts(column: pa.Array, path: Path, name: str) -> list[str]:
    """Return the values of a Parquet column as a CSV would have them.

    Raises:
        DataFileError: if one of them is no text (invalid UTF-8), or a date that no calendar here has (year 20000).
    """
    try:
        # Python's dates have no nanoseconds and end with the year 9999: what is beyond is no date of a career.
        if pa.types.is_timestamp(column.type) and column.type.unit == "ns":
            column = column.cast(pa.timestamp("us", column.type.tz), safe=False)
        return [_as_text(value) for value in column.to_pylist()]
    except (ValueError, OverflowError, KeyError, pa.ArrowException) as error:  # KeyError: of an unknown time zone
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataFileError(f"{path}: column {name} holds a value that cannot be read as text ({what})") from None


def _as_text(value: object) -> str:
    """Return a Parquet value as a CSV would have it; pandas writes absent numbers as NaN and codes as floats."""
    if value is None or value != value:
        return ""
    if isinstance(value, Mapping):
        return date_text(value) or ""
    return float_text(value) if isinstance(value, float) else str(value)


def _csv_rows(path: Path, problems: Problems) -> Iterator[Row]:
    opener = gzip.open if path.suffix.lower() == ".gz" else open
    place = 0
    try:
        with opener(path, "rb") as file:
            for number, (place, values) in enumerate(csv_rows(file, problems)):
                if number == 0:
                    _refuse_other_separators(path, values)
                yield place, values
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataFileError(f"{path}: the gzip data breaks off or is damaged after line {place} ({error})") from None
    except OSError as error:
        raise DataFileError(f"{path}: cannot be read ({error.strerror or error})") from None


def _refuse_other_separators(path: Path, header: Sequence[str]) -> None:
    """Refuse a header of one name with the separators of other programs in it.

    Raises:
        DataFileError: saying which.
    """
    for sign, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars (|)")):
        if len(header) == 1 and sign in header[0]:
            raise DataFileError(
                f"{path}: the columns are separated by {name}, wanted commas; save it as CSV with commas"
            )


def csv_rows(file: ByteLines, problems: Problems) -> Iterator[Row]:
    """Yield (line, values) of an open CSV, the header first; blank lines are passed over.

    Raises:
        DataFileError: as `text_lines`.
    """
    reader = csv.reader(text_lines(file, problems), strict=True)
    while True:
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            problems.add(reader.line_num, None, f"not CSV ({error})")
            continue
        if values:
            yield reader.line_num, values


def text_lines(file: ByteLines, problems: Problems) -> Iterator[str]:
    """Yield the lines of a file as text; one that is not UTF-8, or holds a NUL byte, is noted and given as blank.

    Raises:
        DataFileError: for a line so long that it would fill the memory, or blank lines without an end.
    """
    num_blank = 0
    for line, raw in enumerate(iter(lambda: file.readline(_LONGEST_LINE + 1), b""), start=1):
        num_blank = num_blank + 1 if raw in (b"\n", b"\r\n") else 0
        if len(raw) > _LONGEST_LINE:
            size = f"{_LONGEST_LINE >> 20} MiB"
            raise DataFileError(f"{problems.path}: line {line} is longer than {size}, so this is no table of text")
        if num_blank > _MOST_BLANK_LINES:
            raise DataFileError(
                f"{problems.path}: {num_blank:,} blank lines up to line {line}, so this is no table of text"
            )
        if line == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")  # the mark that some programs put before UTF-8
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            problems.add(
                line, None, f"byte {raw[error.start : error.start + 1]!r} is not UTF-8; save the file as UTF-8"
            )
            text = "\n"
        if "\0" in text:
            problems.add(line, None, "holds a NUL byte")
            text = "\n"
        yield text
