"""The metrics of a run: a progress line, the same numbers in full in metrics.jsonl, and Weights & Biases."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from laborllm_dist.config.run import TrackingSettings
from laborllm_dist.io.files import reject_irregular, translate_disk_errors, write_text
from laborllm_dist.io.json_files import NotJsonError, json_object
from laborllm_dist.tracking.wandb_tracker import open_tracker

logger = logging.getLogger(__name__)


class RunLog:
    """Metrics of one run, written by rank 0."""

    def __init__(
        self, path: Path, tracking: TrackingSettings, *, name: str, settings: Mapping[str, Any], step: int
    ) -> None:
        """Open the log at `step` steps done; lines of later steps, which a kill has undone, are dropped."""
        self._path = path
        reject_irregular(path)
        with translate_disk_errors(path):
            self._last = _keep_until(path, step)
            self._file = path.open("ab", buffering=0)  # a full disk raises at the write, not at `close`
        self._tracker = open_tracker(tracking, path.parent, name, settings)

    def write(self, facts: Mapping[str, Any]) -> None:
        """Write metrics of a step (`step` counts completed steps), merged into the line that the step already has."""
        line, start = dict(facts), self._file.tell()
        if self._last is not None and self._last[1]["step"] == line["step"]:
            start, before = self._last
            line = {**before, **line}
        rest = json.dumps(line).encode() + b"\n"
        with translate_disk_errors(self._path):
            self._file.truncate(start)
            while rest:
                rest = rest[self._file.write(rest) :]
        self._last = (start, line)
        if self._tracker is not None:
            numbers = {name: value for name, value in facts.items() if isinstance(value, (int, float))}
            self._tracker.log(numbers, step=int(line["step"]))

    def close(self) -> None:
        """Finish the log."""
        self._file.close()
        if self._tracker is not None:
            self._tracker.close()


def _keep_until(path: Path, step: int) -> tuple[int, dict[str, Any]] | None:
    """Drop lines of later steps; return the offset and the values of the last remaining line.

    The last line of a killed run may be incomplete. Any other malformed line has been damaged since; it is dropped and
    logged, and the lines after it stay.
    """
    if not path.is_file():
        return None
    earlier: list[tuple[str, dict[str, Any]]] = []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        facts = _facts_of(line)
        if facts is None and number < len(lines):
            logger.info(f"train: line {number} of {path} is damaged and left out")
        if facts is not None and facts["step"] <= step:
            earlier.append((line.decode() + "\n", facts))
    write_text(path, "".join(line for line, _ in earlier))
    return (sum(len(line.encode()) for line, _ in earlier[:-1]), earlier[-1][1]) if earlier else None


def _facts_of(line: bytes) -> dict[str, Any] | None:
    """Return the values of a line; None if it is malformed."""
    try:
        facts = json_object(line)
    except NotJsonError:
        return None
    return facts if type(facts.get("step")) is int else None
