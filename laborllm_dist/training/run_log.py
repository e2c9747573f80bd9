"""What a run says: a progress line for people, the same numbers in metrics.jsonl in full, and Weights & Biases."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from laborllm_dist.files import no_room_is_said, write_text
from laborllm_dist.settings import TrackingSettings


def say(line: str) -> None:
    """Print one line of progress at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def silence(line: str) -> None:
    """Say nothing: what ranks other than the first do with a line."""


class RunLog:
    """Metrics of one run, written by rank 0."""

    def __init__(
        self, path: Path, tracking: TrackingSettings, *, name: str, settings: Mapping[str, Any], step: int
    ) -> None:
        """Open the log at `step` steps done; lines of later steps, which a kill has undone, are dropped."""
        self._path = path
        self._last = _keep_until(path, step)
        self._file = path.open("a", encoding="utf-8")
        self._wandb = _start_wandb(tracking, path.parent, name, settings)

    def write(self, facts: Mapping[str, Any]) -> None:
        """Write facts of a step; `step` counts steps done. What is already said of the same step stays in its line."""
        line, start = dict(facts), self._file.tell()
        if self._last is not None and self._last[1]["step"] == line["step"]:
            start, before = self._last
            line = {**before, **line}
        with no_room_is_said(self._path):
            self._file.truncate(start)
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        self._last = (start, line)
        if self._wandb is not None:
            numbers = {name: value for name, value in facts.items() if isinstance(value, (int, float))}
            self._wandb.log(numbers, step=int(line["step"]))

    def close(self) -> None:
        """Finish the log."""
        self._file.close()
        if self._wandb is not None:
            self._wandb.finish()


def _keep_until(path: Path, step: int) -> tuple[int, dict[str, Any]] | None:
    """Drop lines of later steps; return where the last line that is kept begins, and what it says."""
    if not path.is_file():
        return None
    kept: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except ValueError:
            break  # the last line of a killed run may be half a line
    write_text(path, "".join(line + "\n" for line in kept))
    if not kept:
        return None
    return sum(len(line.encode()) + 1 for line in kept[:-1]), json.loads(kept[-1])


def _start_wandb(tracking: TrackingSettings, folder: Path, name: str, settings: Mapping[str, Any]) -> Any:
    if tracking.wandb == "off":
        return None
    import wandb  # takes seconds and starts a process: only where it is wanted

    mode = tracking.wandb
    if mode == "auto":
        mode = "online" if os.environ.get("WANDB_API_KEY") else "offline"
    os.environ.setdefault("WANDB_SILENT", "true")
    return wandb.init(
        project=tracking.project,
        name=name,
        id=f"{name}-{settings['fingerprint'][:8]}",
        resume="allow",
        dir=str(folder),
        config=dict(settings),
        mode=mode,
    )
