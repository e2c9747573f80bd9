"""Settings of every kind, damaged: refused in one line, or of the right types, in range, and the same when read again."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import pytest
from helpers.fuzzing import (
    FEWEST_CASES,
    TEXTS,
    Rejection,
    changed_value,
    check_number_of_cases,
    damaged_trees,
    fuzz,
    limited_memory,
    outcome,
)
from hypothesis import given
from hypothesis import strategies as st

from laborllm_dist.cli import compose_settings, compose_values
from laborllm_dist.config.baselines import BaselineSettings
from laborllm_dist.config.evaluation import EvaluateSettings, ForecastSettings, PredictSettings, ReportSettings
from laborllm_dist.config.model import ConvertSettings
from laborllm_dist.config.reader import ByKind, read_settings, settings_to_values
from laborllm_dist.config.run import RunSettings

ALL_CORPORA = [
    "data=pooled",
    *(f"+corpus@data.corpora.{name}={name}" for name in ("long_panel", "resumes", "career_text", "synthetic")),
]
KINDS: dict[str, tuple[type, list[str]]] = {
    "run": (RunSettings, [*ALL_CORPORA, "adapter=lora", "template=titles_and_examples_first"]),
    "evaluate": (EvaluateSettings, ["run=x"]),
    "forecast": (ForecastSettings, ["run=x"]),
    "predict": (PredictSettings, ["run=x", "careers=y"]),
    "baselines": (BaselineSettings, ["run=x"]),
    "report": (ReportSettings, ["runs=[x]"]),
    "convert_gguf": (ConvertSettings, []),
}


@pytest.fixture(scope="module", autouse=True)
def memory() -> Iterator[None]:
    with limited_memory():
        yield


@functools.lru_cache
def tree_of(name: str) -> Any:
    return compose_values(name, KINDS[name][1])


@functools.lru_cache
def damaged_settings(name: str) -> st.SearchStrategy[Any]:
    return damaged_trees(tree_of(name))


def check_types(value: Any, expected: Any) -> None:
    """Compare a value with an annotation and its range, and look for numbers that nothing can be done with."""
    origin, inner = typing.get_origin(expected), typing.get_args(expected)
    if origin in (types.UnionType, typing.Union):
        if value is not None:
            check_types(value, next(each for each in inner if each is not type(None)))
    elif origin is Annotated:
        permitted = inner[1]
        if isinstance(permitted, ByKind):
            check_types(value, permitted.classes[getattr(value, permitted.tag)])
            return
        check_types(value, inner[0])
        assert permitted.least < value or (permitted.has_least and value == permitted.least)
        assert value < permitted.most or (permitted.has_most and value == permitted.most)
        assert math.isfinite(permitted.least) and math.isfinite(permitted.most)
    elif origin is Literal:
        assert (type(value), value) in {(type(each), each) for each in inner}
    elif origin is tuple:
        assert isinstance(value, tuple)
        for each in value:
            check_types(each, inner[0])
    elif origin is dict:
        for name, each in value.items():
            check_types(name, inner[0])
            check_types(each, inner[1])
    elif dataclasses.is_dataclass(expected):
        assert type(value) is expected
        hints = typing.get_type_hints(expected, include_extras=True)
        for field in dataclasses.fields(expected):
            check_types(getattr(value, field.name), hints[field.name])
    else:
        assert type(value) is expected, "a number without a range" if expected in (int, float) else value
        if expected is float:
            assert math.isfinite(value)
        elif expected is str:
            value.encode()
            assert "\0" not in value


@given(st.sampled_from(("run", "run", "run", *sorted(KINDS))), st.data())
@fuzz(700)
def test_a_damaged_tree_of_settings_is_refused_or_is_what_it_says(name: str, data: st.DataObject) -> None:
    kind = KINDS[name][0]
    tree = data.draw(damaged_settings(name))
    result = outcome(lambda: read_settings(kind, tree))
    if isinstance(result, Rejection):
        return
    check_types(result, kind)
    written = json.dumps(settings_to_values(result))
    assert read_settings(kind, json.loads(written)) == result
    assert json.dumps(settings_to_values(read_settings(kind, json.loads(written)))) == written


SETTINGS = (
    "name", "training.epochs", "training.seed", "optimizer.learning_rate", "data.name", "template.entry", "split.salt",
    "zero.stage", "training.loss_spike_ratio", "model.llama.tied_embeddings", "template.heading", "data.corpora", "corpus",
    "", "+x", "~training", "hydra.run.dir", "training", "data",
)  # fmt: skip


@given(
    st.sampled_from(SETTINGS),
    st.sampled_from((*TEXTS, "[1,2]", "{a: 1}", "${name}", "${x", "a=b", "1,2", "glob(x)")),
    st.data(),
)
@fuzz(40)
def test_a_setting_of_the_command_line_is_refused_or_is_what_was_typed(
    name: str, text: str, data: st.DataObject
) -> None:
    form = data.draw(st.sampled_from(("{name}={text}", '{name}="{text}"', "{text}", "{name}=[{text}]")))
    result = outcome(lambda: compose_settings(RunSettings, "run", [form.format(name=name, text=text)]))
    if isinstance(result, Rejection):
        return
    check_types(result, RunSettings)
    values = settings_to_values(result)
    if (
        form == '{name}="{text}"'
        and name in ("name", "data.name", "split.salt")
        and "\\" not in text
        and "$" not in text
    ):
        assert changed_value(values, tuple(name.split("."))) == text


def test_enough_settings_were_tried(request: pytest.FixtureRequest) -> None:
    assert sum(FEWEST_CASES.values()) >= 3_000
    check_number_of_cases(request)
