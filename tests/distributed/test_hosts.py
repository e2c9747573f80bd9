"""Two real hosts: deepspeed over ssh trains and scores across them, and goes on with one when the other is cut off."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.hosts import ADDRESSES, MadeHosts, made_hosts, why_no_hosts
from helpers.processes import ON_CPU, PROJECT, free_port, kill_ranks, python_path, run_well, wait_until
from helpers.runs import small_run

from laborllm_dist.checkpoint.save import newest_checkpoint

pytestmark = pytest.mark.hosts

STEPS = ["zero=stage3", "batch.global_batch_size=16", "training.checkpoint_every_steps=5"]


@pytest.fixture(scope="module")
def hosts() -> Iterator[MadeHosts]:
    if (reason := why_no_hosts()) is not None:
        pytest.skip(f"no two hosts: {reason}")
    with made_hosts() as made:
        yield made


def deepspeed(script: str, arguments: list[str], *more: str) -> list[str]:
    """Return the command of docs/several_hosts.md."""
    return [
        "deepspeed", "--hostfile", "hosts", "--master_addr", ADDRESSES[0], "--master_port", str(free_port()), *more,
        str(PROJECT / "launch" / script), *arguments,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def trained(hosts: MadeHosts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train six steps under ZeRO-3, one rank on each host."""
    folder = tmp_path_factory.mktemp("trained")
    text = hosts.run_well(*deepspeed("train.py", small_run(folder, *STEPS, "training.epochs=2")), log=folder / "log")
    assert "ZeRO-3 fp32 on 2 x cpu" in text
    return folder


def test_scores_made_on_two_hosts_are_those_of_one(hosts: MadeHosts, trained: Path, tmp_path: Path) -> None:
    run = f"run={trained}/runs/small"
    table = trained / "runs/small/scores/test.parquet"
    text = hosts.run_well(*deepspeed("evaluate.py", [run]), log=tmp_path / "two")
    assert "% full, over 2 ranks" in text
    on_two_hosts = table.read_bytes()
    table.unlink()
    text = run_well("evaluate.py", [run], world_size=1, log=tmp_path / "one")
    assert "% full, over 1 rank" in text
    assert table.read_bytes() == on_two_hosts


def test_torchrun_starts_the_same_script(tmp_path: Path) -> None:
    run = small_run(tmp_path, *STEPS, "training.epochs=2")
    with (tmp_path / "log").open("wb") as log:
        torchrun = subprocess.Popen(
            ["torchrun", "--nnodes=1", "--nproc-per-node=2", f"--master-port={free_port()}", f"--log-dir={tmp_path}/logs",
             str(PROJECT / "launch/train.py"), *run],
            stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            env={**os.environ, **ON_CPU, **python_path()},
        )  # fmt: skip
    try:
        code = torchrun.wait(timeout=120)
    finally:
        kill_ranks([torchrun])
    text = (tmp_path / "log").read_text()
    assert code == 0, text[-3000:]
    assert "ZeRO-3 fp32 on 2 x cpu" in text
    assert "train: weights of step 6 (best on validation)" in text


# The last: the second host does not come back.
def test_a_host_cut_off_ends_every_rank_in_a_minute_and_the_other_host_goes_on(
    hosts: MadeHosts, trained: Path, tmp_path: Path
) -> None:
    run = small_run(tmp_path, *STEPS, "training.epochs=15", f"store.root={trained}/stores")
    logs = tmp_path / "logs"  # of each rank: what the second host says does not reach the first any more
    launcher = hosts.start(*deepspeed("train.py", run, "--enable_each_rank_log", str(logs)), log=tmp_path / "launcher")
    metrics = tmp_path / "runs/small/metrics.jsonl"
    try:
        wait_until(
            lambda: metrics.is_file() and len(metrics.read_text().splitlines()) >= 7,
            time_limit=120,
            what="seven steps are done",
        )
        assert len(hosts.ranks("train.py")) == 2
        hosts.cut_off_the_second()
        wait_until(lambda: not hosts.ranks("train.py"), time_limit=60, what="every rank has ended")
        assert launcher.wait(timeout=30) != 0
    finally:
        hosts.end_all(launcher)
    texts = [log.read_text() for log in sorted(logs.iterdir(), key=lambda path: path.name.split("rank")[1])]
    for rank, text in enumerate(texts):
        assert text.count("error:") == 1, text[-2000:]
        assert f"error: rank {rank} has lost another rank" in text
        assert "Traceback" not in text
    saved = newest_checkpoint(tmp_path / "runs/small/checkpoints")
    assert saved is not None and saved[1].step >= 5

    text = hosts.run_well(*deepspeed("train.py", run, "--include", ADDRESSES[0]), log=tmp_path / "one")
    assert "ZeRO-3 fp32 on 1 x cpu" in text
    assert f"train: resumes after step {saved[1].step} of 45" in text
    assert "train: weights of step" in text
