"""A run finds its token store from whichever folder a command is started, and where both were moved together."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers.errors import raises
from helpers.processes import PROJECT
from helpers.runs import settings_of, small_run

from laborllm_dist.distributed.context import DistributedContext
from laborllm_dist.io.files import sha256_of_json, write_json
from laborllm_dist.io.run_directory import create_or_resume, read_run
from laborllm_dist.store.build import prepare_store
from laborllm_dist.store.store import open_store
from laborllm_dist.training import train


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which a store and a run were made, with relative paths in the settings, as they come."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        settings = settings_of(
            [*small_run(Path(), num_people=40), "name=small", "output_dir=runs", "store.root=stores"]
        )
        store = prepare_store(settings)
        create_or_resume(settings, {"fingerprint": store.fingerprint, "folder": str(store.folder)}, None)
    return folder


def test_a_run_finds_its_store_from_any_folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place, path in ((made, "runs/small"), (made / "runs", "small"), (tmp_path, str(made / "runs/small"))):
        monkeypatch.chdir(place)
        assert open_store(read_run(Path(path))[2]).num_people("train") > 0
    monkeypatch.chdir(made / "runs/small")
    assert read_run(Path())[2] == next((made / "stores").glob("*[0-9a-f]"))


def test_a_run_and_its_store_may_be_moved_together(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "moved")
    info = read_run(tmp_path / "moved/runs/small")[2]
    assert info.is_relative_to(tmp_path / "moved")
    assert open_store(info).num_people("train") > 0


def test_a_run_that_was_moved_alone_finds_its_store_where_it_was(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "runs/small", tmp_path / "small")
    assert read_run(tmp_path / "small")[2].is_relative_to(made)


def test_another_store_in_the_place_is_not_taken_for_the_run_s(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "moved")
    (store,) = (tmp_path / "moved/stores").glob("*[0-9a-f]")
    write_json(store / "manifest.json", {"fingerprint": "of another"})
    assert read_run(tmp_path / "moved/runs/small")[2].is_relative_to(made)


def test_records_of_earlier_versions_find_a_store_by_its_relative_path(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    shutil.copytree(made, tmp_path / "earlier")
    record = tmp_path / "earlier/runs/small/settings.json"
    values = json.loads(record.read_text())
    del values["sha256"], values["store"]["from_run"]
    values["store"]["folder"] = str(Path(values["store"]["folder"]).relative_to(made.resolve()))
    write_json(record, {**values, "sha256": sha256_of_json(values)})
    monkeypatch.chdir(PROJECT)
    assert open_store(read_run(tmp_path / "earlier/runs/small")[2]).num_people("train") > 0


@pytest.mark.parametrize("way", ["", "../../../../../../..", "x" * 5000])
def test_a_way_to_the_store_that_leads_nowhere_is_no_matter(made: Path, tmp_path: Path, way: object) -> None:
    shutil.copytree(made / "runs/small", tmp_path / "small")
    record = tmp_path / "small/settings.json"
    values = json.loads(record.read_text())
    del values["sha256"]
    values["store"]["from_run"] = way
    write_json(record, {**values, "sha256": sha256_of_json(values)})
    assert read_run(tmp_path / "small")[2].is_relative_to(made)


@pytest.mark.parametrize("way", [None, 3, "a\0b"])
def test_a_way_that_is_no_path_is_a_damaged_record(made: Path, tmp_path: Path, way: object) -> None:
    shutil.copytree(made / "runs/small", tmp_path / "small")
    record = tmp_path / "small/settings.json"
    values = json.loads(record.read_text())
    del values["sha256"]
    values["store"]["from_run"] = way
    write_json(record, {**values, "sha256": sha256_of_json(values)})
    with raises("run/damaged-run-record", "settings.json"):
        read_run(tmp_path / "small")


def test_a_training_started_from_another_folder_makes_no_second_store(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [*small_run(Path(), num_people=40), "name=small", f"output_dir={made}/runs", "store.root=stores"]
    opened: list[Path] = []

    def end(settings: object, store: object, ranks: object) -> None:
        opened.append(store.folder)  # type: ignore[attr-defined]
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "_check_and_plan", end)
    with pytest.raises(KeyboardInterrupt):
        train.train(settings_of(arguments), DistributedContext(0, 1, 0, torch.device("cpu")))
    assert opened[0].is_relative_to(made)
    assert not (tmp_path / "stores").exists()
