"""Meaning, units and checks of every setting. Values live in conf/, derived numbers are computed where they are used.

`read_settings` is the one strict reader between the two: it knows every name, so a typo in an experiment file or on
the command line stops with its full path and the nearest known name, before anything is read or written.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from laborllm_dist.errors import SettingsError

Settings = TypeVar("Settings")


class OutOfRange(ValueError):
    """Raised by a settings class about one of its own fields; the reader adds the full path."""

    def __init__(self, field: str, wanted: str) -> None:
        super().__init__(f"{field}: wanted {wanted}")
        self.field, self.wanted = field, wanted


def _positive(settings: object, *fields: str) -> None:
    for field in fields:
        value = getattr(settings, field)
        if value is not None and not value > 0:
            raise OutOfRange(field, f"a number above 0, found {value}")


def _share(settings: object, *fields: str) -> None:
    for field in fields:
        value = getattr(settings, field)
        if not 0 <= value <= 1:
            raise OutOfRange(field, f"a number from 0 to 1, found {value}")


@dataclass(frozen=True, slots=True)
class ColumnSettings:
    """Which column of a long panel holds what; None: the panel does not have it."""

    person: str
    year: str
    occupation: str
    birth_year: str | None = None
    gender: str | None = None
    ethnicity: str | None = None
    region: str | None = None
    education: str | None = None


@dataclass(frozen=True, slots=True)
class LongPanelSettings:
    """A CSV (plain or .gz) or Parquet file with one row per person and year."""

    path: str
    vocabulary: str  # CSV of occupation codes and titles; `builtin:NAME` is one that this software ships
    columns: ColumnSettings
    vocabulary_code: str = "code"
    vocabulary_title: str = "title"
    missing: tuple[str, ...] = ("",)  # cells that mean: not known (allowed in covariates only)


@dataclass(frozen=True, slots=True)
class SyntheticSettings:
    """A made labour market with known probabilities (careers/synthetic.py)."""

    num_people: int
    seed: int

    def __post_init__(self) -> None:
        _positive(self, "num_people")


@dataclass(frozen=True, slots=True)
class CorpusSettings:
    """One source of careers. `kind` names its reader; the group of the same name holds the reader's settings."""

    kind: Literal["wage_panel", "long_panel", "synthetic"]
    survey: str  # the dataset tag of the template, such as PSID
    long_panel: LongPanelSettings | None = None
    synthetic: SyntheticSettings | None = None
    how_to_get: str = ""  # said where the files are missing

    def __post_init__(self) -> None:
        if self.kind != "wage_panel" and getattr(self, self.kind) is None:
            raise OutOfRange(self.kind, f"the settings of a {self.kind}, found none")


@dataclass(frozen=True, slots=True)
class DataSettings:
    """The corpora that are pooled, in this order; the name is the first part of the token store's folder."""

    name: str
    corpora: dict[str, CorpusSettings]

    def __post_init__(self) -> None:
        if not self.corpora:
            raise OutOfRange("corpora", "at least one corpus")
        tags = [corpus.survey for corpus in self.corpora.values()]
        if len(set(tags)) < len(tags):
            raise OutOfRange("corpora", f"a survey tag of its own for each corpus, found {', '.join(tags)}")


@dataclass(frozen=True, slots=True)
class SplitSettings:
    """Shares of people, by keyed hash of (survey, person); what train and validation leave is test."""

    key: str
    train: float
    validation: float

    def __post_init__(self) -> None:
        _share(self, "train", "validation")
        if not self.train + self.validation < 1:
            raise OutOfRange("train", "train + validation below 1, so that people are left to test on")


@dataclass(frozen=True, slots=True)
class TemplateSettings:
    """The text of a career. `[...]` is left out where a field inside it is absent; `{title}` ends `entry`."""

    heading: tuple[str, ...]
    entry: str
    ending: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TokenizerSettings:
    """`pretrained`: a Hugging Face tokenizer at `path` (default: the model's). `trained`: byte-level BPE, learned
    from the texts of at most `training_people` training people."""

    kind: Literal["pretrained", "trained"]
    path: str | None = None
    vocabulary_size: int | None = None
    training_people: int = 10_000

    def __post_init__(self) -> None:
        _positive(self, "vocabulary_size", "training_people")
        if self.kind == "trained" and (self.vocabulary_size is None or self.vocabulary_size < 260):
            raise OutOfRange("vocabulary_size", "at least 260 (256 bytes and 4 marks) for a trained tokenizer")


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """Where token stores lie. A store's folder is named by data and fingerprint, so it is made once."""

    root: str
    careers_per_batch: int = 2_000  # careers held in memory while preparing
    careers_per_shard: int = 100_000

    def __post_init__(self) -> None:
        _positive(self, "careers_per_batch", "careers_per_shard")


