"""Tokens of real text a second: training here, in transformers.Trainer with padding, in TRL's SFTTrainer with packing.

    make peers && python benchmarks/train_throughput.py [--steps N] [--repeats N] [--panel FILE]

Two CPU ranks of one thread each, fp32, the same small Llama from the same weights, the same careers in the same order,
32 a step, plain data parallel (ZeRO-0 here), AdamW at a constant rate. Every system runs in processes of its own, in
turn, `--repeats` times; a ratio is of one turn. Seconds are those between the ends of steps, the first ones left out;
tokens are those of the careers, padding not counted, of both ranks. Trainer sees the very careers of every step, so its
losses must be ours. SFTTrainer also computes the entropy and the accuracy of tokens in each step, as it does for its
users. A system that is not installed is skipped.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from ranks import run_ranks
from records import PROJECT, Record, RecordFile, goal

HERE = Path(__file__).resolve().parent
RANKS = 2
SETTINGS = [
    "tokenizer.vocabulary_size=1024", "model.llama.hidden_size=128", "model.llama.intermediate_size=384",
    "model.llama.num_layers=3", "batch.global_batch_size=32", "batch.max_seq_length=1024", "batch.micro_batch_size=16",
    "optimizer.learning_rate=1e-3", "optimizer.lr_scheduler=constant", "optimizer.warmup_ratio=0",
    "optimizer.weight_decay=0", "optimizer.max_grad_norm=1.0", "training.epochs=1", "training.log_every_steps=1000",
    "zero=stage0",
    "evaluation.max_seq_length=1024",
]  # fmt: skip
OURS, TRAINER, SFT = "laborllm_dist, ZeRO-0", "transformers.Trainer, padding", "trl.SFTTrainer, packing"
NEEDED = {TRAINER: "accelerate", SFT: "trl"}
GOALS = {TRAINER: 1.5, SFT: 1.05}  # times the tokens of each


def read_steps(path: Path) -> list[dict[str, float]]:
    """Return a record's steps: time at their ends, tokens, loss."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def tokens_per_second(steps: list[dict[str, float]], num_warm_up: int) -> float:
    counted = steps[num_warm_up:]
    return sum(step["tokens"] for step in counted) / (counted[-1]["time"] - steps[num_warm_up - 1]["time"])


def run_ours(arguments: list[str], folder: Path) -> list[dict[str, float]]:
    """Train here; return its steps, the last left out, since it validates."""
    own = [f"output_dir={folder}/runs", "name=ours"]
    run_ranks([str(PROJECT / "launch/train.py"), *arguments, *own], RANKS, {})
    lines = read_steps(folder / "runs/ours/metrics.jsonl")[:-1]
    return [
        {"time": line["time"], "tokens": line["step_tokens"], "loss": line["loss_nats_per_token"]} for line in lines
    ]


def run_peer(name: str, plan: Path, folder: Path, num_steps: int) -> list[dict[str, float]]:
    """Train in another system; return its steps."""
    program = [str(HERE / "peer_training.py"), name, str(plan), str(folder), str(num_steps)]
    run_ranks(program, RANKS, {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "WANDB_MODE": "disabled"})
    return read_steps(folder / f"{name}.jsonl")


def run_all(
    file: RecordFile, arguments: list[str], plan: Path, folder: Path, *, num_steps: int, num_warm_up: int
) -> dict[str, float]:
    """Run every system once, add their records, and return the tokens a second of each."""
    systems: dict[str, Callable[[], list[dict[str, float]]]] = {
        OURS: lambda: run_ours(arguments, folder),
        TRAINER: lambda: run_peer("trainer", plan, folder, num_steps),
        SFT: lambda: run_peer("sft", plan, folder, num_steps),
    }
    speeds: dict[str, float] = {}
    losses: list[float] = []
    for name, run in systems.items():
        if name in NEEDED and importlib.util.find_spec(NEEDED[name]) is None:
            file.add(Record("training", name, "skipped", note=f"{NEEDED[name]} is not installed: make peers"))
            continue
        started = time.time()
        steps = run()[:num_steps]
        speeds[name] = tokens_per_second(steps, num_warm_up)
        numbers = {
            "non_padding_tokens_per_second": speeds[name], "last_loss_nats_per_token": steps[-1]["loss"],
            "seconds_to_first_step": steps[0]["time"] - started,
        }  # fmt: skip
        if name == OURS:
            losses = [step["loss"] for step in steps]
        elif name == TRAINER:
            pairs = zip(losses, steps, strict=True)
            numbers["largest_loss_difference_nats"] = max(abs(loss - step["loss"]) for loss, step in pairs)
        file.add(Record("training", name, numbers=numbers))
    return speeds


def main() -> None:
    """Run all systems in turn, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--warm-up", type=int, default=5, help="steps that are not counted")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--panel", type=Path, help="a long panel in place of synthetic careers")
    options = parser.parse_args()
    if options.panel is not None:
        data = ["data=long_panel", "tokenizer=trained", "optimizer=adamw"]
        data.append(f"data.corpora.long_panel.path={options.panel}")
    else:
        # A step more is trained than counted: it validates. 69 % of people are for training.
        data = ["data=synthetic", f"data.corpora.synthetic.num_people={round((options.steps + 1) * 32 / 0.69)}"]
    file = RecordFile.begin("train-throughput", "Training beside transformers.Trainer and TRL's SFTTrainer")
    ratios: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as root:
        arguments = [*data, *SETTINGS, f"store.root={root}/stores"]
        plan = Path(root) / "plan.pt"
        subprocess.run([sys.executable, str(HERE / "peer_plan.py"), str(plan), *arguments], check=True)
        for repeat in range(options.repeats):
            folder = Path(root) / str(repeat)
            folder.mkdir()
            speeds = run_all(file, arguments, plan, folder, num_steps=options.steps, num_warm_up=options.warm_up)
            for name in GOALS.keys() & speeds.keys():
                ratios.setdefault(name, []).append(speeds[OURS] / speeds[name])
    for name, values in sorted(ratios.items()):
        goal(file, f"training / {name}", values, least=GOALS[name])
    file.end()


if __name__ == "__main__":
    main()
