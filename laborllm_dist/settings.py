"""Meaning, units and checks of every setting. Values live in conf/; derived numbers are computed, never set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from laborllm_dist.data_settings import (
    DataSettings,
    PrepareSettings,
    SplitSettings,
    StoreSettings,
    TemplateSettings,
    TokenizerSettings,
)
from laborllm_dist.settings_reader import OutOfRange, check_positive, check_share

COMPARATORS = ("marginal", "first_order", "truth")


@dataclass(frozen=True, slots=True)
class LlamaSettings:
    """Shape of a Llama made from nothing; the vocabulary's size is the tokenizer's."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_key_value_heads: int
    max_positions: int
    rope_theta: float
    tied_embeddings: bool  # input and output share one matrix
    initializer_range: float

    def __post_init__(self) -> None:
        check_positive(self, "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_key_value_heads")
        check_positive(self, "max_positions", "rope_theta", "initializer_range")
        if self.hidden_size % (2 * self.num_heads):
            raise OutOfRange("hidden_size", "a multiple of 2 x num_heads")
        if self.num_heads % self.num_key_value_heads:
            raise OutOfRange("num_heads", "a multiple of num_key_value_heads")


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """Pretrained weights by `path` (a folder or a hub id), or a `llama` made from nothing."""

    name: str
    path: str | None
    revision: str | None
    subfolder: str | None
    llama: LlamaSettings | None
    attention_dropout: float

    def __post_init__(self) -> None:
        check_share(self, "attention_dropout")
        if (self.path is None) == (self.llama is None):
            raise OutOfRange("path", "either model.path (pretrained weights) or model.llama (a new model), not both")


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """A step trains on `careers_per_step` careers, packed into rows of at most `row_length` tokens."""

    careers_per_step: int
    row_length: int
    rows_per_pass: int  # rows a rank forwards at once

    def __post_init__(self) -> None:
        check_positive(self, "careers_per_step", "row_length", "rows_per_pass")


@dataclass(frozen=True, slots=True)
class ZeroSettings:
    """What DeepSpeed shards over ranks (0 nothing, 1 optimizer, 2 gradients too, 3 weights too), in what precision."""

    stage: Literal[0, 1, 2, 3]
    precision: Literal["fp32", "bf16"]
    bucket_elements: int  # of one collective; larger is faster and takes more memory

    def __post_init__(self) -> None:
        check_positive(self, "bucket_elements")


@dataclass(frozen=True, slots=True)
class OptimizerSettings:
    """AdamW with warm-up and decay over the planned steps."""

    learning_rate: float
    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float
    warmup_share: float  # of all planned steps
    decay: Literal["linear", "cosine", "constant"]
    final_share: float  # of learning_rate, at the last step
    max_gradient_norm: float | None  # None: no clipping

    def __post_init__(self) -> None:
        check_positive(self, "learning_rate", "epsilon", "max_gradient_norm")
        check_share(self, "beta1", "beta2", "warmup_share", "final_share")
        for field in ("beta1", "beta2"):
            if getattr(self, field) == 1:
                raise OutOfRange(field, "a number below 1")
        if self.weight_decay < 0:
            raise OutOfRange("weight_decay", f"a number from 0 up, found {self.weight_decay}")


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """How long, from which seed, and what is kept."""

    seed: int
    epochs: int
    validations_per_epoch: int
    checkpoint_every_steps: int | None  # besides those at validations
    keep_checkpoints: int  # the newest; the best one is kept besides
    log_every_steps: int

    def __post_init__(self) -> None:
        check_positive(
            self, "epochs", "validations_per_epoch", "checkpoint_every_steps", "keep_checkpoints", "log_every_steps"
        )


@dataclass(frozen=True, slots=True)
class EvaluationSettings:
    """Scoring of one split. A unit is a forward of the plan; nothing in it depends on the number of ranks."""

    split: Literal["train", "validation", "test"]
    row_length: int
    rows_per_unit: int
    units_per_part: int  # units in a part file, the most work that a kill can lose a rank
    precision: Literal["bf16", "fp32", "fp64"]  # of the forward; softmax is fp32 or better, sums are fp64

    def __post_init__(self) -> None:
        check_positive(self, "row_length", "rows_per_unit", "units_per_part")


@dataclass(frozen=True, slots=True)
class RanksSettings:
    """Processes. Threads are fixed, since their number changes the last bits of a matrix product."""

    threads_per_rank: int
    timeout_minutes: float

    def __post_init__(self) -> None:
        check_positive(self, "threads_per_rank", "timeout_minutes")


@dataclass(frozen=True, slots=True)
class TrackingSettings:
    """Weights & Biases. `auto` is online with a key in the environment and offline without one."""

    wandb: Literal["off", "auto", "offline", "online"]
    project: str


@dataclass(frozen=True, slots=True)
class RunSettings:
    """Everything that decides a training run (conf/run.yaml)."""

    name: str
    runs: str
    data: DataSettings
    split: SplitSettings
    template: TemplateSettings
    tokenizer: TokenizerSettings
    store: StoreSettings
    prepare: PrepareSettings
    model: ModelSettings
    batch: BatchSettings
    zero: ZeroSettings
    optimizer: OptimizerSettings
    training: TrainingSettings
    evaluation: EvaluationSettings
    ranks: RanksSettings
    tracking: TrackingSettings

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name or self.name in (".", ".."):
            raise OutOfRange("name", f"a folder name without '/', found {self.name!r}")
        if self.model.path is not None and self.tokenizer.kind == "trained":
            raise OutOfRange("tokenizer.kind", "pretrained, since pretrained weights know their own tokenizer only")


@dataclass(frozen=True, slots=True)
class OtherModelSettings:
    """A model to score in place of the run's own: a folder or a hub id. `name` is its name in tables."""

    path: str | None
    revision: str | None
    subfolder: str | None
    name: str | None

    def __post_init__(self) -> None:
        if self.name is not None and ("/" in self.name or not self.name or self.name in COMPARATORS):
            taken = ", ".join(COMPARATORS)
            raise OutOfRange("name", f"a file name without '/', other than {taken}, found {self.name!r}")


@dataclass(frozen=True, slots=True)
class EvaluateSettings:
    """Settings of launch/evaluate.py; what is None is taken from the run."""

    run: str
    model: OtherModelSettings
    split: Literal["train", "validation", "test"] | None
    row_length: int | None
    rows_per_unit: int | None
    precision: Literal["bf16", "fp32", "fp64"] | None
    threads_per_rank: int | None

    def __post_init__(self) -> None:
        check_positive(self, "row_length", "rows_per_unit", "threads_per_rank")


@dataclass(frozen=True, slots=True)
class CompareSettings:
    """Settings of launch/comparators.py: models without weights, scored on the run's own people."""

    run: str
    comparators: tuple[Literal["marginal", "first_order", "truth"], ...]
    split: Literal["train", "validation", "test"]


@dataclass(frozen=True, slots=True)
class ReportSettings:
    """Settings of launch/report.py."""

    runs: tuple[str, ...]
    split: Literal["train", "validation", "test"]
    output: str | None  # folder; default: report/ in the first run
    measure: Literal["title", "terminated"]
    bootstrap_draws: int
    seed: int

    def __post_init__(self) -> None:
        check_positive(self, "bootstrap_draws")
        if not self.runs:
            raise OutOfRange("runs", "at least one run folder, such as runs='[runs/quickstart]'")
