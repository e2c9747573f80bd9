"""What a GPU makes of this software, in one command of at most nine minutes, without network: the most telling first.

    python benchmarks/gpu_suite.py [--parts kernels,step,lora,...] [--seconds 540] [--out FOLDER]

    kernels    tests marked gpu: variable-length attention and fused loss against dense ones
    step       one step of a small model on the GPU and on the CPU: the same loss and gradient norm
    lora       7B shapes, LoRA of rank 16, bf16: tokens/s, model FLOPs utilisation, peak memory beside the planned one
    evaluate   7B shapes, bf16: observations a second, of observed titles and of all 335 (random tokens)
    peers      a 1B shape: here, in transformers' Trainer with padding, in TRL's SFTTrainer packed, where installed
    adam8      7B shapes, all weights, 8-bit AdamW
    offload    7B shapes, all weights, optimizer in the host's memory (130 GiB of it)

Each part is a process of its own, one for each of the row lengths 2,048 and 4,096 where it trains, since DeepSpeed does
not give all memory back. What by the plan does not fit, on the GPU or the host, is left out. Weights are random, made
on the device; careers have the lengths of the NLSY97 (mean 431 tokens, standard deviation 102). Utilisation counts what
the model needs: six operations a weight and token (four where it is frozen), attention by the lengths of careers, no
recomputation. `--shape tiny` tries the suite itself, on a CPU too.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_peers import sft_tokens_per_second, trainer_tokens_per_second

from laborllm_dist.batches.packed import pack_batch
from laborllm_dist.batches.packing import pack_careers
from laborllm_dist.compose import compose_settings
from laborllm_dist.engine.adapters import with_adapter
from laborllm_dist.engine.branching_model import Grown
from laborllm_dist.engine.evaluated_model import EvaluatedModel, evaluated
from laborllm_dist.engine.language_model import CareerLanguageModel
from laborllm_dist.engine.memory_plan import CUDA_PROCESS_GIB, GIB, Load, plan_memory
from laborllm_dist.engine.model import new_llama, num_parameters
from laborllm_dist.engine.ranks import Ranks, open_ranks
from laborllm_dist.engine.shape import KNOWN, ModelShape
from laborllm_dist.engine.zero import make_engine
from laborllm_dist.scoring.prompt_trees import Prompts, score_titles
from laborllm_dist.scoring.title_trie import build_trie
from laborllm_dist.settings import RunSettings
from laborllm_dist.training.cost import flops_per_token

SHAPES = {
    "7b": KNOWN["meta-llama/Llama-2-7b-hf"],
    "1b": ModelShape(2048, 5632, 22, 32, 4, 32000, tied_embeddings=False),
    "tiny": ModelShape(64, 192, 2, 4, 4, 512, tied_embeddings=False),
}
PARTS = ("kernels", "step", "lora", "evaluate", "peers", "adam8", "offload")
MEAN_LENGTH, SPREAD = 431, 102
PROJECT = Path(__file__).resolve().parent.parent
WARM_UP = 3  # steps that are not timed
# By the beginning of a card's name that fits first; cards on PCIe are slower than those on SXM.
PEAK_TFLOPS = {
    "H100 PCIe": 756.0, "H100 NVL": 835.0, "H200 NVL": 835.0, "H100": 989.0, "H200": 989.0, "A100": 312.0,
    "L40S": 362.0,
}  # fmt: skip
BF16 = ("zero=stage1", "zero.precision=bf16")
TRAINED = {
    "lora": (*BF16, "adapter=lora"),
    "adam8": (*BF16, "compute=large", "zero.stage=3", "optimizer.kind=adamw_8bit"),
    "offload": (*BF16, "compute=large", "zero.stage=2", "zero.offload_optimizer=cpu", "optimizer.kind=cpu_adamw"),
}
ROWS_AT_MOST = {2048: 4, 4096: 2}
HOST_PROCESS_GIB = 6.0  # interpreter, libraries, and what loading leaves behind


def careers(num_rows: int, row_length: int, num_ids: int, seed: int) -> list[list[np.ndarray]]:
    """Return rows full of careers of random tokens."""
    random = np.random.default_rng(seed)
    lengths = np.clip(random.normal(MEAN_LENGTH, SPREAD, 40 * num_rows), 60, row_length).astype(int).tolist()
    rows = pack_careers(lengths, row_length).rows[:-1]  # longest careers first, so rows are drawn
    rows = [rows[place] for place in random.permutation(len(rows))[:num_rows]]
    return [[random.integers(0, num_ids, lengths[each]).astype(np.int32) for each in row] for row in rows]


def settings_for(shape: ModelShape, *more: str) -> RunSettings:
    """Return settings of a Llama of a shape."""
    llama = {
        "hidden_size": shape.hidden_size, "intermediate_size": shape.intermediate_size, "num_layers": shape.num_layers,
        "num_heads": shape.num_heads, "num_key_value_heads": shape.num_key_value_heads, "max_positions": 4096,
        "tied_embeddings": str(shape.tied_embeddings).lower(),
    }  # fmt: skip
    return compose_settings(
        RunSettings, "run", [*(f"model.llama.{name}={value}" for name, value in llama.items()), *more]
    )


def report(out: Path, **facts: Any) -> None:
    """Print a result, and add it to results.jsonl."""
    print(json.dumps(facts), flush=True)
    with (out / "results.jsonl").open("a") as file:
        file.write(json.dumps(facts) + "\n")


def build(settings: RunSettings, shape: ModelShape, ranks: Ranks) -> CareerLanguageModel:
    """Return a model with random weights, made on the device in its precision."""
    assert settings.model.llama is not None
    torch.set_default_dtype(torch.bfloat16 if settings.zero.precision == "bf16" else torch.float32)
    with ranks.device:
        llama = new_llama(settings.model.llama, num_ids=shape.num_ids, attention_dropout=0.0, seed=1)
    torch.set_default_dtype(torch.float32)
    if settings.compute.gradient_checkpointing:
        llama.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    learnt = llama if settings.adapter.kind == "none" else with_adapter(llama, settings.adapter, seed=1)
    return CareerLanguageModel(learnt, settings.compute)


def career_lengths(rows: Iterable[list[np.ndarray]]) -> np.ndarray:
    """Return the tokens of the careers of rows, which hold padding besides."""
    return np.array([len(ids) for row in rows for ids in row], dtype=np.float64)


def train_part(name: str, shape: ModelShape, out: Path, row_length: int) -> None:
    """Measure training at a row length, with as many rows a pass as fit."""
    capacity = torch.cuda.mem_get_info()[1] if torch.cuda.is_available() else 8 * GIB
    with open_ranks(settings_for(shape, f"ranks.threads_per_rank={num_cpus()}").ranks) as ranks:
        num_rows = ROWS_AT_MOST[row_length]
        while num_rows:
            batch = [f"batch.row_length={row_length}", f"batch.rows_per_pass={num_rows}"]
            settings = settings_for(shape, *batch, *TRAINED[name])
            planned = plan_memory(shape, settings, Load(num_rows, row_length), world_size=1, process_bytes=None)
            facts = {"part": name, "row_length": row_length, "rows": num_rows, "planned_gib": planned.total / GIB}
            fits_host = planned.host_total + HOST_PROCESS_GIB * GIB <= host_memory()
            if planned.total > 0.97 * capacity or not fits_host:
                report(out, **facts, planned_host_gib=planned.host_total / GIB, fits=False)
            else:
                try:
                    measure_training(name, settings, shape, (ranks, planned.total), out)
                    return
                except torch.OutOfMemoryError as error:
                    report(out, **facts, out_of_memory=str(error).splitlines()[0])
                return_memory()
            num_rows //= 2


def num_cpus() -> int:
    """Return how many CPUs this process may use, which a container may have fewer of than its machine."""
    allowed = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        allowed = min(allowed, max(1, int(quota) // int(period)))
    return allowed


def host_memory() -> float:
    """Return the bytes of the host's memory that are free, within the limit of a container."""
    free = float(re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())[1]) * 1024
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            free = min(free, float(Path(limit).read_text()))
    return free


