"""The variables that launchers set -> which rank this process is, how many there are, and where they meet.

They come from outside: from deepspeed, torchrun, srun, or a person. Values that are not numbers, contradict each other
or are incomplete raise here, before ranks wait for each other until the time limit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from laborllm_dist.errors import LauncherError

MOST_RANKS, MOST_PORT = 65_536, 65_535
ACCELERATORS = ("cuda", "cpu")
ADVICE = "start with deepspeed, torchrun or srun, which set it, or unset it where there is one rank"


@dataclass(frozen=True, slots=True)
class RankVariables:
    """The launcher's variables of a rank."""

    rank: int
    world_size: int
    local_rank: int
    address: str  # of rank 0's host
    port: int  # that the ranks meet at


def read_rank_variables(environment: Mapping[str, str]) -> RankVariables:
    """Read RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT; all of them are set.

    Raises:
        LauncherError: naming a variable that is not a number in its range, or that contradicts another one.
    """
    world_size = whole_number(environment, "WORLD_SIZE", 1, MOST_RANKS)
    rank = whole_number(environment, "RANK", 0, MOST_RANKS - 1)
    if rank >= world_size:
        raise LauncherError(
            f"RANK is {rank} and WORLD_SIZE is {world_size}: ranks are numbered from 0; {ADVICE}",
            code="rank-out-of-range",
        )
    address = environment["MASTER_ADDR"]
    if not address or not address.isprintable() or " " in address:
        raise LauncherError(
            f"MASTER_ADDR is {address!r}, which is no name or address of a host; {ADVICE}",
            code="invalid-master-address",
        )
    return RankVariables(
        rank=rank,
        world_size=world_size,
        local_rank=whole_number(environment, "LOCAL_RANK", 0, MOST_RANKS - 1),
        address=address,
        port=whole_number(environment, "MASTER_PORT", 1, MOST_PORT),
    )


def whole_number(environment: Mapping[str, str], name: str, least: int, most: int) -> int:
    """Return the number in a variable.

    Raises:
        LauncherError: if it is not a whole number from `least` to `most`.
    """
    text = environment[name]
    if not (text.isascii() and text.isdecimal() and len(text) <= 20 and least <= int(text) <= most):
        raise LauncherError(
            f"{name} is {text!r}, expected a whole number from {least} to {most:,}; {ADVICE}",
            code="invalid-rank-variable",
        )
    return int(text)


def check_is_complete(environment: Mapping[str, str]) -> None:
    """Check that the environment of one of several ranks has its number and the port of rank 0.

    Raises:
        LauncherError: naming what is set, and what is not.
    """
    if environment.get("WORLD_SIZE", "1") == "1" and environment.get("RANK", "0") == "0":
        return
    for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"):
        if name not in environment:
            shown = ", ".join(f"{each}={environment[each]}" for each in ("RANK", "WORLD_SIZE") if each in environment)
            raise LauncherError(f"{name} is not set, beside {shown}; {ADVICE}", code="missing-rank-variable")


def check_devices(environment: Mapping[str, str], local_rank: int, num_gpus: int) -> None:
    """Check that a rank has its own GPU, and that DeepSpeed knows the accelerator.

    Raises:
        LauncherError: naming the variable.
    """
    if num_gpus == 0:
        return
    if local_rank >= num_gpus:
        visible = environment.get("CUDA_VISIBLE_DEVICES")
        which = "" if visible is None else f" (CUDA_VISIBLE_DEVICES={visible})"
        raise LauncherError(
            f"LOCAL_RANK is {local_rank}, and this host shows {num_gpus} GPUs{which}: start as many ranks on a host as "
            "it has GPUs",
            code="more-ranks-than-gpus",
        )
    accelerator = environment.get("DS_ACCELERATOR", ACCELERATORS[0])
    if accelerator not in ACCELERATORS:
        raise LauncherError(
            f"DS_ACCELERATOR is {accelerator!r}, expected {' or '.join(ACCELERATORS)}; or unset it",
            code="unknown-accelerator",
        )
