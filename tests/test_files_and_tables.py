"""Checkpoints, score tables, run folders, logs: what is broken is refused, what is whole survives."""

from __future__ import annotations

import errno
import importlib.metadata
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from worlds import settings_of, small_run

from laborllm_dist.baselines.frequency import FrequencyTable, first_order_table, marginal_table
from laborllm_dist.careers.history import CareerHistory, Job, OccupationVocabulary
from laborllm_dist.careers.template import CareerText
from laborllm_dist.engine import checkpoint
from laborllm_dist.engine.checkpoint import (
    check_checkpoint,
    checkpoint_folder,
    keep_checkpoints,
    newest_checkpoint,
    read_manifest,
)
from laborllm_dist.engine.fragments import Fragment
from laborllm_dist.engine.restore import full_weights
from laborllm_dist.errors import CheckpointError, DiskFull, RunError, ScoreTableError
from laborllm_dist.files import no_room_is_said, sha256_of, write_text, writing
from laborllm_dist.run_folder import open_run, read_run
from laborllm_dist.score_table import SCORE_SCHEMA, read_score_table, write_score_table
from laborllm_dist.scored_files import ScoreTableInfo
from laborllm_dist.scoring.evaluate import observation_facts
from laborllm_dist.settings import TrackingSettings
from laborllm_dist.tokens.pooling import TrainingPool
from laborllm_dist.tokens.store import CareerRows, store_rows
from laborllm_dist.tokens.tokenise import TokenisedCareer
from laborllm_dist.training.run_log import RunLog


def write_checkpoint(checkpoints: Path, step: int) -> Path:
    """Write a checkpoint of two ranks by hand: a weight of 5 elements, 3 on one rank and 2 on the other."""
    folder = checkpoint_folder(checkpoints, step)
    folder.mkdir(parents=True)
    files = {}
    for rank, (start, values) in enumerate([(0, [1.0, 2.0, 3.0]), (3, [4.0, 5.0])]):
        path = folder / f"rank_{rank:05d}_000.safetensors"
        save_file({f"{kind}/w": torch.tensor(values) for kind in ("weight", "exp_avg", "exp_avg_sq")}, path)
        place = {"name": "w", "shape": [5], "start": start, "numel": len(values), "block_offset": 0}
        files[path.name] = {"bytes": path.stat().st_size, "sha256": sha256_of(path), "fragments": [place]}
    manifest = {"format": 2, "step": step, "run": "r", "world_size": 2, "stage": 2, "state": {}, "files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_weights_are_put_together_from_fragments(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, 3)
    weights = dict(full_weights(folder, read_manifest(folder)))
    assert weights["w"].tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_a_rank_cuts_its_fragments_into_files_of_a_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flat = torch.arange(9, dtype=torch.float32)
    moments = {"exp_avg": -flat, "exp_avg_sq": flat**2}

    def fragment(name: str, start: int, stop: int, *, is_mine: bool = True) -> Fragment:
        views = {kind: tensor[start:stop] for kind, tensor in moments.items()}
        return Fragment(name, (stop - start,), 0, flat[start:stop], views, {}, flat, start, is_mine)

    # 4 elements of 3 numbers of 4 bytes are 48 bytes; the last weight is another rank's.
    groups = [[fragment("a", 0, 4)], [fragment("b", 4, 5), fragment("c", 5, 8), fragment("d", 8, 9, is_mine=False)]]
    monkeypatch.setattr(checkpoint, "FILE_BYTES", 48)
    files = checkpoint.write_fragments(groups, tmp_path, rank=3)
    assert {name: [place["name"] for place in entry["fragments"]] for name, entry in files.items()} == {
        "rank_00003_000.safetensors": ["a"],
        "rank_00003_001.safetensors": ["b", "c"],
    }
    manifest = checkpoint.CheckpointManifest(step=1, run="r", world_size=1, stage=1, state={}, files=files)
    found = {name: weight.tolist() for name, weight in full_weights(tmp_path, manifest)}
    assert found == {"a": [0.0, 1.0, 2.0, 3.0], "b": [4.0], "c": [5.0, 6.0, 7.0]}


def test_the_newest_whole_checkpoint_is_taken_and_the_others_are_named(tmp_path: Path) -> None:
    folders = [write_checkpoint(tmp_path, step) for step in (1, 2, 3, 4, 5)]
    (folders[4] / "manifest.json").unlink()
    (folders[3] / "manifest.json").write_text('{"step": 4')
    changed = folders[2] / "rank_00001_000.safetensors"
    content = bytearray(changed.read_bytes())
    content[-1] ^= 1
    changed.write_bytes(content)
    (folders[1] / "rank_00000_000.safetensors").write_bytes(b"short")
    said: list[str] = []
    found = newest_checkpoint(tmp_path, said.append)
    assert found is not None
    assert found[1].step == 1
    assert ["never finished" in said[0], "is damaged" in said[1], "SHA-256" in said[2], "5 bytes" in said[3]] == [
        True
    ] * 4
    assert newest_checkpoint(tmp_path / "nowhere", said.append) is None


def test_a_checkpoint_that_lacks_elements_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, 1)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["files"]["rank_00001_000.safetensors"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="holds 3 of 5 elements of weight of w"):
        dict(full_weights(folder, check_checkpoint(folder)))


