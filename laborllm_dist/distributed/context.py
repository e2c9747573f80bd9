"""The ranks of a run: their numbers and devices, and the collective operations among them.

A process that no launcher started is rank 0 of 1. A collective function must be called on all ranks, or it hangs until
the time limit; docstrings mark them. A rank that waits for another one's work, however long that takes, waits on the
store the ranks met in and not in a collective, whose time limit is for communication.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any, TypeVar

import torch
import torch.distributed

from laborllm_dist.config.run import RanksSettings
from laborllm_dist.distributed.channel import Channel, wait_for
from laborllm_dist.distributed.launcher import following_launcher
from laborllm_dist.distributed.rank_variables import (
    RankVariables,
    check_devices,
    check_is_complete,
    read_rank_variables,
)
from laborllm_dist.distributed.rendezvous import join_process_group, translate_network_errors
from laborllm_dist.distributed.serialization import PLAIN, from_text, to_text
from laborllm_dist.distributed.slurm import launcher_variables
from laborllm_dist.distributed.watchdog import watch_peers
from laborllm_dist.errors import InterruptedRunError, PeerFailedError, PeerLostError
from laborllm_dist.io.files import file_lock

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
DONE, FAILED = "done", "failed"  # what a message of rank 0 begins with
FAREWELL_SECONDS = 10.0  # that rank 0, which keeps the store, gives the others to read its last message


@dataclass(frozen=True, slots=True)
class DistributedContext:
    """This process among its peers."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    channel: Channel | None = field(default=None, repr=False, compare=False)  # to the other ranks; None: there are none
    _calls: Iterator[int] = field(default_factory=itertools.count, repr=False, compare=False)
    _read: list[str] = field(default_factory=list, repr=False, compare=False)  # rank 0: messages to be removed

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes all files that are not per rank."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all ranks, however long their work takes. Collective."""
        self.share(None)

    def sum(self, *values: float) -> list[float]:
        """Return the sums over ranks, added in float64 in the order of ranks. Collective.

        It has the time limit of a collective: for ranks that come at about the same time (`share` waits longer).
        """
        if self.world_size == 1:
            return list(values)
        mine = torch.tensor(values, dtype=torch.float64, device=self.device)
        everyone = [torch.empty_like(mine) for _ in range(self.world_size)]
        torch.distributed.all_gather(everyone, mine)
        return [float(value) for value in torch.stack(everyone).cpu().sum(dim=0)]

    def share(self, value: Result, kind: Any = PLAIN) -> list[Result]:
        """Return every rank's value on every rank, in the order of ranks, however long the last one takes. Collective.

        Args:
            value: this rank's.
            kind: its type, one of those that distributed/serialization.py lists.
        """
        if self.world_size == 1:
            return [value]
        key, channel = f"laborllm_dist/{next(self._calls)}", self._channel()
        if not self.is_main:
            channel.send(f"{key}/{self.rank}", to_text(value, kind))
            values: list[Result] = from_text(channel.receive(key), list[kind])
            return values
        own = [f"{key}/{rank}" for rank in range(1, self.world_size)]
        values = [value, *(from_text(text, kind) for text in channel.receive_all(own))]
        channel.forget(self._read)  # whoever is here has read what was sent before
        self._read[:] = [key, *own]
        channel.send(key, to_text(values, list[kind]))
        return values

    def run_on_main(self, work: Callable[[], Result], kind: Any = PLAIN) -> Result:
        """Do `work` on rank 0 while the others wait, however long, and return its result on every rank. Collective.

        Args:
            work: what rank 0 does.
            kind: the type of its result, one of those in distributed/serialization.py; plain JSON values need none.

        Raises:
            Exception: on rank 0, whatever `work` raised.
            PeerFailedError: on the other ranks, if it raised.
        """
        if self.world_size == 1:
            return work()
        key, channel = f"laborllm_dist/{next(self._calls)}", self._channel()
        if not self.is_main:
            outcome, _, text = channel.receive(key).partition(" ")
            if outcome == FAILED:
                channel.send(f"{key}/{self.rank}", DONE)
                raise PeerFailedError("rank 0 raised an error (see its log)")
            answer: Result = from_text(text, kind)
            return answer
        try:
            result = work()
            text = to_text(result, kind)
        except BaseException:
            channel.send(key, FAILED)
            self._wait_for_readers(key)
            raise
        self._read.append(key)
        channel.send(key, f"{DONE} {text}")
        return result

    def leave(self) -> None:
        """Wait for all ranks, rank 0 a little longer, since the store ends with its process. Collective."""
        self.barrier()
        if self.channel is None:
            return
        key = f"laborllm_dist/{next(self._calls)}"
        if self.is_main:
            self._wait_for_readers(key)
        else:
            self.channel.send(f"{key}/{self.rank}", DONE)

    def claim_indices(self, num_items: int) -> Iterator[int]:
        """Return an iterator over 0, 1, ... in which every number comes up on one rank only, whichever is first to ask.

        Collective as a call; what each rank gets differs from run to run.
        """
        if self.world_size == 1:
            return iter(range(num_items))
        key, store = f"laborllm_dist/{next(self._calls)}", self._channel().store
        return itertools.takewhile(lambda place: place < num_items, (store.add(key, 1) - 1 for _ in itertools.count()))

    def _channel(self) -> Channel:
        assert self.channel is not None  # init_distributed makes it where there are several ranks
        return self.channel

    def _wait_for_readers(self, key: str) -> None:
        """Give the other ranks some time to confirm that they have read a message."""
        deadline = monotonic() + FAREWELL_SECONDS
        for rank in range(1, self.world_size):
            wait_for(self._channel().store, f"{key}/{rank}", seconds=max(0.0, deadline - monotonic()))


