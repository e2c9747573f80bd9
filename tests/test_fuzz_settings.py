"""Settings of every kind, damaged: refused in one line, or of the right types, in range, and the same when read again."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal

import pytest
from fuzzing import (
    Refusal,
    damaged_trees,
    fuzz,
    limited_memory,
    outcome,
)
from hypothesis import given
from hypothesis import strategies as st

from laborllm_dist.compose import compose_values
from laborllm_dist.predict_settings import PredictSettings
from laborllm_dist.scoring.forecast_settings import ForecastSettings
from laborllm_dist.settings import (
    CompareSettings,
    ConvertSettings,
    EvaluateSettings,
    ReportSettings,
    RunSettings,
)
from laborllm_dist.settings_reader import read_settings, settings_to_values

PRETRAINED = ["model=pretrained", "model.path=x", "tokenizer=pretrained"]
KINDS: dict[str, tuple[type, str, list[str]]] = {
    "quickstart": (RunSettings, "run", ["+experiment=quickstart"]),
    "pooled": (RunSettings, "run", ["data=pooled", *PRETRAINED, "adapter=qlora", "adapter.targets=[q_proj]"]),
    "panel": (RunSettings, "run", ["data=long_panel", "template=titles_and_examples_first"]),
    "resumes": (RunSettings, "run", ["data=resumes"]),
    "karrierewege": (RunSettings, "run", ["data=karrierewege"]),
    "career_text": (RunSettings, "run", ["data=career_text"]),
    "synthetic": (RunSettings, "run", ["data=synthetic"]),
    "evaluate": (EvaluateSettings, "evaluate", ["run=x"]),
    "forecast": (ForecastSettings, "forecast", ["run=x"]),
    "predict": (PredictSettings, "predict", ["run=x", "careers=y"]),
    "comparators": (CompareSettings, "comparators", ["run=x"]),
    "report": (ReportSettings, "report", ["runs=[x]"]),
    "convert": (ConvertSettings, "convert", []),
}


@pytest.fixture(scope="module", autouse=True)
def memory() -> Iterator[None]:
    with limited_memory():
        yield


@functools.lru_cache
def tree_of(name: str) -> Any:
    _, config, overrides = KINDS[name]
    return compose_values(config, overrides)


def check_types(value: Any, wanted: Any) -> None:
    """Compare a value with an annotation, and look for numbers and texts that nothing can be done with."""
    origin, inner = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (types.UnionType, typing.Union):
        if value is not None:
            check_types(value, next(each for each in inner if each is not type(None)))
    elif origin is Literal:
        assert value in inner and type(value) in {type(each) for each in inner}
    elif origin is tuple:
        assert isinstance(value, tuple)
        for each in value:
            check_types(each, inner[0])
    elif origin is dict:
        for name, each in value.items():
            check_types(name, inner[0])
            check_types(each, inner[1])
    elif dataclasses.is_dataclass(wanted):
        assert type(value) is wanted
        hints = typing.get_type_hints(wanted)
        for field in dataclasses.fields(wanted):
            check_types(getattr(value, field.name), hints[field.name])
    else:
        assert type(value) is wanted
        if wanted is float:
            assert math.isfinite(value)
        elif wanted is int:
            assert abs(value) < 2**63
        elif wanted is str:
            assert not any(sign < " " or sign == "\x7f" for sign in value), repr(value)
            value.encode()


@given(st.sampled_from(sorted(KINDS)), st.data())
@fuzz(600)
def test_a_damaged_tree_of_settings_is_refused_or_is_what_it_says(name: str, data: st.DataObject) -> None:
    kind = KINDS[name][0]
    tree = data.draw(damaged_trees(tree_of(name)))
    found = outcome(lambda: read_settings(kind, tree))
    if isinstance(found, Refusal):
        return
    check_types(found, kind)
    written = json.dumps(settings_to_values(found))
    assert read_settings(kind, json.loads(written)) == found
    assert json.dumps(settings_to_values(read_settings(kind, json.loads(written)))) == written
