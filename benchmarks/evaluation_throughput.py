"""Observations a second: titles scored here, by lm-evaluation-harness, and by a scorer that keeps the history's cache.

    make peers && python benchmarks/evaluation_throughput.py [--run runs/NAME] [--careers N] [--observations N]

One process of `--threads` threads, fp32, the run's own export and test people; without a run, a model of 45 million
weights that has seen a few synthetic careers. Every system gets the same requests:

    observed   every observed title of some people, shortest to longest
    all        all titles after the last prompt of some of them, complete
    bounded    the same for every prompt of some of them, complete and with a tolerance

lm-evaluation-harness scores ("context", " title") pairs through its own model class by its defaults, 8 in a batch:
it sorts requests by length, and titles that differ in their last token alone cost it one forward (`logits_cache`). Its
time includes that of tokenizing the pairs; ours starts from the token store, as an evaluation does. The cached scorer
forwards a history once, then every title by itself after the kept cache, titles of about one length in batches of 32:
what cappr and the like do. Its numbers and ours are compared, too. Systems take turns, `--repeats` times; the harness,
which takes minutes, runs once, and the ratio to it is that of its seconds to the mean of ours right before and after.
Its time is that of its requests, which are independent: with `--every 5` it gets a fifth of all titles, and counts as
having scored a fifth of the observations.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from ranks import run_ranks
from records import PROJECT, Record, RecordFile, goal
from transformers import DynamicCache
from utilization import Machine, dollars_per_hour, dollars_per_million, probe_cpu

from laborllm_dist.batching.batch import pack_batch
from laborllm_dist.batching.packing import pack_careers
from laborllm_dist.batching.title_positions import observation_scores, scoring_batch, title_places
from laborllm_dist.config.model import ModelSettings
from laborllm_dist.evaluation.all_titles import Prompts, TitleScores, score_titles
from laborllm_dist.evaluation.title_trie import TitleTrie, title_trie
from laborllm_dist.io.run_directory import read_run
from laborllm_dist.models.inference import InferenceModel, wrap_for_inference
from laborllm_dist.models.loading import num_parameters, pretrained_model
from laborllm_dist.models.tree_inference import Nodes, PrefixState
from laborllm_dist.store.store import TOKENIZER, CareerTable, open_store
from laborllm_dist.store.tokenizer import load_tokenizer
from laborllm_dist.text.template import compile_template, render_career

BATCH, CACHED_BATCH = 8, 32
ROW_LENGTH = 2048
OURS, HARNESS = "laborllm_dist", "lm-evaluation-harness"
GOALS = {"observed titles": 16, "all titles": 50}  # times the observations of the harness
RUN = [
    "data=synthetic", "data.corpora.synthetic.num_people=40", "tokenizer.vocabulary_size=4096", "model=scratch_45m",
    "batch.global_batch_size=8", "batch.micro_batch_size=1", "batch.max_seq_length=1024", "training.epochs=1",
    "evaluation.max_seq_length=1024",
]  # fmt: skip


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


@dataclass(frozen=True, slots=True)
class Evaluators:
    """What is compared: this software, a plain model, and lm-evaluation-harness where it is installed."""

    file: RecordFile
    subject: EvaluationTarget
    model: InferenceModel
    plain: Any
    peer: Any | None
    machine: Machine
    repeats: int

    @classmethod
    def of(cls, file: RecordFile, run: Path, repeats: int, num_threads: int) -> Evaluators:
        """Open a run in all of them."""
        subject = EvaluationTarget(run)
        model, peer = wrap_for_inference(subject.open(), subject.compute), None
        if importlib.util.find_spec("lm_eval") is not None:
            from lm_eval.models.huggingface import HFLM

            peer = HFLM(pretrained=str(subject.path), device="cpu", dtype="float32", batch_size=BATCH)
        flops, bandwidth = probe_cpu()
        machine = Machine(flops, bandwidth, num_threads * dollars_per_hour("cpu_core"))
        return cls(file, subject, model, subject.open().eval(), peer, machine, repeats)

    def record(self, part: str, name: str, num_observations: float, seconds: float, **more: float) -> None:
        """Add the speed of one repeat."""
        speed = num_observations / seconds
        dollars = dollars_per_million(speed, self.machine)
        numbers = {"observations_per_second": speed, "dollars_per_million_observations": dollars, **more}
        self.file.add(Record(part, name, numbers=numbers))

    def beside_peer(
        self, part: str, ours: Callable[[], Any], pairs: list[tuple[str, str]], number: int, share: float = 1.0
    ) -> tuple[Any, np.ndarray | None]:
        """Measure this software before and after the harness, and their ratio; return both results.

        The harness gets a `share` of the requests: a number of observations times it.
        """
        if self.peer is None:
            self.file.add(Record(part, HARNESS, "skipped", note="lm_eval is not installed: make peers"))
            return ours(), None
        peer_scores(self.peer, pairs[:1])  # warms up, as ours has
        before, result = timed(ours)
        seconds, theirs = timed(lambda: peer_scores(self.peer, pairs))
        after, _ = timed(ours)
        for each in (before, after):
            self.record(part, OURS, number, each)
        self.record(part, HARNESS, number * share, seconds)
        goal(self.file, f"{part} / {HARNESS}", [seconds / share / ((before + after) / 2)], least=GOALS[part])
        return result, theirs


def measure_observed(these: Evaluators, num_careers: int) -> None:
    """Measure the scores of observed titles."""
    part, subject = "observed titles", these.subject
    careers = spread(subject.rows, num_careers)
    pairs = [pair for row in careers for pair in zip(subject.prompts(row), subject.observed(row), strict=True)]

    def ours() -> np.ndarray:
        return ours_observed(these.model, subject.rows, careers)

    ours()  # warms up
    for _ in range(these.repeats):
        these.record(part, OURS, len(pairs), timed(ours)[0])
    scores, theirs = these.beside_peer(part, ours, pairs, len(pairs))
    if theirs is not None:
        difference = float(np.abs(scores - theirs).max())
        these.file.add(Record("agreement", f"{part}, {HARNESS}", numbers={"largest_difference_nats": difference}))


def measure_all(these: Evaluators, num_observations: int, every: int) -> None:
    """Measure the scores of all titles, complete."""
    part, subject = "all titles", these.subject
    trie, sampled, counted = subject.trie, spread(subject.rows, num_observations), Counted(these.model)

    def ours() -> list[TitleScores]:
        return ours_all(counted, subject, sampled, only_last=True)

    cached: list[np.ndarray] = []
    for _ in range(these.repeats):
        counted.num_tokens = 0
        seconds, _ = timed(ours)
        distinct = sum(int(subject.rows.title_spans(row)[-1, 0]) + trie.num_nodes for row in sampled)
        forwarded = {"forwarded_tokens_over_distinct": counted.num_tokens / distinct}
        these.record(part, OURS, len(sampled), seconds, **forwarded)
        seconds, cached = timed(lambda: [cached_all(these.plain, subject, row) for row in sampled])
        these.record(part, "KV cache of the history, title by title", len(sampled), seconds)
    asked = subject.titles[::every]
    pairs = [(subject.prompts(row)[-1], f" {title}") for row in sampled for title in asked]
    scores, theirs = these.beside_peer(part, ours, pairs, len(sampled), len(asked) / len(subject.titles))
    closed = np.concatenate([each.terminated_PT.ravel() for each in scores])
    differences = {"KV cache": float(np.abs(closed - np.concatenate(cached)).max())}
    if theirs is not None:
        title = np.concatenate([each.title_PT[:, ::every].ravel() for each in scores])
        differences[HARNESS] = float(np.abs(title - theirs).max())
    for name, difference in differences.items():
        these.file.add(Record("agreement", f"{part}, {name}", numbers={"largest_difference_nats": difference}))


def measure_bounded(these: Evaluators, num_careers: int, tolerance: float) -> None:
    """Measure all titles with a tolerance beside all titles complete."""
    subject, part = these.subject, f"all titles, tolerance {tolerance:g}"
    people, counting = spread(subject.rows, num_careers), Counted(these.model)
    number = int(subject.rows.num_observations()[people].sum())
    for _ in range(these.repeats):
        seconds, complete = timed(lambda: ours_all(these.model, subject, people, only_last=False))
        these.record(part, "complete", number, seconds)
        counting.num_tokens = 0
        seconds, bounded = timed(lambda: ours_all(counting, subject, people, only_last=False, tolerance=tolerance))
        nodes = counting.num_tokens - int(subject.rows.num_tokens()[people].sum())
        errors, bounds = [], []
        for whole, part_of in zip(complete, bounded, strict=True):
            missing = np.exp(whole.terminated_PT) - np.exp(np.nan_to_num(part_of.terminated_PT, nan=-np.inf))
            errors.append(np.abs(missing).max(axis=1))
            bounds.append(part_of.bound_P)
        largest, bound = np.concatenate(errors), np.concatenate(bounds)
        quality = {
            "prefixes_per_observation": nodes / number, "largest_error": float(largest.max()),
            "largest_bound": float(bound.max()), "within_bound_%": 100 * float((largest <= bound + 1e-6).mean()),
        }  # fmt: skip
        these.record(part, "bounded", number, seconds, **quality)


def make_run(folder: Path) -> Path:
    """Train a model from scratch on a few synthetic careers; return the run's folder."""
    program = [str(PROJECT / "launch/train.py"), *RUN, f"store.root={folder}/stores", f"output_dir={folder}/runs"]
    run_ranks([*program, "name=subject"], 1, {})
    return folder / "runs/subject"


