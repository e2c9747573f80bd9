"""Speed of training as others publish it: tokens, careers and FLOPs utilization of a GPU, and its roofline.

Operations of a trained token, forward and backward, of a model with N weights, L layers and rows of T tokens:

    llm-foundry    6 N + 12 L hidden T                    N: all weights; attention to the whole row
                   8 N + 16 L hidden T                    hardware utilization (HFU) with gradient checkpointing
    torchtitan     6 (N - embedding) + 12 L query T       attention to the whole row, no recomputation
    careers        planning/throughput.flops_per_token    what the model needs: a token attends to what precedes it in
                                                          its career, and a frozen weight has no gradient

The first two are of every token of a row, padding included, and divide by the peak of bf16 of the data sheet; a CPU has
none, so that the fastest matrix product seen in the same run takes its place.

Roofline: the time in which a token can be trained if every kernel runs at a limit of the machine: matrix products and
attention at its peak of arithmetic, all other kernels at the bandwidth of its memory, one after the other.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from laborllm_dist.cli import compose_settings
from laborllm_dist.config.run import RunSettings
from laborllm_dist.distributed.context import DistributedContext
from laborllm_dist.models.dims import ModelShape
from laborllm_dist.planning.throughput import FITTED, flops_per_token, seconds_of_token, update_seconds

TERA, GIGA = 1e12, 1e9
# By the beginning of a card's name that fits first: dense bf16 TFLOP/s and GB/s of the data sheet, and its price in
# conf/gpu; cards on PCIe are slower.
CARDS = {
    "H100 PCIe": (756.0, 2000.0, "h100"), "H100 NVL": (835.0, 3938.0, "h100"), "H200 NVL": (835.0, 4800.0, "h200"),
    "H100": (989.0, 3350.0, "h100"), "H200": (989.0, 4800.0, "h200"), "A100": (312.0, 2039.0, "a100_80gb"),
    "L40S": (362.0, 864.0, "l40s"),
}  # fmt: skip
OBSERVATIONS = 22  # of an NLSY97 career, mean
PROBES, PROBE_SIZE, COPIED_BYTES = 60, 512, 2**25  # short, so that some are not interrupted by other processes


@dataclass(frozen=True, slots=True)
class Machine:
    """Limits of a GPU, or of a CPU process of a run: operations and bytes a second, dollars an hour."""

    flops: float
    bandwidth: float
    dollars_per_hour: float


def find_machine(ranks: DistributedContext) -> Machine | None:
    """Return the limits of this rank's GPU from its data sheet, None if unknown; of a CPU as measured. Collective."""
    if ranks.device.type == "cuda":
        name = torch.cuda.get_device_name()
        card = next((card for known, card in CARDS.items() if known in name), None)
        return card and Machine(card[0] * TERA, card[1] * GIGA, dollars_per_hour(card[2]))
    ranks.barrier()  # all ranks at once, as when they train
    flops, bandwidth = probe_cpu()
    return Machine(max(ranks.share(flops)), max(ranks.share(bandwidth)), dollars_per_hour("cpu_core"))


def dollars_per_hour(name: str) -> float:
    """Return the assumed price of a GPU, or of a core of a CPU, of conf/gpu."""
    return compose_settings(RunSettings, "run", [f"gpu@plan.gpu={name}"]).plan.gpu.dollars_per_hour


