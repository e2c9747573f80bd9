"""Notice within a minute that another rank is gone, whatever moves the data: killed, crashed, or its host cut off.

A collective waits for a lost rank until its time limit (NCCL), or until the system gives the connection up (gloo),
which takes a quarter of an hour where a host has vanished. So every rank keeps one idle connection to rank 0, on
which the two kernels ask each other whether they are still there. Python takes no part in it: a rank that is busy for
long is not taken for lost. Rank 0 ends when it has lost one, and the others when they have lost rank 0.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import selectors
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

from laborllm_dist.errors import RanksApart

# A connection is lost 30 seconds after the last sign of life: 10 s of silence, then four questions unanswered.
IDLE_SECONDS, INTERVAL_SECONDS, NUM_PROBES = 10, 5, 4
# What a lost rank does to a collective is often seen at once, and said by the rank itself: it goes first.
GRACE_SECONDS = 5.0
MEETING_SECONDS = 120.0
GOODBYE = b"."


@contextlib.contextmanager
def looking_out(
    store: Any,
    *,
    rank: int,
    world_size: int,
    is_goodbye: Callable[[BaseException], bool],
    when_lost: Callable[[], None],
) -> Iterator[None]:
    """Watch the other ranks while the block runs. Collective at its beginning.

    Args:
        store: what the ranks have met in.
        rank: this one.
        world_size: their number; 1: there is nobody to watch.
        is_goodbye: whether ranks that leave with this exception all do so, or are expected to.
        when_lost: called in a thread of its own, once, if the block still runs after another rank has gone.
    """
    if world_size == 1:
        yield
        return
    connections = _connect(store, rank, world_size)
    left = threading.Event()
    threading.Thread(target=_watch, args=(connections, left, when_lost), daemon=True).start()
    try:
        yield
    except BaseException as error:
        left.set()
        if is_goodbye(error):
            _say_goodbye(connections)
        raise
    left.set()
    _say_goodbye(connections)


def _connect(store: Any, rank: int, world_size: int) -> list[socket.socket]:
    """Return connections to all others on rank 0, and to rank 0 on the others. Collective."""
    first, key = os.environ["MASTER_ADDR"], "laborllm_dist/lookout"
    try:
        if rank == 0:
            with _open_server(world_size) as server:
                password = secrets.token_hex(16)
                store.set(key, f"{server.getsockname()[1]} {password}")
                return _accept(server, password.encode(), num_others=world_size - 1)
        port, password = store.get(key).decode().split()
        connection = socket.create_connection((first, int(port)), timeout=MEETING_SECONDS)
        _keep_alive(connection)
        connection.sendall(password.encode())
        return [connection]
    except OSError as error:
        raise RanksApart(
            f"rank {rank} of {world_size} and rank 0 on {first} cannot connect ({error}); "
            "ranks need to reach each other on any port above 1023"
        ) from None


def _open_server(world_size: int) -> socket.socket:
    if not socket.has_dualstack_ipv6():
        server = socket.create_server(("", 0), backlog=world_size)
    else:
        server = socket.create_server(("", 0), backlog=world_size, family=socket.AF_INET6, dualstack_ipv6=True)
    server.settimeout(MEETING_SECONDS)
    return server


def _accept(server: socket.socket, password: bytes, *, num_others: int) -> list[socket.socket]:
    connections: list[socket.socket] = []
    while len(connections) < num_others:
        connection, _ = server.accept()
        connection.settimeout(MEETING_SECONDS)
        _keep_alive(connection)
        if secrets.compare_digest(connection.recv(len(password), socket.MSG_WAITALL), password):
            connections.append(connection)
        else:
            connection.close()  # not of this run
    return connections


def _keep_alive(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, IDLE_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, INTERVAL_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, NUM_PROBES)


def _watch(connections: list[socket.socket], left: threading.Event, when_lost: Callable[[], None]) -> None:
    """Wait until all have said goodbye; call `when_lost` when one has gone without, and this rank is still here."""
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            connection.setblocking(False)
            selector.register(connection, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select():
                assert isinstance(key.fileobj, socket.socket)
                if not _has_said_goodbye(key.fileobj):
                    if not left.wait(GRACE_SECONDS):
                        when_lost()
                    return
                selector.unregister(key.fileobj)


def _has_said_goodbye(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == GOODBYE
    except OSError:
        return False


def _say_goodbye(connections: list[socket.socket]) -> None:
    for connection in connections:
        with contextlib.suppress(OSError):
            connection.send(GOODBYE)
