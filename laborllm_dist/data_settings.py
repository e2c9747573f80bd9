"""Settings of the road from data files to the token store: corpora, split, template, tokenizer, store.

As in `settings`: values live in conf/, here are their meaning, units and checks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from laborllm_dist.settings_reader import OutOfRange, check_positive, check_share


@dataclass(frozen=True, slots=True)
class ColumnSettings:
    """Which column of a long panel holds what; None: the panel does not have it."""

    person: str
    year: str
    occupation: str
    birth_year: str | None
    gender: str | None
    ethnicity: str | None
    region: str | None
    education: str | None


@dataclass(frozen=True, slots=True)
class LongPanelSettings:
    """A CSV (plain or .gz) or Parquet file with one row per person and year."""

    path: str
    vocabulary: str  # CSV of occupation codes and titles; `builtin:NAME` is one that this software ships
    columns: ColumnSettings
    vocabulary_code: str  # its column of codes
    vocabulary_title: str  # its column of titles
    missing: tuple[str, ...]  # cells that mean: not known (allowed in covariates only)


@dataclass(frozen=True, slots=True)
class SyntheticSettings:
    """A made labour market with known probabilities (careers/synthetic.py)."""

    num_people: int
    seed: int

    def __post_init__(self) -> None:
        check_positive(self, "num_people")


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
        check_share(self, "train", "validation")
        check_positive(self, "train", "validation")
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
    """Whose pieces a text is made of.

    `pretrained`: a Hugging Face tokenizer at `path` (default: the model's). `trained`: byte-level BPE, learned from
    the texts of at most `training_people` training people.
    """

    kind: Literal["pretrained", "trained"]
    path: str | None
    vocabulary_size: int | None
    training_people: int | None

    def __post_init__(self) -> None:
        check_positive(self, "vocabulary_size", "training_people")
        if self.kind == "trained" and (self.vocabulary_size is None or self.vocabulary_size < 260):
            raise OutOfRange("vocabulary_size", "at least 260 (256 bytes and 4 marks) for a trained tokenizer")
        if self.kind == "trained" and self.training_people is None:
            raise OutOfRange("training_people", "a number of people for a trained tokenizer")


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """Where token stores lie. A store's folder is named by data and fingerprint, so it is made once."""

    root: str
    careers_per_batch: int  # careers held in memory while preparing
    careers_per_shard: int

    def __post_init__(self) -> None:
        check_positive(self, "careers_per_batch", "careers_per_shard")
