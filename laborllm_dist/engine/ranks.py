"""The processes of a run: who am I, how many are we, and what must be agreed on.

A process that no launcher started is rank 0 of 1. Everything collective takes part in on all ranks or hangs until
the time limit; such functions say so.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import os
import pickle
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed

from laborllm_dist.engine.libraries import import_deepspeed, quiet_transformers
from laborllm_dist.engine.lookout import looking_out
from laborllm_dist.engine.slurm import launcher_variables
from laborllm_dist.errors import Interrupted, PeerLost, PortTaken, RankFailed, RanksApart
from laborllm_dist.files import locked
from laborllm_dist.settings import RanksSettings
from laborllm_dist.terminal import complain

Result = TypeVar("Result")
PIECE_BYTES = 2**22


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among its peers."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    _calls: Iterator[int] = field(default_factory=itertools.count, repr=False, compare=False)

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which writes what is written once."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all ranks. Collective."""
        if self.world_size > 1:
            torch.distributed.barrier()

    def sum(self, *values: float) -> list[float]:
        """Return the sums over ranks, added in float64 in the order of ranks. Collective."""
        if self.world_size == 1:
            return list(values)
        mine = torch.tensor(values, dtype=torch.float64, device=self.device)
        everyone = [torch.empty_like(mine) for _ in range(self.world_size)]
        torch.distributed.all_gather(everyone, mine)
        return [float(value) for value in torch.stack(everyone).cpu().sum(dim=0)]

    def on_first(self, work: Callable[[], Result]) -> Result:
        """Do `work` on rank 0 while the others wait, however long, and return its result on every rank. Collective.

        The answer goes through the store the ranks met in, not through a collective, whose time limit is for
        communication: preparing a large corpus may take hours.

        Raises:
            Exception: on rank 0, whatever `work` raised.
            RankFailed: on the other ranks, if it raised.
        """
        if self.world_size == 1:
            return work()
        key = f"laborllm_dist/on_first/{next(self._calls)}"
        store = _store()
        if self.is_first:
            try:
                result = work()
                pieces = _pieces(result)
                for number, piece in enumerate(pieces):
                    store.set(f"{key}/piece/{number}", piece)
            except BaseException:
                store.set(key, "")
                # The store ends with this process: the others are given time to look.
                with contextlib.suppress(torch.distributed.DistStoreError):
                    store.wait([f"{key}/{rank}" for rank in range(1, self.world_size)], timedelta(seconds=10))
                raise
            store.set(key, str(len(pieces)))
            return result
        while not _is_set(store, key):
            pass
        answer = store.get(key)
        if not answer:
            store.set(f"{key}/{self.rank}", "seen")
            raise RankFailed("rank 0 has refused")
        encoded = b"".join(store.get(f"{key}/piece/{number}") for number in range(int(answer)))
        result = pickle.loads(base64.b64decode(encoded))  # made by rank 0 of this very run
        return result

    def share_out(self, num_items: int) -> Iterator[int]:
        """Return an iterator over 0, 1, ... in which every number comes up on one rank only, whichever is first to ask.

        Collective as a call; what each rank gets differs from run to run.
        """
        if self.world_size == 1:
            return iter(range(num_items))
        key, store = f"laborllm_dist/share_out/{next(self._calls)}", _store()
        return itertools.takewhile(lambda place: place < num_items, (store.add(key, 1) - 1 for _ in itertools.count()))


def _pieces(result: object) -> list[str]:
    """Return an answer as texts that the store takes: it refuses values of more than 8 MiB."""
    text = base64.b64encode(pickle.dumps(result)).decode()
    return [text[start : start + PIECE_BYTES] for start in range(0, len(text), PIECE_BYTES)]


def _is_set(store: Any, key: str) -> bool:
    """Wait a while for a key; the waiting ends with an error where rank 0, which keeps the store, is gone."""
    try:
        store.wait([key], timedelta(seconds=30))
    except torch.distributed.DistStoreError as error:
        if "timeout" in str(error).lower():
            return False
        raise
    return True


