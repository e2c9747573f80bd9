"""Assign people to train, validation and test by a keyed hash: a person's split never depends on other people."""

from __future__ import annotations

import hashlib
from typing import Literal

from laborllm_dist.data_settings import SplitSettings

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


def split_of(survey: str, person: str, settings: SplitSettings) -> Split:
    """Return the split of a person: a function of key, survey and person alone."""
    digest = hashlib.blake2b(f"{survey}\0{person}".encode(), key=settings.key.encode()[:64], digest_size=8).digest()
    share = int.from_bytes(digest, "big") / 2**64
    if share < settings.train:
        return "train"
    return "validation" if share < settings.train + settings.validation else "test"
