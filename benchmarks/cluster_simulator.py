"""How near does the planned time of a step come to published throughput? And what does it say of 8 to 512 GPUs?

    python benchmarks/cluster_simulator.py           # errors on figures that were used to fit, and on those left out;
                                                     # then settings of 13B, and 24 million resumes
    python benchmarks/cluster_simulator.py --13b     # settings of 13B alone
    python benchmarks/cluster_simulator.py --fit     # fits the numbers of planning/throughput.py and conf/gpu again

published_throughput.csv has figures that others measured with FSDP, which gathers weights and reduces gradients as
ZeRO-3 does: llm-foundry's table (scripts/train/benchmarking), torchtitan's of December 2024 (96 GB H100s limited to 500
W), NeMo AutoModel's of one GPU. The fit sees llm-foundry's models of up to 7B on up to 64 GPUs, and of torchtitan one
ratio: eager over compiled. All else is a test: 13B, 30B, 70B, all rows of 128 GPUs, other models, LoRA.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from records import Record, RecordFile
from rich.console import Console
from scipy.optimize import least_squares

from laborllm_dist.cli import compose_settings
from laborllm_dist.config.run import RunSettings
from laborllm_dist.models.dims import ModelShape, shape_of
from laborllm_dist.planning.collectives import Collective, fabric_of
from laborllm_dist.planning.display import show_plan
from laborllm_dist.planning.estimate import budget_of_gpu, estimate_resources
from laborllm_dist.planning.memory import GIB
from laborllm_dist.planning.throughput import (
    FITTED,
    Calibration,
    added_by_links,
    cost_of_step,
    excess_of_slowest,
    seconds_of_token,
    update_seconds,
)
from laborllm_dist.planning.workload import find_workload

PUBLISHED = Path(__file__).resolve().with_name("published_throughput.csv")
MPT = {  # hidden size, layers, heads
    "760m": (1536, 24, 12), "1b": (2048, 24, 16), "3b": (2560, 32, 20), "7b": (4096, 32, 32), "13b": (5120, 40, 40),
    "30b": (7168, 48, 56), "70b": (8192, 80, 64),
}  # fmt: skip
SHAPES = {
    # Two matrices of 4 x hidden, which have as many weights as a Llama's three of 8 / 3.
    **{
        f"mpt-{size}": ModelShape(hidden, 8 * hidden // 3, layers, heads, heads, 50_368, tied_embeddings=True)
        for size, (hidden, layers, heads) in MPT.items()
    },
    "llama-3-8b": ModelShape(4096, 14336, 32, 32, 8, 128_256, tied_embeddings=False),
    "llama-3.1-8b": ModelShape(4096, 14336, 32, 32, 8, 128_256, tied_embeddings=False),
    "qwen2.5-7b": ModelShape(3584, 18944, 28, 28, 4, 152_064, tied_embeddings=False),
}
GPUS = ("h100", "a100_80gb", "a100_40gb")
SHARED = {  # fitted, with first guess and upper bound
    "recomputation": (0.8, 3.0), "layer_bytes": (100.0, 2_000.0), "vocabulary_bytes": (8.0, 50.0),
    "exposed": (0.5, 1.0), "spread": (0.01, 0.1),
}  # fmt: skip
GOOD, ACCEPTABLE = 0.05, 0.10
SMALL_BUCKETS = "zero.bucket_size=50000000"
# Settings of +experiment=pooled_13b.
THIRTEEN_B = {
    "buckets of 50 million": [SMALL_BUCKETS],
    "buckets of 500 million (as the experiment is)": [],
    "buckets of 1,300 million": ["zero.bucket_size=1300000000"],
    "gradient checkpointing": ["compute=large"],
    "ZeRO-2": ["zero.stage=2"],
    "checkpointing, four H100": [
        "compute=large", "plan.num_gpus=4", "batch.micro_batch_size=2", SMALL_BUCKETS,
    ],
    "four H100": ["plan.num_gpus=4", "batch.micro_batch_size=2", "batch.max_seq_length=1344", SMALL_BUCKETS],
    "two H200": [
        "gpu@plan.gpu=h200", "plan.num_gpus=2", "batch.micro_batch_size=2", "batch.max_seq_length=1344",
        SMALL_BUCKETS,
    ],
    "four H200": ["gpu@plan.gpu=h200", "plan.num_gpus=4", "batch.micro_batch_size=4", "batch.max_seq_length=1344"],
    "96 careers a step": [
        "batch.global_batch_size=96", "batch.micro_batch_size=4", "batch.max_seq_length=1344", SMALL_BUCKETS,
    ],
    "96 careers a step, buckets of 500 million": [
        "batch.global_batch_size=96", "batch.micro_batch_size=4", "batch.max_seq_length=1344",
    ],
    "192 careers a step": ["batch.global_batch_size=192", "batch.micro_batch_size=3", SMALL_BUCKETS],
    "512 careers a step": [
        "batch.global_batch_size=512", "batch.micro_batch_size=3", "batch.max_seq_length=1344", SMALL_BUCKETS,
    ],
    "128 careers, eight H200": [
        "gpu@plan.gpu=h200", "batch.global_batch_size=128", "batch.micro_batch_size=4", "batch.max_seq_length=1344",
    ],
}  # fmt: skip
RESUMES = [
    "+experiment=pooled_7b", "data=resumes", "compute=default", "batch.global_batch_size=2048",
    "batch.max_seq_length=2048", "batch.micro_batch_size=4", "plan.num_gpus=64",
    "plan.compare_num_gpus=[8,16,32,64,128,256,512]",
]  # fmt: skip
TITAN_MEMORY = 2_400.0  # GB/s of torchtitan's GPUs, HBM2e


@dataclass(frozen=True, slots=True)
class Published:
    """A published figure."""

    source: str
    model: str
    gpu: str
    num_gpus: int
    row_length: int
    micro_batch_size: int
    num_passes: int
    gradient_checkpointing: bool
    gradient_bytes: int
    tokens_per_second: float  # of a GPU

    @property
    def is_fitted(self) -> bool:
        """Whether the fit uses it."""
        return (
            self.source == "llm-foundry" and self.model.split("-")[1] in ("760m", "1b", "3b", "7b")
        ) and self.num_gpus <= 64

    @property
    def is_left_out(self) -> bool:
        """Whether the fit uses neither it nor a ratio with it."""
        return not self.is_fitted and (self.source, self.num_gpus) != ("torchtitan eager", 8)


def published() -> list[Published]:
    """Return all published figures."""
    with PUBLISHED.open(newline="") as file:
        return [
            Published(
                row["source"], row["model"], row["gpu"], int(row["num_gpus"]), int(row["row_length"]),
                int(row["micro_batch_size"]), int(row["num_passes"]), row["gradient_checkpointing"] == "true",
                int(row["gradient_bytes"]), float(row["tokens_per_second"]),
            )
            for row in csv.DictReader(file)
        ]  # fmt: skip


def settings_of(row: Published) -> RunSettings:
    """Return settings of its GPUs, in bf16."""
    adapter = ["adapter=lora", "adapter.rank=8"] if "LoRA" in row.source else []
    titan = [f"plan.gpu.memory_gigabytes_per_second={TITAN_MEMORY}"] if "torchtitan" in row.source else []
    return compose_settings(
        RunSettings, "run",
        [f"gpu@plan.gpu={row.gpu}", f"plan.num_gpus={row.num_gpus}", "zero=stage3_bf16",
         f"compute.gradient_checkpointing={str(row.gradient_checkpointing).lower()}", *adapter, *titan],
    )  # fmt: skip


def predicted(row: Published, settings: RunSettings, calibration: Calibration) -> float:
    """Return the planned tokens per second and GPU of a published figure."""
    shape, num_gpus = SHAPES[row.model], row.num_gpus
    unfused = calibration.unfused if "eager" in row.source else 1.0
    calibration = dataclasses.replace(calibration, unfused=unfused)
    slots = row.micro_batch_size * row.row_length
    of_token = seconds_of_token(shape, settings, row.row_length / 2, calibration)
    computing = slots * of_token * (1 + calibration.spread * excess_of_slowest(num_gpus))
    learned = shape.num_trainable(settings.adapter)
    fabric = fabric_of(settings.plan, efficiency=calibration.link_efficiency)
    collectives = (
        Collective(2 * 2.0 * shape.num_parameters, 2 * shape.num_layers, rounds=1, is_overlapped=True),
        Collective(float(row.gradient_bytes * learned), shape.num_layers, rounds=1, is_overlapped=True),
    )
    overlapped = sum(each.seconds(num_gpus, fabric) for each in collectives)
    of_pass = computing + added_by_links((computing,), overlapped, 0.0, calibration)
    return row.num_passes * slots / (row.num_passes * of_pass + update_seconds(shape, settings, calibration))


def with_gpu(settings: RunSettings, matmul: float, attention: float) -> RunSettings:
    """Return settings with other utilizations."""
    gpu = dataclasses.replace(settings.plan.gpu, matmul_utilization=matmul, attention_utilization=attention)
    return dataclasses.replace(settings, plan=dataclasses.replace(settings.plan, gpu=gpu))


def fit(rows: Sequence[Published]) -> tuple[Calibration, dict[str, tuple[float, float]]]:
    """Fit the shared numbers, and the utilizations of each GPU, by robust least squares on log throughput."""
    of_rows = [settings_of(row) for row in rows]

    def unpack(values: Sequence[float]) -> tuple[Calibration, dict[str, tuple[float, float]]]:
        shared = dict(zip(SHARED, values[2 * len(GPUS) :], strict=True))
        pairs = {gpu: (values[2 * index], values[2 * index + 1]) for index, gpu in enumerate(GPUS)}
        return dataclasses.replace(FITTED, **shared), pairs

    def errors(values: NDArray[np.float64], /) -> list[float]:
        calibration, pairs = unpack(values.tolist())
        return [
            float(np.log(predicted(row, with_gpu(settings, *pairs[row.gpu]), calibration) / row.tokens_per_second))
            for row, settings in zip(rows, of_rows, strict=True)
        ]

    first = [0.6, 0.3] * len(GPUS) + [guess for guess, _ in SHARED.values()]
    most = [1.0, 1.0] * len(GPUS) + [bound for _, bound in SHARED.values()]
    fitted = least_squares(
        errors, first, bounds=([0.02, 0.02] * len(GPUS) + [1e-6] * len(SHARED), most), loss="soft_l1", f_scale=0.03,
        x_scale=first,
    )  # fmt: skip
    return unpack(fitted.x.tolist())


def fit_unfused(rows: Sequence[Published], calibration: Calibration, pairs: dict[str, tuple[float, float]]) -> float:
    """Return the factor of unfused kernels that gives torchtitan's ratio of eager to compiled on eight GPUs."""
    eager, compiled = (
        next(row for row in rows if row.source == f"torchtitan {kind}" and row.num_gpus == 8)
        for kind in ("eager", "compiled")
    )
    published = eager.tokens_per_second / compiled.tokens_per_second
    settings = with_gpu(settings_of(eager), *pairs["h100"])
    fused = predicted(compiled, settings, calibration)
    low, high = 1.0, 10.0
    for _ in range(60):
        middle = (low + high) / 2
        ratio = predicted(eager, settings, dataclasses.replace(calibration, unfused=middle)) / fused
        low, high = (middle, high) if ratio > published else (low, middle)
    return low


