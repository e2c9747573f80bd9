"""Locks on file systems that have none: a file stands for the lock, and says whose it is when it was left behind."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from helpers.errors import raises
from helpers.trained_runs import random_run, score_alone

from laborllm_dist.cli import compose_settings
from laborllm_dist.config.evaluation import EvaluateSettings
from laborllm_dist.distributed.context import DistributedContext, exclusive_table
from laborllm_dist.errors import AlreadyRunningError, DiskError
from laborllm_dist.io import files
from laborllm_dist.io.files import file_lock


@pytest.fixture(params=[errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def no_flock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(file: object, operation: int) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", flock)


def test_a_lock_holds_without_flock_and_is_given_back(no_flock: None, tmp_path: Path) -> None:
    path = tmp_path / "run/lock"
    for _ in range(2):
        with (
            file_lock(path, busy="another start is at work"),
            raises(
                "already-running/lock-file-present",
                "another start is at work",
                "lock.held says so (process",
                os.getpid(),
                "on",
                "if that process is gone, delete the file",
            ),
            file_lock(path, busy="another start is at work"),
        ):
            pass
    assert [each.name for each in path.parent.iterdir()] == ["lock"]


def test_without_flock_the_next_one_waits_for_its_turn(no_flock: None, tmp_path: Path) -> None:
    order = []

    def second() -> None:
        with file_lock(tmp_path / "lock", busy=None):
            order.append("second")

    thread = threading.Thread(target=second)
    with file_lock(tmp_path / "lock", busy=None):
        thread.start()
        time.sleep(0.3)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_the_lock_of_a_process_that_was_killed_is_taken_over_on_the_same_host(no_flock: None, tmp_path: Path) -> None:
    marker = tmp_path / "lock.held"
    program = (
        "import os, sys, filelock; lock = filelock.SoftFileLock(sys.argv[1]); lock.acquire(); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", program, str(marker)], check=False)
    assert marker.exists()
    with file_lock(tmp_path / "lock", busy="busy"):
        assert marker.exists()
    assert not marker.exists()


def test_a_lock_that_another_host_has_left_behind_says_whose_it_is(
    no_flock: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    marker = tmp_path / "lock.held"
    marker.write_text("4711\nnode7\n")
    present = raises("already-running/lock-file-present", "busy", marker, "(process 4711 on node7)")
    with present, file_lock(tmp_path / "lock", busy="busy"):
        pass
    monkeypatch.setattr(files, "SECONDS_UNTIL_SAID", 0.1)
    threading.Timer(1.0, marker.unlink).start()
    with file_lock(tmp_path / "lock", busy=None):
        pass
    printed = capfd.readouterr().err
    assert printed.count("waits for another process") == 1
    assert "(process 4711 on node7)" in printed


def test_what_a_disk_refuses_stays_one_clear_line(no_flock: None, tmp_path: Path) -> None:
    (tmp_path / "lock.held").mkdir()
    with pytest.raises((DiskError, AlreadyRunningError)), file_lock(tmp_path / "lock", busy="busy"):
        pass


def test_other_errors_of_flock_are_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(file: object, operation: int) -> None:
        raise OSError(errno.EINVAL, "?")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match=r"\?"), file_lock(tmp_path / "lock", busy="busy"):
        pass


def test_two_models_of_a_run_are_scored_at_once_and_one_of_them_is_not_twice(tmp_path: Path) -> None:
    run = random_run(tmp_path)
    torch.set_num_threads(1)
    settings = compose_settings(EvaluateSettings, "evaluate", [f"run={run}"])
    alone = DistributedContext(0, 1, 0, torch.device("cpu"))
    scores = run / "scores"
    with (
        exclusive_table(alone, scores / "test.other.parquet"),
        exclusive_table(alone, scores / "test_forecast_h2.parquet"),
    ):
        table = score_alone(settings)
    assert table == scores / "test.parquet"
    with (
        exclusive_table(alone, table),
        raises(
            "already-running/locked-by-another-process",
            "another start is at work on",
            "scores/test.parquet; wait for it",
        ),
    ):
        score_alone(settings)
