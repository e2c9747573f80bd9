"""Start a script of the project as ranks: processes of one Python, each with its rank and one port for all."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO

LIMIT_SECONDS = 1800


def start_ranks(
    program: Sequence[str],
    num_ranks: int,
    environment: Mapping[str, str],
    *,
    output: IO[str] | int = subprocess.PIPE,
    in_own_groups: bool = False,
) -> list[subprocess.Popen[str]]:
    """Start a script and its arguments as ranks of one thread; `environment` has the last word.

    In groups of their own they can be killed with their children; else they end with what started them.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(num_ranks), "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, *program],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank), **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=in_own_groups,
        )
        for rank in range(num_ranks)
    ]


def run_ranks(program: Sequence[str], num_ranks: int, environment: Mapping[str, str]) -> str:
    """Run a script as ranks to its end; return what rank 0 printed.

    Raises:
        SystemExit: with its output, if a rank fails.
    """
    processes = start_ranks(program, num_ranks, environment)
    try:
        with ThreadPoolExecutor(num_ranks) as pool:  # all at once: a rank whose pipe is full makes the others wait
            texts: list[str] = list(pool.map(lambda process: process.communicate(timeout=LIMIT_SECONDS)[0], processes))
    finally:
        for process in processes:
            process.kill()
    if any(process.returncode for process in processes):
        sys.exit(f"{' '.join(program)} failed:\n" + "\n".join(text[-3000:] for text in texts))
    return texts[0]
