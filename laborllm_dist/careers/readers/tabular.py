"""Read the rows of a CSV (plain or gzip) or Parquet file as text, with their line or row numbers.

A row that cannot be read as text is added to `problems` and skipped, so that one pass finds every problem.

A few kilobytes of Parquet can hold gigabytes: the same long text in every row, or thousands of columns. So unused
columns are not read, equal texts are stored once, and the length of a text is limited as in the csv module.
"""

from __future__ import annotations

import csv
import gzip
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from laborllm_dist.careers.readers.cells import DATE_PARTS, date_text, float_text, with_plain_blanks
from laborllm_dist.careers.readers.file_formats import reject_other_formats
from laborllm_dist.careers.validation_report import Problems
from laborllm_dist.errors import DataFileError
from laborllm_dist.tables.parquet import open_parquet

Row = tuple[int, list[str]]
Selection = Callable[[Sequence[str]], Iterable[str]]  # selects columns to read from the names of all columns
_LONGEST_LINE = 8 << 20  # bytes; a longer one is not a row of a table, and may have no end
_MOST_BLANK_LINES = 1_000_000  # consecutive
_LONGEST_TEXT = csv.field_size_limit()
_LARGEST_ROW_GROUP = 1 << 30  # bytes of text in the columns to read


class ByteLines(Protocol):
    """An open file of bytes, plain or decompressed as it is read."""

    def readline(self, size: int = -1, /) -> bytes:
        """Return the next line, or its first `size` bytes; b"" at the end of the file."""
        ...


def is_parquet(path: Path) -> bool:
    """Return whether the file's extension is that of Parquet."""
    return path.suffix.lower() in (".parquet", ".pq")


def unit_of(path: Path) -> str:
    """Return the unit of places in a file: row or line."""
    return "row" if is_parquet(path) else "line"


def column_names(header: Sequence[str]) -> list[str]:
    """Return the names of a header, without surrounding whitespace."""
    return list(map(with_plain_blanks, header))


def note_doubled(names: Sequence[str], place: int, problems: Problems) -> None:
    """Add a problem for every duplicate column name."""
    for name, times in sorted(Counter(names).items()):
        if times > 1:
            problems.add(place, name, "this column appears twice")


def missing_column(use: str, names: Sequence[str], *, is_optional: bool) -> str:
    """Return a message about a missing column, with the setting to change.

    Args:
        use: name of the setting of the column.
        names: columns of the file.
        is_optional: whether a file may lack the column.
    """
    none = f", ...columns.{use}=null says that the file has none" if is_optional else ""
    return f"missing (needed for {use}); the columns are {', '.join(names)}; ...columns.{use}=NAME names another{none}"


def read_rows(
    path: Path, problems: Problems, selected: Selection | None = None, *, measured: Sequence[str] = ()
) -> Iterator[Row]:
    """Yield (place, values) with the header first, at place 1 of a CSV and 0 of a Parquet file.

    Args:
        path: file to read.
        problems: gets the rows that cannot be read.
        selected: selects the columns to read; the others of a Parquet file are "" in every row. None: all columns.
        measured: columns of measurements, whose 32-bit floats have the value that they hold: they are not ids, which
            rounding would merge.

    Raises:
        DataFileError: if the file is missing, empty, damaged, of another format, or too large for memory.
    """
    if not path.exists():
        raise DataFileError(f"no file at {path}", code="no-file")
    if path.is_dir():
        raise DataFileError(f"{path} is a folder, not a file", code="folder-instead-of-file")
    reject_other_formats(path)
    if path.stat().st_size == 0:
        raise DataFileError(f"{path}: the file is empty", code="empty-file")
    yield from _parquet_rows(path, selected, measured) if is_parquet(path) else _csv_rows(path, problems)


def _parquet_rows(path: Path, selected: Selection | None, measured: Sequence[str]) -> Iterator[Row]:
    place = 0
    try:
        with open_parquet(path) as file:
            schema, metadata = file.schema_arrow, file.metadata
        yield 0, schema.names
        names = column_names(schema.names)
        names_read = set(names if selected is None else selected(names))
        indices = [index for index, name in enumerate(names) if name in names_read]
        fields = [schema.field(index) for index in indices]
        if odd := [each for each in fields if _is_no_text(each.type)]:
            raise DataFileError(
                f"{path}: column {odd[0].name} holds {odd[0].type}, expected texts, numbers or dates; save it as text, "
                "or leave the column out",
                code="unsupported-column-type",
            )
        texts = [each.name for each in fields if _is_string(each.type)]
        _refuse_large_row_groups(path, metadata, set(texts))
        with open_parquet(path, read_dictionary=texts, metadata=metadata) as file:
            for batch in file.iter_batches(batch_size=10_000, columns=[each.name for each in fields]):
                columns = [
                    list(map(_as_text, batch.column(each.name).to_pylist()))
                    if pa.types.is_floating(each.type) and names[index] in measured
                    else _texts(batch.column(each.name), path, each.name)
                    for index, each in zip(indices, fields, strict=True)
                ]
                for row in range(batch.num_rows):
                    values = [""] * len(names)
                    for index, column in zip(indices, columns, strict=True):
                        values[index] = column[row]
                    place += 1
                    yield place, values
    except (pa.ArrowException, ValueError, OSError) as error:  # ValueError: a column name is not UTF-8
        lines = str(error).splitlines() or [type(error).__name__]
        raise DataFileError(f"{path}: not a readable Parquet file: {lines[0]}", code="damaged-parquet-file") from None


