"""Scores of the output layer over titles: one forward of the careers gives the whole distribution of every observation.

So the score table and the table of all titles come from the same pass, which costs what observed titles cost. Titles
are disjoint events without tokens whose probabilities sum to 1: `title`, `terminated` and `normalised` are the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from laborllm_dist.batching.batch import PackedBatch
from laborllm_dist.batching.title_positions import pack_observations, with_titles
from laborllm_dist.config.evaluation import EvaluationSettings
from laborllm_dist.config.model import HEAD_NAMES, ModelSettings
from laborllm_dist.errors import ModelError
from laborllm_dist.evaluation.all_titles import Prompts, TitleScores, neighbors
from laborllm_dist.evaluation.target import EvaluationTarget
from laborllm_dist.evaluation.tasks import Evaluation, OpenTrie, ScoreBatch, with_details
from laborllm_dist.evaluation.title_trie import Floats
from laborllm_dist.models.inference import InferenceModel
from laborllm_dist.models.safetensors_loading import folder_of
from laborllm_dist.models.title_head import TITLE_HEAD_FILE, SavedTitleHead, TitleHead, read_title_head
from laborllm_dist.models.tree_inference import PrefixState
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
    saved = open_title_head(target.model, target.store.vocabulary.codes, run)
    name = target.info.model if is_named else name_of_head(saved.head, target.info.model, run)
    info = dataclasses.replace(with_details(target.info, head_details(saved)), model=name)
    return dataclasses.replace(target, info=info, table=target.table.with_name(f"{info.split}.{name}.parquet"))


def open_title_head(model: ModelSettings, occupations: Sequence[str], run: str) -> SavedTitleHead:
    """Return the output layer beside a model.

    Args:
        model: whose weights lie in a folder or on the hub.
        occupations: codes of the run's titles.
        run: its name.

    Raises:
        ModelError: if the model has no such layer, or one over other titles.
    """
    saved = read_title_head(folder_of(model))
    if saved.occupations != tuple(occupations):
        raise ModelError(
            f"{folder_of(model) / TITLE_HEAD_FILE} is an output layer over other titles than those of {run} "
            f"({len(saved.occupations)} there, {len(occupations)} here, or in another order); score it by "
            "its own run (run=...), with data=... on these people",
            code="title-head-of-other-titles",
        )
    return saved


def name_of_head(head: TitleHead, model: str, run: str) -> str:
    """Return an output layer's name in tables: a run's own is called by its kind alone."""
    kind = HEAD_NAMES[head.kind]
    return kind if model == run else f"{model}-{kind}"


def head_details(saved: SavedTitleHead) -> dict[str, str]:
    """Return what a table says of the output layer that its numbers are from."""
    return {TITLE_HEAD_DETAIL: saved.sha256[:16], NUM_TITLES: str(len(saved.occupations))}


def score_by_head(
    model: InferenceModel, batch: PackedBatch, prompts: Prompts, head: TitleHead, settings: EvaluationSettings
) -> TitleScores:
    """Score all titles after the prompts of a batch, which know the titles before them.

    Histories are forwarded once, then the tokens between a history and its titles, about `max_tree_tokens` at a time.
    """
    assert prompts.previous_P is not None
    if prompts.suffixes is None:
        slots_P = torch.from_numpy(prompts.last_slots_P(batch.token_ids_BT.shape[1]))
        hidden_PD = model.hidden_states(batch, -1, slots_P)
    else:
        state, lengths_P = PrefixState(batch.to(model.device)), np.array([len(each) for each in prompts.suffixes])
        model.hidden_states_after(state, None, torch.zeros(0, dtype=torch.int64))
        parts: list[Tensor] = []
        for group in neighbors(lengths_P, settings.max_tree_tokens):
            nodes = prompts.part(group).suffix_nodes(num_before=0)
            last_P = torch.from_numpy(np.cumsum(lengths_P[group]) - 1)
            parts.append(model.hidden_states_after(state, nodes, last_P))
            state.drop_nodes()
        hidden_PD = torch.cat(parts)
    log_p_PT = _distributions(head, hidden_PD, torch.from_numpy(prompts.previous_P))
    return TitleScores(log_p_PT, log_p_PT, np.full(len(prompts), -np.inf))


def _distributions(head: TitleHead, hidden_QD: Tensor, previous_Q: Tensor) -> Floats:
    """Return log P of all titles in nats, [Q, titles].

    Raises:
        ModelError: if one is not finite.
    """
    log_p_QT: Floats = head.distributions(hidden_QD, previous_Q).cpu().numpy()
    if not np.isfinite(log_p_QT).all():
        raise ModelError(
            "the output layer over titles gives log-likelihoods that are not finite; its weights are broken, or "
            "overflow",
            code="non-finite-log-likelihoods",
        )
    return log_p_QT


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
        log_p_QT = _distributions(head, model.hidden_states(packed, -1, titles.slots_Q), titles.previous_Q)
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
