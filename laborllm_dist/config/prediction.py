"""Settings of launch/predict.py. Values live in conf/; their meaning, units and checks are here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from laborllm_dist.config.number_ranges import Mass, Rows, Threads, Tokens, within
from laborllm_dist.config.reader import OutOfRangeError, Strict
from laborllm_dist.config.run import OtherModelSettings


@dataclass(frozen=True, slots=True)
class PredictSettings(Strict):
    """Settings of launch/predict.py; None: as in the run."""

    run: str
    """Folder of the run."""
    careers: str
    """JSON, CSV or Parquet file (prediction/request_files.py)."""
    top: Annotated[int, within(1, 1_000_000)]
    """Titles to print per person."""
    measure: Literal["normalised", "terminated"]
    """Probability among all titles (`normalised`), or that of a title and the line break (`terminated`)."""
    output: str | None
    """Parquet file to write; null: print the table only."""
    model: OtherModelSettings
    tolerance: Mass
    """Probability of a person's titles that need not be scored individually."""
    batch_size: Rows | None
    """Rows per forward pass."""
    max_tree_tokens: Tokens | None
    """Title tokens per forward pass; the tree of one prompt is never divided."""
    precision: Literal["bf16", "fp32", "fp64"] | None
    """Precision of the forward pass; softmax is fp32 or better, sums are fp64."""
    base: Literal["full", "int8", "nf4"] | None
    """Quantization of the weights: none (`full`), or 8 or 4 bits by bitsandbytes."""
    threads_per_rank: Threads | None
    """CPU threads."""

    def __post_init__(self) -> None:
        if self.output is not None and not self.output.endswith(".parquet"):
            raise OutOfRangeError("output", f"a file name that ends in .parquet, got {self.output!r}")
