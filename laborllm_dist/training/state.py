"""The state of a run besides weights and Adam's state; everything else follows from data, settings and step."""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from laborllm_dist.config.reader import Strict, read_settings
from laborllm_dist.config.run import TrainingSettings
from laborllm_dist.errors import CheckpointError, ModelError, SettingsError


@dataclass(frozen=True, slots=True)
class Validation(Strict):
    """The loss of the validation people after `step` steps, nats per title or token (training.best_by)."""

    step: int
    loss: float
    nats_per_title: float | None = None  # whatever the loss is; None in checkpoints of earlier versions


@dataclass(frozen=True, slots=True)
class TrainerState(Strict):
    """The state after `step` steps; losses of steps are nats per token."""

    step: int
    tokens_seen: int
    validations: tuple[Validation, ...]  # those whose weights can still be the run's, oldest first
    left_out: tuple[int, ...]  # steps, counted from 0, that were skipped
    recent_losses: tuple[float, ...]  # of the steps that were applied, oldest first

    @property
    def num_updates(self) -> int:
        """Number of updates Adam has made."""
        return self.step - len(self.left_out)

    @property
    def num_left_out_in_a_row(self) -> int:
        """Number of steps that were left out since the last one that was applied."""
        backwards = zip(reversed(self.left_out), itertools.count(self.step - 1, -1), strict=False)
        return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], backwards))

    @property
    def best_step(self) -> int | None:
        """The step after which the loss of the validation people was lowest; of equal ones the first."""
        return min(self.validations, key=lambda validation: validation.loss).step if self.validations else None

    @property
    def best_nats_per_title(self) -> float | None:
        """The loss of the validation people's titles after the best step."""
        return next(
            (validation.nats_per_title for validation in self.validations if validation.step == self.best_step), None
        )

    @property
    def validations_since_best(self) -> int:
        """Number of validations after the best one."""
        best = self.best_step
        return sum(best is not None and validation.step > best for validation in self.validations)

    def is_validated(self) -> bool:
        """Return whether there has been a validation after this very step."""
        return bool(self.validations) and self.validations[-1].step == self.step

    def after_step(self, loss: float, num_tokens: int, window: int) -> TrainerState:
        """Return the state after a step whose update was applied."""
        recent = (*self.recent_losses, loss)[-window:]
        return dataclasses.replace(
            self, step=self.step + 1, tokens_seen=self.tokens_seen + num_tokens, recent_losses=recent
        )

    def after_skip(self) -> TrainerState:
        """Return the state after a step that was skipped."""
        return dataclasses.replace(self, step=self.step + 1, left_out=(*self.left_out, self.step))

    def after_validation(self, loss: float, nats_per_title: float | None = None) -> TrainerState:
        """Return the state with a validation of this step.

        Args:
            loss: the criterion that selects the best weights, in nats.
            nats_per_title: the loss per title of the same validation.

        Raises:
            ModelError: if a loss is not finite.
        """
        if not (math.isfinite(loss) and math.isfinite(nats_per_title or 0.0)):
            raise ModelError(
                f"the validation loss after step {self.step} is {loss}; lower the learning rate",
                code="non-finite-validation-loss",
            )
        return dataclasses.replace(self, validations=(*self.validations, Validation(self.step, loss, nats_per_title)))

    def without_best(self) -> TrainerState:
        """Return the state without its best validation, whose weights are lost; the next best one takes its place."""
        others = tuple(validation for validation in self.validations if validation.step != self.best_step)
        return dataclasses.replace(self, validations=others)


INITIAL_STATE = TrainerState(step=0, tokens_seen=0, validations=(), left_out=(), recent_losses=())


def state_from_values(values: Mapping[str, Any]) -> TrainerState:
    """Read the state in a manifest.

    Raises:
        CheckpointError: if the values are not a state.
    """
    try:
        return read_settings(TrainerState, values)
    except SettingsError as error:
        raise CheckpointError(
            f"a checkpoint's state is not one of a run ({error})", code="invalid-trainer-state"
        ) from None


def loss_problem(loss: float, state: TrainerState, settings: TrainingSettings) -> str | None:
    """Return why a step's loss must not be applied, or None if it may be."""
    if not math.isfinite(loss):
        return f"its loss is {loss}"
    if settings.loss_spike_ratio is None or len(state.recent_losses) < settings.loss_spike_window:
        return None
    usual = statistics.median(state.recent_losses)
    if loss <= settings.loss_spike_ratio * usual:
        return None
    return (
        f"its loss of {loss:.4f} nats/token is {loss / usual:.1f} times the median of the last "
        f"{len(state.recent_losses)} steps ({usual:.4f}); training.loss_spike_ratio is {settings.loss_spike_ratio:g}"
    )