def probe_cpu() -> tuple[float, float]:
    """Return the highest speed of a matrix product in fp32 and of a copy, of this process's threads: per second."""
    matrix = torch.rand(PROBE_SIZE, PROBE_SIZE)
    source = torch.zeros(COPIED_BYTES // 4)
    target = torch.ones_like(source)
    flops = bandwidth = 0.0
    for _ in range(PROBES):
        started = time.perf_counter()
        matrix @ matrix
        multiplied = time.perf_counter()
        target.copy_(source)
        copied = time.perf_counter()
        flops = max(flops, 2 * PROBE_SIZE**3 / (multiplied - started))
        bandwidth = max(bandwidth, 2 * COPIED_BYTES / (copied - multiplied))
    return flops, bandwidth


def llm_foundry_flops(shape: ModelShape, row_length: int, *, recomputed: bool = False) -> float:
    """Return llm-foundry's operations of a token; with `recomputed` those of its HFU under gradient checkpointing."""
    passes = 4 if recomputed else 3
    return passes * (2 * shape.num_parameters + 4 * shape.num_layers * shape.hidden_size * row_length)


def torchtitan_flops(shape: ModelShape, row_length: int) -> float:
    """Return torchtitan's operations of a token; tied embeddings are a matrix product, and count."""
    embedding = 0 if shape.tied_embeddings else shape.embedding
    return 6 * (shape.num_parameters - embedding) + 12 * shape.num_layers * shape.query_size * row_length


@dataclass(frozen=True, slots=True)
class Work:
    """Work of some steps of a rank: slots of their rows, and the tokens of each career in them."""

    num_steps: int
    slots: int
    row_length: int
    lengths: Sequence[int]

    @property
    def tokens(self) -> int:
        """Tokens that are not padding."""
        return sum(self.lengths)

    @property
    def attended(self) -> float:
        """Tokens of its career that a token attends to, on average."""
        return sum(length**2 for length in self.lengths) / self.tokens / 2


def training_numbers(
    shape: ModelShape, settings: RunSettings, work: Work, seconds: float, machine: Machine | None
) -> dict[str, float]:
    """Return the published figures of a rank that took so many seconds for its work."""
    slots, tokens = work.slots / seconds, work.tokens / seconds
    model = flops_per_token(shape, settings.adapter, attended=work.attended) * tokens
    numbers = {
        "tokens_per_second": slots,
        "non_padding_tokens_per_second": tokens,
        "careers_per_second": len(work.lengths) / seconds,
        "padding_%": 100 * (1 - work.tokens / work.slots),
        "model_GFLOP_per_second": model / GIGA,
    }
    if machine is None:
        return numbers
    numbers["MFU_%_careers"] = 100 * model / machine.flops
    if settings.adapter.kind == "none":
        foundry, titan = llm_foundry_flops(shape, work.row_length), torchtitan_flops(shape, work.row_length)
        numbers["MFU_%_llm-foundry"] = 100 * foundry * slots / machine.flops
        numbers["MFU_%_torchtitan"] = 100 * titan * slots / machine.flops
        recomputed = settings.compute.gradient_checkpointing
        hardware = llm_foundry_flops(shape, work.row_length, recomputed=recomputed)
        numbers["HFU_%_llm-foundry"] = 100 * hardware * slots / machine.flops
    limit = roofline(shape, settings, work, machine)
    observations = OBSERVATIONS * len(work.lengths) / seconds
    return numbers | {
        "roofline_tokens_per_second": limit,
        "%_of_roofline": 100 * tokens / limit,
        "dollars_per_million_observations": dollars_per_million(observations, machine),
    }


def dollars_per_million(observations_per_second: float, machine: Machine) -> float:
    """Return the price of a million observations."""
    return 1e6 / observations_per_second / 3600 * machine.dollars_per_hour


def roofline(shape: ModelShape, settings: RunSettings, work: Work, machine: Machine) -> float:
    """Return the tokens that a rank could train a second, without padding, at the limits of its machine."""
    tera = machine.flops / TERA
    limits = dataclasses.replace(
        settings.plan.gpu, bf16_tflops=tera, fp32_tflops=tera, matmul_utilization=1.0, attention_utilization=1.0,
        memory_gigabytes_per_second=machine.bandwidth / GIGA,
    )  # fmt: skip
    limited = dataclasses.replace(settings, plan=dataclasses.replace(settings.plan, gpu=limits))
    update = update_seconds(shape, limited, FITTED) * work.num_steps / work.tokens
    return 1 / (seconds_of_token(shape, limited, work.attended, FITTED) + update)
