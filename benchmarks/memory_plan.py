"""How near does the planned memory come to the peak? On a CPU: resident memory; on a GPU: what torch has allocated.

    python benchmarks/memory_plan.py [--ranks N] [setting=value ...]

Trains a Llama of 60 million parameters for three steps in each setting, in processes of its own, and compares what
training printed as its plan with the peak that it then had. malloc is told to give memory back at once (MALLOC_*), so
that the peak is what is held and not what malloc keeps for later; `--malloc=default` leaves it as it is.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from pathlib import Path

from ranks import run_ranks
from records import PROJECT, Record, RecordFile

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
    overrides = [f"output_dir={folder}/runs", "name=x", f"store.root={folder.parent}/stores"]
    text = run_ranks([str(PROJECT / "launch/train.py"), *MODEL, *settings, *overrides], num_ranks, MALLOC[malloc])
    planned = PLANNED.search(text)
    assert planned is not None
    lines = (folder / "runs/x/metrics.jsonl").read_text().splitlines()
    # Peaks of the steps before validation, which the plan is for.
    return float(planned[1]), planned[2], json.loads(lines[1])["peak_memory_gib"]


def main() -> None:
    """Measure each setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--malloc", choices=list(MALLOC), default="exact")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    cases = {" ".join(arguments.overrides): arguments.overrides} if arguments.overrides else SETTINGS
    file = RecordFile.begin("memory-plan", "Planned and peak memory of a rank on a CPU")
    part = f"{arguments.ranks} ranks, malloc {arguments.malloc}"
    with tempfile.TemporaryDirectory() as root:
        for number, (name, settings) in enumerate(cases.items()):
            planned, parts, peak = train(settings, arguments.ranks, Path(root) / str(number), arguments.malloc)
            numbers = {"planned_GiB": planned, "peak_GiB": peak, "error_%": 100 * (planned / peak - 1)}
            file.add(Record(part, name, "passed" if within(planned, peak) else "missed", numbers, parts))
    file.end()


def within(planned: float, peak: float) -> bool:
    """Return whether a plan is as near as it should be."""
    return abs(planned / peak - 1) <= 0.1


if __name__ == "__main__":
    main()
