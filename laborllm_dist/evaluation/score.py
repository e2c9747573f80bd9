"""Score every observation of a split: the observed titles into the score table, all titles into the table of titles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from laborllm_dist.batching.batch import pack_batch
from laborllm_dist.batching.observations import TitleSpans, observation_scores, scoring_batch, title_places
from laborllm_dist.config.run import EvaluationSettings
from laborllm_dist.distributed.context import DistributedContext
from laborllm_dist.errors import TitleBoundaryError
from laborllm_dist.evaluation.all_titles import Prompts, score_titles
from laborllm_dist.evaluation.plan import EvaluationPlan
from laborllm_dist.evaluation.resumable_parts import ResumableJob, finish_parts, read_parts, remove_parts
from laborllm_dist.evaluation.title_trie import TitleTrie
from laborllm_dist.models.inference import InferenceModel
from laborllm_dist.models.tree_inference import PrefixState
from laborllm_dist.store.store import CareerTable
from laborllm_dist.tables.parquet import ScoreTableInfo
from laborllm_dist.tables.scores import SCORE_SCHEMA, write_score_table
from laborllm_dist.tables.title_distributions import write_title_table


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What is scored, and where parts and table go. `info` is everything that decides the numbers."""

    careers: CareerTable
    plan: EvaluationPlan
    info: ScoreTableInfo
    parts: Path
    table: Path


def evaluate(work: Evaluation, model: InferenceModel, ranks: DistributedContext, say: Callable[[str], None]) -> None:
    """Score the observed titles: the parts that have no file yet, then all into the score table. Collective.

    Raises:
        ScoreTableError: if the parts do not hold every observation exactly once.
    """
    parted = ResumableJob(work.parts, work.plan.num_parts, lambda part: _observed_part(work, model, part), model.rest)
    finish_parts(parted, ranks, say)
    ranks.run_on_main(lambda: _merge_observed(work, parted))


def evaluate_titles(
    work: Evaluation,
    trie: TitleTrie,
    wanted: EvaluationSettings,
    model: InferenceModel,
    ranks: DistributedContext,
    say: Callable[[str], None],
) -> None:
    """Score all titles after the prompt of every observation, into the table of titles. Collective.

    Raises:
        ScoreTableError: if the parts do not hold every observation exactly once.
        TitleBoundaryError: if the observed titles are other tokens than those of the tree.
    """

    def make(part: int) -> pa.Table:
        units = [_titles_of_unit(work, trie, wanted, model, unit) for unit in work.plan.units_of_part(part)]
        return pa.concat_tables(units)

    parted = ResumableJob(work.parts, work.plan.num_parts, make, model.rest)
    finish_parts(parted, ranks, say)
    ranks.run_on_main(lambda: _merge_titles(work, parted))


def _observed_part(work: Evaluation, model: InferenceModel, part: int) -> pa.Table:
    keys, scores = [], []
    for unit in work.plan.units_of_part(part):
        batch, places = scoring_batch(work.careers, work.plan.units[unit], work.plan.max_seq_length)
        keys.append(places.keys)
        scores.append(observation_scores(batch.scatter_to_slots(model.scores(batch)), places.spans))
    careers, positions = np.concatenate(keys).T
    title, terminated = np.concatenate(scores).T
    return pa.table(
        {"career": careers, "position": positions.astype(np.int32), "title": title, "terminated": terminated}
    )


def _merge_observed(work: Evaluation, parted: ResumableJob) -> None:
    expected = observation_facts(work.careers)
    scored = read_parts(parted, expected)
    table = expected.append_column("title", scored["title"]).append_column("terminated", scored["terminated"])
    write_score_table(table, work.info, work.table)
    remove_parts(parted)


def _titles_of_unit(
    work: Evaluation, trie: TitleTrie, wanted: EvaluationSettings, model: InferenceModel, unit: int
) -> pa.Table:
    careers, rows = work.careers, work.plan.units[unit]
    batch = pack_batch([[careers.token_ids(career) for career in row] for row in rows], work.plan.max_seq_length)
    places = title_places(careers, rows)
    observed_P = careers.occupations_of([career for row in rows for career in row])
    check_observed(batch.token_ids_BT.numpy(), places, trie, observed_P)
    prompts = Prompts(np.stack([places.spans[:, 0], places.starts, places.spans[:, 1]], axis=1), observed_P)
    found = score_titles(
        model.edges,
        PrefixState(batch.to(model.device)),
        prompts,
        trie,
        tolerance=wanted.tolerance,
        max_tree_tokens=wanted.max_tree_tokens,
    )
    own_P = found.terminated_PT[np.arange(len(observed_P)), observed_P]
    return pa.table(
        {
            "career": places.keys[:, 0],
            "position": places.keys[:, 1].astype(np.int32),
            "mass": np.exp(found.log_mass_P()),
            "bound": found.bound_P,
            "normalised": own_P - found.log_whole_P(),
            "title": _lists(found.title_PT),
            "terminated": _lists(found.terminated_PT),
        }
    )


def _lists(values_PT: npt.NDArray[np.float64]) -> pa.ListArray:
    flat = pa.array(values_PT.ravel(), mask=np.isnan(values_PT).ravel())
    return pa.ListArray.from_arrays(np.arange(0, values_PT.size + 1, values_PT.shape[1], dtype=np.int32), flat)


def check_observed(
    token_ids_BT: npt.NDArray[np.int64], places: TitleSpans, trie: TitleTrie, observed_P: npt.NDArray[np.int64]
) -> None:
    """Compare the tokens of the observed titles in packed rows with their paths in the tree.

    Raises:
        TitleBoundaryError: if one differs, since its probability would not be that of its text.
    """
    for (row, start, end), title in zip(places.spans.tolist(), observed_P.tolist(), strict=True):
        if tuple(token_ids_BT[row, start : end + 1].tolist()) != trie.closed_tokens(title):
            raise TitleBoundaryError(
                f"title {title} is other tokens inside a career than alone after a prompt; "
                "the distribution over titles wants a tokenizer that cuts titles the same everywhere"
            )


def _merge_titles(work: Evaluation, parted: ResumableJob) -> None:
    expected = observation_facts(work.careers)
    scored = read_parts(parted, expected)
    for name in ("mass", "bound", "normalised", "title", "terminated"):
        expected = expected.append_column(name, scored[name])
    write_title_table(expected, work.info, work.careers.vocabulary.codes, work.table)
    remove_parts(parted)


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
