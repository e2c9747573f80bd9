"""Remember where each of millions of people was first seen, in 16 bytes a person.

A person is kept as an 8-byte hash, so two of ten million people are taken for one with a probability below 3 in a
million. Hashes lie in sorted arrays; a new array is joined with the last one until that is at least twice as long, so
there are few of them, and every hash is moved a few times only.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

_RECENT = 1 << 16  # hashes in a dict before they become an array

_Array = npt.NDArray[np.uint64]


class FirstPlaces:
    """People and the place (a number) where each was first seen."""

    def __init__(self) -> None:
        self._recent: dict[int, int] = {}
        self._sorted: list[tuple[_Array, _Array]] = []  # hashes in order, and the place of each

    def first_place(self, person: str, place: int) -> int | None:
        """Return where the person was seen before; None, and remember this place, if nowhere."""
        key = int.from_bytes(hashlib.blake2b(person.encode(), digest_size=8).digest(), "little")
        known = self._recent.get(key)
        if known is None:
            known = self._in_arrays(np.uint64(key))
        if known is None:
            self._recent[key] = place
            if len(self._recent) >= _RECENT:
                self._keep_recent()
        return known

    def _in_arrays(self, key: np.uint64) -> int | None:
        for hashes, places in self._sorted:
            index = int(np.searchsorted(hashes, key))
            if index < len(hashes) and hashes[index] == key:
                return int(places[index])
        return None

    def _keep_recent(self) -> None:
        hashes = np.fromiter(self._recent.keys(), np.uint64, len(self._recent))
        places = np.fromiter(self._recent.values(), np.uint64, len(self._recent))
        self._recent.clear()
        while self._sorted and len(self._sorted[-1][0]) < 2 * len(hashes):
            older, older_places = self._sorted.pop()
            hashes, places = np.concatenate((older, hashes)), np.concatenate((older_places, places))
        order = np.argsort(hashes)
        self._sorted.append((hashes[order], places[order]))
