"""Expect an error by its label, so that its words can be improved without touching tests."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from laborllm_dist.errors import LaborError


@contextlib.contextmanager
def raises(label: str, *values: object) -> Iterator[pytest.ExceptionInfo[LaborError]]:
    """Expect an error with a label (class and code, laborllm_dist/errors.py) whose text names these values."""
    with pytest.raises(LaborError) as raised:
        yield raised
    assert raised.value.label == label, raised.value.labeled()
    text = str(raised.value)
    missing = [value for value in map(str, values) if value not in text]
    assert not missing, f"{missing} not in: {text}"
