"""Import once what every rank imports, then fork for every rank that is asked for (tests/helpers/processes.py asks).

A forked rank is like one that was started: a session of its own; the environment, arguments, working folder and output
it was given; an end by the interpreter, so that its code and its traceback are the usual ones. It shares with others
what imports leave behind, among that the order of sets of strings, so tests/helpers/processes.py has several of these programs.
A thread would be missing in a fork: there must be none.

A request is a message on the socket: command, environment and folder, with the file for output beside it. The rank
answers with its process id as soon as it leads its session; at its end this program sends its exit code. It ends when
nobody is left to ask.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
from pathlib import Path

LONGEST_MESSAGE = 2**18
MODULES = (
    "laborllm_dist.training.train", "laborllm_dist.evaluation.run", "laborllm_dist.cli",
    "transformers.models.llama.modeling_llama", "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto", "pandas",
)  # fmt: skip


def import_all() -> None:
    for name in MODULES:
        importlib.import_module(name)
    importlib.import_module("laborllm_dist.distributed.library_internals").import_deepspeed()
    # transformers makes this table when a model is first loaded or saved, and that takes longer than many of these runs.
    importlib.import_module("transformers.conversion_mapping").get_checkpoint_conversion_mapping("llama")
    num_threads = len(list(Path("/proc/self/task").iterdir()))
    assert num_threads == 1, f"{num_threads} threads; only a process of one can be forked"
    gc.collect()
    gc.freeze()  # else the first collection in every rank would copy all of this


def serve(requests: socket.socket) -> list[str] | None:
    """Fork for every request; return its command in the rank, and None here when nobody asks any more."""
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # a rank has ended: leave `select`
    ranks: set[int] = set()
    while True:
        ready, _, _ = select.select([requests, woken], [], [])
        if woken in ready:
            os.read(woken, 1024)
        for rank in list(ranks):
            ended, status = os.waitpid(rank, os.WNOHANG)
            if ended:
                ranks.remove(rank)
                requests.send(json.dumps({"rank": rank, "code": os.waitstatus_to_exitcode(status)}).encode())
        if requests in ready:
            message, files, _, _ = socket.recv_fds(requests, LONGEST_MESSAGE, 1)
            if not message:
                return None
            rank = os.fork()
            if rank == 0:
                signal.set_wakeup_fd(-1)
                os.close(woken)
                os.close(wake)
                return become_rank(json.loads(message), files[0], requests)
            ranks.add(rank)
            os.close(files[0])


def become_rank(request: dict, output: int, requests: socket.socket) -> list[str]:
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for standard in (1, 2):
        os.dup2(output, standard)
    os.close(output)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.modules["numpy"].random.seed()  # as a new process has it; the module `random` sees to itself
    requests.send(json.dumps({"rank": os.getpid(), "code": None}).encode())
    requests.close()
    return request["command"]


if __name__ == "__main__":
    import_all()
    command = serve(socket.socket(fileno=int(sys.argv[1])))
    if command is not None:
        sys.argv = command
        sys.path[0] = str(Path(command[0]).parent)
        runpy.run_path(command[0], run_name="__main__")
