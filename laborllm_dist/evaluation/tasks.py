"""The tables that an evaluation makes: what a task scores in a batch, and the table that all parts together become.

A batch is one forward. Its rows and its shape depend on the careers' lengths and the settings only; ranks decide who
computes a batch, never what is in it. A part is a file of finished batches; a part that has a file is never computed
again.

    task                        scores                                      table
    ObservedTitles  (here)      the observed title of every observation     scores/test.parquet
    AllTitles       (all_titles.py)  all titles after every prompt          scores/test_titles.parquet
    Generations     (generation.py)  what the model writes by itself        scores/test_generated.parquet
    HeadTitles      (head_titles.py) all titles, by the output layer        scores/test.title_head.parquet and titles
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from laborllm_dist.batching.packing import pack_batches
from laborllm_dist.batching.title_positions import observation_scores, scoring_batch
from laborllm_dist.config.evaluation import EvaluationSettings
from laborllm_dist.distributed.context import DistributedContext
from laborllm_dist.errors import SequenceTooLongError
from laborllm_dist.evaluation.resumable_parts import ResumableJob, finish_parts, read_parts, remove_parts
from laborllm_dist.evaluation.target import EvaluationTarget
from laborllm_dist.evaluation.title_trie import TitleTrie
from laborllm_dist.models.inference import InferenceModel
from laborllm_dist.store.store import CareerTable
from laborllm_dist.tables.parquet import ScoreTableInfo
from laborllm_dist.tables.scores import SCORE_SCHEMA, write_score_table

ScoreBatch = Callable[[int], pa.Table]  # batch of the plan -> its rows, with `career` and `position`
OpenTrie = Callable[[], TitleTrie]  # collective at the first call


@dataclass(frozen=True, slots=True)
class EvaluationPlan:
    """`batches[b]` are the rows of a forward: indices of careers. Part p is batches [p * batches_per_part, ...)."""

    batches: tuple[tuple[tuple[int, ...], ...], ...]
    max_seq_length: int
    batches_per_part: int

    @property
    def num_parts(self) -> int:
        """Number of part files."""
        return -(-len(self.batches) // self.batches_per_part)

    def batches_of_part(self, part: int) -> range:
        """Return the batches of a part."""
        return range(part * self.batches_per_part, min((part + 1) * self.batches_per_part, len(self.batches)))


def plan_evaluation(careers: CareerTable, settings: EvaluationSettings) -> EvaluationPlan:
    """Pack all careers of a split.

    Raises:
        SequenceTooLongError: naming the person and how many there are, if a career does not fit a row.
    """
    lengths = careers.num_tokens()
    longest = int(lengths.argmax())
    if lengths[longest] > settings.max_seq_length:
        survey, person = careers.person(longest)
        raise SequenceTooLongError(
            f"career {person!r} of {survey} has {lengths[longest]} tokens, evaluation.max_seq_length is "
            f"{settings.max_seq_length}; evaluate with max_seq_length={lengths[longest]} or more, or with "
            f"truncation=last_lines; "
            f"{careers.longer_than(settings.max_seq_length)}",
            code="career-too-long",
        )
    batches = pack_batches(lengths.tolist(), settings.max_seq_length, settings.batch_size)
    return EvaluationPlan(batches, settings.max_seq_length, settings.batches_per_part)


@dataclass(frozen=True, slots=True)
class Room:
    """Number of tokens forwarded after a prompt; `reason` explains them in error messages."""

    num_tokens: int
    reason: str


class Task(Protocol):
    """The tables that one pass over the careers makes: files and metadata, and how the rows are computed."""

    subject: ClassVar[str]  # prefix of the model's name in messages

    @property
    def batches_per_part(self) -> int:
        """Forward passes per part file."""

    def tables(self, target: EvaluationTarget) -> tuple[Path, ...]:
        """Return the files of the tables; the first names the parts."""

    def info(self, target: EvaluationTarget) -> ScoreTableInfo:
        """Return the metadata of the table."""

    def room(self, trie: OpenTrie) -> Room | None:
        """Return how many tokens must fit the context after a prompt; None where nothing follows one."""

    def scorer(self, work: Evaluation, model: InferenceModel, trie: OpenTrie) -> ScoreBatch:
        """Return the function that scores one batch of the plan."""

    def write(self, work: Evaluation, facts: pa.Table, scores: pa.Table) -> None:
        """Write the table from the facts and the scores of all observations, in the same order."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A task with its careers, plan, metadata and files. `info` holds everything that decides the scores."""

    task: Task
    careers: CareerTable
    plan: EvaluationPlan
    info: ScoreTableInfo
    parts: Path
    table: Path


