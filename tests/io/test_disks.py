"""Disks and file systems: two writers of one file, a full disk under a library, modes by the umask, no traces of refusals."""

from __future__ import annotations

import json
import os
import resource
import shutil
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.errors import raises
from helpers.runs import settings_of, small_run
from helpers.scores import report_on, write_scores
from safetensors.torch import save_file

from laborllm_dist import cli
from laborllm_dist.checkpoint.save import write_fragments
from laborllm_dist.cli import launch
from laborllm_dist.config.evaluation import ReportSettings
from laborllm_dist.errors import TitleBoundaryError
from laborllm_dist.io import files
from laborllm_dist.io.files import atomic_write, file_lock, translate_disk_errors, write_text
from laborllm_dist.io.recorded_folder import replacing_folder
from laborllm_dist.report import write
from laborllm_dist.store import build
from laborllm_dist.store.build import prepare_store
from laborllm_dist.store.tokenizer import train_tokenizer


def in_thread(work: Any) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_two_writers_of_one_file_take_turns(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with atomic_write(path) as partial:
        partial.write_text("first, and longer")
        second = in_thread(lambda: write_text(path, "second"))
        second.join(timeout=0.3)
        assert second.is_alive()
        assert partial.read_text() == "first, and longer"
    second.join(timeout=30)
    assert path.read_text() == "second"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_a_writer_goes_on_when_the_one_before_has_failed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    second = None
    with pytest.raises(ZeroDivisionError), atomic_write(path) as partial:
        partial.write_text("half")
        second = in_thread(lambda: write_text(path, "second"))
        raise ZeroDivisionError
    assert second is not None
    second.join(timeout=30)
    assert path.read_text() == "second"


def test_what_a_kill_has_left_is_not_a_part_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "file.partial").write_text("left by a kill")
    with atomic_write(tmp_path / "file") as partial, partial.open("a") as file:
        file.write("whole")
    assert (tmp_path / "file").read_text() == "whole"


