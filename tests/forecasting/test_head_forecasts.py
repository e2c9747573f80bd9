"""Forecasts by an output layer over titles: every path spelled out, by transformers and by hand."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.errors import raises
from helpers.processes import run_well
from helpers.title_heads import CODES, NAMES, give_head, titles_by_hand
from helpers.trained_runs import TITLES, forecast, random_run

from laborllm_dist.careers.corpus import read_careers
from laborllm_dist.cli import compose_settings
from laborllm_dist.config.evaluation import ForecastSettings
from laborllm_dist.config.model import HeadKind
from laborllm_dist.errors import SettingsError
from laborllm_dist.io.run_directory import read_run
from laborllm_dist.tables.forecasts import read_forecast_table
from laborllm_dist.text.template import compile_template, render_career


@pytest.fixture(scope="module", params=list(NAMES))
def headed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, HeadKind, Any]:
    run = random_run(tmp_path_factory.mktemp(request.param), "model.llama.initializer_range=0.12")
    return run, request.param, give_head(run, request.param)


def forecasts_by_hand(headed: tuple[Path, HeadKind, Any], row: dict[str, Any], horizon: int) -> list[np.ndarray]:
    """Return the direct and the composed forecast of one origin."""
    run, kind, weight = headed
    settings = read_run(run)[1]
    career = next(each for each in read_careers(settings.data) if each.person == row["person"])
    (text,) = render_career(career, compile_template(settings.template), TITLES)
    known = text.text[: text.title_spans[row["position"]][1]] + "\n"
    start = career.jobs[row["position"]]
    lines = [f"{start.year + ahead} ({start.education}):" for ahead in range(1, horizon + 1)]

    def distribution(before: str, previous: str) -> np.ndarray:
        return np.exp(titles_by_hand(run, before, previous, kind, weight))

    composed = np.zeros(len(CODES))
    for path in itertools.product(CODES, repeat=horizon - 1):
        before, previous, share = known, start.occupation, 1.0
        for line, code in zip(lines, path, strict=False):
            share *= distribution(before + line, previous)[CODES.index(code)]
            before, previous = f"{before}{line} {TITLES[code]}\n", code
        composed += share * distribution(before + lines[-1], previous)
    return [distribution(known + lines[-1], start.occupation), composed]


@pytest.mark.parametrize(("horizon", "more"), [(2, ()), (3, ("max_tree_tokens=30",))])
def test_both_forecasts_are_the_layer_s_distributions_after_texts_that_are_spelled_out(
    headed: tuple[Path, HeadKind, Any], horizon: int, more: tuple[str, ...]
) -> None:
    run, kind, _ = headed
    path = forecast(run, "title_head=true", f"horizon={horizon}", "max_people=2", "precision=fp64", *more)
    assert path == run / f"scores/test_forecast_h{horizon}.{NAMES[kind]}.parquet"
    table = read_forecast_table(path)
    assert table.info.model == NAMES[kind] and table.info.details["num_titles"] == "3"
    assert table.table.num_rows >= 4
    for row in table.table.to_pylist():
        direct, composed = forecasts_by_hand(headed, row, horizon)
        assert np.abs(direct - composed).max() > 1e-3
        np.testing.assert_allclose(row["direct_all"], direct, rtol=1e-8)
        np.testing.assert_allclose(row["composed_all"], composed, rtol=1e-8)
        observed = CODES.index(row["occupation"])
        np.testing.assert_allclose([row["direct"], row["composed"]], np.log([direct[observed], composed[observed]]))
        assert row["bound"] == 0
    assert json.loads(path.with_suffix(".json").read_text())["model"] == NAMES[kind]


def test_sampled_paths_come_near_the_sum_and_the_language_model_s_forecasts_stay(
    headed: tuple[Path, HeadKind, Any],
) -> None:
    run, _, _ = headed
    own = forecast(run, "max_people=3").read_bytes()
    exact = read_forecast_table(forecast(run, "title_head=true", "max_people=3", "model.name=exact")).table
    drawn = read_forecast_table(
        forecast(run, "title_head=true", "max_people=3", "steps=sampled", "paths=400", "model.name=drawn")
    ).table
    off = np.array(drawn["composed_all"].to_pylist()) - np.array(exact["composed_all"].to_pylist())
    assert (np.abs(off).max(axis=1) <= 4 * np.array(drawn["standard_error"].to_pylist()).max(axis=1)).all()
    assert (run / "scores/test_forecast_h2.parquet").read_bytes() == own


@pytest.mark.ranks
@pytest.mark.parametrize("headed", ["two_stage"], indirect=True)
def test_two_ranks_write_the_same_bytes(headed: tuple[Path, HeadKind, Any]) -> None:
    run, _, _ = headed
    settings = ["title_head=true", "max_people=5", "model.name=ranks"]
    table = forecast(run, *settings)
    alone = table.read_bytes()
    table.unlink()
    run_well("forecast.py", [f"run={run}", *settings], world_size=2, log=run / "log")
    assert table.read_bytes() == alone


def test_a_run_without_a_layer_and_forecasts_of_other_settings_are_refused(tmp_path: Path) -> None:
    run = random_run(tmp_path)
    with raises("model/no-title-head", run / "export", "title_head.kind"):
        forecast(run, "title_head=true")
    give_head(run, "softmax")
    first = forecast(run, "title_head=true", "max_people=1")
    with raises("run/scored-with-other-settings", first, "max_people"):
        forecast(run, "title_head=true", "max_people=2")
    (tmp_path / "other").mkdir()
    other = random_run(tmp_path / "other", "model.llama.initializer_range=0.1")
    (run / "export/model.safetensors").write_bytes((other / "export/model.safetensors").read_bytes())
    forecast(run, "title_head=true", "max_people=1")  # trained again: its own forecasts are made again
    assert read_forecast_table(first).info.details["weights"] != ""


@pytest.mark.parametrize("setting", ["placement=partitioned", "max_unscored_mass=0.1"])
def test_what_the_layer_cannot_do_is_refused(setting: str) -> None:
    with pytest.raises(SettingsError, match=r"with title_head=true"):
        compose_settings(ForecastSettings, "forecast", ["run=x", "title_head=true", setting])
