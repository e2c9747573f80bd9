"""Observations a second: titles scored here, by lm-evaluation-harness, and by a scorer that keeps the history's cache.

    make peers && python benchmarks/evaluation_throughput.py --run runs/NAME [--careers N] [--observations N]

One process of `--threads` threads, fp32, the run's own export and test people. Every system gets the same requests:

    observed   every observed title of some people, shortest to longest
    all        all titles after the last prompt of some of them, complete
    bounded    the same for every prompt of some of them, complete and with a tolerance

lm-evaluation-harness scores ("context", " title") pairs through its own model class, 8 in a batch. The cached scorer
forwards a history once, then every title by itself after the kept cache, titles of about one length in batches of 32:
what cappr and the like do. Its numbers and ours are compared, too. Systems take turns; the median of `--repeats` counts
(lm-evaluation-harness, which takes minutes, runs once).
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from transformers import DynamicCache

from laborllm_dist.batching.batch import pack_batch
from laborllm_dist.batching.packing import pack_careers
from laborllm_dist.batching.title_positions import observation_scores, scoring_batch, title_places
from laborllm_dist.config.model import ModelSettings
from laborllm_dist.evaluation.all_titles import Prompts, TitleScores, score_titles
from laborllm_dist.evaluation.title_trie import TitleTrie, title_trie
from laborllm_dist.io.run_directory import read_run
from laborllm_dist.models.inference import InferenceModel, wrap_for_inference
from laborllm_dist.models.loading import pretrained_model
from laborllm_dist.models.tree_inference import Nodes, PrefixState
from laborllm_dist.store.store import TOKENIZER, CareerTable, open_store
from laborllm_dist.store.tokenizer import load_tokenizer
from laborllm_dist.text.template import compile_template, render_career

BATCH, CACHED_BATCH = 8, 32
ROW_LENGTH = 2048


class Counted:
    """An evaluated model that counts the tokens it forwards."""

    def __init__(self, model: InferenceModel) -> None:
        self.model, self.num_tokens = model, 0

    def edges(self, prefix: PrefixState, nodes: Nodes | None, slots_Q: torch.Tensor, edges: Any) -> torch.Tensor:
        self.num_tokens += prefix.batch.token_ids_BT.numel() if nodes is None else len(nodes)
        return self.model.edges(prefix, nodes, slots_Q, edges)


class EvaluationTarget:
    """A run's model, its test people, and the texts of their prompts."""

    def __init__(self, run: Path) -> None:
        folder, settings, store_path = read_run(run)
        store = open_store(store_path)
        self.path, self.rows, self.titles = folder.export, store.careers("test"), store.vocabulary.titles
        self.tokenizer = load_tokenizer(str(store.folder / TOKENIZER))
        self.template, self.title_of = compile_template(settings.template), store.vocabulary.title_of()
        self.compute = settings.compute
        # The harness adds no mark where the tokenizer adds none; written out, it has the one that we put in front.
        marks = self.tokenizer.hugging_face("", add_special_tokens=True)["input_ids"]
        self.mark = "" if marks else self.tokenizer.hugging_face.decode(list(self.tokenizer.leading))
        self.trie = title_trie(self.prompts(0)[0].removeprefix(self.mark), store.vocabulary, self.tokenizer)

    def open(self) -> torch.nn.Module:
        settings = ModelSettings("subject", str(self.path), None, None, None, 0.0, "safetensors")
        model: torch.nn.Module = pretrained_model(settings, dtype=torch.float32)
        return model

    def prompts(self, row: int) -> list[str]:
        """Return the prompt of every observation of a career, as the harness gets it."""
        (text,) = render_career(self.rows.history(row), self.template, self.title_of)
        return [self.mark + text.text[:start] for start, _ in text.title_spans]

    def observed(self, row: int) -> list[str]:
        """Return what was observed after each prompt."""
        return [f" {self.title_of[job.occupation]}" for job in self.rows.history(row).jobs]


def spread(rows: CareerTable, number: int) -> list[int]:
    """Return so many careers of lengths spread evenly over the split."""
    order = np.argsort(rows.num_tokens(), kind="stable")
    return [int(row) for row in order[((np.arange(number) + 0.5) * len(order) / number).astype(int)]]


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.monotonic()
    result = work()
    return time.monotonic() - started, result