def test_the_newest_and_the_best_checkpoints_are_kept(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40):
        write_checkpoint(tmp_path, step)
    keep_checkpoints(tmp_path, num_newest=2, best_step=10)
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["step_00000010", "step_00000030", "step_00000040"]


def scores(**changes: object) -> pa.Table:
    row = {
        "survey": "S", "person": "1", "position": 0, "year": 1984, "occupation": "a", "previous": None,
        "birth_year": 1960, "gender": None, "ethnicity": None, "region": None, "education": None, "num_tokens": 2,
        "title": -1.0, "terminated": -1.5,
    }  # fmt: skip
    return pa.Table.from_pylist([{**row, "position": 1}, {**row, **changes}], schema=SCORE_SCHEMA)


INFO = ScoreTableInfo(model="m", split="test", careers="c", code="0", details={"b": "2", "a": "1"})


def test_a_score_table_comes_back_sorted_with_its_origin(tmp_path: Path) -> None:
    write_score_table(scores(), INFO, tmp_path / "t.parquet")
    table, info = read_score_table(tmp_path / "t.parquet")
    assert info == INFO
    assert table["position"].to_pylist() == [0, 1]
    write_score_table(scores().take([1, 0]), INFO, tmp_path / "u.parquet")
    assert (tmp_path / "t.parquet").read_bytes() == (tmp_path / "u.parquet").read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"position": 1}, "observation 1 of person '1' of S stands 2 times"),
        ({"title": float("nan")}, "title log-likelihood of person '1', observation 0 is nan"),
        ({"terminated": 0.5}, "terminated log-likelihood of person '1', observation 0 is 0.5"),
        ({"title": float("-inf")}, "title log-likelihood .* is -inf"),
    ],
)
def test_impossible_scores_are_refused(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(ScoreTableError, match=message):
        write_score_table(scores(**changes), INFO, tmp_path / "t.parquet")
    assert list(tmp_path.iterdir()) == []


def test_missing_and_damaged_score_tables_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ScoreTableError, match="no score table at"):
        read_score_table(tmp_path / "t.parquet")
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    with pytest.raises(ScoreTableError, match="is no score table or is damaged"):
        read_score_table(tmp_path / "t.parquet")
    with pytest.raises(ScoreTableError, match="do not have the columns"):
        write_score_table(scores().drop_columns(["title"]), INFO, tmp_path / "u.parquet")


