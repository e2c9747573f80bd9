"""How near does the planned memory come to the peak? On a CPU: resident memory; on a GPU: what torch has allocated.

    python benchmarks/memory_plan.py [--ranks N] [setting=value ...]

Trains a Llama of 60 million parameters for three steps in each setting, in processes of its own, and compares what
training printed as its plan with the peak that it then had. malloc is told to give memory back at once (MALLOC_*), so
that the peak is what is held and not what malloc keeps for later; `--malloc=default` leaves it as it is.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
MODEL = [
    "data=synthetic", "data.corpora.synthetic.num_people=130", "tokenizer.vocabulary_size=8000",
    "model.llama.hidden_size=640", "model.llama.intermediate_size=1728", "model.llama.num_layers=10",
    "model.llama.num_heads=8", "model.llama.num_key_value_heads=8", "model.llama.tied_embeddings=false",
    "batch.global_batch_size=32", "batch.max_seq_length=1024", "batch.micro_batch_size=2", "training.epochs=1",
    "training.log_every_steps=1", "optimizer.learning_rate=1e-4", "evaluation.max_seq_length=1024",
]  # fmt: skip
SETTINGS = {
    "ZeRO-0": ["zero=stage0"],
    "ZeRO-1": ["zero=stage1"],
    "ZeRO-2": ["zero=stage2"],
    "ZeRO-3": ["zero=stage3"],
    "ZeRO-2, checkpointing": ["zero=stage2", "compute=large"],
    "ZeRO-2, 4 rows": ["zero=stage2", "batch.micro_batch_size=4"],
    "ZeRO-2, chunks of 512": ["zero=stage2", "compute.loss_chunk_tokens=512"],
    "ZeRO-2, 8-bit AdamW": ["zero=stage2", "optimizer.name=adamw_8bit"],
    "ZeRO-1, bf16": ["zero=stage1", "zero.precision=bf16"],
    "ZeRO-3, bf16": ["zero=stage3_bf16"],
}
MALLOC = {"exact": {"MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_TRIM_THRESHOLD_": "262144"}, "default": {}}
PLANNED = re.compile(r"plan: a rank needs about ([\d.]+) of [\d.]+ GiB \((.*)\)")


def train(settings: list[str], num_ranks: int, folder: Path, malloc: str) -> tuple[float, str, float]:
    """Return planned GiB, its parts, and the peak of the rank that had most."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [
        sys.executable,
        str(PROJECT / "launch/train.py"),
        *MODEL,
        *settings,
        f"output_dir={folder}/runs",
        "name=x",
    ]
    command.append(f"store.root={folder.parent}/stores")
    processes = []
    for rank in range(num_ranks):
        of_rank = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_ranks), "MASTER_PORT": port}
        environment = {**os.environ, **MALLOC[malloc], "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1", **of_rank}
        processes.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
    texts = [process.communicate(timeout=900)[0] for process in processes]
    if any(process.returncode for process in processes):
        sys.exit(f"{settings} failed:\n{texts[0][-3000:]}")
    planned = PLANNED.search(texts[0])
    assert planned is not None
    lines = (folder / "runs/x/metrics.jsonl").read_text().splitlines()
    # Peaks of the steps before validation, which the plan is for.
    return float(planned[1]), planned[2], json.loads(lines[1])["peak_memory_gib"]


def main() -> None:
    """Print a line for each setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--malloc", choices=list(MALLOC), default="exact")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    cases = {" ".join(arguments.overrides): arguments.overrides} if arguments.overrides else SETTINGS
    worst = 0.0
    with tempfile.TemporaryDirectory() as root:
        for number, (name, settings) in enumerate(cases.items()):
            planned, parts, peak = train(settings, arguments.ranks, Path(root) / str(number), arguments.malloc)
            error = planned / peak - 1
            worst = max(worst, abs(error))
            print(f"{name:<24} planned {planned:5.2f} GiB  peak {peak:5.2f} GiB  {error:+6.1%}   ({parts})", flush=True)
    print(f"{arguments.ranks} ranks, malloc {arguments.malloc}: largest error {worst:.1%}")


if __name__ == "__main__":
    main()
