"""Ranks wait for each other's work however long it takes, listen only where others reach them, and follow a launcher."""

from __future__ import annotations

import errno
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.errors import raises
from helpers.processes import PROJECT, python_path, run_ranks, wait_until

from laborllm_dist.distributed import launcher, rendezvous, watchdog
from laborllm_dist.distributed.channel import Channel, wait_for
from laborllm_dist.distributed.context import DistributedContext, exclusive, exclusive_table
from laborllm_dist.distributed.launcher import Process, num_local_ranks
from laborllm_dist.distributed.rank_variables import RankVariables
from laborllm_dist.distributed.rendezvous import ANY, interface_of, listen

ALONE = DistributedContext(0, 1, 0, torch.device("cpu"))


@pytest.mark.ranks
def test_a_slow_part_and_slow_work_of_rank_0_outlast_the_time_limit_of_collectives(tmp_path: Path) -> None:
    program = str(PROJECT / "tests/programs/uneven_ranks.py")
    outcome = run_ranks(program, [str(tmp_path)], world_size=2, log=tmp_path / "log", time_limit=120)
    assert outcome.codes == [0, 0], outcome.text[-3000:]
    assert [line for line in outcome.text.splitlines() if not line.startswith("rank ")] == []  # no complaint
    assert outcome.text.count("has [0, 1, 2]") == 2
    (first,) = re.findall(r"rank 0 listens at (.*)", outcome.text)
    assert set(re.findall(r"\('([0-9A-F]+)'", first)) == {"0100007F"}, first  # 127.0.0.1


def test_waiting_never_uses_the_store_s_own_waiting_which_complains_on_stderr() -> None:
    class Store:
        num_looks = 0

        def check(self, keys: list[str]) -> bool:
            self.num_looks += 1
            return self.num_looks > 5

    assert wait_for(Store(), "key")


@pytest.mark.parametrize(
    ("first", "is_one_host", "address"),
    [
        ("127.0.0.1", True, "127.0.0.1"),
        ("127.0.0.1", False, "127.0.0.1"),
        ("localhost", True, "127.0.0.1"),
        ("localhost", False, "127.0.0.1"),  # no launcher says how many ranks are on this host
        ("here", False, ANY),  # Debian's /etc/hosts: 127.0.1.1, which other hosts do not reach
        ("here", True, "127.0.1.1"),
        ("two", False, "127.0.0.9"),
        ("203.0.113.7", False, ANY),  # an address that is translated on the way
        ("nowhere", False, ANY),
    ],
)
def test_rank_0_listens_at_the_address_that_its_host_s_name_leads_to(
    first: str, is_one_host: bool, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {"here": ["127.0.1.1"], "two": ["203.0.113.7", "127.0.0.9"], "localhost": ["::1", "127.0.0.1"]}

    def getaddrinfo(name: str, *_: Any, **__: Any) -> list[tuple[Any, ...]]:
        if name == "nowhere":
            raise socket.gaierror
        return [
            (socket.AF_INET6 if ":" in each else socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, 0))
            for each in known.get(name, [name])
        ]

    with monkeypatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", getaddrinfo)
        if first == "two":  # stands for an address of a network that this machine has
            patch.setattr("ipaddress.IPv4Address.is_loopback", False)
        assert interface_of(first, is_one_host=is_one_host)[1] == address


def test_the_listening_socket_is_bound_to_that_address() -> None:
    with listen("127.0.0.1", 0, is_one_host=False, backlog=1) as server:
        assert server.getsockname()[0] == "127.0.0.1"
    with listen("203.0.113.7", 0, is_one_host=False, backlog=1) as server:
        socket.create_connection(("127.0.0.1", server.getsockname()[1]), timeout=5).close()


def test_a_taken_port_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        variables = RankVariables(0, 2, 0, "127.0.0.1", other.getsockname()[1])
        monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
        with raises("port-in-use/port-in-use"):
            rendezvous.open_store(variables, timedelta(seconds=1))


def test_a_port_at_which_nobody_may_listen_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(rendezvous, "listen", refuse)
    with raises("rendezvous/cannot-listen", "127.0.0.1", "1", "Permission denied"):
        rendezvous.open_store(RankVariables(0, 2, 0, "127.0.0.1", 1), timedelta(seconds=1))


