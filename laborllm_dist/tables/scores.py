"""The score table: one row per observation of the test people. Every model and baseline writes one.

(survey, person, position) identifies an observation. The table has covariates as well as scores, so that a report
needs only score tables. Scores are log-likelihoods in nats, float64.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

import pyarrow as pa
import pyarrow.compute as pc

from laborllm_dist.config.evaluation import OTHER_DATA
from laborllm_dist.errors import ScoreTableError
from laborllm_dist.tables.parquet import (
    DAMAGE,
    KEY,
    ScoreTableInfo,
    info_of,
    read_scored,
    schema_of,
    sorted_rows,
    write_scored,
)

COVARIATES = ("gender", "ethnicity", "region", "education")

SCORE_SCHEMA = pa.schema(
    [
        pa.field("survey", pa.string(), nullable=False),  # dataset tag of the corpus
        pa.field("person", pa.string(), nullable=False),  # id of the person in the corpus
        pa.field("position", pa.int32(), nullable=False),  # index of the job in the person's career, from 0
        pa.field("year", pa.int32(), nullable=False),  # calendar year
        pa.field("occupation", pa.string(), nullable=False),  # code of the observed occupation
        pa.field("previous", pa.string()),  # code of the occupation before; null: the first observation of the person
        pa.field("birth_year", pa.int32()),  # year of birth
        pa.field("gender", pa.string()),  # as in the text
        pa.field("ethnicity", pa.string()),  # as in the text
        pa.field("region", pa.string()),  # as in the text
        pa.field("education", pa.string()),  # level of education in the year
        pa.field("num_tokens", pa.int32(), nullable=False),  # tokens of the title; 0 for models without tokens
        pa.field("title", pa.float64(), nullable=False),  # log P(title's tokens | prompt), the paper's number
        pa.field("terminated", pa.float64(), nullable=False),  # log P(title's tokens, then the line break | prompt)
    ]
)

Transition = Literal["first", "moving", "staying"]
TRANSITIONS: tuple[Transition, ...] = get_args(Transition)
NUM_TITLES = "num_titles"  # detail of a baseline's table: number of titles that it chooses from
# Details of a model without tokens that gives probability to something else than titles: to marks of its dictionary,
# or, as part of an average, to texts. Its `normalised` is then another number than its `title`.
MASS_OUTSIDE_TITLES = {"mass_outside_titles": "yes"}
TITLE_HEAD_DETAIL = "title_head"  # detail of the scores of an output layer over titles: which weights
TRUE_MODEL = {"true_model": "yes"}  # details of the true probabilities of a synthetic market


def other_split(data: str) -> str:
    """Return what scores of other data have in place of a split, in their metadata and file names."""
    return f"{OTHER_DATA}{data}"


def scored_data(folder: Path) -> list[str]:
    """Return what stands for the split in the score tables of other data in a run's folder of scores, sorted."""
    splits = set()
    for path in folder.glob(f"{OTHER_DATA}*.parquet"):
        if (schema := score_schema_of(path)) is not None:
            splits.add(info_of(schema.metadata or {}).split)
    return sorted(splits)


def score_schema_of(path: Path) -> pa.Schema | None:
    """Return the schema of a score table, with its metadata; None if it is a table of another kind.

    Raises:
        ScoreTableError: if the file is damaged.
    """
    try:
        schema = schema_of(path)
        if not set(SCORE_SCHEMA.names) <= set(schema.names):
            return None
        info_of(schema.metadata or {})
        return schema
    except DAMAGE as error:
        raise ScoreTableError(f"{path} is damaged ({error}); evaluate again", code="unreadable-table") from None


def transition_of(previous: str | None, occupation: str) -> Transition:
    """Return the kind of an observation: the person's first one, a change of occupation, or the same occupation."""
    if previous is None:
        return "first"
    return "staying" if previous == occupation else "moving"


def has_mass_outside_titles(info: ScoreTableInfo) -> bool:
    """Return whether the probabilities of all titles after a prompt may sum to less than 1, by a table's metadata."""
    return MASS_OUTSIDE_TITLES.items() <= dict(info.details).items()


def is_true_model(info: ScoreTableInfo) -> bool:
    """Return whether scores are the true probabilities of a synthetic market, which no model can beat."""
    return TRUE_MODEL.items() <= dict(info.details).items()


def write_score_table(table: pa.Table, info: ScoreTableInfo, path: Path) -> None:
    """Sort by key, check, and write atomically.

    Args:
        table: columns of SCORE_SCHEMA, any row order.
        info: model and data of the scores, stored in the file's metadata.
        path: Parquet file to write.

    Raises:
        ScoreTableError: if a column is missing or of another type, a key is duplicate, or a score is invalid.
    """
    try:
        table = sorted_rows(table, SCORE_SCHEMA, KEY)
    except (KeyError, pa.ArrowInvalid, ValueError) as error:
        raise ScoreTableError(
            f"scores of {info.model} do not have the columns of a score table: {error}", code="invalid-score-columns"
        ) from None
    check_scores(table, str(path))
    write_scored(table, info, path)


def read_score_table(path: Path) -> tuple[pa.Table, ScoreTableInfo]:
    """Return the rows and their metadata.

    Raises:
        ScoreTableError: if the file is missing, damaged or not a score table.
    """
    made_by = "deepspeed launch/evaluate.py run=..."
    table, info = read_scored(path, SCORE_SCHEMA, kind="score table", made_by=made_by)
    check_scores(table, str(path))
    return table, info


def check_scores(table: pa.Table, where: str) -> None:
    """Check that keys are unique and that scores are finite log-probabilities in nats.

    Raises:
        ScoreTableError: naming the first observation that is wrong.
    """
    counts = table.group_by(list(KEY)).aggregate([([], "count_all")])
    doubled = counts.filter(pc.greater(counts["count_all"], 1))
    if doubled.num_rows:
        first = doubled.slice(0, 1).to_pylist()[0]
        raise ScoreTableError(
            f"{where}: observation {first['position']} of person {first['person']!r} of {first['survey']} "
            f"appears {first['count_all']} times",
            code="duplicate-observation",
        )
    for column in ("title", "terminated"):
        # Rounding may make log P of a certain event slightly positive.
        proper = pc.and_(pc.is_finite(table[column]), pc.less_equal(table[column], 1e-6))
        wrong = table.filter(pc.invert(proper))
        if wrong.num_rows:
            first = wrong.slice(0, 1).to_pylist()[0]
            raise ScoreTableError(
                f"{where}: {column} log-likelihood of person {first['person']!r}, observation {first['position']} "
                f"is {first[column]}; expected a finite number of nats <= 0",
                code="invalid-log-likelihood",
            )
