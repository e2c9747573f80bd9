"""How near does the planned memory of a GPU come to what torch's allocator takes? Without a GPU, at full size.

    python benchmarks/gpu_memory.py [--cases NAME,...] [--out FOLDER]

launch/train.py trains Llama-2 shapes on one rank or several for a few steps, under a CUDA runtime that hands out
addresses and computes nothing (dry_cuda/runtime.c). Weights are a file with holes, so a model takes no room. What the
caching allocator holds at its peak, fragments included, is then exact, and is compared with what training printed as
its plan. Not seen so: CUDA's context, NCCL's own buffers, memory that a kernel's library would take, and time.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dry_cuda.build import build
from memory_plan import PLANNED, within
from ranks import start_ranks
from records import PROJECT, Record, RecordFile

from laborllm_dist.models.dims import KNOWN, ModelShape
from laborllm_dist.planning.memory import CUDA_PROCESS_GIB
from laborllm_dist.store.tokenizer import PROBE, train_tokenizer

DRY_RUN = Path(__file__).resolve().with_name("dry_cuda") / "dry_run.py"
CAREERS = [
    "data=synthetic", "data.corpora.synthetic.num_people=600", "tokenizer=pretrained", "training.epochs=2",
    "training.validations_per_epoch=1", "training.log_every_steps=1",
]  # fmt: skip
SHAPES = {
    "7b": KNOWN["meta-llama/Llama-2-7b-hf"],
    "13b": KNOWN["meta-llama/Llama-2-13b-hf"],
    "1b": ModelShape(2048, 5632, 22, 32, 4, 32000, tied_embeddings=False),
}
STEPS = 4
LIMIT_SECONDS = 900
FILE_BYTES = 5e9  # of a file of weights, as on the hub


@dataclass(frozen=True, slots=True)
class Case:
    """A model's shape, a number of ranks, settings."""

    shape: str
    num_ranks: int
    settings: tuple[str, ...]


CASES = {
    "1B, ZeRO-1": Case("1b", 1, ("zero=stage1", "zero.precision=bf16")),
    "1B, ZeRO-1, 2 ranks": Case("1b", 2, ("zero=stage1", "zero.precision=bf16")),
    "1B, ZeRO-2, 2 ranks": Case("1b", 2, ("zero=stage2_bf16",)),
    "1B, ZeRO-0": Case("1b", 1, ("zero=stage0", "zero.precision=bf16")),
    "1B, ZeRO-3 fp32, 2 ranks": Case("1b", 2, ("zero=stage3",)),
    "7B, LoRA": Case("7b", 1, ("zero=stage1", "zero.precision=bf16", "adapter=lora", "batch.micro_batch_size=4")),
    "7B, LoRA, checkpointing": Case(
        "7b", 1, ("zero=stage1", "zero.precision=bf16", "adapter=lora", "compute=large", "batch.micro_batch_size=4")
    ),
    "7B, ZeRO-3, 4 ranks": Case("7b", 4, ("zero=stage3_bf16", "compute=large")),
    "7B, ZeRO-3, 4 ranks, no checkpointing": Case("7b", 4, ("zero=stage3_bf16",)),
    "13B, ZeRO-3, 4 ranks": Case("13b", 4, ("zero=stage3_bf16", "compute=large")),
}


