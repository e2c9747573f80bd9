r"""All randomness: functions of a seed or key, a purpose, and the item of the draw.

No draw depends on ranks, on the order in which things are read, or on how many others there are. A draw that belongs to
a person, prompt or path is a BLAKE2b hash of its key, so that one more person changes nobody else's. Arrays come from
numpy generators, seeded by purpose and position.

    what is drawn                                      function              from
    split, fraction, few-shot examples                 person_digest         hash of population \0 person under a key
    shuffled titles                                    rank_of(key=seed)     hash of the code under the seed
    people of a forecast                               rank_of               hash of seed \x1f survey \x1f person
    training people of a refit                         uniform_of            hash of seed, population, person by \x1f
    people of a page of single careers                 rank_of               hash of purpose, seed, survey, person
    sampled paths of a forecast                        uniform_of            hash of seed, start, path, year by \x1f
    sampled continuations                              token_uniforms        hashes of JSON [seed, key, sample, block]
    order of training                                  generator             Philox of (seed, purpose, epoch)
    batches and dropout of a baseline                  generator             Philox of (seed, purpose, epoch or update)
    runs and queues that a plan simulates              generator             Philox of (seed, purpose, run)
    synthetic careers                                  stream                Philox keyed by purpose and seed
    bootstrap resamples                                resampling_generator  PCG64 of (seed, 1)
    dropout                                            dropout_seed          torch's generator, by seed, step and rank

The recipes differ in how a key is written. They stay as they are: another one would draw other splits, orders and
samples from the same seeds.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_SEPARATOR = "\x1f"
_RESAMPLING = 1  # with the seed, names the stream; another use of the seed takes another number
_NUMBERS_PER_DIGEST = 8  # of 64 bits
_NUMBERS_PER_COUNT = 4  # a step of Philox's counter gives four 64-bit numbers


def _digest(text: str, *, key: str = "", num_bytes: int = 64) -> bytes:
    return hashlib.blake2b(text.encode(), key=key.encode()[:64], digest_size=num_bytes).digest()


def person_digest(population: str, person: str, key: str) -> int:
    """Return a 64-bit hash of a person under a key."""
    return int.from_bytes(_digest(f"{population}\0{person}", key=key, num_bytes=8), "big")


def rank_of(*parts: str | int, key: str = "") -> bytes:
    """Return the sort key that brings items into a random order."""
    return _digest(_SEPARATOR.join(map(str, parts)), key=key)


def uniform_of(*parts: str | int) -> float:
    """Return a number from 0 to 1."""
    return int.from_bytes(_digest(_SEPARATOR.join(map(str, parts)), num_bytes=8), "big") * 2.0**-64


def token_uniforms(seed: int, prompt: Sequence[str | int], sample: int, num_tokens: int) -> npt.NDArray[np.float64]:
    """Return numbers from 0 to below 1 for the tokens of a sampled continuation, [num_tokens]; more keep the first."""
    num_blocks = -(-num_tokens // _NUMBERS_PER_DIGEST)
    digests = b"".join(_digest(json.dumps([seed, *prompt, sample, block])) for block in range(num_blocks))
    integers = np.frombuffer(digests, dtype="<u8")[:num_tokens]
    return np.asarray((integers >> np.uint64(11)) * 2.0**-53, dtype=np.float64)  # a float64 holds 53 bits exactly


def generator(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    """Return the generator of a seed, a purpose, and a position within the purpose."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), *numbers])))


def stream(seed: int, purpose: str, *, start: int) -> np.random.Generator:
    """Return a generator that continues the stream of a seed and purpose after `start` numbers, a multiple of 4.

    So any stretch of a long table of numbers is drawn without those before it.
    """
    bits = np.random.Philox(key=int.from_bytes(purpose.encode(), "big") << 64 | seed % 2**64)
    bits.advance(start // _NUMBERS_PER_COUNT)
    return np.random.Generator(bits)


def resampling_generator(seed: int) -> np.random.Generator:
    """Return the generator of bootstrap resamples."""
    return np.random.default_rng([seed, _RESAMPLING])


def dropout_seed(seed: int, *, step: int, rank: int) -> int:
    """Return the seed of a rank's dropout in a step, of 64 bits: a resumed run draws what an undisturbed one draws."""
    return ((seed * 1_000_003 + step) * 65_536 + rank) % 2**64
