"""Single bits that flip in files, as on a disk or in memory, and whether a reader notices."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from laborllm_dist.careers.splits import SPLITS
from laborllm_dist.errors import LaborError
from laborllm_dist.io.files import sha256_of_json
from laborllm_dist.store.store import PREFIX, TOKENIZER, checking_store, open_store
from laborllm_dist.store.tokenizer import load_tokenizer
from laborllm_dist.tables.title_distributions import TITLE_SCHEMA


@contextmanager
def flipped(path: Path, bit: int) -> Iterator[None]:
    """Flip one bit of a file for a while."""
    content = path.read_bytes()
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    path.write_bytes(damaged)
    try:
        yield
    finally:
        path.write_bytes(content)


def bits_of(path: Path, number: int) -> list[int]:
    """Draw bits of a file, always the same ones; those of its first and last bytes among them."""
    num_bits = 8 * path.stat().st_size
    drawn = random.Random(path.name).sample(range(num_bits), min(number, num_bits))
    return [0, num_bits - 1, *drawn] if num_bits else []


def unnoticed_flips(path: Path, number: int, read: Callable[[], object]) -> tuple[int, list[int]]:
    """Flip bits one at a time; return how many were refused, and those after which something else was read."""
    before, num_raised, wrong = read(), 0, []
    for bit in bits_of(path, number):
        with flipped(path, bit):
            try:
                after = read()
            except LaborError as error:
                assert "\n" not in str(error)
                num_raised += 1
                continue
        if after != before:
            wrong.append(bit)
    return num_raised, wrong


def what_is_read(folder: Path) -> object:
    """Return all of a store that decides a number."""
    store = open_store(folder)
    content = [store.facts, store.vocabulary, (folder / PREFIX).is_file()]
    with checking_store(store, SPLITS) as check:
        check.wait()
        for split in SPLITS:
            content.append(store.careers(split).table.to_pylist())
    content.append(load_tokenizer(str(folder / TOKENIZER)).fingerprint())
    return content


def lists() -> pa.Table:
    random = np.random.default_rng(1)
    rows = [
        {"survey": "S", "person": str(row), "position": 0, "occupation": "a", "mass": 0.5, "bound": 0.1, "normalised": -1.0,
         "title": [*(-random.exponential(size=4)), None], "terminated": [-1.0, None, -3.0, -4.0, -5.0]}
        for row in range(300)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=TITLE_SCHEMA)


def resigned(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a manifest and give it the checksum of what it is then."""
    facts = json.loads((folder / "manifest.json").read_bytes())
    facts.pop("sha256")
    change(facts)
    (folder / "manifest.json").write_text(json.dumps({**facts, "sha256": sha256_of_json(facts)}))
