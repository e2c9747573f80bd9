"""Wait for slow ranks longer than a collective may last, and say where this process listens.

Started by test_waiting_ranks.py as ranks, with a time limit of collectives of three seconds.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pyarrow as pa

from laborllm_dist.config.run import RanksSettings
from laborllm_dist.distributed.context import DistributedContext, init_distributed
from laborllm_dist.distributed.library_internals import import_deepspeed
from laborllm_dist.evaluation.resumable_parts import ResumableJob, finish_parts, read_parts

SECONDS = 4.0
LIMIT_SECONDS = 3.0


def meet(folder: Path, rank: int) -> None:
    """Wait until the other rank has imported what it needs, which takes longer than the limit."""
    import_deepspeed()
    (folder / f"ready-{rank}").touch()
    while not (folder / f"ready-{1 - rank}").exists():
        time.sleep(0.01)


def listening() -> set[tuple[str, int]]:
    """Return the addresses (as the kernel writes them, in hexadecimal) and ports at which this process listens."""
    own = {link.readlink().name for link in Path("/proc/self/fd").iterdir() if link.is_symlink()}
    indices = set()
    for table in ("/proc/self/net/tcp", "/proc/self/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            address, port = fields[1].split(":")
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in own:
                indices.add((address, int(port, 16)))
    return indices


def main(folder: Path, ranks: DistributedContext) -> None:
    def make(part: int) -> pa.Table:
        # The last of three parts is slow: the rank that has none left waits for it.
        time.sleep(SECONDS if part == 2 else 0.0)
        return pa.table({"career": [part], "position": [0]})

    print(f"rank {ranks.rank} listens at {sorted(listening())}", flush=True)
    ranks.run_on_main(lambda: time.sleep(SECONDS))
    work = ResumableJob(folder / "parts", 3, make, lambda: None)
    finish_parts(work, ranks)
    careers = ranks.run_on_main(
        lambda: read_parts(work, pa.table({"career": [0, 1, 2], "position": [0] * 3}))["career"].to_pylist()
    )
    print(f"rank {ranks.rank} has {careers}", flush=True)
    if ranks.is_main:
        time.sleep(SECONDS)  # the others wait at the end of the ranks


if __name__ == "__main__":
    meet(Path(sys.argv[1]), int(os.environ["RANK"]))
    with init_distributed(RanksSettings(threads_per_rank=1, timeout_minutes=LIMIT_SECONDS / 60)) as ranks:
        main(Path(sys.argv[1]), ranks)
