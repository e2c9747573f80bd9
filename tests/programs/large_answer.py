"""Give all ranks an answer of rank 0 that is larger than a value of the store may be; print its checksum."""

from __future__ import annotations

import hashlib

import numpy as np

from laborllm_dist.config.run import RanksSettings
from laborllm_dist.distributed.context import init_distributed


def main() -> None:
    with init_distributed(RanksSettings(threads_per_rank=1, timeout_minutes=1.0)) as ranks:
        answer = ranks.run_on_main(lambda: np.random.default_rng(1).bytes(20_000_000), bytes)
        print(f"rank {ranks.rank}: {hashlib.sha256(answer).hexdigest()}", flush=True)


if __name__ == "__main__":
    main()
