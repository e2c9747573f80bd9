"""Settings of launch/forecast.py (conf/forecast.yaml)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from laborllm_dist.config.data import PromptSettings
from laborllm_dist.config.number_ranges import Mass, People, Rows, Seed, Threads, Tokens, within
from laborllm_dist.config.reader import OutOfRangeError
from laborllm_dist.config.run import OtherModelSettings


@dataclass(frozen=True, slots=True)
class ForecastSettings:
    """Settings of launch/forecast.py; what is None is taken from the run.

    `horizon`: years from start to target. `steps`: the yearly steps are summed over all titles of the years between,
    but for a mass of at most `tolerance` of paths, or over `paths` drawn ones. `max_people`: drawn by a hash of `seed`.
    `title_tolerance`: the mass of titles not told apart after one prompt, as `tolerance` of an evaluation.
    """

    run: str
    horizon: Annotated[int, within(2, 100, "years; a year ahead has one step only")]
    steps: Literal["exact", "sampled"]
    tolerance: Mass
    max_paths: Annotated[int, within(1, 10_000_000)]  # of one forecast
    paths: Annotated[int, within(2, 1_000_000, "one has no standard error")]
    seed: Seed
    max_people: People | None
    model: OtherModelSettings
    prompt: PromptSettings
    split: Literal["train", "validation", "test"] | None
    max_seq_length: Tokens | None
    batch_size: Rows | None
    precision: Literal["bf16", "fp32", "fp64"] | None
    title_tolerance: Mass | None
    max_tree_tokens: Tokens | None
    base: Literal["full", "int8", "nf4"] | None
    placement: Literal["replicated", "sharded"] | None
    threads_per_rank: Threads | None

    def __post_init__(self) -> None:
        if self.tolerance and self.steps == "sampled":
            raise OutOfRangeError(
                "tolerance", f"0 with steps=sampled, which leaves no path out, found {self.tolerance}"
            )
