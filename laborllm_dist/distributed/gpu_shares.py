"""What each of several runs at the same time has to itself on this machine: GPUs, and ports that its ranks meet at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from laborllm_dist.distributed.slurm import FIRST_PORT, NUM_PORTS
from laborllm_dist.errors import SweepError

PORTS = range(FIRST_PORT, FIRST_PORT + NUM_PORTS)


@dataclass(frozen=True, slots=True)
class GpuShare:
    """The GPUs and ports of one of the runs that are at work at the same time.

    The GPUs are named as in CUDA_VISIBLE_DEVICES. A share without any is one of a machine without GPUs, whose CPU cores
    the runs share.
    """

    names: tuple[str, ...] = ()
    ports: range = PORTS

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
        SweepError: if there are GPUs, but too few; or if `deepspeed` does not take their names.
    """
    names, needed = _visible_gpus(environment), max_parallel * num_ranks
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    which = "" if visible is None else f" (CUDA_VISIBLE_DEVICES={visible})"
    if names and len(names) < needed:
        raise SweepError(
            f"max_parallel={max_parallel} runs of num_ranks={num_ranks} need {needed} GPUs, and this "
            f"machine shows {len(names)}{which}; lower either",
            code="too-few-gpus",
        )
    if num_ranks > 1 and not all(name.isdecimal() for name in names[:needed]):
        raise SweepError(
            f"deepspeed, which starts num_ranks={num_ranks} ranks, takes GPUs by number only{which}; name them by "
            "number, or set num_ranks=1",
            code="gpus-without-numbers",
        )
    return tuple(
        GpuShare(names[run * num_ranks : (run + 1) * num_ranks], PORTS[run::max_parallel])
        for run in range(max_parallel)
    )


def _visible_gpus(environment: Mapping[str, str]) -> tuple[str, ...]:
    import torch  # here, since it takes seconds, and only the execution of a sweep needs it

    # Those that CUDA_VISIBLE_DEVICES leaves. Under a driver that is too old they are counted, but not available.
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    named = environment.get("CUDA_VISIBLE_DEVICES")
    names = map(str, range(num_gpus)) if named is None else (name.strip() for name in named.split(","))
    return tuple(names)[:num_gpus]
