"""Start the project's own scripts as ranks: real processes, real collectives, always with a time limit."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
EXTENSIONS = tempfile.mkdtemp(prefix="torch_extensions_")  # must stay empty: nothing here is compiled at run time
ON_CPU = {
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "DS_ACCELERATOR": "cpu",
    "TORCH_EXTENSIONS_DIR": EXTENSIONS,
    "WANDB_MODE": "disabled",
}


@dataclass
class Outcome:
    """How ranks ended: exit codes, and what all of them printed."""

    codes: list[int]
    text: str


def start_ranks(script: str, arguments: Sequence[str], *, world_size: int, log: Path) -> list[subprocess.Popen[bytes]]:
    """Start a script of launch/ as `world_size` ranks, each in a process group of its own."""
    port = free_port()
    processes = []
    with log.open("ab") as output:
        for rank in range(world_size):
            environment = {
                **os.environ,
                **ON_CPU,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(world_size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
            processes.append(
                subprocess.Popen(
                    [sys.executable, str(PROJECT / "launch" / script), *arguments],
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL,
                    env=environment,
                    start_new_session=True,
                )
            )
    return processes


def kill_ranks(processes: Sequence[subprocess.Popen[bytes]], number: int = signal.SIGKILL) -> None:
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
    time_limit: float = 240,
) -> Outcome:
    """Run a script to its end, or kill -9 all ranks as soon as `kill_when` is true."""
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
