"""Every number in the settings has a range, and what lies outside is refused in one line when settings are composed."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import numpy as np
import pytest
import torch
import yaml
from helpers.errors import raises
from helpers.processes import PROJECT

from laborllm_dist.careers.readers.synthetic.market import make_market
from laborllm_dist.cli import compose_settings, compose_values
from laborllm_dist.config.baselines import BaselineSettings, PoolWeightSettings
from laborllm_dist.config.corpora import CORPUS_KINDS, CorpusSettings, SyntheticCorpus, SyntheticSettings
from laborllm_dist.config.data import SPLIT_KINDS, SplitSettings, TemplateSettings
from laborllm_dist.config.evaluation import EvaluateSettings, ForecastSettings, PredictSettings, ReportSettings
from laborllm_dist.config.model import ConvertSettings, LlamaSettings
from laborllm_dist.config.number_ranges import NumberRange, above, below, between, within
from laborllm_dist.config.reader import ByKind, read_settings
from laborllm_dist.config.run import RunSettings
from laborllm_dist.errors import SettingsError
from laborllm_dist.randomness import dropout_seed, generator
from laborllm_dist.report.bootstrap import draw_weights

SCRIPTS: dict[type, tuple[str, list[str]]] = {
    RunSettings: ("run", ["data=synthetic"]),
    EvaluateSettings: ("evaluate", ["run=runs/x"]),
    ForecastSettings: ("forecast", ["run=runs/x"]),
    PredictSettings: ("predict", ["run=runs/x", "careers=people.csv"]),
    BaselineSettings: ("baselines", ["run=runs/x"]),
    PoolWeightSettings: ("pool_weights", ["run=runs/x", "target=psid81"]),
    ConvertSettings: ("convert_gguf", []),
    ReportSettings: ("report", ["runs=[runs/x]"]),
}
CORPORA = ("long_panel", "psid81", "resumes", "career_text")
LARGEST_SEED = 2**32 - 1
# A number of a trillion or more is absurd everywhere else.
HUGE = {"optimizer.learning_rate", "model.llama.rope_theta"}


def members(kind: Any) -> tuple[Any, Any]:
    """Return the type inside `X | None`, and its range if it has one."""
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        (kind,) = (each for each in typing.get_args(kind) if each is not type(None))
    if typing.get_origin(kind) is Annotated:
        inner, permitted = typing.get_args(kind)
        return inner, permitted
    return kind, None


def numbers(kind: Any, values: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], type, Any]]:
    """Yield path, type and range of every number that settings of this kind hold, where `values` has a place for it."""
    inner, permitted = members(kind)
    if isinstance(permitted, ByKind):
        inner = permitted.classes[values[permitted.tag]]
    if dataclasses.is_dataclass(inner):
        hints = typing.get_type_hints(inner, include_extras=True)
        for field in dataclasses.fields(inner):
            if isinstance(values, Mapping):
                yield from numbers(hints[field.name], values.get(field.name), (*path, field.name))
    elif typing.get_origin(inner) is dict:
        for name, each in values.items():
            yield from numbers(typing.get_args(inner)[1], each, (*path, name))
    elif typing.get_origin(inner) is tuple:
        assert typing.get_args(inner)[0] not in (int, float), path
    elif inner in (int, float):
        yield path, inner, permitted


def classes(kind: Any) -> Iterator[type]:
    """Yield the classes of settings that one is made of."""
    inner, _ = members(kind)
    if typing.get_origin(inner) in (dict, tuple):
        yield from (each for member in typing.get_args(inner) for each in classes(member))
    elif dataclasses.is_dataclass(inner):
        yield inner  # type: ignore[misc]
        yield from {CorpusSettings: CORPUS_KINDS, SplitSettings: SPLIT_KINDS}.get(inner, {}).values()
        for hint in typing.get_type_hints(inner, include_extras=True).values():
            yield from classes(hint)


def composed(kind: type) -> dict[str, Any]:
    name, overrides = SCRIPTS[kind]
    values = compose_values(name, overrides)
    if kind is RunSettings:
        corpora: Any = values["data"]
        for corpus in CORPORA:
            corpora["corpora"][corpus] = yaml.safe_load((PROJECT / f"conf/corpus/{corpus}.yaml").read_text())
    return values


def test_every_number_of_every_class_of_settings_has_a_range() -> None:
    every = {each for kind in SCRIPTS for each in classes(kind)}
    assert {LlamaSettings, SyntheticCorpus, TemplateSettings} < every
    for kind in every:
        for name, hint in typing.get_type_hints(kind, include_extras=True).items():
            inner, permitted = members(hint)
            assert inner not in (int, float) or isinstance(permitted, NumberRange), f"{kind.__name__}.{name}"


@pytest.mark.parametrize("kind", SCRIPTS)
def test_absurd_numbers_are_refused_with_the_range_they_may_have(kind: type) -> None:
    values = composed(kind)
    read_settings(kind, values)
    for path, inner, permitted in numbers(kind, values):
        name = ".".join(path)
        for number in (-1, 0, 0.5, 1e300, -1e300, math.nan, math.inf, -math.inf, 10**12, 1e12, 10**400, "1", True, [1]):
            place: Any = values
            for part in path[:-1]:
                place = place[part]
            before = place.get(path[-1], dataclasses.MISSING)
            place[path[-1]] = number
            try:
                settings: Any = read_settings(kind, values)
            except SettingsError as error:
                text = str(error)
                assert "\n" not in text
                assert path[-1] in text or "rows" in text or "num_fewshot" in text, text
                if isinstance(number, float) and not math.isfinite(number):
                    assert f"setting {name}: expected {permitted.describe(is_whole=inner is int)}, got {number}" in text
                continue
            finally:
                place[path[-1]] = before
                if before is dataclasses.MISSING:
                    del place[path[-1]]
            assert isinstance(number, (int, float)) and not isinstance(number, bool), name
            assert permitted.least <= number <= permitted.most, name
            assert abs(number) < 1e12 or name in HUGE, name
            for part in path:
                settings = settings[part] if isinstance(settings, dict) else getattr(settings, part)
            assert settings == number and type(settings) is inner


def test_all_seeds_have_one_range() -> None:
    ranges = {}
    for kind in SCRIPTS:
        for each in classes(kind):
            for name, hint in typing.get_type_hints(each, include_extras=True).items():
                if "seed" in name:
                    ranges[f"{each.__name__}.{name}"] = members(hint)
    assert len(ranges) >= 9
    assert set(ranges.values()) == {(int, within(0, LARGEST_SEED))}


@pytest.mark.parametrize("seed", [-1, LARGEST_SEED + 1, 10**18])
def test_a_seed_out_of_range_is_refused_when_settings_are_composed(seed: int) -> None:
    with raises("settings/invalid", "training.seed", "a whole number from 0 to 4,294,967,295, got", seed):
        compose_settings(RunSettings, "run", [f"training.seed={seed}"])


@pytest.mark.parametrize("seed", [0, 281_474_133, LARGEST_SEED])
def test_every_permitted_seed_is_one_that_the_libraries_take(seed: int) -> None:
    torch.manual_seed(dropout_seed(seed, step=10**9, rank=65_535))
    torch.manual_seed(seed)
    assert 0 <= generator(seed, "order of careers", 0).random() < 1
    assert len(next(iter(draw_weights(3, num_draws=2, seed=seed)))) == 2
    assert len(list(make_market(SyntheticSettings(num_people=2, seed=seed)).careers(2))) == 2


def test_the_dropout_of_seeds_that_were_possible_before_stays() -> None:
    assert dropout_seed(7, step=3, rank=1) == (7 * 1_000_003 + 3) * 65_536 + 1


@pytest.mark.parametrize(
    ("permitted", "inside", "outside", "words"),
    [
        (within(1, 1_000), (1, 1_000), (0, 1_001), "a whole number from 1 to 1,000"),
        (above(0, 1e38), (1e-300, 1e38), (0, 2e38), "a whole number above 0 and at most 1e+38"),
        (below(0, 1), (0, np.nextafter(1, 0)), (-1e-9, 1), "a whole number from 0 to below 1"),
        (between(0, 1, "shares"), (1e-9, 0.5), (0, 1), "a whole number above 0 and below 1 (shares)"),
    ],
)
def test_a_range_knows_its_ends(permitted: NumberRange, inside: Any, outside: Any, words: str) -> None:
    assert all(number in permitted for number in inside)
    assert not any(number in permitted for number in (*outside, math.nan, math.inf, -math.inf))
    assert permitted.describe(is_whole=True) == words


def test_an_int_that_no_text_holds_is_refused_in_one_line() -> None:
    with raises("settings/invalid", "seed") as error:
        read_settings(SyntheticSettings, {"num_people": 1, "seed": 10**5000})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [2.0, True, "2", [2], None])
def test_a_choice_is_one_of_its_type_too(value: Any) -> None:
    values = compose_values("run", [])
    values["zero"]["stage"] = value  # type: ignore[index]
    with raises("settings/invalid", "zero.stage", "a whole number from 0 to 3, got"):
        read_settings(RunSettings, values)


@pytest.mark.parametrize("value", [f"seed={'9' * 5000}", f"runs={'[' * 2000}{']' * 2000}"], ids=["long", "deep"])
def test_what_the_parser_of_settings_gives_up_on_is_refused_in_one_line(value: str) -> None:
    with raises("settings/value-needs-quotes", "setting", "the value") as error:
        compose_settings(ReportSettings, "report", ["runs=[runs/x]", value])
    assert "\n" not in str(error.value)
