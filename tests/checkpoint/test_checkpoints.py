"""Checkpoints: what is whole is found, what is damaged is passed over, and nothing good goes in its favor."""

from __future__ import annotations

import dataclasses
import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.checkpoints import change_manifest, flip_a_bit, write_checkpoint
from helpers.errors import raises
from helpers.runs import settings_of, small_run
from helpers.trained_runs import ONE_RANK

from laborllm_dist.checkpoint import manifest
from laborllm_dist.checkpoint import save as checkpoint_save
from laborllm_dist.checkpoint.export import exported_step
from laborllm_dist.checkpoint.load import full_weights
from laborllm_dist.checkpoint.manifest import check_checkpoint, read_manifest
from laborllm_dist.checkpoint.optimizer_shards import OptimizerShard
from laborllm_dist.checkpoint.save import (
    checkpoint_folder,
    newest_checkpoint,
    run_of_checkpoints,
    save_state,
    save_total_limit,
)
from laborllm_dist.config.run import RunSettings
from laborllm_dist.io.run_directory import RunDirectory, create_or_resume
from laborllm_dist.store.build import prepare_store
from laborllm_dist.training.state import INITIAL_STATE, TrainerState, state_from_values
from laborllm_dist.training.train import train


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_weights_are_put_together_from_fragments(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, 3)
    weights = dict(full_weights(folder, read_manifest(folder)))
    assert weights["w"].tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_a_rank_cuts_its_fragments_into_files_of_a_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flat = torch.arange(9, dtype=torch.float32)
    moments = {"exp_avg": -flat, "exp_avg_sq": flat**2}

    def fragment(name: str, start: int, stop: int, *, is_owned: bool = True) -> OptimizerShard:
        views = {kind: tensor[start:stop] for kind, tensor in moments.items()}
        return OptimizerShard(name, (stop - start,), 0, flat[start:stop], views, {}, flat, start, is_owned)

    # 4 elements of 3 numbers of 4 bytes are 48 bytes; the last weight is another rank's.
    groups = [[fragment("a", 0, 4)], [fragment("b", 4, 5), fragment("c", 5, 8), fragment("d", 8, 9, is_owned=False)]]
    monkeypatch.setattr(checkpoint_save, "FILE_BYTES", 48)
    files = checkpoint_save.write_fragments(groups, tmp_path, rank=3)
    assert {name: [place.name for place in entry.fragments] for name, entry in files.items()} == {
        "rank_00003_000.safetensors": ["a"],
        "rank_00003_001.safetensors": ["b", "c"],
    }
    made = manifest.CheckpointManifest(step=1, run="r", world_size=1, stage=1, state={}, files=files)
    weights = {name: weight.tolist() for name, weight in full_weights(tmp_path, made)}
    assert weights == {"a": [0.0, 1.0, 2.0, 3.0], "b": [4.0], "c": [5.0, 6.0, 7.0]}


def test_the_newest_whole_checkpoint_is_taken_and_the_others_are_named_and_set_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folders = [write_checkpoint(tmp_path, step) for step in (1, 2, 3, 4, 5)]
    (folders[4] / "manifest.json").unlink()
    (folders[3] / "manifest.json").write_text('{"step": 4')
    flip_a_bit(folders[2] / "rank_00001_000.safetensors")
    (folders[1] / "rank_00000_000.safetensors").write_bytes(b"short")
    newest = newest_checkpoint(tmp_path)
    warnings = caplog.messages
    assert newest is not None
    assert newest[1].step == 1
    assert [
        "never finished" in warnings[0],
        "is damaged" in warnings[1],
        "SHA-256" in warnings[2],
        "5 bytes" in warnings[3],
    ] == [True] * 4
    assert names(tmp_path) == ["step_00000001", *(f"step_0000000{step}.damaged" for step in (2, 3, 4, 5))]
    assert newest_checkpoint(tmp_path / "nowhere") is None


def test_a_file_that_the_disk_cannot_read_is_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path, 1)

    def unreadable(path: Path) -> str:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(manifest, "sha256_of", unreadable)
    with raises("checkpoint/unreadable-file", "rank_00000_000.safetensors"):
        check_checkpoint(checkpoint_folder(tmp_path, 1))


def test_a_file_that_may_not_be_read_is_not_taken_for_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path, 1)

    def forbidden(path: Path) -> str:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(manifest, "sha256_of", forbidden)
    with raises("disk/file-access-failed", "rank_00000_000.safetensors", "Permission denied"):
        newest_checkpoint(tmp_path)
    assert names(tmp_path) == ["step_00000001"]


def begun(folder: Path) -> tuple[RunSettings, RunDirectory]:
    """Begin a run as training does, up to its first step."""
    settings = settings_of(small_run(folder))
    store = prepare_store(settings)
    return settings, create_or_resume(settings, {"fingerprint": store.fingerprint, "folder": str(store.folder)}, None)


