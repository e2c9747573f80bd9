"""What a resumed run must know besides weights and Adam's state; all else is a function of data, settings and step."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from laborllm_dist.errors import ModelError
from laborllm_dist.settings import TrainingSettings


@dataclass(frozen=True, slots=True)
class RunState:
    """The state after `step` steps; losses are nats per token."""

    step: int = 0
    tokens_seen: int = 0
    validated_step: int = 0  # the last one that was validated after
    best_step: int | None = None
    best_loss: float | None = None  # of the validation people
    validations_since_best: int = 0
    left_out: tuple[int, ...] = ()  # steps, counted from 0, that were not learnt from
    recent_losses: tuple[float, ...] = ()  # of steps that were, oldest first

    @property
    def num_updates(self) -> int:
        """Number of updates Adam has made."""
        return self.step - len(self.left_out)

    def after_step(self, loss: float, num_tokens: int, window: int) -> RunState:
        """Return the state after a step that was learnt from."""
        recent = (*self.recent_losses, loss)[-window:]
        return dataclasses.replace(
            self, step=self.step + 1, tokens_seen=self.tokens_seen + num_tokens, recent_losses=recent
        )

    def without_step(self) -> RunState:
        """Return the state after a step that was left out."""
        return dataclasses.replace(self, step=self.step + 1, left_out=(*self.left_out, self.step))

    def after_validation(self, loss: float) -> RunState:
        """Return the state with a validation of this step.

        Raises:
            ModelError: if the loss is no number.
        """
        if not math.isfinite(loss):
            raise ModelError(f"the validation loss after step {self.step} is {loss}; lower the learning rate")
        validated = dataclasses.replace(self, validated_step=self.step)
        if self.best_loss is not None and self.best_loss <= loss:
            return dataclasses.replace(validated, validations_since_best=self.validations_since_best + 1)
        return dataclasses.replace(validated, best_step=self.step, best_loss=loss, validations_since_best=0)

    def is_over(self, num_steps: int, patience: int | None) -> bool:
        """Return whether nothing is left to train: all steps are done, or validation has not gained for long."""
        return self.step == num_steps or (patience is not None and self.validations_since_best >= patience)


def state_from_values(values: Mapping[str, Any]) -> RunState:
    """Return the state that a manifest holds."""
    lists = {name: tuple(values[name]) for name in ("left_out", "recent_losses")}
    return RunState(**{**values, **lists})


def what_is_wrong(loss: float, state: RunState, settings: TrainingSettings) -> str | None:
    """Say what is wrong with a step's loss before it is learnt from; None if nothing is."""
    if not math.isfinite(loss):
        return f"its loss is {loss}"
    if settings.spike_ratio is None or len(state.recent_losses) < settings.spike_window:
        return None
    usual = statistics.median(state.recent_losses)
    if loss <= settings.spike_ratio * usual:
        return None
    return (
        f"its loss of {loss:.4f} nats/token is {loss / usual:.1f} times the median of the last "
        f"{len(state.recent_losses)} steps ({usual:.4f}); training.spike_ratio is {settings.spike_ratio:g}"
    )
