"""Training on CPU ranks by row length, ZeRO stage and adapter; over 1 and 2 ranks; start-up, checkpoints.

    python benchmarks/training_speed.py [--repeats N] [--steps N]

A Llama of 0.8 million weights in fp32, careers of random tokens with the lengths of the NLSY97, one thread a rank. In
each repeat all settings take turns, on two ranks and on one; a figure is the median of `--steps` steps after a first
one that is not counted. benchmarks/utilization.py says what the columns are.

    weak scaling     2,048 slots for each rank    } efficiency: the speed of a rank beside that of one alone
    strong scaling   2,048 slots for all ranks    }
    communication    share of a step in collectives, with the waiting for the other rank
    start-up         from the start of launch/train.py to its first step, the store being there
    checkpoint       50 million weights and Adam's moments, with fsync and checksums; read back in the same process
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from gpu_suite.training import WARM_UP, take_step, timed_steps
from gpu_suite.workload import new_model, rows_of_careers, settings_for, workload_of
from ranks import run_ranks
from records import PROJECT, Record, RecordFile
from utilization import Machine, find_machine, training_numbers

from laborllm_dist.batching.batch import pack_batch
from laborllm_dist.checkpoint.load import load_checkpoint
from laborllm_dist.checkpoint.manifest import check_checkpoint
from laborllm_dist.checkpoint.save import checkpoint_folder, save_checkpoint
from laborllm_dist.config.run import RunSettings
from laborllm_dist.distributed.context import DistributedContext, init_distributed
from laborllm_dist.distributed.zero_engine import ZeroEngine, make_engine
from laborllm_dist.models.dims import ModelShape

SMALL = ModelShape(128, 384, 3, 4, 4, 1024, tied_embeddings=True)
SAVED = ModelShape(640, 1728, 8, 8, 8, 8000, tied_embeddings=False)
SLOTS = 2048
FP32 = ("zero.precision=fp32", "ranks.threads_per_rank=1")
COLLECTIVES = (
    "all_reduce", "all_gather_into_tensor", "all_gather", "reduce_scatter_tensor", "reduce_scatter", "broadcast",
    "reduce",
)  # fmt: skip
STARTED = [
    "data=synthetic", "data.corpora.synthetic.num_people=200", "tokenizer.vocabulary_size=1024",
    "training.epochs=1", "zero=stage2", "batch.max_seq_length=1024", "evaluation.max_seq_length=1024",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Case:
    """Settings of a training; `slots` are those of a rank."""

    part: str
    subject: str
    overrides: tuple[str, ...] = ()
    row_length: int = 1024
    slots: int = SLOTS


SETTINGS = [
    *(Case("row length", f"{length:,} tokens", row_length=length, slots=4096) for length in (1024, 2048, 4096)),
    *(Case("ZeRO stage", f"stage {stage}", (f"zero.stage={stage}",)) for stage in range(4)),
    Case("adapter", "all weights"),
    Case("adapter", "LoRA, rank 16", ("adapter=lora",)),
    Case("memory", "gradient checkpointing", ("compute=large",)),
    Case("memory", "8-bit AdamW", ("optimizer.name=adamw_8bit",)),
]


def scaling(num_ranks: int) -> list[Case]:
    """Return the trainings that are compared between numbers of ranks."""
    of_ranks = f"{num_ranks} rank{'s' if num_ranks > 1 else ''}"
    return [
        Case("scaling", f"weak, {of_ranks}"),
        Case("scaling", f"strong, {of_ranks}", slots=SLOTS // num_ranks),
    ]


class CollectiveClock:
    """Stands in for the collectives of torch.distributed and measures the seconds that they take, complete."""

    def __init__(self) -> None:
        self.seconds, self._is_on = 0.0, False
        for name in COLLECTIVES:
            setattr(torch.distributed, name, self._timed(getattr(torch.distributed, name)))

    @contextmanager
    def measure(self) -> Iterator[None]:
        """Count the collectives of a block."""
        self.seconds, self._is_on = 0.0, True
        try:
            yield
        finally:
            self._is_on = False

    def _timed(self, collective: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*given: Any, **named: Any) -> Any:
            started = time.perf_counter()
            work = collective(*given, **named)
            if self._is_on:
                if work is not None:
                    work.wait()
                self.seconds += time.perf_counter() - started
            return work

        return timed


def open_engine(shape: ModelShape, settings: RunSettings, ranks: DistributedContext) -> ZeroEngine:
    """Return an engine with a new model of a shape. Collective."""
    return make_engine(new_model(settings, shape, ranks.device), settings.zero, settings.optimizer, ranks)


def measure(
    case: Case, num_steps: int, ranks: DistributedContext, machine: Machine | None, clock: CollectiveClock
) -> Record:
    """Train a few steps; return the figures of rank 0. Collective."""
    num_rows = case.slots // case.row_length
    batch = (f"batch.max_seq_length={case.row_length}", f"batch.micro_batch_size={num_rows}")
    settings = settings_for(SMALL, *FP32, "zero.stage=2", *batch, *case.overrides)
    engine = open_engine(SMALL, settings, ranks)
    steps = [
        rows_of_careers(num_rows, case.row_length, SMALL.num_ids, seed=100 * ranks.rank + step)
        for step in range(WARM_UP + num_steps)
    ]
    timed = timed_steps(engine, steps, case.row_length)
    work = workload_of(steps[WARM_UP:], case.row_length)
    numbers = training_numbers(SMALL, settings, work, timed.seconds * work.num_steps, machine)
    if ranks.world_size > 1:
        numbers["communication_%"] = 100 * communication_share(engine, steps[-1], case.row_length, clock)
    return Record(case.part, case.subject, numbers=numbers)


def communication_share(engine: ZeroEngine, rows: Any, row_length: int, clock: CollectiveClock) -> float:
    """Return the share of two steps that collectives take, complete. Collective."""
    batch = pack_batch(rows, row_length)
    (weight,) = engine.ranks.sum(len(batch.scored_N))
    engine.ranks.barrier()
    with clock.measure():
        started = time.perf_counter()
        for _ in range(2):
            take_step(engine, batch, weight)
        return clock.seconds / (time.perf_counter() - started)


def checkpoint(folder: Path, ranks: DistributedContext) -> Record:
    """Measure saving and loading. Collective."""
    settings = settings_for(SAVED, *FP32, "zero.stage=2")
    engine = open_engine(SAVED, settings, ranks)
    batch = pack_batch(rows_of_careers(1, 512, SAVED.num_ids, seed=ranks.rank), 512)
    (weight,) = ranks.sum(len(batch.scored_N))
    take_step(engine, batch, weight)  # Adam has moments from here on
    ranks.barrier()
    started = time.perf_counter()
    save_checkpoint(engine, folder, step=1, run="", state={})
    ranks.barrier()
    saving = time.perf_counter() - started
    num_bytes = sum(path.stat().st_size for path in checkpoint_folder(folder, 1).rglob("*"))
    ranks.barrier()
    started = time.perf_counter()
    manifest = check_checkpoint(checkpoint_folder(folder, 1))
    load_checkpoint(engine, checkpoint_folder(folder, 1), manifest, updates=1)
    ranks.barrier()
    megabytes, loading = num_bytes / 1e6, time.perf_counter() - started
    numbers = {
        "MB": megabytes, "save_seconds": saving, "save_MB_per_second": megabytes / saving, "load_seconds": loading,
        "load_MB_per_second": megabytes / loading,
    }  # fmt: skip
    return Record("checkpoint", f"{ranks.world_size} ranks" if ranks.world_size > 1 else "1 rank", numbers=numbers)


def measure_as_rank(file: RecordFile, num_steps: int) -> None:
    """Measure everything on the ranks of this process's launch; rank 0 adds the records."""
    clock = CollectiveClock()  # before DeepSpeed takes the collectives
    with init_distributed(settings_for(SMALL, *FP32).ranks) as ranks:
        machine = find_machine(ranks)
        cases = scaling(ranks.world_size) + (SETTINGS if ranks.world_size > 1 else [])
        for case in cases:
            record = measure(case, num_steps, ranks, machine, clock)
            if ranks.is_main:
                file.add(record)
        folder = ranks.run_on_main(tempfile.mkdtemp)
        record = checkpoint(Path(folder), ranks)
        if ranks.is_main:
            file.add(record)
            shutil.rmtree(folder)