def measure_training(
    name: str, settings: RunSettings, shape: ModelShape, there: tuple[Ranks, float | None], out: Path
) -> None:
    """Time steps of one pass; report tokens, utilisation and memory."""
    ranks, planned = there
    model = build(settings, shape, ranks)
    num_all, num_learnt = num_parameters(model)
    engine = make_engine(model, settings.zero, settings.optimizer, ranks)
    rows, length = settings.batch.rows_per_pass, settings.batch.row_length
    drawn = [careers(rows, length, shape.num_ids, seed) for seed in range(8)]
    seconds: list[float] = []
    for number, batch in enumerate([pack_batch(each, length) for each in drawn]):
        synchronise()
        started = time.perf_counter()
        total = engine.forward(batch, is_last_pass=True)
        engine.backward(total, step_tokens=len(batch.scored_N))
        engine.update(learning_rate=1e-5)
        synchronise()
        if number >= WARM_UP:
            seconds.append(time.perf_counter() - started)
    median = sorted(seconds)[len(seconds) // 2]
    lengths = career_lengths(row for each in drawn[WARM_UP:] for row in each)
    rate = float(lengths.sum()) / len(seconds) / median
    attended = float((lengths**2).sum() / lengths.sum() / 2)
    flops = flops_per_token(shape, settings.adapter, attended=attended) * rate
    peak = peak_tflops()
    measured = torch.cuda.max_memory_reserved() / GIB + CUDA_PROCESS_GIB if torch.cuda.is_available() else None
    report(
        out, part=name, row_length=length, rows=rows, parameters=num_all, learnt=num_learnt, seconds_per_step=median,
        tokens_per_second=rate, tflops=flops / 1e12, model_flops_utilisation=peak and flops / (peak * 1e12),
        peak_gib=measured, planned_gib=planned and planned / GIB,
    )  # fmt: skip
    engine.deepspeed.destroy()


def step_part(shape: ModelShape, out: Path) -> None:
    """Compare loss and gradient of a small model on GPU and CPU."""
    small = dataclasses.replace(SHAPES["tiny"], hidden_size=256, intermediate_size=704)
    settings = settings_for(small)
    batch = pack_batch(careers(2, 1024, small.num_ids, 1), 1024)
    found = {}
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        assert settings.model.llama is not None
        llama = new_llama(settings.model.llama, num_ids=small.num_ids, attention_dropout=0.0, seed=1)
        model = CareerLanguageModel(llama, settings.compute).to(device)
        total, _ = model(batch.to(torch.device(device)))
        total.backward()
        norm = torch.nn.utils.get_total_norm([each.grad for each in model.parameters() if each.grad is not None])
        found[device] = (float(total) / len(batch.scored_N), float(norm))
    report(out, part="step", loss_and_gradient_norm=found)


def evaluate_part(shape: ModelShape, out: Path) -> None:
    """Measure how many titles are scored a second."""
    settings = settings_for(shape, "zero.precision=bf16")
    with open_ranks(settings.ranks) as ranks:
        model = build(settings, shape, ranks).eval()
        drawn = [careers(4, 2048, shape.num_ids, seed) for seed in range(8)]
        batches = [pack_batch(each, 2048) for each in drawn]
        with torch.inference_mode():
            for batch in batches[:2]:
                model(batch.to(ranks.device))
            synchronise()
            started = time.perf_counter()
            for batch in batches[2:]:
                model(batch.to(ranks.device))
            synchronise()
        seconds = time.perf_counter() - started
        lengths = career_lengths(row for each in drawn[2:] for row in each)
        # A career of the NLSY97 has 22 observations.
        observations = 22 * len(lengths)
        report(out, part="evaluate", tokens_per_second=float(lengths.sum()) / seconds,
               observations_per_second=observations / seconds)  # fmt: skip
        all_titles(evaluated(model.hugging_face, settings.compute), shape, out)


def all_titles(model: EvaluatedModel, shape: ModelShape, out: Path) -> None:
    """Measure how many observations a second get all titles: 335 of random tokens with shared beginnings."""
    random = np.random.default_rng(1)
    titles = {
        (*random.integers(0, 40, 2), *random.integers(0, shape.num_ids, random.integers(4, 6))) for _ in range(335)
    }
    trie = build_trie([tuple(map(int, title)) for title in titles], 0)
    (career,) = careers(1, 2048, shape.num_ids, 1)[0][:1]
    stops = np.linspace(60, len(career) - 1, 22).astype(int)
    stems = np.stack([np.zeros(22, int), np.zeros(22, int), stops], axis=1)
    prompts = Prompts(stems, np.full(22, -1))
    seconds = []
    for _ in range(3):
        synchronise()
        started = time.perf_counter()
        grown = Grown(pack_batch([[career]], len(career)).to(model.device))
        score_titles(model.edges, grown, prompts, trie, tolerance=0.0, nodes_per_pass=8192)
        synchronise()
        seconds.append(time.perf_counter() - started)
    median = sorted(seconds)[1]
    rate = 22 * trie.num_nodes / median
    report(out, part="evaluate: all titles", prefixes=trie.num_nodes, tokens_per_second=rate,
           observations_per_second=22 / median)  # fmt: skip


def peers_part(shape: ModelShape, out: Path) -> None:
    """Compare with transformers' Trainer and TRL's SFTTrainer on the same careers, where they are installed."""
    settings = settings_for(
        shape, "zero=stage1", "zero.precision=bf16", "batch.row_length=2048", "batch.rows_per_pass=4"
    )
    with open_ranks(settings.ranks) as ranks:
        measure_training("peers: ours", settings, shape, (ranks, None), out)
    return_memory()
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):  # else Trainer wraps itself in DDP
        os.environ.pop(name, None)
    rows = [each for row in careers(48, 2048, shape.num_ids, 1) for each in row]
    for peer, measure in (("accelerate", trainer_tokens_per_second), ("trl", sft_tokens_per_second)):
        if importlib.util.find_spec(peer) is None:
            report(out, part=f"peers: {measure.__name__}", skipped=f"{peer} is not installed")
            continue
        report(out, part=f"peers: {measure.__name__}", tokens_per_second=measure(shape, rows, out))
        return_memory()


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def return_memory() -> None:
    gc.collect()  # engine and model hold each other
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_tflops() -> float | None:
    """Return the dense bf16 peak of the card, from its data sheet; None where it is not known."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return next((peak for known, peak in PEAK_TFLOPS.items() if known in name), None)


def run_part(name: str, shape: ModelShape, out: Path, row_length: int | None) -> None:
    """Run one part in this process."""
    if row_length is not None:
        train_part(name, shape, out, row_length)
        return
    tests = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", str(PROJECT / "tests/test_kernels.py")]
    parts: dict[str, Callable[[], None]] = {
        "kernels": lambda: os.execv(sys.executable, tests),  # in its place, so that a time limit ends it
        "step": lambda: step_part(shape, out),
        "evaluate": lambda: evaluate_part(shape, out),
        "peers": lambda: peers_part(shape if shape is SHAPES["tiny"] else SHAPES["1b"], out),
    }
    parts[name]()


def main() -> None:
    """Run the parts one after the other, each in a process with what is left of the time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--seconds", type=float, default=540)
    parser.add_argument("--shape", choices=list(SHAPES), default="7b")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "gpu_suite")))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--row-length", type=int, help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    wanted.out.mkdir(parents=True, exist_ok=True)
    if wanted.one is not None:
        run_part(wanted.one, SHAPES[wanted.shape], wanted.out, wanted.row_length)
        return
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "CPU"
    versions = {name: importlib.metadata.version(name) for name in ("torch", "deepspeed", "transformers", "peft")}
    report(wanted.out, device=card, shape=wanted.shape, versions=versions)
    deadline = time.monotonic() + wanted.seconds
    for part in wanted.parts.split(","):
        for row_length in ROWS_AT_MOST if part in TRAINED else (None,):
            facts = {"part": part} if row_length is None else {"part": part, "row_length": row_length}
            left, started = deadline - time.monotonic(), time.monotonic()
            if left < 20:
                report(wanted.out, **facts, skipped="no time left")
                continue
            command = [sys.executable, __file__, "--one", part, "--shape", wanted.shape, "--out", str(wanted.out)]
            if row_length is not None:
                command += ["--row-length", str(row_length)]
            try:
                code = subprocess.run(command, timeout=left, check=False).returncode
                outcome = {"failed": f"exit code {code}"} if code else {}
            except subprocess.TimeoutExpired:
                outcome = {"failed": "ran out of time"}
            report(wanted.out, **facts, **outcome, part_seconds=round(time.monotonic() - started, 1))


if __name__ == "__main__":
    main()
