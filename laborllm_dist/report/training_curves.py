"""Read the training curves of the runs of a report from their metrics.jsonl.

A long training is drawn in a bounded number of points: each is the mean training loss of as many steps in a row, every
token counting the same. Validations are few, and all of them are points. Lines that are damaged, such as the last one
of a killed run, are left out, as resuming does (tracking/run_log.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laborllm_dist.io.json_files import NotJsonError, is_finite_number, json_object
from laborllm_dist.io.run_directory import METRICS

MOST_POINTS = 300  # of a curve: more than the pixels of a phone


@dataclass(frozen=True, slots=True)
class TrainingPoint:
    """The mean loss of some steps in nats per token; `step` and `epoch` are those of the last one."""

    step: int
    epoch: float
    nats_per_token: float


@dataclass(frozen=True, slots=True)
class ValidationPoint:
    """A validation after a step: losses in nats; None per title: not measured."""

    step: int
    epoch: float
    nats_per_token: float
    nats_per_title: float | None


@dataclass(frozen=True, slots=True)
class TrainingNumbers:
    """The training of one run.

    `best_step` has the lowest validation loss per title, or per token where titles are not measured; None: there was
    no validation.
    """

    run: str
    num_steps: int
    num_tokens: int
    num_epochs: float
    peak_learning_rate: float
    steps_per_point: int
    training: tuple[TrainingPoint, ...]
    validation: tuple[ValidationPoint, ...]
    best_step: int | None


def training_curves(runs: Sequence[str]) -> tuple[TrainingNumbers, ...]:
    """Return the curves of the runs that have been trained, in their order."""
    curves = (_curve(run) for run in dict.fromkeys(runs))
    return tuple(curve for curve in curves if curve is not None)


def _curve(run: str) -> TrainingNumbers | None:
    path = Path(run) / METRICS
    steps = list(_steps(path)) if path.is_file() else []
    if not steps:
        return None
    steps_per_point = math.ceil(len(steps) / MOST_POINTS)
    blocks = [steps[first : first + steps_per_point] for first in range(0, len(steps), steps_per_point)]
    validation = tuple(
        ValidationPoint(
            step["step"], step["epoch"], step["validation_nats_per_token"], step.get("validation_nats_per_title")
        )
        for step in steps
        if "validation_nats_per_token" in step
    )
    best = min(
        validation,
        key=lambda point: point.nats_per_token if point.nats_per_title is None else point.nats_per_title,
        default=None,
    )
    return TrainingNumbers(
        run=run,
        num_steps=len(steps),
        num_tokens=sum(step["step_tokens"] for step in steps),
        num_epochs=steps[-1]["epoch"],
        peak_learning_rate=max(step["learning_rate"] for step in steps),
        steps_per_point=steps_per_point,
        training=tuple(map(_mean_of, blocks)),
        validation=validation,
        best_step=None if best is None else best.step,
    )


def _mean_of(steps: Sequence[dict[str, Any]]) -> TrainingPoint:
    num_tokens = sum(step["step_tokens"] for step in steps)
    loss = sum(step["loss_nats_per_token"] * step["step_tokens"] for step in steps) / num_tokens
    return TrainingPoint(steps[-1]["step"], steps[-1]["epoch"], loss)


def _steps(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the steps of a log that have a loss."""
    with path.open("rb") as file:
        for line in file:
            try:
                step = json_object(line)
            except NotJsonError:
                continue
            if type(step.get("step")) is int and _are_numbers(step):
                yield step


def _are_numbers(step: dict[str, Any]) -> bool:
    needed = [step.get(name) for name in ("epoch", "loss_nats_per_token", "step_tokens", "learning_rate")]
    measured = [value for name, value in step.items() if name.startswith("validation_")]
    values = [*needed, *measured]
    return all(map(is_finite_number, values)) and step["step_tokens"] > 0