def ours_observed(model: InferenceModel, rows: CareerTable, careers: list[int]) -> np.ndarray:
    """Score observed titles as an evaluation does, in packed rows; return `title`, career by career."""
    lengths = rows.num_tokens()[careers].tolist()
    scores_of: dict[int, np.ndarray] = {}
    for row in pack_careers(lengths, min(ROW_LENGTH, sum(lengths))).rows:
        members = [careers[place] for place in row]
        batch, places = scoring_batch(rows, [members], sum(lengths[place] for place in row))
        scores = observation_scores(batch.scatter_to_slots(model.scores(batch)), places.spans)[:, 0]
        scores_of |= {career: scores[places.keys[:, 0] == career] for career in members}
    return np.concatenate([scores_of[career] for career in careers])


def ours_all(
    model: Any, subject: EvaluationTarget, careers: list[int], *, only_last: bool, tolerance: float = 0.0
) -> list[TitleScores]:
    """Score all titles after the last prompt or every prompt of careers."""
    results = []
    for career in careers:
        places = title_places(subject.rows, [[career]])
        prefixes_P3 = places.prefixes_P3
        observed = subject.rows.occupations_of([career])
        which = slice(-1, None) if only_last else slice(None)
        # Of the career, what the prompts need.
        ids = subject.rows.token_ids(career)[: int(prefixes_P3[which][:, 2].max())]
        prefix = PrefixState(pack_batch([[ids]], len(ids)))
        prompts = Prompts(prefixes_P3[which], observed[which])
        results.append(
            score_titles(model.edges, prefix, prompts, subject.trie, tolerance=tolerance, max_tree_tokens=4096)
        )
    return results


def cached_all(model: Any, subject: EvaluationTarget, career: int) -> np.ndarray:
    """Score all titles after a career's last prompt, each by itself after the history's cache; return `terminated`."""
    trie: TitleTrie = subject.trie
    start = int(subject.rows.title_spans(career)[-1, 0])
    history = torch.from_numpy(subject.rows.token_ids(career)[:start].astype(np.int64))[None]
    titles = []
    for end in trie.ends_T:
        path = trie.paths_MA[end]
        titles.append([*trie.tokens_M[path[path >= 0]].tolist(), trie.terminator])
    order = sorted(range(len(titles)), key=lambda title: len(titles[title]))
    scores = np.zeros(len(titles))
    with torch.inference_mode():
        first = model(input_ids=history, use_cache=True)
        prefix = [(layer.keys, layer.values) for layer in first.past_key_values.layers]
        before = torch.log_softmax(first.logits[0, -1].float(), dim=-1)
        for place in range(0, len(order), CACHED_BATCH):
            batch = order[place : place + CACHED_BATCH]
            longest = len(titles[batch[-1]]) - 1  # the line's end is never forwarded
            ids = torch.zeros(len(batch), longest, dtype=torch.long)
            for row, title in enumerate(batch):
                ids[row, : len(titles[title]) - 1] = torch.tensor(titles[title][:-1])
            cache = DynamicCache()
            for layer, (keys, values) in enumerate(prefix):
                cache.update(keys.expand(len(batch), -1, -1, -1), values.expand(len(batch), -1, -1, -1), layer)
            logits = model(input_ids=ids, past_key_values=cache, use_cache=True).logits.float()
            log_p = torch.log_softmax(logits, dim=-1)
            for row, title in enumerate(batch):
                tokens = torch.tensor(titles[title])
                after = log_p[row, torch.arange(len(tokens) - 1), tokens[1:]]
                scores[title] = float(before[tokens[0]]) + float(after.double().sum())
    return scores


def peer_scores(peer: Any, pairs: list[tuple[str, str]]) -> np.ndarray:
    """Return lm-evaluation-harness's log-likelihoods."""
    from lm_eval.api.instance import Instance

    requests = [Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=at) for at, pair in enumerate(pairs)]
    return np.array([nats for nats, _ in peer.loglikelihood(requests, disable_tqdm=True)])


