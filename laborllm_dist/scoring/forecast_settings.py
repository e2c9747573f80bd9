"""Settings of launch/forecast.py (conf/forecast.yaml)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from laborllm_dist.data_settings import PromptSettings
from laborllm_dist.settings import OtherModelSettings
from laborllm_dist.settings_reader import OutOfRange, check_positive


@dataclass(frozen=True, slots=True)
class ForecastSettings:
    """Settings of launch/forecast.py; what is None is taken from the run.

    `horizon`: years from start to target. `steps`: the yearly steps are summed over all titles of the years between,
    but for a mass of at most `tolerance` of paths, or over `paths` drawn ones. `max_people`: drawn by a hash of `seed`.
    `title_tolerance`: the mass of titles not told apart after one prompt, as `tolerance` of an evaluation.
    """

    run: str
    horizon: int
    steps: Literal["exact", "sampled"]
    tolerance: float
    max_paths: int  # of one forecast
    paths: int
    seed: int
    max_people: int | None
    model: OtherModelSettings
    prompt: PromptSettings
    split: Literal["train", "validation", "test"] | None
    row_length: int | None
    rows_per_unit: int | None
    precision: Literal["bf16", "fp32", "fp64"] | None
    title_tolerance: float | None
    nodes_per_pass: int | None
    base: Literal["full", "int8", "nf4"] | None
    placement: Literal["replicated", "sharded"] | None
    threads_per_rank: int | None

    def __post_init__(self) -> None:
        check_positive(self, "max_paths", "max_people", "row_length", "rows_per_unit", "nodes_per_pass")
        check_positive(self, "threads_per_rank")
        if self.horizon < 2:
            raise OutOfRange("horizon", f"2 years or more, since a year ahead has one step only, found {self.horizon}")
        if self.paths < 2:
            raise OutOfRange("paths", f"2 or more, since one has no standard error, found {self.paths}")
        if not 0 <= self.tolerance < 1:
            raise OutOfRange("tolerance", f"a probability from 0 to below 1, found {self.tolerance}")
        if self.tolerance and self.steps == "sampled":
            raise OutOfRange("tolerance", f"0 with steps=sampled, which leaves no path out, found {self.tolerance}")