def main() -> None:
    """Compare all systems."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="default: a model of 45 million weights after a few synthetic careers")
    parser.add_argument("--careers", type=int, default=4, help="people whose observed titles are scored")
    parser.add_argument("--observations", type=int, default=1, help="prompts after which all titles are scored")
    parser.add_argument("--every", type=int, default=1, help="the harness scores every Nth of all titles only")
    parser.add_argument("--bounded-careers", type=int, default=1, help="people scored complete and bounded; 0: none")
    parser.add_argument("--tolerance", type=float, default=1e-3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    file = RecordFile.begin("evaluation-throughput", "Scores beside lm-evaluation-harness and a cached history")
    with tempfile.TemporaryDirectory() as folder:
        run = arguments.run or make_run(Path(folder))
        these = Evaluators.of(file, run, arguments.repeats, arguments.threads)
        trie = these.subject.trie
        numbers = {
            "parameters": num_parameters(these.plain)[0], "threads": arguments.threads, "titles": len(trie.ends_T),
            "tokens_of_titles": int(trie.depths_M[trie.ends_T].sum()), "prefixes": trie.num_nodes,
        }  # fmt: skip
        file.add(Record("subject", run.name, numbers=numbers))
        measure_observed(these, arguments.careers)
        measure_all(these, arguments.observations, arguments.every)
        if arguments.bounded_careers:
            measure_bounded(these, arguments.bounded_careers, arguments.tolerance)
    file.end()


if __name__ == "__main__":
    main()
