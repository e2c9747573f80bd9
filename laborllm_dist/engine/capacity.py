"""The memory that a rank may use: of its GPU, or its share of the host's."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from laborllm_dist.engine.ranks import Ranks

# What launchers call the number of ranks of a host: torchrun, deepspeed, srun.
LOCAL_SIZES = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "SLURM_NTASKS_PER_NODE")


@dataclass(frozen=True, slots=True)
class Capacity:
    """Bytes that a rank may use: of its device, and of its host beside it.

    `process`: what its process has before the model, on a CPU; None: on a GPU. `host`: None on a CPU, whose memory is
    the host's.
    """

    total: float
    process: float | None
    host: float | None


def capacity_of(ranks: Ranks) -> Capacity:
    """Return the memory of a rank."""
    available = _kibibytes("/proc/meminfo", "MemAvailable") * 1024.0
    num_local = next((int(os.environ[name]) for name in LOCAL_SIZES if name in os.environ), ranks.world_size)
    if ranks.device.type == "cuda":
        return Capacity(float(torch.cuda.mem_get_info(ranks.device)[1]), None, available / num_local)
    own = _kibibytes("/proc/self/status", "VmRSS") * 1024.0
    return Capacity(available / num_local + own, own, None)


def _kibibytes(path: str, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", Path(path).read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None  # Linux
    return int(found[1])
