"""Settings of launch/predict.py. As in `settings`: values live in conf/, here are their meaning, units and checks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from laborllm_dist.settings import OtherModelSettings
from laborllm_dist.settings_reader import OutOfRange, check_positive


@dataclass(frozen=True, slots=True)
class PredictSettings:
    """Settings of launch/predict.py; what is None is taken from the run.

    `careers`: a JSON or CSV file (careers/asked_files.py). `top` titles of each person are told. `measure`:
    `terminated` is the probability of a title and the line's end, `normalised` that among all titles. `output`: a
    Parquet file; None: the terminal's table alone. `tolerance`: the mass that need not be told apart.
    """

    run: str
    careers: str
    top: int
    measure: Literal["normalised", "terminated"]
    output: str | None
    model: OtherModelSettings
    tolerance: float
    rows_per_unit: int | None
    nodes_per_pass: int | None
    precision: Literal["bf16", "fp32", "fp64"] | None
    base: Literal["full", "int8", "nf4"] | None
    threads_per_rank: int | None

    def __post_init__(self) -> None:
        check_positive(self, "top", "rows_per_unit", "nodes_per_pass", "threads_per_rank")
        if not 0 <= self.tolerance < 1:
            raise OutOfRange("tolerance", f"a probability from 0 to below 1, found {self.tolerance}")
        if self.output is not None and not self.output.endswith(".parquet"):
            raise OutOfRange("output", f"a file name that ends in .parquet, found {self.output!r}")
