"""Collectives on links: by hand, and a ring against a simulation of its messages."""

from __future__ import annotations

import pytest
from helpers.runs import settings_of

from laborllm_dist.planning.collectives import Collective, Fabric, all_gather_seconds, fabric_of

# 400 GB/s within hosts of eight, 50 GB/s of each GPU between them; hops of 1 and 5 microseconds.
FABRIC = Fabric(8, 400e9, 50e9, 1e-6, 5e-6)


@pytest.mark.parametrize(
    ("overrides", "num_gpus", "gigabytes"),
    [
        (["gpu@plan.gpu=h100"], 8, 450),  # NVLink
        (["gpu@plan.gpu=h100"], 16, 400),  # two hosts: eight adapters of 50
        (["gpu@plan.gpu=h100"], 12, 300),  # two hosts of six
        (["gpu@plan.gpu=a100_80gb"], 64, 200),  # eight adapters of 25
        (["gpu@plan.gpu=l40s"], 16, 32),  # PCIe is narrower than eight adapters
        (["gpu@plan.gpu=h100", "cluster@plan.cluster=ethernet"], 16, 12.5),  # one adapter of 100 Gb/s a host
        (["gpu@plan.gpu=h100", "cluster@plan.cluster=ethernet"], 8, 450),  # which one host does not use
    ],
)
def test_links_by_hand(overrides: list[str], num_gpus: int, gigabytes: float) -> None:
    fabric = fabric_of(settings_of(overrides).plan, efficiency=1.0)
    assert fabric.ring_speed(num_gpus) == pytest.approx(gigabytes * 1e9)
    assert fabric_of(settings_of(overrides).plan, efficiency=0.5).ring_speed(num_gpus) == pytest.approx(
        gigabytes / 2e-9
    )


def test_one_host_by_hand() -> None:
    assert all_gather_seconds(8e9, 1, FABRIC) == 0
    # Two ranks: half of 8 GB at 400 GB/s, and one hop.
    assert all_gather_seconds(8e9, 2, FABRIC) == pytest.approx(0.010_001)
    # Eight: seven eighths, seven hops; in ten messages seventy.
    assert all_gather_seconds(8e9, 8, FABRIC) == pytest.approx(0.017_507)
    assert all_gather_seconds(8e9, 8, FABRIC, num_messages=10) == pytest.approx(0.017_570)


def test_several_hosts_by_hand() -> None:
    # Sixteen ranks on two hosts, 16 GB in a ring at 8 x 50 GB/s: 15 GB, 13 hops within hosts and 2 between.
    assert all_gather_seconds(16e9, 16, FABRIC) == pytest.approx(0.037_523)
    # 512 ranks, 512 bytes: the ring's 447 and 64 hops take 767 us. In two stages: 63 hops between hosts and 7 within, 322
    # us.
    assert all_gather_seconds(512, 512, FABRIC) == pytest.approx(322e-6, rel=1e-3)
    # One adapter for eight GPUs: of 16 GB, half a GB a rank... each GPU gathers 1 GB from the other host at 1.5625 GB/s.
    ethernet = Fabric(8, 400e9, 1.5625e9, 0.0, 0.0)
    assert all_gather_seconds(16e9, 16, ethernet) == pytest.approx(0.64 + 14 / 400)


def test_a_ring_takes_as_long_as_its_messages() -> None:
    # Every rank sends on what it received last; a link is busy while it sends; latency differs by hop.
    num_ranks, size, speed = 16, 16e6, 400e9
    latencies = [FABRIC.network_latency if rank % 8 == 7 else FABRIC.link_latency for rank in range(num_ranks)]
    sending = size / num_ranks / speed
    arrived = [[0.0] * num_ranks]  # of the chunks that each rank sends first
    free = [0.0] * num_ranks
    for _ in range(num_ranks - 1):
        sent = [max(arrived[-1][rank], free[rank]) + sending for rank in range(num_ranks)]
        free = sent
        arrived.append([sent[rank - 1] + latencies[rank - 1] for rank in range(num_ranks)])
    slow = max(max(times) for times in arrived)
    assert all_gather_seconds(size, num_ranks, FABRIC) == pytest.approx(slow, rel=1e-9)


def test_an_all_reduce_is_a_reduction_to_shards_and_a_gathering() -> None:
    reduced = Collective(8e9, 10, rounds=2, is_overlapped=False)
    assert reduced.sent(8) == 14e9
    assert reduced.seconds(8, FABRIC) == pytest.approx(2 * 0.017_570)
