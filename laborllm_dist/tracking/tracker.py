"""Trackers, Weights & Biases and TensorBoard: they never affect a training and never receive a person or a path.

Each runs in a process of its own (tracking/tracker_process.py). Here lines are put into a queue and nothing is waited
for, until the end, and then CLOSE_SECONDS at most. Whatever happens to that process, metrics.jsonl has the numbers.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any, Literal

from laborllm_dist.config.run import TrackingSettings
from laborllm_dist.tracking.artifacts import Artifact

logger = logging.getLogger(__name__)

INIT_SECONDS = 15.0  # for a first answer of the server
UPLOAD_SECONDS = 10.0  # for what is still to be uploaded at the end
FINISH_SECONDS = 20.0  # for the whole end
CLOSE_SECONDS = 25.0  # for the end of all trackers together: schedulers kill 30 seconds after their signal
MOST_WAITING = 100_000  # lines that the process has not taken yet
SWEEP_CONFIG = "laborllm_dist"  # the one name in wandb's config in a sweep, where an agent may send it back (cli.py)
PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from laborllm_dist.tracking.tracker_process import main; main()"
)
History = Sequence[tuple[Mapping[str, float], int]]  # numbers and step
JobType = Literal["train", "evaluate", "law"]


def in_wandb_sweep(environment: Mapping[str, str]) -> bool:
    """Return whether an agent of a wandb sweep has started this process."""
    return bool(environment.get("WANDB_SWEEP_ID"))


def open_trackers(
    tracking: TrackingSettings,
    folder: Path,
    name: str,
    config: Mapping[str, Any],
    history: History = (),
    job_type: JobType = "train",
    *,
    finish_seconds: float | None = None,
) -> list[Tracker]:
    """Start the trackers of a run, as far as they are configured and a process can start; do not wait for them.

    Args:
        tracking: of the run.
        folder: of the run, where each tracker makes a folder of its own.
        name: of the run.
        config: shown beside the run's numbers; its `fingerprint` distinguishes runs of one name.
        history: all steps so far, which every tracker receives again.
        job_type: what the run does.
        finish_seconds: for the whole end; None: FINISH_SECONDS.
    """
    starts: dict[str, dict[str, Any]] = {}
    mode = _wandb_mode(tracking, os.environ)
    if mode is not None:
        suffix = "" if job_type == "train" else f"-{job_type}"
        starts["wandb"] = {
            "mode": mode,
            "project": tracking.project,
            "group": tracking.group,
            "job_type": job_type,
            "name": name,
            "id": re.sub(r"[^\w.-]", "-", f"{name[:100]}-{config['fingerprint'][:8]}{suffix}"),
            "resume": "allow",
            "config": {SWEEP_CONFIG: dict(config)} if in_wandb_sweep(os.environ) else dict(config),
            "limits": {
                "init_timeout": INIT_SECONDS,
                "login_timeout": INIT_SECONDS,
                "finish_timeout": finish_seconds or UPLOAD_SECONDS,
            },
        }
    if tracking.tensorboard and job_type == "train":
        starts["tensorboard"] = {"config": dict(config)}
    trackers = []
    for kind, start in starts.items():
        try:
            start |= {"tracker": kind, "training_pid": os.getpid(), "finish_seconds": finish_seconds or FINISH_SECONDS}
            trackers.append(Tracker(kind, start, folder, history))
        except OSError as error:
            logger.info(
                f"{kind}: does not start ({error.strerror or error}); "
                "continues without it, metrics.jsonl has the numbers"
            )
    return trackers


def close_trackers(trackers: Sequence[Tracker], exit_code: int = 0, *, seconds: float | None = None) -> None:
    """End the run in all trackers at once, and let their processes finish within one limit.

    Args:
        trackers: of one run.
        exit_code: of the run.
        seconds: the limit for all of them together; None: CLOSE_SECONDS.
    """
    deadline = monotonic() + (CLOSE_SECONDS if seconds is None else seconds)
    for tracker in trackers:
        tracker.end(exit_code)
    for tracker in trackers:
        tracker.wait(deadline)


def _wandb_mode(tracking: TrackingSettings, environment: Mapping[str, str]) -> str | None:
    """Return online or offline; None: no wandb."""
    if tracking.wandb != "auto":
        return None if tracking.wandb == "off" else tracking.wandb
    if (mode := environment.get("WANDB_MODE")) in ("online", "offline", "disabled"):
        return None if mode == "disabled" else mode
    return "online" if environment.get("WANDB_API_KEY") else "offline"


class Tracker:
    """The process that holds a tracker, and the lines that wait for it."""

    def __init__(self, kind: str, start: Mapping[str, Any], folder: Path, history: History = ()) -> None:
        """Start the process in a run's folder.

        Raises:
            OSError: if there is no room for another process.
        """
        self.kind = kind
        self.problems: list[str] = []  # what it has said
        self._folder, self._start, self._history = folder, start, history
        self._exit_code = 0
        self._lines: queue.Queue[str | None] = queue.Queue(MOST_WAITING)
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, json.dumps([str(Path(path).resolve()) for path in sys.path])],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            cwd=folder, start_new_session=True, text=True, encoding="utf-8",
        )  # fmt: skip
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._write_all, self._read_all)]
        for thread in self._threads:
            thread.start()

    def log(self, numbers: Mapping[str, float], *, step: int) -> None:
        """Pass on the numbers of a step."""
        self._put({"log": numbers, "step": step})

    def summarize(self, values: Mapping[str, Any]) -> None:
        """Pass on the numbers that describe the whole run."""
        self._put({"summary": values})

    def add_artifact(self, artifact: Artifact) -> None:
        """Pass on an artifact."""
        self._put({"artifact": artifact.values()})

    def mark_preempting(self) -> None:
        """Say that the run is about to be stopped and will resume."""
        self._put({"preempting": True})

    def end(self, exit_code: int = 0) -> None:
        """Queue the end of the run behind what still waits."""
        self._exit_code = exit_code
        while True:
            with contextlib.suppress(queue.Full):
                self._lines.put_nowait(None)
                break
            with contextlib.suppress(queue.Empty):
                self._lines.get_nowait()  # the process takes none any more

    def wait(self, deadline: float) -> None:
        """Let the process finish until `deadline` (of `time.monotonic`), then end it."""
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
            ended = "was ended" if code is None else "ended"
            what = "law" if self._start.get("job_type") == "law" else "run"
            self._say(
                f"{ended} before everything was written or uploaded; `python launch/track.py {what}={self._folder}` "
                f"publishes the {what} again"
            )
        elif code:
            self._say("failed; metrics.jsonl has the numbers")

    def _say(self, text: str) -> None:
        self.problems.append(text)
        logger.info(f"{self.kind}: {text}")

    def _put(self, message: Mapping[str, Any]) -> None:
        with contextlib.suppress(queue.Full):  # metrics.jsonl has it
            self._lines.put_nowait(json.dumps(message))

    def _write_all(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError), self._process.stdin as file:  # it has ended; `wait` logs that
            file.write(json.dumps(self._start) + "\n")
            for numbers, step in self._history:
                file.write(json.dumps({"log": numbers, "step": step}) + "\n")
            self._history = ()
            file.flush()
            for line in iter(self._lines.get, None):
                file.write(line + "\n")
                file.flush()
            file.write(json.dumps({"end": self._exit_code}) + "\n")

    def _read_all(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as file:
            for line in file:
                self._say(line.rstrip())
