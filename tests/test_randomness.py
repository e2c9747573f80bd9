"""Draws are functions of their keys: the values here were drawn before the recipes were put into one module."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from laborllm_dist import randomness
from laborllm_dist.batching.sampler import TrainingSampler
from laborllm_dist.careers.readers.synthetic import market
from laborllm_dist.careers.types import OccupationVocabulary
from laborllm_dist.config.data import TitleSettings
from laborllm_dist.report.bootstrap import draw_weights
from laborllm_dist.text.title_variants import display_vocabulary

VOCABULARY = OccupationVocabulary(tuple("abcdefg"), tuple(f"title {code}" for code in "abcdefg"))


def hexes(values: np.ndarray) -> list[str]:
    return [value.hex() for value in np.asarray(values).tolist()]


def test_people_of_splits_fractions_and_examples() -> None:
    assert randomness.person_digest("PSID", "7", "salt") == 0x37F0E1AECE9EF017
    assert randomness.person_digest("NLSY79", "é", "x" * 80) == 0x406678ECF663C991


@pytest.mark.parametrize(("seed", "shown"), [(3, "dfagceb"), (-12345678901234567890, "gfecadb")])
def test_shuffled_titles(seed: int, shown: str) -> None:
    titles = display_vocabulary(VOCABULARY, TitleSettings("shuffled", seed=seed)).titles
    assert "".join(title[-1] for title in titles) == shown


def test_sampled_continuations() -> None:
    drawn = randomness.token_uniforms(5, ("PSID", "7", 3), 2, 10)
    assert hexes(drawn[[0, 1, 7, 8, 9]]) == [
        "0x1.eb58694c46e8dp-1",
        "0x1.e7677b40f11ccp-3",
        "0x1.7a00a0acace80p-8",
        "0x1.c81618b3bc8bdp-1",
        "0x1.6de7adddf857dp-1",
    ]


def test_forecast_paths_and_people() -> None:
    drawn = [randomness.uniform_of(7, "PSID", "1", 4, path, year) for path in (0, 1) for year in (0, 1)]
    expected = ["0x1.2a2c14d5de05ep-3", "0x1.1b2592df71ec7p-2", "0x1.51faf8ae8d506p-2", "0x1.a5a6f63400cc1p-2"]
    assert hexes(np.array(drawn)) == expected
    assert sorted(range(8), key=lambda person: randomness.rank_of(11, "PSID", str(person))) == [5, 1, 6, 4, 0, 3, 7, 2]


def test_training_order() -> None:
    assert randomness.generator(3, "order of careers", 0).permutation(8).tolist() == [3, 7, 0, 1, 6, 5, 2, 4]
    assert randomness.generator(3, "order of careers", 1).permutation(8).tolist() == [2, 3, 4, 5, 6, 0, 1, 7]
    assert randomness.generator(3, "careers taken once more", 1, 2).permutation(8).tolist() == [1, 4, 0, 6, 3, 5, 2, 7]
    assert randomness.generator(2**64 - 3, "x").random().hex() == "0x1.301f2eac654cep-1"
    sampler = TrainingSampler(np.arange(5), np.array([1, 1.5, 1.5, 2, 1]), 4, 9)
    assert [sampler.careers_of_step(step).tolist() for step in range(4)] == [
        [1, 0, 4, 3],
        [2, 3, 1],
        [4, 3, 1, 3],
        [2, 0, 1],
    ]


def test_bootstrap_resamples() -> None:
    (weights,) = draw_weights(6, num_draws=3, seed=4)
    assert weights.tolist() == [[2, 0, 2, 0, 1, 1], [3, 1, 0, 1, 1, 0], [0, 0, 1, 1, 3, 1]]


def test_people_of_the_synthetic_market() -> None:
    drawn = market.person_uniforms(5, range(1000, 1002))
    assert drawn.shape == (2, 132)
    assert hexes(drawn[[0, 0, 1, 1], [0, 131, 0, 131]]) == [
        "0x1.5ce7636383ef6p-1",
        "0x1.cff244bba9c44p-2",
        "0x1.9624f506b23c0p-4",
        "0x1.56003c832dc77p-1",
    ]
    assert hexes(market.person_uniforms(-1, range(1))[0, :2]) == ["0x1.dd0f3dd7b22d4p-3", "0x1.ceac369c89138p-4"]


def test_dropout_seeds() -> None:
    assert randomness.dropout_seed(3, step=7, rank=2) == 196609048578
    assert randomness.dropout_seed(2**60, step=10**6, rank=1) == 65536000001


def test_hashed_numbers_are_those_of_the_digest_written_out() -> None:
    text = json.dumps([1, "PSID", "7", 3, 2, 0])
    (first, *_) = np.frombuffer(hashlib.blake2b(text.encode()).digest(), dtype="<u8").tolist()
    assert randomness.token_uniforms(1, ("PSID", "7", 3), 2, 1).tolist() == [(first >> 11) / 2**53]
    digest = hashlib.blake2b(b"7\x1fPSID", digest_size=8).hexdigest()
    assert randomness.uniform_of(7, "PSID") == int(digest, 16) / 2**64
