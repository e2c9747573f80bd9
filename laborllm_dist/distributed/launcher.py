"""The launcher of a rank: how many ranks it started on this host, and whether it is still running.

    deepspeed            the command a user types, ends at once on SIGTERM or SIGHUP
      launch.py          deepspeed's process on every host, sees nothing of that
        rank             would continue with nobody to end it

So every rank looks at the launchers above it, and asks itself to stop, as SIGTERM does, when one of them is gone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)


# What launchers call the number of ranks of a host: torchrun (and distributed/slurm.py for srun), deepspeed.
LOCAL_SIZES = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "SLURM_NTASKS_PER_NODE")
DEEPSPEED_ON_HOST = "deepspeed.launcher.launch"
LAUNCHERS = (
    "deepspeed", "ds", "deepspeed.launcher.runner", DEEPSPEED_ON_HOST,
    "torchrun", "torch.distributed.run", "torch.distributed.launch", "accelerate",
)  # fmt: skip
OPTIONS_WITH_VALUE = ("-W", "-X", "--check-hash-based-pycs")  # of Python
MOST_ANCESTORS = 8
SECONDS_BETWEEN_LOOKS = 1.0


@dataclass(frozen=True, slots=True)
class Process:
    """A process of this host, known by its number and when it was started (in the system's ticks)."""

    number: int
    born: str
    parent: int
    words: tuple[str, ...]  # of its command line

    @property
    def launcher(self) -> str | None:
        """The launcher that this process is; None if it is not one."""
        program = _program_of(self.words)
        return next((name for name in (program, Path(program).name) if name in LAUNCHERS), None)

    def is_there(self) -> bool:
        """Return whether this process is still running."""
        now = process_of(self.number)
        return now is not None and now.born == self.born


def _program_of(words: Sequence[str]) -> str:
    """Return the program that a command line runs: its first word, or the script or module of an interpreter."""
    if not Path(words[0]).name.startswith("python"):
        return words[0]
    rest = iter(words[1:])
    for word in rest:
        if word == "-m" or not word.startswith("-"):
            return next(rest, "") if word == "-m" else word
        if word in OPTIONS_WITH_VALUE:
            next(rest, None)
    return words[0]


def num_local_ranks(environment: Mapping[str, str]) -> int | None:
    """Return the number of ranks on this host from the launcher's variables; None if they do not have it."""
    stated = (environment.get(name, "") for name in LOCAL_SIZES)
    return next((int(text) for text in stated if re.fullmatch("[0-9]{1,6}", text)), None)


def process_of(number: int) -> Process | None:
    """Return a process from /proc (Linux); None if it does not exist or has ended."""
    try:
        folder = Path(f"/proc/{number}")
        fields = (folder / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return None
    return None if fields[0] in "ZX" else Process(number, born=fields[19], parent=int(fields[1]), words=tuple(words))


def launchers_above(number: int) -> list[Process]:
    """Return the launcher processes above a rank, nearest first; the rank ends when one of them does.

    Where deepspeed reaches a host by ssh, that is the connection too: with the command, it ends.
    """
    above: list[Process] = []
    rank = process_of(number)
    parent = rank.parent if rank is not None else 0
    while len(above) < MOST_ANCESTORS and (process := process_of(parent)) is not None:
        above.append(process)
        parent = process.parent
    launchers = [process for process in above if process.launcher is not None]
    if launchers and launchers[-1].launcher == DEEPSPEED_ON_HOST:
        launchers += _connection(above[above.index(launchers[-1]) + 1 :])
    return launchers


def _connection(above: list[Process]) -> list[Process]:
    """Return the process of sshd that has run a command, if that is what these are: no shell that somebody types in."""
    shells = [process for process in above[:1] if "-c" in process.words[1:3]]
    return [process for process in above[len(shells) : len(shells) + 1] if process.words[0].startswith("sshd")]


@contextlib.contextmanager
def following_launcher(*, speaks: bool) -> Iterator[None]:
    """Send this process SIGTERM if a launcher above it ends while the block runs.

    Args:
        speaks: whether this rank logs the reason; one rank per host is enough.
    """
    launchers = launchers_above(os.getpid())
    left = threading.Event()

    def watch() -> None:
        while not left.wait(SECONDS_BETWEEN_LOOKS):
            gone = next((process for process in launchers if not process.is_there()), None)
            if gone is not None:
                if speaks:
                    logger.warning(
                        f"ranks: the launcher ({gone.launcher or gone.words[0]}, process {gone.number}) has ended"
                    )
                os.kill(os.getpid(), signal.SIGTERM)
                return

    if launchers:
        threading.Thread(target=watch, daemon=True, name="launcher").start()
    try:
        yield
    finally:
        left.set()
