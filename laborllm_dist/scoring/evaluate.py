"""Score every observation of a split: each rank its parts, then one merge into the score table."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from laborllm_dist.engine.language_model import CareerLanguageModel
from laborllm_dist.engine.ranks import Ranks
from laborllm_dist.errors import ScoreTableError
from laborllm_dist.score_table import SCORE_SCHEMA, ScoreTableInfo, write_score_table
from laborllm_dist.scoring.observations import observation_scores, scoring_batch
from laborllm_dist.scoring.units import EvaluationPlan, part_path, write_part
from laborllm_dist.tokens.store import CareerRows


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What is scored, and where parts and table go. `info` is everything that decides the numbers."""

    careers: CareerRows
    plan: EvaluationPlan
    info: ScoreTableInfo
    parts: Path
    table: Path


def evaluate(work: Evaluation, model: CareerLanguageModel, ranks: Ranks, say: Callable[[str], None]) -> None:
    """Score the parts that have no file yet, and merge all into the score table. Collective.

    Raises:
        ScoreTableError: if the parts do not hold every observation exactly once.
    """
    model.eval()
    missing = ranks.on_first(lambda: _missing_parts(work))
    mine = missing[ranks.rank :: ranks.world_size]
    started, num_scored = monotonic(), 0
    for done, part in enumerate(mine, start=1):
        num_scored += score_part(work, model, part, ranks.device)
        speed = num_scored * ranks.world_size / (monotonic() - started)
        say(f"evaluate: part {done}/{len(mine)} of each rank  {speed:,.0f} observations/s")
    ranks.barrier()
    ranks.on_first(lambda: merge_parts(work))


def score_part(work: Evaluation, model: CareerLanguageModel, part: int, device: torch.device) -> int:
    """Score one part and write its file; return the number of observations."""
    keys, scores = [], []
    for unit in work.plan.units_of_part(part):
        batch, places = scoring_batch(work.careers, work.plan.units[unit], work.plan.row_length)
        with torch.inference_mode():
            _, scores_N = model(batch.to(device))
        keys.append(places.keys)
        scores.append(observation_scores(batch.at_their_slots(scores_N), places.spans))
    all_keys = np.concatenate(keys)
    write_part(part_path(work.parts, part), all_keys, np.concatenate(scores))
    return len(all_keys)


def merge_parts(work: Evaluation) -> None:
    """Put all parts together into the score table, and remove them.

    Raises:
        ScoreTableError: if an observation is missing or stands twice.
    """
    tables = [pq.read_table(part_path(work.parts, part)) for part in range(work.plan.num_parts)]
    scored = pa.concat_tables(tables).sort_by([("career", "ascending"), ("position", "ascending")])
    expected = observation_facts(work.careers)
    same = scored.num_rows == expected.num_rows and all(
        scored[name].combine_chunks().equals(expected[name].combine_chunks()) for name in ("career", "position")
    )
    if not same:
        raise ScoreTableError(
            f"the parts in {work.parts} hold {scored.num_rows:,} observations, the split has {expected.num_rows:,}, or "
            "not the same ones; delete the folder and evaluate again"
        )
    table = expected.append_column("title", scored["title"]).append_column("terminated", scored["terminated"])
    write_score_table(table, work.info, work.table)
    shutil.rmtree(work.parts)


def observation_facts(careers: CareerRows) -> pa.Table:
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


def _missing_parts(work: Evaluation) -> list[int]:
    work.parts.mkdir(parents=True, exist_ok=True)
    return [part for part in range(work.plan.num_parts) if not part_path(work.parts, part).is_file()]
