"""The log of the commands that worked on a run, commands.jsonl: what a replication package repeats and what it cost."""

from __future__ import annotations

import json
import logging
import os
import platform
import resource
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from laborllm_dist import __version__
from laborllm_dist.config.reader import Strict, read_settings
from laborllm_dist.errors import SettingsError
from laborllm_dist.io.json_files import NotJsonError, json_object

logger = logging.getLogger(__name__)
COMMANDS = "commands.jsonl"
GIB = 2**30


@dataclass(frozen=True, slots=True)
class Command(Strict):
    """A command that succeeded, as rank 0 saw it."""

    name: str
    """The script of launch/, such as train."""
    arguments: tuple[str, ...]
    """Settings as they were typed."""
    num_ranks: int
    finished: str
    """UTC, ISO 8601."""
    seconds: float
    """From the start of the process that finished; of a resumed training only the last part."""
    peak_memory_gib: float
    """Of the process of rank 0 on the host."""
    machine: str
    version: str
    """Of laborllm_dist."""


def record_command(folder: Path, name: str, arguments: list[str], started: float) -> None:
    """Append a command to the log of a run's folder, on rank 0; a full disk costs the entry and nothing else.

    Args:
        folder: the run's.
        name: of the script.
        arguments: as typed.
        started: when the process began, seconds since the epoch.
    """
    world_size = os.environ.get("WORLD_SIZE", "")  # not every command reads it, so it may be anything
    command = Command(
        name,
        tuple(arguments),
        int(world_size) if world_size.isascii() and world_size.isdecimal() and len(world_size) < 10 else 1,
        time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        round(time.time() - started, 1),
        round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB, 2),
        describe_machine(),
        __version__,
    )
    try:
        with (folder / COMMANDS).open("a+b") as file:
            if file.tell() and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n":
                file.write(b"\n")  # ends a line that a full disk or a kill has torn
            file.write(json.dumps(asdict(command)).encode() + b"\n")
    except OSError as error:
        logger.warning(f"warning: {folder / COMMANDS} lacks this command ({error.strerror or error})")


def read_commands(folder: Path) -> list[Command]:
    """Return the log of a run's folder, oldest first; empty if there is none. Damaged lines are left out and logged."""
    path = folder / COMMANDS
    if not path.is_file():
        return []
    commands, num_damaged = [], 0
    for line in path.read_bytes().split(b"\n"):
        try:
            if line:
                commands.append(read_settings(Command, json_object(line)))
        except (NotJsonError, SettingsError):
            num_damaged += 1
    if num_damaged:
        logger.warning(f"warning: {path}: {num_damaged} damaged lines are left out")
    return commands


def describe_machine() -> str:
    """Return processor, memory and GPUs in words, without the machine's name."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    words = f"{os.cpu_count()} x {_processor()}, {memory:.0f} GiB"
    torch: Any = sys.modules.get("torch")  # only where the command has imported it
    if torch is not None and torch.cuda.is_available():
        words += f", {torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    return words


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
