"""Settings of the road from data files to the token store: corpora, split, template, tokenizer, store.

As in `settings`: values live in conf/, here are their meaning, units and checks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from laborllm_dist.config.corpora import CorpusSettings
from laborllm_dist.config.number_ranges import Examples, People, Seed, Tokens, between, within
from laborllm_dist.config.reader import OutOfRangeError, added_later, check_file_name

TITLES_LINE, EXAMPLES_LINE = "{titles}", "{examples}"
MOST_LOCAL_SHARDS = 256


@dataclass(frozen=True, slots=True)
class DataSettings:
    """The corpora that are pooled, in this order; the name is the first part of the token store's folder."""

    name: str
    corpora: dict[str, CorpusSettings]

    def __post_init__(self) -> None:
        check_file_name(self, "name")
        if not self.corpora:
            raise OutOfRangeError("corpora", "at least one corpus")
        tags = [corpus.survey for corpus in self.corpora.values()]
        if len(set(tags)) < len(tags):
            raise OutOfRangeError("corpora", f"a survey tag of its own for each corpus, found {', '.join(tags)}")
        if odd := [name for name in self.corpora if not re.fullmatch(r"\w+", name)]:
            raise OutOfRangeError(
                "corpora", f"names of letters, digits and _, since files are named so; found {odd[0]!r}"
            )


@dataclass(frozen=True, slots=True)
class SplitSettings:
    """Shares of people, by keyed hash of (survey, person); what train and validation leave is test."""

    key: str
    train: Annotated[float, between(0, 1)]
    validation: Annotated[float, between(0, 1)]

    def __post_init__(self) -> None:
        if not self.train + self.validation < 1:
            raise OutOfRangeError("train", "train + validation below 1, so that people are left to test on")


@dataclass(frozen=True, slots=True)
class TitleSettings:
    """How an occupation is written.

    `english`: its title. `numeric`: `prefix` and a number, such as job_144. `shuffled`: the title of another
    occupation, always the same one, drawn by `seed`. `perturbed`: `prefix` before the title, such as "Sr. Cooks".
    """

    style: Literal["english", "numeric", "shuffled", "perturbed"]
    prefix: str | None = None
    seed: Seed | None = None

    def __post_init__(self) -> None:
        needed = {"numeric": "prefix", "perturbed": "prefix", "shuffled": "seed"}.get(self.style)
        if needed is not None and getattr(self, needed) is None:
            raise OutOfRangeError(needed, f"a value, since titles.style is {self.style}")


@dataclass(frozen=True, slots=True)
class TemplateSettings:
    """The text of a career. `[...]` is left out where a field inside it is absent; `{title}` ends `entry`.

    `preface` stands before every career. Its line `{titles}` becomes one line for each title, its line `{examples}` the
    whole texts of `num_fewshot` training people. `max_tokens` is set by an evaluation with truncation=last_lines.
    """

    heading: tuple[str, ...]
    entry: str
    ending: tuple[str, ...]
    titles: TitleSettings
    hidden: tuple[str, ...]  # fields that are treated as absent
    max_history: Annotated[int, within(0, 1_000_000)] | None  # the most before a predicted line; None: all
    preface: tuple[str, ...] = added_later(())
    num_fewshot: Examples = added_later(0)
    fewshot_seed: Seed = added_later(1)  # draws the training people whose careers are the examples
    max_tokens: Tokens | None = added_later(None)  # of a text; a longer career is told with its last lines only

    def __post_init__(self) -> None:
        check_preface(self.preface, self.num_fewshot)


@dataclass(frozen=True, slots=True)
class PromptSettings:
    """What an evaluation puts before every career, as in TemplateSettings; `preface` None: what the run has there."""

    preface: tuple[str, ...] | None
    num_fewshot: Examples
    fewshot_seed: Seed

    def __post_init__(self) -> None:
        check_preface(self.preface or (), self.num_fewshot)


