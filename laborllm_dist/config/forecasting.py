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
    """Settings of launch/forecast.py; None: as in the run."""

    run: str  # folder of the run
    # years from the start to the target, at least 2
    horizon: Annotated[int, within(2, 100, "years; a year ahead has one step only")]
    # sum over the titles of the years between (`exact`), or average over sampled paths (`sampled`)
    steps: Literal["exact", "sampled"]
    tolerance: Mass  # with steps=exact: probability of paths that need not be followed; 0: follow all
    max_paths: Annotated[int, within(1, 10_000_000)]  # most paths of one forecast; more are refused
    # with steps=sampled: number of sampled paths
    paths: Annotated[int, within(2, 1_000_000, "one has no standard error")]
    seed: Seed  # seed of the sampled paths, and of the choice of people
    max_people: People | None  # people to forecast for, drawn by a hash; None: all
    model: OtherModelSettings
    prompt: PromptSettings
    split: Literal["train", "validation", "test"] | None  # which people to forecast for
    max_seq_length: Tokens | None  # most tokens per row
    batch_size: Rows | None  # rows per forward pass
    # precision of the forward pass; softmax is fp32 or better, sums are fp64
    precision: Literal["bf16", "fp32", "fp64"] | None
    # probability after one prompt that need not be scored individually; the `tolerance` of an evaluation
    title_tolerance: Mass | None
    max_tree_tokens: Tokens | None  # title tokens per forward pass; the tree of one prompt is never divided
    # quantization of the weights: none (`full`), or 8 or 4 bits by bitsandbytes
    base: Literal["full", "int8", "nf4"] | None
    # the whole model on every rank, or ZeRO-3 partitions of one that does not fit
    placement: Literal["replicated", "sharded"] | None
    threads_per_rank: Threads | None  # CPU threads of a rank

    def __post_init__(self) -> None:
        if self.tolerance and self.steps == "sampled":
            raise OutOfRangeError(
                "tolerance", f"0 with steps=sampled, which leaves no path out, found {self.tolerance}"
            )