@contextlib.contextmanager
def exclusive(ranks: DistributedContext, folder: Path) -> Iterator[None]:
    """Work on a folder while no other start does. Collective.

    Raises:
        AlreadyRunningError: on rank 0, if another start is at work on it (PeerFailedError on the others).
    """
    with _holding(ranks, folder, folder / "lock"):
        yield


@contextlib.contextmanager
def exclusive_table(ranks: DistributedContext, table: Path) -> Iterator[None]:
    """Work on a table, which may be there or not, while no other start does; on others beside it they may. Collective.

    Raises:
        AlreadyRunningError: on rank 0, if another start is at work on it (PeerFailedError on the others).
    """
    with _holding(ranks, table, table.with_name(f"{table.name}.lock")):
        yield


@contextlib.contextmanager
def _holding(ranks: DistributedContext, what: Path, lock: Path) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        busy = f"another start is at work on {what}; wait for it, or end it first"
        ranks.run_on_main(lambda: stack.enter_context(file_lock(lock, busy=busy)))
        yield


@contextlib.contextmanager
def init_distributed(settings: RanksSettings) -> Iterator[DistributedContext]:
    """Join the ranks of the launcher (deepspeed, torchrun, srun), or run as the only rank. Collective.

    Raises:
        LauncherError: if the launcher's variables are incomplete or contradictory.
        RendezvousError: if the ranks do not meet.
        PeerLostError: if another rank is gone before the end.
    """
    variables = _launch_variables()
    device = _take_device(variables.local_rank)
    torch.set_num_threads(settings.threads_per_rank)
    _quiet_transformers()
    channel = join_process_group(settings, device, variables)
    ranks = DistributedContext(variables.rank, variables.world_size, variables.local_rank, device, channel)
    try:
        with (
            translate_network_errors(_peer_lost(ranks), sign="gloo/transport"),
            without_cudnn_attention(),
            following_launcher(speaks=ranks.local_rank == 0),
            _watched(ranks),
        ):
            yield ranks
            ranks.leave()
    finally:
        torch.distributed.destroy_process_group()


def _launch_variables() -> RankVariables:
    """Return the launcher's variables, after setting the missing ones from Slurm's or for a single rank.

    Raises:
        LauncherError: naming a variable.
    """
    alone_variables = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    slurm_variables = launcher_variables(os.environ)
    check_is_complete({**slurm_variables, **os.environ})
    for name, value in {**alone_variables, **slurm_variables}.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("MASTER_PORT", str(_free_port()))
    return read_rank_variables(os.environ)


def _take_device(local_rank: int) -> torch.device:
    """Return this rank's GPU, or the CPU, and leave the libraries no other.

    Raises:
        LauncherError: if the host has no GPU for this rank.
    """
    has_gpu = torch.cuda.is_available()
    check_devices(os.environ, local_rank, torch.cuda.device_count() if has_gpu else 0)
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
        # Passes differ in length: pieces of fixed size that the allocator keeps would soon fit none of them.
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    if not has_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"  # else deepspeed warns that it found no other
        return torch.device("cpu")
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def _watched(ranks: DistributedContext) -> contextlib.AbstractContextManager[None]:
    """End this process when another rank is gone, while the block runs."""
    return watch_peers(
        ranks.channel,
        rank=ranks.rank,
        world_size=ranks.world_size,
        is_clean_exit=lambda error: isinstance(error, (InterruptedRunError, PeerFailedError)),
        when_lost=lambda: _end_without(ranks),
    )


@contextlib.contextmanager
def without_cudnn_attention() -> Iterator[None]:
    """Keep torch from cuDNN's attention, which it prefers on Hopper and Blackwell.

    It builds a plan for every new number of queries and keys, tens of milliseconds each, and keeps all. Here these
    numbers are those of careers and of the branches after them, and seldom come twice.
    """
    before = torch.backends.cuda.cudnn_sdp_enabled()  # type: ignore[no-untyped-call]
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def _quiet_transformers() -> None:
    """Turn off progress bars and notes of other libraries."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # hide its retries; a final failure raises


def _end_without(ranks: DistributedContext) -> None:
    """End this process at once: its main thread waits for a lost rank, and no exception can reach it."""
    logger.error(f"error: {_peer_lost(ranks).labeled()}")
    os._exit(PeerLostError.exit_code)


def _peer_lost(ranks: DistributedContext) -> PeerLostError:
    return PeerLostError(
        f"rank {ranks.rank} has lost another rank, which failed, was killed or cannot be reached; "
        "its message, if any, is above; the same command resumes from what is saved",
        code="peer-lost",
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
