"""Train a two-stage model on careers: Adam with an inverse square root schedule, best weights by validation people.

A step is a function of the seed and its number: batches, their order and dropout are the same whenever it is computed.
So a training that was killed continues from its last saved state and ends with the same weights.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import math
import pickle
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from laborllm_dist import __version__
from laborllm_dist.baselines.features import CareerFeatures
from laborllm_dist.baselines.two_stage import DECADE, START, CareerBatch, TwoStageModel
from laborllm_dist.config.baselines import FitSettings
from laborllm_dist.errors import ModelError
from laborllm_dist.io.files import atomic_write, fingerprint_of
from laborllm_dist.io.number_format import format_perplexity
from laborllm_dist.randomness import generator
from laborllm_dist.tables.log_domain import perplexity_of

logger = logging.getLogger(__name__)

SAVE_SECONDS = 60.0  # between saved states
SCORED_JOBS = 8_192  # padded observations whose probabilities are in memory at once
Floats = npt.NDArray[np.float64]


@dataclass(slots=True)
class FitState:
    """What a training is after `step` updates, beside model and optimizer."""

    step: int = 0
    best_step: int = 0
    best_loss: float = math.inf  # nats per observation of the validation people
    losses: list[tuple[int, float]] = dataclasses.field(default_factory=list)


def fit(
    model: TwoStageModel,
    train: CareerFeatures,
    weights: Floats,
    validation: CareerFeatures,
    settings: FitSettings,
    state_file: Path,
    label: str,
    facts: Mapping[str, Any] | None = None,
) -> FitState:
    """Train until the planned updates are done or validation has not improved for `patience` validations.

    The model ends with the weights of the best validation.

    Args:
        model: on its device.
        train: features of the training people.
        weights: of careers, [careers]; those of weight 0 are left out.
        validation: features of the validation people.
        settings: of the optimizer and the schedule.
        state_file: where the training is saved; one that is damaged, or that another training left, is not used.
        label: names the baseline in lines of progress.
        facts: what else decides the numbers, such as the model's settings; they identify a saved training.

    Raises:
        ModelError: if the validation loss is not finite.
    """
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=settings.weight_decay,
        fused=True,
    )  # fmt: skip
    content = _content(model, weights, train, validation)
    identity = fingerprint_of([__version__, facts, dataclasses.asdict(settings), type(model).__name__, content])
    state, best = _restored(state_file, identity, model, optimizer, label) or (FitState(), _copied(model))
    batches = _Batches(train, np.flatnonzero(weights), settings.tokens_per_batch, settings.seed)
    every = max(1, settings.validate_every_epochs * len(batches))
    saved, begun, first = time.monotonic(), time.monotonic(), state.step
    while state.step < settings.max_updates and not _is_over(state, settings.patience, every):
        model.train()
        torch.manual_seed(int(generator(settings.seed, "dropout of a baseline", state.step).integers(2**63)))
        batch = career_batch(train, batches.of_step(state.step), weights).to(device)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(state.step + 1, settings)
        optimizer.zero_grad()
        torch.autograd.backward(_loss(model, batch))
        optimizer.step()
        state.step += 1
        if state.step % every == 0 or state.step == settings.max_updates:
            loss = mean_loss(model, validation)
            if not math.isfinite(loss):
                raise ModelError(
                    f"the baseline's validation loss after update {state.step:,} is {loss}; lower its learning_rate",
                    code="baseline-loss-not-finite",
                )
            state.losses.append((state.step, loss))
            if loss < state.best_loss:
                state.best_step, state.best_loss, best = state.step, loss, _copied(model)
            seconds = (time.monotonic() - begun) / (state.step - first) * (settings.max_updates - state.step)
            logger.info(
                f"baselines: {label}, step {state.step:,} of at most {settings.max_updates:,}, "
                f"validation perplexity {_perplexity(loss)} "
                f"(best {_perplexity(state.best_loss)} at {state.best_step:,}), at most {seconds / 60:.0f} min left"
            )
        if time.monotonic() - saved > SAVE_SECONDS:
            _save(state_file, identity, model, optimizer, state, best)
            saved = time.monotonic()
    _save(state_file, identity, model, optimizer, state, best)
    model.load_state_dict(best)
    return state


def _perplexity(loss: float) -> str:
    return format_perplexity(float(perplexity_of(-loss)))


def learning_rate(step: int, settings: FitSettings) -> float:
    """Return the learning rate of an update, counted from 1: linear warm-up, then inverse square root."""
    warmup = max(1, settings.warmup_updates)
    return settings.learning_rate * min(step / warmup, math.sqrt(warmup / step))


def _is_over(state: FitState, patience: int, every: int) -> bool:
    return bool(state.losses) and state.step - state.best_step >= patience * every


def _loss(model: TwoStageModel, batch: CareerBatch) -> Tensor:
    """Return the weighted mean loss of a batch, in nats per observation."""
    weights_BT = batch.weights_B[:, None] * batch.mask_BT
    return -(model.log_likelihood(batch) * weights_BT).sum() / weights_BT.sum()


def mean_loss(model: TwoStageModel, features: CareerFeatures) -> float:
    """Return the mean loss of the observations of the split, in nats."""
    total = 0.0
    for rows, batch in _scored_batches(model, features):
        with torch.no_grad():
            log_p_N = model.log_likelihood(batch)[batch.mask_BT].double().cpu().numpy()
        total -= float(log_p_N[features.is_scored[rows]].sum())
    return total / int(features.is_scored.sum())


def log_probabilities(model: TwoStageModel, features: CareerFeatures) -> Iterator[tuple[npt.NDArray[np.int64], Floats]]:
    """Yield the numbers of observations of the split, and log P of every symbol, [observations, symbols]: each once."""
    number = np.cumsum(features.is_scored) - 1
    for rows, batch in _scored_batches(model, features):
        with torch.no_grad():
            log_p_BTS = model.log_probabilities(batch).double().cpu()
        is_scored = features.is_scored[rows]
        yield number[rows[is_scored]], log_p_BTS[batch.mask_BT.cpu()].numpy()[is_scored]


def _scored_batches(
    model: TwoStageModel, features: CareerFeatures
) -> Iterator[tuple[npt.NDArray[np.int64], CareerBatch]]:
    """Yield the numbers of observations, career by career, and their batch on the model's device: each career once."""
    model.eval()
    device, weights = next(model.parameters()).device, np.ones(len(features.lengths))
    starts, lengths = features.starts, features.lengths
    for careers in _by_length(lengths, np.arange(len(lengths)), SCORED_JOBS):
        rows = [np.arange(starts[career], starts[career] + lengths[career]) for career in careers]
        yield np.concatenate(rows), career_batch(features, careers, weights).to(device)


