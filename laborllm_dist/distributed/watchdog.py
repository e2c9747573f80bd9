"""Detect within a minute, for any backend, that another rank was killed, has crashed or is unreachable.

A collective waits for a lost rank until its time limit (NCCL), or until the system gives the connection up (gloo),
which takes a quarter of an hour where a host has vanished. So every rank keeps one idle connection to rank 0, on
which the two kernels ask each other whether they are still there. Python takes no part in it: a rank that is busy for
long is not taken for lost. Rank 0 ends when it has lost one, and the others when they have lost rank 0.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import selectors
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import monotonic

from laborllm_dist.distributed.channel import Channel
from laborllm_dist.distributed.launcher import num_local_ranks
from laborllm_dist.distributed.rendezvous import listen
from laborllm_dist.errors import RendezvousError

# A connection is lost 30 seconds after the last sign of life: 10 s of silence, then four questions unanswered.
IDLE_SECONDS, INTERVAL_SECONDS, NUM_PROBES = 10, 5, 4
# A collective often fails at once when a rank is lost; give this rank time to raise that error itself.
GRACE_SECONDS = 5.0
MEETING_SECONDS = 120.0
# A caller must identify its rank at once or is disconnected: port scanners are silent or speak HTTP.
INTRODUCTION_SECONDS = 10.0
KEY = "laborllm_dist/watchdog"
GOODBYE = b"."


@contextlib.contextmanager
def watch_peers(
    channel: Channel | None,
    *,
    rank: int,
    world_size: int,
    is_clean_exit: Callable[[BaseException], bool],
    when_lost: Callable[[], None],
) -> Iterator[None]:
    """Watch the other ranks while the block runs. Collective at its beginning.

    Args:
        channel: to the other ranks; None: there are none, and nobody to watch.
        rank: this one.
        world_size: their number.
        is_clean_exit: whether ranks that leave with this exception all do so, or are expected to.
        when_lost: called in a thread of its own, once, if the block still runs after another rank has gone.
    """
    if channel is None:
        yield
        return
    connections = _connect(channel, rank, world_size)
    left = threading.Event()
    threading.Thread(target=_watch, args=(connections, left, when_lost), daemon=True).start()
    try:
        yield
    except BaseException as error:
        left.set()
        if is_clean_exit(error):
            _send_goodbye(connections)
        raise
    left.set()
    _send_goodbye(connections)


def _connect(channel: Channel, rank: int, world_size: int) -> list[socket.socket]:
    """Return connections to all others on rank 0, and to rank 0 on the others. Collective."""
    first = os.environ["MASTER_ADDR"]
    try:
        if rank == 0:
            is_one_host = num_local_ranks(os.environ) == world_size
            with listen(first, 0, is_one_host=is_one_host, backlog=2 * world_size) as server:
                channel.send(KEY, str(server.getsockname()[1]))
                return _accept(server, {_introduction(channel, each): each for each in range(1, world_size)})
        port = int(channel.receive(KEY))
        connection = socket.create_connection((first, port), timeout=MEETING_SECONDS)
        _keep_alive(connection)
        connection.sendall(_introduction(channel, rank))
        return [connection]
    except OSError as error:
        raise RendezvousError(
            f"rank {rank} of {world_size} and rank 0 on {first} cannot connect ({error}); "
            "ranks need to reach each other on any port above 1023",
            code="ranks-cannot-connect",
        ) from None


def _introduction(channel: Channel, rank: int) -> bytes:
    """Return the introduction of a rank; all have the same length."""
    return channel.proof(f"watchdog {rank}").encode()


@dataclass(slots=True)
class _Caller:
    """A new connection: the bytes received so far, and the deadline for the rest."""

    connection: socket.socket
    deadline: float
    received: bytes = b""


class _Reception:
    """All new connections to rank 0, served concurrently: a slow caller does not block the others."""

    def __init__(self, server: socket.socket, rank_of: dict[bytes, int], selector: selectors.BaseSelector) -> None:
        self.accepted: dict[int, socket.socket] = {}
        self._server, self._rank_of, self._selector = server, rank_of, selector
        self._length = len(next(iter(rank_of)))
        self._callers: dict[int, _Caller] = {}
        server.setblocking(False)
        selector.register(server, selectors.EVENT_READ)

    def serve(self, deadline: float) -> None:
        """Serve connections until the deadline, or until a caller has been silent for too long."""
        first = min((caller.deadline for caller in self._callers.values()), default=deadline)
        for key, _ in self._selector.select(max(0.0, min(first, deadline) - monotonic())):
            if key.fileobj is self._server:
                self._welcome()
            else:
                self._hear(self._callers[key.fd])
        for caller in [caller for caller in self._callers.values() if caller.deadline <= monotonic()]:
            self._send_away(caller)

    def close(self) -> None:
        """Close all connections that were not accepted."""
        for caller in list(self._callers.values()):
            self._send_away(caller)

    def _welcome(self) -> None:
        with contextlib.suppress(OSError):  # the caller has disconnected
            connection, _ = self._server.accept()
            connection.setblocking(False)
            _keep_alive(connection)
            self._callers[connection.fileno()] = _Caller(connection, monotonic() + INTRODUCTION_SECONDS)
            self._selector.register(connection, selectors.EVENT_READ)

    def _hear(self, caller: _Caller) -> None:
        """Read from a caller; accept it once it has sent a valid introduction."""
        try:
            data = caller.connection.recv(self._length - len(caller.received))
        except BlockingIOError:
            return
        except OSError:
            data = b""
        caller.received += data
        if data and len(caller.received) < self._length:
            return
        rank = next((self._rank_of[each] for each in self._rank_of if hmac.compare_digest(each, caller.received)), None)
        if rank is None or rank in self.accepted:
            self._send_away(caller)
            return
        self._selector.unregister(caller.connection)
        del self._callers[caller.connection.fileno()]
        self.accepted[rank] = caller.connection

    def _send_away(self, caller: _Caller) -> None:
        self._selector.unregister(caller.connection)
        del self._callers[caller.connection.fileno()]
        caller.connection.close()


def _accept(server: socket.socket, rank_of: dict[bytes, int]) -> list[socket.socket]:
    """Return a connection from every rank, in the order of ranks; other callers are disconnected.

    Args:
        server: the listening socket.
        rank_of: the introduction of each rank.

    Raises:
        TimeoutError: if not all have come in time.
    """
    deadline = monotonic() + MEETING_SECONDS
    with selectors.DefaultSelector() as selector:
        reception = _Reception(server, rank_of, selector)
        with contextlib.closing(reception):
            while missing := sorted(set(rank_of.values()) - reception.accepted.keys()):
                if monotonic() > deadline:
                    raise TimeoutError(f"rank {missing[0]} has not called within {MEETING_SECONDS:g} seconds")
                reception.serve(deadline)
    return [reception.accepted[rank] for rank in sorted(reception.accepted)]


def _keep_alive(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, IDLE_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, INTERVAL_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, NUM_PROBES)


def _watch(connections: list[socket.socket], left: threading.Event, when_lost: Callable[[], None]) -> None:
    """Wait until all ranks have said goodbye; call `when_lost` if one disconnects without it."""
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


def _send_goodbye(connections: list[socket.socket]) -> None:
    for connection in connections:
        with contextlib.suppress(OSError):
            connection.send(GOODBYE)