def _refuse_large_row_groups(path: Path, metadata: pq.FileMetaData, names: set[str]) -> None:
    """Check that the decompressed texts of every row group fit into memory.

    Raises:
        DataFileError: with the size of the first row group that is too large.
    """
    columns = [at for at in range(metadata.num_columns) if metadata.schema.column(at).path in names]
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        if group.total_byte_size <= _LARGEST_ROW_GROUP:
            continue  # of a damaged column's metadata pyarrow does not raise: it ends the process
        size = sum(group.column(at).total_uncompressed_size for at in columns)
        if size > _LARGEST_ROW_GROUP:
            raise DataFileError(
                f"{path}: the texts of a row group take {size / (1 << 30):,.1f} GiB, at most "
                f"{_LARGEST_ROW_GROUP >> 30} GiB is read at once; save it with smaller row groups",
                code="row-group-too-large",
            )


def _is_string(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


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


def _texts(column: pa.Array, path: Path, name: str) -> Sequence[str]:
    """Return the values of a Parquet column as the texts of a CSV.

    Raises:
        DataFileError: if a value is invalid UTF-8, a date that Python cannot represent (year 20000), longer than the
            limit, or a number that its float type has rounded.
    """
    try:
        if pa.types.is_dictionary(column.type):
            texts = _texts(column.dictionary, path, name)
            return [texts[index] if index is not None else "" for index in column.indices.to_pylist()]
        # Python's dates have no nanoseconds and end with the year 9999; later dates raise an error.
        if pa.types.is_timestamp(column.type) and column.type.unit == "ns":
            column = column.cast(pa.timestamp("us", column.type.tz), safe=False)
        if pa.types.is_float16(column.type) or pa.types.is_float32(column.type):
            return _texts_of_short_floats(column, path, name)
        texts = [_as_text(value) for value in column.to_pylist()]
    except (ValueError, OverflowError, KeyError, pa.ArrowException) as error:  # KeyError: unknown time zone
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataFileError(
            f"{path}: column {name} holds a value that cannot be read as text ({what})", code="value-not-text"
        ) from None
    if max(map(len, texts), default=0) > _LONGEST_TEXT:
        raise DataFileError(
            f"{path}: column {name} holds a text of more than {_LONGEST_TEXT:,} characters", code="text-too-long"
        )
    return texts


def _texts_of_short_floats(column: pa.Array, path: Path, name: str) -> list[str]:
    """Return 16-bit or 32-bit floats in their shortest representation: 11.1, not 11.100000381469727.

    Raises:
        DataFileError: if one is so large that its type cannot represent every whole number.
    """
    kind = column.type.to_pandas_dtype()
    numbers = [None if value is None else float(value) for value in column.to_pylist()]
    first_inexact = 2.0 ** (np.finfo(kind).nmant + 1)
    if any(first_inexact <= abs(number) < np.inf for number in numbers if number is not None):
        raise DataFileError(
            f"{path}: column {name} holds {column.type} numbers of {first_inexact:,.0f} or more, which are rounded, so "
            "that two ids may have become one; save it as whole numbers or texts",
            code="rounded-float-ids",
        )
    return ["" if number is None else float_text(float(str(kind(number)))) for number in numbers]


def _as_text(value: object) -> str:
    """Return a Parquet value as the text of a CSV; pandas writes missing numbers as NaN and codes as floats."""
    if value is None or value != value:
        return ""
    if isinstance(value, Mapping):
        return date_text(value) or ""
    if isinstance(value, Decimal):
        return str(int(value)) if value == value.to_integral_value() else format(value, "f")
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
        raise DataFileError(
            f"{path}: the gzip data breaks off or is damaged after line {place} ({error})", code="damaged-gzip"
        ) from None
    except OSError as error:
        raise DataFileError(f"{path}: cannot be read ({error.strerror or error})", code="unreadable-file") from None


def _refuse_other_separators(path: Path, header: Sequence[str]) -> None:
    """Check that columns are separated by commas: one name with other separators, or a line sep=, is an error.

    Raises:
        DataFileError: naming the separator.
    """
    if header[0].lower().startswith("sep="):
        raise DataFileError(
            f"{path}: line 1 ({','.join(header)}) tells Excel the separator and is no header; delete it, and save the "
            "file with commas",
            code="excel-separator-line",
        )
    for sign, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars (|)")):
        if len(header) == 1 and sign in header[0]:
            raise DataFileError(
                f"{path}: the columns are separated by {name}, expected commas; save it as CSV with commas",
                code="wrong-column-separator",
            )


def csv_rows(file: ByteLines, problems: Problems) -> Iterator[Row]:
    """Yield (line, values) of an open CSV, the header first; blank lines are skipped.

    Raises:
        DataFileError: as in `text_lines`.
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
    """Yield the lines of a file; a line that is not UTF-8 or has a NUL byte is added to `problems` and blank.

    Raises:
        DataFileError: if a line is too long, there are too many consecutive blank lines, or lines end in a carriage
            return alone.
    """
    num_blank = 0
    for line, raw in enumerate(iter(lambda: file.readline(_LONGEST_LINE + 1), b""), start=1):
        num_blank = num_blank + 1 if raw in (b"\n", b"\r\n") else 0
        if line == 1 and b"\n" not in raw and b"\r" in raw[:-1]:
            raise DataFileError(
                f"{problems.path}: its lines end in carriage returns alone, as old Macs wrote them; save it with line "
                "feeds (in Excel: CSV UTF-8)",
                code="carriage-return-lines",
            )
        if len(raw) > _LONGEST_LINE:
            size = f"{_LONGEST_LINE >> 20} MiB"
            raise DataFileError(
                f"{problems.path}: line {line} is longer than {size}, so this is no table of text", code="line-too-long"
            )
        if num_blank > _MOST_BLANK_LINES:
            raise DataFileError(
                f"{problems.path}: {num_blank:,} blank lines up to line {line}, so this is no table of text",
                code="too-many-blank-lines",
            )
        if line == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")  # UTF-8 byte order mark
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
