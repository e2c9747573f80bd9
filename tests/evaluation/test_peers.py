"""Scores beside those of lm-evaluation-harness: the same model reads the same ids and gives titles the same log-likelihoods.

Its model class forwards context and title of every request as a row of their own, padded on the right, eight in a batch;
here a career is forwarded once, packed beside others. `make test-peers` installs it and runs these tests.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.models import settings_for
from helpers.runs import COMPUTE, settings_of
from helpers.scoring_cases import packed_scores, template

from laborllm_dist.careers.corpus import corpus_vocabulary, read_careers
from laborllm_dist.careers.types import CareerHistory, OccupationVocabulary
from laborllm_dist.models.causal_lm import CareerLanguageModel
from laborllm_dist.models.loading import new_llama, pretrained_model
from laborllm_dist.store.store import CareerTable, store_rows
from laborllm_dist.store.tokenize import tokenize_careers
from laborllm_dist.store.tokenizer import CareerTokenizer, load_tokenizer, train_tokenizer
from laborllm_dist.text.template import CareerText, render_career

pytestmark = pytest.mark.peers

NUM_REQUESTS = 300  # at least
NUM_PEOPLE = 60  # who have so many observations, and more
BATCH_SIZE = 8
ROW_LENGTH = 2048  # several careers in a row
TOLERANCE_NATS = 1e-4
PADDING = 0  # the id that the peer pads with; in both models a mark, which no title ends with
# A request's ids: those of the context, leading marks included, and those of the title.
RequestIds = tuple[list[int], list[int]]


@dataclass(frozen=True, slots=True)
class SampledCareers:
    """Careers as texts, which the peer gets, and as rows of a store, which we score."""

    texts: tuple[CareerText, ...]
    rows: CareerTable

    def requests(self) -> list[tuple[str, str]]:
        """Return context and continuation of every observation: the text before a title's blank, and " TITLE"."""
        return [(text.text[:start], text.text[start:end]) for text in self.texts for start, end in text.title_spans]

    def request_ids(self) -> list[RequestIds]:
        careers = [self.rows.token_ids(row).tolist() for row in range(len(self.rows))]
        return [
            (ids[:start], ids[start:end])
            for row, ids in enumerate(careers)
            for start, end in self.rows.title_spans(row)
        ]


def careers_of(corpus: str) -> tuple[list[CareerHistory], OccupationVocabulary]:
    data = settings_of([f"data={corpus}"]).data
    (only,) = data.corpora.values()
    return list(itertools.islice(read_careers(data), NUM_PEOPLE)), corpus_vocabulary(only)


def texts_of(careers: Iterable[CareerHistory], vocabulary: OccupationVocabulary) -> list[CareerText]:
    return [render_career(career, template(), vocabulary.title_of())[0] for career in careers]


def sample_careers(
    careers: list[CareerHistory], vocabulary: OccupationVocabulary, tokenizer: CareerTokenizer, *, context: int
) -> SampledCareers:
    """Take careers, in order, until they have enough observations.

    Careers longer than the model's context (512 positions of stories260K) are left out: the peer would cut them on the
    left, with a warning, and give a number all the same; we refuse them.
    """
    texts = texts_of(careers, vocabulary)
    tokenized = tokenize_careers(texts, tokenizer)
    fitting = [at for at in range(len(careers)) if len(tokenized[at].ids) <= context]
    observations = np.cumsum([len(careers[at].jobs) for at in fitting])
    taken = fitting[: 1 + int(np.searchsorted(observations, NUM_REQUESTS))]
    chosen = tuple(texts[at] for at in taken)
    table = store_rows([careers[at] for at in taken], chosen, [tokenized[at] for at in taken], vocabulary.index_of())
    return SampledCareers(texts=chosen, rows=CareerTable(table=table.combine_chunks(), vocabulary=vocabulary))


def open_peer(**arguments: Any) -> Any:
    """Return lm-evaluation-harness's own model class over a model, fp32 on the CPU."""
    huggingface = pytest.importorskip("lm_eval.models.huggingface", reason="needs lm-evaluation-harness (make peers)")
    return huggingface.HFLM(**arguments, device="cpu", dtype="float32", batch_size=BATCH_SIZE)


def assert_the_peer_agrees(peer: Any, scores: np.ndarray, careers: SampledCareers) -> None:
    """Compare ids and scores of every observation; `scores` are ours, [observations]."""
    from lm_eval.api.instance import Instance

    pairs = careers.requests()
    requests = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]
    read: list[list[int]] = []
    hook = peer.model.register_forward_pre_hook(lambda _, inputs: read.extend(inputs[0].tolist()))
    answers = peer.loglikelihood(requests, disable_tqdm=True)
    hook.remove()
    expected = careers.request_ids()
    assert [peer._encode_pair(*pair) for pair in pairs] == expected
    # What went through the model: all ids of a request but the last; requests with the same ids share one row.
    assert {without_padding(row) for row in read} == {(*context, *title)[:-1] for context, title in expected}
    assert peer.model.dtype == torch.float32
    theirs = np.array([log_likelihood_nats for log_likelihood_nats, _ in answers])
    assert len(theirs) >= NUM_REQUESTS
    assert theirs.std() > 1  # observations differ, so agreement is no accident
    np.testing.assert_allclose(scores, theirs, atol=TOLERANCE_NATS, rtol=0)


def without_padding(row: list[int]) -> tuple[int, ...]:
    length = len(row)
    while row[length - 1] == PADDING:
        length -= 1
    return tuple(row[:length])


def test_titles_of_real_careers_score_as_in_lm_evaluation_harness(any_llama: Path) -> None:
    # The peer opens the folder itself, weights and tokenizer.
    peer = open_peer(pretrained=str(any_llama))
    careers = sample_careers(*careers_of("wage_panel"), load_tokenizer(str(any_llama)), context=peer.max_length)
    settings = settings_for(any_llama)
    model = CareerLanguageModel(pretrained_model(settings, dtype=torch.float32), COMPUTE).eval()
    assert_the_peer_agrees(peer, packed_scores(model, careers.rows, ROW_LENGTH)[:, 0], careers)


def test_titles_of_synthetic_careers_score_as_in_lm_evaluation_harness() -> None:
    people, vocabulary = careers_of("synthetic")
    tokenizer = train_tokenizer((text.text for text in texts_of(people, vocabulary)), vocabulary_size=500)
    shape = dataclasses.replace(settings_of([]).model.llama, num_key_value_heads=2, initializer_range=0.1)
    model = new_llama(shape, num_ids=tokenizer.num_ids, attention_dropout=0.0, seed=3)
    # A copy, since ours reads packed careers through an attention of its own.
    peer = open_peer(pretrained=copy.deepcopy(model), tokenizer=tokenizer.hugging_face)
    careers = sample_careers(people, vocabulary, tokenizer, context=peer.max_length)
    scores = packed_scores(CareerLanguageModel(model, COMPUTE).eval(), careers.rows, ROW_LENGTH)[:, 0]
    assert_the_peer_agrees(peer, scores, careers)
