"""The distribution over all titles of every observation, beside the score table: scores/SPLIT_titles.parquet.

Rows have the keys and the order of the score table. `terminated` log-likelihoods are of disjoint events, so their
probabilities sum to `mass`, the mass of valid titles; the rest is of texts that are no title. In bounded mode `bound`
is the mass that was not told apart: titles in it are null, and their probabilities sum to at most `bound`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from laborllm_dist.errors import ScoreTableError
from laborllm_dist.files import writing
from laborllm_dist.score_table import KEY, ScoreTableInfo, info_of, metadata_of

TITLE_SCHEMA = pa.schema(
    [
        pa.field("survey", pa.string(), nullable=False),
        pa.field("person", pa.string(), nullable=False),
        pa.field("position", pa.int32(), nullable=False),
        pa.field("occupation", pa.string(), nullable=False),  # the observed one
        pa.field("mass", pa.float64(), nullable=False),  # probability of all titles that were told apart
        pa.field("bound", pa.float64(), nullable=False),  # probability that was not told apart; 0: none
        pa.field("normalised", pa.float64(), nullable=False),  # terminated of the observed title - log(mass + bound)
        pa.field("title", pa.list_(pa.float64()), nullable=False),  # nats, in the order of the file's occupations
        pa.field("terminated", pa.list_(pa.float64()), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True)
class TitleTable:
    """Distributions as they were read; `occupations` are the codes that the lists are in the order of."""

    table: pa.Table
    info: ScoreTableInfo
    occupations: tuple[str, ...]


def title_table_path(score_table: Path, split: str) -> Path:
    """Return where the distributions of a score table lie: test_titles.parquet, test_titles.MODEL.parquet."""
    return score_table.with_name(score_table.name.replace(split, f"{split}_titles", 1))


def write_title_table(table: pa.Table, info: ScoreTableInfo, occupations: Sequence[str], path: Path) -> None:
    """Sort by key and write atomically.

    Args:
        table: columns of TITLE_SCHEMA, any row order.
        info: where the scores come from, kept in the file's metadata.
        occupations: codes, in the order of the lists.
        path: the Parquet file.
    """
    table = table.select(TITLE_SCHEMA.names).cast(TITLE_SCHEMA)
    table = table.sort_by([(name, "ascending") for name in KEY]).combine_chunks()
    metadata = {**metadata_of(info), b"occupations": json.dumps(list(occupations)).encode()}
    with writing(path) as partial:
        pq.write_table(table.replace_schema_metadata(metadata), partial, compression="zstd", row_group_size=4096)


def read_title_table(path: Path) -> TitleTable:
    """Return the distributions and where they come from.

    Raises:
        ScoreTableError: if the file is missing, damaged or not a table of titles.
    """
    if not path.is_file():
        raise ScoreTableError(f"no table of titles at {path}; `launch/evaluate.py run=... titles=all` makes it")
    try:
        table = pq.read_table(path)
        metadata = table.schema.metadata or {}
        occupations = tuple(json.loads(metadata[b"occupations"]))
        return TitleTable(table.select(TITLE_SCHEMA.names).cast(TITLE_SCHEMA), info_of(metadata), occupations)
    except (pa.ArrowInvalid, OSError, KeyError, ValueError) as error:
        raise ScoreTableError(f"{path} is not a table of titles or is damaged: {str(error).splitlines()[0]}") from None
