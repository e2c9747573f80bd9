"""What a step costs: floating-point operations, bytes over the links, seconds, dollars.

L learned weights, W ranks, p passes a step, b bytes a number (2 in bf16, 4 in fp32). A ring sends n (W - 1) / W from
each rank to gather n bytes, as much to reduce and scatter them, twice as much to reduce them everywhere. In a step:

    ZeRO-0   2 x 4 L             gradients travel in fp32
    ZeRO-1   2 x 4 L + b L       and the weights that were updated
    ZeRO-2   p 2 x 4 L + b L     after every pass; DeepSpeed reduces a bucket everywhere, not to its owner alone
    ZeRO-3   p (4 L + gathers)   weights before forward and backward, but for those still there from the forward

tests/distributed/test_traffic.py counts them. ZeRO-3 gathers ahead, while layers compute; so are gradients reduced at
stages 2 and 3 where communication overlaps. All other bytes are waited for. Latencies are left out, so collectives of
few bytes take longer.
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
LAYER_SECONDS = 1e-3  # assumed least of a layer and pass, forward and backward: a hundred kernels, 10 us each to launch
# Bytes of a weight that AdamW reads and writes on a host. DeepSpeed's goes once over gradient, weight and two moments,
# and writes all but the gradient: 16 + 12. torch's goes over them operation by operation: decay 8, first moment 12,
# second 8 + 12, its root 8, division 8, epsilon 8, update 16.
ADAM_BYTES = {"cpu_adamw": 28, "adamw": 80}
NVME_BYTES = 2 * 16  # of a weight, to disk and back: gradient, weight, two moments


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes that a rank sends to others in a step: while it computes, and while it waits."""

    ahead: float
    waited: float

    @property
    def total(self) -> float:
        """All bytes."""
        return self.ahead + self.waited


@dataclass(frozen=True, slots=True)
class Cost:
    """Of a step: traffic of a rank, and seconds. `launching` is the least that computing takes on any GPU."""

    traffic: Traffic
    working: float
    launching: float
    gathering: float  # meanwhile
    waiting: float  # for links between ranks
    offloading: float  # to the host's memory or disks and back, with the update there

    @property
    def computing(self) -> float:
        """Seconds of computing."""
        return max(self.working, self.launching)

    @property
    def links(self) -> float:
        """Seconds by which traffic makes a step longer."""
        return max(0.0, self.gathering - self.computing) + self.waiting

    @property
    def seconds(self) -> float:
        """Seconds of a step."""
        return self.computing + self.links + self.offloading


def cost_of_step(shape: ModelShape, settings: RunSettings, work: Workload, passes: Passes) -> Cost:
    """Return what a step costs on `plan.num_gpus` GPUs."""
    gpu, num_gpus = settings.plan.gpu, settings.plan.num_gpus
    peak = gpu.bf16_tflops if settings.zero.precision == "bf16" else gpu.fp32_tflops
    flops = passes.slowest_tokens * flops_per_token(shape, settings.adapter, attended=work.attended)
    traffic = traffic_of_step(shape, settings, passes.num_passes)
    speed = link_speed(gpu, num_gpus)
    return Cost(
        traffic=traffic,
        working=flops / (gpu.utilization * peak * TERA),
        launching=passes.num_passes * shape.num_layers * LAYER_SECONDS,
        gathering=traffic.ahead / speed,
        waiting=traffic.waited / speed,
        offloading=offload_seconds(shape, settings, passes.num_passes),
    )


def flops_per_token(shape: ModelShape, adapter: AdapterSettings, *, attended: float) -> float:
    """Return floating-point operations of forward and backward of a token; recomputation is no work.

    Two a weight in the forward, and four in the backward, two where the weight is frozen. Attention multiplies the
    token's query with the keys of `attended` tokens, and the weights with their values: 4 x query size x `attended` in
    each layer, and twice that in the backward.
    """
    learns_all = adapter.kind == "none"
    weights = (6 if learns_all else 4) * shape.num_matmul_params + (
        0 if learns_all else 6 * shape.num_trainable(adapter)
    )
    return weights + 12 * shape.num_layers * shape.query_size * attended


