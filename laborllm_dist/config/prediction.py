"""Settings of launch/predict.py. As in `settings`: values live in conf/, here are their meaning, units and checks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from laborllm_dist.config.number_ranges import Mass, Rows, Threads, Tokens, within
from laborllm_dist.config.reader import OutOfRangeError
from laborllm_dist.config.run import OtherModelSettings


@dataclass(frozen=True, slots=True)
class PredictSettings:
    """Settings of launch/predict.py; None: as in the run."""

    run: str  # folder of the run
    careers: str  # JSON, CSV or Parquet file (prediction/request_files.py)
    top: Annotated[int, within(1, 1_000_000)]  # titles to print per person
    # probability among all titles (`normalised`), or that of a title and the line break (`terminated`)
    measure: Literal["normalised", "terminated"]
    output: str | None  # Parquet file to write; None: print the table only
    model: OtherModelSettings
    tolerance: Mass  # probability of a person's titles that need not be scored individually
    batch_size: Rows | None  # rows per forward pass
    max_tree_tokens: Tokens | None  # title tokens per forward pass; the tree of one prompt is never divided
    # precision of the forward pass; softmax is fp32 or better, sums are fp64
    precision: Literal["bf16", "fp32", "fp64"] | None
    # quantization of the weights: none (`full`), or 8 or 4 bits by bitsandbytes
    base: Literal["full", "int8", "nf4"] | None
    threads_per_rank: Threads | None  # CPU threads

    def __post_init__(self) -> None:
        if self.output is not None and not self.output.endswith(".parquet"):
            raise OutOfRangeError("output", f"a file name that ends in .parquet, found {self.output!r}")
