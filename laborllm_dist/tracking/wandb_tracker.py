"""Weights & Biases: it never affects a training and never receives a person or a path.

It runs in a process of its own (tracking/wandb_process.py). Here lines are put into a queue and nothing is waited
for, until the end, and then CLOSE_SECONDS at most. Whatever happens to that process, metrics.jsonl has the numbers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from time import monotonic
from typing import Any, Literal

from laborllm_dist.config.run import RunSettings, TrackingSettings

logger = logging.getLogger(__name__)

INIT_SECONDS = 15.0  # for a first answer of the server
UPLOAD_SECONDS = 10.0  # for what is still to be uploaded at the end
CLOSE_SECONDS = 25.0  # schedulers kill 30 seconds after their signal
MOST_WAITING = 100_000  # lines that the process has not taken yet
# Numbers and fixed words of these groups are given to a tracker; of free texts the names below alone, since a text may
# be a path or a person's.
GROUPS = (
    "split", "template", "tokenizer", "model", "adapter", "batch", "compute", "zero", "optimizer", "training",
    "evaluation",
)  # fmt: skip
PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from laborllm_dist.tracking.wandb_process import main; main()"
)


def tracked_settings(settings: RunSettings) -> dict[str, Any]:
    """Return the settings that a tracker receives: no path, no key, no name of a person, user or host."""
    hints = typing.get_type_hints(RunSettings)
    given = {group: _harmless(hints[group], getattr(settings, group)) for group in GROUPS}
    names = {"name": settings.name, "data": settings.data.name}
    return {**{which: name for which, name in names.items() if re.fullmatch(r"[\w.+-]+", name)}, **given}


def _harmless(kind: Any, value: Any) -> Any:
    """Return the numbers and fixed words of a value of this type; None for what may be any text."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(value):
        hints = typing.get_type_hints(type(value))
        parts = {name: _harmless(hint, getattr(value, name)) for name, hint in hints.items()}
        return {name: part for name, part in parts.items() if part is not None}
    if origin in (types.UnionType, typing.Union):
        (kind,) = (each for each in inner if each is not type(None))
        return _harmless(kind, value)
    return value if origin is Literal or isinstance(value, (bool, int, float)) else None


def open_tracker(tracking: TrackingSettings, folder: Path, name: str, settings: Mapping[str, Any]) -> Tracker | None:
    """Start tracking a run if it is configured and a process can start; do not wait for it.

    Args:
        tracking: of the run.
        folder: of the run, where wandb makes a folder of its own.
        name: of the run.
        settings: shown beside the run's numbers; its `fingerprint` distinguishes runs of one name.
    """
    if tracking.wandb == "off":
        return None
    mode = tracking.wandb
    if mode == "auto":
        mode = "online" if os.environ.get("WANDB_API_KEY") else "offline"
    start = {
        "mode": mode,
        "project": tracking.project,
        "name": name,
        "id": re.sub(r"[^\w.-]", "-", f"{name[:100]}-{settings['fingerprint'][:8]}"),
        "config": dict(settings),
        "limits": {
            "init_timeout": INIT_SECONDS,
            "login_timeout": INIT_SECONDS,
            "finish_timeout": UPLOAD_SECONDS,
        },
    }
    try:
        return Tracker(start, folder)
    except OSError as error:
        logger.info(
            f"wandb: does not start ({error.strerror or error}); continues without it, metrics.jsonl has the numbers"
        )
        return None


class Tracker:
    """The process that holds wandb, and the lines that wait for it."""

    def __init__(self, start: Mapping[str, Any], folder: Path) -> None:
        """Start the process in a run's folder.

        Raises:
            OSError: if there is no room for another process.
        """
        self._folder = folder
        self._lines: queue.Queue[str | None] = queue.Queue(MOST_WAITING)
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, json.dumps([str(Path(path).resolve()) for path in sys.path])],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            cwd=folder, start_new_session=True, text=True, encoding="utf-8",
        )  # fmt: skip
        self._lines.put(json.dumps(start))
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._write_all, self._read_all)]
        for thread in self._threads:
            thread.start()

    def log(self, numbers: Mapping[str, float], *, step: int) -> None:
        """Pass on the numbers of a step."""
        with contextlib.suppress(queue.Full):  # metrics.jsonl has them
            self._lines.put_nowait(json.dumps({"numbers": numbers, "step": step}))

    def close(self) -> None:
        """Let the process finish, for CLOSE_SECONDS at most."""
        deadline = monotonic() + CLOSE_SECONDS
        while True:
            with contextlib.suppress(queue.Full):
                self._lines.put_nowait(None)
                break
            with contextlib.suppress(queue.Empty):
                self._lines.get_nowait()  # the process takes none any more
        try:
            code = self._process.wait(max(deadline - monotonic(), 0.0))
        except subprocess.TimeoutExpired:
            code = None
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        for thread in self._threads:
            thread.join(1.0)
        if code is None or code < 0:
            waited = "was ended" if code is None else "ended"
            logger.info(
                f"wandb: {waited} before all was uploaded; {self._folder / 'wandb'} has the rest (`wandb sync`)"
            )
        elif code:
            logger.info("wandb: failed; metrics.jsonl has the numbers")

    def _write_all(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError), self._process.stdin as file:  # it has ended; `close` logs that
            for line in iter(self._lines.get, None):
                file.write(line + "\n")
                file.flush()

    def _read_all(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as file:
            for line in file:
                logger.info(f"wandb: {line.rstrip()}")
