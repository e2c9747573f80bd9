"""Tokens of real text a second: training here, in transformers.Trainer with padding, in TRL's SFTTrainer with packing.

    make peers && python benchmarks/train_throughput.py [--steps N] [--repeats N] [--panel FILE]

Two CPU ranks of one thread each, fp32, the same small Llama from the same weights, the same careers in the same order,
32 a step, plain data parallel (ZeRO-0 here), AdamW at a constant rate. Every system runs in processes of its own, in
turn, `--repeats` times; the median counts. Seconds are those between the ends of steps, the first five left out; tokens
are those of the careers, padding not counted. Trainer sees the very careers of every step, so its losses must be ours.
SFTTrainer also computes the entropy and the accuracy of tokens in each step, as it does for its users.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent
RANKS, WARM_UP = 2, 5
SETTINGS = [
    "tokenizer.vocabulary_size=1024", "model.llama.hidden_size=128", "model.llama.intermediate_size=384",
    "model.llama.num_layers=3", "batch.global_batch_size=32", "batch.max_seq_length=1024", "batch.micro_batch_size=16",
    "optimizer.learning_rate=1e-3", "optimizer.lr_scheduler=constant", "optimizer.warmup_ratio=0",
    "optimizer.weight_decay=0", "optimizer.max_grad_norm=1.0", "training.epochs=1", "training.log_every_steps=1000",
    "zero=stage0",
    "evaluation.max_seq_length=1024",
]  # fmt: skip
SYNTHETIC = ["data=synthetic"]


def start(program: list[str], environment: dict[str, str]) -> None:
    """Run a program as ranks to its end.

    Raises:
        SystemExit: with its output, if it fails.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    processes = []
    for rank in range(RANKS):
        of_rank = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS), "MASTER_PORT": port}
        fixed = {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": str(RANKS)}
        processes.append(
            subprocess.Popen(
                [sys.executable, *program],
                env={**os.environ, **environment, **fixed, **of_rank},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    texts = [process.communicate(timeout=1800)[0] for process in processes]
    if any(process.returncode for process in processes):
        sys.exit(f"{program} failed:\n{texts[0][-4000:]}\n{texts[1][-2000:]}")


def read_steps(path: Path) -> list[dict[str, float]]:
    """Return a record's steps: time at their ends, tokens, loss."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def tokens_per_second(steps: list[dict[str, float]]) -> float:
    counted = steps[WARM_UP:]
    return sum(step["tokens"] for step in counted) / (counted[-1]["time"] - steps[WARM_UP - 1]["time"])


def run_ours(arguments: list[str], folder: Path, stage: str) -> list[dict[str, float]]:
    """Train here; return its steps, the last left out, since it validates."""
    start([str(PROJECT / "launch/train.py"), *arguments, f"zero={stage}", f"output_dir={folder}/runs", "name=ours"], {})
    lines = read_steps(folder / "runs/ours/metrics.jsonl")[:-1]
    return [
        {"time": line["time"], "tokens": line["step_tokens"], "loss": line["loss_nats_per_token"]} for line in lines
    ]


def run_peer(name: str, plan: Path, folder: Path, num_steps: int) -> list[dict[str, float]]:
    """Train in another system; return its steps."""
    program = [str(HERE / "peer_training.py"), name, str(plan), str(folder), str(num_steps)]
    start(program, {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "WANDB_MODE": "disabled"})
    return read_steps(folder / f"{name}.jsonl")


def main() -> None:
    """Run all systems in turn and print their medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--panel", type=Path, help="a long panel in place of synthetic careers")
    options = parser.parse_args()
    data = SYNTHETIC
    if options.panel is not None:
        data = [
            "data=long_panel",
            "tokenizer=trained",
            "optimizer=adamw",
            f"data.corpora.long_panel.path={options.panel}",
        ]
    else:
        data = [*SYNTHETIC, f"data.corpora.synthetic.num_people={round(options.steps * 32 / 0.69)}"]
    speeds: dict[str, list[float]] = {}
    losses: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as root:
        arguments = [*data, *SETTINGS, f"store.root={root}/stores"]
        plan = Path(root) / "plan.pt"
        subprocess.run([sys.executable, str(HERE / "peer_plan.py"), str(plan), *arguments], check=True)
        for repeat in range(options.repeats):
            folder = Path(root) / str(repeat)
            folder.mkdir()
            results = {
                "ours, ZeRO-0": run_ours(arguments, folder / "0", "stage0"),
                "Trainer, padding": run_peer("trainer", plan, folder, options.steps),
                "SFTTrainer, packing": run_peer("sft", plan, folder, options.steps),
                "ours, ZeRO-2": run_ours(arguments, folder / "2", "stage2"),
            }
            for name, steps in results.items():
                speeds.setdefault(name, []).append(tokens_per_second(steps[: options.steps]))
                losses[name] = [step["loss"] for step in steps[: options.steps]]
                print(f"repeat {repeat + 1}  {name:<20} {speeds[name][-1]:>9,.0f} tokens/s", flush=True)
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    ours, padded, packed = (losses[name] for name in ("ours, ZeRO-0", "Trainer, padding", "SFTTrainer, packing"))
    print()
    for name, median in medians.items():
        spread = f"{min(speeds[name]):,.0f} to {max(speeds[name]):,.0f}"
        ratio = medians["ours, ZeRO-0"] / median
        print(f"{name:<20} {median:>9,.0f} tokens/s ({spread})   ours is {ratio:.2f} times it")
    largest = max(abs(one - other) for one, other in zip(ours, padded, strict=False))
    print(f"losses of ours and of Trainer over {len(padded)} steps: largest difference {largest:.1e} nats/token")
    print(f"loss of the last step: ours {ours[-1]:.4f}, SFTTrainer {packed[-1]:.4f}")


if __name__ == "__main__":
    main()
