"""The cost of a step: floating-point operations, bytes over the links, seconds, dollars.

L trainable weights, W ranks, p passes per step, b bytes per value (2 in bf16, 4 in fp32). In a ring each rank sends n
(W - 1) / W bytes to all-gather n bytes, as many to reduce-scatter them, twice as many to all-reduce them. Per step:

    ZeRO-0   2 x 4 L             fp32 gradients
    ZeRO-1   2 x 4 L + b L       and the updated weights
    ZeRO-2   p 2 x 4 L + b L     after every pass; DeepSpeed all-reduces each bucket
    ZeRO-3   p (4 L + gathers)   weights before forward and backward, except those still gathered from the forward

tests/distributed/test_traffic.py counts them. ZeRO-3 prefetches weights while layers compute; with overlap_comm, stages
2 and 3 reduce gradients meanwhile, too. All other traffic blocks.

A pass takes the operations over the speed that matrix products and attention reach, and the memory traffic of all other
kernels over the memory's bandwidth; the slowest of all ranks counts, with a little noise. What runs meanwhile on the
links is hidden in part: a `FITTED` share of it adds to the time. benchmarks/cluster_simulator.py fits these numbers to
published throughput and tests them on figures that were left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

from laborllm_dist.config.model import AdapterSettings, ZeroSettings
from laborllm_dist.config.run import GpuSettings, RunSettings
from laborllm_dist.distributed.deepspeed_config import LIVE_BUCKETS, overlaps_communication
from laborllm_dist.models.dims import ModelShape
from laborllm_dist.planning.collectives import GIGA, Collective, fabric_of
from laborllm_dist.planning.memory import weight_bytes
from laborllm_dist.planning.workload import Passes, Workload

TERA = 1e12
Precision = Literal["bf16", "fp32"]
LAYER_SECONDS = 1e-3  # assumed minimum per layer and pass, forward and backward: a hundred kernels, 10 us each
# Bytes per weight that AdamW reads and writes on a host. DeepSpeed's reads gradient, weight and two moments once, and
# writes all but the gradient: 16 + 12. torch's makes one pass per operation: decay 8, first moment 12, second 8 + 12,
# its root 8, division 8, epsilon 8, update 16.
ADAM_BYTES = {"cpu_adamw": 28, "adamw": 80}
NVME_BYTES = 2 * 16  # per weight, to disk and back: gradient, weight, two moments


@dataclass(frozen=True, slots=True)
class Calibration:
    """Numbers of a pass's time that are the same for all GPUs; `FITTED` by benchmarks/cluster_simulator.py.

    recomputation: cost of gradient checkpointing, as a fraction of a layer's forward.
    layer_bytes: memory traffic of a layer beside matrix products and attention, with fused kernels in bf16, for a token
        and each of its hidden_size numbers.
    unfused: times as much with compute.kernels=plain: transformers' norms, rotary embeddings and SwiGLU are not fused.
    vocabulary_bytes: memory traffic of the loss, for a token and each id of the vocabulary.
    exposed: fraction of the shorter one of computing and overlapped traffic that adds to the longer one.
    link_efficiency: fraction of the links' datasheet speed that collectives reach.
    spread: standard deviation of a rank's computing over its mean.
    update_bytes: memory traffic of the update, for a weight of the rank's share.
    """

    recomputation: float
    layer_bytes: float
    unfused: float
    vocabulary_bytes: float
    exposed: float
    link_efficiency: float
    spread: float
    update_bytes: float


FITTED = Calibration(
    recomputation=0.769, layer_bytes=296.0, unfused=2.35, vocabulary_bytes=50.0, exposed=0.773, link_efficiency=0.8,
    spread=0.0113, update_bytes=40.0,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes that a rank sends in a step: overlapped with computing, and blocking."""

    overlapped: float
    exposed: float

    @property
    def total(self) -> float:
        """All bytes."""
        return self.overlapped + self.exposed


@dataclass(frozen=True, slots=True)
class Cost:
    """Cost of a step, mean over the packed steps: traffic of a rank, and seconds.

    `computing` is of the rank with most tokens; `is_launch_bound`: kernels take longer to launch than to run.
    """

    traffic: Traffic
    computing: float
    is_launch_bound: bool
    links: float  # what traffic adds
    updating: float
    offloading: float  # transfers to the host's memory or disks and back, and the update there

    @property
    def seconds(self) -> float:
        """Seconds of a step."""
        return self.computing + self.links + self.updating + self.offloading


