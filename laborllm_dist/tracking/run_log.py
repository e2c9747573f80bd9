"""The metrics of a run: a progress line, the same numbers in full in metrics.jsonl, and trackers that show them.

metrics.jsonl is the truth. A tracker receives a copy, at every start all of it: whatever a kill, a full disk or a
server has cost it, its history is complete, without gaps or doubles.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from laborllm_dist.config.run import TrackingSettings
from laborllm_dist.errors import InterruptedRunError, LaborError
from laborllm_dist.io.files import finite_or_null, reject_irregular, translate_disk_errors, write_text
from laborllm_dist.io.json_files import NotJsonError, is_finite_number, json_object
from laborllm_dist.tracking.artifacts import Artifact
from laborllm_dist.tracking.tracker import close_trackers, open_trackers

logger = logging.getLogger(__name__)
VALIDATION = "validation_"  # begins the names of what a validation measures


class RunLog:
    """Metrics of one run, written by rank 0. A context: how it ends is how the run ends in the trackers."""

    def __init__(
        self, path: Path, tracking: TrackingSettings, *, name: str, settings: Mapping[str, Any], step: int
    ) -> None:
        """Open the log at `step` steps done; lines of later steps, which a kill has undone, are dropped.

        Args:
            path: of metrics.jsonl.
            tracking: which trackers receive a copy.
            name: of the run.
            settings: that the trackers show.
            step: steps done.
        """
        self._path = path
        reject_irregular(path)
        with translate_disk_errors(path):
            earlier = _keep_until(path, step) if path.is_file() else []
            self._file = path.open("ab", buffering=0)  # a full disk raises at the write, not at `close`
        start = sum(len(line) for line, _ in earlier[:-1])
        self._last = (start, earlier[-1][1]) if earlier else None
        self._validations: dict[int, dict[str, float]] = {}
        for _, facts in earlier:
            self._note_validation(facts)
        history = [(numbers_of(facts), int(facts["step"])) for _, facts in earlier]
        self._trackers = open_trackers(tracking, path.parent, name, settings, history)

    def write(self, facts: Mapping[str, Any]) -> None:
        """Write metrics of a step (`step` counts completed steps), merged into the line that the step already has."""
        line, start = dict(facts), self._file.tell()
        if self._last is not None and self._last[1]["step"] == line["step"]:
            start, before = self._last
            line = {**before, **line}
        rest = json.dumps(finite_or_null(line), allow_nan=False).encode() + b"\n"
        with translate_disk_errors(self._path):
            self._file.truncate(start)
            while rest:
                rest = rest[self._file.write(rest) :]
        self._last = (start, line)
        self._note_validation(facts)
        for tracker in self._trackers:
            tracker.log(numbers_of(facts), step=int(line["step"]))

    def summarize(self, best_step: int | None, artifacts: list[Artifact]) -> None:
        """Tell the trackers the result: the validation of the best step, whose weights the run exports.

        In a sweep of wandb this is where its metric is looked for.
        """
        validation = {} if best_step is None else self._validations.get(best_step, {})
        for tracker in self._trackers:
            tracker.summarize({"best_step": best_step, **validation})
            for artifact in artifacts:
                tracker.add_artifact(artifact)

    def close(self, exit_code: int = 0) -> None:
        """Finish the log."""
        self._file.close()
        close_trackers(self._trackers, exit_code)

    def _note_validation(self, facts: Mapping[str, Any]) -> None:
        if measured := validation_of(facts):
            self._validations[facts["step"]] = measured

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, InterruptedRunError):
            for tracker in self._trackers:
                tracker.mark_preempting()
        self.close(0 if error is None else error.exit_code if isinstance(error, LaborError) else 1)


def numbers_of(facts: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite numbers of a line, which trackers receive; texts name careers, null is a non-finite number."""
    return {name: value for name, value in facts.items() if is_finite_number(value)}


def validation_of(facts: Mapping[str, Any]) -> dict[str, float]:
    """Return what a validation has measured after a step; empty if there was none."""
    return {name: value for name, value in numbers_of(facts).items() if name.startswith(VALIDATION)}


def read_log(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """Return the lines of metrics.jsonl in order, each as bytes and as values.

    The last line of a killed run may be incomplete. Any other malformed line has been damaged since; it is left out
    and logged, and the lines after it stay.
    """
    lines, steps = path.read_bytes().split(b"\n"), []
    for number, line in enumerate(lines, start=1):
        facts = _facts_of(line)
        if facts is not None:
            steps.append((line + b"\n", facts))
        elif number < len(lines):
            logger.info(f"train: line {number} of {path} is damaged and left out")
    return steps


def _keep_until(path: Path, step: int) -> list[tuple[bytes, dict[str, Any]]]:
    """Drop lines of later steps; return those that remain."""
    earlier = [(line, facts) for line, facts in read_log(path) if facts["step"] <= step]
    write_text(path, b"".join(line for line, _ in earlier).decode())
    return earlier


def _facts_of(line: bytes) -> dict[str, Any] | None:
    """Return the values of a line; None if it is malformed."""
    try:
        facts = json_object(line)
    except NotJsonError:
        return None
    return facts if type(facts.get("step")) is int else None
