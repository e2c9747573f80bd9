"""Paths and small worlds that tests share."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from launching import PROJECT

SHARED = PROJECT.parent / "shared"


def shared_file(name: str) -> Path:
    """Return a file or folder of the data beside the project; the test is skipped where it is absent."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"needs {name}, which does not come with the project")
    return path


@pytest.fixture
def stories260k() -> Path:
    return shared_file("models/stories260K")


@pytest.fixture
def llama2_tokenizer() -> Path:
    return shared_file("tokenizers/llama2")


@pytest.fixture
def nlsy97_dev() -> Path:
    return shared_file("data/nlsy97/nlsy97_careers_dev.csv.gz")


@pytest.fixture(autouse=True)
def one_rank_answers_as_several_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write and read what rank 0 answers in tests of one process too: several ranks send it to each other as text."""
    module = sys.modules.get("laborllm_dist.engine.ranks")
    if module is None:  # what imports no torch stays so
        return
    real = module.Ranks.on_first

    def on_first(self: Any, work: Any, kind: Any = module.PLAIN) -> Any:
        answer = real(self, work, kind)
        return module.from_text(module.to_text(answer, kind), kind) if self.world_size == 1 else answer

    monkeypatch.setattr(module.Ranks, "on_first", on_first)