def compare(file: RecordFile, part: str, rows: Sequence[Published]) -> None:
    """Record each figure beside its plan, and a summary."""
    sizes = []
    for row in rows:
        plan = predicted(row, settings_of(row), FITTED)
        error = plan / row.tokens_per_second - 1
        sizes.append(abs(error))
        verdict = "good" if abs(error) <= GOOD else "acceptable" if abs(error) <= ACCEPTABLE else "missed"
        recomputes = ", recomputes" if row.gradient_checkpointing else ""
        subject = (
            f"{row.source}, {row.model}, {row.num_gpus} x {row.gpu}, {row.micro_batch_size} x {row.row_length:,} x "
            f"{row.num_passes}{recomputes}"
        )
        numbers = {"published": row.tokens_per_second, "planned": plan, "error_%": 100 * error}
        file.add(Record(part, subject, "missed" if verdict == "missed" else "passed", numbers, verdict))
    good, acceptable = (sum(size <= bar for size in sizes) for bar in (GOOD, ACCEPTABLE))
    errors = {"mean": statistics.mean(sizes), "median": statistics.median(sizes), "largest": max(sizes)}
    numbers = {f"{name}_error_%": 100 * error for name, error in errors.items()}
    numbers |= {"figures": len(sizes), "within_5_%": good, "within_10_%": acceptable}
    file.add(Record("summary", part, numbers=numbers))


