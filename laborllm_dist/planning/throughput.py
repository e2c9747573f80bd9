"""The cost of a step: floating-point operations, bytes over the links, seconds, dollars.

L trainable weights, W ranks, p passes per step, b bytes per value (2 in bf16, 4 in fp32). In a ring each rank sends n
(W - 1) / W bytes to all-gather n bytes, as many to reduce-scatter them, twice as many to all-reduce them. Per step:

    ZeRO-0   2 x 4 L             fp32 gradients
    ZeRO-1   2 x 4 L + b L       and the updated weights
    ZeRO-2   p 2 x 4 L + b L     after every pass; DeepSpeed all-reduces each bucket
    ZeRO-3   p (4 L + gathers)   weights before forward and backward, except those still gathered from the forward

tests/distributed/test_traffic.py counts them. ZeRO-3 prefetches weights while layers compute; with overlap_comm, stages
2 and 3 reduce gradients meanwhile, too. All other traffic blocks. Latencies are ignored, so collectives of few bytes
take longer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from laborllm_dist.config.model import AdapterSettings, ZeroSettings
from laborllm_dist.config.run import GpuSettings, RunSettings
from laborllm_dist.distributed.deepspeed_config import LIVE_BUCKETS, overlaps_communication
from laborllm_dist.models.dims import ModelShape
from laborllm_dist.planning.memory import weight_bytes
from laborllm_dist.planning.workload import Passes, Workload

GIGA, TERA = 1e9, 1e12
LAYER_SECONDS = 1e-3  # assumed minimum per layer and pass, forward and backward: a hundred kernels, 10 us each
# Bytes per weight that AdamW reads and writes on a host. DeepSpeed's reads gradient, weight and two moments once, and
# writes all but the gradient: 16 + 12. torch's makes one pass per operation: decay 8, first moment 12, second 8 + 12,
# its root 8, division 8, epsilon 8, update 16.
ADAM_BYTES = {"cpu_adamw": 28, "adamw": 80}
NVME_BYTES = 2 * 16  # per weight, to disk and back: gradient, weight, two moments


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
    """Cost of a step: traffic of a rank, and seconds. `kernel_launch` is the minimum of computing on any GPU."""

    traffic: Traffic
    working: float
    kernel_launch: float
    gathering: float  # meanwhile
    waiting: float  # waiting for links between ranks
    offloading: float  # transfers to the host's memory or disks and back, and the update there

    @property
    def computing(self) -> float:
        """Seconds of computing."""
        return max(self.working, self.kernel_launch)

    @property
    def links(self) -> float:
        """Seconds that traffic adds to a step."""
        return max(0.0, self.gathering - self.computing) + self.waiting

    @property
    def seconds(self) -> float:
        """Seconds of a step."""
        return self.computing + self.links + self.offloading


def cost_of_step(shape: ModelShape, settings: RunSettings, work: Workload, passes: Passes) -> Cost:
    """Return the cost of a step on `plan.num_gpus` GPUs."""
    gpu, num_gpus = settings.plan.gpu, settings.plan.num_gpus
    peak = gpu.bf16_tflops if settings.zero.precision == "bf16" else gpu.fp32_tflops
    flops = passes.slowest_tokens * flops_per_token(shape, settings.adapter, attended=work.attended)
    traffic = traffic_of_step(shape, settings, passes.num_passes)
    speed = link_speed(gpu, num_gpus)
    return Cost(
        traffic=traffic,
        working=flops / (gpu.utilization * peak * TERA),
        kernel_launch=passes.num_passes * shape.num_layers * LAYER_SECONDS,
        gathering=traffic.overlapped / speed,
        waiting=traffic.exposed / speed,
        offloading=offload_seconds(shape, settings, passes.num_passes),
    )


def flops_per_token(shape: ModelShape, adapter: AdapterSettings, *, attended: float) -> float:
    """Return the floating-point operations of a token's forward and backward, without recomputation.

    Two per weight in the forward and four in the backward, or two if the weight is frozen. Attention multiplies the
    token's query with the keys of `attended` tokens, and the weights with their values: 4 x query size x `attended` in
    each layer, and twice that in the backward.
    """
    learns_all = adapter.kind == "none"
    weights = (6 if learns_all else 4) * shape.num_matmul_params + (
        0 if learns_all else 6 * shape.num_trainable(adapter)
    )
    return weights + 12 * shape.num_layers * shape.query_size * attended


def traffic_of_step(shape: ModelShape, settings: RunSettings, num_passes: float) -> Traffic:
    """Return the bytes that a rank sends in a step of `num_passes` passes."""
    stage, share = settings.zero.stage, 1 - 1 / settings.plan.num_gpus
    learned, number = shape.num_trainable(settings.adapter), bytes_of_number(settings.zero)
    gathered = updated = 0.0
    if stage == 3:
        gathered = num_passes * gathers_of_pass(shape, settings.zero) * weight_bytes(shape, settings, number)
        reduced = num_passes * 4.0 * learned
    else:
        reduced = (num_passes if stage == 2 else 1.0) * 2 * 4.0 * learned
        updated = number * learned if stage > 0 else 0.0
    # Stage 1 reduces only during the last backward pass, which may be shorter: it counts as blocking.
    is_ahead = stage >= 2 and overlaps_communication(settings.zero, on_gpu=True)
    return Traffic(
        overlapped=share * (gathered + (reduced if is_ahead else 0.0)),
        exposed=share * ((0.0 if is_ahead else reduced) + updated),
    )


def gathers_of_pass(shape: ModelShape, zero: ZeroSettings) -> float:
    """Return the number of times that ZeRO-3 gathers the weights in a pass.

    Twice, except for the last layers, which are still gathered when the backward begins (stage3_max_reuse_distance in
    distributed/deepspeed_config.py). A recomputed layer stays gathered until its backward.
    """
    return 2 - min(1.0, LIVE_BUCKETS * zero.bucket_size / shape.num_parameters)


def bytes_of_number(zero: ZeroSettings) -> int:
    """Return the bytes of a weight as stored; autocast (bf16 at stage 0) stores fp32."""
    return 2 if zero.precision == "bf16" and zero.stage > 0 else 4


def link_speed(gpu: GpuSettings, num_gpus: int) -> float:
    """Return the bytes per second that a GPU sends in a collective over all GPUs.

    Over several hosts, NCCL builds as many rings as a host has GPUs, each of which uses another GPU's network adapter:
    a host's adapters work in parallel, and rings over hosts of eight H100 have 8 x 50 GB/s from host to host.
    """
    num_hosts = math.ceil(num_gpus / gpu.gpus_per_host)
    if num_hosts == 1:
        return gpu.link_gigabytes_per_second * GIGA
    of_host = num_gpus // num_hosts  # of the host with fewest, if they are spread evenly
    return min(gpu.link_gigabytes_per_second, of_host * gpu.network_gigabytes_per_second) * GIGA


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
