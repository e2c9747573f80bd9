"""Labels of errors: a class and a code, which stay while the words of a message are improved."""

from __future__ import annotations

import re
import sys

import pytest
from helpers.messages import SNAPSHOT, messages, snapshot

from laborllm_dist.cli import launch
from laborllm_dist.config.run import RunSettings
from laborllm_dist.errors import DataFileError, DiskFullError, SettingsError


def test_every_error_has_a_code() -> None:
    for message in messages():
        place = f"{message.file}:{message.line} {message.kind}"
        assert message.code is not None and re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+|[a-z0-9]+", message.code), place


def test_the_list_of_messages_is_the_code_s() -> None:
    assert snapshot() == SNAPSHOT.read_text(), "run python tests/helpers/messages.py, and read what has changed"


def test_a_label_is_the_class_and_the_code() -> None:
    assert DataFileError("x", code="no-year-column").label == "data-file/no-year-column"
    assert DiskFullError("x").label == "disk-full"
    assert SettingsError("two\n  problems\n  here", code="invalid").labeled() == (
        "two [settings/invalid]\n  problems\n  here"
    )


def test_a_command_prints_the_label(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(settings: RunSettings) -> None:
        raise DataFileError("no file at x", code="no-file")

    monkeypatch.setattr(sys, "argv", ["train.py"])
    with pytest.raises(SystemExit) as end:
        launch(RunSettings, "run", refuse, "Train.")
    assert (end.value.code, capsys.readouterr().err) == (2, "error: no file at x [data-file/no-file]\n")