def test_a_report_waits_for_another_one_into_the_same_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_scores(tmp_path / "run/scores/test.parquet", "llm", [1, 2, 2, 3, 2])
    output, render, write_page = tmp_path / "report", write.render_page, write.write_text
    both_rendered, began, may_go_on = threading.Barrier(2), threading.Event(), threading.Event()
    pages = []

    def render_at_once(*arguments: Any, **named: Any) -> str:
        text = render(*arguments, **named)
        both_rendered.wait(timeout=120)
        return text

    def slow_write(path: Path, text: str) -> None:
        pages.append(text)
        write_page(path, text)
        began.set()
        assert may_go_on.wait(timeout=120)

    monkeypatch.setattr(write, "render_page", render_at_once)
    monkeypatch.setattr(write, "write_text", slow_write)
    threads = [
        in_thread(lambda: report_on(tmp_path / "run", output=output)),
        in_thread(lambda: report_on(tmp_path / "run", output=output, measure="terminated")),
    ]
    assert began.wait(timeout=120)
    for thread in threads:
        thread.join(timeout=0.5)
        assert thread.is_alive()
    assert len(pages) == 1  # the second has not begun to write
    may_go_on.set()
    for thread in threads:
        thread.join(timeout=120)
    assert (output / "report.html").read_text() == pages[1]
    measures = {each for each in ("title", "terminated") if f"({each})" in pages[1]}
    assert measures == {json.loads((output / "summary.json").read_text())["measure"]}
    assert not list(output.rglob("*.partial"))


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """Let no file grow beyond a size: what a full disk does, a little earlier."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_two_writers_of_one_folder_do_not_meet(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    with replacing_folder(folder, {}, "") as partial:
        (partial / "config.json").write_text("{}")
        busy = raises("already-running/folder-being-written", "model.partial")
        with busy, replacing_folder(folder, {}, ""):
            pass
        assert (partial / "config.json").is_file()
    assert (folder / "config.json").read_text() == "{}"
    with replacing_folder(folder, {}, "") as partial:  # whoever waited goes on
        (partial / "config.json").write_text("[]")
    assert (folder / "config.json").read_text() == "[]"


def test_a_full_disk_under_a_tokenizer_s_own_saving_is_one_line(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(iter(["one two three"] * 10), vocabulary_size=300)
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer/tokenizer.json").symlink_to("/dev/full")
    full = raises("disk-full/no-room-left", tmp_path, "writing tokenizer")
    with full as error, translate_disk_errors(tmp_path / "tokenizer"):
        tokenizer.save(tmp_path / "tokenizer")
    assert "\n" not in str(error.value)


def test_a_full_disk_under_a_copied_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "from").mkdir()
    (tmp_path / "from/tokenizer.json").write_text("{}" * 1000)
    full = raises("disk-full/no-room-left")
    with full, replacing_folder(tmp_path / "to", {}, "") as partial:
        (partial / "tokenizer.json").symlink_to("/dev/full")
        shutil.copytree(tmp_path / "from", partial, dirs_exist_ok=True)
    assert not (tmp_path / "to").exists()


def test_a_disk_that_fails_under_safetensors_is_one_line(tmp_path: Path) -> None:
    raising, path = raises("disk/file-access-failed", "File too large"), tmp_path / "weights"
    with raising, largest_file(1000), translate_disk_errors(path):
        save_file({"weight": torch.zeros(10_000)}, path)


def test_a_mistake_of_this_software_is_no_error_of_a_disk(tmp_path: Path) -> None:
    with pytest.raises(KeyError), translate_disk_errors(tmp_path):
        raise KeyError("name")


@pytest.fixture(params=[0o022, 0o027, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(folder: Path) -> dict[bool, set[int]]:
    """Return the modes of folders (True) and files (False) in a folder."""
    numbers: dict[bool, set[int]] = {True: set(), False: set()}
    for path in folder.rglob("*"):
        numbers[path.is_dir()].add(stat.S_IMODE(path.stat().st_mode))
    return numbers


def test_modes_follow_the_umask_in_stores_checkpoints_exports_and_tables(umask: int, tmp_path: Path) -> None:
    prepare_store(settings_of(small_run(tmp_path, num_people=15)))
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    fragment: Any = SimpleNamespace(
        is_owned=True, numel=2, weight=torch.ones(2), moments={}, scales={}, name="w", shape=(2,), start=0, block_offset=0
    )  # fmt: skip
    assert len(write_fragments([[fragment]], checkpoint, rank=0)) == 1
    with replacing_folder(tmp_path / "export", {}, "") as partial:
        save_file({"weight": torch.ones(2)}, partial / "model.safetensors")
    write_scores(tmp_path / "scores/test.parquet", "llm", [1, 2, 2, 3, 2])
    assert modes(tmp_path) == {True: {0o777 & ~umask}, False: {0o666 & ~umask}}


def test_a_refused_prepare_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise TitleBoundaryError("a title begins inside a token")

    monkeypatch.setattr(build, "title_token_ids", refuse)
    with pytest.raises(TitleBoundaryError):
        prepare_store(settings_of(small_run(tmp_path / "new", num_people=15)))
    assert list(tmp_path.iterdir()) == []


def test_a_lock_whose_file_was_removed_is_taken_anew_by_those_who_waited(tmp_path: Path) -> None:
    path, order = tmp_path / "lock", list[str]()

    def wait() -> None:
        with file_lock(path, busy=None):
            order.append("second")
            with raises("already-running/locked-by-another-process", "busy"), file_lock(path, busy="busy"):
                pass
            order.append("alone")

    second = None
    with pytest.raises(ZeroDivisionError), file_lock(path, busy=None):
        second = in_thread(wait)
        second.join(timeout=0.3)
        order.append("first")
        raise ZeroDivisionError
    assert second is not None
    second.join(timeout=30)
    assert order == ["first", "second", "alone"]


@pytest.mark.parametrize(
    "error",
    [OSError(24, os.strerror(24), "file"), RuntimeError("socket: Too many open files"), Exception("x (os error 24)")],
)
def test_too_many_open_files_are_one_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(settings: ReportSettings) -> None:
        raise error

    monkeypatch.setattr(cli, "guard_output", lambda: None)  # it would take pytest's streams away
    monkeypatch.setattr("sys.argv", ["report.py", "runs=[x]"])
    with pytest.raises(SystemExit) as ended:
        launch(ReportSettings, "report", fail, "")
    assert ended.value.code == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("error: too many open files: this system lets a process have ")


def test_a_path_that_no_file_can_have_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path = "a" * 300
    monkeypatch.setattr(cli, "guard_output", lambda: None)
    monkeypatch.setattr("sys.argv", ["report.py", f"runs=[{path}]"])
    with pytest.raises(SystemExit) as ended:
        launch(ReportSettings, "report", lambda settings: Path(settings.runs[0]).exists(), "")
    assert ended.value.code == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"error: cannot use {path}: File name too long; fix that, or name another folder")


def test_a_folder_is_on_the_disk_before_an_older_one_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync = files.fsync_path

    def flush(path: Path) -> None:
        fsync(path)
        events.append(path.name + (" beside the old" if (tmp_path / "folder/old").exists() else ""))

    monkeypatch.setattr(files, "fsync_path", flush)
    for name in ("old", "new"):
        with replacing_folder(tmp_path / "folder", {}, "move it") as partial:
            (partial / name).write_text(name)
        assert [path.name for path in sorted((tmp_path / "folder").iterdir())] == ["laborllm_dist.json", name]
    # The old one goes after the new one's files and their folder are on the disk, and before the new name is.
    assert events[-3:] == ["new beside the old", "folder.partial beside the old", tmp_path.name]
