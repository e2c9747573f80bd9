"""The memory that a rank may use: of its GPU, or its share of the host's."""

from __future__ import annotations

import importlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from laborllm_dist.settings import RunSettings

if TYPE_CHECKING:  # a plan knows a Capacity, and starts without torch
    from laborllm_dist.engine.ranks import Ranks

# What launchers call the number of ranks of a host: torchrun, deepspeed, srun.
LOCAL_SIZES = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "SLURM_NTASKS_PER_NODE")


@dataclass(frozen=True, slots=True)
class Capacity:
    """Bytes of a rank's device, and what its process has before the model on a CPU; None: on a GPU."""

    total: float
    process: float | None


def capacity_of(ranks: Ranks, settings: RunSettings) -> Capacity:
    """Return the memory of a rank that is about to make the model of these settings."""
    if ranks.device.type == "cuda":
        import torch

        return Capacity(float(torch.cuda.mem_get_info(ranks.device)[1]), None)
    _import_libraries(settings)
    own = _kibibytes("/proc/self/status", "VmRSS") * 1024.0
    available = _kibibytes("/proc/meminfo", "MemAvailable") * 1024.0
    num_local = next((int(os.environ[name]) for name in LOCAL_SIZES if name in os.environ), ranks.world_size)
    return Capacity(available / num_local + own, own)


def _import_libraries(settings: RunSettings) -> None:
    """Import what the model will want anyway, so that it counts as the process's memory."""
    importlib.import_module("transformers.modeling_utils")
    if settings.optimizer.kind == "adamw_8bit" or settings.adapter.base != "full":
        importlib.import_module("bitsandbytes")
    if settings.adapter.kind != "none":
        importlib.import_module("peft")


def _kibibytes(path: str, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", Path(path).read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None  # Linux
    return int(found[1])
