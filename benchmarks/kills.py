"""Kill a training at random moments, start it again each time, and compare what comes out with an undisturbed run.

    python benchmarks/kills.py [--kills N] [--seed S]

Two CPU ranks, ZeRO-2, fp32, a checkpoint every fifth step. A kill is SIGKILL to one rank or to both, at a moment drawn
evenly from the time a start takes, so during preparation, loading, steps, validation, saving and export. Lost may be
what came after the last save; the final weights must be the same bits.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from laborllm_dist.engine.checkpoint import checkpoint_folder, newest_checkpoint, read_manifest
from laborllm_dist.engine.restore import full_weights

PROJECT = Path(__file__).resolve().parent.parent
NUM_STEPS, EVERY = 600, 5
MARK = "--- start ---\n"
SETTINGS = [
    "data=synthetic", "data.corpora.synthetic.synthetic.num_people=60", "tokenizer.vocabulary_size=400",
    "model.llama.hidden_size=32", "model.llama.intermediate_size=64", "model.llama.num_heads=2",
    "model.llama.num_key_value_heads=1", "batch.row_length=1024", "batch.careers_per_step=16", "training.epochs=200",
    f"training.checkpoint_every_steps={EVERY}", "training.log_every_steps=1000", "training.validations_per_epoch=1",
    "evaluation.row_length=1024", "ranks.timeout_minutes=2", "name=x",
]  # fmt: skip


def start(folder: Path) -> list[subprocess.Popen[bytes]]:
    """Start the training as two ranks."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    with (folder / "log").open("a") as log:
        log.write(MARK)
    processes = []
    for rank in range(2):
        of_rank = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_PORT": port}
        fixed = {
            "MASTER_ADDR": "127.0.0.1",
            "OMP_NUM_THREADS": "1",
            "DS_ACCELERATOR": "cpu",
            "CUDA_VISIBLE_DEVICES": "",
        }
        command = [sys.executable, str(PROJECT / "launch/train.py"), *SETTINGS, f"runs={folder}/runs"]
        with (folder / "log").open("ab") as log:
            processes.append(
                subprocess.Popen(
                    [*command, f"store.root={folder}/stores"],
                    env={**os.environ, **fixed, **of_rank},
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )
    return processes


def wait_for_the_others(processes: list[subprocess.Popen[bytes]], folder: Path, began: float) -> float:
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
    found = newest_checkpoint(folder / "runs/x/checkpoints", lambda line: None)
    return 0 if found is None else found[1].step


def weights(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = checkpoint_folder(folder / "runs/x/checkpoints", NUM_STEPS)
    return dict(full_weights(checkpoint, read_manifest(checkpoint)))


def main() -> None:
    """Print a line for each kill, and the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    wanted = parser.parse_args()
    draw = random.Random(wanted.seed)
    with tempfile.TemporaryDirectory() as root:
        straight, killed = Path(root) / "straight", Path(root) / "killed"
        straight.mkdir()
        killed.mkdir()
        assert [process.wait(timeout=1800) for process in start(straight)] == [0, 0]
        last, longest, num_kills = 0, 0.0, 0
        while num_kills < wanted.kills:
            processes = start(killed)
            moment = draw.uniform(0.5, 14.0)
            deadline = time.monotonic() + moment
            while time.monotonic() < deadline and any(process.poll() is None for process in processes):
                time.sleep(0.02)
            if all(process.poll() is not None for process in processes):
                codes = [process.returncode for process in processes]
                assert codes == [0, 0], (killed / "log").read_text()[-3000:]
                print(f"finished after {num_kills} kills; the same command again: nothing left to do")
                (killed / "runs/x/export").rename(killed / f"export_{num_kills}")
                (killed / "runs/x/checkpoints").rename(killed / f"checkpoints_{num_kills}")
                last = 0
                continue
            victims = draw.choice([processes, processes[:1], processes[1:]])
            for process in victims:
                os.killpg(process.pid, signal.SIGKILL)
            began = time.monotonic()
            longest = max(longest, wait_for_the_others(processes, killed, began))
            num_kills += 1
            step = newest_step(killed)
            assert step >= last, f"checkpoint of step {last} is gone, the newest is {step}"
            last = step
            who = "both ranks" if len(victims) == 2 else f"rank {processes.index(victims[0])}"
            print(f"kill {num_kills:2d} of {who:<10} after {moment:4.1f} s; saved so far: step {step}", flush=True)
        codes = [process.wait(timeout=1800) for process in start(killed)]
        assert codes == [0, 0], (killed / "log").read_text()[-3000:]
        ours, theirs = weights(killed), weights(straight)
        same = all(torch.equal(ours[name], theirs[name]) for name in theirs)
        lines = [json.loads(line) for line in (killed / "runs/x/metrics.jsonl").read_text().splitlines()]
        every = [line["step"] for line in lines] == list(range(1, NUM_STEPS + 1))
        print(
            f"{num_kills} kills: final weights {'the same bits' if same else 'DIFFER'}; metrics "
            f"{'have every step once' if every else 'ARE BROKEN'}; a rank left alone ended within {longest:.0f} s"
        )
        sys.exit(not (same and every))


if __name__ == "__main__":
    main()
