"""Start the project's own scripts as ranks: real processes, real collectives, always with a time limit.

Importing what a rank needs takes longer than most of these runs, so ranks are forked from processes that have imported
it (programs/fork_server.py), which all workers of pytest share. The first start of every script of launch/ is by a new
interpreter, as a user's is, and all are where the variable FORKED_RANKS is 0.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias

PROJECT = Path(__file__).resolve().parents[2]
EXTENSIONS = tempfile.mkdtemp(prefix="torch_extensions_")  # must stay empty: nothing here is compiled at run time


@atexit.register
def _remove_extensions(owner: int = os.getpid()) -> None:
    if os.getpid() == owner:  # not a forked child's end
        shutil.rmtree(EXTENSIONS, ignore_errors=True)


ON_CPU = {
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "DS_ACCELERATOR": "cpu",
    "TORCH_EXTENSIONS_DIR": EXTENSIONS,
    "WANDB_MODE": "disabled",
    "PYTHONPATH": os.pathsep.join([str(PROJECT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]),
}


# What differs between ranks, and between tests, without importing anything being different.
OF_A_RANK = (
    "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "PYTEST_CURRENT_TEST", "TORCH_EXTENSIONS_DIR",
    "CXX",
)  # fmt: skip
# Each has an order of sets of strings of its own. Ranks of one run are from different ones, and a rank that is started
# again is from another one than before, as with new interpreters: nothing may depend on that order.
NUM_FORKING = 3
# pyarrow's allocator makes no thread; torch reads its level of logging when it is imported, in a rank after it was set.
OF_FORKING = {"JE_ARROW_MALLOC_CONF": "background_thread:false", "TORCH_CPP_LOG_LEVEL": "ERROR"}
# What libraries and `configure_logging` set in the process of the tests; a rank that starts does not have it.
OF_LIBRARIES = ("TORCHINDUCTOR_CACHE_DIR", "PYTORCH_NVML_BASED_CUDA_CHECK", "TORCH_CPP_LOG_LEVEL")


def rank_environment() -> dict[str, str]:
    """Return the environment that a rank is started with now."""
    return {**{name: value for name, value in os.environ.items() if name not in OF_LIBRARIES}, **ON_CPU}


# As the session began: what a test sets for itself must not stay with the processes that later tests fork from.
ENVIRONMENT = rank_environment()
SESSION = os.environ.get("PYTEST_XDIST_TESTRUNUID", uuid.uuid4().hex)


def address_of(name: str) -> str:
    """Return a Unix socket's address that all workers of a session know, and no other session; no file lies behind it."""
    return f"\0laborllm_dist-tests-{SESSION}-{name}"


def claimed(name: str) -> socket.socket | None:
    """Bind an address of the session, to be held as long as it is in use; None: another worker holds it."""
    held = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        held.bind(address_of(name))
    except OSError:
        held.close()
        return None
    return held


def differing_variables(environment: dict[str, str]) -> list[str]:
    """Return the variables under which what was imported may be other than under this environment; a test may set some."""
    names = (ENVIRONMENT.keys() | environment.keys()) - set(OF_A_RANK)
    return sorted(name for name in names if ENVIRONMENT.get(name) != environment.get(name))


