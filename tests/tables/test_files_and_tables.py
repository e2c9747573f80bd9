"""Score tables, run folders, logs: what is broken is refused, what is whole survives."""

from __future__ import annotations

import errno
import importlib.metadata
import json
import math
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.errors import raises
from helpers.runs import settings_of, small_run
from helpers.scores import INFO, scores
from helpers.scoring_cases import rows_of_codes
from helpers.trained_runs import STORE, begun_run
from safetensors import SafetensorError

from laborllm_dist.baselines.frequency import FrequencyTable, first_order_table, marginal_table
from laborllm_dist.careers.occupations.vocabulary import read_vocabulary
from laborllm_dist.config.run import TrackingSettings
from laborllm_dist.evaluation.tasks import observation_facts
from laborllm_dist.io.files import atomic_write, file_lock, translate_disk_errors, write_text
from laborllm_dist.io.run_directory import create_or_resume, read_run
from laborllm_dist.store.pooling import TrainingPool
from laborllm_dist.store.store import CareerTable
from laborllm_dist.tables.parquet import occupations_of, written_info
from laborllm_dist.tables.scores import read_score_table, score_schema_of, write_score_table
from laborllm_dist.tracking.run_log import RunLog, numbers_of, read_log


def test_a_score_table_comes_back_sorted_with_its_origin(tmp_path: Path) -> None:
    write_score_table(scores(), INFO, tmp_path / "t.parquet")
    table, info = read_score_table(tmp_path / "t.parquet")
    assert info == INFO
    assert table["position"].to_pylist() == [0, 1]
    write_score_table(scores().take([1, 0]), INFO, tmp_path / "u.parquet")
    assert (tmp_path / "t.parquet").read_bytes() == (tmp_path / "u.parquet").read_bytes()


INVALID = "score-table/invalid-log-likelihood"


@pytest.mark.parametrize(
    ("changes", "label", "values"),
    [
        ({"position": 1}, "score-table/duplicate-observation", ("observation 1 of person '1' of S", "2")),
        ({"title": float("nan")}, INVALID, ("title log-likelihood", "person '1', observation 0", "nan")),
        ({"terminated": 0.5}, INVALID, ("terminated log-likelihood", "person '1', observation 0", "0.5")),
        ({"title": float("-inf")}, INVALID, ("title log-likelihood", "person '1', observation 0", "-inf")),
    ],
)
def test_impossible_scores_are_refused(
    changes: dict[str, object], label: str, values: tuple[str, ...], tmp_path: Path
) -> None:
    with raises(label, *values):
        write_score_table(scores(**changes), INFO, tmp_path / "t.parquet")
    assert list(tmp_path.iterdir()) == []


def test_missing_and_damaged_score_tables_are_refused(tmp_path: Path) -> None:
    with raises("score-table/no-table", "score table"):
        read_score_table(tmp_path / "t.parquet")
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    with raises("score-table/unreadable-table", "score table"):
        read_score_table(tmp_path / "t.parquet")
    with raises("score-table/invalid-score-columns"):
        write_score_table(scores().drop_columns(["title"]), INFO, tmp_path / "u.parquet")


