"""The estimate of a training run: work, memory and cost; and the memory that a rank may use."""

from __future__ import annotations

import dataclasses
import importlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from laborllm_dist.config.run import GpuSettings, RunSettings
from laborllm_dist.distributed.launcher import num_local_ranks
from laborllm_dist.models.dims import ModelShape
from laborllm_dist.planning.memory import EIGHT_BIT_MOMENTS, FULL_MOMENTS, GIB, Memory, MicroBatchShape, plan_memory
from laborllm_dist.planning.throughput import Cost, bytes_of_number, cost_of_step
from laborllm_dist.planning.workload import Passes, Workload, passes_of

if TYPE_CHECKING:  # planning does not import torch
    from laborllm_dist.distributed.context import DistributedContext


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """Bytes that a rank may use, of its device and of its host.

    `process`: bytes of the process before the model is made, on a CPU; None on a GPU. `host`: None on a CPU, whose
    memory is the host's.
    """

    total: float
    process: float | None
    host: float | None


@dataclass(frozen=True, slots=True)
class ResourceEstimate:
    """The estimate for one setting; `room` is the memory that a rank may use."""

    settings: RunSettings
    shape: ModelShape
    work: Workload
    room: MemoryBudget
    passes: Passes
    memory: Memory
    cost: Cost

    @property
    def utilization(self) -> float:
        """Share of the GPUs' time that is work."""
        return self.passes.utilization(self.settings.plan.num_gpus)

    @property
    def hours(self) -> float:
        """Hours of all steps, without validation and checkpoints."""
        return self.cost.seconds * self.work.num_steps / 3600

    @property
    def dollars(self) -> float:
        """Price of the run."""
        return self.hours * self.settings.plan.num_gpus * self.settings.plan.gpu.dollars_per_hour

    @property
    def disk_bytes(self) -> float:
        """Bytes of its checkpoints (the newest ones and the best) and of its export, without the token store."""
        settings = self.settings
        moments = EIGHT_BIT_MOMENTS if settings.optimizer.name == "adamw_8bit" else FULL_MOMENTS
        checkpoint = (4 + moments) * self.shape.num_trainable(settings.adapter)
        export = bytes_of_number(settings.zero) * self.shape.num_parameters
        return (settings.training.save_total_limit + 1) * checkpoint + export

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second and GPU, without padding."""
        return self.passes.num_tokens / self.cost.seconds / self.settings.plan.num_gpus

    @property
    def fits_device(self) -> bool:
        """Whether the device's memory suffices; on a CPU it includes what is offloaded."""
        on_same = self.memory.host_total if self.room.host is None else 0.0
        return self.memory.total + on_same <= self.room.total

    @property
    def fits_host(self) -> bool:
        """Whether the host's memory suffices for what a rank offloads."""
        return self.room.host is None or self.memory.host_total <= self.room.host

    @property
    def fits(self) -> bool:
        """Whether both memories suffice."""
        return self.fits_device and self.fits_host


def estimate_resources(
    settings: RunSettings, work: Workload, shape: ModelShape, room: MemoryBudget
) -> ResourceEstimate:
    """Return the estimate of a run on `plan.num_gpus` ranks with this memory each."""
    num_ranks = settings.plan.num_gpus
    shape = dataclasses.replace(shape, num_head_outputs=settings.title_head.num_outputs(work.num_titles))
    passes = passes_of(work, settings.batch, num_ranks=num_ranks)
    load = MicroBatchShape(passes.rows_of_rank, passes.max_seq_length)
    memory = plan_memory(shape, settings, load, world_size=num_ranks, process_bytes=room.process)
    return ResourceEstimate(settings, shape, work, room, passes, memory, cost_of_step(shape, settings, work, passes))


def budget_of_gpu(gpu: GpuSettings) -> MemoryBudget:
    """Return the memory of a rank on a GPU of this kind."""
    return MemoryBudget(total=gpu.memory_gib * GIB, process=None, host=gpu.host_memory_gib * GIB)


def budget_of(ranks: DistributedContext, settings: RunSettings) -> MemoryBudget:
    """Return the memory budget of a rank that is about to make the model of these settings."""
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
    """Import the modules that the model needs anyway, so that they count as the process's memory."""
    importlib.import_module("transformers.modeling_utils")
    if settings.optimizer.name == "adamw_8bit" or settings.adapter.quantization != "none":
        importlib.import_module("bitsandbytes")
    if settings.adapter.kind != "none":
        importlib.import_module("peft")


def _kibibytes(path: str, name: str) -> int:
    match = re.search(rf"^{name}:\s+(\d+) kB", Path(path).read_text(encoding="utf-8"), re.MULTILINE)
    assert match is not None  # Linux
    return int(match[1])
