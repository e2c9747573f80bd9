"""Read and write the Parquet files of scores of all kinds.

Rows have a fixed order and the schema of their kind; the sorted metadata identifies model and data and has no time or
host name, so equal scores give equal bytes. The metadata has a checksum of the rows and of all other metadata. Files
are written atomically; a reader raises an error for a damaged file or one of another kind.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from laborllm_dist.errors import ForeignFileError, ScoreTableError
from laborllm_dist.io.files import atomic_write
from laborllm_dist.io.json_files import json_object, read_json_value

KEY = ("survey", "person", "position")
ROWS_WITH_LISTS = 4096  # rows per row group, where each row has hundreds of numbers
ROWS_HASHED = 4096  # rows per block of the checksum
_INFO, _OCCUPATIONS, _CHECKSUM = b"laborllm_dist", b"occupations", b"sha256"
# Errors that reading a damaged file may raise.
DAMAGE = (pa.ArrowException, OSError, KeyError, ValueError, TypeError, AttributeError, MemoryError, OverflowError)


@dataclass(frozen=True, slots=True)
class ScoreTableInfo:
    """Metadata of a file of scores: the model and data that they are from."""

    model: str  # name of the model
    split: str  # train, validation or test
    careers: str  # fingerprint of people, jobs and splits; tables are comparable if it is equal
    code: str  # version of this software
    details: Mapping[str, str]  # everything else that determines the scores


@dataclass(frozen=True, slots=True)
class DistributionTable:
    """Rows with lists of one value per occupation; `occupations` are the codes in the order of the lists."""

    table: pa.Table
    info: ScoreTableInfo
    occupations: tuple[str, ...]


@contextmanager
def open_parquet(path: Path, **options: Any) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file. pyarrow is given the open file, since it takes only paths that are UTF-8."""
    with path.open("rb") as file, pq.ParquetFile(file, **options) as parquet:
        yield parquet


def write_parquet(table: pa.Table, path: Path, **options: Any) -> None:
    """Write a Parquet file at any path."""
    with path.open("wb") as file:
        pq.write_table(table, file, compression="zstd", **options)


def read_parquet(path: Path) -> pa.Table:
    """Return all rows of a Parquet file."""
    with open_parquet(path) as file:
        return file.read()


def schema_of(path: Path) -> pa.Schema:
    """Return the schema of a Parquet file, with its metadata, from its end alone."""
    with open_parquet(path) as file:
        return file.schema_arrow


def write_scored(table: pa.Table, info: ScoreTableInfo, path: Path, *, row_group_size: int | None = None) -> None:
    """Write rows atomically, in their present order."""
    table = with_checksum(table.replace_schema_metadata(metadata_of(info)))
    with atomic_write(path) as partial:
        write_parquet(table, partial, row_group_size=row_group_size)


def write_lists(
    table: pa.Table, schema: pa.Schema, info: ScoreTableInfo, occupations: Sequence[str], path: Path
) -> None:
    """Sort rows of a schema by key and write them atomically, with the occupation codes in the order of the lists."""
    metadata = {**metadata_of(info), _OCCUPATIONS: json.dumps(list(occupations)).encode()}
    table = with_checksum(sorted_rows(table, schema, KEY).replace_schema_metadata(metadata))
    with atomic_write(path) as partial:
        write_parquet(table, partial, row_group_size=ROWS_WITH_LISTS)


def sorted_rows(table: pa.Table, schema: pa.Schema, order: Sequence[str]) -> pa.Table:
    """Return the columns of a schema, with rows sorted by the columns in `order`; rows in order are not copied."""
    table = table.select(schema.names).cast(schema)
    rows = key_order(table, order)
    if not np.array_equal(rows, np.arange(len(rows))):
        table = table.take(pa.array(rows))
    return table.combine_chunks()


def key_order(table: pa.Table, order: Sequence[str] = KEY) -> npt.NDArray[np.int64]:
    """Return the numbers of the rows in the order of these columns."""
    return np.asarray(pc.sort_indices(table, sort_keys=[(name, "ascending") for name in order]), dtype=np.int64)


