"""--help: every setting with its value, its meaning and what it may be."""

from __future__ import annotations

import sys

import pytest

from laborllm_dist.cli import launch
from laborllm_dist.config.evaluation import ReportSettings
from laborllm_dist.config.run import RunSettings
from laborllm_dist.config.sweep import SweepSettings


def shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str, width: int = 100
) -> str:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    with pytest.raises(SystemExit) as end:
        launch(RunSettings, "run", lambda settings: None, "Train.")
    captured = capsys.readouterr()
    assert end.value.code == (2 if captured.err else 0)
    return captured.out or captured.err


def test_a_setting_is_shown_with_value_meaning_and_range(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = shown(
        monkeypatch, capsys, "--help", "optimizer.learning_rate", "optimizer.lr_scheduler", "optimizer.beta1=0.5"
    )
    lines = " ".join(text.split())
    assert "learning_rate: 0.001 Peak learning rate. [number above 0 and at most 1e+38" in lines
    assert "lr_scheduler: cosine Decay of the learning rate after the warm-up. [linear, cosine, constant]" in lines
    assert "Choices: optimizer=adamw, optimizer=finetune, optimizer=own." in lines
    assert "beta1" not in lines and "zero" not in lines


def test_all_settings_are_shown_with_overrides_and_within_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = shown(monkeypatch, capsys, "--help", "data=pooled", "zero=stage3", width=90)
    assert text.startswith("Train.\n\nSettings with their values now")
    assert "    first_year: 1981 " in text and "  stage: 3 " in text and "  corpora.nlsy97:" in text
    assert max(map(len, text.splitlines()[6:])) <= 90


def test_an_empty_map_of_groups_is_shown_with_the_settings_of_a_group(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["sweep.py", "--help", "more_runs"])
    with pytest.raises(SystemExit):
        launch(SweepSettings, "sweep", lambda settings: None, "Sweep.")
    assert " ".join(capsys.readouterr().out.split()).endswith(
        "more_runs: {} Runs beside the grid, by any name. [map of text to {model, mix, share, seeds}]"
    )


def test_a_setting_that_is_not_there_is_named_with_the_nearest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = shown(monkeypatch, capsys, "--help", "optimizr")
    assert line == "error: no setting optimizr; did you mean optimizer? [settings/unknown-setting]\n"


def test_what_must_be_given_is_marked(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["report.py", "-h"])
    with pytest.raises(SystemExit):
        launch(ReportSettings, "report", lambda settings: None, "Report.")
    assert "runs: ???" in capsys.readouterr().out
