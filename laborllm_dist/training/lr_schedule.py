"""The learning rate as a function of the step, so that a resumed run needs no memory of it."""

from __future__ import annotations

import math

from laborllm_dist.config.model import OptimizerSettings


def learning_rate_at(step: int, num_steps: int, settings: OptimizerSettings) -> float:
    """Return the learning rate of a step, counted from 0.

    Warm-up rises linearly to the peak, which the first step after it has. Cosine decay is at min_lr_ratio of the peak
    at the last planned step; linear decay would be at the step after it, so that the last one learns too where
    min_lr_ratio is 0, as in transformers (get_linear_schedule_with_warmup), which the paper's models were trained with.
    """
    num_warmup = round(settings.warmup_ratio * num_steps)
    if step < num_warmup:
        return settings.learning_rate * (step + 1) / (num_warmup + 1)
    if settings.lr_scheduler == "constant":
        return settings.learning_rate
    if settings.lr_scheduler == "linear":
        left = (num_steps - step) / (num_steps - num_warmup)
    else:
        left = (1 + math.cos(math.pi * (step - num_warmup) / max(1, num_steps - 1 - num_warmup))) / 2
    return settings.learning_rate * (settings.min_lr_ratio + (1 - settings.min_lr_ratio) * left)
