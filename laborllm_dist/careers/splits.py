"""Assign people to train, validation and test by a keyed hash, so that a person's split does not depend on others.

People are identified by population and person. Two corpora of one population (two extracts of one survey, say) assign a
person to the same split, so that no test person of one corpus is a training person of the other.
"""

from __future__ import annotations

from typing import Literal

from laborllm_dist.config.data import SplitSettings
from laborllm_dist.randomness import person_digest

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


def split_of_digest(digest: int, settings: SplitSettings) -> Split:
    """Return the split of a person from the digest of their id, an unsigned 64-bit integer."""
    share = digest / 2**64
    if share < settings.train:
        return "train"
    return "validation" if share < settings.train + settings.validation else "test"


def split_of(population: str, person: str, settings: SplitSettings) -> Split:
    """Return the split of a person: a function of key, population and person alone."""
    return split_of_digest(person_digest(population, person, settings.salt), settings)


def in_fraction(population: str, person: str, settings: SplitSettings, fraction: float) -> bool:
    """Return whether a person is in this fraction of the population; fractions are nested, 20 % within 40 %."""
    return person_digest(population, person, f"fraction {settings.salt}") < fraction * 2**64
