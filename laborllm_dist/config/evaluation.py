"""Settings of the commands that read a run: evaluate, predict, forecast, baselines, report, replicate.

Values live in conf/; their meaning, units and checks are here. A command takes what it does not set from the run.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Literal

from laborllm_dist.config.baselines import BASELINES, BaselineName
from laborllm_dist.config.data import DataSettings, PromptSettings
from laborllm_dist.config.model import HEAD_NAMES, KernelSource, Quantization
from laborllm_dist.config.number_ranges import Mass, People, Rows, Samples, Seed, Threads, Tokens, within
from laborllm_dist.config.reader import OutOfRangeError, Strict, check_file_name

Truncation = Literal["error", "last_lines"]
OTHER_DATA = "data_"  # in place of a split, begins the names of files about other data
NAMES_OF_OTHERS = (*BASELINES, *HEAD_NAMES.values())  # score tables that are of no language model
FigureFormat = Literal["png", "pdf"]


@dataclass(frozen=True, slots=True)
class EvaluationSettings(Strict):
    """Scoring of one split. Nothing in it depends on the number of ranks."""

    split: Literal["train", "validation", "test"]
    """Which people to score."""
    max_seq_length: Tokens
    """Most tokens per row."""
    batch_size: Rows
    """Rows per forward pass."""
    batches_per_part: Annotated[int, within(1, 1_000_000)]
    """Forward passes per part file, the most work that a kill costs a rank."""
    precision: Literal["bf16", "fp32", "fp64"]
    """Precision of the forward pass; softmax is fp32 or better, sums are fp64."""
    titles: Literal["observed", "all"] = "observed"
    """Score the observed titles, or all titles too."""
    max_unscored_mass: Mass = 0.0
    """With titles=all: the probability after each prompt that need not be scored individually; 0: the whole
    distribution."""
    max_tree_tokens: Tokens = 4096
    """Title tokens per forward pass; the tree of one prompt is never divided."""
    quantization: Quantization = "none"
    """Of the weights: `none`, or 8 or 4 bits by bitsandbytes."""
    placement: Literal["replicated", "partitioned"] = "replicated"
    """The whole model on every rank, or ZeRO-3 partitions of one that does not fit."""
    check_generations: bool = False
    """Generate continuations of every prompt, and count those that are titles."""
    num_samples: Samples = 1
    """Sampled continuations per prompt, beside the greedy one."""
    sample_seed: Seed = 1
    """Seed of the sampled continuations."""
    max_new_tokens: Tokens | None = None
    """Longest continuation, in tokens; null: that of the longest title and the line break."""

    def __post_init__(self) -> None:
        if self.placement == "partitioned":
            if self.quantization != "none":
                raise OutOfRangeError(
                    "quantization",
                    "none with placement=partitioned, which would part quantized weights and their scales",
                )
            if self.precision == "fp64":
                raise OutOfRangeError("precision", "fp32 or bf16 with placement=partitioned; DeepSpeed has no fp64")


@dataclass(frozen=True, slots=True)
class OtherModelSettings(Strict):
    """A model to score in place of the run's own."""

    path: str | None
    """Folder or hub id; null: the run's own export."""
    revision: str | None
    """Branch, tag or commit on the hub."""
    subfolder: str | None
    """Folder inside the path."""
    name: str | None
    """Its name in tables; null: a name made from the path."""
    weights: Literal["safetensors", "pickle"]
    """File format; `pickle` opens older files, which can execute code of whoever made them."""

    def __post_init__(self) -> None:
        check_file_name(self, "name")
        if self.name in NAMES_OF_OTHERS:
            raise OutOfRangeError("name", f"a file name other than {', '.join(NAMES_OF_OTHERS)}, got {self.name!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardOverrides(Strict):
    """How a command computes the forward passes of a run's model; null: as in the run."""

    max_seq_length: Tokens | None
    """Most tokens per row."""
    batch_size: Rows | None
    """Rows per forward pass."""
    precision: Literal["bf16", "fp32", "fp64"] | None
    """Precision of the forward pass; softmax is fp32 or better, sums are fp64."""
    max_tree_tokens: Tokens | None
    """Title tokens per forward pass; the tree of one prompt is never divided."""
    quantization: Quantization | None
    """Of the weights: `none`, or 8 or 4 bits by bitsandbytes."""
    placement: Literal["replicated", "partitioned"] | None
    """The whole model on every rank, or ZeRO-3 partitions of one that does not fit."""
    kernels: KernelSource | None
    """Kernels of the model's layers, such as `plain` where there is no GPU (compute.kernels)."""
    threads_per_rank: Threads | None
    """CPU threads of a rank."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationOverrides(ForwardOverrides):
    """What a command changes of a run's evaluation; null: as in the run."""

    split: Literal["train", "validation", "test"] | None
    """Which people to score."""
    titles: Literal["observed", "all"] | None
    """Score the observed titles, or all titles too."""
    max_unscored_mass: Mass | None
    """With titles=all: the probability after each prompt that need not be scored individually; 0: the whole
    distribution."""
    check_generations: bool | None
    """Generate continuations of every prompt, and count those that are titles."""
    num_samples: Samples | None
    """Sampled continuations per prompt, beside the greedy one."""
    sample_seed: Seed | None
    """Seed of the sampled continuations."""
    max_new_tokens: Tokens | None
    """Longest continuation, in tokens; null: that of the longest title and the line break."""


def evaluation_of(
    forward: ForwardOverrides,
    *,
    titles: Literal["observed", "all"],
    split: Literal["train", "validation", "test"] | None,
    max_unscored_mass: float | None,
) -> EvaluationOverrides:
    """Return the evaluation that another command is made of: its forward passes, and what is scored."""
    passes = {field.name: getattr(forward, field.name) for field in fields(ForwardOverrides)}
    return EvaluationOverrides(
        **passes,
        split=split,
        titles=titles,
        max_unscored_mass=max_unscored_mass,
        check_generations=False,
        num_samples=None,
        sample_seed=None,
        max_new_tokens=None,
    )


def _check_title_head(placement: str | None, max_unscored_mass: float | None) -> None:
    """Check what an output layer over titles cannot do."""
    if placement == "partitioned":
        raise OutOfRangeError("placement", "replicated with title_head=true, which reads hidden states")
    if max_unscored_mass:
        raise OutOfRangeError("max_unscored_mass", "0 with title_head=true, which scores all titles at once")


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateSettings(EvaluationOverrides):
    """Settings of launch/evaluate.py."""

    run: str
    """Folder of the run."""
    model: OtherModelSettings
    prompt: PromptSettings
    truncation: Truncation
    """A career that is longer than a row or the model's context is an error (`error`), or its history is
    truncated and counted (`last_lines`)."""
    data: DataSettings | None = None
    """Other careers, all of which are scored in place of a split of the run's people; null: the run's people."""
    store: str | None = None
    """Folder of a prepared token store with other careers, in place of data; `data=FOLDER` sets it. With `split`, only
    those of one of its splits are scored."""
    match_by: Literal["code", "title"] = "title"
    """Occupations of other data are the run's where their `code` or their `title` is the same; person-years without a
    match are left out and counted."""
    title_head: bool = False
    """Score the output layer over titles that was trained with the model (title_head.kind), in place of the titles that
    the model writes token by token."""

    def __post_init__(self) -> None:
        if self.data is not None and self.split is not None:
            raise OutOfRangeError("split", f"null with other data that are no prepared store, got {self.split}")
        if self.data is not None and self.store is not None:
            raise OutOfRangeError("store", "null with data; name one of the two")
        if self.title_head:
            _check_title_head(self.placement, self.max_unscored_mass)
            if self.check_generations:
                raise OutOfRangeError("check_generations", "false with title_head=true, which writes no text")

    @property
    def has_other_data(self) -> bool:
        """Whether other careers than the run's are scored."""
        return self.data is not None or self.store is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedSettings(ForwardOverrides):
    """Settings of launch/embed.py."""

    run: str
    """Folder of the run."""
    layer: Annotated[int, within(-10_000, 10_000)]
    """Layer after which the hidden state is taken: 0 is the token embedding, -1 the last layer, with the final norm."""
    split: Literal["train", "validation", "test", "all"]
    """Which people, each split in its own table; `all`: all three."""
    model: OtherModelSettings
    prompt: PromptSettings
    truncation: Truncation
    """A career that is longer than a row or the model's context is an error (`error`), or its history is
    truncated and counted (`last_lines`)."""

    def __post_init__(self) -> None:
        if self.placement == "partitioned":
            raise OutOfRangeError("placement", "replicated: hidden states are taken from whole models")


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictSettings(ForwardOverrides):
    """Settings of launch/predict.py."""

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
    max_unscored_mass: Mass
    """Probability of a person's titles that need not be scored individually."""
    title_head: bool = False
    """Predict by the output layer over titles that was trained with the model (title_head.kind), in place of the titles
    that the model writes token by token."""

    def __post_init__(self) -> None:
        if self.title_head:
            _check_title_head(self.placement, self.max_unscored_mass)
            if self.measure != "normalised":
                raise OutOfRangeError("measure", "normalised with title_head=true, which knows no line break")
        if self.output is not None and not self.output.endswith(".parquet"):
            raise OutOfRangeError("output", f"a file name that ends in .parquet, got {self.output!r}")
        if self.placement == "partitioned":
            raise OutOfRangeError("placement", "replicated, since one process predicts")


@dataclass(frozen=True, slots=True, kw_only=True)
class ForecastSettings(ForwardOverrides):
    """Settings of launch/forecast.py."""

    run: str
    """Folder of the run."""
    horizon: Annotated[int, within(2, 100, "years; a year ahead has one step only")]
    """Years from the start to the target, at least 2."""
    steps: Literal["exact", "sampled"]
    """Sum over the titles of the years between (`exact`), or average over sampled paths (`sampled`)."""
    max_pruned_mass: Mass
    """With steps=exact: probability of paths that need not be followed; 0: follow all."""
    max_paths: Annotated[int, within(1, 10_000_000)]
    """Maximum number of paths of one forecast; more are an error."""
    paths: Annotated[int, within(2, 1_000_000, "one has no standard error")]
    """With steps=sampled: number of sampled paths."""
    seed: Seed
    """Seed of the sampled paths, and of the choice of people."""
    max_people: People | None
    """People to forecast for, drawn by a hash; null: all."""
    split: Literal["train", "validation", "test"] | None
    """Which people to forecast for; null: as in the run."""
    max_unscored_mass: Mass | None
    """Probability after one prompt that need not be scored individually, as in an evaluation; null: as in the run."""
    model: OtherModelSettings
    prompt: PromptSettings
    title_head: bool = False
    """Forecast by the output layer over titles that was trained with the model (title_head.kind), in place of the
    titles that the model writes token by token."""

    def __post_init__(self) -> None:
        if self.title_head:
            _check_title_head(self.placement, self.max_unscored_mass)
        if self.max_pruned_mass and self.steps == "sampled":
            raise OutOfRangeError(
                "max_pruned_mass", f"0 with steps=sampled, which leaves no path out, got {self.max_pruned_mass}"
            )


@dataclass(frozen=True, slots=True)
class WeightSettings(Strict):
    """Survey weights of a report, from a file with one row per person, or per person and year."""

    path: str | None = None
    """CSV (also .gz) or Parquet file; null: all observations count the same."""
    column: str = "weight"
    """Column of the weight."""
    person: str = "person"
    """Column of the person's id."""
    year: str | None = None
    """Column of the calendar year; null: one weight per person."""
    survey: str | None = None
    """Column of the survey, as in the score table; null: all observations are of one survey."""


@dataclass(frozen=True, slots=True)
class StateWords(Strict):
    """Codes and titles of the states without an occupation; case does not matter.

    The codes that a run's own data settings name (`status.codes`) count besides.
    """

    unemployed: tuple[str, ...] = ()
    """Is unemployed."""
    not_in_labor_force: tuple[str, ...] = ()
    """Is out of the labor force."""
    not_working: tuple[str, ...] = ()
    """Does not work; unemployed or out of the labor force, which is unknown."""
    education: tuple[str, ...] = ()
    """Does not work and is enrolled in school."""


@dataclass(frozen=True, slots=True)
class ReportSettings(Strict):
    """Settings of launch/report.py."""

    runs: tuple[str, ...]
    """Folders of the runs to compare."""
    split: str
    """Whose score tables to read: those of the train, validation or test people, or data_NAME, of other data."""
    output: str | None
    """Folder of the report; null: report/ in the first run."""
    measure: Literal["title", "terminated", "normalised"]
    """Which log-likelihood to report."""
    bootstrap_draws: Annotated[int, within(1, 1_000_000)]
    """Resamples of people for the intervals."""
    seed: Seed
    """Seed of the resamples."""
    figure_formats: tuple[FigureFormat, ...] = ("png", "pdf")
    """Files of the figures beside the page, which has them as SVG; a PDF embeds its fonts as TrueType."""
    calibration_bins: Annotated[int, within(2, 1_000)] = 10
    """Most bins of a calibration curve, with equal numbers of observations."""
    refits: tuple[str, ...] = ()
    """Folders of refits of the first run on resampled training people (`training.bootstrap_seed`), for intervals over
    training and test people; none, or at least 2."""
    num_careers: Annotated[int, within(0, 200)] = 0
    """People of careers.html, which shows single careers year by year, drawn by the seed; 0: no such page."""
    weights: WeightSettings = WeightSettings()
    states: StateWords = StateWords()

    def __post_init__(self) -> None:
        if self.split not in ("train", "validation", "test") and not self.split.startswith(OTHER_DATA):
            raise OutOfRangeError("split", f"train, validation, test, or {OTHER_DATA}NAME, got {self.split!r}")
        check_file_name(self, "split")
        _check_runs(self.runs, self.refits)


@dataclass(frozen=True, slots=True)
class FitLawSettings(Strict):
    """Settings of launch/fit_law.py."""

    points: str
    """Table of the sweep's points: points.csv of launch/sweep.py, or a CSV of your own with a column
    nats_per_observation."""
    output: str | None
    """Folder of the law; null: law/ beside the points."""
    form: Literal["auto", "additive", "multiplicative", "rectified"]
    """Formula of the law; `auto`: the one that predicts the runs of the largest size best from the others."""
    method: Literal["variable_projection", "chinchilla"]
    """Least squares, or the sum of Huber's function of log L, as Hoffmann et al. (2022) fit theirs."""
    num_params: Literal["non_embedding", "total"]
    """What N counts."""
    sources: str | None
    """Only the runs on these sources, such as psid81+nlsy79; null: all runs have the same."""
    pretrained: str | None
    """Only the runs from this base model, or from several that differ in their size alone, such as
    llama2-7b+llama2-13b; `scratch`: only those trained from scratch; null: all runs are of one kind."""
    split: Literal["train", "validation", "test"]
    """Whose score tables to read."""
    measure: Literal["title", "terminated", "normalised"]
    """Which log-likelihood the loss is."""
    loss: Literal["auto", "nats", "excess"]
    """`nats`: minus the log-likelihood; `excess`: that of the model above that of the truth, on synthetic careers;
    `auto`: the excess where a run has scores of the truth."""
    baselines: tuple[BaselineName, ...]
    """Baselines to compare with, such as career, of the run on most data that has their scores: how much data or which
    size makes the law's loss equal theirs."""
    bootstrap_draws: Annotated[int, within(1, 100_000)]
    """Refits of the law on resamples of test people, with the noise between runs added."""
    seed: Seed
    """Seed of the resamples and of the noise."""
    figure_formats: tuple[FigureFormat, ...] = ("png", "pdf")
    """Files of the figures beside the page, which has them as SVG; a PDF embeds its fonts as TrueType."""


@dataclass(frozen=True, slots=True)
class ReplicateSettings(Strict):
    """Settings of launch/replicate.py."""

    runs: tuple[str, ...]
    """Folders of the runs that the package repeats."""
    output: str
    """Folder of the package."""
    title: str
    """Title of the paper, for the package's README."""
    refits: tuple[str, ...] = ()
    """Folders of refits of the first run (`training.bootstrap_seed`), which the package repeats for its report; none,
    or at least 2."""

    def __post_init__(self) -> None:
        _check_runs(self.runs, self.refits)


def _check_runs(runs: tuple[str, ...], refits: tuple[str, ...]) -> None:
    """Check that there is a run, and that its refits have a spread."""
    if not runs:
        raise OutOfRangeError("runs", "at least one run folder, such as runs='[runs/quickstart]'")
    if len(refits) == 1:
        raise OutOfRangeError("refits", "none, or at least 2 refits, since one has no spread")
