"""Settings of launch/forecast.py (conf/forecast.yaml)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from laborllm_dist.config.data import PromptSettings
from laborllm_dist.config.number_ranges import Mass, People, Rows, Seed, Threads, Tokens, within
from laborllm_dist.config.reader import OutOfRangeError, Strict
from laborllm_dist.config.run import OtherModelSettings


@dataclass(frozen=True, slots=True)
class ForecastSettings(Strict):
    """Settings of launch/forecast.py; None: as in the run."""

    run: str
    """Folder of the run."""
    horizon: Annotated[int, within(2, 100, "years; a year ahead has one step only")]
    """Years from the start to the target, at least 2."""
    steps: Literal["exact", "sampled"]
    """Sum over the titles of the years between (`exact`), or average over sampled paths (`sampled`)."""
    tolerance: Mass
    """With steps=exact: probability of paths that need not be followed; 0: follow all."""
    max_paths: Annotated[int, within(1, 10_000_000)]
    """Most paths of one forecast; more are refused."""
    paths: Annotated[int, within(2, 1_000_000, "one has no standard error")]
    """With steps=sampled: number of sampled paths."""
    seed: Seed
    """Seed of the sampled paths, and of the choice of people."""
    max_people: People | None
    """People to forecast for, drawn by a hash; null: all."""
    model: OtherModelSettings
    prompt: PromptSettings
    split: Literal["train", "validation", "test"] | None
    """Which people to forecast for."""
    max_seq_length: Tokens | None
    """Most tokens per row."""
    batch_size: Rows | None
    """Rows per forward pass."""
    precision: Literal["bf16", "fp32", "fp64"] | None
    """Precision of the forward pass; softmax is fp32 or better, sums are fp64."""
    title_tolerance: Mass | None
    """Probability after one prompt that need not be scored individually; the `tolerance` of an evaluation."""
    max_tree_tokens: Tokens | None
    """Title tokens per forward pass; the tree of one prompt is never divided."""
    base: Literal["full", "int8", "nf4"] | None
    """Quantization of the weights: none (`full`), or 8 or 4 bits by bitsandbytes."""
    placement: Literal["replicated", "sharded"] | None
    """The whole model on every rank, or ZeRO-3 partitions of one that does not fit."""
    threads_per_rank: Threads | None
    """CPU threads of a rank."""

    def __post_init__(self) -> None:
        if self.tolerance and self.steps == "sampled":
            raise OutOfRangeError("tolerance", f"0 with steps=sampled, which leaves no path out, got {self.tolerance}")
