"""Does prepare's memory stay flat, and how fast is it?

    python benchmarks/prepare_throughput.py [people ...]

Prepares token stores of synthetic people, each in a process of its own, and prints careers per minute, peak resident
memory and bytes per career. Default: 10,000, 100,000 and 1,000,000 people.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from laborllm_dist.compose import compose_settings
from laborllm_dist.settings import RunSettings
from laborllm_dist.tokens.prepare import prepare_store

ONE = "--one"


def prepare_one(num_people: int) -> None:
    """Prepare one store and print its line."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = [
            "data=synthetic",
            f"data.corpora.synthetic.synthetic.num_people={num_people}",
            f"store.root={folder}",
        ]
        settings = compose_settings(RunSettings, "run", overrides)
        started = time.monotonic()
        store = prepare_store(settings, lambda line: None)
        seconds = time.monotonic() - started
        num_bytes = sum(path.stat().st_size for path in Path(store.folder).rglob("*") if path.is_file())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{num_people:>9,} people  {num_people / seconds * 60:>9,.0f} careers/minute  peak {peak:>6,.0f} MiB  "
        f"{num_bytes / num_people:>6,.0f} bytes a career",
        flush=True,
    )


def main() -> None:
    """Run each size in a process of its own, so that each has its own peak."""
    if ONE in sys.argv:
        prepare_one(int(sys.argv[-1]))
        return
    for num_people in [int(text) for text in sys.argv[1:]] or [10_000, 100_000, 1_000_000]:
        subprocess.run([sys.executable, __file__, ONE, str(num_people)], check=True)


if __name__ == "__main__":
    main()
