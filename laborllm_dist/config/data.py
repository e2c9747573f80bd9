"""Settings of the road from data files to the token store: corpora, split, template, tokenizer, store.

Values live in conf/; their meaning, units and checks are here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from laborllm_dist.config.corpora import Corpus, Year
from laborllm_dist.config.number_ranges import Examples, People, Seed, Tokens, between, within
from laborllm_dist.config.reader import ByKind, OutOfRangeError, Strict, check_file_name, settings_to_values

TITLES_LINE, EXAMPLES_LINE = "{titles}", "{examples}"
MOST_LOCAL_WORKERS = 256


@dataclass(frozen=True, slots=True)
class DataSettings(Strict):
    """The corpora of a run, pooled in this order."""

    name: str
    """First part of the name of the token store's folder."""
    corpora: dict[str, Corpus]

    def __post_init__(self) -> None:
        check_file_name(self, "name")
        if not self.corpora:
            raise OutOfRangeError("corpora", "at least one corpus")
        tags = [corpus.survey for corpus in self.corpora.values()]
        if len(set(tags)) < len(tags):
            raise OutOfRangeError("corpora", f"a survey tag of its own for each corpus, got {', '.join(tags)}")
        if odd := [name for name in self.corpora if not re.fullmatch(r"\w+", name)]:
            raise OutOfRangeError(
                "corpora", f"names of letters, digits and _, since files are named so; got {odd[0]!r}"
            )


@dataclass(frozen=True, kw_only=True)  # without slots: a kind of split may have two bases
class SplitSettings(Strict):
    """Who is trained on, validated on and tested on. `split_by=NAME` selects the rule."""

    by: str
    """The rule: by `person`, `household`, `column` of a table of people, `file` of ids of each split, or `year`."""
    salt: str
    """Key of the hash of a person, at most 64 bytes."""

    def __post_init__(self) -> None:
        if len(self.salt.encode()) > 64:  # the hash takes no more, and would take two longer keys for one
            raise OutOfRangeError("salt", "at most 64 bytes")


@dataclass(frozen=True, kw_only=True)
class SharesSettings(SplitSettings):
    """Fractions of people or households, by a keyed hash; the remaining ones are tested on."""

    train: Annotated[float, between(0, 1)]
    """Fraction of people to train on."""
    validation: Annotated[float, between(0, 1)]
    """Fraction of people to validate on."""

    def __post_init__(self) -> None:
        SplitSettings.__post_init__(self)
        if not self.train + self.validation < 1:
            raise OutOfRangeError("train", "train + validation below 1, so that people are left to test on")


@dataclass(frozen=True, kw_only=True)
class ListedPeopleSettings(SplitSettings):
    """A rule that needs a file which lists people."""

    unlisted: Literal["error", "leave_out"]
    """A person of the corpora whom the file does not list is an error (`error`), or left out and counted
    (`leave_out`)."""


@dataclass(frozen=True, kw_only=True)
class PeopleTableSettings(ListedPeopleSettings):
    """A rule that needs a column of a table of people: CSV (plain or .gz) or Parquet, one row or more per person.

    All rows of a person have the same value in the column.
    """

    table: str | None
    """The file; null: the panel of a corpus of kind long_panel itself, with its column of person ids."""
    person: str
    """With a table: its column of person ids."""
    population: str | None
    """With a table: its column of the population (a corpus's `population`, or its dataset tag); null: all corpora
    are of one population."""
    column: str
    """Column that decides."""


@dataclass(frozen=True, kw_only=True)
class PersonSplit(SharesSettings):
    """Fractions of people, by a keyed hash of (population, person); the remaining people are the test people."""

    by: Literal["person"] = "person"
    """The rule."""


@dataclass(frozen=True, kw_only=True)
class HouseholdSplit(SharesSettings, PeopleTableSettings):
    """Fractions of households, by a keyed hash of (population, household): a household's people stay together."""

    by: Literal["household"]
    """The rule."""


@dataclass(frozen=True, kw_only=True)
class ColumnSplit(PeopleTableSettings):
    """A column of a table of people that names the split of each, such as that of a published split."""

    by: Literal["column"]
    """The rule."""
    train_values: tuple[str, ...]
    """Values that mean: trained on; case does not matter."""
    validation_values: tuple[str, ...]
    """Values that mean: validated on."""
    test_values: tuple[str, ...]
    """Values that mean: tested on."""

    def __post_init__(self) -> None:
        SplitSettings.__post_init__(self)
        words = [word.casefold() for word in (*self.train_values, *self.validation_values, *self.test_values)]
        if len(set(words)) < len(words):
            raise OutOfRangeError("train_values", "a value in one of the three lists only")


