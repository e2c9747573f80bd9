"""Scores against the slow scorer: one observation, one forward, float64."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from reference.slow_scorer import slow_score
from worlds import COMPUTE, settings_of, small_run

from laborllm_dist.careers.history import CareerHistory, Job, OccupationVocabulary
from laborllm_dist.careers.template import compile_template, render_career
from laborllm_dist.engine.language_model import CareerLanguageModel
from laborllm_dist.engine.model import new_llama, pretrained_model
from laborllm_dist.engine_settings import ComputeSettings, ModelSettings
from laborllm_dist.errors import RowTooShort
from laborllm_dist.scoring.observations import observation_scores, scoring_batch
from laborllm_dist.scoring.units import plan_evaluation
from laborllm_dist.settings import EvaluationSettings
from laborllm_dist.tokens.store import CareerRows, store_rows
from laborllm_dist.tokens.tokenise import title_token_ids, tokenise_careers
from laborllm_dist.tokens.tokenizer import CareerTokenizer, load_tokenizer, train_tokenizer

# "Cooks" begins "Cooks, private"; one title has digits, one an accent, one a comma.
TITLES = ("Cooks", "Cooks, private", "Not in labor force", "Food servers, nonrestaurant", "Type 2 cafe\u0301 aides")
VOCABULARY = OccupationVocabulary(codes=tuple("abcde"), titles=TITLES)


def careers_of_every_kind() -> list[CareerHistory]:
    """Short, long, one job only, facts missing, the same title again."""
    facts = {"survey": "PSID", "birth_year": 1963, "gender": "female", "ethnicity": "white", "region": "south"}
    bare = {"survey": "PSID", "birth_year": None, "gender": None, "ethnicity": None, "region": None}
    return [
        CareerHistory(person="1", jobs=(Job(1984, "a", "high school"), Job(1985, "b", "high school")), **facts),
        CareerHistory(person="2", jobs=(Job(1990, "c", None),), **bare),
        CareerHistory(person="3", jobs=tuple(Job(1980 + at, "abcde"[at % 5], "college") for at in range(5)), **facts),
        CareerHistory(person="4", jobs=tuple(Job(1999 + at, "e", "college") for at in range(3)), **bare),
    ]


def template():
    return compile_template(settings_of([]).template)


def rows_of(careers: list[CareerHistory], tokenizer: CareerTokenizer) -> CareerRows:
    texts = [render_career(career, template(), VOCABULARY.title_of())[0] for career in careers]
    table = store_rows(careers, texts, tokenise_careers(texts, tokenizer), VOCABULARY.index_of())
    return CareerRows(table=table.combine_chunks(), vocabulary=VOCABULARY)


def packed_scores(model: CareerLanguageModel, rows: CareerRows, row_length: int) -> np.ndarray:
    settings = EvaluationSettings(
        split="test", row_length=row_length, rows_per_unit=2, units_per_part=1, precision="fp32"
    )
    found = np.full((int(rows.num_observations().sum()), 2), np.nan)
    first = np.cumsum(rows.num_observations()) - rows.num_observations()
    for unit in plan_evaluation(rows, settings).units:
        batch, places = scoring_batch(rows, unit, row_length)
        with torch.inference_mode():
            scores = observation_scores(batch.at_their_slots(model(batch)[1]), places.spans)
        found[first[places.keys[:, 0]] + places.keys[:, 1]] = scores
    return found


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


def trained_tokenizer() -> CareerTokenizer:
    texts = [render_career(career, template(), VOCABULARY.title_of())[0].text for career in careers_of_every_kind()]
    return train_tokenizer(texts, vocabulary_size=350)


@pytest.mark.parametrize("row_length", [600, 1500])
@pytest.mark.parametrize("compute", [COMPUTE, dataclasses.replace(COMPUTE, attention="mask", loss_chunk_tokens=7)])
def test_packed_scores_of_a_random_llama_equal_the_slow_scorer(row_length: int, compute: ComputeSettings) -> None:
    tokenizer, careers = trained_tokenizer(), careers_of_every_kind()
    shape = dataclasses.replace(
        settings_of([]).model.llama, hidden_size=48, num_layers=3, num_key_value_heads=2, initializer_range=0.1
    )
    model = new_llama(shape, num_ids=tokenizer.num_ids, attention_dropout=0.0, seed=3)
    found = packed_scores(CareerLanguageModel(model, compute).eval(), rows_of(careers, tokenizer), row_length)
    wanted = slow_scores(model, careers, tokenizer)
    assert wanted.std() > 1  # observations differ, so agreement is no accident
    np.testing.assert_allclose(found, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # fp32 rounds in the forward itself: a title of 46 nats is 1.7e-5 off, packed or alone. In fp64 nothing is left.
    [(torch.float64, {"atol": 1e-10, "rtol": 0}), (torch.float32, {"atol": 1e-5, "rtol": 1e-6})],
)
def test_packed_scores_of_a_pretrained_model_equal_the_slow_scorer(dtype, tolerance, stories260k: Path) -> None:
    tokenizer, careers = load_tokenizer(str(stories260k)), careers_of_every_kind()[:2]
    title_token_ids("1984 (high school):", VOCABULARY, tokenizer)
    model = pretrained_model(
        ModelSettings("stories", str(stories260k), None, None, None, 0.0, "safetensors"), dtype=dtype
    )
    rows = rows_of(careers, tokenizer)
    found = packed_scores(CareerLanguageModel(model, COMPUTE).eval(), rows, int(rows.num_tokens().sum()))
    np.testing.assert_allclose(found, slow_scores(model, careers, tokenizer), **tolerance)


def test_a_career_longer_than_a_row_is_refused_by_name() -> None:
    rows = rows_of(careers_of_every_kind(), trained_tokenizer())
    settings = EvaluationSettings(split="test", row_length=40, rows_per_unit=1, units_per_part=1, precision="fp32")
    with pytest.raises(RowTooShort, match=r"career '3' of PSID has \d+ tokens, evaluation.row_length is 40"):
        plan_evaluation(rows, settings)


def test_scores_are_sums_over_the_slots_before_the_tokens() -> None:
    # Title on tokens 2 and 3, line end on token 4: slots 1, 2 and then 3 hold their log-likelihoods.
    scores = observation_scores(np.array([[9.0, -0.5, -0.25, -1.0, 9.0]], dtype=np.float32), np.array([[0, 2, 4]]))
    np.testing.assert_array_equal(scores, [[-0.75, -1.75]])


def test_small_run_overrides_compose(tmp_path: Path) -> None:
    assert settings_of(small_run(tmp_path)).model.llama.hidden_size == 32
