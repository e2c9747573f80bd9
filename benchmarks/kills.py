"""Kill a training at random moments, start it again each time, and compare what comes out with an undisturbed run.

    python benchmarks/kills.py [--kills N] [--seed S] [--stage 0-3]

Two CPU ranks, fp32, a checkpoint every fifth step and at every validation. A kill is SIGKILL to one rank or to both. Of
ten draws five are a moment, evenly from the time of a whole training (preparation, loading, steps, validation, end),
two wait for a validated step that is being saved, and three for the export. Lost may be what came after the last save;
the final weights must be the same bits, each time that a training has come to its end.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from ranks import start_ranks
from records import PROJECT, Record, RecordFile

from laborllm_dist.checkpoint.load import full_weights
from laborllm_dist.checkpoint.manifest import read_manifest
from laborllm_dist.checkpoint.save import checkpoint_folder, newest_checkpoint

NUM_STEPS, EVERY, STEPS_PER_EPOCH = 60, 5, 3
MARK = "--- start ---\n"
SETTINGS = [
    "data=synthetic", "data.corpora.synthetic.num_people=60", "tokenizer.vocabulary_size=400",
    "model.llama.hidden_size=32", "model.llama.intermediate_size=64", "model.llama.num_heads=2",
    "model.llama.num_key_value_heads=1", "batch.max_seq_length=1024", "batch.global_batch_size=16",
    f"training.epochs={NUM_STEPS // STEPS_PER_EPOCH}", f"training.checkpoint_every_steps={EVERY}",
    "training.log_every_steps=1000", "training.validations_per_epoch=1",
    "evaluation.max_seq_length=1024", "ranks.timeout_minutes=2", "name=x",
]  # fmt: skip


def start(folder: Path, stage: int) -> list[subprocess.Popen[str]]:
    """Start the training as two ranks."""
    overrides = [f"zero=stage{stage}", f"output_dir={folder}/runs", f"store.root={folder}/stores"]
    with (folder / "log").open("a") as log:
        log.write(MARK)
        log.flush()
        return start_ranks(
            [str(PROJECT / "launch/train.py"), *SETTINGS, *overrides],
            2,
            {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""},
            output=log,
            in_own_groups=True,
        )


def wait_for_the_others(processes: list[subprocess.Popen[str]], folder: Path, began: float) -> float:
    """Wait until all have ended; return the seconds since `began` that a rank which had met the others took.

    One that has not met them yet waits for them to come, as long as ranks.timeout_minutes; a launcher ends it, here we.
    """
    this_start = (folder / "log").read_text().rpartition(MARK)[2]
    if "plan: " not in this_start:
        for process in processes:
            process.kill()
            process.wait()
        return 0.0
    for process in processes:
        process.wait(timeout=60)
    return time.monotonic() - began


def newest_step(folder: Path) -> int:
    newest = newest_checkpoint(folder / "runs/x/checkpoints")
    return 0 if newest is None else newest[1].step


def is_saving_validated(folder: Path, since: float) -> bool:
    """Return whether the checkpoint of a step that is validated is being written."""
    partial = (folder / "runs/x/checkpoints").glob("step_????????.partial")
    return any(int(each.stem.removeprefix("step_")) % STEPS_PER_EPOCH == 0 and is_new(each, since) for each in partial)


def is_new(path: Path, since: float) -> bool:
    """Return whether a folder was made after a time; an earlier kill may have left one of this name."""
    try:
        return path.stat().st_ctime > since
    except FileNotFoundError:
        return False


def wait_for_moment(processes: list[subprocess.Popen[str]], folder: Path, draw: random.Random, whole: float) -> str:
    """Wait for a moment to kill at, of a training that takes `whole` seconds, or for its end; say which it is."""
    what = draw.choices(["a moment", "a save", "the export"], weights=[5, 2, 3])[0]
    began, moment, more = time.time(), draw.uniform(0.5, whole), draw.uniform(0, 0.05)
    while any(process.poll() is None for process in processes):
        passed = time.time() - began
        has_come = {
            "a moment": passed > moment,
            "a save": passed > moment / 2 and is_saving_validated(folder, began),
            "the export": is_new(folder / "runs/x/export.partial", began),
        }
        if has_come[what]:
            time.sleep(more)
            return f"{what}, after {passed:4.1f} s"
        time.sleep(0.002)
    return "the end"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = checkpoint_folder(folder / "runs/x/checkpoints", NUM_STEPS)
    return dict(full_weights(checkpoint, read_manifest(checkpoint)))


def differences(folder: Path, straight: Path) -> list[str]:
    """Return what a training that has come to its end has other than an undisturbed one."""
    ours, theirs = weights(folder), weights(straight)
    lines = [json.loads(line) for line in (folder / "runs/x/metrics.jsonl").read_text().splitlines()]
    exports = [(each / "runs/x/export/model.safetensors").read_bytes() for each in (folder, straight)]
    comparisons = {
        "final weights": all(torch.equal(ours[name], theirs[name]) for name in theirs),
        "metrics": [line["step"] for line in lines] == list(range(1, NUM_STEPS + 1)),
        "exported weights": exports[0] == exports[1],
    }
    return [what for what, is_same in comparisons.items() if not is_same]


def main() -> None:
    """Kill, start again, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--stage", type=int, default=2, choices=range(4))
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    file = RecordFile.begin("kills", f"Kills of a training at ZeRO-{arguments.stage}")
    with tempfile.TemporaryDirectory() as root:
        straight, killed = Path(root) / "straight", Path(root) / "killed"
        straight.mkdir()
        killed.mkdir()
        began = time.monotonic()
        assert [process.wait(timeout=1800) for process in start(straight, arguments.stage)] == [0, 0]
        whole = time.monotonic() - began
        last, num_kills, num_ends = 0, 0, 0
        while True:
            processes = start(killed, arguments.stage)
            goes_on = num_kills < arguments.kills
            when = wait_for_moment(processes, killed, draw, whole) if goes_on else "the end"
            if when == "the end":
                codes = [process.wait(timeout=1800) for process in processes]
                assert codes == [0, 0], (killed / "log").read_text()[-3000:]
                different = differences(killed, straight)
                num_ends += 1
                note = f"{', '.join(different)} DIFFER" if different else "the same bits"
                file.add(Record("trainings", f"end {num_ends}", "failed" if different else "passed", note=note))
                if different:
                    sys.exit(1)
                if not goes_on:
                    break
                (killed / "runs").rename(killed / f"ended_{num_ends}")
                last = 0
                continue
            victims = draw.choice([processes, processes[:1], processes[1:]])
            for process in victims:
                with contextlib.suppress(ProcessLookupError):  # it has ended in this very moment
                    os.killpg(process.pid, signal.SIGKILL)
            alone = wait_for_the_others(processes, killed, time.monotonic())
            num_kills += 1
            step = newest_step(killed)
            assert step >= last, f"checkpoint of step {last} is gone, the newest is {step}"
            last = step
            who = "both ranks" if len(victims) == 2 else f"rank {processes.index(victims[0])}"
            note = f"of {who} at {when}"
            file.add(
                Record("kills", f"kill {num_kills}", "passed", {"saved_steps": step, "seconds_alone": alone}, note)
            )
        file.end()


if __name__ == "__main__":
    main()