def write_model(folder: Path, shape: ModelShape) -> None:
    """Write a Llama of this shape whose weights are a hole in a file: zeros in bf16 that take no room."""
    folder.mkdir(parents=True)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size, "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads, "num_key_value_heads": shape.num_key_value_heads,
        "vocab_size": shape.num_ids, "tie_word_embeddings": shape.tied_embeddings, "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5, "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    train_tokenizer([PROBE], vocabulary_size=300).save(folder)
    sizes: dict[str, list[int]] = {"model.embed_tokens.weight": [shape.num_ids, shape.hidden_size]}
    for layer in range(shape.num_layers):
        for name, (inputs, outputs) in shape.linear_layers.items():
            part = "mlp" if name in ("gate_proj", "up_proj", "down_proj") else "self_attn"
            sizes[f"model.layers.{layer}.{part}.{name}.weight"] = [outputs, inputs]
        for name in ("input_layernorm", "post_attention_layernorm"):
            sizes[f"model.layers.{layer}.{name}.weight"] = [shape.hidden_size]
    sizes["model.norm.weight"] = [shape.hidden_size]
    sizes["lm_head.weight"] = [shape.num_ids, shape.hidden_size]
    files: list[dict[str, list[int]]] = [{}]
    for name, size in sizes.items():
        if sum(map(num_bytes, files[-1].values())) + num_bytes(size) > FILE_BYTES:
            files.append({})
        files[-1][name] = size
    file_of: dict[str, str] = {}
    for number, held in enumerate(files, start=1):
        path = folder / f"model-{number:05d}-of-{len(files):05d}.safetensors"
        write_holes(path, held)
        file_of |= dict.fromkeys(held, path.name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": file_of}))


def num_bytes(size: list[int]) -> int:
    """Return the bytes of a tensor in bf16."""
    return 2 * math.prod(size)


def write_holes(path: Path, sizes: Mapping[str, list[int]]) -> None:
    """Write a safetensors file of zeros that takes no room."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, size in sizes.items():
        start, end = end, end + num_bytes(size)
        header[name] = {"dtype": "BF16", "shape": size, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


def train(case: Case, folder: Path, dry: Mapping[str, str]) -> tuple[str, float | None]:
    """Train for a few steps; return what was printed, and the peak of the rank that had most, None if it ran out."""
    model = folder.parent / f"model-{case.shape}"
    if not model.exists():
        write_model(model, SHAPES[case.shape])
    program = [
        str(DRY_RUN), str(PROJECT / "launch/train.py"), *CAREERS, "model=pretrained",
        f"model.path={model}", f"output_dir={folder}/runs", "name=x", f"store.root={folder.parent}/stores",
        *case.settings,
    ]  # fmt: skip
    folder.mkdir()
    # Each rank has a machine of its own: the one GPU that is not there is number 0 everywhere.
    environment = {**dry, "LOCAL_RANK": "0"}
    with (folder / "log").open("w") as log:
        processes = start_ranks(program, case.num_ranks, environment, output=log, in_own_groups=True)
        lines = wait_for_steps(processes, folder / "runs/x/metrics.jsonl")
    text = (folder / "log").read_text()
    if len(lines) < STEPS and "out of memory" not in text:
        sys.exit(f"{case} failed:\n{text[-3000:]}")
    peaks = [json.loads(line)["peak_memory_gib"] for line in lines[:STEPS]]
    return text, max(peaks) + CUDA_PROCESS_GIB if len(lines) >= STEPS else None


def wait_for_steps(processes: list[subprocess.Popen[str]], metrics: Path) -> list[str]:
    """Return the lines of metrics.jsonl once there are enough, or a rank has ended; end all ranks."""
    deadline = time.monotonic() + LIMIT_SECONDS
    try:
        while True:
            has_ended = time.monotonic() > deadline or any(process.poll() is not None for process in processes)
            lines = metrics.read_text().splitlines() if metrics.exists() else []
            if len(lines) >= STEPS or has_ended:
                return lines
            time.sleep(0.5)
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def main() -> None:
    """Measure each case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", help="names, separated by semicolons; all by default")
    arguments = parser.parse_args()
    names = arguments.cases.split(";") if arguments.cases else list(CASES)
    file = RecordFile.begin("gpu-memory", "Planned memory of a GPU beside what torch's allocator takes, without a GPU")
    with tempfile.TemporaryDirectory() as root:
        dry = {**build(Path(root) / "dry"), "DRY_CUDA_PROCESS_GIB": str(CUDA_PROCESS_GIB)}
        for number, name in enumerate(names):
            text, peak = train(CASES[name], Path(root) / f"{number}", {**dry, "DRY_CUDA_GIB": "640"})
            planned_line = PLANNED.search(text)
            assert planned_line is not None and peak is not None
            planned, parts = float(planned_line[1]), planned_line[2]
            card = {"DRY_CUDA_GIB": str(planned + 0.01)}
            _, again = train(CASES[name], Path(root) / f"{number}-card", {**dry, **card})
            note = f"a card of the planned size {'suffices' if again is not None else 'runs out'}; {parts}"
            numbers = {"planned_GiB": planned, "peak_GiB": peak, "error_%": 100 * (planned / peak - 1)}
            file.add(Record("memory", name, "passed" if within(planned, peak) else "missed", numbers, note))
    file.end()


if __name__ == "__main__":
    main()
