"""The processes of a run: who am I, how many are we, and what must be agreed on.

A process that no launcher started is rank 0 of 1. Everything collective takes part in on all ranks or hangs until
the time limit; such functions say so. A rank that waits for another one's work, however long that takes, waits on the
store the ranks met in and not in a collective, whose time limit is for communication.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import resource
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import Any, TypeVar

import torch
import torch.distributed
from torch.distributed.rendezvous import rendezvous

from laborllm_dist.config.run import RanksSettings
from laborllm_dist.distributed.channel import Channel, wait_for
from laborllm_dist.distributed.interface import listen
from laborllm_dist.distributed.launcher import following_launcher, num_local_ranks
from laborllm_dist.distributed.library_internals import import_deepspeed
from laborllm_dist.distributed.meeting import meet_at
from laborllm_dist.distributed.messages import PLAIN, from_text, to_text
from laborllm_dist.distributed.rank_variables import (
    RankVariables,
    check_devices,
    check_is_complete,
    read_rank_variables,
)
from laborllm_dist.distributed.secret import share_secret
from laborllm_dist.distributed.slurm import launcher_variables
from laborllm_dist.distributed.watchdog import watch_peers
from laborllm_dist.errors import InterruptedRunError, PeerFailedError, PeerLostError, PortInUseError, RendezvousError
from laborllm_dist.io.console import complain
from laborllm_dist.io.files import file_lock

Result = TypeVar("Result")
STORES: Any = torch.distributed  # whose stores have no annotations
FEWEST_OPEN_FILES = 256  # that no rank has ever run short of
DONE, REFUSED = "done", "refused"  # what a message of rank 0 begins with
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
        """Whether this is rank 0, which writes what is written once."""
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
            kind: its type, one of those that distributed/messages.py lists.
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
            kind: the type of its result, one of those that distributed/messages.py lists; plain JSON values need none.

        Raises:
            Exception: on rank 0, whatever `work` raised.
            PeerFailedError: on the other ranks, if it raised.
        """
        if self.world_size == 1:
            return work()
        key, channel = f"laborllm_dist/{next(self._calls)}", self._channel()
        if not self.is_main:
            outcome, _, text = channel.receive(key).partition(" ")
            if outcome == REFUSED:
                channel.send(f"{key}/{self.rank}", DONE)
                raise PeerFailedError("rank 0 has refused")
            answer: Result = from_text(text, kind)
            return answer
        try:
            result = work()
            text = to_text(result, kind)
        except BaseException:
            channel.send(key, REFUSED)
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
        """Give the other ranks some time to say that they have read a message."""
        deadline = monotonic() + FAREWELL_SECONDS
        for rank in range(1, self.world_size):
            wait_for(self._channel().store, f"{key}/{rank}", seconds=max(0.0, deadline - monotonic()))


@contextlib.contextmanager
def alone(ranks: DistributedContext, folder: Path) -> Iterator[None]:
    """Work on a folder while no other start does. Collective.

    Raises:
        AlreadyRunningError: on rank 0, if another start is at work on it (PeerFailedError on the others).
    """
    with _holding(ranks, folder, folder / "lock"):
        yield


@contextlib.contextmanager
def alone_on_table(ranks: DistributedContext, table: Path) -> Iterator[None]:
    """Work on a table, which may be there or not, while no other start does; on others beside it they may. Collective.

    Raises:
        AlreadyRunningError: on rank 0, if another start is at work on it (PeerFailedError on the others).
    """
    with _holding(ranks, table, table.with_name(f"{table.name}.lock")):
        yield


@contextlib.contextmanager
def _holding(ranks: DistributedContext, what: Path, lock: Path) -> Iterator[None]:
    with contextlib.ExitStack() as held:
        busy = f"another start is at work on {what}; wait for it, or end it first"
        ranks.run_on_main(lambda: held.enter_context(file_lock(lock, busy=busy)))
        yield