def evaluate(work: Evaluation, model: InferenceModel, trie: OpenTrie, ranks: DistributedContext) -> None:
    """Score the parts that have no file yet, then write the table. Collective.

    Raises:
        ScoreTableError: if the parts do not hold every observation exactly once.
        TitleBoundaryError: if the observed titles have other tokens than those of the tree.
    """
    score_batch = work.task.scorer(work, model, trie)

    def make(part: int) -> pa.Table:
        return pa.concat_tables([score_batch(batch) for batch in work.plan.batches_of_part(part)])

    parts = ResumableJob(work.parts, work.plan.num_parts, make, model.join_remaining)
    finish_parts(parts, ranks)
    ranks.run_on_main(lambda: _merge(work, parts))


def _merge(work: Evaluation, parts: ResumableJob) -> None:
    facts = observation_facts(work.careers)
    work.task.write(work, facts, read_parts(parts, facts))
    remove_parts(parts)


@dataclass(frozen=True, slots=True)
class ObservedTitles:
    """Score the observed title of every observation, into the score table."""

    subject: ClassVar[str] = ""
    settings: EvaluationSettings

    @property
    def batches_per_part(self) -> int:
        """As set."""
        return self.settings.batches_per_part

    def tables(self, target: EvaluationTarget) -> tuple[Path, ...]:
        """Return the score table."""
        return (target.table,)

    def info(self, target: EvaluationTarget) -> ScoreTableInfo:
        """Return the metadata of the score table."""
        return target.info

    def room(self, trie: OpenTrie) -> None:
        """Return None: the scored titles are in the careers themselves."""

    def scorer(self, work: Evaluation, model: InferenceModel, trie: OpenTrie) -> ScoreBatch:
        """Return the function that scores one batch of the plan."""
        return lambda batch: self._score_batch(work, model, batch)

    def write(self, work: Evaluation, facts: pa.Table, scores: pa.Table) -> None:
        """Write the score table."""
        table = facts.append_column("title", scores["title"]).append_column("terminated", scores["terminated"])
        write_score_table(table, work.info, work.table)

    def _score_batch(self, work: Evaluation, model: InferenceModel, batch: int) -> pa.Table:
        packed, places = scoring_batch(work.careers, work.plan.batches[batch], work.plan.max_seq_length)
        scores = observation_scores(packed.scatter_to_slots(model.scores(packed)), places.spans)
        return pa.table(
            {
                "career": places.keys[:, 0],
                "position": places.keys[:, 1].astype(np.int32),
                "title": scores[:, 0],
                "terminated": scores[:, 1],
            }
        )


def with_details(info: ScoreTableInfo, details: Mapping[str, str]) -> ScoreTableInfo:
    """Return metadata with more details."""
    return dataclasses.replace(info, details={**info.details, **details})


def observation_facts(careers: CareerTable) -> pa.Table:
    """Return one row per observation of a split: all columns of a score table but the scores, and `career`.

    Rows are in the order of careers in the store, then of jobs.
    """
    num_jobs = careers.num_observations()
    career = np.repeat(np.arange(len(careers)), num_jobs)
    in_row = np.arange(len(career)) - np.repeat(np.cumsum(num_jobs) - num_jobs, num_jobs)
    table = careers.table
    codes = pa.array(careers.vocabulary.codes)
    held_before, occupation = careers.transitions()
    never = held_before == len(codes)
    lengths = pc.subtract(pc.list_flatten(table["title_ends"]), pc.list_flatten(table["title_starts"]))
    fixed = {
        name: table[name].take(pa.array(career))
        for name in ("survey", "person", "birth_year", "gender", "ethnicity", "region")
    }
    columns = {
        "career": pa.array(career),
        "position": pa.array((np.asarray(table["first_position"])[career] + in_row).astype(np.int32)),
        "year": pc.list_flatten(table["years"]),
        "occupation": codes.take(pa.array(occupation)),
        "previous": codes.take(pa.array(np.where(never, 0, held_before), mask=never)),
        "education": pc.list_flatten(table["educations"]),
        "num_tokens": lengths,
        **fixed,
    }
    names = ["career", *(name for name in SCORE_SCHEMA.names if name in columns)]
    return pa.table({name: columns[name] for name in names})
