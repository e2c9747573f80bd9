"""How many observations are scored a second, in bf16: of the titles observed, and of all 335 (random tokens)?"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Iterator

import numpy as np
from records import Record
from utilization import OBSERVATIONS, Machine, dollars_per_million, find_machine

from gpu_suite.workload import BF16, SHORTEST, new_model, rows_of_careers, settings_for, synchronize, workload_of
from laborllm_dist.batching.batch import pack_batch
from laborllm_dist.distributed.context import init_distributed
from laborllm_dist.evaluation.all_titles import Prompts, score_titles
from laborllm_dist.evaluation.title_trie import TitleTrie, build_trie
from laborllm_dist.models.dims import ModelShape
from laborllm_dist.models.inference import InferenceModel, wrap_for_inference
from laborllm_dist.models.tree_inference import PrefixState

NUM_TITLES = 335
ROWS, ROW_LENGTH = 4, 2048
WARM_UP, TIMED = 2, 6


def evaluate(shape: ModelShape) -> Iterator[Record]:
    """Measure both with one model."""
    settings = settings_for(shape, *BF16)
    with init_distributed(settings.ranks) as ranks:
        model = new_model(settings, shape, ranks.device)
        scored = wrap_for_inference(model.hugging_face, settings.compute)
        machine = find_machine(ranks)
        yield priced(observed_titles(scored, shape), machine)
        yield priced(all_titles(scored, shape, settings.evaluation.max_tree_tokens), machine)


def priced(record: Record, machine: Machine | None) -> Record:
    """Return a record with its price, where that of the machine is known."""
    if machine is None:
        return record
    dollars = dollars_per_million(record.numbers["observations_per_second"], machine)
    return dataclasses.replace(record, numbers={**record.numbers, "dollars_per_million_observations": dollars})


def observed_titles(model: InferenceModel, shape: ModelShape) -> Record:
    """Score every token of careers, which gives the observed titles."""
    units = [rows_of_careers(ROWS, ROW_LENGTH, shape.num_ids, seed) for seed in range(WARM_UP + TIMED)]
    seconds = []
    for unit in units:
        batch = pack_batch(unit, ROW_LENGTH)
        synchronize()
        started = time.perf_counter()
        model.scores(batch)
        synchronize()
        seconds.append(time.perf_counter() - started)
    work, taken = workload_of(units[WARM_UP:], ROW_LENGTH), sum(seconds[WARM_UP:])
    numbers = {
        "observations_per_second": OBSERVATIONS * len(work.lengths) / taken,
        "tokens_per_second": work.tokens / taken,
    }
    return Record("evaluate", "observed titles", "measured", numbers)


def all_titles(model: InferenceModel, shape: ModelShape, max_tree_tokens: int) -> Record:
    """Score all titles after the prompts of one career."""
    trie = random_titles(shape.num_ids)
    (career,) = rows_of_careers(1, ROW_LENGTH, shape.num_ids, seed=1)[0][:1]
    stops = np.linspace(SHORTEST, len(career) - 1, OBSERVATIONS).astype(int)
    prefixes_P3 = np.stack([np.zeros_like(stops), np.zeros_like(stops), stops], axis=1)
    prompts = Prompts(prefixes_P3, np.full(OBSERVATIONS, -1))
    seconds = []
    for _ in range(3):
        synchronize()
        started = time.perf_counter()
        prefix = PrefixState(pack_batch([[career]], len(career)).to(model.device))
        score_titles(model.edges, prefix, prompts, trie, tolerance=0.0, max_tree_tokens=max_tree_tokens)
        synchronize()
        seconds.append(time.perf_counter() - started)
    median = statistics.median(seconds)
    numbers = {
        "observations_per_second": OBSERVATIONS / median, "prefixes": trie.num_nodes,
        "prefixes_per_second": OBSERVATIONS * trie.num_nodes / median,
    }  # fmt: skip
    return Record("evaluate", f"all {NUM_TITLES} titles", "measured", numbers)


def random_titles(num_ids: int) -> TitleTrie:
    """Return titles of six or seven tokens, with shared beginnings, as those of occ1990dd have."""
    random = np.random.default_rng(1)
    titles: set[tuple[int, ...]] = set()
    while len(titles) < NUM_TITLES:
        rest = random.integers(1, num_ids, random.integers(4, 6))
        titles.add((*random.integers(1, 41, 2).tolist(), *rest.tolist()))
    return build_trie(sorted(titles), 0)
