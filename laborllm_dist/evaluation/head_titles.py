"""Scores of the output layer over titles: one forward of the careers gives the whole distribution of every observation.

So the score table and the table of all titles come from the same pass, which costs what observed titles cost. Titles
are disjoint events without tokens whose probabilities sum to 1: `title`, `terminated` and `normalised` are the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from laborllm_dist.batching.observations import pack_observations, with_titles
from laborllm_dist.config.evaluation import EvaluationSettings
from laborllm_dist.config.model import HEAD_NAMES
from laborllm_dist.errors import ModelError
from laborllm_dist.evaluation.target import EvaluationTarget
from laborllm_dist.evaluation.tasks import Evaluation, OpenTrie, ScoreBatch, with_details
from laborllm_dist.models.inference import InferenceModel
from laborllm_dist.models.safetensors_loading import folder_of
from laborllm_dist.models.title_head import TITLE_HEAD_FILE, TitleHead, read_title_head
from laborllm_dist.tables.log_domain import log_sum_exp
from laborllm_dist.tables.parquet import ScoreTableInfo
from laborllm_dist.tables.scores import NUM_TITLES, TITLE_HEAD_DETAIL, write_score_table
from laborllm_dist.tables.title_distributions import title_table_path, write_title_table


def head_target(target: EvaluationTarget, run: str, *, is_named: bool) -> EvaluationTarget:
    """Return the output layer beside a model as a target, with tables of its own.

    Args:
        target: the model.
        run: name of the run, whose own layer is called by its kind alone.
        is_named: whether the model's name was chosen for these scores.

    Raises:
        ModelError: if the model has no such layer, or one over other titles than those of the run.
    """
    saved = read_title_head(folder_of(target.model))
    if saved.occupations != target.store.vocabulary.codes:
        raise ModelError(
            f"{folder_of(target.model) / TITLE_HEAD_FILE} is an output layer over other titles than those of {run} "
            f"({len(saved.occupations)} there, {len(target.store.vocabulary)} here, or in another order); score it by "
            "its own run (run=...), with data=... on these people",
            code="title-head-of-other-titles",
        )
    name, kind = target.info.model, HEAD_NAMES[saved.head.kind]
    if not is_named:
        name = kind if name == run else f"{name}-{kind}"
    details = {TITLE_HEAD_DETAIL: saved.sha256[:16], NUM_TITLES: str(len(saved.occupations))}
    info = dataclasses.replace(with_details(target.info, details), model=name)
    return dataclasses.replace(target, info=info, table=target.table.with_name(f"{info.split}.{name}.parquet"))


@dataclass(frozen=True, slots=True)
class HeadTitles:
    """Score all titles after every prompt by an output layer, into the score table and the table of titles."""

    subject: ClassVar[str] = ""
    settings: EvaluationSettings
    head_folder: Path

    @property
    def batches_per_part(self) -> int:
        """As set."""
        return self.settings.batches_per_part

    def tables(self, target: EvaluationTarget) -> tuple[Path, ...]:
        """Return the score table, and the table of titles if it is requested."""
        if self.settings.titles == "observed":
            return (target.table,)
        return target.table, title_table_path(target.table, target.info.split)

    def info(self, target: EvaluationTarget) -> ScoreTableInfo:
        """Return the metadata of both tables."""
        return target.info

    def room(self, trie: OpenTrie) -> None:
        """Return None: nothing follows the prompts."""

    def scorer(self, work: Evaluation, model: InferenceModel, trie: OpenTrie) -> ScoreBatch:
        """Return the function that scores one batch of the plan."""
        head = read_title_head(self.head_folder).head.to(model.device)
        return lambda batch: self._score_batch(work, model, head, batch)

    def write(self, work: Evaluation, facts: pa.Table, scores: pa.Table) -> None:
        """Write the tables from the facts and the scores of all observations, in the same order."""
        num_tokens = pa.array(np.zeros(len(facts), dtype=np.int32))
        observed = {"num_tokens": num_tokens, "title": scores["title"], "terminated": scores["title"]}
        write_score_table(_with_columns(facts, observed), work.info, work.table)
        if self.settings.titles == "observed":
            return
        codes, lists = work.careers.vocabulary.codes, scores["distribution"]
        log_p_NT = np.asarray(pc.list_flatten(lists)).reshape(-1, len(codes))
        columns = {
            "mass": pa.array(np.exp(log_sum_exp(log_p_NT, axis=1))),
            "bound": pa.array(np.zeros(len(facts))),
            "normalised": scores["title"],
            "title": lists,
            "terminated": lists,
        }
        write_title_table(
            _with_columns(facts, columns), work.info, codes, title_table_path(work.table, work.info.split)
        )

    def _score_batch(self, work: Evaluation, model: InferenceModel, head: TitleHead, batch: int) -> pa.Table:
        rows = work.plan.batches[batch]
        packed, places = pack_observations(work.careers, rows, work.plan.max_seq_length)
        titles = with_titles(packed, work.careers, rows).titles
        assert titles is not None
        hidden_QD = model.hidden_states(packed, -1, titles.slots_Q)
        log_p_QT = head.distributions(hidden_QD, titles.previous_Q).cpu().numpy()
        if not np.isfinite(log_p_QT).all():
            raise ModelError(
                "the output layer over titles gives log-likelihoods that are not finite; its weights are broken, or "
                "overflow",
                code="non-finite-log-likelihoods",
            )
        columns: dict[str, Any] = {
            "career": pa.array(places.keys[:, 0]),
            "position": pa.array(places.keys[:, 1].astype(np.int32)),
            "title": pa.array(log_p_QT[np.arange(len(log_p_QT)), titles.occupations_Q.numpy()]),
        }
        if self.settings.titles == "all":
            offsets = np.arange(0, log_p_QT.size + 1, log_p_QT.shape[1], dtype=np.int32)
            columns["distribution"] = pa.ListArray.from_arrays(offsets, pa.array(log_p_QT.ravel()))
        return pa.table(columns)


def _with_columns(table: pa.Table, columns: Mapping[str, Any]) -> pa.Table:
    return pa.table({**{name: table[name] for name in table.column_names}, **columns})
