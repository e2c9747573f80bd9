"""Meaning, units and checks of every setting. Values live in conf/; derived numbers are computed, never set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from laborllm_dist.config.corpora import LongPanelCorpus
from laborllm_dist.config.data import (
    DataSettings,
    FileSplit,
    PeopleTableSettings,
    PrepareSettings,
    SplitChoice,
    StoreSettings,
    TemplateSettings,
    TokenizerSettings,
    YearSplit,
)
from laborllm_dist.config.evaluation import EvaluationSettings
from laborllm_dist.config.model import (
    NO_TITLE_HEAD,
    AdapterSettings,
    ComputeSettings,
    ModelSettings,
    OptimizerSettings,
    TitleHeadSettings,
    ZeroSettings,
    check_together,
)
from laborllm_dist.config.number_ranges import (
    MemoryGib,
    Microseconds,
    Minutes,
    Rows,
    Seed,
    Share,
    Speed,
    Steps,
    Threads,
    Tokens,
    above,
    within,
)
from laborllm_dist.config.reader import OutOfRangeError, Strict, check_file_name

FEWEST_EPOCHS = 3  # where a run's size decides: of large data, and of pretrained weights, as in the paper
# What may change between two starts of a run: how it is computed and what is kept, not what comes out. All other
# settings decide its weights, and a run's fingerprint covers them.
MAY_CHANGE = (
    "ranks", "tracking", "output_dir", "store", "prepare", "evaluation", "compute", "plan",
    "training.checkpoint_every_steps", "training.save_total_limit", "training.log_every_steps", "training.patience",
    "training.on_bad_step", "training.loss_spike_ratio", "training.loss_spike_window", "training.max_consecutive_skips",
    "zero.stage", "zero.bucket_size", "zero.overlap_comm", "zero.offload_optimizer", "zero.offload_param",
    "zero.nvme_path", "batch.micro_batch_size",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class BatchSettings(Strict):
    """Careers per optimizer step, and the rows they are packed into."""

    global_batch_size: Annotated[int, within(1, 1_000_000)]
    """Careers per optimizer step, over all ranks."""
    max_seq_length: Tokens
    """Most tokens per row."""
    micro_batch_size: Rows
    """Rows that a rank forwards at once."""


@dataclass(frozen=True, slots=True)
class TrainingSettings(Strict):
    """Length of training, validation, checkpoints, and what happens after a bad step."""

    seed: Seed
    """Seed of initial weights, order and dropout."""
    epochs: Annotated[int, within(1, 100_000)] | None
    """Passes over the training people; null: their number follows from min_steps and max_epochs."""
    validations_per_epoch: Annotated[int, within(1, 1_000)]
    """Validations per epoch; each one saves a checkpoint."""
    checkpoint_every_steps: Steps | None
    """Steps between further checkpoints; null: at validations only."""
    save_total_limit: Annotated[int, within(1, 1_000_000)]
    """Newest checkpoints that are kept, beside the best one."""
    log_every_steps: Steps
    """Steps between progress lines."""
    best_by: Literal["title", "token", "title_head"]
    """Validation loss that selects the best weights and ends patience: per `title`, as an evaluation reports, per
    `token` of the careers, or that of the `title_head` per title."""
    patience: Steps | None
    """Validations in a row without improvement that end the training; null: train all epochs."""
    on_bad_step: Literal["stop", "skip"]
    """After a non-finite loss or gradient, or a loss spike: save and end (`stop`), or continue without the step
    (`skip`)."""
    loss_spike_ratio: Annotated[float, above(1, 1e9)] | None
    """A loss above this multiple of the median of recent ones is a spike; null: never."""
    loss_spike_window: Annotated[int, within(1, 1_000_000)]
    """Number of recent steps in that median; the first steps of a run, as many, are not judged."""
    max_consecutive_skips: Steps = 10
    """Skipped steps in a row that are tolerated; after more, the training ends: the data are not the cause then."""
    min_steps: Steps | None = None
    """Where epochs is null: train for as many epochs as make these steps."""
    max_epochs: Annotated[int, within(FEWEST_EPOCHS, 100_000)] | None = None
    """Where epochs is null: the most epochs, however few people there are."""
    context_loss_weight: Share = 1.0
    """Weight in the loss of the tokens that are neither of a title nor the line break after one, which have weight 1;
    1: the mean over all tokens, 0: titles only."""
    bootstrap_seed: Seed | None = None
    """Seed that resamples the training people: each counts as often as a Poisson variable of mean 1 says; null: once.
    Runs that differ in it alone are refits, whose spread is the uncertainty from the training people."""

    def __post_init__(self) -> None:
        if self.epochs is None and (self.min_steps is None or self.max_epochs is None):
            raise OutOfRangeError("epochs", "a number above 0, or null with training.min_steps and training.max_epochs")


@dataclass(frozen=True, slots=True)
class RanksSettings(Strict):
    """Processes. The number of threads is fixed because it affects the last bits of a matrix product."""

    threads_per_rank: Threads
    """CPU threads of a rank."""
    timeout_minutes: Annotated[float, above(0, 100_000)]
    """Time limit of the rendezvous and of collectives, in minutes."""


@dataclass(frozen=True, slots=True)
class GpuSettings(Strict):
    """A kind of GPU and its host, for launch/plan.py. Links are per GPU and direction, in gigabytes per second."""

    name: str
    """Name in the plan."""
    memory_gib: MemoryGib
    """Memory, in GiB."""
    bf16_tflops: Speed
    """Dense peak in bf16, in TFLOP/s."""
    fp32_tflops: Speed
    """Peak in fp32 without tensor cores, in TFLOP/s."""
    gpus_per_host: Annotated[int, within(1, 10_000)]
    """GPUs per host."""
    link_gigabytes_per_second: Speed
    """To the GPUs of its host."""
    network_gigabytes_per_second: Speed
    """To other hosts."""
    pcie_gigabytes_per_second: Speed
    """To the memory of its host."""
    memory_gigabytes_per_second: Speed
    """Of its own memory."""
    host_memory_gib: MemoryGib
    """Its share of the host's memory, in GiB; assumed."""
    host_gigabytes_per_second: Speed
    """Between the host's memory and its processors; assumed."""
    nvme_gigabytes_per_second: Speed
    """Its share of the host's disks; assumed."""
    matmul_utilization: Annotated[float, above(0, 1)]
    """Fraction of the TFLOP/s that matrix products reach; fitted to published throughput, or assumed."""
    attention_utilization: Annotated[float, above(0, 1)]
    """Fraction of the TFLOP/s that attention reaches, counting only pairs that attend; fitted, or assumed."""
    dollars_per_hour: Annotated[float, within(0, 1e9)]
    """Price per GPU; assumed."""