@contextlib.contextmanager
def alone(ranks: Ranks, folder: Path) -> Iterator[None]:
    """Work on a folder while no other start does. Collective.

    Raises:
        AlreadyRunning: on rank 0, if another start is at work on it (RankFailed on the others).
    """
    with contextlib.ExitStack() as held:
        busy = f"another start is at work on {folder}; wait for it, or end it first"
        ranks.on_first(lambda: held.enter_context(locked(folder / "lock", busy=busy)))
        yield


@contextlib.contextmanager
def open_ranks(settings: RanksSettings) -> Iterator[Ranks]:
    """Join the ranks of the launcher (deepspeed, torchrun, srun), or stand alone; leave them at the end. Collective."""
    alone_variables = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    for name, value in {**alone_variables, **launcher_variables(os.environ)}.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("MASTER_PORT", str(_free_port()))
    has_gpu = torch.cuda.is_available()
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
        # Passes differ in length: pieces of fixed size that the allocator keeps would soon fit none of them.
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    if not has_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"  # else deepspeed warns that it found no other
    torch.set_num_threads(settings.threads_per_rank)
    quiet_transformers()
    _meet(settings, backend="nccl" if has_gpu else "gloo")
    local_rank = int(os.environ["LOCAL_RANK"])
    device = torch.device("cuda", local_rank) if has_gpu else torch.device("cpu")
    if has_gpu:
        torch.cuda.set_device(device)
    ranks = Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size(), local_rank, device)
    try:
        with (
            without_cudnn_attention(),
            looking_out(
                _store(),
                rank=ranks.rank,
                world_size=ranks.world_size,
                is_goodbye=lambda error: isinstance(error, (Interrupted, RankFailed)),
                when_lost=lambda: _end_without(ranks),
            ),
        ):
            yield ranks
            ranks.barrier()  # rank 0 keeps the store: it is the last to leave
    except RuntimeError as error:
        if not _is_lost_peer(error):
            raise
        raise PeerLost(_what_is_lost(ranks)) from None
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


def _meet(settings: RanksSettings, *, backend: str) -> None:
    """Make the process group. Collective.

    Raises:
        PortTaken: if another run meets at this port.
        RanksApart: if not all ranks have come within the time limit, or they cannot reach each other.
    """
    deepspeed = import_deepspeed()
    limit = timedelta(minutes=settings.timeout_minutes)
    try:
        deepspeed.init_distributed(dist_backend=backend, timeout=limit, verbose=False)
    except RuntimeError as error:
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        if "EADDRINUSE" in str(error):
            raise PortTaken(
                f"port {os.environ['MASTER_PORT']} is taken by another run on this machine; start with another one "
                "(deepspeed --master_port=29600, torchrun --master-port=29600, MASTER_PORT=29600 srun)"
            ) from None
        if not (_is_lost_peer(error) or "gloo" in str(error).lower()):
            raise
        raise RanksApart(
            f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']} has not met the others at {place} within "
            f"{settings.timeout_minutes:g} minutes; look whether all have started, and whether GLOO_SOCKET_IFNAME and "
            "NCCL_SOCKET_IFNAME name the interface that joins the hosts"
        ) from None


def _end_without(ranks: Ranks) -> None:
    """End this process at once: its main thread waits for a rank that is gone, and cannot be told."""
    complain(f"error: {_what_is_lost(ranks)}")
    os._exit(PeerLost.exit_code)


def _what_is_lost(ranks: Ranks) -> str:
    return (
        f"rank {ranks.rank} has lost another rank, which failed, was killed or cannot be reached; "
        "what it said, if anything, stands above; the same command goes on from what is saved"
    )


def _store() -> Any:
    return torch.distributed.distributed_c10d._get_default_store()  # there is no public name for it


def _is_lost_peer(error: RuntimeError) -> bool:
    # NCCL has a class of its own; gloo tells by text only.
    return isinstance(error, torch.distributed.DistError) or "gloo/transport" in str(error)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
