"""Predicted next occupations of people of one's own: one row per person and rank, the most probable title first.

`probability` is of the measure that the file's metadata name: `terminated` (a title and the line's end) or `normalised`
(that, divided by `mass + bound`). `mass` is the probability of all titles that were told apart; `bound` is what was not
told apart, and no title that is missing has more. What is left of 1 is of texts that are no title.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from laborllm_dist.errors import ForeignFileError
from laborllm_dist.io.files import refuse_link
from laborllm_dist.tables.parquet import DAMAGE, ScoreTableInfo, info_of, read_scored, write_scored

PREDICTION_SCHEMA = pa.schema(
    [
        pa.field("person", pa.string(), nullable=False),
        pa.field("survey", pa.string(), nullable=False),
        pa.field("year", pa.int32(), nullable=False),  # that is predicted
        pa.field("rank", pa.int32(), nullable=False),  # from 1
        pa.field("occupation", pa.string(), nullable=False),
        pa.field("title", pa.string(), nullable=False),
        pa.field("probability", pa.float64(), nullable=False),
        pa.field("log_likelihood", pa.float64(), nullable=False),  # of the same, in nats
        pa.field("mass", pa.float64(), nullable=False),
        pa.field("bound", pa.float64(), nullable=False),
    ]
)
OWN_CAREERS = "own careers"  # the split of people who belong to none


def check_output(path: Path) -> None:
    """Refuse a file that is there and holds no predictions: it is not written over.

    Raises:
        ForeignFileError: naming it.
    """
    refuse_link(path)
    if not path.exists():
        return
    try:
        info = info_of(pq.read_schema(path).metadata or {})
        is_ours = info.split == OWN_CAREERS and "measure" in info.details
    except DAMAGE:
        is_ours = False
    if not is_ours:
        raise ForeignFileError(
            f"{path} is there and holds no predictions, so it is not replaced; name another file (output=)"
        )


def write_prediction_table(table: pa.Table, info: ScoreTableInfo, path: Path) -> None:
    """Write rows of PREDICTION_SCHEMA atomically, in the order they have.

    Raises:
        ForeignFileError: if something else lies there.
    """
    check_output(path)
    write_scored(table, info, path)


def read_prediction_table(path: Path) -> tuple[pa.Table, ScoreTableInfo]:
    """Return predictions and where they come from.

    Raises:
        ScoreTableError: if the file is missing, damaged or not a table of predictions.
    """
    made_by = f"python launch/predict.py run=... output={path}"
    return read_scored(path, PREDICTION_SCHEMA, kind="table of predictions", made_by=made_by)
