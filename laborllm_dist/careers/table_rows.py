"""Read the rows of a CSV (plain or gzip) or Parquet file as text, with the line or row each one stands in.

A row that cannot be read as text is noted in `problems` and passed over, so that one look finds every problem.
"""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from laborllm_dist.careers.problems import Problems
from laborllm_dist.errors import DataFileError

Row = tuple[int, list[str]]


def is_parquet(path: Path) -> bool:
    """Return whether the file's name says Parquet."""
    return path.suffix in (".parquet", ".pq")


def unit_of(path: Path) -> str:
    """Return what places of a file are counted in."""
    return "row" if is_parquet(path) else "line"


def read_rows(path: Path, problems: Problems) -> Iterator[Row]:
    """Yield (place, values) with the header first, at place 1 of a CSV and 0 of a Parquet file.

    Raises:
        DataFileError: if the file is missing, empty, or breaks off (truncated gzip, damaged Parquet).
    """
    if not path.exists():
        raise DataFileError(f"no file at {path}")
    if not path.is_file():
        raise DataFileError(f"{path} is a folder, not a file")
    if path.stat().st_size == 0:
        raise DataFileError(f"{path}: the file is empty")
    yield from _parquet_rows(path) if is_parquet(path) else _csv_rows(path, problems)


def _parquet_rows(path: Path) -> Iterator[Row]:
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if odd := [each.name for each in file.schema_arrow if _is_no_text(each.type)]:
                raise DataFileError(
                    f"{path}: column {odd[0]} holds {file.schema_arrow.field(odd[0]).type}, wanted texts, numbers or "
                    "dates; save it as text, or leave the column out"
                )
            yield 0, names
            place = 0
            for batch in file.iter_batches(batch_size=10_000):
                columns = [[_as_text(value) for value in column.to_pylist()] for column in batch.columns]
                for values in zip(*columns, strict=True):
                    place += 1
                    yield place, list(values)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataFileError(f"{path}: not a readable Parquet file: {str(error).splitlines()[0]}") from None


def _is_no_text(kind: pa.DataType) -> bool:
    """Return whether values of a column cannot be written as one cell: lists, structs, true and false, bytes."""
    return bool(pa.types.is_nested(kind) or pa.types.is_boolean(kind) or pa.types.is_binary(kind))


def _as_text(value: object) -> str:
    """Return a Parquet value as a CSV would have it; pandas writes absent numbers as NaN and codes as floats."""
    if value is None or value != value:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _csv_rows(path: Path, problems: Problems) -> Iterator[Row]:
    opener = gzip.open if path.suffix == ".gz" else open
    place = 0
    try:
        with opener(path, "rb") as file:
            for place, values in csv_rows(file, problems):
                yield place, values
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataFileError(f"{path}: the gzip data breaks off or is damaged after line {place} ({error})") from None
    except OSError as error:
        raise DataFileError(f"{path}: cannot be read ({error.strerror or error})") from None


def csv_rows(file: Iterable[bytes], problems: Problems) -> Iterator[Row]:
    """Yield (line, values) of an open CSV, the header first; blank lines are passed over."""
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


def text_lines(file: Iterable[bytes], problems: Problems) -> Iterator[str]:
    """Yield the lines of a file as text; one that is not UTF-8, or holds a NUL byte, is noted and given as blank."""
    for line, raw in enumerate(file, start=1):
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