@dataclass(frozen=True, slots=True)
class ClusterSettings(Strict):
    """What lies between and around the GPUs, for launch/plan.py: network, storage, scheduler, failures; assumed."""

    name: str
    """Name in the plan."""
    network_gigabytes_per_second: Speed | None
    """Of a GPU to other hosts; null: that of its kind (plan.gpu.network_gigabytes_per_second)."""
    link_microseconds: Microseconds
    """Latency of a message to a GPU of the same host."""
    network_microseconds: Microseconds
    """Latency of a message to another host."""
    storage_gigabytes_per_second: Speed
    """Of the file system with the checkpoints, for all hosts together."""
    host_storage_gigabytes_per_second: Speed
    """Most that one host reads or writes there."""
    start_minutes: Minutes
    """From the scheduler's start of the processes to the first weight: containers, imports, rendezvous."""
    gpu_hours_between_failures: Annotated[float, above(0, 1e9)] | None
    """Mean time between failures of one GPU, its host and its links; null: nothing fails."""
    repair_minutes: Minutes
    """From a failure to the start of the processes on sound hosts: detection, replacement, scheduling."""
    hours_between_preemptions: Annotated[float, above(0, 1e9)] | None
    """Mean time until the scheduler takes the GPUs away; null: never."""
    requeue_minutes: Minutes
    """Mean wait in the queue after a preemption."""
    slow_gpu_share: Share
    """Fraction of GPUs that are slower than the others."""
    slow_gpu_factor: Annotated[float, within(1, 1_000)]
    """How many times as long a slow GPU computes; one is enough to slow all ranks."""


@dataclass(frozen=True, slots=True)
class PlanSettings(Strict):
    """What launch/plan.py plans for."""

    num_gpus: Annotated[int, within(1, 1_000_000)]
    """GPUs to plan for."""
    gpu: GpuSettings
    cluster: ClusterSettings
    compare_num_gpus: tuple[Annotated[int, within(1, 1_000_000)], ...]
    """Numbers of GPUs to compare in a table, such as [8,16,32,64,128,256,512]."""
    ignore_memory_check: bool
    """Train even if the plan does not fit the memory."""


