"""What a GPU makes of this software, in one command of at most nine minutes, without network: the most telling first.

    python benchmarks/gpu_suite [--parts kernels,step,...] [--seconds 540] [--shape 7b] [--out FOLDER]

    kernels    the tests marked gpu: attention of every kind and the fused loss against dense ones       pass or fail
    step       loss and every gradient of a step on the GPU and on the CPU, in fp32 and bf16             pass or fail
    lora       7B, LoRA of rank 16, bf16: tokens/s, model FLOPs utilization, peak memory and its plan
    evaluate   7B, bf16: observations a second, of observed titles and of all 335
    peers      a 1B shape here, in transformers' Trainer with padding, in TRL's SFTTrainer packed
    adam8      7B, all weights, 8-bit AdamW
    offload    7B, all weights, optimizer in the host's memory (130 GiB of it)

Training is measured in rows of 2,048 and of 4,096 tokens. Weights are random and made on the device; careers have the
lengths of the NLSY97. Records go to FOLDER/YYYY-MM-DD-gpu-suite.json as they come, and into tables at the end. What
cannot be measured says why. The exit code is 1 where something failed. `--shape tiny` tries the suite, on a CPU too.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from records import RESULTS, Record, RecordFile

from gpu_suite import correctness, evaluation, peers, training
from gpu_suite.workload import SHAPES
from laborllm_dist.models.dims import ModelShape

LEAST_SECONDS = 15.0  # a process has just imported torch by then
SUITE = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True)
class Job:
    """A process of the suite: what it is about, and for how many seconds it may run."""

    part: str
    subject: str
    limit_seconds: float
    command: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Case:
    """What a job does in its process."""

    part: str
    subject: str
    limit_seconds: float
    measure: Callable[[ModelShape], Iterator[Record]]

    @property
    def name(self) -> str:
        """On the command line of its process."""
        return f"{self.part}/{self.subject}"


def cases() -> list[Case]:
    """Return all that can be found out, in order of value."""

    def trainings(part: str, limit_seconds: float) -> list[Case]:
        return [
            Case(part, f"rows of {length:,}", limit_seconds, functools.partial(training.train, part, length))
            for length in training.ROW_LENGTHS
        ]

    compared = [Case(peers.PART, name, 90, functools.partial(peers.peer, name)) for name in peers.NEEDED]
    return [
        Case("kernels", "tests marked gpu", 120, correctness.kernels),
        Case("step", "GPU and CPU", 60, correctness.step),
        *trainings("lora", 120),
        Case("evaluate", "titles", 120, evaluation.evaluate),
        *compared,
        *trainings("adam8", 120),
        *trainings("offload", 180),
    ]


def run_jobs(jobs: Sequence[Job], file: RecordFile, *, seconds: float) -> None:
    """Run jobs one after the other; each leaves a record, whatever becomes of it."""
    deadline = time.monotonic() + seconds
    for job in jobs:
        left = min(job.limit_seconds, deadline - time.monotonic())
        if left < min(LEAST_SECONDS, job.limit_seconds):
            file.add(Record(job.part, job.subject, "skipped", note="not measured: no time left"))
            continue
        num_before, started = len(file.read()[2]), time.monotonic()
        code = run_as_group(job.command, seconds=left)
        taken = time.monotonic() - started
        if code is None:
            file.add(Record(job.part, job.subject, "failed", note=f"ended after {taken:.0f} s, its limit"))
        elif code:
            file.add(Record(job.part, job.subject, "failed", note=f"ended by itself after {taken:.0f} s: code {code}"))
        elif len(file.read()[2]) == num_before:
            file.add(Record(job.part, job.subject, "failed", note="left no record"))


def run_as_group(command: Sequence[str], *, seconds: float) -> int | None:
    """Run a command in a process group of its own, and end all of the group; return its code, None out of time."""
    process = subprocess.Popen(command, start_new_session=True)
    try:
        return process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):  # nobody is left
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def main() -> int:
    """Run the suite, or one of its cases in this process; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = list(dict.fromkeys(case.part for case in cases()))
    parser.add_argument("--parts", default=",".join(parts), help="the rest is skipped")
    parser.add_argument("--seconds", type=float, default=540, help="for all of it")
    parser.add_argument("--shape", choices=list(SHAPES), default="7b")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case is not None:
        (case,) = (each for each in cases() if each.name == arguments.case)
        for record in case.measure(SHAPES[arguments.shape]):
            RecordFile(arguments.file).add(record)
        return 0
    chosen = arguments.parts.split(",")
    if unknown := sorted(set(chosen) - set(parts)):
        parser.error(f"no part is called {', '.join(unknown)}; there are {', '.join(parts)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the running part is ended too
    file = RecordFile.begin("gpu-suite", "What a GPU makes of this software", arguments.out)
    return run_suite(file, chosen, arguments.shape, arguments.seconds)


def run_suite(file: RecordFile, parts: Sequence[str], shape: str, seconds: float) -> int:
    """Run parts of the suite on a shape, print the table, return the exit code."""
    own = (sys.executable, str(SUITE), "--file", str(file.path), "--shape", shape)
    jobs = [
        Job(case.part, case.subject, case.limit_seconds, (*own, "--case", case.name))
        for case in cases()
        if case.part in parts
    ]
    run_jobs(jobs, file, seconds=seconds)
    skipped = [Record(each.part, each.subject, "skipped", note="not asked for") for each in cases()]
    for record in (*peers.ratios(file.read()[2]), *(each for each in skipped if each.part not in parts)):
        file.add(record)
    file.end()
    return int(any(record.outcome == "failed" for record in file.read()[2]))