def read_scored(path: Path, schema: pa.Schema, *, kind: str, made_by: str) -> tuple[pa.Table, ScoreTableInfo]:
    """Return the rows and metadata of a file.

    Args:
        path: Parquet file to read.
        schema: expected schema.
        kind: name of the kind of file in error messages, such as "score table".
        made_by: command that writes such a file, for error messages.

    Raises:
        ScoreTableError: if the file is missing, damaged or of another kind.
    """
    table, info, _ = _read(path, schema, kind, made_by)
    return table, info


def read_lists(path: Path, schema: pa.Schema, *, kind: str, made_by: str) -> DistributionTable:
    """Return rows with lists and their metadata, like `read_scored`.

    Raises:
        ScoreTableError: if the file is missing, damaged or of another kind.
    """
    table, info, metadata = _read(path, schema, kind, made_by)
    try:
        occupations = _texts_of(metadata[_OCCUPATIONS])
        _check_lists(table, len(occupations))
        return DistributionTable(table, info, occupations)
    except (KeyError, ValueError) as error:
        raise ScoreTableError(
            f"{path} is no {kind} or is damaged: {error}", code="invalid-distribution-table"
        ) from None


def _check_lists(table: pa.Table, num_occupations: int) -> None:
    """Check that every observation is there once, and every list has a value of each occupation.

    Raises:
        ValueError: if it is not so.
    """
    if table.group_by(list(KEY)).aggregate([]).num_rows != table.num_rows:
        raise ValueError("it has an observation twice")
    for field in table.schema:
        if pa.types.is_list(field.type):
            lengths = pc.unique(pc.list_value_length(table[field.name]).drop_null()).to_pylist()
            if any(length != num_occupations for length in lengths):
                raise ValueError(f"its lists {field.name} are not as long as its {num_occupations:,} occupations")


def occupations_of(path: Path) -> tuple[str, ...] | None:
    """Return the codes of a file's lists, from its metadata alone.

    None if the file is missing or damaged; reading it raises the error.
    """
    try:
        return _texts_of((schema_of(path).metadata or {})[_OCCUPATIONS])
    except DAMAGE:
        return None


def with_checksum(table: pa.Table) -> pa.Table:
    """Return a table whose metadata has the checksum of its rows and of its other metadata."""
    checksum = _checksum(table.schema, _blocks(table))
    return table.replace_schema_metadata({**(table.schema.metadata or {}), _CHECKSUM: checksum})


def check_content(table: pa.Table) -> None:
    """Compare a table with the checksum in its metadata.

    Raises:
        ValueError: if the checksum is missing or different.
    """
    _compare(table.schema, _checksum(table.schema, _blocks(table)))


def written_info(path: Path) -> ScoreTableInfo:
    """Return the metadata of a file, after checking its rows against its checksum block by block.

    Raises:
        ForeignFileError: if it is not a file of scores.
        ScoreTableError: if it has changed since it was written.
    """
    try:
        with open_parquet(path) as file:
            schema = file.schema_arrow
            info = info_of(schema.metadata or {})
    except DAMAGE:
        raise ForeignFileError(
            f"{path} is no file of scores, or is damaged; it is not replaced: move it away, or delete it",
            code="not-a-score-table",
        ) from None
    try:
        with open_parquet(path) as file:
            _compare(schema, _checksum(schema, map(_as_table, file.iter_batches(ROWS_HASHED))))
    except DAMAGE as error:
        raise ScoreTableError(
            f"{path} is damaged: {_reason(error)}; delete it and write it again", code="damaged-table"
        ) from None
    return info


def _as_table(batch: pa.RecordBatch) -> pa.Table:
    return pa.Table.from_batches([batch])


def _blocks(table: pa.Table) -> Iterable[pa.Table]:
    return (table.slice(start, ROWS_HASHED) for start in range(0, table.num_rows, ROWS_HASHED))