def traffic_of_step(shape: ModelShape, settings: RunSettings, num_passes: float) -> Traffic:
    """Return the bytes a rank sends in a step of so many passes."""
    stage, share = settings.zero.stage, 1 - 1 / settings.plan.num_gpus
    learned, number = shape.num_trainable(settings.adapter), bytes_of_number(settings.zero)
    gathered = updated = 0.0
    if stage == 3:
        gathered = num_passes * gathers_of_pass(shape, settings.zero) * weight_bytes(shape, settings, number)
        reduced = num_passes * 4.0 * learned
    else:
        reduced = (num_passes if stage == 2 else 1.0) * 2 * 4.0 * learned
        updated = number * learned if stage > 0 else 0.0
    # Stage 1 reduces during the last backward pass alone, which may be shorter: it counts as waited for.
    is_ahead = stage >= 2 and overlaps_communication(settings.zero, on_gpu=True)
    return Traffic(
        ahead=share * (gathered + (reduced if is_ahead else 0.0)),
        waited=share * ((0.0 if is_ahead else reduced) + updated),
    )


def gathers_of_pass(shape: ModelShape, zero: ZeroSettings) -> float:
    """Return how often ZeRO-3 gathers the weights in a pass.

    Twice, but for the last layers, which the backward finds as the forward has left them (stage3_max_reuse_distance in
    distributed/deepspeed_config.py). A layer that is computed again stays until its backward.
    """
    return 2 - min(1.0, LIVE_BUCKETS * zero.bucket_size / shape.num_parameters)


def bytes_of_number(zero: ZeroSettings) -> int:
    """Return the bytes of a weight as layers use it; autocast (bf16 at stage 0) holds fp32."""
    return 2 if zero.precision == "bf16" and zero.stage > 0 else 4


def link_speed(gpu: GpuSettings, num_gpus: int) -> float:
    """Return the bytes a second that a GPU sends in a collective over all of them.

    Over several hosts, NCCL lays as many rings as a host has GPUs, each leaving it by another GPU's adapter: a host's
    adapters work side by side, and rings over hosts of eight H100 have 8 x 50 GB/s from host to host.
    """
    num_hosts = math.ceil(num_gpus / gpu.gpus_per_host)
    if num_hosts == 1:
        return gpu.link_gigabytes_per_second * GIGA
    of_host = num_gpus // num_hosts  # of the host that has fewest, where they are spread evenly
    return min(gpu.link_gigabytes_per_second, of_host * gpu.network_gigabytes_per_second) * GIGA


def offload_seconds(shape: ModelShape, settings: RunSettings, num_passes: float) -> float:
    """Return what offload adds to a step; DeepSpeed waits for all of it.

    An offloaded optimizer wants the rank's share of the gradients, in fp32: to the host after every pass, and back
    before the next one to be added to. Then Adam goes over its numbers in the host's memory, and the new weights come
    back. Offloaded weights come from the host whenever they are gathered.
    """
    zero, gpu, num_ranks = settings.zero, settings.plan.gpu, settings.plan.num_gpus
    held, number = shape.num_trainable(settings.adapter) / num_ranks, bytes_of_number(zero)
    over_pcie = in_memory = on_disk = 0.0
    if zero.offload_optimizer != "none":
        over_pcie += held * (4 * (2 * num_passes - 1) + number)
        in_memory += held * (ADAM_BYTES[settings.optimizer.name] + number)
        on_disk += held * NVME_BYTES if zero.offload_optimizer == "nvme" else 0.0
    if zero.offload_param != "none":
        fetched = num_passes * gathers_of_pass(shape, zero) * weight_bytes(shape, settings, number) / num_ranks
        over_pcie += fetched
        on_disk += fetched if zero.offload_param == "nvme" else 0.0
    return (
        over_pcie / gpu.pcie_gigabytes_per_second
        + in_memory / gpu.host_gigabytes_per_second
        + on_disk / gpu.nvme_gigabytes_per_second
    ) / GIGA
