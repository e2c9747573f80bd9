"""Table of a model's hidden states, one vector per person-year: embeddings/SPLIT_layer_NUMBER.parquet.

The vector is the hidden state at the last token of the prompt, the token before the title: what the model knows of a
person, with the year and the education, before it reads the year's occupation. Rows have the keys and the order of the
score table.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from laborllm_dist.tables.parquet import (
    KEY,
    ROWS_WITH_LISTS,
    ScoreTableInfo,
    read_scored,
    sorted_rows,
    write_scored,
)

EMBEDDING_SCHEMA = pa.schema(
    [
        pa.field("survey", pa.string(), nullable=False),  # dataset tag of the corpus
        pa.field("person", pa.string(), nullable=False),  # id of the person in the corpus
        pa.field("position", pa.int32(), nullable=False),  # index of the job in the person's career, from 0
        pa.field("year", pa.int32(), nullable=False),  # calendar year
        pa.field("vector", pa.list_(pa.float32()), nullable=False),  # hidden state, as long as the model is wide
    ]
)


def embedding_table_path(score_table: Path, split: str, layer: int) -> Path:
    """Return the path of the vectors of a score table's observations, in the folder embeddings/ beside scores/."""
    name = score_table.name.replace(split, f"{split}_layer_{layer}", 1)
    return score_table.parent.with_name("embeddings") / name


def write_embedding_table(table: pa.Table, info: ScoreTableInfo, path: Path) -> None:
    """Sort by key and write atomically."""
    write_scored(sorted_rows(table, EMBEDDING_SCHEMA, KEY), info, path, row_group_size=ROWS_WITH_LISTS)


def read_embedding_table(path: Path) -> tuple[pa.Table, ScoreTableInfo]:
    """Return the vectors and their metadata.

    Raises:
        ScoreTableError: if the file is missing, damaged or not a table of embeddings.
    """
    return read_scored(path, EMBEDDING_SCHEMA, kind="table of embeddings", made_by="launch/embed.py run=...")