@dataclass(frozen=True, slots=True)
class LlamaSettings:
    """Shape of a Llama made from nothing; the vocabulary's size is the tokenizer's."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_key_value_heads: int
    max_positions: int
    rope_theta: float = 10_000.0
    tied_embeddings: bool = True
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        _positive(self, "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_key_value_heads")
        _positive(self, "max_positions", "rope_theta", "initializer_range")
        if self.hidden_size % (2 * self.num_heads):
            raise OutOfRange("hidden_size", "a multiple of 2 x num_heads")
        if self.num_heads % self.num_key_value_heads:
            raise OutOfRange("num_heads", "a multiple of num_key_value_heads")


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """Pretrained weights by `path` (a folder or a hub id), or a `llama` made from nothing."""

    name: str
    path: str | None = None
    revision: str | None = None
    subfolder: str | None = None
    llama: LlamaSettings | None = None
    attention_dropout: float = 0.0

    def __post_init__(self) -> None:
        _share(self, "attention_dropout")
        if (self.path is None) == (self.llama is None):
            raise OutOfRange("path", "either model.path (pretrained weights) or model.llama (a new model), not both")


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """A step trains on `careers_per_step` careers, packed into rows of at most `row_length` tokens."""

    careers_per_step: int
    row_length: int
    rows_per_pass: int  # rows a rank forwards at once

    def __post_init__(self) -> None:
        _positive(self, "careers_per_step", "row_length", "rows_per_pass")


@dataclass(frozen=True, slots=True)
class ZeroSettings:
    """What DeepSpeed shards over ranks (0 nothing, 1 optimizer, 2 and gradients, 3 and weights), and in what precision."""

    stage: Literal[0, 1, 2, 3]
    precision: Literal["fp32", "bf16"]
    bucket_elements: int = 50_000_000

    def __post_init__(self) -> None:
        _positive(self, "bucket_elements")


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
        _positive(self, "learning_rate", "epsilon", "max_gradient_norm")
        _share(self, "beta1", "beta2", "warmup_share", "final_share")


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
        _positive(self, "epochs", "validations_per_epoch", "checkpoint_every_steps", "keep_checkpoints", "log_every_steps")


@dataclass(frozen=True, slots=True)
class EvaluationSettings:
    """Scoring of one split. A unit is a forward of the plan; nothing in it depends on the number of ranks."""

    split: Literal["train", "validation", "test"]
    row_length: int
    rows_per_unit: int
    units_per_part: int  # units in a part file, the most work that a kill can lose a rank
    precision: Literal["fp32", "bf16"]  # of the weights; softmax is fp32 and sums are fp64 in any case

    def __post_init__(self) -> None:
        _positive(self, "row_length", "rows_per_unit", "units_per_part")


@dataclass(frozen=True, slots=True)
class RanksSettings:
    """Processes. Threads are fixed, since their number changes the last bits of a matrix product."""

    threads_per_rank: int
    timeout_minutes: float

    def __post_init__(self) -> None:
        _positive(self, "threads_per_rank", "timeout_minutes")


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


@dataclass(frozen=True, slots=True)
class OtherModelSettings:
    """A model to score in place of the run's own: a folder or a hub id. `name` is its name in tables."""

    path: str | None = None
    revision: str | None = None
    subfolder: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class EvaluateSettings:
    """Settings of launch/evaluate.py; what is None is taken from the run."""

    run: str
    model: OtherModelSettings
    split: Literal["train", "validation", "test"] | None
    row_length: int | None
    rows_per_unit: int | None
    precision: Literal["fp32", "bf16"] | None
    ranks: RanksSettings | None

    def __post_init__(self) -> None:
        _positive(self, "row_length", "rows_per_unit")


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
        _positive(self, "bootstrap_draws")
        if not self.runs:
            raise OutOfRange("runs", "at least one run folder, such as runs='[runs/quickstart]'")


def read_settings(kind: type[Settings], values: Mapping[str, Any], where: str = "") -> Settings:
    """Make `kind` from plain values, strictly.

    Args:
        kind: a frozen dataclass of this module.
        values: what a settings file holds: dicts, lists, numbers, texts.
        where: path of `values` in the settings, for messages.

    Raises:
        SettingsError: naming the full path of a setting that is unknown, missing, of another type or out of range.
    """
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name in values:
        if name not in fields:
            nearest = difflib.get_close_matches(str(name), fields, n=1, cutoff=0.5)
            hint = f"did you mean {_join(where, nearest[0])}?" if nearest else f"known here: {', '.join(fields)}"
            raise SettingsError(f"unknown setting {_join(where, str(name))}; {hint}")
    arguments: dict[str, Any] = {}
    for name, field in fields.items():
        if name in values:
            arguments[name] = _read_value(hints[name], values[name], _join(where, name))
        elif field.default is dataclasses.MISSING:
            raise SettingsError(f"setting {_join(where, name)} is missing")
    try:
        return kind(**arguments)
    except OutOfRange as error:
        raise SettingsError(f"setting {_join(where, error.field)}: wanted {error.wanted}") from None


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _read_value(wanted: Any, value: Any, path: str) -> Any:
    origin, inner = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (types.UnionType, typing.Union):  # X | None is the only union used
        if value is None:
            return None
        (wanted,) = (each for each in inner if each is not type(None))
        return _read_value(wanted, value, path)
    if origin is Literal:
        if value not in inner or isinstance(value, bool):
            raise SettingsError(f"setting {path}: wanted one of {', '.join(map(str, inner))}, found {value!r}")
        return value
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, typing.Sequence):
            raise SettingsError(f"setting {path}: wanted a list, found {value!r}")
        return tuple(_read_value(inner[0], each, f"{path}[{index}]") for index, each in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise SettingsError(f"setting {path}: wanted named groups of settings, found {value!r}")
        return {str(name): _read_value(inner[1], each, _join(path, str(name))) for name, each in value.items()}
    if dataclasses.is_dataclass(wanted):
        if not isinstance(value, Mapping):
            raise SettingsError(f"setting {path}: wanted a group of settings, found {value!r}")
        return read_settings(wanted, value, path)  # type: ignore[arg-type]
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, wanted) or (wanted is not bool and isinstance(value, bool)):
        hint = " (write 1.0e-5: YAML reads 1e-5 as a text)" if wanted is float and isinstance(value, str) else ""
        raise SettingsError(f"setting {path}: wanted {wanted.__name__}, found {value!r}{hint}")
    return value


def settings_to_values(settings: Any) -> dict[str, Any]:
    """Return the settings as plain values that `read_settings` and JSON take."""
    values: dict[str, Any] = dataclasses.asdict(settings)
    return values
