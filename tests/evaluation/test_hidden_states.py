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

from laborllm_dist.batching.batch import pack_batch
from laborllm_dist.config.evaluation import EvaluationSettings
from laborllm_dist.evaluation.all_titles import Prompts
from laborllm_dist.evaluation.hidden_states import prompt_states
from laborllm_dist.models.inference import wrap_for_inference
from laborllm_dist.models.tree_inference import PrefixState
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


@pytest.mark.parametrize("attention", ["auto", "mask"])
@pytest.mark.parametrize("kind", KINDS)
def test_those_after_a_shared_history_are_those_of_the_whole_text(kind: str, attention: str) -> None:
    generator = np.random.default_rng(1)
    histories = [generator.integers(3, 300, size) for size in (17, 30)]
    model = wrap_for_inference(tiny(kind), dataclasses.replace(COMPUTE, attention=attention))
    state = PrefixState(pack_batch([histories], 64))
    last = model.hidden_states_after(state, None, torch.tensor([16, 46]))
    # Two texts after the first history, one of them after a part of it, and one after the second.
    prefixes_P3 = np.array([(0, 0, 17), (0, 0, 9), (0, 17, 47)])
    suffixes = tuple(generator.integers(3, 300, size) for size in (4, 1, 6))
    prompts = Prompts(prefixes_P3, np.full(3, -1), suffixes)
    after = model.hidden_states_after(state, prompts.suffix_nodes(num_before=0), torch.tensor([3, 4, 10]))
    plain = tiny(kind)

    def whole(*parts: np.ndarray) -> torch.Tensor:
        with torch.no_grad():
            ids = torch.from_numpy(np.concatenate(parts))[None]
            return plain(input_ids=ids, output_hidden_states=True).hidden_states[-1][0, -1]

    references = [whole(histories[0]), whole(histories[1])]
    np.testing.assert_allclose(last, torch.stack(references), atol=2e-5)
    references = [
        whole(histories[0], suffixes[0]), whole(histories[0][:9], suffixes[1]), whole(histories[1], suffixes[2]),
    ]  # fmt: skip
    np.testing.assert_allclose(after, torch.stack(references), atol=2e-5)