class Callers:
    """Rank 0's lookout at work in a thread, with what its callers need."""

    def __init__(self, world_size: int) -> None:
        self.channel = Channel(None, b"secret")
        self.server = listen("127.0.0.1", 0, is_one_host=True, backlog=8)
        self.outcome: list[Any] = []
        rank_of = {watchdog._introduction(self.channel, rank): rank for rank in range(1, world_size)}
        self.thread = threading.Thread(target=self._accept, args=(rank_of,), daemon=True)
        self.thread.start()

    def _accept(self, rank_of: dict[bytes, int]) -> None:
        try:
            self.outcome.append(watchdog._accept(self.server, rank_of))
        except OSError as error:
            self.outcome.append(error)

    def call(self, greeting: bytes = b"") -> socket.socket:
        connection = socket.create_connection(self.server.getsockname(), timeout=5)
        connection.sendall(greeting)
        return connection

    def result(self) -> Any:
        self.thread.join(10)
        assert not self.thread.is_alive()
        return self.outcome[0]


@pytest.fixture
def callers() -> Iterator[Callers]:
    made = Callers(3)
    yield made
    made.server.close()


def test_silent_and_foreign_connections_do_not_keep_ranks_from_the_lookout(callers: Callers) -> None:
    silent = [callers.call() for _ in range(20)]
    foreign = callers.call(b"GET / HTTP/1.1\r\n" + b"x" * 100)
    slow = callers.call(watchdog._introduction(callers.channel, 1)[:5])
    impostor = callers.call(watchdog._introduction(Channel(None, b"another secret"), 1))
    own = [callers.call(watchdog._introduction(callers.channel, rank)) for rank in (2, 1)]
    started = time.monotonic()
    accepted = callers.result()
    assert time.monotonic() - started < 5  # far less than a silent one may stay
    assert [each.getpeername() for each in accepted] == [own[1].getsockname(), own[0].getsockname()]
    for connection in (*silent, foreign, slow, impostor):
        with pytest.raises((AssertionError, ConnectionResetError)):
            assert connection.recv(1), "closed"


def test_a_silent_connection_is_sent_away_while_ranks_are_waited_for(
    callers: Callers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "INTRODUCTION_SECONDS", 0.2)
    silent = callers.call()
    assert silent.recv(1) == b""  # closed, although nobody else has come
    own = [callers.call(watchdog._introduction(callers.channel, rank)) for rank in (1, 2)]
    assert len(callers.result()) == len(own)


def test_the_lookout_names_a_rank_that_does_not_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "MEETING_SECONDS", 0.5)
    made = Callers(3)
    connection = made.call(watchdog._introduction(made.channel, 1))
    assert "rank 2 has not called within 0.5 seconds" in str(made.result())
    connection.close()
    made.server.close()


# A launcher and its process on the host, as deepspeed has them: each starts the next one and waits for it.
STARTS = "import subprocess, sys; subprocess.run([sys.executable, *sys.argv[1:]])"
RANK = """
import signal, sys, time
from pathlib import Path
from laborllm_dist.distributed import launcher
launcher.SECONDS_BETWEEN_LOOKS = 0.1
def stop(number, frame):
    Path(sys.argv[1], "asked").write_text(str(number))
    sys.exit()
signal.signal(signal.SIGTERM, stop)
with launcher.following_launcher(speaks=True):
    Path(sys.argv[1], "begun").write_text(" ".join(
        f"{process.launcher}:{process.number}" for process in launcher.launchers_above(launcher.os.getpid())
    ))
    time.sleep(60)
"""


@pytest.mark.parametrize(
    ("which", "number"),
    [("deepspeed", signal.SIGTERM), ("deepspeed", signal.SIGHUP), ("deepspeed.launcher.launch", signal.SIGKILL)],
)
def test_a_rank_asks_itself_to_stop_when_its_launcher_is_gone(which: str, number: int, tmp_path: Path) -> None:
    for name, text in (("deepspeed", STARTS), ("deepspeed.launcher.launch", STARTS), ("rank.py", RANK)):
        (tmp_path / name).write_text(text)
    scripts = [str(tmp_path / name) for name in ("deepspeed", "deepspeed.launcher.launch", "rank.py")]
    command = subprocess.Popen(
        [sys.executable, *scripts, str(tmp_path)],
        env={**os.environ, **python_path()},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )
    try:
        wait_until(lambda: (tmp_path / "begun").is_file(), time_limit=30, what="the rank has begun")
        time.sleep(0.3)
        launchers = dict(entry.split(":") for entry in (tmp_path / "begun").read_text().split())
        assert set(launchers) == {"deepspeed", "deepspeed.launcher.launch"}
        assert not (tmp_path / "asked").exists()
        os.kill(int(launchers[which]), number)
        wait_until(lambda: (tmp_path / "asked").is_file(), time_limit=10, what="the rank is asked to stop")
        assert (tmp_path / "asked").read_text() == str(int(signal.SIGTERM))
    finally:
        os.killpg(command.pid, signal.SIGKILL)
        _, errors = command.communicate(timeout=10)
    assert re.search(rf"ranks: the launcher \(.*, process {launchers[which]}\) has ended", errors)