def ladder() -> Iterator[Record]:
    """Yield the planned speed and memory of 13B with several settings, with plain kernels and with fused ones.

    `exposed` of the calibration is fitted to passes that compute for longer than their traffic takes. Here both take
    about as long, so the speed is also given for traffic that is hidden wherever it can be, and for none that is.
    """
    for name, overrides in THIRTEEN_B.items():
        for source in ("plain", "liger"):
            command = ["+experiment=pooled_13b", *overrides, f"compute.kernels={source}"]
            settings = compose_settings(RunSettings, "run", command)
            work, num_ids = find_workload(settings)
            shape = shape_of(settings.model, num_ids=num_ids)
            estimate = estimate_resources(settings, work, shape, budget_of_gpu(settings.plan.gpu))
            numbers: dict[str, float] = {}
            for traffic, exposed in (("planned", FITTED.exposed), ("none_hidden", 1.0), ("all_hidden", 0.0)):
                calibration = dataclasses.replace(FITTED, exposed=exposed)
                seconds = cost_of_step(shape, settings, work, estimate.passes, calibration).seconds
                numbers[traffic] = estimate.passes.num_tokens / seconds / settings.plan.num_gpus
            numbers["GiB"] = estimate.memory.total / GIB
            note = "; ".join(filter(None, ["fits" if estimate.fits else "does not fit", " ".join(overrides)]))
            part = "13B, planned; published for MPT-13B on eight H100s: 4,717 to 5,502"
            yield Record(part, f"{name}, {source} kernels", numbers=numbers, note=note)


def main() -> None:
    """Print the errors and examples, or fit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--13b", action="store_true", dest="only_13b")
    arguments = parser.parse_args()
    rows = published()
    if arguments.fit:
        calibration, pairs = fit([row for row in rows if row.is_fitted])
        for gpu, (matmul, attention) in pairs.items():
            print(f"conf/gpu/{gpu}.yaml: matmul_utilization {matmul:.3f}, attention_utilization {attention:.3f}")
        print(dataclasses.replace(calibration, unfused=fit_unfused(rows, calibration, pairs)))
        return
    file = RecordFile.begin("cluster-simulator", "Tokens per second and GPU: published and planned")
    if not arguments.only_13b:
        for part, is_left_out in (("used for the fit", False), ("left out of the fit", True)):
            compare(file, part, [row for row in rows if row.is_left_out is is_left_out])
    for record in ladder():
        file.add(record)
    file.end()
    if arguments.only_13b:
        return
    print(f"python launch/plan.py {' '.join(RESUMES)}\n", flush=True)
    show_plan(compose_settings(RunSettings, "run", RESUMES), Console(width=80))


if __name__ == "__main__":
    main()
