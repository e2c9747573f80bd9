"""Scores against the slow scorer: one observation, one forward, float64."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.errors import raises
from helpers.models import settings_for
from helpers.reference.slow_scorer import slow_score
from helpers.runs import COMPUTE, settings_of, small_run
from helpers.scoring_cases import VOCABULARY, careers_of_every_kind, packed_scores, rows_of, template, trained_tokenizer

from laborllm_dist.batching.title_positions import observation_scores
from laborllm_dist.careers.types import CareerHistory
from laborllm_dist.config.evaluation import EvaluationSettings
from laborllm_dist.config.model import ComputeSettings
from laborllm_dist.evaluation.tasks import plan_evaluation
from laborllm_dist.models.causal_lm import CareerLanguageModel
from laborllm_dist.models.loading import new_llama, pretrained_model
from laborllm_dist.store.tokenize import title_token_ids
from laborllm_dist.store.tokenizer import CareerTokenizer, load_tokenizer
from laborllm_dist.text.template import render_career


def slow_scores(model, careers: list[CareerHistory], tokenizer: CareerTokenizer) -> np.ndarray:
    model = model.double()

    def encode(text: str) -> list[int]:
        return tokenizer.backend.encode(text, add_special_tokens=False).ids

    scores = []
    for career in careers:
        (text,) = render_career(career, template(), VOCABULARY.title_of())
        for (start, _), job in zip(text.title_spans, career.jobs, strict=True):
            title = VOCABULARY.title_of()[job.occupation]
            scores.append(slow_score(model, encode, list(tokenizer.leading), text.text[:start], title)[:2])
    return np.asarray(scores)


@pytest.mark.parametrize("max_seq_length", [600, 1500])
@pytest.mark.parametrize("compute", [COMPUTE, dataclasses.replace(COMPUTE, attention="mask", loss_chunk_tokens=7)])
def test_packed_scores_of_a_random_llama_equal_the_slow_scorer(max_seq_length: int, compute: ComputeSettings) -> None:
    tokenizer, careers = trained_tokenizer(), careers_of_every_kind()
    shape = dataclasses.replace(
        settings_of([]).model.llama, hidden_size=48, num_layers=3, num_key_value_heads=2, initializer_range=0.1
    )
    model = new_llama(shape, num_ids=tokenizer.num_ids, attention_dropout=0.0, seed=3)
    actual = packed_scores(CareerLanguageModel(model, compute).eval(), rows_of(careers, tokenizer), max_seq_length)
    expected = slow_scores(model, careers, tokenizer)
    assert expected.std() > 1  # observations differ, so agreement is no accident
    np.testing.assert_allclose(actual, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # fp32 rounds in the forward itself: a title of 46 nats is 1.7e-5 off, packed or alone. In fp64 nothing is left.
    [(torch.float64, {"atol": 1e-10, "rtol": 0}), (torch.float32, {"atol": 1e-5, "rtol": 1e-6})],
)
def test_packed_scores_of_a_pretrained_model_equal_the_slow_scorer(dtype, tolerance, any_llama: Path) -> None:
    tokenizer, careers = load_tokenizer(str(any_llama)), careers_of_every_kind()[:2]
    title_token_ids("1984 (high school):", VOCABULARY, tokenizer)
    model = pretrained_model(settings_for(any_llama), dtype=dtype)
    rows = rows_of(careers, tokenizer)
    actual = packed_scores(CareerLanguageModel(model, COMPUTE).eval(), rows, int(rows.num_tokens().sum()))
    np.testing.assert_allclose(actual, slow_scores(model, careers, tokenizer), **tolerance)


def test_a_career_longer_than_a_row_is_refused_by_name() -> None:
    rows = rows_of(careers_of_every_kind(), trained_tokenizer())
    settings = EvaluationSettings(split="test", max_seq_length=40, batch_size=1, batches_per_part=1, precision="fp32")
    with raises("sequence-too-long/career-too-long", "'3'", "PSID", "40"):
        plan_evaluation(rows, settings)


def test_scores_are_sums_over_the_slots_before_the_tokens() -> None:
    # Title on tokens 2 and 3, line end on token 4: slots 1, 2 and then 3 hold their log-likelihoods.
    scores = observation_scores(np.array([[9.0, -0.5, -0.25, -1.0, 9.0]], dtype=np.float32), np.array([[0, 2, 4]]))
    np.testing.assert_array_equal(scores, [[-0.75, -1.75]])


def test_small_run_overrides_compose(tmp_path: Path) -> None:
    assert settings_of(small_run(tmp_path)).model.llama.hidden_size == 32
