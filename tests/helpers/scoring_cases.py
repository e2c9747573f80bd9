"""Careers of every kind, the rows and scores of them, and small random models."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import torch
from transformers import PreTrainedModel

from helpers.runs import settings_of
from laborllm_dist.batching.title_positions import observation_scores, scoring_batch
from laborllm_dist.careers.types import CareerHistory, Job, OccupationVocabulary
from laborllm_dist.config.evaluation import EvaluationSettings
from laborllm_dist.evaluation.tasks import plan_evaluation
from laborllm_dist.models.causal_lm import CareerLanguageModel
from laborllm_dist.models.loading import new_llama
from laborllm_dist.store.store import CareerTable, store_rows
from laborllm_dist.store.tokenize import TokenizedCareer, tokenize_careers
from laborllm_dist.store.tokenizer import CareerTokenizer, train_tokenizer
from laborllm_dist.text.template import CareerText, Template, compile_template, render_career

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


@functools.cache
def template() -> Template:
    return compile_template(settings_of([]).template)


def rows_of(careers: list[CareerHistory], tokenizer: CareerTokenizer) -> CareerTable:
    texts = [render_career(career, template(), VOCABULARY.title_of())[0] for career in careers]
    table = store_rows(careers, texts, tokenize_careers(texts, tokenizer), VOCABULARY.index_of())
    return CareerTable(table=table.combine_chunks(), vocabulary=VOCABULARY)


def rows_of_codes(*careers: str) -> CareerTable:
    """Return careers of occupations written as letters, such as "aab"."""
    histories = [
        CareerHistory(
            str(at), "S", None, None, None, None, tuple(Job(1980 + year, code) for year, code in enumerate(jobs))
        )
        for at, jobs in enumerate(careers)
    ]
    tokenized = [TokenizedCareer(ids=(0,), title_spans=((1, 2),) * len(jobs)) for jobs in careers]
    vocabulary = OccupationVocabulary(codes=("a", "b", "c"), titles=("A", "B", "C"))
    texts = [CareerText("", ((0, 1),) * len(jobs)) for jobs in careers]
    return CareerTable(store_rows(histories, texts, tokenized, vocabulary.index_of()), vocabulary)


def packed_scores(model: CareerLanguageModel, rows: CareerTable, max_seq_length: int) -> np.ndarray:
    settings = EvaluationSettings(
        split="test", max_seq_length=max_seq_length, batch_size=2, batches_per_part=1, precision="fp32"
    )
    log_likelihoods = np.full((int(rows.num_observations().sum()), 2), np.nan)
    first = np.cumsum(rows.num_observations()) - rows.num_observations()
    for unit in plan_evaluation(rows, settings).batches:
        batch, places = scoring_batch(rows, unit, max_seq_length)
        with torch.inference_mode():
            scores = observation_scores(batch.scatter_to_slots(model(batch)[1]), places.spans)
        log_likelihoods[first[places.keys[:, 0]] + places.keys[:, 1]] = scores
    return log_likelihoods


@functools.cache
def trained_tokenizer() -> CareerTokenizer:
    texts = [render_career(career, template(), VOCABULARY.title_of())[0].text for career in careers_of_every_kind()]
    return train_tokenizer(texts, vocabulary_size=350)


def random_llama(tokenizer: CareerTokenizer, *, scale: float = 0.1) -> PreTrainedModel:
    shape = dataclasses.replace(
        settings_of([]).model.llama, hidden_size=48, num_layers=3, num_key_value_heads=2, initializer_range=scale
    )
    return new_llama(shape, num_ids=tokenizer.num_ids, attention_dropout=0.0, seed=3)


@dataclasses.dataclass
class Changed:
    """A tokenizer's backend that gives other ids for some texts."""

    backend: object
    is_meant: object
    place: int

    def encode(self, text: str, **more):
        return self.encode_batch([text], **more)[0]

    def encode_batch(self, texts: list[str], **more):
        encoded = self.backend.encode_batch(texts, **more)
        return [
            Encoded(each, self.place) if self.is_meant(text) else each
            for text, each in zip(texts, encoded, strict=True)
        ]


class Encoded:
    def __init__(self, encoding, place: int) -> None:
        self.offsets, self.ids = encoding.offsets, list(encoding.ids)
        self.ids[place] += 1


PROMPTS = {"titles_first": "titles", "examples_first": "examples", "titles_and_examples_first": "titles_and_examples"}
