"""Paths and small worlds that tests share."""

from __future__ import annotations

from pathlib import Path

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
