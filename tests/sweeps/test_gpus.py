"""The GPUs that runs at the same time have to themselves."""

from __future__ import annotations

import pytest
import torch
from helpers.errors import raises

from laborllm_dist.sweeps.gpus import share_gpus


def shares_of(
    monkeypatch: pytest.MonkeyPatch, num_gpus: int, visible: str | None, *, max_parallel: int, num_ranks: int
) -> list[tuple[str, ...]]:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
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
    (share,) = share_gpus({}, max_parallel=1, num_ranks=2)
    assert (share.environment, share.deepspeed_options(2)) == ({}, ("--num_gpus", "2"))


def test_too_few_gpus_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with raises("sweep/too-few-gpus", "max_parallel=3 runs of num_ranks=2 need 6 GPUs, but 4 are visible"):
        shares_of(monkeypatch, 4, None, max_parallel=3, num_ranks=2)
