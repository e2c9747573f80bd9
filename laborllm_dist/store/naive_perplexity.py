"""Baselines that need no model, and a warning line if a model does no better.

They give every title of the vocabulary the same probability (uniform), or its share of the observations that a run
trains on (marginal). A model that is worse than either has not learned its titles.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from laborllm_dist.config.run import RunSettings
from laborllm_dist.store.pooling import observation_weights, title_shares, training_pool
from laborllm_dist.store.store import CareerTable, TokenStore


@dataclass(frozen=True, slots=True)
class WithoutModel:
    """Mean negative log-likelihood of a split's titles in nats, by distributions that need no model."""

    num_titles: int
    uniform: float
    marginal: float


def score_without_model(store: TokenStore, scored: CareerTable, settings: RunSettings) -> WithoutModel:
    """Score careers with the uniform distribution over titles, and with their shares of the training observations.

    Args:
        store: of the training people.
        scored: the careers.
        settings: of the run.

    Raises:
        DataFileError: if fractions and weights leave nobody to train on.
    """
    train = store.careers("train")
    shares = title_shares(train, observation_weights(train, training_pool(store, settings)))
    observed = scored.transitions()[1]
    return WithoutModel(len(shares), math.log(len(shares)), -float(np.log(shares)[observed].mean()))


def warning_if_no_better(model: str, split: str, nats_per_title: float, others: WithoutModel) -> str | None:
    """Return one line if a model's mean negative log-likelihood is above one of the others'; None if it is not."""
    if nats_per_title <= min(others.uniform, others.marginal):
        return None
    names = [name for name in ("uniform", "marginal") if nats_per_title > getattr(others, name)]
    return (
        f"warning: {model} predicts the titles of the {split} people worse than the {' and the '.join(names)} "
        f"distribution{'s' if len(names) > 1 else ''}: perplexity {_perplexity(nats_per_title)} "
        f"(uniform over {others.num_titles:,} titles {_perplexity(others.uniform)}, "
        f"their shares in training {_perplexity(others.marginal)})"
    )


def _perplexity(nats: float) -> str:
    """Return the perplexity of a mean negative log-likelihood with four digits; no exponent is too large."""
    digits = nats / math.log(10)
    if digits < 6:
        value = math.exp(nats)
        return f"{value:,.{max(0, 3 - math.floor(math.log10(max(value, 1))))}f}"
    exponent = math.floor(digits + math.log10(10 / 9.95))  # from 9.95 on the first digit rounds to another 10
    return f"{10 ** (digits - exponent):.1f}e{exponent}"
