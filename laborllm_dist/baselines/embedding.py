"""Regressors of `embedding_logit`: the hidden state of a language model at the prompt of every observation.

States are computed once and written to a file, which the logit reads chunk by chunk, so memory does not grow with the
number of people. They are standardized by their mean and standard deviation among the training people, so that one
penalty suits all of them.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from laborllm_dist.config.baselines import EmbeddingLogitSettings
from laborllm_dist.config.evaluation import EvaluationSettings, OtherModelSettings
from laborllm_dist.config.model import ComputeSettings, ModelSettings
from laborllm_dist.config.run import RunSettings
from laborllm_dist.evaluation.hidden_states import prompt_states
from laborllm_dist.evaluation.target import OWN_TOKENIZER, as_pretrained, own_export
from laborllm_dist.io.files import atomic_write
from laborllm_dist.io.run_directory import RunDirectory
from laborllm_dist.models.inference import DTYPES
from laborllm_dist.models.loading import check_fit, check_packing, check_weights, longest_career, pretrained_model
from laborllm_dist.store.build import prepare_store
from laborllm_dist.store.store import CareerTable, TokenStore

logger = logging.getLogger(__name__)

ROWS = 8_192  # observations whose states are in memory at once
SECONDS_BETWEEN_LINES = 30.0
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class StandardizedStates:
    """Hidden states as regressors, [observations, width], in a file; rows are standardized when they are read."""

    states: npt.NDArray[np.float32]
    mean: Floats
    deviation: Floats
    dtype: npt.DTypeLike = np.float64

    @property
    def shape(self) -> tuple[int, int]:
        """Number of observations and width."""
        return self.states.shape[0], self.states.shape[1]

    def __getitem__(self, rows: slice) -> npt.NDArray[Any]:
        return ((self.states[rows] - self.mean) / self.deviation).astype(self.dtype)

    def astype(self, dtype: npt.DTypeLike) -> StandardizedStates:
        """Return them in another precision."""
        return dataclasses.replace(self, dtype=dtype)


def moments(states: npt.NDArray[np.float32], weights: Floats) -> tuple[Floats, Floats]:
    """Return the weighted mean and standard deviation of states, [width]; a constant one has deviation 1."""
    total, sums, squares = float(weights.sum()), np.zeros(states.shape[1]), np.zeros(states.shape[1])
    center = states[0].astype(np.float64)  # near the mean, so that the squares do not cancel
    for start in range(0, len(states), ROWS):
        rows = slice(start, start + ROWS)
        centered = states[rows] - center
        sums += weights[rows] @ centered
        squares += weights[rows] @ np.square(centered)
    variance = squares / total - np.square(sums / total)
    is_constant = variance <= 1e-12 * (squares / total)
    return center + sums / total, np.where(is_constant, 1.0, np.sqrt(np.where(is_constant, 1.0, variance)))


def embedding_model(settings: EmbeddingLogitSettings, run: RunDirectory) -> ModelSettings:
    """Return the model whose states are taken: the run's own export, or the one that is set.

    Raises:
        RunError: if it is the run's own, whose training has not finished.
        ModelError: if there are no weights at the path.
    """
    chosen = OtherModelSettings(settings.path, settings.revision, settings.subfolder, None, settings.weights)
    model = as_pretrained("embedding_logit", own_export(run) if settings.path is None else chosen)
    check_weights(model)
    return model


def embedding_store(
    settings: EmbeddingLogitSettings, model: ModelSettings, own: TokenStore, run: RunSettings
) -> TokenStore:
    """Return the store of the run's people in the tokens of the model: the run's own, or that of another tokenizer."""
    if settings.path is None:
        return own
    return prepare_store(dataclasses.replace(run, model=model, tokenizer=OWN_TOKENIZER))


def open_embedding_model(
    model: ModelSettings, store: TokenStore, settings: EvaluationSettings
) -> tuple[Any, EvaluationSettings]:
    """Open a model and check that it reads all careers; return it with settings whose rows hold the longest career.

    Raises:
        LaborError: if it cannot be opened, or a career does not fit it.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    hugging_face: Any = pretrained_model(model, dtype=DTYPES[settings.precision], device=device)
    hugging_face.to(device).eval()
    longest = longest_career(store)
    check_fit(hugging_face, store)
    check_packing(hugging_face, device=device, longest=longest)
    return hugging_face, dataclasses.replace(settings, max_seq_length=max(settings.max_seq_length, longest))


def states_in_file(
    path: Path,
    careers: CareerTable,
    opened: Callable[[], tuple[Any, EvaluationSettings]],
    compute: ComputeSettings,
    layer: int,
    label: str,
) -> npt.NDArray[np.float32]:
    """Return the hidden states of all observations, [observations, width], from a file that is made if it is missing.

    Args:
        path: the file, whose name says what is in it.
        careers: whose observations.
        opened: opens the model.
        compute: attention of the model.
        layer: which state.
        label: names the baseline and the people in lines of progress.
    """
    if not path.is_file():
        hugging_face, settings = opened()
        num_rows, done, begun = int(careers.num_observations().sum()), 0, time.monotonic()
        reported = begun
        shape = (num_rows, int(hugging_face.config.get_text_config().hidden_size))
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as partial:
            states = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float32, shape=shape)
            for rows, part in prompt_states(hugging_face, careers, settings, compute, layer):
                states[rows] = part
                done += len(rows)
                now = time.monotonic()
                if now - reported > SECONDS_BETWEEN_LINES:
                    left = (now - begun) / done * (num_rows - done) / 60
                    logger.info(f"baselines: {label}, {done:,} of {num_rows:,} hidden states, {left:.0f} min left")
                    reported = now
            states.flush()
            del states
    written: npt.NDArray[np.float32] = np.load(path, mmap_mode="r")
    return written
