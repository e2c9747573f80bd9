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
    """The corpora of a run, pooled in this order."""

    name: str  # first part of the name of the token store's folder
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
    """Fractions of people, by a keyed hash of (population, person); the remaining people are the test people."""

    key: str  # key of the hash
    train: Annotated[float, between(0, 1)]  # fraction of people to train on
    validation: Annotated[float, between(0, 1)]  # fraction of people to validate on

    def __post_init__(self) -> None:
        if len(self.key.encode()) > 64:  # the hash takes no more, and would take two longer keys for one
            raise OutOfRangeError("key", "at most 64 bytes")
        if not self.train + self.validation < 1:
            raise OutOfRangeError("train", "train + validation below 1, so that people are left to test on")


@dataclass(frozen=True, slots=True)
class TitleSettings:
    """How an occupation is written.

    `english`: its title. `numeric`: `prefix` and a number, such as job_144. `shuffled`: the title of another
    occupation, always the same one, drawn by `seed`. `perturbed`: `prefix` before the title, such as "Sr. Cooks".
    """

    style: Literal["english", "numeric", "shuffled", "perturbed"]  # how an occupation is written
    prefix: str | None = None  # text before the number or the title
    seed: Seed | None = None  # seed that assigns the shuffled titles

    def __post_init__(self) -> None:
        needed = {"numeric": "prefix", "perturbed": "prefix", "shuffled": "seed"}.get(self.style)
        if needed is not None and getattr(self, needed) is None:
            raise OutOfRangeError(needed, f"a value, since titles.style is {self.style}")


@dataclass(frozen=True, slots=True)
class TemplateSettings:
    """The text of a career. A part in `[...]` is omitted if a field inside it is absent."""

    heading: tuple[str, ...]  # lines before the first job
    entry: str  # line of a job; `{title}` ends it
    ending: tuple[str, ...]  # lines after the last job
    titles: TitleSettings
    hidden: tuple[str, ...]  # fields that are treated as absent
    max_history: Annotated[int, within(0, 1_000_000)] | None  # most lines of history before a predicted line; None: all
    # lines before every career: `{titles}` becomes one line per title, `{examples}` the few-shot careers
    preface: tuple[str, ...] = added_later(())
    num_fewshot: Examples = added_later(0)  # number of training people whose careers are few-shot examples
    fewshot_seed: Seed = added_later(1)  # seed that draws these people
    # longest text; the history of a longer career is truncated. An evaluation with truncation=last_lines sets it
    max_tokens: Tokens | None = added_later(None)

    def __post_init__(self) -> None:
        check_preface(self.preface, self.num_fewshot)


@dataclass(frozen=True, slots=True)
class PromptSettings:
    """The lines that an evaluation puts before every career, as in the template's settings."""

    preface: tuple[str, ...] | None  # lines before every career; None: those of the run
    num_fewshot: Examples  # number of training people whose careers are few-shot examples
    fewshot_seed: Seed  # seed that draws these people

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
    """The tokenizer of a run."""

    # a Hugging Face tokenizer (`pretrained`), or byte-level BPE learned from training people (`trained`)
    kind: Literal["pretrained", "trained"]
    path: str | None  # folder or hub id of a pretrained tokenizer; None: the model's
    # number of tokens of a trained tokenizer
    vocabulary_size: Annotated[int, within(260, 1_000_000, "256 bytes and 4 marks are the least")] | None
    training_people: People | None  # most training people whose texts a trained tokenizer learns from
    # a title is as many tokens as it takes (`pieces`), or one token, as are constant phrases of the template (`whole`)
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
    """Where token stores are. A fingerprint of data and settings names a store, so that it is created once."""

    root: str  # folder of all token stores
    # people per shard; a shard is held in memory and written at once
    people_per_shard: Annotated[int, within(1, 10_000_000)]


@dataclass(frozen=True, slots=True)
class PrepareSettings:
    """How preparation is parallelized. It does not affect the store's contents."""

    # None: start all workers and merge; a number: do the share of this worker, and merge if it is the last to finish
    shard: Annotated[int, within(0, 9_999)] | None
    # number of worker processes; worker i writes the shards i, i + num_workers, ... of every corpus
    num_workers: Annotated[int, within(1, 10_000)]
    where: Literal["local", "slurm"]  # worker processes on this machine, or an array of Slurm jobs
    slurm_partition: str | None  # Slurm partition of the workers; None: the default one
    minutes: Annotated[int, within(1, 1_000_000)]  # time limit of a worker, in minutes
    memory_gib: Annotated[int, within(1, 1_000_000)]  # memory of a worker under Slurm, in GiB
    cpus: Annotated[int, within(1, 100_000)]  # CPUs of a worker under Slurm
    career_text: str | None  # new folder to which the store's careers are also written, as CAREER's parallel text files

    def __post_init__(self) -> None:
        if self.where == "local" and self.shard is None and self.num_workers > MOST_LOCAL_SHARDS:
            raise OutOfRangeError(
                "num_workers", f"at most {MOST_LOCAL_SHARDS} processes of this machine, or where=slurm"
            )
        if self.shard is not None and self.shard >= self.num_workers:
            raise OutOfRangeError(
                "shard", f"a number from 0 to {self.num_workers - 1} (num_workers - 1), found {self.shard}"
            )