def main() -> None:
    """Run all systems and print their speeds, ratios and differences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--careers", type=int, default=6, help="people whose observed titles are scored")
    parser.add_argument("--observations", type=int, default=2, help="prompts after which all titles are scored")
    parser.add_argument("--bounded-careers", type=int, default=2, help="people scored complete and bounded")
    parser.add_argument("--tolerance", type=float, default=1e-3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    from lm_eval.models.huggingface import HFLM

    subject = EvaluationTarget(arguments.run)
    trie, rows = subject.trie, subject.rows
    model = wrap_for_inference(subject.open(), subject.compute)
    plain = subject.open().eval()
    peer = HFLM(pretrained=str(subject.path), device="cpu", dtype="float32", batch_size=BATCH, logits_cache=False)
    print(
        f"{sum(p.numel() for p in plain.parameters()):,} parameters, fp32, {arguments.threads} threads; "
        f"{len(trie.ends_T)} titles: {int(trie.depths_M[trie.ends_T].sum()):,} tokens, {trie.num_nodes:,} prefixes"
    )

    def compare(name: str, ours: list[float], peers: dict[str, list[float]], number: int) -> None:
        speed = number / statistics.median(ours)
        print(f"{name}: ours {speed:.2f} observations/s ({number / max(ours):.2f} to {number / min(ours):.2f})")
        for other, seconds in peers.items():
            print(f"    {other} {number / statistics.median(seconds):.3f}; ours is "
                  f"{statistics.median(seconds) / statistics.median(ours):.1f} times it", flush=True)  # fmt: skip

    careers = spread(rows, arguments.careers)
    pairs = [pair for row in careers for pair in zip(subject.prompts(row), subject.observed(row), strict=True)]
    runs = [timed(lambda: ours_observed(model, rows, careers)) for _ in range(arguments.repeats)]
    peer_seconds, theirs = timed(lambda: peer_scores(peer, pairs))
    runs += [timed(lambda: ours_observed(model, rows, careers))]
    compare("observed titles", [run[0] for run in runs], {"lm-evaluation-harness": [peer_seconds]}, len(pairs))
    print(f"    {len(pairs)} requests, largest difference {np.abs(runs[0][1] - theirs).max():.1e} nats")

    sampled = spread(rows, arguments.observations)
    counted = Counted(model)
    ours_runs, cached_runs = [], []
    for _ in range(arguments.repeats):
        ours_runs.append(timed(lambda: ours_all(counted, subject, sampled, only_last=True)))
        cached_runs.append(timed(lambda: [cached_all(plain, subject, row) for row in sampled]))
    pairs = [(subject.prompts(row)[-1], f" {title}") for row in sampled for title in subject.titles]
    peer_seconds, theirs = timed(lambda: peer_scores(peer, pairs))
    distinct = sum(int(rows.title_spans(row)[-1, 0]) + trie.num_nodes for row in sampled) * arguments.repeats
    own_scores = ours_runs[0][1]
    compare(
        "all titles, complete",
        [run[0] for run in ours_runs],
        {"lm-evaluation-harness": [peer_seconds], "cached history, title by title": [run[0] for run in cached_runs]},
        len(sampled),
    )
    print(f"    {len(pairs)} requests; {counted.num_tokens:,} tokens forwarded, {counted.num_tokens / distinct:.4f} of "
          f"the distinct (history, prefix) count")  # fmt: skip
    title = np.concatenate([each.title_PT.ravel() for each in own_scores])
    closed = np.concatenate([each.terminated_PT.ravel() for each in own_scores])
    print(f"    largest difference: {np.abs(title - theirs).max():.1e} nats to lm-evaluation-harness, "
          f"{np.abs(closed - np.concatenate(cached_runs[0][1])).max():.1e} to the cached scorer")  # fmt: skip

    people = spread(rows, arguments.bounded_careers)
    number = int(rows.num_observations()[people].sum())
    complete_runs, bounded_runs, counting = [], [], Counted(model)
    for _ in range(arguments.repeats):
        complete_runs.append(timed(lambda: ours_all(model, subject, people, only_last=False)))
        counting.num_tokens = 0
        bounded_runs.append(
            timed(lambda: ours_all(counting, subject, people, only_last=False, tolerance=arguments.tolerance))
        )
    compare(
        f"all titles, tolerance {arguments.tolerance:g}, {number} observations of {len(people)} people",
        [run[0] for run in bounded_runs],
        {"complete": [run[0] for run in complete_runs]},
        number,
    )
    errors, bounds = [], []
    for whole, part in zip(complete_runs[0][1], bounded_runs[0][1], strict=True):
        missing = np.exp(whole.terminated_PT) - np.exp(np.nan_to_num(part.terminated_PT, nan=-np.inf))
        errors.append(np.abs(missing).max(axis=1))
        bounds.append(part.bound_P)
    nodes = counting.num_tokens - int(rows.num_tokens()[people].sum())
    largest, bound = np.concatenate(errors), np.concatenate(bounds)
    within = int((largest <= bound + 1e-6).sum())
    print(f"    {nodes / number:,.0f} of {trie.num_nodes:,} prefixes an observation")
    print(f"    largest error {largest.max():.1e}, bound {bound.max():.1e}; {within} of {number} within their bound")


if __name__ == "__main__":
    main()