def career_batch(features: CareerFeatures, careers: npt.NDArray[np.int64], weights: Floats) -> CareerBatch:
    """Return careers as padded tensors."""
    lengths = features.lengths[careers]
    places = np.arange(int(lengths.max()))
    mask = places < lengths[:, None]
    rows = np.where(mask, features.starts[careers][:, None] + places, 0)

    def padded(column: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.where(mask, column[rows], 0))

    def symbols(occupations: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return occupations with the mark START where there is none."""
        return np.where(occupations == features.num_occupations, features.num_occupations + START, occupations)

    return CareerBatch(
        occupation_BT=padded(features.occupation),
        previous_BT=padded(symbols(features.previous)),
        second_previous_BT=padded(symbols(features.second_previous)),
        tenure_BT=padded((features.tenure / DECADE).astype(np.float32)),
        experience_BT=padded((features.experience / DECADE).astype(np.float32)),
        is_gap_BT=padded(features.is_gap),
        is_new_education_BT=padded(features.is_new_education),
        covariates={name: padded(column) for name, column in features.covariates.items()},
        mask_BT=torch.from_numpy(mask),
        weights_B=torch.from_numpy(weights[careers].astype(np.float32)),
    )


class _Batches:
    """Careers of similar length together; their order is drawn anew for each epoch."""

    def __init__(self, features: CareerFeatures, careers: npt.NDArray[np.int64], tokens: int, seed: int) -> None:
        self.lengths, self.careers, self.tokens, self.seed = features.lengths, careers, tokens, seed
        self._epoch, self._batches = -1, list[npt.NDArray[np.int64]]()
        self._num = len(self._of_epoch(0))

    def __len__(self) -> int:
        return self._num

    def of_step(self, step: int) -> npt.NDArray[np.int64]:
        """Return the careers of a step."""
        return self._of_epoch(step // self._num)[step % self._num]

    def _of_epoch(self, epoch: int) -> list[npt.NDArray[np.int64]]:
        if epoch != self._epoch:
            draw = generator(self.seed, "batches of a baseline", epoch)
            batches = list(_by_length(self.lengths, draw.permutation(self.careers), self.tokens))
            self._epoch, self._batches = epoch, [batches[index] for index in draw.permutation(len(batches))]
        return self._batches


def _by_length(
    lengths: npt.NDArray[np.int64], careers: npt.NDArray[np.int64], tokens: int
) -> Iterator[npt.NDArray[np.int64]]:
    """Yield careers in order of length, as many together as fit `tokens` when padded, at least one."""
    ordered = careers[np.argsort(lengths[careers], kind="stable")]
    begin = 0
    for end in range(1, len(ordered) + 1):
        if end == len(ordered) or lengths[ordered[end]] * (end + 1 - begin) > tokens:
            yield ordered[begin:end]
            begin = end


def _content(model: TwoStageModel, weights: Floats, *people: CareerFeatures) -> str:
    """Return what stands for the initial weights of the model, the people, and the training people's weights."""
    arrays: list[npt.NDArray[Any]] = [weights]
    for features in people:
        arrays += [features.occupation, features.year, features.lengths, features.is_scored]
        arrays += features.covariates.values()
    arrays += [each.detach().cpu().numpy() for each in model.state_dict().values()]
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _copied(model: TwoStageModel) -> dict[str, Tensor]:
    return {name: each.detach().cpu().clone() for name, each in model.state_dict().items()}


def _save(
    path: Path,
    identity: str,
    model: TwoStageModel,
    optimizer: torch.optim.Optimizer,
    state: FitState,
    best: dict[str, Tensor],
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "identity": identity,
        "state": dataclasses.asdict(state),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "best": best,
    }
    with atomic_write(path) as partial:
        torch.save(content, partial)


def _restored(
    path: Path, identity: str, model: TwoStageModel, optimizer: torch.optim.Optimizer, label: str
) -> tuple[FitState, dict[str, Tensor]] | None:
    """Return the state of the same training that was saved, if there is one, and load it."""
    if not path.is_file():
        return None
    initial = _copied(model)
    try:
        content = torch.load(path, map_location=next(model.parameters()).device, weights_only=True)
        if content["identity"] != identity:
            return None
        model.load_state_dict(content["model"])
        optimizer.load_state_dict(content["optimizer"])
        saved = content["state"]
        return FitState(**{**saved, "losses": [tuple(each) for each in saved["losses"]]}), content["best"]
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, pickle.UnpicklingError):
        model.load_state_dict(initial)
        logger.info(f"baselines: {label}, {path} is damaged and is not used; the training starts over")
        return None