def cost_of_step(
    shape: ModelShape, settings: RunSettings, work: Workload, passes: Passes, calibration: Calibration = FITTED
) -> Cost:
    """Return the cost of a step on `plan.num_gpus` GPUs."""
    of_token = seconds_of_token(shape, settings, work.attended, calibration)
    launch = shape.num_layers * LAYER_SECONDS
    slower = 1 + calibration.spread * excess_of_slowest(settings.plan.num_gpus)
    of_steps = [tuple(slower * max(slots * of_token, launch) for slots in step) for step in passes.slots]
    links = [
        added_by_links(computing, *seconds_of_links(shape, settings, len(computing), calibration), calibration)
        for computing in of_steps
    ]
    num_passes = passes.num_passes
    return Cost(
        traffic=traffic_of_step(shape, settings, num_passes),
        computing=sum(map(sum, of_steps)) / len(of_steps),
        is_launch_bound=max(map(max, passes.slots)) * of_token < launch,
        links=sum(links) / len(links),
        updating=update_seconds(shape, settings, calibration),
        offloading=offload_seconds(shape, settings, num_passes),
    )


def excess_of_slowest(num_ranks: int) -> float:
    """Return the median, in standard deviations, of the largest of `num_ranks` normal numbers; 0 for one rank."""
    return NormalDist().inv_cdf(0.5 ** (1 / num_ranks))


def seconds_of_token(shape: ModelShape, settings: RunSettings, attended: float, calibration: Calibration) -> float:
    """Return the seconds of a token's forward and backward on one GPU.

    A forward is a third of forward and backward; gradient checkpointing repeats it in all but the output layer.
    """
    again = calibration.recomputation if settings.compute.gradient_checkpointing else 0.0
    layers = shape.num_matmul_params - shape.embedding
    return _kernel_seconds(
        settings.plan.gpu,
        settings.zero.precision,
        products=linear_flops(shape, settings.adapter) + 2 * again * layers,
        attention=attention_flops(shape, attended) * (1 + again / 3),
        moved=_layer_bytes(shape, settings, calibration) * (1 + again / 3)
        + calibration.vocabulary_bytes * shape.num_ids,
    )


def forward_seconds_of_token(
    shape: ModelShape, settings: RunSettings, attended: float, precision: Precision, calibration: Calibration
) -> float:
    """Return the seconds of a token's forward alone on one GPU, in any precision."""
    return _kernel_seconds(
        settings.plan.gpu,
        precision,
        products=2 * shape.num_matmul_params,
        attention=attention_flops(shape, attended) / 3,
        moved=(_layer_bytes(shape, settings, calibration) + calibration.vocabulary_bytes * shape.num_ids) / 3,
    )


def _layer_bytes(shape: ModelShape, settings: RunSettings, calibration: Calibration) -> float:
    times = calibration.unfused if settings.compute.kernels == "plain" else 1.0
    return calibration.layer_bytes * times * shape.num_layers * shape.hidden_size


def _kernel_seconds(
    gpu: GpuSettings, precision: Precision, *, products: float, attention: float, moved: float
) -> float:
    """Return the seconds of these operations, and of these bytes in bf16."""
    peak = TERA * (gpu.bf16_tflops if precision == "bf16" else gpu.fp32_tflops)
    return (
        products / (gpu.matmul_utilization * peak)
        + attention / (gpu.attention_utilization * peak)
        + moved * (1 if precision == "bf16" else 2) / (gpu.memory_gigabytes_per_second * GIGA)
    )


def added_by_links(computing: tuple[float, ...], overlapped: float, blocking: float, calibration: Calibration) -> float:
    """Return the seconds that traffic adds to a step with these seconds of computing for each of its passes."""
    of_pass = overlapped / len(computing)
    beside = sum(max(0.0, of_pass - each) + calibration.exposed * min(of_pass, each) for each in computing)
    return beside + blocking


def seconds_of_links(
    shape: ModelShape, settings: RunSettings, num_passes: int, calibration: Calibration
) -> tuple[float, float]:
    """Return the seconds of the traffic of a step that overlaps with computing, and of that which blocks."""
    plan = settings.plan
    fabric = fabric_of(plan, efficiency=calibration.link_efficiency)
    seconds = {True: 0.0, False: 0.0}
    for collective in collectives_of_step(shape, settings, num_passes):
        seconds[collective.is_overlapped] += collective.seconds(plan.num_gpus, fabric)
    return seconds[True], seconds[False]


def update_seconds(shape: ModelShape, settings: RunSettings, calibration: Calibration) -> float:
    """Return the seconds of the optimizer's update on the GPU."""
    if settings.zero.offload_optimizer != "none":
        return 0.0
    num_own = shape.num_trainable(settings.adapter) / (settings.plan.num_gpus if settings.zero.stage >= 1 else 1)
    return num_own * calibration.update_bytes / (settings.plan.gpu.memory_gigabytes_per_second * GIGA)


def flops_per_token(shape: ModelShape, adapter: AdapterSettings, *, attended: float) -> float:
    """Return the floating-point operations of a token's forward and backward, without recomputation."""
    return linear_flops(shape, adapter) + attention_flops(shape, attended)


