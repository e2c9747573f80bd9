"""Parquet files of scores: what all of them have in common.

Rows in a fixed order, the schema of their kind, sorted metadata that says where they come from and nothing of clock or
host: equal scores are equal bytes. Written atomically; a reader takes a whole file of its kind, or refuses it by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from laborllm_dist.errors import ScoreTableError
from laborllm_dist.files import writing

KEY = ("survey", "person", "position")
ROWS_WITH_LISTS = 4096  # in a group of rows, where each has hundreds of numbers
_INFO, _OCCUPATIONS = b"laborllm_dist", b"occupations"


@dataclass(frozen=True, slots=True)
class ScoreTableInfo:
    """Where scores come from. `careers` stands for the people, their jobs and splits: equal ones can be compared."""

    model: str
    split: str
    careers: str
    code: str
    details: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ListTable:
    """Rows with a list over all occupations each; `occupations` are the codes that the lists are in the order of."""

    table: pa.Table
    info: ScoreTableInfo
    occupations: tuple[str, ...]


def write_scored(table: pa.Table, info: ScoreTableInfo, path: Path) -> None:
    """Write rows atomically, in the order they have."""
    with writing(path) as partial:
        pq.write_table(table.replace_schema_metadata(metadata_of(info)), partial, compression="zstd")


def write_lists(
    table: pa.Table, schema: pa.Schema, info: ScoreTableInfo, occupations: Sequence[str], path: Path
) -> None:
    """Sort rows of a schema by key and write them atomically, with the codes that their lists are in the order of."""
    metadata = {**metadata_of(info), _OCCUPATIONS: json.dumps(list(occupations)).encode()}
    table = sorted_rows(table, schema, KEY).replace_schema_metadata(metadata)
    with writing(path) as partial:
        pq.write_table(table, partial, compression="zstd", row_group_size=ROWS_WITH_LISTS)


def sorted_rows(table: pa.Table, schema: pa.Schema, order: Sequence[str]) -> pa.Table:
    """Return the columns of a schema, rows in order."""
    table = table.select(schema.names).cast(schema)
    return table.sort_by([(name, "ascending") for name in order]).combine_chunks()


def read_scored(path: Path, schema: pa.Schema, *, kind: str, made_by: str) -> tuple[pa.Table, ScoreTableInfo]:
    """Return rows of a schema and where they come from.

    Args:
        path: the Parquet file.
        schema: of its kind.
        kind: what it is, for messages, such as "score table".
        made_by: the command that makes it.

    Raises:
        ScoreTableError: if the file is missing, damaged or of another kind.
    """
    table, info, _ = _read(path, schema, kind, made_by)
    return table, info


def read_lists(path: Path, schema: pa.Schema, *, kind: str, made_by: str) -> ListTable:
    """Return rows with lists, as `read_scored` does.

    Raises:
        ScoreTableError: if the file is missing, damaged or of another kind.
    """
    table, info, metadata = _read(path, schema, kind, made_by)
    try:
        return ListTable(table, info, tuple(json.loads(metadata[_OCCUPATIONS])))
    except (KeyError, ValueError) as error:
        raise ScoreTableError(f"{path} is no {kind} or is damaged: {error}") from None


def metadata_of(info: ScoreTableInfo) -> dict[bytes, bytes]:
    """Return the metadata of a file of scores."""
    facts = {"model": info.model, "split": info.split, "careers": info.careers, "code": info.code, **info.details}
    return {_INFO: json.dumps(facts, sort_keys=True).encode()}


def info_of(metadata: Mapping[bytes, bytes]) -> ScoreTableInfo:
    """Return what the metadata of a file of scores says.

    Raises:
        KeyError: if it is no such file.
        ValueError: if it is damaged.
    """
    facts = json.loads(metadata[_INFO])
    named = {key: facts.pop(key) for key in ("model", "split", "careers", "code")}
    return ScoreTableInfo(**named, details=facts)


def _read(
    path: Path, schema: pa.Schema, kind: str, made_by: str
) -> tuple[pa.Table, ScoreTableInfo, Mapping[bytes, bytes]]:
    if not path.is_file():
        raise ScoreTableError(f"no {kind} at {path}; `{made_by}` makes it")
    try:
        table = pq.read_table(path)
        metadata = table.schema.metadata or {}
        return table.select(schema.names).cast(schema), info_of(metadata), metadata
    except (pa.ArrowInvalid, OSError, KeyError, ValueError) as error:
        raise ScoreTableError(f"{path} is no {kind} or is damaged: {str(error).splitlines()[0]}") from None
