"""The rendezvous: rank 0 listens, every rank registers its number, and they create a process group.

The store that they meet at counts connections only: with rank 1 there twice and rank 2 not at all, three ranks would
seem complete and wait for each other in the first collective. So a rank started twice, or never, is named in time.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import resource
import socket
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed
from torch.distributed.rendezvous import rendezvous

from laborllm_dist.config.run import RanksSettings
from laborllm_dist.distributed.channel import Channel
from laborllm_dist.distributed.launcher import num_local_ranks
from laborllm_dist.distributed.library_internals import import_deepspeed
from laborllm_dist.distributed.rank_variables import RankVariables
from laborllm_dist.distributed.secret import share_secret
from laborllm_dist.errors import LaborError, LauncherError, PortInUseError, RendezvousError

STORES: Any = torch.distributed  # whose stores have no annotations
ANY = ""
BACKLOG = 128  # connections that may wait to be accepted, at least: some are of others
PREFIX = "laborllm_dist/meeting"
SECONDS_TO_MEET_WITHOUT = 5.0  # that a duplicate rank waits for the others to complete the rendezvous without it
SECONDS_TO_READ = 2.0  # that a rank waits after rejecting: the store may end with it
SECONDS_BETWEEN_LOOKS = 0.05
MOST_NAMED = 8
FEWEST_OPEN_FILES = 256  # that no rank has ever run short of
ADVICE = "start every rank once, with the same WORLD_SIZE"


def join_process_group(settings: RanksSettings, device: torch.device, variables: RankVariables) -> Channel | None:
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
    rank, world_size, limit = variables.rank, variables.world_size, timedelta(minutes=settings.timeout_minutes)
    place = f"{variables.address}:{variables.port}"
    backend, bound = ("nccl", device) if device.type == "cuda" else ("gloo", None)
    no_connection = RendezvousError(
        f"rank {rank} of {world_size} has not met the others at {place} "
        f"(ranks.timeout_minutes: {settings.timeout_minutes:g}); look whether all have started, and whether "
        f"GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name the interface that joins the hosts{_advice_on_files()}",
        code="ranks-cannot-connect",
    )
    with translate_network_errors(no_connection, sign="gloo"):
        store = STORES.HashStore() if world_size == 1 else open_store(variables, limit)
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


@contextlib.contextmanager
def translate_network_errors(replacement: LaborError, *, sign: str) -> Iterator[None]:
    """Turn the network errors of NCCL and gloo into one line.

    Args:
        replacement: the error to raise instead.
        sign: words of gloo's message; it has no class of its own for them, as NCCL has.

    Raises:
        LaborError: `replacement`.
    """
    try:
        yield
    except RuntimeError as error:
        is_of_network = isinstance(error, torch.distributed.DistError) or sign in str(error).lower()
        if not is_of_network or os.strerror(errno.EMFILE) in str(error):  # which the command line explains
            raise
        raise replacement from None


def _advice_on_files() -> str:
    """Return advice if the limit of open files is so low that sockets may have been the cause."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= FEWEST_OPEN_FILES:
        return ""
    return f"; a process here may have only {soft} files and sockets open at once: raise that (ulimit -n 4096)"


def open_store(variables: RankVariables, limit: timedelta) -> Any:
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
                f"rank 0 cannot listen at {first}:{port} ({error.strerror}); take another port", code="cannot-listen"
            ) from None
        raise PortInUseError(
            f"port {port} is taken by another run on this machine; start with another one "
            "(deepspeed --master_port=29600, torchrun --master-port=29600, MASTER_PORT=29600 srun)",
            code="port-in-use",
        ) from None
    # The store takes the socket over. By itself it would listen on every interface.
    # It need not count connections: ranks register their numbers.
    return STORES.TCPStore(
        first, port, world_size, is_master=True, timeout=limit, wait_for_workers=False, master_listen_fd=server.detach()
    )