def linear_flops(shape: ModelShape, adapter: AdapterSettings) -> float:
    """Return the operations of a token's matrix products.

    Two per weight in the forward and four in the backward, or two if the weight is frozen.
    """
    if adapter.kind == "none":
        return 6 * shape.num_matmul_params
    return 4 * shape.num_matmul_params + 6 * shape.num_trainable(adapter)


def attention_flops(shape: ModelShape, attended: float) -> float:
    """Return the operations of a token's attention.

    It multiplies the token's query with the keys of `attended` tokens, and the weights with their values: 4 x query
    size x `attended` in each layer, and twice that in the backward.
    """
    return 12 * shape.num_layers * shape.query_size * attended


def traffic_of_step(shape: ModelShape, settings: RunSettings, num_passes: float) -> Traffic:
    """Return the bytes that a rank sends in a step of `num_passes` passes."""
    sent = {True: 0.0, False: 0.0}
    for collective in collectives_of_step(shape, settings, num_passes):
        sent[collective.is_overlapped] += collective.sent(settings.plan.num_gpus)
    return Traffic(overlapped=sent[True], exposed=sent[False])


def collectives_of_step(shape: ModelShape, settings: RunSettings, num_passes: float) -> tuple[Collective, ...]:
    """Return the collectives of a step of `num_passes` passes. DeepSpeed sends tensors in buckets."""
    zero = settings.zero
    stage, learned, number = zero.stage, shape.num_trainable(settings.adapter), bytes_of_number(zero)
    buckets = math.ceil(learned / zero.bucket_size)
    # Stage 1 reduces only during the last backward pass, which may be shorter: it counts as blocking.
    is_ahead = stage >= 2 and overlaps_communication(zero, on_gpu=True)
    if stage == 3:
        gathers = num_passes * gathers_of_pass(shape, zero)
        messages = max(shape.num_layers, math.ceil(shape.num_parameters / zero.bucket_size))
        return (
            Collective(
                gathers * weight_bytes(shape, settings, number), gathers * messages, rounds=1, is_overlapped=True
            ),
            Collective(num_passes * 4.0 * learned, num_passes * buckets, rounds=1, is_overlapped=is_ahead),
        )
    times = num_passes if stage == 2 else 1.0
    reduced = Collective(times * 4.0 * learned, times * buckets, rounds=2, is_overlapped=is_ahead)
    if stage == 0:
        return (reduced,)
    return (reduced, Collective(float(number * learned), buckets, rounds=1, is_overlapped=False))


def gathers_of_pass(shape: ModelShape, zero: ZeroSettings) -> float:
    """Return the number of times that ZeRO-3 gathers the weights in a pass.

    Twice, except for the last layers, which are still gathered when the backward begins (stage3_max_reuse_distance in
    distributed/deepspeed_config.py). A recomputed layer stays gathered until its backward.
    """
    return 2 - min(1.0, LIVE_BUCKETS * zero.bucket_size / shape.num_parameters)


def bytes_of_number(zero: ZeroSettings) -> int:
    """Return the bytes of a weight as stored; autocast (bf16 at stage 0) stores fp32."""
    return 2 if zero.precision == "bf16" and zero.stage > 0 else 4


def offload_seconds(shape: ModelShape, settings: RunSettings, num_passes: float) -> float:
    """Return the seconds that offload adds to a step; DeepSpeed overlaps none of it.

    An offloaded optimizer needs the rank's share of the gradients, in fp32: they go to the host after every pass, and
    back before the next one to accumulate. Then Adam updates its state in the host's memory, and the new weights
    return. Offloaded weights come from the host whenever they are gathered.
    """
    zero, gpu, num_ranks = settings.zero, settings.plan.gpu, settings.plan.num_gpus
    num_own, bytes_per_param = shape.num_trainable(settings.adapter) / num_ranks, bytes_of_number(zero)
    over_pcie = in_memory = on_disk = 0.0
    if zero.offload_optimizer != "none":
        over_pcie += num_own * (4 * (2 * num_passes - 1) + bytes_per_param)
        in_memory += num_own * (ADAM_BYTES[settings.optimizer.name] + bytes_per_param)
        on_disk += num_own * NVME_BYTES if zero.offload_optimizer == "nvme" else 0.0
    if zero.offload_param != "none":
        fetched = num_passes * gathers_of_pass(shape, zero) * weight_bytes(shape, settings, bytes_per_param) / num_ranks
        over_pcie += fetched
        on_disk += fetched if zero.offload_param == "nvme" else 0.0
    return (
        over_pcie / gpu.pcie_gigabytes_per_second
        + in_memory / gpu.host_gigabytes_per_second
        + on_disk / gpu.nvme_gigabytes_per_second
    ) / GIGA
