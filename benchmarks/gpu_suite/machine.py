"""The machine the suite runs on: what it has, what it may use, what is installed."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path

import torch

from laborllm_dist.planning.memory import GIB

PROJECT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "deepspeed", "transformers", "peft", "bitsandbytes", "accelerate", "trl", "liger-kernel")
# Dense bf16, from data sheets, by the beginning of a card's name that fits first; cards on PCIe are slower.
PEAK_TFLOPS = {
    "H100 PCIe": 756.0, "H100 NVL": 835.0, "H200 NVL": 835.0, "H100": 989.0, "H200": 989.0, "A100": 312.0,
    "L40S": 362.0,
}  # fmt: skip


def hardware() -> str:
    """Return the GPU, or that there is none, and the host."""
    card = "no GPU"
    if torch.cuda.is_available():
        card = f"{torch.cuda.get_device_name()} ({torch.cuda.mem_get_info()[1] / GIB:.1f} GiB)"
    return f"{card}; {num_cpus()} CPUs ({platform.machine()}), {host_memory() / GIB:.0f} GiB of the host free"


def versions() -> dict[str, str]:
    """Return the versions of Python, CUDA and the packages that decide; what is not installed says so."""
    version_of = {"Python": platform.python_version(), "CUDA": torch.version.cuda or "none"}
    for name in PACKAGES:
        version_of[name] = "not installed"
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            version_of[name] = importlib.metadata.version(name)
    return version_of


def commit() -> str:
    """Return the project's commit, and whether files differ from it."""
    command = ["git", "-C", str(PROJECT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "not known: no git, or no repository"


def num_cpus() -> int:
    """Return how many CPUs this process may use, which a container may have fewer of than its machine."""
    allowed = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        allowed = min(allowed, max(1, int(quota) // int(period)))
    return allowed


def host_memory() -> float:
    """Return the bytes of the host's memory that are free, within the limit of a container."""
    available = re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())
    assert available is not None  # Linux
    free = float(available[1]) * 1024
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            free = min(free, float(Path(limit).read_text()))
    return free


def peak_tflops() -> float | None:
    """Return the dense bf16 peak of the card, from its data sheet; None where it is not known."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return next((peak for known, peak in PEAK_TFLOPS.items() if known in name), None)


def synchronize() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
