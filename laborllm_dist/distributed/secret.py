"""The secret of a run, by which its ranks know each other's messages from those of other processes.

It is the content of LABORLLM_DIST_SECRET, where the environment of every rank has it. Else rank 0 draws one and leaves
it in a file that only this user may read: in the hosts' folder for temporary files, and in the user's cache, which
hosts often share. The store of the rendezvous holds only the file's name. Where a rank finds no file, the secret
goes through the store itself: it then protects only against processes that come later, and rank 0 logs a warning.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import logging
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from laborllm_dist.distributed.channel import Channel, wait_for
from laborllm_dist.distributed.launcher import num_local_ranks
from laborllm_dist.errors import ForeignMessageError, RendezvousError

logger = logging.getLogger(__name__)

VARIABLE = "LABORLLM_DIST_SECRET"
KEY = "laborllm_dist/secret"
MEETING_SECONDS = 120.0
SHARED_FOLDER_SECONDS = 5.0  # until a file that one host has written is seen by another


def share_secret(store: Any, *, rank: int, world_size: int) -> bytes:
    """Return the secret that all ranks of a run know. Collective.

    Raises:
        RendezvousError: if a rank does not answer, or has another LABORLLM_DIST_SECRET.
        ForeignMessageError: if another process has answered in a rank's place, or in that of rank 0.
    """
    own = os.environ.get(VARIABLE, "").encode()
    if rank == 0:
        return _hand_out(store, own, world_size)
    return _take(store, own, rank)


def _hand_out(store: Any, own: bytes, world_size: int) -> bytes:
    name = secrets.token_hex(16)
    secret = _of_this_run(own, name) if own else secrets.token_hex(32).encode()
    with contextlib.ExitStack() as stack:
        written = [] if own else stack.enter_context(_files_with(secret, name))
        store.set(KEY, json.dumps({"from": VARIABLE if own else "file", "name": name}))
        answers = [_answer_of(store, each) for each in range(1, world_size)]
    for each, answer in enumerate(answers, start=1):
        if answer != "none" and not hmac.compare_digest(answer.encode(), _proof(secret, each).encode()):
            raise ForeignMessageError(
                f"rank {each} does not know the secret of this run: another process has answered in its place, or its "
                f"{VARIABLE} is another one; set the same on every rank, or on none",
                code="wrong-secret",
            )
    is_known = "none" not in answers
    if not is_known and own:
        raise RendezvousError(
            f"{VARIABLE} is set for rank 0, and not for every other rank; set it for all, or for none",
            code="secret-missing-on-ranks",
        )
    if not is_known and num_local_ranks(os.environ) == world_size and written:
        raise ForeignMessageError(
            "all ranks are on this host, and one of them does not read rank 0's file with the secret of this run: "
            f"another process has answered in its place; start again, or set {VARIABLE} to the same on every rank",
            code="secret-file-not-read",
        )
    if not is_known:
        folders = " or ".join(map(str, _folders()))
        logger.warning(
            f"ranks: not all can read a file of rank 0's in {folders}, so their secret went through the port that they "
            f"meet at; set {VARIABLE} to the same random text on every rank to keep it from there"
        )
    store.set(f"{KEY}/all", json.dumps({"secret": None if is_known else secret.decode()}))
    return secret


def _take(store: Any, own: bytes, rank: int) -> bytes:
    place = _read(store, KEY, "rank 0 has not handed out the secret of this run")
    name = str(place.get("name"))
    if place.get("from") == VARIABLE or own:
        known = _of_this_run(own, name) if own else None
    else:
        known = _find(name) if re.fullmatch(r"[0-9a-f]{32}", name) else None
    store.set(f"{KEY}/{rank}", _proof(known, rank) if known else "none")
    everyones = _read(store, f"{KEY}/all", "rank 0 has not heard from all ranks")
    handed = everyones.get("secret")
    if known is not None:  # do not trust the store: any process can write to it
        if handed is not None and str(handed) != known.decode():
            raise ForeignMessageError(
                f"another process has put a secret of its own where rank {rank} meets the others", code="foreign-secret"
            )
        return known
    if not isinstance(handed, str) or own:
        raise RendezvousError(
            f"{VARIABLE} is set for rank 0, and not for rank {rank}; set it for all ranks, or for none",
            code="secret-missing-on-ranks",
        )
    return handed.encode()


def _of_this_run(own: bytes, name: str) -> bytes:
    """Derive the run's secret from the environment's, so that messages of an earlier run are invalid."""
    return Channel(None, own).proof(f"run {name}").encode()


def _proof(secret: bytes, rank: int) -> str:
    return Channel(None, secret).proof(f"rank {rank}")


def _answer_of(store: Any, rank: int) -> str:
    key = f"{KEY}/{rank}"
    if not wait_for(store, key, seconds=MEETING_SECONDS):
        raise RendezvousError(
            f"rank {rank} has met the others, and has not answered for {MEETING_SECONDS:g} seconds",
            code="no-answer-from-rank",
        )
    return str(store.get(key).decode("ascii", errors="replace"))


def _read(store: Any, key: str, otherwise: str) -> dict[str, Any]:
    if not wait_for(store, key, seconds=2 * MEETING_SECONDS):
        raise RendezvousError(f"{otherwise} for {2 * MEETING_SECONDS:g} seconds", code="no-answer-from-rank")
    try:
        return dict(json.loads(store.get(key)))
    except (ValueError, TypeError):
        raise ForeignMessageError(
            "another process writes to the port that the ranks meet at; take another port",
            code="invalid-secret-message",
        ) from None


def _folders() -> list[Path]:
    """Return the folders that may hold the file; all ranks search the same ones."""
    folders = [Path(tempfile.gettempdir()) / f"laborllm_dist-{os.geteuid()}"]
    if home := os.environ.get("HOME"):
        folders.append(Path(os.environ.get("XDG_CACHE_HOME") or f"{home}/.cache") / "laborllm_dist")
    return folders


@contextlib.contextmanager
def _files_with(secret: bytes, name: str) -> Iterator[list[Path]]:
    """Keep the secret in files while the block runs, in every writable folder; yield their paths."""
    written: list[Path] = []
    try:
        for folder in _folders():
            with contextlib.suppress(OSError):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                if _is_ours_alone(folder.lstat(), stat.S_ISDIR):
                    path = folder / name
                    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
                    written.append(path)
                    with os.fdopen(descriptor, "wb") as file:
                        file.write(secret)
        yield written
    finally:
        for path in written:
            with contextlib.suppress(OSError):
                path.unlink()


def _find(name: str) -> bytes | None:
    """Return the secret in a private file of this user with this name; None if there is none."""
    deadline = monotonic() + SHARED_FOLDER_SECONDS
    while True:
        for folder in _folders():
            with contextlib.suppress(OSError):
                descriptor = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW)
                with os.fdopen(descriptor, "rb") as file:
                    if _is_ours_alone(os.fstat(descriptor), stat.S_ISREG) and (secret := file.read()):
                        return secret
        if monotonic() > deadline:
            return None
        sleep(0.1)


def _is_ours_alone(status: os.stat_result, is_kind: Any) -> bool:
    return bool(is_kind(status.st_mode)) and status.st_uid == os.geteuid() and not status.st_mode & 0o077
