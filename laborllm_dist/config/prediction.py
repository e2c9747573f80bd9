"""Settings of launch/predict.py. As in `settings`: values live in conf/, here are their meaning, units and checks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from laborllm_dist.config.number_ranges import Mass, Rows, Threads, Tokens, within
from laborllm_dist.config.reader import OutOfRangeError
from laborllm_dist.config.run import OtherModelSettings


@dataclass(frozen=True, slots=True)
class PredictSettings:
    """Settings of launch/predict.py; what is None is taken from the run.

    `careers`: a JSON or CSV file (prediction/request_files.py). `top` titles of each person are told. `measure`:
    `terminated` is the probability of a title and the line's end, `normalised` that among all titles. `output`: a
    Parquet file; None: the terminal's table alone. `tolerance`: the mass that need not be told apart.
    """

    run: str
    careers: str
    top: Annotated[int, within(1, 1_000_000)]
    measure: Literal["normalised", "terminated"]
    output: str | None
    model: OtherModelSettings
    tolerance: Mass
    batch_size: Rows | None
    max_tree_tokens: Tokens | None
    precision: Literal["bf16", "fp32", "fp64"] | None
    base: Literal["full", "int8", "nf4"] | None
    threads_per_rank: Threads | None

    def __post_init__(self) -> None:
        if self.output is not None and not self.output.endswith(".parquet"):
            raise OutOfRangeError("output", f"a file name that ends in .parquet, found {self.output!r}")