def test_a_full_disk_is_one_clear_line_and_leaves_the_old_file(tmp_path: Path) -> None:
    write_text(tmp_path / "f", "old")
    with (
        raises("disk-full/no-room-left", "f"),
        atomic_write(tmp_path / "f"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert (tmp_path / "f").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_a_full_disk_is_known_from_safetensors_too(tmp_path: Path) -> None:
    text = "Error while serializing: I/O error: No space left on device (os error 28)"
    with raises("disk-full/no-room-left", "w"), translate_disk_errors(tmp_path / "w"):
        raise SafetensorError(text)
    with pytest.raises(SafetensorError, match="other"), translate_disk_errors(tmp_path / "w"):
        raise SafetensorError("other")


def test_a_disk_that_refuses_is_one_clear_line_and_a_bug_is_not(tmp_path: Path) -> None:
    for error in (
        OSError(errno.EROFS, "?", "/disk/f"),
        SafetensorError("Error while serializing: I/O error: Input/output error (os error 5)"),
    ):
        with (
            raises("disk/file-access-failed"),
            atomic_write(tmp_path / "f"),
        ):
            raise error
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "f"):
        (tmp_path / "nowhere").read_text()


def test_a_file_where_a_folder_should_be_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with (
        raises("disk/file-access-failed", "runs", "Not a directory"),
        file_lock(tmp_path / "runs/small/lock", busy=None),
    ):
        pass
    with raises("disk/file-access-failed", "runs", "Not a directory"):
        create_or_resume(settings_of(small_run(tmp_path)), STORE, None)


def test_a_run_goes_on_with_the_same_settings_only(tmp_path: Path) -> None:
    first = begun_run(tmp_path)
    free = ["ranks.timeout_minutes=9", "zero=stage3", "batch.micro_batch_size=7", "training.save_total_limit=5"]
    assert begun_run(tmp_path, *free, "training.max_consecutive_skips=3") == first
    assert begun_run(tmp_path, *free) == first
    with raises("run/different-settings", "training.epochs: 3 then, 4 now"):
        begun_run(tmp_path, "training.epochs=4")
    with raises("run/different-settings", "the data or the weights behind it"):
        begun_run(tmp_path, store="other")
    with raises("run/different-settings", "the data or the weights behind it"):
        begun_run(tmp_path, weights="other")
    settings = settings_of(small_run(tmp_path, *free))
    assert read_run(first.path)[1] == settings


def test_a_run_is_read_with_the_gpu_that_it_was_planned_for(tmp_path: Path) -> None:
    run = begun_run(tmp_path, "gpu@plan.gpu=l40s", "plan.num_gpus=3")
    plan = read_run(run.path)[1].plan
    assert (plan.gpu.name, plan.num_gpus) == ("L40S", 3)


@pytest.mark.parametrize("damage", ["{", "[1]", None])
def test_a_damaged_or_missing_record_is_written_anew_from_the_settings_of_the_checkpoints(
    damage: str | None, tmp_path: Path
) -> None:
    record = begun_run(tmp_path).path / "settings.json"
    before = json.loads(record.read_text())
    record.unlink()
    if damage is not None:
        record.write_text(damage)
        with raises("run/damaged-run-record"):
            read_run(record.parent)
    with raises("run/different-settings", "its settings.json is missing or damaged"):
        begun_run(tmp_path, "training.epochs=4")
    assert record.exists() == (damage is not None), "other settings must not take its place"
    begun_run(tmp_path)
    assert json.loads(record.read_text()) == before


def test_settings_may_be_mended_until_there_is_a_checkpoint(tmp_path: Path) -> None:
    first = create_or_resume(settings_of(small_run(tmp_path)), STORE, None)
    second = create_or_resume(settings_of(small_run(tmp_path, "batch.max_seq_length=2000")), STORE, None)
    assert (second.path, second.fingerprint != first.fingerprint) == (first.path, True)


def test_versions_of_every_start_are_kept(tmp_path: Path) -> None:
    run = begun_run(tmp_path)
    record = json.loads((run.path / "settings.json").read_text())
    record["versions"][0]["torch"] = "1.0"
    del record["sha256"]
    (run.path / "settings.json").write_text(json.dumps(record))
    begun_run(tmp_path)
    begun_run(tmp_path)
    versions = json.loads((run.path / "settings.json").read_text())["versions"]
    assert [version["torch"] for version in versions] == ["1.0", importlib.metadata.version("torch")]


def test_a_run_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    begun_run(tmp_path)
    with raises("run/no-run", "smal", "settings.json", "runs there: small"):
        read_run(tmp_path / "runs/smal")
    (tmp_path / "runs/small/settings.json").write_text("{")
    with raises("run/damaged-run-record"):
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


def log_after(path: Path, content: bytes, step: int) -> list[dict[str, object]]:
    """Open a log that holds this at a step, and return its lines."""
    path.write_bytes(content)
    RunLog(path, TrackingSettings(wandb="off", project="p"), name="n", settings={}, step=step).close()
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    "damaged", [b'{"step": 2, "lo', b"[1]", b'{"loss": 2}', b'{"step": 2, "x": "\xff"}', b"\xff\xfe"]
)
def test_a_damaged_line_of_the_log_costs_no_other(
    damaged: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = b'{"step": 1}\n' + damaged + b'\n{"step": 3}\n{"step": 4}\n'
    assert log_after(tmp_path / "metrics.jsonl", lines, 3) == [{"step": 1}, {"step": 3}]
    assert "train: line 2 of" in capsys.readouterr().out
    assert log_after(tmp_path / "metrics.jsonl", b'{"step": 1}\n' + damaged, 3) == [{"step": 1}]
    assert capsys.readouterr().out == "", "half a last line is what a kill leaves"


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


def test_a_number_that_is_not_finite_is_null_in_the_log(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": NaN, "norm": 2.0}\n')  # as an earlier version wrote it
    log = RunLog(path, TrackingSettings(wandb="off", project="p"), name="n", settings={}, step=1)
    log.write({"step": 1, "validation": 3.0})
    log.write({"step": 2, "loss": math.inf, "norms": [1.0, math.nan]})
    log.close()
    expected = [
        {"step": 1, "loss": None, "norm": 2.0, "validation": 3.0},
        {"step": 2, "loss": None, "norms": [1.0, None]},
    ]
    assert [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()] == expected
    path.write_text('{"step": 1, "loss": NaN}\n{"step": 2, "loss": null, "norm": 1e999, "big": 1' + 400 * "0" + "}\n")
    assert [numbers_of(facts) for _, facts in read_log(path)] == [{"step": 1}, {"step": 2}]


def test_a_table_is_read_and_written_at_a_path_that_is_not_utf_8(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")  # as a Latin-1 disk names it
    folder.mkdir()
    path = folder / os.fsdecode(b"\xff.parquet")
    write_score_table(scores(), INFO, path)
    write_score_table(scores(), INFO, tmp_path / "t.parquet")
    assert path.read_bytes() == (tmp_path / "t.parquet").read_bytes()
    assert read_score_table(path)[0].equals(read_score_table(tmp_path / "t.parquet")[0])
    assert written_info(path) == INFO and score_schema_of(path) is not None and occupations_of(path) is None
    pq.write_table(pa.table({"code": ["1", "2"], "title": ["Cooks", "Bakers"]}), tmp_path / "codes.parquet")
    (tmp_path / "codes.parquet").rename(path)
    assert read_vocabulary(path).titles == ("Cooks", "Bakers")
    path.write_bytes(b"PAR1")
    with raises("score-table/unreadable-table", r"caf\udce9", r"\udcff.parquet"):
        read_score_table(path)
    with raises("vocabulary/unreadable-vocabulary-file", r"\udcff.parquet"):
        read_vocabulary(path)


def everybody(careers: CareerTable) -> TrainingPool:
    return TrainingPool(np.arange(len(careers)), np.ones(len(careers)))


def test_transitions_begin_anew_with_every_person() -> None:
    before, after = rows_of_codes("aab", "c").transitions()
    assert before.tolist() == [3, 0, 0, 3]  # 3: no occupation yet
    assert after.tolist() == [0, 0, 1, 2]


def test_frequency_tables_by_hand() -> None:
    train, validation = rows_of_codes("aab", "ab"), rows_of_codes("aaa")
    marginal = marginal_table(train, everybody(train))
    # a 3, b 2, c 0 of 5 observations, one added to each.
    np.testing.assert_allclose(np.exp(marginal.log_probabilities[0]), [4 / 8, 3 / 8, 1 / 8])
    np.testing.assert_allclose(scores_of(marginal, validation), np.log([4 / 8] * 3))
    table = first_order_table(train, everybody(train), validation)
    strength = float(table.details["smoothing"].split()[0])
    # After a: once a, twice b; drawn towards the marginal.
    expected = (np.array([1, 2, 0]) + strength * np.array([4, 3, 1]) / 8) / (3 + strength)
    np.testing.assert_allclose(np.exp(table.log_probabilities[0]), expected)
    np.testing.assert_allclose(np.exp(table.log_probabilities).sum(axis=1), 1.0)
    others = [scores_of(first_at(train, other), validation).sum() for other in (0.125, 1.0, 16.0, 1024.0)]
    assert scores_of(table, validation).sum() >= max(others)


def scores_of(table: FrequencyTable, careers: CareerTable) -> np.ndarray:
    ((rows, log_p),) = table.distributions(careers)
    assert rows.tolist() == list(range(len(log_p)))
    return log_p[rows, careers.transitions()[1]]


def first_at(train: CareerTable, strength: float) -> FrequencyTable:
    before, after = train.transitions()
    marginal = np.exp(marginal_table(train, everybody(train)).log_probabilities[0])
    counts = np.array([[np.sum((before == x) & (after == y)) for y in range(3)] for x in range(4)])
    rows = (counts + strength * marginal) / (counts.sum(axis=1, keepdims=True) + strength)
    return FrequencyTable(np.log(rows), {})


def test_observation_facts_by_hand() -> None:
    table = observation_facts(rows_of_codes("ab", "c"))
    assert table["career"].to_pylist() == [0, 0, 1]
    assert table["position"].to_pylist() == [0, 1, 0]
    assert table["occupation"].to_pylist() == ["a", "b", "c"]
    assert table["previous"].to_pylist() == [None, "a", None]
    assert table["year"].to_pylist() == [1980, 1981, 1980]
