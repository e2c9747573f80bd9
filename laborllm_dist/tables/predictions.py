"""Table of predicted next occupations of a user's own people: one row per person and rank, most probable title first.

The file's metadata names the measure of `probability`: `terminated` (a title and the line break) or `normalised`
(that, divided by `mass + bound`). A title without a row has at most the probability `bound`. The rest of 1 is the
probability of texts that are not a title.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from laborllm_dist.errors import ForeignFileError
from laborllm_dist.io.files import reject_link
from laborllm_dist.tables.parquet import DAMAGE, ScoreTableInfo, info_of, read_scored, schema_of, write_scored

PREDICTION_SCHEMA = pa.schema(
    [
        pa.field("person", pa.string(), nullable=False),  # id of the person in the file
        pa.field("survey", pa.string(), nullable=False),  # dataset tag
        pa.field("year", pa.int32(), nullable=False),  # calendar year of the prediction
        pa.field("rank", pa.int32(), nullable=False),  # rank of the title, from 1
        pa.field("occupation", pa.string(), nullable=False),  # code of the predicted occupation
        pa.field("title", pa.string(), nullable=False),  # title of the predicted occupation
        pa.field("probability", pa.float64(), nullable=False),  # its probability
        pa.field("log_likelihood", pa.float64(), nullable=False),  # log of the probability, in nats
        pa.field("mass", pa.float64(), nullable=False),  # total probability of the titles that are scored
        pa.field("bound", pa.float64(), nullable=False),  # probability of the titles that are not scored; 0: none
    ]
)
OWN_CAREERS = "own careers"  # stands for the split in the metadata


def check_output(path: Path) -> None:
    """Check that an existing output file has predictions, so that it may be overwritten.

    Raises:
        ForeignFileError: if it is another file or a symbolic link.
    """
    reject_link(path)
    if not path.exists():
        return
    try:
        info = info_of(schema_of(path).metadata or {})
        is_ours = info.split == OWN_CAREERS and "measure" in info.details
    except DAMAGE:
        is_ours = False
    if not is_ours:
        raise ForeignFileError(
            f"{path} is there and holds no predictions, so it is not replaced; name another file (output=)",
            code="not-a-predictions-file",
        )


def write_prediction_table(table: pa.Table, info: ScoreTableInfo, path: Path) -> None:
    """Write rows of PREDICTION_SCHEMA atomically, in their present order.

    Raises:
        ForeignFileError: if another kind of file exists at this path.
    """
    check_output(path)
    write_scored(table, info, path)


def read_prediction_table(path: Path) -> tuple[pa.Table, ScoreTableInfo]:
    """Return predictions and their metadata.

    Raises:
        ScoreTableError: if the file is missing, damaged or not a table of predictions.
    """
    made_by = f"python launch/predict.py run=... output={path}"
    return read_scored(path, PREDICTION_SCHEMA, kind="table of predictions", made_by=made_by)