WandbMode = Literal["off", "auto", "offline", "online"]


@dataclass(frozen=True, slots=True)
class TrackingSettings(Strict):
    """Weights & Biases and TensorBoard, which show what metrics.jsonl has."""

    wandb: WandbMode
    """`auto`: what WANDB_MODE says, else online with a key in the environment, and offline without one."""
    project: str
    """Name of the project there."""
    group: str | None = None
    """Name of the group of runs there, such as the sweep; null: none."""
    tensorboard: bool = False
    """Write event files for TensorBoard into the run's folder."""

    def __post_init__(self) -> None:
        check_file_name(self, "group")


@dataclass(frozen=True, slots=True)
class TrackSettings(Strict):
    """Settings of launch/track.py."""

    run: str | None
    """Folder of the run to publish."""
    law: str | None
    """In place of a run: folder of a scaling law (launch/fit_law.py), such as sweeps/NAME/law."""
    wandb: WandbMode
    """`auto`: what WANDB_MODE says, else online with a key in the environment, and offline without one."""
    project: str | None
    """Name of the project there; null: that of the run's settings, or of the law's first run."""
    group: str | None
    """Name of the group of runs there, such as the sweep; null: that of the run's settings, or of the law's first
    run."""
    tensorboard: bool
    """Write event files for TensorBoard into the run's folder; a law has none."""

    def __post_init__(self) -> None:
        check_file_name(self, "group")
        if (self.run is None) == (self.law is None):
            raise OutOfRangeError("run", "the folder of a run, or law=FOLDER in its place")
        if self.law is not None and self.tensorboard:
            raise OutOfRangeError("tensorboard", "false with law=...: a law is published in wandb")


@dataclass(frozen=True, slots=True)
class RunSettings(Strict):
    """Everything that determines a training run (conf/run.yaml)."""

    name: str
    """Name of the run, and of its folder."""
    output_dir: str
    """Folder of all runs."""
    data: DataSettings
    split: SplitChoice
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
    title_head: TitleHeadSettings = NO_TITLE_HEAD

    def __post_init__(self) -> None:
        check_file_name(self, "name")
        if self.model.path is not None and self.tokenizer.kind == "trained":
            raise OutOfRangeError(
                "tokenizer.kind", "pretrained, since pretrained weights know their own tokenizer only"
            )
        parts = [name for name, corpus in self.data.corpora.items() if corpus.weight % 1]
        if self.template.max_history is not None and parts:
            expected = "a whole number with template.max_history, where a person is many texts"
            raise OutOfRangeError(f"data.corpora.{parts[0]}.weight", expected)
        if 0 < self.training.context_loss_weight < 1 and self.compute.loss == "liger":
            expected = "chunked with training.context_loss_weight between 0 and 1; liger weighs all tokens alike"
            raise OutOfRangeError("compute.loss", expected)
        if self.training.best_by == "title_head" and self.title_head.kind == "none":
            raise OutOfRangeError("training.best_by", "title or token with title_head.kind=none")
        check_together(self.model, self.adapter, self.zero, self.optimizer)
        _check_split(self)


def _check_split(settings: RunSettings) -> None:
    """Check that a split's files can speak of all corpora, and that a split by year selects weights by titles."""
    split, corpora = settings.split, settings.data.corpora
    populations = ", ".join(dict.fromkeys(corpus.people_of for corpus in corpora.values()))
    if isinstance(split, FileSplit) and ", " in populations:
        raise OutOfRangeError("split.by", f"another rule than file, since the corpora are of several: {populations}")
    if isinstance(split, PeopleTableSettings):
        others = [name for name, corpus in corpora.items() if not isinstance(corpus, LongPanelCorpus)]
        if split.table is None and others:
            expected = f"a file, since the corpus {others[0]} is of kind {corpora[others[0]].kind}, not long_panel"
            raise OutOfRangeError("split.table", expected)
        if split.table is not None and split.population is None and ", " in populations:
            expected = f"a column of the table, since the corpora are of several populations: {populations}"
            raise OutOfRangeError("split.population", expected)
    if isinstance(split, YearSplit) and settings.training.best_by == "token":
        expected = "title with split_by=year, where validation texts begin with years that are trained on"
        raise OutOfRangeError("training.best_by", expected)
