"""Table of the continuations that a model generates for every prompt: scores/SPLIT_generated.parquet.

A continuation is `greedy` or a `sample`, and ends at the line break. It is valid if its text is a space, a title and
the line break; `occupation` is then the title's code. Only the text matters: the model may generate a title with a
different tokenization than the one that its log-likelihood is computed from.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from laborllm_dist.io.number_format import format_decimals
from laborllm_dist.tables.parquet import KEY, ScoreTableInfo, read_scored, sorted_rows, write_scored

GENERATED_SCHEMA = pa.schema(
    [
        pa.field("survey", pa.string(), nullable=False),  # dataset tag of the corpus
        pa.field("person", pa.string(), nullable=False),  # id of the person in the corpus
        pa.field("position", pa.int32(), nullable=False),  # index of the job in the person's career, from 0
        pa.field("kind", pa.string(), nullable=False),  # greedy or sample
        pa.field("sample", pa.int32()),  # number of the sample, from 1; null: greedy
        pa.field("text", pa.string(), nullable=False),  # the generated text, with its leading space and line break
        pa.field("occupation", pa.string()),  # code of the generated title; null: the text is not a title
        pa.field("observed", pa.string(), nullable=False),  # code of the observed occupation
    ]
)
ORDER = (*KEY, "kind", "sample")


@dataclass(frozen=True, slots=True)
class Share:
    """A share of continuations and its standard error, clustered by person (NaN for one person)."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{format_decimals(100 * self.value, 1)} % (s.e. {format_decimals(100 * self.error, 1)})"


def generated_table_path(score_table: Path, split: str) -> Path:
    """Return the path of the continuations of a score table: test_generated.parquet, test_generated.MODEL.parquet."""
    return score_table.with_name(score_table.name.replace(split, f"{split}_generated", 1))


def write_generated_table(table: pa.Table, info: ScoreTableInfo, path: Path) -> None:
    """Sort and write atomically.

    Args:
        table: columns of GENERATED_SCHEMA, any row order.
        info: model and data of the continuations, stored in the file's metadata.
        path: Parquet file to write.
    """
    write_scored(sorted_rows(table, GENERATED_SCHEMA, ORDER), info, path)


def read_generated_table(path: Path) -> tuple[pa.Table, ScoreTableInfo]:
    """Return the continuations and their metadata.

    Raises:
        ScoreTableError: if the file is missing, damaged or not a table of continuations.
    """
    made_by = "launch/evaluate.py run=... check_generations=true"
    return read_scored(path, GENERATED_SCHEMA, kind="table of continuations", made_by=made_by)


def valid_share(table: pa.Table, kind: str) -> Share:
    """Return the share of the continuations of a kind that are titles."""
    table = table.filter(pc.equal(table["kind"], kind))
    return _share(table, np.asarray(pc.is_valid(table["occupation"]), dtype=float))


def observed_share(table: pa.Table) -> Share:
    """Return the share of greedy continuations that are the observed title."""
    table = table.filter(pc.equal(table["kind"], "greedy"))
    same = pc.fill_null(pc.equal(table["occupation"], table["observed"]), False)
    return _share(table, np.asarray(same, dtype=float))


def describe_generated(table: pa.Table) -> str:
    """Describe the shares in one line."""
    has_samples = pc.any(pc.equal(table["kind"], "sample")).as_py()
    sampled = f" and {valid_share(table, 'sample')} of sampled" if has_samples else ""
    return (
        f"titles are {valid_share(table, 'greedy')} of greedy{sampled} continuations; "
        f"{observed_share(table)} of greedy ones are what was observed"
    )


def _share(table: pa.Table, hits_N: npt.NDArray[np.float64]) -> Share:
    """Return a mean and its standard error, by linearization of a ratio of sums over people."""
    share = float(hits_N.mean())
    people = pc.binary_join_element_wise(table["survey"], table["person"], "\0").combine_chunks().dictionary_encode()
    num_people = len(people.dictionary)
    excess_G = np.bincount(np.asarray(people.indices), weights=hits_N - share, minlength=num_people)
    if num_people < 2:
        return Share(share, float("nan"))
    return Share(share, float(np.sqrt((excess_G**2).sum() * num_people / (num_people - 1)) / len(hits_N)))
