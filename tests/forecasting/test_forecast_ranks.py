"""A run's table of forecasts: the same bytes on one rank and two, after a kill, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.errors import raises
from helpers.processes import run_ranks, run_well
from helpers.reference.slow_scorer import slow_score
from helpers.runs import settings_of
from helpers.scoring_cases import Changed
from helpers.trained_runs import TITLES, forecast, panel, random_run
from transformers import AutoModelForCausalLM

from laborllm_dist.careers.corpus import read_careers
from laborllm_dist.cli import compose_settings
from laborllm_dist.config.evaluation import ForecastSettings
from laborllm_dist.evaluation import run as evaluation_run
from laborllm_dist.forecasting import run as forecasting_run
from laborllm_dist.store.tokenizer import load_tokenizer
from laborllm_dist.tables.forecasts import read_forecast_table
from laborllm_dist.text.template import compile_template, render_career


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_run(tmp_path_factory.mktemp("run"), "model.llama.initializer_range=0.12")


def test_a_run_is_forecast_directly_and_composed(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = forecast(run, "max_people=4")
    assert path == run / "scores/test_forecast_h2.parquet"
    forecasts = read_forecast_table(path)
    table = forecasts.table
    # 1990 -> 1992, 1991 -> 1993, 1993 -> 1995.
    assert table.num_rows == 12
    assert table["year"].to_pylist()[:3] == [1990, 1991, 1993]
    assert table["target_year"].to_pylist()[:3] == [1992, 1993, 1995]
    assert table["position"].to_pylist()[:3] == [0, 1, 3]
    assert forecasts.occupations == tuple(TITLES)
    assert table["standard_error"].null_count == 12
    for name in ("direct", "composed"):
        lists = np.array(table[f"{name}_all"].to_pylist())
        np.testing.assert_allclose(lists.sum(axis=1), 1, atol=1e-12)
        places = [forecasts.occupations.index(code) for code in table["occupation"].to_pylist()]
        np.testing.assert_allclose(np.exp(table[name].to_numpy()), lists[np.arange(12), places], atol=1e-12)
    person = int(table["person"][0].as_py())
    assert table["occupation"][0].as_py() == "abc"[(person * 3 + 4) % 3]
    result = json.loads((run / "scores/test_forecast_h2.json").read_text())
    assert (result["num_forecasts"], result["num_people"], result["details"]["horizon"]) == (12, 4, "2")
    assert result["divergence_mean"] > 0
    assert 1 < result["perplexity_last_occupation"] < 10
    assert not list((run / "scores").glob("*.parts"))
    lines = caplog.messages[-6:]
    caplog.clear()
    forecast(run, "max_people=4")
    assert "is there" in caplog.messages[0]
    assert caplog.messages[1:] == lines


def test_a_forecast_after_the_list_of_titles_equals_the_slow_scorer(run: Path) -> None:
    table = read_forecast_table(forecast(run, "max_people=1", "prompt=titles", "max_seq_length=2048")).table
    assert (run / "scores/test_forecast_h2.small-titles.parquet").is_file()
    settings, row = settings_of(panel(run.parent.parent)), table.to_pylist()[1]
    career = next(each for each in read_careers(settings.data) if each.person == row["person"])
    (text,) = render_career(career, compile_template(settings.template), TITLES)
    listed = "Every job title below is one of these:\n" + "".join(f"{title}\n" for title in TITLES.values()) + "\n"
    # The start is 1991, whose education goes on; what 1992 and 1993 really were stays unknown.
    prompt = listed + text.text[: text.title_spans[row["position"]][1]] + "\n1993 (high school):"
    tokenizer = load_tokenizer(str(run / "export"))
    model = AutoModelForCausalLM.from_pretrained(str(run / "export"), dtype=torch.float64).eval()

    def encode(part: str) -> list[int]:
        return tokenizer.backend.encode(part, add_special_tokens=False).ids

    expected = np.exp(
        [slow_score(model, encode, list(tokenizer.leading), prompt, title)[1] for title in TITLES.values()]
    )
    np.testing.assert_allclose(row["direct_all"], expected / expected.sum(), atol=1e-5)


def test_an_exact_a_bounded_and_a_drawn_forecast_agree(run: Path) -> None:
    def composed(*overrides: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        table = read_forecast_table(forecast(run, "max_people=4", "horizon=3", *overrides)).table
        errors = np.array(table["standard_error"].to_pylist(), dtype=float)
        return np.array(table["composed_all"].to_pylist()), table["bound"].to_numpy(), errors

    exact, none, _ = composed()
    assert not none.any()
    bounded, bound, _ = composed("max_pruned_mass=0.3", "model.name=bounded")
    assert bound.max() > 0
    assert (np.abs(bounded - exact).max(axis=1) <= bound + 1e-6).all()
    drawn, _, errors = composed("steps=sampled", "paths=500", "model.name=drawn-500")
    assert (np.abs(drawn - exact) <= 4 * errors).all()
    assert np.abs(drawn - exact).max() > 0


@pytest.mark.ranks
def test_two_ranks_and_a_kill_leave_the_same_bytes(run: Path) -> None:
    overrides = ["steps=sampled", "paths=50", "horizon=3", "max_people=8", "model.name=drawn"]
    table = forecast(run, *overrides)
    assert table.name == "test_forecast_h3.drawn.parquet"
    alone = table.read_bytes(), table.with_suffix(".json").read_bytes()
    table.unlink()
    table.with_suffix(".json").unlink()
    parts = lambda: list((run / "scores").glob("test_forecast_h3.drawn.*.parts/part-*.parquet"))  # noqa: E731
    arguments = [f"run={run}", *overrides]
    killed = run_ranks("forecast.py", arguments, world_size=2, log=run / "log", kill_when=lambda: len(parts()) >= 2)
    assert -signal.SIGKILL in killed.codes, "the forecasts ended before they were killed"
    text = run_well("forecast.py", arguments, world_size=2, log=run / "log")
    assert "parts are there" in text
    assert text.count("KL(direct || composed)") == 1
    assert (table.read_bytes(), table.with_suffix(".json").read_bytes()) == alone


def test_what_cannot_be_forecast_is_refused(run: Path, tmp_path: Path) -> None:
    with raises("run/too-many-paths", "3", "27", "20", "10", "410"):
        forecast(run, "horizon=4", "max_paths=20", "max_people=10")
    with raises("run/no-forecast-origins", "test", "6"):
        forecast(run, "horizon=6")
    with raises("run/no-run"):
        forecast(tmp_path / "none")
    limited = random_run(tmp_path, "template.max_history=2")
    with raises("run/forecast-with-max-history", "2"):
        forecast(limited)


def test_what_no_text_or_tree_can_be_is_refused_before_the_model_is_opened(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation_run, "load_for_inference", lambda *_: pytest.fail("the model was opened"))
    with monkeypatch.context() as narrow:
        narrow.setattr(forecasting_run, "context_of", lambda _: 200)
        with raises("sequence-too-long/career-too-long", "is 200", "9 of 9 people"):
            forecast(run, "max_people=9", "model.name=narrow")
    # A second prompt of the split after which a title is other tokens.
    monkeypatch.setattr(evaluation_run, "ending_prompts", lambda *_: ["1990 (college):", "1991:"])
    changed = lambda text: text == "1991: Aide\n"  # noqa: E731
    load = lambda place: dataclasses.replace(  # noqa: E731
        load_tokenizer(place), backend=Changed(load_tokenizer(place).backend, changed, -2)
    )
    monkeypatch.setattr(evaluation_run, "load_tokenizer", load)
    with raises("title-boundary/titles-tokenized-differently", "'1991:'", "'Aide'"):
        forecast(run, "max_people=9", "model.name=changed")


def test_forecasts_of_other_weights_are_not_replaced(run: Path, tmp_path: Path) -> None:
    other = random_run(tmp_path, "model.llama.initializer_range=0.1") / "export"
    forecast(run, "max_people=1", f"model.path={run}/export", "model.name=taken")
    with raises("run/forecasts-of-other-weights", "h2.taken.parquet"):
        forecast(run, "max_people=1", f"model.path={other}", "model.name=taken")


@pytest.mark.parametrize(
    ("name", "value", "bounds"),
    [
        ("horizon", "1", "2 to 100"),
        ("paths", "1", "2 to 1,000,000"),
        ("max_pruned_mass", "1", "0 to below 1"),
        ("max_people", "0", "1 to 1,000,000,000"),
        ("steps", "all", "exact, sampled"),
    ],
)
def test_wrong_settings_of_a_forecast_are_refused(name: str, value: str, bounds: str) -> None:
    with raises("settings/invalid", f"setting {name}:", bounds, value):
        compose_settings(ForecastSettings, "forecast", ["run=runs/x", f"{name}={value}"])


def test_a_tolerance_of_drawn_paths_is_refused() -> None:
    with raises("settings/invalid", "max_pruned_mass", "0 with steps=sampled, which leaves no path out"):
        compose_settings(ForecastSettings, "forecast", ["run=runs/x", "steps=sampled", "max_pruned_mass=0.1"])


def test_a_table_of_forecasts_that_is_none_is_refused(tmp_path: Path) -> None:
    with raises("score-table/no-table", "table of forecasts", "launch/forecast.py run="):
        read_forecast_table(tmp_path / "test_forecast_h2.parquet")
    (tmp_path / "test_forecast_h2.parquet").write_bytes(b"PAR1")
    with raises("score-table/unreadable-table", "table of forecasts"):
        read_forecast_table(tmp_path / "test_forecast_h2.parquet")
