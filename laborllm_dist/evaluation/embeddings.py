"""Hidden states of a model at the prompts of a run's people, one vector per person-year, for models of the user's own.

The units of work are those of an evaluation: packed rows, parts, ranks that claim the next part.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa

from laborllm_dist.batching.title_positions import pack_observations, prompt_slots
from laborllm_dist.careers.splits import SPLITS, Split
from laborllm_dist.config.evaluation import EmbedSettings, EvaluationOverrides, EvaluationSettings, evaluation_of
from laborllm_dist.distributed.context import DistributedContext, exclusive_table
from laborllm_dist.evaluation.hidden_states import layer_number
from laborllm_dist.evaluation.run import (
    describe_evaluation,
    is_there,
    load_checked,
    parts_folder,
    reject_other_details,
    resolve_target,
)
from laborllm_dist.evaluation.target import EvaluatedRun, EvaluationTarget, evaluated_run, with_split, with_whole_model
from laborllm_dist.evaluation.tasks import (
    Evaluation,
    EvaluationPlan,
    OpenTrie,
    ScoreBatch,
    evaluate,
    plan_evaluation,
    with_details,
)
from laborllm_dist.evaluation.title_trie import TitleTrie
from laborllm_dist.models.inference import InferenceModel
from laborllm_dist.models.loading import num_layers_of
from laborllm_dist.store.store import checking_store
from laborllm_dist.tables.embeddings import embedding_table_path, write_embedding_table
from laborllm_dist.tables.parquet import ScoreTableInfo

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Return the hidden state after a layer at the last token of every prompt; layer 0 is the token embedding."""

    subject: ClassVar[str] = "hidden states of "
    settings: EvaluationSettings
    layer: int

    @property
    def batches_per_part(self) -> int:
        """As set."""
        return self.settings.batches_per_part

    def tables(self, target: EvaluationTarget) -> tuple[Path, ...]:
        """Return the file of the table."""
        return (embedding_table_path(target.table, target.info.split, self.layer),)

    def info(self, target: EvaluationTarget) -> ScoreTableInfo:
        """Return the metadata of the table."""
        return with_details(target.info, {"layer": str(self.layer)})

    def room(self, trie: OpenTrie) -> None:
        """Return None: nothing follows the prompts."""

    def scorer(self, work: Evaluation, model: InferenceModel, trie: OpenTrie) -> ScoreBatch:
        """Return the function that makes the vectors of one batch of the plan."""
        return lambda batch: self._vectors(work, model, batch)

    def write(self, work: Evaluation, facts: pa.Table, scores: pa.Table) -> None:
        """Write the table."""
        write_embedding_table(facts.append_column("vector", scores["vector"]), work.info, work.table)

    def _vectors(self, work: Evaluation, model: InferenceModel, batch: int) -> pa.Table:
        packed, places = pack_observations(work.careers, work.plan.batches[batch], work.plan.max_seq_length)
        slots_P = prompt_slots(places, packed.token_ids_BT.shape[1])
        vectors_PD = model.hidden_states(packed, self.layer, slots_P).float().cpu().numpy()
        offsets = np.arange(0, vectors_PD.size + 1, vectors_PD.shape[1], dtype=np.int32)
        return pa.table(
            {
                "career": places.keys[:, 0],
                "position": places.keys[:, 1].astype(np.int32),
                "vector": pa.ListArray.from_arrays(offsets, pa.array(vectors_PD.ravel())),
            }
        )


def embedded_run(settings: EmbedSettings) -> EvaluatedRun:
    """Read the run whose people are embedded.

    Raises:
        RunError: if there is no such run.
        SettingsError: if what is changed does not go together with the run's own settings.
    """
    overrides: EvaluationOverrides = evaluation_of(settings, titles="observed", split=None, max_unscored_mass=None)
    return with_whole_model(evaluated_run(settings.run, overrides))


def embed_run(settings: EmbedSettings, run: EvaluatedRun, ranks: DistributedContext) -> list[Path]:
    """Write the table of vectors of every requested split. Collective.

    Existing tables are kept.

    Returns:
        The tables' paths.

    Raises:
        LaborError: if the run is unfinished, the model is missing, it has no such layer, or a career fits no row or
            context.
    """
    splits: tuple[Split, ...] = SPLITS if settings.split == "all" else (settings.split,)
    return [
        _embed_split(settings, dataclasses.replace(run, settings=with_split(run.settings, split)), ranks)
        for split in splits
    ]


def _embed_split(settings: EmbedSettings, run: EvaluatedRun, ranks: DistributedContext) -> Path:
    evaluation = run.settings.evaluation
    target = ranks.run_on_main(
        lambda: resolve_target(settings.model, settings.prompt, settings.truncation, run, ranks), EvaluationTarget
    )
    task = Embeddings(evaluation, ranks.run_on_main(lambda: layer_number(settings.layer, num_layers_of(target.model))))
    (path,), info, careers = task.tables(target), task.info(target), target.store.careers(evaluation.split)
    checked: Sequence[Split] = (evaluation.split,) if ranks.is_main else ()
    ranks.run_on_main(lambda: path.parent.mkdir(exist_ok=True))
    with checking_store(target.store, checked) as check, exclusive_table(ranks, path):
        if ranks.run_on_main(lambda: _is_done(path, info)):
            return path
        plan = ranks.run_on_main(lambda: plan_evaluation(careers, evaluation), EvaluationPlan)
        work = Evaluation(task, careers, plan, info, parts_folder(path, info, plan), path)
        model = load_checked(target, run, ranks)
        ranks.run_on_main(check.wait)
        logger.info(describe_evaluation(work, ranks))
        evaluate(work, model, _no_titles, ranks)
        logger.info(f"embed: {path}")
    return path


def _is_done(path: Path, info: ScoreTableInfo) -> bool:
    if is_there(path, info):
        logger.info(f"embed: {info.model} is there ({path})")
        return True
    reject_other_details(path, info)
    return False


def _no_titles() -> TitleTrie:
    raise AssertionError("hidden states need no tree of titles")