@dataclass(frozen=True, kw_only=True)
class FileSplit(ListedPeopleSettings):
    """Text files of person ids, one a line, for each split. All corpora are of one population."""

    by: Literal["file"]
    """The rule."""
    train_ids: str
    """File of the people to train on."""
    validation_ids: str
    """File of the people to validate on."""
    test_ids: str
    """File of the people to test on."""


@dataclass(frozen=True, kw_only=True)
class YearSplit(SplitSettings):
    """Observations up to a year are trained on, those of the years after it validated on, later ones tested on.

    A person may have observations in all three splits. A text holds nothing of later splits' years.
    """

    by: Literal["year"]
    """The rule."""
    last_training_year: Year
    """Last calendar year of the training observations."""
    last_validation_year: Year
    """Last calendar year of the validation observations; test observations are later."""

    def __post_init__(self) -> None:
        SplitSettings.__post_init__(self)
        if self.last_validation_year <= self.last_training_year:
            raise OutOfRangeError(
                "last_validation_year",
                f"a year after last_training_year ({self.last_training_year}), got {self.last_validation_year}",
            )


# The rules of a split and their settings. careers/splits.py applies them.
SPLIT_KINDS: dict[str, type[SplitSettings]] = {
    "person": PersonSplit,
    "household": HouseholdSplit,
    "column": ColumnSplit,
    "file": FileSplit,
    "year": YearSplit,
}
SplitChoice = Annotated[SplitSettings, ByKind(SPLIT_KINDS, tag="by", default="person")]


def identity_split(split: SplitSettings) -> dict[str, Any]:
    """Return the values of a split that decide who is in it, without the places of files.

    The split by person has no `by`: records from before there were other rules have none.
    """
    values = settings_to_values(split)
    if isinstance(split, PersonSplit):
        del values["by"]
    return {name: value for name, value in values.items() if name != "table" and not name.endswith("_ids")}


@dataclass(frozen=True, slots=True)
class TitleSettings(Strict):
    """How an occupation is written.

    `english`: its title. `numeric`: `prefix` and a number, such as job_144. `shuffled`: the title of another
    occupation, always the same one, drawn by `seed`. `perturbed`: `prefix` before the title, such as "Sr. Cooks".
    """

    style: Literal["english", "numeric", "shuffled", "perturbed"]
    """How an occupation is written."""
    prefix: str | None = None
    """Text before the number or the title."""
    seed: Seed | None = None
    """Seed that assigns the shuffled titles."""

    def __post_init__(self) -> None:
        needed = {"numeric": "prefix", "perturbed": "prefix", "shuffled": "seed"}.get(self.style)
        if needed is not None and getattr(self, needed) is None:
            raise OutOfRangeError(needed, f"a value, since titles.style is {self.style}")


@dataclass(frozen=True, slots=True)
class TemplateSettings(Strict):
    """The text of a career. A part in `[...]` is omitted if a field inside it is absent."""

    heading: tuple[str, ...]
    """Lines before the first job."""
    entry: str
    """Line of a job; `{title}` ends it."""
    ending: tuple[str, ...]
    """Lines after the last job."""
    titles: TitleSettings
    omit_fields: tuple[str, ...]
    """Fields that are treated as absent."""
    max_history: Annotated[int, within(0, 1_000_000)] | None
    """Most lines of history before a predicted line; null: all."""
    prefix: tuple[str, ...] = ()
    """Lines before every career: `{titles}` becomes one line per title, `{examples}` the few-shot careers."""
    num_fewshot: Examples = 0
    """Number of training people whose careers are few-shot examples."""
    fewshot_seed: Seed = 1
    """Seed that draws these people."""
    max_tokens: Tokens | None = None
    """Longest text; the history of a longer career is truncated. An evaluation with truncation=last_lines sets it."""

    def __post_init__(self) -> None:
        check_prefix(self.prefix, self.num_fewshot)


@dataclass(frozen=True, slots=True)
class PromptSettings(Strict):
    """The lines that an evaluation puts before every career, as in the template's settings."""

    prefix: tuple[str, ...] | None
    """Lines before every career; null: those of the run."""
    num_fewshot: Examples
    """Number of training people whose careers are few-shot examples."""
    fewshot_seed: Seed
    """Seed that draws these people."""

    def __post_init__(self) -> None:
        check_prefix(self.prefix or (), self.num_fewshot)