def interface_of(first: str, *, is_one_host: bool) -> tuple[socket.AddressFamily, str]:
    """Return family and address of this host's interface that the name or address of rank 0's host leads to.

    Args:
        first: MASTER_ADDR, as all ranks have it.
        is_one_host: whether all ranks run on this host.

    Returns:
        ANY in place of an address where no interface of this host has one that the others reach: where an address is
        translated on the way, or where the host's name resolves to 127.0.1.1 on this host, as in Debian's /etc/hosts.
    """
    try:
        known = socket.getaddrinfo(first, None, type=socket.SOCK_STREAM)
    except OSError:
        known = []
    for family, _, _, _, place in sorted(known, key=lambda entry: entry[0] != socket.AF_INET):
        address = str(place[0])
        is_for_others = not ipaddress.ip_address(address.partition("%")[0]).is_loopback
        if (is_for_others or is_one_host or first in (address, "localhost")) and _is_own(family, address):
            return family, address
    return (socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET), ANY


def listen(first: str, port: int, *, is_one_host: bool, backlog: int) -> socket.socket:
    """Return a socket that listens where the other ranks reach this host (see `interface_of`).

    Raises:
        OSError: if the port is taken.
    """
    family, address = interface_of(first, is_one_host=is_one_host)
    is_dual = address == ANY and family == socket.AF_INET6
    return socket.create_server((address, port), family=family, backlog=max(BACKLOG, backlog), dualstack_ipv6=is_dual)


def _is_own(family: socket.AddressFamily, address: str) -> bool:
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True


def meet_at(store: Any, place: str, *, rank: int, world_size: int, limit: timedelta) -> None:
    """Register this rank, and wait for all others. Collective.

    Args:
        store: that the ranks meet at.
        place: its host and port, for messages.
        rank: this one.
        world_size: their number.
        limit: how long the last one may take.

    Raises:
        LauncherError: if a rank was started twice, or with another number of ranks.
        RendezvousError: naming the ranks that have not come.
    """
    if store.add(f"{PREFIX}/starts/{rank}", 1) > 1:
        _reject_second_start(store, rank, world_size)
    store.set(_key(rank), str(world_size))
    deadline, missing = time.monotonic() + limit.total_seconds(), list(range(world_size))
    while missing := _still_missing(store, missing, rank, world_size):
        if store.check([f"{PREFIX}/rejected"]):
            raise LauncherError(
                f"rank {rank} leaves: {store.get(f'{PREFIX}/rejected').decode(errors='replace')}",
                code="rejected-by-another-rank",
            )
        if time.monotonic() > deadline:
            named = ", ".join(map(str, missing[:MOST_NAMED])) + (", ..." if len(missing) > MOST_NAMED else "")
            minutes = f"{limit.total_seconds() / 60:g} minutes"
            raise RendezvousError(
                f"rank {rank} of {world_size} has not met the others at {place} within {minutes}: {len(missing)} of "
                f"them did not come (rank {named}); look whether all have started, and whether GLOO_SOCKET_IFNAME and "
                "NCCL_SOCKET_IFNAME name the interface that joins the hosts",
                code="missing-ranks",
            )
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _key(rank: int) -> str:
    return f"{PREFIX}/rank/{rank}"


def _still_missing(store: Any, missing: Sequence[int], rank: int, world_size: int) -> list[int]:
    """Return which ranks have not come yet; those that have must know the same number of ranks."""
    here = [each for each in missing if store.check([_key(each)])]
    for each in here:
        number = store.get(_key(each)).decode(errors="replace")
        if number != str(world_size):
            error = LauncherError(
                f"rank {each} was started with WORLD_SIZE={number}, rank {rank} with WORLD_SIZE={world_size}; {ADVICE}",
                code="different-world-sizes",
            )
            _reject_all(store, error)
    return [each for each in missing if each not in here]


def _reject_second_start(store: Any, rank: int, world_size: int) -> NoReturn:
    """Raise in this process; the other ranks continue if they can meet without it, and otherwise raise, too."""
    error = LauncherError(
        f"rank {rank} of {world_size} was started twice: another process has come as rank {rank} before; {ADVICE}",
        code="rank-started-twice",
    )
    keys, deadline = [_key(other) for other in range(world_size)], time.monotonic() + SECONDS_TO_MEET_WITHOUT
    while time.monotonic() < deadline:
        if store.check(keys):
            raise error
        time.sleep(SECONDS_BETWEEN_LOOKS)
    _reject_all(store, error)


def _reject_all(store: Any, error: LauncherError) -> NoReturn:
    """Raise the error here and tell the other ranks to leave."""
    store.set(f"{PREFIX}/rejected", str(error))
    time.sleep(SECONDS_TO_READ)
    raise error