@contextlib.contextmanager
def init_distributed(settings: RanksSettings) -> Iterator[DistributedContext]:
    """Join the ranks of the launcher (deepspeed, torchrun, srun), or stand alone; leave them at the end. Collective."""
    alone_variables = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    slurm_variables = launcher_variables(os.environ)
    check_is_complete({**slurm_variables, **os.environ})
    for name, value in {**alone_variables, **slurm_variables}.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("MASTER_PORT", str(_free_port()))
    variables = read_rank_variables(os.environ)
    has_gpu = torch.cuda.is_available()
    check_devices(os.environ, variables.local_rank, torch.cuda.device_count() if has_gpu else 0)
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
        # Passes differ in length: pieces of fixed size that the allocator keeps would soon fit none of them.
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    if not has_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"  # else deepspeed warns that it found no other
    torch.set_num_threads(settings.threads_per_rank)
    _quiet_transformers()
    local_rank = variables.local_rank
    device = torch.device("cuda", local_rank) if has_gpu else torch.device("cpu")
    if has_gpu:
        torch.cuda.set_device(device)
    channel = _meet(settings, device, variables)
    ranks = DistributedContext(
        torch.distributed.get_rank(), torch.distributed.get_world_size(), local_rank, device, channel
    )
    try:
        with (
            without_cudnn_attention(),
            following_launcher(speaks=ranks.local_rank == 0),
            watch_peers(
                channel,
                rank=ranks.rank,
                world_size=ranks.world_size,
                is_clean_exit=lambda error: isinstance(error, (InterruptedRunError, PeerFailedError)),
                when_lost=lambda: _end_without(ranks),
            ),
        ):
            yield ranks
            ranks.leave()
    except RuntimeError as error:
        if not _is_lost_peer(error):
            raise
        raise PeerLostError(_what_is_lost(ranks)) from None
    finally:
        torch.distributed.destroy_process_group()


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
    """Leave out bars and notes that say nothing about the run."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries; what fails is said in the end


def _meet(settings: RanksSettings, device: torch.device, variables: RankVariables) -> Channel | None:
    """Make the process group, and what ranks send each other messages through. Collective.

    Returns:
        None where there is one rank: it opens no port.

    Raises:
        PortInUseError: if another run meets at this port.
        RendezvousError: if not all ranks have come within the time limit, or they cannot reach each other.
        LauncherError: if a rank was started twice, or with another number of ranks.
        ForeignMessageError: if another process writes to the port that they meet at.
    """
    deepspeed = import_deepspeed()
    rank, world_size, limit = variables.rank, variables.world_size, _limit(settings)
    place = f"{variables.address}:{variables.port}"
    backend, bound = ("nccl", device) if device.type == "cuda" else ("gloo", None)
    try:
        store = STORES.HashStore() if world_size == 1 else _open_store(variables, limit)
        meet_at(store, place, rank=rank, world_size=world_size, limit=limit)
        torch.distributed.init_process_group(
            backend,
            store=STORES.PrefixStore("default_pg", store),
            rank=rank,
            world_size=world_size,
            timeout=limit,
            device_id=None if world_size == 1 else bound,
        )
        deepspeed.init_distributed(dist_backend=backend, timeout=limit, verbose=False)
        if world_size == 1:
            return None
        return Channel(store, share_secret(store, rank=rank, world_size=world_size))
    except RuntimeError as error:
        if os.strerror(errno.EMFILE) in str(error) or not (_is_lost_peer(error) or "gloo" in str(error).lower()):
            raise
        raise RendezvousError(
            f"rank {rank} of {world_size} has not met the others at {place} "
            f"(ranks.timeout_minutes: {settings.timeout_minutes:g}); look whether all have started, and whether "
            f"GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name the interface that joins the hosts{_advice_on_files()}"
        ) from None


def _advice_on_files() -> str:
    """Return what to do where a process may have so few files open that sockets may be what it lacked."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= FEWEST_OPEN_FILES:
        return ""
    return f"; a process here may have only {soft} files and sockets open at once: raise that (ulimit -n 4096)"


def _open_store(variables: RankVariables, limit: timedelta) -> Any:
    """Return the store that all ranks meet in: rank 0 keeps it, or torchrun's own process does. Collective.

    Raises:
        PortInUseError: if another run meets at this port.
    """
    rank, world_size, first, port = variables.rank, variables.world_size, variables.address, variables.port
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        store, _, _ = next(rendezvous("env://", rank, world_size, timeout=limit))
        return store
    if rank:
        return STORES.TCPStore(first, port, world_size, is_master=False, timeout=limit, wait_for_workers=False)
    try:
        server = listen(first, port, is_one_host=num_local_ranks(os.environ) == world_size, backlog=2 * world_size)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise RendezvousError(
                f"rank 0 cannot listen at {first}:{port} ({error.strerror}); take another port"
            ) from None
        raise PortInUseError(
            f"port {port} is taken by another run on this machine; start with another one "
            "(deepspeed --master_port=29600, torchrun --master-port=29600, MASTER_PORT=29600 srun)"
        ) from None
    # The store takes the socket over. By itself it would listen on every interface.
    # It need not count who connects: ranks say which ones they are.
    return STORES.TCPStore(
        first, port, world_size, is_master=True, timeout=limit, wait_for_workers=False, master_listen_fd=server.detach()
    )


def _limit(settings: RanksSettings) -> timedelta:
    return timedelta(minutes=settings.timeout_minutes)


def _end_without(ranks: DistributedContext) -> None:
    """End this process at once: its main thread waits for a rank that is gone, and cannot be told."""
    complain(f"error: {_what_is_lost(ranks)}")
    os._exit(PeerLostError.exit_code)


def _what_is_lost(ranks: DistributedContext) -> str:
    return (
        f"rank {ranks.rank} has lost another rank, which failed, was killed or cannot be reached; "
        "what it said, if anything, stands above; the same command goes on from what is saved"
    )


def _is_lost_peer(error: RuntimeError) -> bool:
    # NCCL has a class of its own; gloo tells by text only.
    return isinstance(error, torch.distributed.DistError) or "gloo/transport" in str(error)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
