"""The seconds that collectives take over NVLink or PCIe within hosts, and InfiniBand or Ethernet between them.

A message costs latency and bytes over bandwidth. To all-gather n bytes over N ranks on H hosts of g, two ways:

    ring          N - 1 hops, H of them between hosts; n (N - 1) / N bytes at the slower of link and g adapters
    hierarchical  ranks of one place on all hosts first, each over its own adapter: H - 1 hops, n (H - 1) / N bytes;
                  then the ranks of a host: g - 1 hops, n (g - 1) / g bytes over the links

The faster one counts, as NCCL chooses. To reduce-scatter takes as long, to all-reduce twice as long.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from laborllm_dist.config.run import PlanSettings

GIGA, MICRO = 1e9, 1e-6


@dataclass(frozen=True, slots=True)
class Fabric:
    """Bytes per second of a GPU within its host and to other hosts, and the seconds of a hop."""

    gpus_per_host: int
    link_speed: float
    network_speed: float
    link_latency: float
    network_latency: float

    def ring_speed(self, num_ranks: int) -> float:
        """Return the bytes per second that a rank sends in a ring over all ranks.

        Over several hosts, NCCL builds as many rings as a host has GPUs, each of which uses another GPU's network
        adapter: a host's adapters work in parallel, and rings over hosts of eight H100 have 8 x 50 GB/s from host to
        host.
        """
        num_hosts = math.ceil(num_ranks / self.gpus_per_host)
        if num_hosts == 1:
            return self.link_speed
        of_host = num_ranks // num_hosts  # of the host with fewest, if they are spread evenly
        return min(self.link_speed, of_host * self.network_speed)


@dataclass(frozen=True, slots=True)
class Collective:
    """Collectives of one kind in a step.

    `num_bytes` of all tensors together, in `num_messages`; `rounds`: 1 to gather or reduce to shards, 2 to all-reduce;
    `is_overlapped`: layers compute meanwhile.
    """

    num_bytes: float
    num_messages: float
    rounds: int
    is_overlapped: bool

    def sent(self, num_ranks: int) -> float:
        """Return the bytes that a rank sends."""
        return self.rounds * self.num_bytes * (1 - 1 / num_ranks)

    def seconds(self, num_ranks: int, fabric: Fabric) -> float:
        """Return the seconds on these links."""
        return self.rounds * all_gather_seconds(self.num_bytes, num_ranks, fabric, num_messages=self.num_messages)


def fabric_of(plan: PlanSettings, *, efficiency: float) -> Fabric:
    """Return the links of a plan; collectives reach this share of their datasheets' speeds."""
    gpu, cluster = plan.gpu, plan.cluster
    network = cluster.network_gigabytes_per_second or gpu.network_gigabytes_per_second
    return Fabric(
        gpu.gpus_per_host, efficiency * GIGA * gpu.link_gigabytes_per_second, efficiency * GIGA * network,
        MICRO * cluster.link_microseconds, MICRO * cluster.network_microseconds,
    )  # fmt: skip


def all_gather_seconds(num_bytes: float, num_ranks: int, fabric: Fabric, *, num_messages: float = 1) -> float:
    """Return the seconds until each of these ranks has all of `num_bytes`, sent as `num_messages` in turn."""
    if num_ranks == 1:
        return 0.0
    num_hosts = math.ceil(num_ranks / fabric.gpus_per_host)
    of_host = num_ranks / num_hosts
    crossings = min(num_hosts, num_ranks - 1) if num_hosts > 1 else 0
    hops = (num_ranks - 1 - crossings) * fabric.link_latency + crossings * fabric.network_latency
    ring = num_messages * hops + num_bytes * (1 - 1 / num_ranks) / fabric.ring_speed(num_ranks)
    if num_hosts == 1:
        return ring
    hops = (of_host - 1) * fabric.link_latency + (num_hosts - 1) * fabric.network_latency
    between = num_bytes * (num_hosts - 1) / num_ranks / fabric.network_speed
    within = num_bytes * (1 - 1 / of_host) / fabric.link_speed
    return min(ring, num_messages * hops + between + within)
