"""Import once what every rank imports, then fork for every rank that is asked for (tests/helpers/processes.py asks).

A forked rank is like one that was started: a session of its own; the environment, arguments, working folder and output
it was given. It ends with the usual code and traceback, after its threads, `atexit` and its buffers, but does not take the
interpreter apart. It shares with others what imports leave behind, among that the order of sets of strings, so
tests/helpers/processes.py has several of these programs.
A thread would be missing in a fork: there must be none.

All workers of pytest ask the same program, each over a connection of its own. A request is a message: command,
environment and folder, with the file for output beside it. The rank answers with its process id as soon as it leads its
session; at its end this program sends its exit code. It ends when nobody is left to ask.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import threading
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
    # The parser of overrides and the classes of settings make tables at their first use, which take a second.
    runs = importlib.import_module("helpers.runs")
    runs.settings_of([*runs.small_run(Path("/runs")), "training.checkpoint_every_steps=null", "name='a b'"])
    compose_settings, evaluation = runs.compose_settings, importlib.import_module("laborllm_dist.config.evaluation")
    compose_settings(evaluation.EvaluateSettings, "evaluate", ["run=/runs/small", "titles=all"])
    num_threads = len(list(Path("/proc/self/task").iterdir()))
    assert num_threads == 1, f"{num_threads} threads; only a process of one can be forked"
    gc.collect()
    gc.freeze()  # else the first collection in every rank would copy all of this


def serve(listener: socket.socket) -> list[str] | None:
    """Fork for every request; return its command in the rank, and None here when nobody asks any more."""
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # a rank has ended: leave `select`
    asking, ranks = [accepted(listener)], dict[int, socket.socket]()
    while asking:
        ready, _, _ = select.select([listener, *asking, woken], [], [])
        if woken in ready:
            os.read(woken, 1024)
        for rank in list(ranks):
            ended, status = os.waitpid(rank, os.WNOHANG)
            if ended:
                with contextlib.suppress(OSError):  # who asked has ended
                    ranks.pop(rank).send(json.dumps({"rank": rank, "code": os.waitstatus_to_exitcode(status)}).encode())
        if listener in ready:
            asking.append(accepted(listener))
        for requests in [each for each in asking if each in ready]:
            message, files = b"", []
            with contextlib.suppress(ConnectionResetError):  # killed before it has read its answers
                message, files, _, _ = socket.recv_fds(requests, LONGEST_MESSAGE, 1)
            if not message:
                asking.remove(requests)
                requests.close()
                continue
            rank = os.fork()
            if rank == 0:
                signal.set_wakeup_fd(-1)
                for inherited in (woken, wake):
                    os.close(inherited)
                for other in (listener, *(each for each in asking if each is not requests)):
                    other.close()
                return become_rank(json.loads(message), files[0], requests)
            ranks[rank] = requests
            os.close(files[0])
    return None


def accepted(listener: socket.socket) -> socket.socket:
    """Return the connection of a worker, which is told that all has been imported."""
    connection, _ = listener.accept()
    with contextlib.suppress(OSError):
        connection.send(b"ready")
    return connection


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


def run_to_its_end(script: str) -> None:
    """Run a script and end as the interpreter does, but without taking every imported module apart: half a second."""
    code: object = None
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        code = end.code
        if not isinstance(code, int | None):
            raise
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads
    atexit._run_exitfuncs()
    for output in (sys.stdout, sys.stderr):
        output.flush()
    os._exit(code or 0)


if __name__ == "__main__":
    import_all()
    with socket.socket(fileno=int(sys.argv[1])) as listener:
        command = serve(listener)
    if command is not None:
        sys.argv = command
        sys.path[0] = str(Path(command[0]).parent)
        run_to_its_end(command[0])