def start_up(folder: Path, repeat: int) -> Record:
    """Measure the seconds from the start of two ranks to their first step."""
    overrides = [*STARTED, f"store.root={folder}/stores", f"output_dir={folder}/runs", f"name=start{repeat}"]
    started = time.time()
    run_ranks([str(PROJECT / "launch/train.py"), *overrides], 2, {})
    first = json.loads((folder / f"runs/start{repeat}/metrics.jsonl").read_text().splitlines()[0])
    seconds = first["time"] - first["step_tokens"] / first["tokens_per_second"] - started
    return Record("start-up", "launch/train.py, 2 ranks, ZeRO-2", numbers={"seconds": seconds})


def efficiencies(records: list[Record]) -> Iterator[Record]:
    """Yield the efficiency of two ranks in each repeat, paired."""
    for kind in ("weak", "strong"):
        alone, both = (
            [each.numbers["tokens_per_second"] for each in records if each.subject == f"{kind}, {ranks}"]
            for ranks in ("1 rank", "2 ranks")
        )
        for one, two in zip(alone, both, strict=True):
            yield Record("scaling efficiency", f"{kind}, 2 ranks", numbers={"efficiency_%": 100 * two / one})


def main() -> None:
    """Measure everything in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)  # of a rank
    arguments = parser.parse_args()
    if arguments.file is not None:
        measure_as_rank(RecordFile(arguments.file), arguments.steps)
        return
    file = RecordFile.begin("training-speed", "Training by settings and number of ranks")
    as_rank = [str(Path(__file__).resolve()), "--file", str(file.path), "--steps", str(arguments.steps)]
    with tempfile.TemporaryDirectory() as folder:
        overrides = [*STARTED, f"store.root={folder}/stores"]
        subprocess.run([sys.executable, str(PROJECT / "launch/prepare.py"), *overrides], check=True)
        for repeat in range(arguments.repeats):
            for num_ranks in (2, 1):
                run_ranks(as_rank, num_ranks, {})
            file.add(start_up(Path(folder), repeat))
    for record in efficiencies(file.read()[2]):
        file.add(record)
    file.end()


if __name__ == "__main__":
    main()