def test_the_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    settings, run = begun(tmp_path)
    write_checkpoint(run.checkpoints, 1, run="other")
    flip_a_bit(write_checkpoint(run.checkpoints, 2, run=run.fingerprint) / "rank_00000_000.safetensors")
    with raises("checkpoint/checkpoint-of-another-run", "1"):
        train(settings, ONE_RANK)


def test_a_damaged_checkpoint_takes_no_place_among_the_newest(tmp_path: Path) -> None:
    for step in (41, 42):
        write_checkpoint(tmp_path, step)
    flip_a_bit(write_checkpoint(tmp_path, 48) / "manifest.json")
    newest = newest_checkpoint(tmp_path)
    assert newest is not None and newest[1].step == 42
    for step in (43, 44):
        write_checkpoint(tmp_path, step)
        save_total_limit(tmp_path, saved_step=step, num_newest=1, best_step=None)
        assert check_checkpoint(checkpoint_folder(tmp_path, step)).step == step
    # Nor does one that nobody has looked at yet: what was saved last stays.
    (write_checkpoint(tmp_path, 47) / "manifest.json").unlink()
    write_checkpoint(tmp_path, 45)
    save_total_limit(tmp_path, saved_step=45, num_newest=1, best_step=None)
    assert names(tmp_path) == ["step_00000045", "step_00000047", "step_00000048.damaged"]


def test_where_no_checkpoint_is_whole_nothing_is_started_from_nothing(tmp_path: Path) -> None:
    for step in (1, 2):
        flip_a_bit(write_checkpoint(tmp_path, step) / "rank_00000_000.safetensors")
    for _ in range(2):
        with raises("checkpoint/no-valid-checkpoint"):
            newest_checkpoint(tmp_path)
        assert names(tmp_path) == ["step_00000001", "step_00000002"]
    for step in (1, 2):
        checkpoint_folder(tmp_path, step).rename(tmp_path / f"step_0000000{step}.damaged")
    with raises("checkpoint/no-valid-checkpoint"):
        newest_checkpoint(tmp_path)
    other = tmp_path / "other"
    (other / "step_00000001.partial").mkdir(parents=True)  # a kill in the very first save: nothing was there to lose
    assert newest_checkpoint(other) is None


def test_another_format_is_refused_and_never_passed_over(tmp_path: Path) -> None:
    for step in (1, 2):
        write_checkpoint(tmp_path, step)
    change_manifest(checkpoint_folder(tmp_path, 2), lambda values: values.update(format=4, more=[]), signed=False)
    for look in (lambda: newest_checkpoint(tmp_path), lambda: run_of_checkpoints(tmp_path)):
        with raises("unsupported-format/unsupported-checkpoint-format", "4", "3"):
            look()
    assert names(tmp_path) == ["step_00000001", "step_00000002"]


def files_of(values: dict[str, Any]) -> list[dict[str, Any]]:
    return list(values["files"].values())


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "step": lambda values: values.update(step=18),
    "state": lambda values: values.update(state={"step": 18}),
    "start": lambda values: files_of(values)[0]["fragments"][0].update(start=1),
    "name": lambda values: files_of(values)[0]["fragments"][0].update(name="v"),
    "no files": lambda values: values.update(files={}),
    "format": lambda values: values.pop("format"),
}
STRUCTURES: dict[str, Callable[[dict[str, Any]], object]] = {
    "files": lambda values: values.update(files=[]),
    "bytes": lambda values: files_of(values)[0].pop("bytes"),
    "state": lambda values: values.update(state=3),
    "shape": lambda values: files_of(values)[0]["fragments"][0].update(shape=["5"]),
    "step": lambda values: values.update(step="1"),
    "more": lambda values: values.update(more=1),
    "run": lambda values: values.pop("run"),
}


@pytest.mark.parametrize("change", [*CHANGES.values(), *STRUCTURES.values()], ids=[*CHANGES, *STRUCTURES])
def test_a_manifest_that_has_changed_is_damaged_and_the_checkpoint_before_is_taken(change, tmp_path: Path) -> None:
    for step in (1, 2):
        write_checkpoint(tmp_path, step)
    change_manifest(checkpoint_folder(tmp_path, 2), change, signed=False)
    newest = newest_checkpoint(tmp_path)
    assert newest is not None and newest[1].step == 1


@pytest.mark.parametrize("change", STRUCTURES.values(), ids=STRUCTURES)
def test_a_manifest_of_other_types_is_damaged_even_where_its_checksum_holds(change, tmp_path: Path) -> None:
    change_manifest(write_checkpoint(tmp_path, 1), change, signed=True)
    with raises("checkpoint/damaged-manifest", "manifest.json"):
        check_checkpoint(checkpoint_folder(tmp_path, 1))


@pytest.mark.parametrize("content", [b"", b"[]", b"3", b"\xff\xfe\x00", b"null"])
def test_a_manifest_that_is_none_is_damaged(content: bytes, tmp_path: Path) -> None:
    (write_checkpoint(tmp_path, 1) / "manifest.json").write_bytes(content)
    with raises("checkpoint/damaged-manifest", "manifest.json"):
        check_checkpoint(checkpoint_folder(tmp_path, 1))


