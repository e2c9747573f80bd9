"""Hidden states at the prompt are those of plain transformers, career by career."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from helpers.errors import raises
from helpers.runs import COMPUTE, settings_of
from helpers.trained_runs import panel

from laborllm_dist.config.evaluation import EvaluationSettings
from laborllm_dist.evaluation.hidden_states import prompt_states
from laborllm_dist.store.build import prepare_store
from laborllm_dist.store.store import CareerTable

HEADS = {"num_attention_heads": 4, "hidden_size": 32}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {**HEADS, "intermediate_size": 48, "num_hidden_layers": 2},  # packed attention
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},  # a block mask
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},  # one career a row
}


def tiny(kind: str) -> transformers.PreTrainedModel:
    torch.manual_seed(1)
    config = transformers.AutoConfig.for_model(kind, vocab_size=300, **KINDS[kind])
    return transformers.AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture(scope="module")
def test_people(tmp_path_factory: pytest.TempPathFactory) -> tuple[CareerTable, EvaluationSettings]:
    settings = settings_of(panel(tmp_path_factory.mktemp("prompt_states")))
    careers = prepare_store(settings).careers("test")
    return careers, dataclasses.replace(settings.evaluation, batch_size=2)


@pytest.mark.parametrize("layer", [-1, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_they_are_those_at_the_last_token_of_each_prompt(
    kind: str, layer: int, test_people: tuple[CareerTable, EvaluationSettings]
) -> None:
    careers, settings = test_people
    states = np.full((int(careers.num_observations().sum()), 32), np.nan)
    for rows, part in prompt_states(tiny(kind), careers, settings, COMPUTE, layer):
        assert np.isnan(states[rows]).all()  # each observation once
        states[rows] = part
    plain, number = tiny(kind), 0
    for row in range(len(careers)):
        ids = torch.from_numpy(careers.token_ids(row)).long()[None]
        with torch.no_grad():
            expected = plain(input_ids=ids, output_hidden_states=True).hidden_states[layer][0]
        for start, _ in careers.title_spans(row).tolist():
            np.testing.assert_allclose(states[number], expected[start - 1], atol=2e-5)
            number += 1
    assert number == len(states)


def test_a_layer_that_the_model_does_not_have_is_refused(test_people: tuple[CareerTable, EvaluationSettings]) -> None:
    careers, settings = test_people
    for layer in (3, -4):
        with raises("settings/no-such-layer", "from 0 (the token embedding) to 2", f"got {layer}"):
            list(prompt_states(tiny("gpt2"), careers, settings, COMPUTE, layer))
