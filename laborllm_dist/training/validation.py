"""Validation and early stopping.

A validation is the loss per token and per title of the validation people, sharded over ranks in equal passes; and that
of an output layer over titles, if the model has one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from laborllm_dist.batching.batch import pack_batch
from laborllm_dist.batching.packing import assign_rows, pack_careers
from laborllm_dist.batching.title_positions import observation_scores, title_places, with_titles
from laborllm_dist.config.run import BatchSettings
from laborllm_dist.distributed.zero_engine import ZeroEngine
from laborllm_dist.store.store import CareerTable
from laborllm_dist.training.state import TrainerState
from laborllm_dist.training.stop_request import StopRequest

VALIDATION_HEAD_LOSS = "validation_title_head_nats_per_title"


@dataclass(frozen=True, slots=True)
class ValidationLoss:
    """Mean negative log-likelihoods in nats: of every token, and of the observed titles (terminated).

    `head_nats_per_title`: of the observed titles by the output layer over titles, if the model has one.
    """

    nats_per_token: float
    nats_per_title: float
    head_nats_per_title: float | None = None

    def by(self, unit: Literal["title", "token", "title_head"]) -> float:
        """Return the loss that the best weights are chosen by."""
        if unit == "title_head":
            assert self.head_nats_per_title is not None  # RunSettings requires the layer
            return self.head_nats_per_title
        return self.nats_per_title if unit == "title" else self.nats_per_token

    def numbers(self) -> dict[str, float]:
        """Return all by their names in metrics.jsonl."""
        numbers = {"validation_nats_per_token": self.nats_per_token, "validation_nats_per_title": self.nats_per_title}
        if self.head_nats_per_title is not None:
            numbers[VALIDATION_HEAD_LOSS] = self.head_nats_per_title
        return numbers


def validate(
    engine: ZeroEngine, careers: CareerTable, batch: BatchSettings, stop: StopRequest, *, has_head: bool = False
) -> ValidationLoss | None:
    """Return the losses on a split; None if a stop was requested meanwhile. Collective."""
    lengths = careers.num_tokens()
    rows = pack_careers(lengths.tolist(), batch.max_seq_length).rows
    plan = assign_rows(len(rows), world_size=engine.ranks.world_size, micro_batch_size=batch.micro_batch_size)
    token_sum = title_sum = head_sum = 0.0
    for ranks_rows in plan.passes:
        if stop.is_set():
            return None
        members = [rows[row] for row in ranks_rows[engine.ranks.rank]]
        packed = pack_batch([[careers.token_ids(career) for career in row] for row in members], batch.max_seq_length)
        if has_head:
            packed = with_titles(packed, careers, members)
        scores_N, of_head = engine.log_likelihood(packed)
        scores_BT = packed.scatter_to_slots(scores_N)
        head_sum += 0.0 if of_head is None else float(of_head)
        token_sum += float(scores_BT.sum())
        title_sum += float(observation_scores(scores_BT, title_places(careers, members).spans)[:, 1].sum())
    token_total, title_total, head_total = engine.ranks.sum(token_sum, title_sum, head_sum)
    num_tokens, num_titles = int(lengths.sum()) - len(careers), int(np.sum(careers.num_observations()))
    return ValidationLoss(
        nats_per_token=-token_total / num_tokens,
        nats_per_title=-title_total / num_titles,
        head_nats_per_title=-head_total / num_titles if has_head else None,
    )


def stops_early(state: TrainerState, patience: int | None) -> bool:
    """Return whether the last `patience` validations have all been no better than the best one before them."""
    return patience is not None and state.validations_since_best >= patience