def process(number: int, parent: int, *words: str) -> Process:
    return Process(number, born="1", parent=parent, words=words)


@pytest.mark.parametrize(
    ("above", "expected"),
    [
        ([("bash",)], []),
        ([("make", "quickstart"), ("bash",)], []),
        ([("python", "/venv/bin/torchrun", "--nproc-per-node=2"), ("bash",)], [2]),
        ([("python", "-m", "torch.distributed.run"), ("slurmstepd",)], [2]),
        # The terminal's shell may go: nohup.
        ([("python", "-u", "-m", "deepspeed.launcher.launch"), ("python", "/bin/deepspeed"), ("bash",)], [2, 3]),
        # On another host: the command that ssh has brought, but no shell that somebody types in.
        ([("python", "-u", "-m", "deepspeed.launcher.launch"), ("bash", "-c", "cd x; python"), ("sshd: me",)], [2, 4]),
        ([("python", "-u", "-m", "deepspeed.launcher.launch"), ("sshd: me",)], [2, 3]),
        ([("python", "-u", "-m", "deepspeed.launcher.launch"), ("-bash",), ("sshd: me",)], [2]),
        ([("python3.12", "-X", "dev", "-W", "ignore", "-m", "torch.distributed.run"), ("bash",)], [2]),
        # Words like a launcher's that are none: a session's name, a file that is read.
        ([("tmux", "new", "-s", "deepspeed")], []),
        ([("less", "deepspeed"), ("python", "train.py", "torchrun")], []),
        ([], []),
    ],
)
def test_the_launchers_above_a_rank(
    above: list[tuple[str, ...]], expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = [("python", "-u", "launch/train.py"), *above]
    known = {number: process(number, number + 1, *words) for number, words in enumerate(chain, start=1)}
    monkeypatch.setattr(launcher, "process_of", known.get)
    assert [each.number for each in launcher.launchers_above(1)] == expected


def test_a_process_that_has_ended_or_whose_number_is_another_s_now_is_gone() -> None:
    own = launcher.process_of(os.getpid())
    assert own is not None and own.is_there()
    assert not Process(own.number, born="0", parent=own.parent, words=own.words).is_there()
    child = subprocess.Popen([sys.executable, "-c", ""])
    wait_until(lambda: launcher.process_of(child.pid) is None, time_limit=10, what="a zombie is no process")
    child.wait()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"LOCAL_WORLD_SIZE": "2", "LOCAL_SIZE": "3", "SLURM_NTASKS_PER_NODE": "4"}, 2),
        ({"LOCAL_SIZE": "3", "SLURM_NTASKS_PER_NODE": "4"}, 3),
        ({"SLURM_NTASKS_PER_NODE": "4"}, 4),
        ({}, None),
    ],
)
def test_launchers_say_how_many_ranks_a_host_has(environment: dict[str, str], expected: int | None) -> None:
    assert num_local_ranks(environment) == expected


def test_two_tables_of_a_folder_are_worked_on_at_once_and_one_is_not(tmp_path: Path) -> None:
    with (
        exclusive_table(ALONE, tmp_path / "test.parquet"),
        exclusive_table(ALONE, tmp_path / "test.other.parquet"),
        raises(
            "already-running/locked-by-another-process",
            "another start is at work on",
            "test.other.parquet; wait for it",
        ),
        exclusive_table(ALONE, tmp_path / "test.other.parquet"),
    ):
        pass
    with (
        exclusive(ALONE, tmp_path / "v1.5"),
        raises("already-running/locked-by-another-process", "v1.5"),
        exclusive(ALONE, tmp_path / "v1.5"),
    ):
        pass
