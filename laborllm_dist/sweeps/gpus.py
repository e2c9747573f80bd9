"""The GPUs of this machine that each of several runs at the same time has to itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from laborllm_dist.errors import SweepError


@dataclass(frozen=True, slots=True)
class GpuShare:
    """The GPUs of one of the runs that are at work at the same time, as CUDA_VISIBLE_DEVICES names them."""

    names: tuple[str, ...] = ()  # none: this machine has no GPU, and the runs share its CPU cores

    @property
    def environment(self) -> dict[str, str]:
        """Variables for a single rank, which takes the first GPU that it sees."""
        return {"CUDA_VISIBLE_DEVICES": ",".join(self.names)} if self.names else {}

    def deepspeed_options(self, num_ranks: int) -> tuple[str, ...]:
        """Return the options by which `deepspeed` takes these GPUs; with --num_gpus it would take the first ones."""
        if self.names:
            return ("--include", f"localhost:{','.join(self.names)}")
        return ("--num_gpus", str(num_ranks))


def share_gpus(environment: Mapping[str, str], *, max_parallel: int, num_ranks: int) -> tuple[GpuShare, ...]:
    """Divide this machine's GPUs among the runs that are at work at the same time, a GPU for each rank.

    Args:
        environment: variables of this process; CUDA_VISIBLE_DEVICES limits the GPUs.
        max_parallel: number of runs.
        num_ranks: ranks of each.

    Raises:
        SweepError: if there are GPUs, but too few.
    """
    names = _visible_gpus(environment)
    needed = max_parallel * num_ranks
    if not names:
        return (GpuShare(),) * max_parallel
    if len(names) < needed:
        raise SweepError(
            f"max_parallel={max_parallel} runs of num_ranks={num_ranks} need {needed} GPUs, but {len(names)} are "
            "visible; lower either",
            code="too-few-gpus",
        )
    return tuple(GpuShare(names[first : first + num_ranks]) for first in range(0, needed, num_ranks))


def _visible_gpus(environment: Mapping[str, str]) -> tuple[str, ...]:
    num_gpus = torch.cuda.device_count()  # those that CUDA_VISIBLE_DEVICES leaves
    named = environment.get("CUDA_VISIBLE_DEVICES")
    names = map(str, range(num_gpus)) if named is None else (name.strip() for name in named.split(","))
    return tuple(names)[:num_gpus]