def check_prefix(prefix: tuple[str, ...], num_fewshot: int) -> None:
    """Check the fields of the prefix lines, and that few-shot examples have a line and the line has examples."""
    for line in prefix:
        if "\n" in line:
            raise OutOfRangeError("prefix", f"each line as its own item, got a line break in {line!r}")
        if line not in (TITLES_LINE, EXAMPLES_LINE) and ("{" in line or "}" in line):
            raise OutOfRangeError(
                "prefix", f"braces only where {TITLES_LINE} or {EXAMPLES_LINE} is all of the line: {line!r}"
            )
    if EXAMPLES_LINE in prefix and num_fewshot < 1:
        raise OutOfRangeError(
            "num_fewshot", f"a number above 0 for the prefix's line {EXAMPLES_LINE}, got {num_fewshot}"
        )
    if EXAMPLES_LINE not in prefix and num_fewshot != 0:
        raise OutOfRangeError("num_fewshot", f"0, since the prefix has no line {EXAMPLES_LINE}, got {num_fewshot}")


@dataclass(frozen=True, slots=True)
class TokenizerSettings(Strict):
    """The tokenizer of a run."""

    kind: Literal["pretrained", "trained"]
    """A Hugging Face tokenizer (`pretrained`), or byte-level BPE learned from training people (`trained`)."""
    path: str | None
    """Folder or hub id of a pretrained tokenizer; null: the model's."""
    vocabulary_size: Annotated[int, within(260, 1_000_000, "256 bytes and 4 marks are the least")] | None
    """Number of tokens of a trained tokenizer."""
    training_people: People | None
    """Most training people whose texts a trained tokenizer learns from."""
    titles: Literal["pieces", "whole"] = "pieces"
    """A title is as many tokens as it takes (`pieces`), or one token, as are constant phrases of the template
    (`whole`)."""

    def __post_init__(self) -> None:
        if self.kind == "pretrained" and self.titles == "whole":
            raise OutOfRangeError("titles", "pieces for a pretrained tokenizer, whose tokens are what they are")
        if self.kind == "trained" and self.vocabulary_size is None:
            raise OutOfRangeError("vocabulary_size", "a number of ids for a trained tokenizer")
        if self.kind == "trained" and self.training_people is None:
            raise OutOfRangeError("training_people", "a number of people for a trained tokenizer")


@dataclass(frozen=True, slots=True)
class StoreSettings(Strict):
    """Where token stores are. A fingerprint of data and settings names a store, so that it is created once."""

    root: str
    """Folder of all token stores."""
    people_per_shard: Annotated[int, within(1, 10_000_000)]
    """People per shard; a shard is held in memory and written at once."""


@dataclass(frozen=True, slots=True)
class PrepareSettings(Strict):
    """How preparation is parallelized. It does not affect the store's contents."""

    worker_index: Annotated[int, within(0, 9_999)] | None
    """null: start all workers and merge; a number: do the share of this worker, and merge if it is the last to
    finish."""
    num_workers: Annotated[int, within(1, 10_000)]
    """Number of worker processes; worker i writes the shards i, i + num_workers, ... of every corpus."""
    executor: Literal["local", "slurm"]
    """Worker processes on this machine, or an array of Slurm jobs."""
    slurm_partition: str | None
    """Slurm partition of the workers; null: the default one."""
    minutes: Annotated[int, within(1, 1_000_000)]
    """Time limit of a worker, in minutes."""
    memory_gib: Annotated[int, within(1, 1_000_000)]
    """Memory of a worker under Slurm, in GiB."""
    cpus: Annotated[int, within(1, 100_000)]
    """CPUs of a worker under Slurm."""
    career_text: str | None
    """New folder to which the store's careers are also written, as CAREER's parallel text files."""

    def __post_init__(self) -> None:
        if self.executor == "local" and self.worker_index is None and self.num_workers > MOST_LOCAL_WORKERS:
            raise OutOfRangeError(
                "num_workers", f"at most {MOST_LOCAL_WORKERS} processes of this machine, or executor=slurm"
            )
        if self.worker_index is not None and self.worker_index >= self.num_workers:
            raise OutOfRangeError(
                "worker_index", f"a number from 0 to {self.num_workers - 1} (num_workers - 1), got {self.worker_index}"
            )
