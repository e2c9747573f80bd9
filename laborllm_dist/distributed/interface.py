"""Where rank 0 listens: at the address of the interface that the other ranks reach it by, and nowhere else."""

from __future__ import annotations

import ipaddress
import socket

ANY = ""
BACKLOG = 128  # connections that may wait to be accepted, at least: some are of others


def interface_of(first: str, *, is_one_host: bool) -> tuple[socket.AddressFamily, str]:
    """Return family and address of this host's interface that the name or address of rank 0's host leads to.

    Args:
        first: MASTER_ADDR, as all ranks have it.
        is_one_host: whether all ranks run on this host.

    Returns:
        ANY in place of an address where no interface of this host has one that the others reach: where an address is
        translated on the way, or where the host's name stands for 127.0.1.1 on this host, as Debian writes /etc/hosts.
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
    both = address == ANY and family == socket.AF_INET6
    return socket.create_server((address, port), family=family, backlog=max(BACKLOG, backlog), dualstack_ipv6=both)


def _is_own(family: socket.AddressFamily, address: str) -> bool:
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True
