"""Plan a training run: the number of steps, the careers and rows of each, and the steps that validate and save."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from laborllm_dist.batching.packing import PackedRows, RankAssignment, assign_rows, pack_step
from laborllm_dist.batching.sampler import TrainingSampler
from laborllm_dist.config.data import TemplateSettings
from laborllm_dist.config.run import FEWEST_EPOCHS, BatchSettings, RunSettings, TrainingSettings
from laborllm_dist.errors import SettingsError
from laborllm_dist.store.pooling import training_pool
from laborllm_dist.store.store import TokenStore, check_lengths


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step: its careers (rows of the store), their packing, and the rows of each rank."""

    careers: npt.NDArray[np.int64]
    packing: PackedRows
    assignment: RankAssignment
    num_targets: int  # predicted tokens over all ranks and micro-batches
    num_observations: int  # titles, over the same
    loss_weight: float  # sum of their weights in the loss; their number where all weigh 1


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """All steps of a run, each a function of data, settings and step."""

    order: TrainingSampler
    lengths: npt.NDArray[np.int64]  # tokens of every training career
    title_tokens: npt.NDArray[np.int64]  # of them those of titles and of the line breaks after them
    num_observations: npt.NDArray[np.int64]  # titles of every training career
    longest_career: int  # tokens, of training and validation
    batch: BatchSettings
    training: TrainingSettings
    num_epochs: int
    world_size: int
    num_titles: int

    @property
    def num_steps(self) -> int:
        """Number of steps over all epochs."""
        return self.num_epochs * self.order.steps_per_epoch

    def step(self, step: int) -> StepPlan:
        """Return the plan of a step, counted from 0."""
        careers = self.order.careers_of_step(step)
        lengths = self.lengths[careers].tolist()
        packing = pack_step(lengths, self.batch.max_seq_length)
        assignment = assign_rows(
            len(packing.rows), world_size=self.world_size, micro_batch_size=self.batch.micro_batch_size
        )
        num_targets, num_of_titles = sum(lengths) - len(lengths), int(self.title_tokens[careers].sum())
        loss_weight = num_of_titles + self.training.context_loss_weight * (num_targets - num_of_titles)
        num_observations = int(self.num_observations[careers].sum())
        return StepPlan(careers, packing, assignment, num_targets, num_observations, loss_weight)

    def validates_after(self, num_done: int) -> bool:
        """Return whether to validate after `num_done` steps: `validations_per_epoch` times, the last one at its end."""
        per_epoch, parts = self.order.steps_per_epoch, self.training.validations_per_epoch
        return any(num_done % per_epoch == per_epoch * part // parts % per_epoch for part in range(1, parts + 1))

    def saves_after(self, num_done: int) -> bool:
        """Return whether to save after `num_done` steps: at validations and every `checkpoint_every_steps` steps."""
        every = self.training.checkpoint_every_steps
        return self.validates_after(num_done) or (every is not None and num_done % every == 0)


def plan_training(store: TokenStore, settings: RunSettings, *, world_size: int) -> TrainingPlan:
    """Plan a run.

    Raises:
        SettingsError: if the template truncates careers.
        SequenceTooLongError: naming the person, if a career of training or validation does not fit a row.
        DataFileError: if fractions and weights leave no careers to train on.
    """
    batch, training = settings.batch, settings.training
    check_uncut(settings.template)
    longer = f"batch.max_seq_length is {batch.max_seq_length}; set batch.max_seq_length to that or more"
    check_lengths(store, batch.max_seq_length, longer, ("train", "validation"))
    pool = training_pool(store, settings)
    order = TrainingSampler(pool.rows, pool.weights, global_batch_size=batch.global_batch_size, seed=training.seed)
    train = store.careers("train")
    lengths, others = train.num_tokens(), store.careers("validation").num_tokens()
    longest = int(max(lengths.max(), others.max()))
    num_epochs = epochs_of(settings, order.steps_per_epoch)
    return TrainingPlan(
        order, lengths, train.num_title_tokens(), train.num_observations(), longest, batch, training, num_epochs,
        world_size, len(store.vocabulary),
    )  # fmt: skip


def epochs_of(settings: RunSettings, steps_per_epoch: int) -> int:
    """Return the number of epochs: the setting, or enough for `min_steps` with a randomly initialized model."""
    training = settings.training
    if training.epochs is not None:
        return training.epochs
    if settings.model.path is not None:
        return FEWEST_EPOCHS
    assert training.min_steps is not None  # TrainingSettings requires it without epochs
    assert training.max_epochs is not None
    return min(max(FEWEST_EPOCHS, -(-training.min_steps // steps_per_epoch)), training.max_epochs)


def check_uncut(template: TemplateSettings) -> None:
    """Check that the template does not truncate careers.

    Raises:
        SettingsError: naming the setting to leave out.
    """
    if template.max_tokens is not None:
        raise SettingsError(
            "setting template.max_tokens cuts careers, which only an evaluation may do; leave it out",
            code="truncation-in-training",
        )
