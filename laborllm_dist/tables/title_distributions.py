"""Table of the distribution over all titles for every observation: scores/SPLIT_titles.parquet.

Rows have the keys and the order of the score table; lists have the order of the occupations in the metadata.
`terminated` log-likelihoods are of disjoint events, so their probabilities sum to `mass`, the probability of valid
titles; the rest is the probability of texts that are not a title. In bounded mode, titles that are not scored are null,
and their probabilities sum to at most `bound`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from laborllm_dist.errors import ScoreTableError
from laborllm_dist.tables.parquet import DistributionTable, ScoreTableInfo, read_lists, write_lists

TITLE_SCHEMA = pa.schema(
    [
        pa.field("survey", pa.string(), nullable=False),  # dataset tag of the corpus
        pa.field("person", pa.string(), nullable=False),  # id of the person in the corpus
        pa.field("position", pa.int32(), nullable=False),  # index of the job in the person's career, from 0
        pa.field("occupation", pa.string(), nullable=False),  # code of the observed occupation
        pa.field("mass", pa.float64(), nullable=False),  # total probability of the titles that are scored
        pa.field("bound", pa.float64(), nullable=False),  # probability of the titles that are not scored; 0: none
        pa.field("normalised", pa.float64(), nullable=False),  # terminated of the observed title - log(mass + bound)
        pa.field("title", pa.list_(pa.float64()), nullable=False),  # nats, in the order of the occupations
        pa.field("terminated", pa.list_(pa.float64()), nullable=False),  # nats, in the same order
    ]
)


def title_table_path(score_table: Path, split: str) -> Path:
    """Return the path of the distributions of a score table: test_titles.parquet, test_titles.MODEL.parquet."""
    return score_table.with_name(score_table.name.replace(split, f"{split}_titles", 1))


def write_title_table(table: pa.Table, info: ScoreTableInfo, occupations: Sequence[str], path: Path) -> None:
    """Sort by key and write atomically.

    Args:
        table: columns of TITLE_SCHEMA, any row order.
        info: model and data of the scores, stored in the file's metadata.
        occupations: codes, in the order of the lists.
        path: Parquet file to write.

    Raises:
        ScoreTableError: if a value is not a probability.
    """
    check_titles(table, str(path))
    write_lists(table, TITLE_SCHEMA, info, occupations, path)


def read_title_table(path: Path) -> DistributionTable:
    """Return the distributions with their metadata.

    Raises:
        ScoreTableError: if the file is missing, damaged or not a table of titles, or a value is not a probability.
    """
    made_by = "launch/evaluate.py run=... titles=all"
    titles = read_lists(path, TITLE_SCHEMA, kind="table of titles", made_by=made_by)
    check_titles(titles.table, str(path))
    return titles


def check_titles(table: pa.Table, where: str) -> None:
    """Check `mass`, `bound` and `normalised`; the last is not finite, and an error, if all titles are impossible.

    Raises:
        ScoreTableError: naming the first observation that is wrong.
    """
    is_log = {"normalised": True, "mass": False, "bound": False}
    for column, in_nats in is_log.items():
        # Rounding may make the probability of a certain event slightly greater than 1.
        least, most = (-math.inf, 1e-6) if in_nats else (0.0, 1.001)
        within = pc.and_(pc.greater_equal(table[column], least), pc.less_equal(table[column], most))
        wrong = table.filter(pc.invert(pc.and_(pc.is_finite(table[column]), within)))
        if wrong.num_rows:
            first = wrong.slice(0, 1).to_pylist()[0]
            expected = "a finite number of nats <= 0" if in_nats else "a probability"
            raise ScoreTableError(
                f"{where}: {column} of person {first['person']!r}, observation {first['position']} is {first[column]}; "
                f"expected {expected}; delete it, and `launch/evaluate.py run=... titles=all` writes it again",
                code="invalid-title-probability",
            )
