"""The GPUs that runs at the same time have to themselves."""

from __future__ import annotations

import pytest
import torch
from helpers.errors import raises

from laborllm_dist.distributed.gpu_shares import share_gpus


def shares_of(
    monkeypatch: pytest.MonkeyPatch, num_gpus: int, visible: str | None, *, max_parallel: int, num_ranks: int
) -> list[tuple[str, ...]]:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: num_gpus > 0)
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    return [share.names for share in share_gpus(environment, max_parallel=max_parallel, num_ranks=num_ranks)]


def test_every_run_gets_a_gpu_for_each_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shares_of(monkeypatch, 4, None, max_parallel=1, num_ranks=1) == [("0",)]
    assert shares_of(monkeypatch, 4, None, max_parallel=2, num_ranks=2) == [("0", "1"), ("2", "3")]
    assert shares_of(monkeypatch, 3, "6, 1,GPU-4f", max_parallel=3, num_ranks=1) == [("6",), ("1",), ("GPU-4f",)]
    # CUDA sees the devices before the first one that does not exist.
    assert shares_of(monkeypatch, 1, "2,99", max_parallel=1, num_ranks=1) == [("2",)]


def test_without_gpus_the_runs_share_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for visible in (None, "", "-1"):
        assert shares_of(monkeypatch, 0, visible, max_parallel=3, num_ranks=2) == [(), (), ()]
    # A driver that is too old: GPUs are there, but no program can use them.
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (share,) = share_gpus({}, max_parallel=1, num_ranks=2)
    assert (share.environment, share.deepspeed_options(2)) == ({}, ("--num_gpus", "2"))


def test_too_few_gpus_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with raises("sweep/too-few-gpus", "max_parallel=3 runs of num_ranks=2 need 6 GPUs, and this machine shows 4;"):
        shares_of(monkeypatch, 4, None, max_parallel=3, num_ranks=2)
    with raises("sweep/too-few-gpus", "shows 1 (CUDA_VISIBLE_DEVICES=7)"):
        shares_of(monkeypatch, 1, "7", max_parallel=2, num_ranks=1)


@pytest.mark.parametrize("visible", ["GPU-4f,GPU-5a", "MIG-1,MIG-2", "0,GPU-4f"])
def test_several_ranks_need_gpus_with_numbers(visible: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with raises("sweep/gpus-without-numbers", f"CUDA_VISIBLE_DEVICES={visible}", "num_ranks=1"):
        shares_of(monkeypatch, 2, visible, max_parallel=1, num_ranks=2)
    shares = shares_of(monkeypatch, 2, visible, max_parallel=2, num_ranks=1)
    assert shares == [(name,) for name in visible.split(",")]


@pytest.mark.parametrize("include", [(3, 5), (5, 3)])
def test_deepspeed_gives_its_ranks_the_gpus_of_a_run(include: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own parser, on a machine of eight GPUs; launch.py passes the list on as CUDA_VISIBLE_DEVICES."""
    from deepspeed.launcher.runner import parse_args, parse_inclusion_exclusion

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    environment = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, include))}
    (share,) = share_gpus(environment, max_parallel=1, num_ranks=2)
    arguments = parse_args([*share.deepspeed_options(2), "train.py"])
    assert parse_inclusion_exclusion({"localhost": 8}, arguments.include, "") == {"localhost": [3, 5]}


def test_runs_at_the_same_time_share_no_port() -> None:
    ports = [set(share.ports) for share in share_gpus({}, max_parallel=7, num_ranks=2)]
    assert all(ports)
    assert sum(map(len, ports)) == len(set.union(*ports))
