"""The log of the commands of a run."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from laborllm_dist import __version__
from laborllm_dist.io.command_log import COMMANDS, read_commands, record_command


def test_commands_are_read_as_they_were_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert read_commands(tmp_path) == []
    record_command(tmp_path, "train", ["name=a b", "x=\u00e9"], time.time() - 90)
    record_command(tmp_path, "evaluate", ["run=runs/a"], time.time())
    train, evaluate = read_commands(tmp_path)
    assert (train.name, train.arguments, train.num_ranks) == ("train", ("name=a b", "x=\u00e9"), 3)
    assert 90 <= train.seconds < 100 and evaluate.seconds < 10
    assert evaluate.version == __version__ and 0 < evaluate.peak_memory_gib < 100
    for garbage in ("", "two", "-1", "9" * 5000, "\u0663"):
        monkeypatch.setenv("WORLD_SIZE", garbage)
        record_command(tmp_path, "baselines", [], time.time())
    assert [command.num_ranks for command in read_commands(tmp_path)] == [3, 3, 1, 1, 1, 1, 1]
    assert time.strptime(train.finished, "%Y-%m-%dT%H:%M:%SZ")


def test_damaged_lines_are_left_out_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record_command(tmp_path, "train", ["name=a\u2028b"], time.time())
    path = tmp_path / COMMANDS
    line = path.read_text()
    path.write_text(line + line[:30])  # a full disk
    record_command(tmp_path, "evaluate", [], time.time())
    assert [command.name for command in read_commands(tmp_path)] == ["train", "evaluate"]
    assert read_commands(tmp_path)[0].arguments == ("name=a\u2028b",)
    path.write_text(json.dumps({**json.loads(line), "seconds": "long"}) + "\n" + line)
    assert [command.name for command in read_commands(tmp_path)] == ["train"]
    assert "1 damaged lines are left out" in capsys.readouterr().err


def test_a_log_that_cannot_be_written_costs_a_warning_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / COMMANDS).mkdir()
    record_command(tmp_path, "train", [], time.time())
    assert "lacks this command (Is a directory)" in capsys.readouterr().err
