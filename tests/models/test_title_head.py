"""The output layer over titles: its probabilities and gradients by hand, its states in every type of model, its file."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.errors import raises
from helpers.models import TYPES, saved_model
from helpers.runs import COMPUTE, settings_of, small_run
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from laborllm_dist.batching.batch import TitleTargets, pack_batch
from laborllm_dist.config.model import HeadKind
from laborllm_dist.distributed.context import DistributedContext
from laborllm_dist.models.causal_lm import CareerLanguageModel
from laborllm_dist.models.loading import make_model
from laborllm_dist.models.title_head import (
    TITLE_HEAD,
    TITLE_HEAD_FILE,
    TitleHead,
    read_title_head,
    title_log_probabilities,
    write_title_head,
)

KINDS: tuple[HeadKind, ...] = ("softmax", "two_stage")
NUM_TITLES = 5


def probability(logits: list[float], previous: int | None, title: int, kind: HeadKind) -> float:
    """Return P(title) by the definition."""
    if kind == "softmax" or previous is None:
        moves = logits[:NUM_TITLES]
        return math.exp(moves[title]) / sum(map(math.exp, moves))
    stay = 1 / (1 + math.exp(-logits[NUM_TITLES]))
    if title == previous:
        return stay
    others = sum(math.exp(logits[other]) for other in range(NUM_TITLES) if other != previous)
    return (1 - stay) * math.exp(logits[title]) / others


def drawn_logits(kind: HeadKind, num_observations: int) -> torch.Tensor:
    torch.manual_seed(3)
    return torch.randn(num_observations, NUM_TITLES + (kind == "two_stage"), dtype=torch.float64) * 2


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_are_those_of_the_definition_and_sum_to_one(kind: HeadKind) -> None:
    previous = [None, 0, 3, 4, 2, None]
    logits = drawn_logits(kind, len(previous))
    places = torch.tensor([NUM_TITLES if title is None else title for title in previous])
    actual = title_log_probabilities(logits, places, kind)
    expected = [
        [math.log(probability(row, before, title, kind)) for title in range(NUM_TITLES)]
        for row, before in zip(logits.tolist(), previous, strict=True)
    ]
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(actual.exp().sum(dim=1).numpy(), 1.0, rtol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_differences_of_the_loss(kind: HeadKind) -> None:
    previous, observed = [None, 0, 3, 4], [1, 0, 2, 4]
    head = TitleHead(kind, NUM_TITLES + (kind == "two_stage"), 3, torch.float64)
    assert not head.weight.any()
    torch.manual_seed(5)
    head.weight.data.normal_()
    hidden = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    places = torch.tensor([NUM_TITLES if title is None else title for title in previous])
    head(hidden, TitleTargets(torch.arange(4), torch.tensor(observed), places)).sum().backward()
    assert hidden.grad is not None and head.weight.grad is not None

    def total() -> float:
        logits = (hidden @ head.weight.T).tolist()
        return sum(
            math.log(probability(row, before, title, kind))
            for row, before, title in zip(logits, previous, observed, strict=True)
        )

    for values, gradient in ((hidden.data, hidden.grad), (head.weight.data, head.weight.grad)):
        for place in np.ndindex(*values.shape):
            value, step = float(values[place]), 1e-6
            values[place] = value + step
            above = total()
            values[place] = value - step
            assert float(gradient[place]) == pytest.approx((above - total()) / (2 * step), rel=1e-6, abs=1e-8)
            values[place] = value


@pytest.mark.parametrize("kind", TYPES)
def test_the_layer_reads_the_last_hidden_state_of_a_career_alone_in_models_of_every_type(
    kind: str, tmp_path: Path
) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(saved_model(tmp_path, kind)).eval()
    draw = np.random.default_rng(1)
    careers = [draw.integers(2, 96, length).astype(np.int32) for length in (9, 14, 5)]
    head = TitleHead("softmax", 7, 64, torch.float32)
    head.weight.data.normal_(std=0.1)
    with torch.no_grad():
        states = [
            model(torch.tensor([ids.tolist()]), output_hidden_states=True).hidden_states[-1][0] for ids in careers
        ]
    expected = torch.stack([states[0][3], states[1][12], states[2][0]]) @ head.weight.T
    titles = TitleTargets(torch.tensor([3, 9 + 12, 26]), torch.tensor([6, 0, 2]), torch.tensor([7, 1, 2]))
    packed = pack_batch([careers[:2], careers[2:]], 26)
    wrapped = CareerLanguageModel(model, COMPUTE, head).eval()
    total, scores, of_titles = wrapped(dataclasses.replace(packed, titles=titles))
    log_p = expected.log_softmax(dim=1)
    torch.testing.assert_close(of_titles, log_p[range(3), [6, 0, 2]], rtol=1e-4, atol=1e-5)
    plain_total, plain_scores = wrapped(packed)
    assert torch.equal(plain_scores, scores) and torch.equal(plain_total, total)
    (total + of_titles.sum()).backward()
    assert all(parameter.grad is not None for parameter in (head.weight, model.get_input_embeddings().weight))


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_holds_the_layer_and_its_titles(kind: HeadKind, tmp_path: Path) -> None:
    weight = torch.randn(2 + (kind == "two_stage"), 4)
    write_title_head(tmp_path, weight, ("a", "b"))
    saved = read_title_head(tmp_path)
    assert (saved.head.kind, saved.occupations) == (kind, ("a", "b"))
    assert torch.equal(saved.head.weight, weight)


def labels(**changes: str) -> dict[str, str]:
    return {"kind": "softmax", "occupations": json.dumps(["a", "b"]), **changes}


@pytest.mark.parametrize(
    "metadata",
    [labels(kind="three"), labels(occupations='["a"]'), labels(occupations="3"), labels(occupations="["), {}],
)
def test_a_file_that_is_missing_or_damaged_is_refused(metadata: dict[str, str], tmp_path: Path) -> None:
    with raises("model/no-title-head", tmp_path, "title_head.kind"):
        read_title_head(tmp_path)
    path = tmp_path / TITLE_HEAD_FILE
    save_file({TITLE_HEAD: torch.zeros(2, 4)}, path, metadata=metadata)
    with raises("model/damaged-title-head", path):
        read_title_head(tmp_path)
    write_title_head(tmp_path, torch.zeros(2, 4), ("a", "b"))
    assert load_file(path).keys() == {TITLE_HEAD}
    path.write_bytes(path.read_bytes()[:-3])
    with raises("model/damaged-title-head", path):
        read_title_head(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_one_title_has_no_distribution(kind: HeadKind, tmp_path: Path) -> None:
    settings = settings_of(small_run(tmp_path, f"title_head.kind={kind}"))
    ranks = DistributedContext(0, 1, 0, torch.device("cpu"))
    with raises("settings/too-few-titles", "there are 1"):
        make_model(settings, ranks, num_ids=400, num_titles=1)
    assert make_model(settings, ranks, num_ids=400, num_titles=2).title_head is not None
