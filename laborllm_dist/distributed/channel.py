"""Signed texts from rank to rank, through the store that the ranks met in; a reader waits as long as it takes.

A collective has a time limit, which is for communication: a rank that waits for another one's work waits here. The
store trusts any process that connects to it, so every text is signed with a secret that only the ranks of this run know
(distributed/secret.py), together with its key: no other process can make one, or put one in another's place.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from laborllm_dist.errors import ForeignMessageError

PIECE_LETTERS = 2**22  # the store rejects values of more than 8 MiB
FIRST_PAUSE, LONGEST_PAUSE = 0.0002, 0.25  # seconds between two looks


@dataclass(frozen=True, slots=True)
class Channel:
    """The store (a TCPStore) and the secret of a run."""

    store: Any
    secret: bytes
    _in_pieces: set[str] = field(default_factory=set, repr=False, compare=False)  # keys of long texts

    def send(self, key: str, text: str) -> None:
        """Put an ASCII text under a key, once; whoever waits for it sees it whole."""
        if len(text) <= PIECE_LETTERS:
            body = f"text {text}"
        else:
            starts = range(0, len(text), PIECE_LETTERS)
            for number, start in enumerate(starts):
                self.store.set(_piece(key, number), text[start : start + PIECE_LETTERS])
            self._in_pieces.add(key)
            body = f"pieces {len(starts)} {hashlib.sha256(text.encode()).hexdigest()}"
        self.store.set(key, f"{self._signature(key, body)} {body}")

    def receive(self, key: str) -> str:
        """Wait for the text under a key, without a time limit, and return it.

        Raises:
            ForeignMessageError: if another process has put it there.
            DistError: if the rank that keeps the store is gone.
        """
        return self.receive_all([key])[0]

    def receive_all(self, keys: Sequence[str]) -> list[str]:
        """Return the texts under keys, once all are there: two questions to the store, however many texts.

        Raises:
            ForeignMessageError: if another process has put one of them there.
            DistError: if the rank that keeps the store is gone.
        """
        wait_for(self.store, *keys)
        return [self._text_of(key, content) for key, content in zip(keys, self.store.multi_get(keys), strict=True)]

    def _text_of(self, key: str, content: bytes) -> str:
        signature, _, body = content.decode("ascii", errors="replace").partition(" ")
        if not hmac.compare_digest(signature.encode(), self._signature(key, body).encode()):
            raise _foreign(key)
        kind, _, rest = body.partition(" ")
        if kind == "text":
            return rest
        num_pieces, digest = rest.split()
        self._in_pieces.add(key)
        text: bytes = b"".join(self.store.get(_piece(key, number)) for number in range(int(num_pieces)))
        if hashlib.sha256(text).hexdigest() != digest:
            raise _foreign(key)
        return text.decode("ascii")

    def forget(self, keys: Iterable[str]) -> None:
        """Remove texts that everybody has read; the pieces of long ones too."""
        for key in keys:
            number = 0
            while key in self._in_pieces and self.store.delete_key(_piece(key, number)):
                number += 1
            self._in_pieces.discard(key)
            self.store.delete_key(key)

    def proof(self, what: str) -> str:
        """Return the HMAC of `what` as hex, which only a process with the secret can compute."""
        return self._signature("proof", what)

    def _signature(self, key: str, body: str) -> str:
        return hmac.new(self.secret, f"{key}\n{body}".encode(), hashlib.sha256).hexdigest()


def wait_for(store: Any, *keys: str, seconds: float | None = None) -> bool:
    """Wait until keys are in the store; return whether they have come within the time. None: wait as long as it takes.

    The store's own waiting has a time limit, and complains on stderr whenever that is over.

    Raises:
        DistError: if the rank that keeps the store is gone.
    """
    started, pause = time.monotonic(), 0.0
    while not store.check(list(keys)):
        waited = time.monotonic() - started
        if seconds is not None and waited > seconds:
            return False
        # At most a tenth of what has been waited is added to it.
        pause = min(max(FIRST_PAUSE, waited / 10), LONGEST_PAUSE)
        time.sleep(pause)
    return True


def _piece(key: str, number: int) -> str:
    return f"{key}/piece/{number}"


def _foreign(key: str) -> ForeignMessageError:
    return ForeignMessageError(
        f"a message of the ranks ({key}) was not signed by this run: another process writes to the port that they meet "
        "at; start again with another port, behind a firewall that lets only the hosts of this run in",
        code="unsigned-message",
    )
