"""The memory that a rank may use: of its GPU, or its share of the host's."""

from __future__ import annotations

import importlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from laborllm_dist.config.run import RunSettings
from laborllm_dist.distributed.launcher import num_local_ranks

if TYPE_CHECKING:  # a plan knows a Capacity, and starts without torch
    from laborllm_dist.distributed.context import DistributedContext


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """Bytes that a rank may use: of its device, and of its host beside it.

    `process`: what its process has before the model, on a CPU; None: on a GPU. `host`: None on a CPU, whose memory is
    the host's.
    """

    total: float
    process: float | None
    host: float | None


def budget_of(ranks: DistributedContext, settings: RunSettings) -> MemoryBudget:
    """Return the memory of a rank that is about to make the model of these settings."""
    num_local = num_local_ranks(os.environ) or ranks.world_size
    if ranks.device.type == "cuda":
        import torch

        available = _kibibytes("/proc/meminfo", "MemAvailable") * 1024.0
        return MemoryBudget(float(torch.cuda.mem_get_info(ranks.device)[1]), None, available / num_local)
    _import_libraries(settings)
    own, available = (
        _kibibytes(path, name) * 1024.0
        for path, name in (("/proc/self/status", "VmRSS"), ("/proc/meminfo", "MemAvailable"))
    )
    return MemoryBudget(available / num_local + own, own, None)


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