def test_a_full_disk_is_one_clear_line_and_leaves_the_old_file(tmp_path: Path) -> None:
    write_text(tmp_path / "f", "old")
    with (
        pytest.raises(DiskFull, match=r"no room left on the disk of .* while writing f; make room"),
        writing(tmp_path / "f"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert (tmp_path / "f").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_a_full_disk_is_known_from_safetensors_too(tmp_path: Path) -> None:
    text = "Error while serializing: I/O error: No space left on device (os error 28)"
    with pytest.raises(DiskFull, match="while writing w"), no_room_is_said(tmp_path / "w"):
        raise SafetensorError(text)
    with pytest.raises(SafetensorError, match="other"), no_room_is_said(tmp_path / "w"):
        raise SafetensorError("other")


STORE = {"fingerprint": "store", "folder": "stores/x"}


def begun_run(folder: Path, *more: str, weights: str | None = None, store: str = "store"):
    """Open a run that has a checkpoint already."""
    run = open_run(settings_of(small_run(folder, *more)), {**STORE, "fingerprint": store}, weights)
    if not list(run.checkpoints.iterdir()):
        write_checkpoint(run.checkpoints, 1)
    return run


def test_a_run_goes_on_with_the_same_settings_only(tmp_path: Path) -> None:
    first = begun_run(tmp_path)
    free = ["ranks.timeout_minutes=9", "zero=stage3", "batch.rows_per_pass=7", "training.keep_checkpoints=5"]
    assert begun_run(tmp_path, *free) == first
    with pytest.raises(RunError, match=r"made with other settings \(training.epochs: 3 then, 4 now\)"):
        begun_run(tmp_path, "training.epochs=4")
    with pytest.raises(RunError, match=r"made with other settings \(the data or the weights behind it\)"):
        begun_run(tmp_path, store="other")
    with pytest.raises(RunError, match=r"made with other settings \(the data or the weights behind it\)"):
        begun_run(tmp_path, weights="other")
    assert read_run(first.path)[1] == settings_of(small_run(tmp_path, *free))


def test_settings_may_be_mended_until_there_is_a_checkpoint(tmp_path: Path) -> None:
    first = open_run(settings_of(small_run(tmp_path)), STORE, None)
    second = open_run(settings_of(small_run(tmp_path, "batch.row_length=2000")), STORE, None)
    assert (second.path, second.fingerprint != first.fingerprint) == (first.path, True)


def test_versions_of_every_start_are_kept(tmp_path: Path) -> None:
    run = begun_run(tmp_path)
    record = json.loads((run.path / "settings.json").read_text())
    record["versions"][0]["torch"] = "1.0"
    (run.path / "settings.json").write_text(json.dumps(record))
    begun_run(tmp_path)
    begun_run(tmp_path)
    versions = json.loads((run.path / "settings.json").read_text())["versions"]
    assert [each["torch"] for each in versions] == ["1.0", importlib.metadata.version("torch")]


def test_a_run_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    begun_run(tmp_path)
    with pytest.raises(RunError, match=r"no run at .*smal \(no settings.json\); runs there: small"):
        read_run(tmp_path / "runs/smal")
    (tmp_path / "runs/small/settings.json").write_text("{")
    with pytest.raises(RunError, match="is damaged"):
        read_run(tmp_path / "runs/small")


def test_the_log_drops_what_a_kill_has_undone(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in range(1, 8)) + '{"step": 8, "lo')
    log = RunLog(path, TrackingSettings(wandb="off", project="p"), name="n", settings={}, step=5)
    log.write({"step": 6, "loss": 0.1})
    log.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert lines[-1]["loss"] == 0.1


def test_what_is_said_of_a_step_later_goes_into_its_line(tmp_path: Path) -> None:
    """A stop during validation leaves the step's line without it; the next start adds it there."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.25}\n')
    log = RunLog(path, TrackingSettings(wandb="off", project="p"), name="n", settings={}, step=2)
    log.write({"step": 2, "validation": 0.75})
    log.write({"step": 3, "left_out": "why"})
    log.write({"step": 3, "loss": 0.125})
    log.write({"step": 4, "loss": 0.0})
    log.close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1, "loss": 0.5},
        {"step": 2, "loss": 0.25, "validation": 0.75},
        {"step": 3, "left_out": "why", "loss": 0.125},
        {"step": 4, "loss": 0.0},
    ]


def rows_of(*careers: str) -> CareerRows:
    """Return careers of occupations written as letters, such as "aab"."""
    histories = [
        CareerHistory(
            str(at), "S", None, None, None, None, tuple(Job(1980 + year, code) for year, code in enumerate(jobs))
        )
        for at, jobs in enumerate(careers)
    ]
    tokenised = [TokenisedCareer(ids=(0,), title_spans=((1, 2),) * len(jobs)) for jobs in careers]
    vocabulary = OccupationVocabulary(codes=("a", "b", "c"), titles=("A", "B", "C"))
    texts = [CareerText("", ((0, 1),) * len(jobs)) for jobs in careers]
    return CareerRows(store_rows(histories, texts, tokenised, vocabulary.index_of()), vocabulary)


def everybody(careers: CareerRows) -> TrainingPool:
    return TrainingPool(np.arange(len(careers)), np.ones(len(careers)))


def test_transitions_begin_anew_with_every_person() -> None:
    before, after = rows_of("aab", "c").transitions()
    assert before.tolist() == [3, 0, 0, 3]  # 3: no occupation yet
    assert after.tolist() == [0, 0, 1, 2]


def test_frequency_tables_by_hand() -> None:
    train, validation = rows_of("aab", "ab"), rows_of("aaa")
    marginal = marginal_table(train, everybody(train))
    # a 3, b 2, c 0 of 5 observations, one added to each.
    np.testing.assert_allclose(np.exp(marginal.log_probabilities[0]), [4 / 8, 3 / 8, 1 / 8])
    np.testing.assert_allclose(marginal.scores(validation), np.log([4 / 8] * 3))
    table = first_order_table(train, everybody(train), validation)
    strength = float(table.details["smoothing"].split()[0])
    # After a: once a, twice b; drawn towards the marginal.
    wanted = (np.array([1, 2, 0]) + strength * np.array([4, 3, 1]) / 8) / (3 + strength)
    np.testing.assert_allclose(np.exp(table.log_probabilities[0]), wanted)
    np.testing.assert_allclose(np.exp(table.log_probabilities).sum(axis=1), 1.0)
    others = [first_at(train, other).scores(validation).sum() for other in (0.125, 1.0, 16.0, 1024.0)]
    assert table.scores(validation).sum() >= max(others)


def first_at(train: CareerRows, strength: float) -> FrequencyTable:
    before, after = train.transitions()
    marginal = np.exp(marginal_table(train, everybody(train)).log_probabilities[0])
    counts = np.array([[np.sum((before == x) & (after == y)) for y in range(3)] for x in range(4)])
    rows = (counts + strength * marginal) / (counts.sum(axis=1, keepdims=True) + strength)
    return FrequencyTable(np.log(rows), {})


def test_observation_facts_by_hand() -> None:
    table = observation_facts(rows_of("ab", "c"))
    assert table["career"].to_pylist() == [0, 0, 1]
    assert table["position"].to_pylist() == [0, 1, 0]
    assert table["occupation"].to_pylist() == ["a", "b", "c"]
    assert table["previous"].to_pylist() == [None, "a", None]
    assert table["year"].to_pylist() == [1980, 1981, 1980]