class ForkingProgram:
    """A process that has imported what ranks need (programs/fork_server.py), and forks them."""

    def __init__(self, number: int) -> None:
        self._codes: dict[int, int | None] = {}
        name = f"fork_server-{number}"
        if (listener := claimed(name)) is not None:
            with listener:
                listener.listen()
                subprocess.Popen(
                    [sys.executable, str(PROJECT / "tests/programs/fork_server.py"), str(listener.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    env={**ENVIRONMENT, **OF_FORKING},
                    pass_fds=[listener.fileno()],
                    start_new_session=True,
                )
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for _ in range(50):  # another worker has bound the address, and may not listen yet
            with contextlib.suppress(ConnectionRefusedError):
                self._socket.connect(address_of(name))
                break
            time.sleep(0.1)
        atexit.register(self._socket.close)

    def wait_until_ready(self) -> None:
        self._socket.settimeout(300)
        if not self._socket.recv(1024):
            raise ConnectionError("tests/programs/fork_server.py has ended")

    def fork(self, command: Sequence[str], environment: dict[str, str], output: BinaryIO) -> ForkedRank:
        request = {"command": list(command), "environment": environment, "folder": str(Path.cwd())}
        socket.send_fds(self._socket, [json.dumps(request).encode()], [output.fileno()])
        self._socket.settimeout(120)
        while True:
            rank = self._read_answer()
            if self._codes[rank] is None:
                return ForkedRank(rank, self)

    def code(self, rank: int) -> int | None:
        """Return how a rank has ended, or None while it has not."""
        self._socket.settimeout(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                self._read_answer()
        return self._codes[rank]

    def _read_answer(self) -> int:
        message = self._socket.recv(1024)
        if not message:
            raise ConnectionError("tests/programs/fork_server.py has ended")
        answer = json.loads(message)
        self._codes[answer["rank"]] = answer["code"]
        return int(answer["rank"])


class ForkedRank:
    """A rank that was forked, with what is used here of Popen."""

    def __init__(self, pid: int, program: ForkingProgram) -> None:
        self.pid, self._program = pid, program
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._program.code(self.pid)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"rank {self.pid}", timeout or 0)
            time.sleep(0.01)
        assert self.returncode is not None
        return self.returncode


RankProcess: TypeAlias = "subprocess.Popen[bytes] | ForkedRank"
_forking: dict[int, ForkingProgram | None] = {}  # None: it could not be started, and is not tried again
_num_starts: dict[str, int] = {}
_first_starts: dict[str, socket.socket | None] = {}


def start_forking(numbers: Sequence[int | None]) -> None:
    """Start the programs that ranks of these numbers come from, all at once: none waits for another one's imports."""
    missing = {number % NUM_FORKING for number in numbers if number is not None} - _forking.keys()
    if os.environ.get("FORKED_RANKS") == "0":
        return
    try:
        programs = {which: ForkingProgram(which) for which in sorted(missing)}
        for which, program in programs.items():
            program.wait_until_ready()
            _forking[which] = program
    except OSError as error:
        _forking.update(dict.fromkeys(missing - _forking.keys()))
        warnings.warn(f"ranks by new interpreters, since none can be forked: {error}", stacklevel=2)


def start_rank(
    command: Sequence[str], environment: dict[str, str], output: BinaryIO, *, number: int | None
) -> RankProcess:
    """Start a command of Python in a session of its own: by a fork from the program of that number, if there is one."""
    program = None if number is None else _forking.get(number % NUM_FORKING)
    if program is not None:
        try:
            if not (other := differing_variables(environment)):
                return program.fork(command, environment, output)
            warnings.warn(f"ranks by new interpreters, since the environment differs: {', '.join(other)}", stacklevel=3)
        except OSError as error:
            warnings.warn(f"rank by a new interpreter, since none could be forked: {error}", stacklevel=2)
    return subprocess.Popen(
        [sys.executable, *command],
        stdout=output,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,
    )


@dataclass
class Outcome:
    """How ranks ended: exit codes, and what all of them printed."""

    codes: list[int]
    text: str


def start_ranks(script: str, arguments: Sequence[str], *, world_size: int, log: Path) -> list[RankProcess]:
    """Start a script of launch/, or the one at an absolute path, as ranks, each in a process group of its own.

    With a `world_size` of 0 it is one process without what launchers set, as `python launch/SCRIPT` starts it.
    """
    port, num_before = free_port(), _num_starts.get(script, 0)
    _num_starts[script] = num_before + 1
    is_of_launch = not Path(script).is_absolute()
    is_first = is_of_launch and script not in _first_starts and bool(_first_starts.setdefault(script, claimed(script)))
    numbers = [None if is_first else num_before + rank for rank in range(world_size or 1)]
    start_forking(numbers)
    processes = []
    with log.open("ab") as output:
        for rank, number in enumerate(numbers):
            environment = rank_environment()
            if world_size:
                environment |= {
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "WORLD_SIZE": str(world_size),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                }
            command = [str(PROJECT / "launch" / script), *arguments]
            processes.append(start_rank(command, environment, output, number=number))
    return processes


def kill_ranks(processes: Sequence[RankProcess], number: int = signal.SIGKILL) -> None:
    """Send a signal to every rank and its children."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
    if number == signal.SIGKILL:
        for process in processes:
            process.wait()


def run_ranks(
    script: str,
    arguments: Sequence[str],
    *,
    world_size: int,
    log: Path,
    kill_when: Callable[[], bool] = lambda: False,
    time_limit: float = 420,
) -> Outcome:
    """Run a script to its end, or kill -9 all ranks as soon as `kill_when` is true.

    `time_limit` is in seconds: compiling CPU Adam alone takes four minutes on two slow cores.
    """
    log.unlink(missing_ok=True)
    processes = start_ranks(script, arguments, world_size=world_size, log=log)
    deadline = time.monotonic() + time_limit
    try:
        while any(process.poll() is None for process in processes):
            if kill_when():
                break
            if time.monotonic() > deadline:
                raise TimeoutError(f"{script} ran over {time_limit} s:\n{log.read_text()[-3000:]}")
            time.sleep(0.02)
    finally:
        kill_ranks(processes)
    return Outcome(codes=[process.returncode for process in processes], text=log.read_text())


def run_well(script: str, arguments: Sequence[str], *, world_size: int, log: Path) -> str:
    """Run a script to its end and return its output; it must succeed on every rank."""
    outcome = run_ranks(script, arguments, world_size=world_size, log=log)
    assert outcome.codes == [0] * world_size, outcome.text[-3000:]
    return outcome.text


def free_port() -> int:
    """Return a port that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(is_true: Callable[[], bool], *, time_limit: float, what: str) -> None:
    """Look again and again until something is true."""
    deadline = time.monotonic() + time_limit
    while not is_true():
        assert time.monotonic() < deadline, f"not within {time_limit} s: {what}"
        time.sleep(0.2)


def python_path() -> dict[str, str]:
    """Return the variables by which `python` and `deepspeed` are this interpreter's, with this project's package."""
    folders = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    packages = [str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PATH": os.pathsep.join(folders), "PYTHONPATH": os.pathsep.join(packages)}
