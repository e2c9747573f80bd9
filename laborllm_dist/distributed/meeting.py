"""Ranks that meet at a store say which one they are, so that a rank started twice, or never, is named in time.

The store counts connections only: with rank 1 there twice and rank 2 not at all, three ranks would seem complete and
wait for each other in the first collective.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from laborllm_dist.errors import LauncherError, RendezvousError

PREFIX = "laborllm_dist/meeting"
SECONDS_TO_MEET_WITHOUT = 5.0  # that a second start gives the first ones to be complete, and go on without it
SECONDS_TO_READ = 2.0  # that a rank stays after it has refused: the store may end with it
SECONDS_BETWEEN_LOOKS = 0.05
MOST_NAMED = 8
ADVICE = "start every rank once, with the same WORLD_SIZE"


def meet_at(store: Any, place: str, *, rank: int, world_size: int, limit: timedelta) -> None:
    """Say which rank this is, and wait for all others. Collective.

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
        _refuse_second_start(store, rank, world_size)
    store.set(_key(rank), str(world_size))
    deadline, missing = time.monotonic() + limit.total_seconds(), list(range(world_size))
    while missing := _still_missing(store, missing, rank, world_size):
        if store.check([f"{PREFIX}/refused"]):
            raise LauncherError(f"rank {rank} leaves: {store.get(f'{PREFIX}/refused').decode(errors='replace')}")
        if time.monotonic() > deadline:
            named = ", ".join(map(str, missing[:MOST_NAMED])) + (", ..." if len(missing) > MOST_NAMED else "")
            minutes = f"{limit.total_seconds() / 60:g} minutes"
            raise RendezvousError(
                f"rank {rank} of {world_size} has not met the others at {place} within {minutes}: {len(missing)} of "
                f"them did not come (rank {named}); look whether all have started, and whether GLOO_SOCKET_IFNAME and "
                "NCCL_SOCKET_IFNAME name the interface that joins the hosts"
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
            _refuse(
                store,
                f"rank {each} was started with WORLD_SIZE={number}, rank {rank} with WORLD_SIZE={world_size}; {ADVICE}",
            )
    return [each for each in missing if each not in here]


def _refuse_second_start(store: Any, rank: int, world_size: int) -> None:
    """Refuse this start; where the others have met without it, they go on."""
    text = f"rank {rank} of {world_size} was started twice: another process has come as rank {rank} before; {ADVICE}"
    keys, deadline = [_key(each) for each in range(world_size)], time.monotonic() + SECONDS_TO_MEET_WITHOUT
    while time.monotonic() < deadline:
        if store.check(keys):
            raise LauncherError(text)
        time.sleep(SECONDS_BETWEEN_LOOKS)
    _refuse(store, text)


def _refuse(store: Any, text: str) -> None:
    store.set(f"{PREFIX}/refused", text)
    time.sleep(SECONDS_TO_READ)
    raise LauncherError(text)