def _compare(schema: pa.Schema, checksum: str) -> None:
    known = (schema.metadata or {}).get(_CHECKSUM)
    if known is None:
        raise ValueError("it has no checksum, so it was written by an earlier version, or has changed")
    if known != checksum.encode():
        raise ValueError("its rows or metadata have changed since they were written (SHA-256)")


def _checksum(schema: pa.Schema, blocks: Iterable[pa.Table]) -> str:
    """Return the SHA-256 of column names, metadata and rows, independent of the file's encoding."""
    digest = hashlib.sha256()
    metadata = {name.hex(): value.hex() for name, value in (schema.metadata or {}).items() if name != _CHECKSUM}
    digest.update(json.dumps([schema.names, metadata], sort_keys=True).encode())
    for block in blocks:
        digest.update(f"rows {block.num_rows}".encode())
        for column in block.columns:
            _hash_values(digest, column.combine_chunks())
    return digest.hexdigest()


def _hash_values(digest: Any, values: Any) -> None:
    """Hash which values are null, and all other values."""
    if isinstance(values, pa.ChunkedArray):
        values = values.chunk(0) if values.num_chunks else pa.array([], values.type)
    digest.update(np.packbits(np.asarray(values.is_valid())).tobytes())
    values = values.drop_null()
    if pa.types.is_list(values.type):
        digest.update(np.asarray(pc.list_value_length(values), dtype=np.int64).tobytes())
        _hash_values(digest, values.flatten())
    elif pa.types.is_string(values.type):
        values = values.cast(pa.large_string())
        digest.update(np.asarray(pc.binary_length(values), dtype=np.int64).tobytes())
        if len(values):
            _, places, characters = values.buffers()
            offsets = np.frombuffer(places, dtype=np.int64)[values.offset : values.offset + len(values) + 1]
            digest.update(memoryview(characters)[offsets[0] : offsets[-1]] if characters is not None else b"")
    elif pa.types.is_primitive(values.type):
        digest.update(np.ascontiguousarray(values.to_numpy(zero_copy_only=False)).tobytes())
    else:
        raise TypeError(f"a column of type {values.type} has no checksum")


def _reason(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def metadata_of(info: ScoreTableInfo) -> dict[bytes, bytes]:
    """Return the metadata of a file of scores."""
    facts = {"model": info.model, "split": info.split, "careers": info.careers, "code": info.code, **info.details}
    return {_INFO: json.dumps(facts, sort_keys=True).encode()}


def info_of(metadata: Mapping[bytes, bytes]) -> ScoreTableInfo:
    """Parse the metadata of a file of scores.

    Raises:
        KeyError: if it is not such a file.
        ValueError: if the metadata is damaged.
    """
    facts = json_object(metadata[_INFO])
    if not all(isinstance(fact, str) for fact in facts.values()):
        raise ValueError("its metadata hold something else than texts")
    named = {key: facts.pop(key) for key in ("model", "split", "careers", "code")}
    return ScoreTableInfo(**named, details=facts)


def _texts_of(content: bytes) -> tuple[str, ...]:
    """Parse a JSON list of strings in metadata.

    Raises:
        ValueError: if it is not one.
    """
    values, _ = read_json_value(content.decode())
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError("its occupations are no list of texts")
    return tuple(values)


def _read(
    path: Path, schema: pa.Schema, kind: str, made_by: str
) -> tuple[pa.Table, ScoreTableInfo, Mapping[bytes, bytes]]:
    if not path.is_file():
        raise ScoreTableError(f"no {kind} at {path}; `{made_by}` makes it", code="no-table")
    try:
        table = read_parquet(path)
        metadata = table.schema.metadata or {}
        info = info_of(metadata)
        check_content(table)
        return table.select(schema.names).cast(schema), info, metadata
    except DAMAGE as error:
        raise ScoreTableError(
            f"{path} is no {kind} or is damaged: {_reason(error)}; delete it, and `{made_by}` writes it again",
            code="unreadable-table",
        ) from None