def check_preface(preface: tuple[str, ...], num_fewshot: int) -> None:
    """Refuse lines that cannot be filled, and examples without a line for them or the other way round."""
    for line in preface:
        if "\n" in line:
            raise OutOfRangeError("preface", f"each line as its own item, found a line break in {line!r}")
        if line not in (TITLES_LINE, EXAMPLES_LINE) and ("{" in line or "}" in line):
            raise OutOfRangeError(
                "preface", f"braces only where {TITLES_LINE} or {EXAMPLES_LINE} is all of the line: {line!r}"
            )
    if EXAMPLES_LINE in preface and num_fewshot < 1:
        raise OutOfRangeError(
            "num_fewshot", f"a number above 0 for the preface's line {EXAMPLES_LINE}, found {num_fewshot}"
        )
    if EXAMPLES_LINE not in preface and num_fewshot != 0:
        raise OutOfRangeError("num_fewshot", f"0, since the preface has no line {EXAMPLES_LINE}, found {num_fewshot}")


@dataclass(frozen=True, slots=True)
class TokenizerSettings:
    """Whose pieces a text is made of.

    `pretrained`: a Hugging Face tokenizer at `path` (default: the model's). `trained`: byte-level BPE, learned from
    the texts of at most `training_people` training people. With `titles: whole` a trained one has a token for every
    title of the vocabulary and every constant phrase of the template, besides `vocabulary_size` pieces of other text.
    """

    kind: Literal["pretrained", "trained"]
    path: str | None
    vocabulary_size: Annotated[int, within(260, 1_000_000, "256 bytes and 4 marks are the least")] | None
    training_people: People | None
    titles: Literal["pieces", "whole"] = added_later("pieces")

    def __post_init__(self) -> None:
        if self.kind == "pretrained" and self.titles == "whole":
            raise OutOfRangeError("titles", "pieces for a pretrained tokenizer, whose tokens are what they are")
        if self.kind == "trained" and self.vocabulary_size is None:
            raise OutOfRangeError("vocabulary_size", "a number of ids for a trained tokenizer")
        if self.kind == "trained" and self.training_people is None:
            raise OutOfRangeError("training_people", "a number of people for a trained tokenizer")


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """Where token stores lie. A store's folder is named by data and fingerprint, so it is made once."""

    root: str
    # A piece is what is written at once, held in memory, and never made twice.
    people_per_shard: Annotated[int, within(1, 10_000_000)]


@dataclass(frozen=True, slots=True)
class PrepareSettings:
    """Who makes the pieces of a store; nothing here changes what is in it.

    With `num_workers` above 1, shard i makes the pieces i, i + num_workers, ... of every corpus. `shard` null starts
    all
    shards, as processes of this machine (`where: local`) or as an array of Slurm jobs (`where: slurm`), and merges. A
    number makes that shard alone, and merges if it is the last to be done.
    """

    shard: Annotated[int, within(0, 9_999)] | None
    num_workers: Annotated[int, within(1, 10_000)]
    where: Literal["local", "slurm"]
    slurm_partition: str | None
    minutes: Annotated[int, within(1, 1_000_000)]  # the time limit of a shard
    memory_gib: Annotated[int, within(1, 1_000_000)]  # of a shard, under Slurm
    cpus: Annotated[int, within(1, 100_000)]  # of a shard, under Slurm
    career_text: str | None  # a new folder to write the store's careers to, too, as CAREER's parallel text files

    def __post_init__(self) -> None:
        if self.where == "local" and self.shard is None and self.num_workers > MOST_LOCAL_SHARDS:
            raise OutOfRangeError(
                "num_workers", f"at most {MOST_LOCAL_SHARDS} processes of this machine, or where=slurm"
            )
        if self.shard is not None and self.shard >= self.num_workers:
            raise OutOfRangeError(
                "shard", f"a number from 0 to {self.num_workers - 1} (num_workers - 1), found {self.shard}"
            )