def test_a_checkpoint_that_lacks_elements_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, 1)
    change_manifest(folder, lambda values: values["files"].pop("rank_00001_000.safetensors"), signed=True)
    with raises("checkpoint/missing-elements", "3", "5", "weight", "w"):
        dict(full_weights(folder, check_checkpoint(folder)))


def test_the_newest_and_the_best_checkpoints_are_kept(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40):
        write_checkpoint(tmp_path, step)
    save_total_limit(tmp_path, saved_step=40, num_newest=2, best_step=10)
    assert names(tmp_path) == ["step_00000010", "step_00000030", "step_00000040"]


def after(step: int, *validations: tuple[int, float]):
    """Return a state after so many steps, with losses of validations after some of them."""
    state = INITIAL_STATE
    losses = dict(validations)
    for done in range(1, step + 1):
        state = state.after_step(1.0, 10, window=3)
        state = state.after_validation(losses[done]) if done in losses else state
    return state


def test_the_best_step_and_what_came_after_it_by_hand() -> None:
    state = after(9, (2, 0.5), (4, 0.25), (6, 0.25), (8, 0.75))
    assert (state.best_step, state.validations_since_best, state.is_validated()) == (4, 2, False)
    assert (state.without_best().best_step, state.without_best().validations_since_best) == (6, 1)
    assert (INITIAL_STATE.best_step, INITIAL_STATE.validations_since_best) == (None, 0)
    assert state_from_values(vars_of(state)) == state


def vars_of(state) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(state)))
    return values


@pytest.mark.parametrize("change", [{"more": 1}, {"step": "1"}, {"validations": [3]}, {"left_out": None}])
def test_a_state_of_other_types_is_refused(change: dict[str, Any]) -> None:
    with raises("checkpoint/invalid-trainer-state"):
        state_from_values({**vars_of(INITIAL_STATE), **change})
    fewer = vars_of(INITIAL_STATE)
    del fewer["tokens_seen"]
    with raises("checkpoint/invalid-trainer-state", "tokens_seen is missing"):
        state_from_values(fewer)


def test_steps_left_out_in_a_row_by_hand() -> None:
    state = INITIAL_STATE.after_skip().after_step(1.0, 10, window=3).after_skip().after_skip()
    assert (state.num_left_out_in_a_row, state.num_updates) == (2, 1)
    assert state.after_step(1.0, 10, window=3).num_left_out_in_a_row == 0
    assert INITIAL_STATE.after_skip().num_left_out_in_a_row == 1


class Resumed(Exception):
    """The state of the run is settled, and its model comes next."""


def test_where_the_best_checkpoint_is_lost_the_best_that_is_left_is_taken_and_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_model(*_: object) -> None:
        raise Resumed

    monkeypatch.setattr("laborllm_dist.training.train.budget_of", no_model)
    state = after(48, (36, 0.5), (42, 0.1), (45, 0.2), (47, 0.3))
    settings, run = begun(tmp_path)
    for step in (42, 45, 47, 48):
        write_checkpoint(run.checkpoints, step, run=run.fingerprint)
    save_state(run.checkpoints, 48, dataclasses.asdict(state))

    def resumed() -> TrainerState:
        with pytest.raises(Resumed):
            train(settings, ONE_RANK)
        return state_from_values(check_checkpoint(checkpoint_folder(run.checkpoints, 48)).state)

    assert resumed() == state
    assert "lost" not in capsys.readouterr().out
    flip_a_bit(checkpoint_folder(run.checkpoints, 42) / "rank_00001_000.safetensors")
    assert resumed().best_step == 45
    *_, lost, left = capsys.readouterr().out.splitlines()
    assert "the best weights, of step 42, are lost" in lost
    assert left == "train: best on validation of what is left: step 45"
    for step in (45, 47):
        (checkpoint_folder(run.checkpoints, step) / "manifest.json").unlink()
    assert resumed().best_step is None
    assert capsys.readouterr().out.endswith("there is none, until the next validation\n")


def test_a_state_is_changed_without_touching_the_weights(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, 1)
    before = check_checkpoint(folder)
    save_state(tmp_path, 1, {"step": 1})
    now = check_checkpoint(folder)
    assert (now.state, now.files) == ({"step": 1}, before.files)


@pytest.mark.parametrize("content", [b"", b'{"step": ', b"[]", b"{}", b'{"run": "r", "step": null}', b"\xff\xfe"])
def test_an_export_that_does_not_say_what_it_is_counts_as_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "laborllm_dist.json").write_bytes(content)
    assert exported_step(tmp_path, "r") is None
    (tmp_path / "laborllm_dist.json").write_text('{"run": "r", "step": 3}')
    assert (exported_step(tmp_path, "r"), exported_step(tmp_path, "other")) == (3, None)
