"""Hidden states of a causal model where it is about to write a title: one vector for every observation.

The vector is the hidden state at the last token of the prompt, from which the model's own distribution over the first
token of the title follows. Careers are packed as in an evaluation, so a vector does not depend on what is beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from laborllm_dist.batching.title_positions import pack_observations, prompt_slots
from laborllm_dist.config.evaluation import EvaluationSettings
from laborllm_dist.config.model import ComputeSettings
from laborllm_dist.errors import SettingsError
from laborllm_dist.evaluation.tasks import plan_evaluation
from laborllm_dist.models.causal_lm import CareerLanguageModel
from laborllm_dist.store.store import CareerTable

Integers = npt.NDArray[np.int64]
States = npt.NDArray[np.float32]


def layer_number(layer: int, num_layers: int) -> int:
    """Return the number of a layer counted from 0, the token embedding; -1 is the last layer, after the last norm.

    Raises:
        SettingsError: naming the layers that there are.
    """
    if not -num_layers - 1 <= layer <= num_layers:
        raise SettingsError(
            f"setting layer: expected a number from 0 (the token embedding) to {num_layers}, or from -{num_layers + 1} "
            f"to -1 (the last layer), since the model has {num_layers} layers; got {layer}",
            code="no-such-layer",
        )
    return layer % (num_layers + 1)


def prompt_states(
    hugging_face: Any,
    careers: CareerTable,
    settings: EvaluationSettings,
    compute: ComputeSettings,
    layer: int,
) -> Iterator[tuple[Integers, States]]:
    """Yield numbers of observations, and their hidden states, [observations, width]: each observation once.

    Args:
        hugging_face: the model, whole and in evaluation mode.
        careers: whose observations; numbers are in the order of careers, then of jobs.
        settings: how many tokens a row and how many rows a forward have.
        compute: attention of the model.
        layer: as `layer_number` takes it.

    Raises:
        SettingsError: if the model has no such layer.
        SequenceTooLongError: if a career fits no row.
    """
    layer = layer_number(layer, int(hugging_face.config.get_text_config().num_hidden_layers))
    model, device = CareerLanguageModel(hugging_face, compute), next(hugging_face.parameters()).device
    num_jobs = careers.num_observations()
    firsts = np.cumsum(num_jobs) - num_jobs
    in_store = np.asarray(careers.table["first_position"], dtype=np.int64)
    for rows in plan_evaluation(careers, settings).batches:
        packed, places = pack_observations(careers, rows, settings.max_seq_length)
        slots_Q = prompt_slots(places, packed.token_ids_BT.shape[1])
        with torch.inference_mode():
            states_QD = model.hidden_states(packed.to(device), layer, slots_Q).float().cpu().numpy()
        career, position = places.keys.T
        yield firsts[career] + position - in_store[career], states_QD
