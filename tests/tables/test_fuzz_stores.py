"""What this software has written, damaged: refused, or the same as before. Manifests, shards, tables, records, settings."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.checkpoints import write_checkpoint
from helpers.damage import lists, what_is_read
from helpers.fuzzing import (
    Rejection,
    check_number_of_cases,
    damaged_bytes,
    damaged_trees,
    fuzz,
    limited_memory,
    outcome,
)
from helpers.scores import INFO, scores
from helpers.trained_runs import random_run
from hypothesis import given
from hypothesis import strategies as st

from laborllm_dist.checkpoint.export import exported_step
from laborllm_dist.checkpoint.manifest import check_checkpoint
from laborllm_dist.config.reader import read_settings
from laborllm_dist.config.run import RunSettings, TrackingSettings
from laborllm_dist.errors import LaborError
from laborllm_dist.io.files import sha256_of_json
from laborllm_dist.io.recorded_folder import RECORD, DamagedRecordError, FolderRecord, read_record, replacing_folder
from laborllm_dist.io.run_directory import read_run
from laborllm_dist.report.training_curves import training_curves
from laborllm_dist.store.shards import read_piece
from laborllm_dist.store.store import open_store
from laborllm_dist.sweeps.state import last_metrics
from laborllm_dist.tables.forecasts import (
    FORECAST_SCHEMA,
    coherence_of,
    describe_coherence,
    read_forecast_table,
    write_forecast_table,
)
from laborllm_dist.tables.generations import GENERATED_SCHEMA, read_generated_table, write_generated_table
from laborllm_dist.tables.parquet import with_checksum, written_info
from laborllm_dist.tables.predictions import (
    OWN_CAREERS,
    PREDICTION_SCHEMA,
    check_output,
    read_prediction_table,
    write_prediction_table,
)
from laborllm_dist.tables.scores import read_score_table, write_score_table
from laborllm_dist.tables.title_distributions import read_title_table, write_title_table
from laborllm_dist.tracking.run_log import RunLog


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module", autouse=True)
def memory(run: Path) -> Iterator[None]:
    with limited_memory():
        yield


@pytest.fixture(scope="module")
def store_folder(run: Path) -> Path:
    return read_run(run)[2]


@functools.lru_cache
def read_before(folder: Path) -> Any:
    """Return what is read of a store that nothing is wrong with."""
    return what_is_read(folder)


def read_damaged(path: Path, content: bytes, read: Callable[[], Any]) -> Any:
    """Read something while one of its files has another content."""
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        return outcome(read)
    finally:
        path.write_bytes(before)


def signed(values: Any) -> bytes:
    """Return JSON with the checksum of what it says."""
    if isinstance(values, dict):
        values = {name: each for name, each in values.items() if name != "sha256"}
        values["sha256"] = sha256_of_json(values)
    return json.dumps(values).encode()


# ---------------------------------------------------------------------------------------------------- stores


@given(st.data())
@fuzz(150)
def test_a_damaged_file_of_a_store_is_refused_or_the_same(store_folder: Path, data: st.DataObject) -> None:
    read_before(store_folder)
    path = data.draw(st.sampled_from(sorted(path for path in store_folder.rglob("*") if path.is_file())))
    content = data.draw(damaged_bytes(path.read_bytes()))
    result = read_damaged(path, content, lambda: what_is_read(store_folder))
    assert isinstance(result, Rejection) or result == read_before(store_folder)


def used(folder: Path) -> list[Any]:
    """Return what commands read of a store."""
    store = open_store(folder)
    store.describe()
    splits = ("train", "validation", "test")
    counts = [(store.num_people(split), store.num_texts(split), store.num_truncated(split)) for split in splits]
    return [store.fingerprint, store.careers_fingerprint, store.num_ids, counts, what_is_read(folder)[1:]]


@given(st.data())
@fuzz(100)
def test_a_manifest_that_was_edited_and_signed_again_gives_the_same_careers_or_a_refusal(
    store_folder: Path, data: st.DataObject
) -> None:
    read_before(store_folder)
    path = store_folder / "manifest.json"
    values = json.loads(path.read_bytes())
    result = read_damaged(path, signed(data.draw(damaged_trees(values))), lambda: used(store_folder))
    if not isinstance(result, Rejection):
        assert result[-1] == read_before(store_folder)[1:]


# ---------------------------------------------------------------------------------------------------- other records


@given(st.data())
@fuzz(150)
def test_settings_of_a_run_that_were_edited_are_refused_or_what_they_say(run: Path, data: st.DataObject) -> None:
    path = run / "settings.json"
    values = json.loads(path.read_bytes())
    edited = data.draw(damaged_trees(values))
    how = data.draw(st.sampled_from(("signed", "bare", "bytes")))
    content = json.dumps(edited).encode()
    if how == "bytes":
        content = data.draw(damaged_bytes(path.read_bytes()))
    elif how == "signed":
        content = signed(edited)
    elif isinstance(edited, dict):
        content = json.dumps({name: each for name, each in edited.items() if name != "sha256"}).encode()
    result = read_damaged(path, content, lambda: read_run(run))
    if isinstance(result, Rejection):
        return
    folder, settings, store = result
    assert isinstance(folder.fingerprint, str)
    if how == "bytes":
        assert result == read_run(run)
        return
    # A folder that is gone is looked for by its name, which ends in the fingerprint.
    written = edited["store"]
    assert store == Path(written["folder"]) or store.name.endswith(f"-{written['fingerprint']}")
    assert read_settings(RunSettings, edited["settings"]) == settings


@given(st.data())
@fuzz(150)
def test_a_damaged_manifest_of_a_checkpoint_is_refused_or_the_same(
    tmp_path_factory: pytest.TempPathFactory, run: Path, data: st.DataObject
) -> None:
    folder = run.parent / "checkpoints"
    if not folder.exists():
        write_checkpoint(folder, 3)
    (inside,) = folder.iterdir()
    path = data.draw(st.sampled_from(sorted(inside.iterdir())))
    how = data.draw(st.sampled_from(("signed", "bytes", "bytes"))) if path.name == "manifest.json" else "bytes"
    if how == "signed":
        content = signed(data.draw(damaged_trees(json.loads(path.read_bytes()))))
    else:
        content = data.draw(damaged_bytes(path.read_bytes()))
    before = check_checkpoint(inside)
    result = read_damaged(path, content, lambda: check_checkpoint(inside))
    if isinstance(result, Rejection):
        return
    if how == "bytes":
        assert result == before
    else:
        values = json.loads(content)
        assert json.loads(json.dumps(dataclasses.asdict(result))) == {
            name: each for name, each in values.items() if name not in ("sha256", "format")
        }


@given(st.data())
@fuzz(60)
def test_a_damaged_record_of_a_folder_or_piece_is_refused_or_the_same(
    store_folder: Path, run: Path, data: st.DataObject
) -> None:
    (piece,) = (store_folder / "pieces").iterdir()
    folder = run.parent / "written"
    if not folder.exists():
        with replacing_folder(folder, {"run": "r", "step": 3}, "") as partial:
            (partial / "model.safetensors").write_bytes(b"x")
    path, read = data.draw(
        st.sampled_from(
            ((piece / "piece.json", lambda: read_piece(piece)), (folder / RECORD, lambda: record_of(folder)))
        )
    )
    before = read()
    content = data.draw(damaged_bytes(path.read_bytes()))
    if path.parent == folder and data.draw(st.booleans()):
        content = signed(data.draw(damaged_trees(json.loads(path.read_bytes()))))
    result = read_damaged(path, content, read)
    if isinstance(result, FolderRecord):  # its writer's facts are whatever was signed
        written = json.loads(content)
        assert {**result.facts, "files": result.files} == {
            name: value for name, value in written.items() if name not in ("format", "sha256")
        }
        return
    assert isinstance(result, Rejection) or result == before or json.loads(content) == result


def record_of(folder: Path) -> Any:
    """Return what a folder's record says, as exports are looked at; a damaged one counts as a refusal."""
    try:
        record = read_record(folder)
    except DamagedRecordError as error:
        raise LaborError(error) from None
    step = exported_step(folder, "r")
    assert step is None or isinstance(step, int)
    assert record is not None
    return record if record.files is not None and step == 3 else dict(json.loads((folder / RECORD).read_bytes()))


STEPS = [
    {
        "step": at,
        "epoch": at / 4,
        "loss_nats_per_token": 4.0 - at,
        "step_tokens": 10 * at,
        "learning_rate": 1e-3,
        "time": 1e9,
    }
    for at in (1, 2)
]
STEPS[1] |= {"validation_nats_per_token": 2.5, "validation_nats_per_title": 3.5}


@given(st.data())
@fuzz(150)
def test_a_damaged_log_of_steps_has_the_numbers_of_its_sound_lines(run: Path, data: st.DataObject) -> None:
    folder = run.parent / "log"
    folder.mkdir(exist_ok=True)
    content = "".join(json.dumps(step) + "\n" for step in STEPS).encode()
    if data.draw(st.booleans()):
        lines = data.draw(damaged_trees(STEPS))
        content = "".join(json.dumps(step) + "\n" for step in (lines if isinstance(lines, list) else [lines])).encode()
    else:
        content = data.draw(damaged_bytes(content))
    path = folder / "metrics.jsonl"
    path.write_bytes(content)
    sound = [facts for line in content.split(b"\n") if (facts := slow_step(line)) is not None]
    last = outcome(lambda: last_metrics(folder))
    assert last == {name: value for facts in sound for name, value in facts.items() if is_number(value)}
    needed = ("step", "epoch", "loss_nats_per_token", "step_tokens", "learning_rate")
    drawn = [
        facts
        for facts in sound
        if all(is_number(facts.get(name)) for name in needed)
        and all(is_number(value) for name, value in facts.items() if name.startswith("validation_"))
        and facts["step_tokens"] > 0
    ]
    curves = outcome(lambda: training_curves([str(folder)]))
    assert [(point.step, point.nats_per_token) for curve in curves for point in curve.training] == [
        (facts["step"], pytest.approx(facts["loss_nats_per_token"])) for facts in drawn
    ]
    resume = RunLog(path, TrackingSettings(wandb="off", project="p"), name="n", settings={}, step=1)
    resume.write({"step": 2, "loss": math.nan})
    resume.close()
    again = [facts for line in path.read_bytes().split(b"\n") if (facts := slow_step(line)) is not None]
    assert again[-1] == {"step": 2, "loss": None}
    assert len(again) == 1 + sum(facts["step"] <= 1 for facts in sound)


def is_number(value: Any) -> bool:
    return type(value) in (int, float) and -sys.float_info.max <= value <= sys.float_info.max


def slow_step(line: bytes) -> dict[str, Any] | None:
    """Return the values of a line; None if it is not the JSON of a step."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("twice")
        return dict(pairs)

    try:
        facts = json.loads(line.removeprefix(b"\xef\xbb\xbf").decode().strip(" \t\r\n"), object_pairs_hook=once)
    except (ValueError, RecursionError):
        return None
    return facts if isinstance(facts, dict) and type(facts.get("step")) is int else None


# ---------------------------------------------------------------------------------------------------- score tables

GENERATED = [
    {"survey": "P", "person": str(row), "position": row, "kind": "greedy", "sample": None, "text": " Cook\n",
     "occupation": "a", "observed": "b"}
    for row in range(9)
]  # fmt: skip
PREDICTED = [
    {"person": "1", "survey": "P", "year": 1990, "rank": rank, "occupation": "a", "title": "Cook", "probability": 0.1,
     "log_likelihood": -2.3, "mass": 0.9, "bound": 0.0}
    for rank in range(1, 9)
]  # fmt: skip
FORECASTS = [
    {"survey": "P", "person": "1", "position": row, "year": 1990 + row, "target_year": 1992 + row, "occupation": "a",
     "direct": -0.7, "composed": -1.1, "bound": 0.01, "direct_all": [0.5, 0.25, 0.25], "composed_all": [0.25, 0.5, 0.25],
     "standard_error": [0.125, 0.0625, 0.25]}
    for row in range(9)
]  # fmt: skip


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Callable[[Path], Any]]:
    """Write a table of each kind; return its reader."""
    folder = tmp_path_factory.mktemp("tables")
    readers: dict[Path, Callable[[Path], Any]] = {
        folder / "scores.parquet": lambda path: plain(*read_score_table(path)),
        folder / "titles.parquet": lambda path: plain(*dataclasses.astuple(read_title_table(path))),
        folder / "generated.parquet": lambda path: plain(*read_generated_table(path)),
        folder / "predicted.parquet": lambda path: plain(*read_prediction_table(path)),
        folder / "forecasts.parquet": read_forecasts,
    }
    write_score_table(scores(), INFO, folder / "scores.parquet")
    write_title_table(lists().slice(0, 40), INFO, "abcde", folder / "titles.parquet")
    write_generated_table(pa.Table.from_pylist(GENERATED, GENERATED_SCHEMA), INFO, folder / "generated.parquet")
    write_forecast_table(pa.Table.from_pylist(FORECASTS, FORECAST_SCHEMA), INFO, "abc", folder / "forecasts.parquet")
    info = dataclasses.replace(INFO, split=OWN_CAREERS, details={"measure": "normalised"})
    write_prediction_table(pa.Table.from_pylist(PREDICTED, PREDICTION_SCHEMA), info, folder / "predicted.parquet")
    return readers


def plain(table: pa.Table, *more: Any) -> list[Any]:
    return [table.to_pydict(), *more]


def read_forecasts(path: Path) -> list[Any]:
    """Return what launch/forecast.py reads of its table, and compare what it says of it with sums by hand."""
    forecasts = read_forecast_table(path)
    rows, lines = forecasts.table.to_pylist(), describe_coherence(coherence_of(forecasts.table), None)
    people = {(row["survey"], row["person"]) for row in rows}
    assert lines[0] == f"{len(rows):,} forecasts of {len(people):,} people"
    apart = [sum(map(abs, map(float.__sub__, row["direct_all"], row["composed_all"]))) / 2 for row in rows]
    assert f"total variation mean {sum(apart) / len(apart):.4f}" in lines[3]
    nats = -sum(row["direct"] for row in rows) / len(rows)
    shown = "too large" if nats > 709 else f"{math.exp(nats):,.3f}" if nats < 6.9 else ""
    assert lines[1].startswith(f"perplexity direct {shown}")
    assert not {"nan", "inf"} & set(" ".join(lines).replace(",", " ").split())
    return plain(*dataclasses.astuple(forecasts))


@given(st.data())
@fuzz(350)
def test_a_damaged_table_of_scores_is_refused_or_the_same(
    tables: dict[Path, Callable[[Path], Any]], data: st.DataObject
) -> None:
    path, read = data.draw(st.sampled_from(sorted(tables.items())))
    content, before, info = data.draw(damaged_bytes(path.read_bytes())), read(path), written_info(path)
    result = read_damaged(path, content, lambda: read(path))
    assert isinstance(result, Rejection) or result == before
    result = read_damaged(path, content, lambda: written_info(path))
    assert isinstance(result, Rejection) or result == info


@given(st.data())
@fuzz(150)
def test_a_table_of_another_kind_with_a_checksum_of_its_own_is_refused_or_has_its_columns(
    tables: dict[Path, Callable[[Path], Any]], data: st.DataObject
) -> None:
    """Columns and metadata made by somebody else, and signed as ours are."""
    path, read = data.draw(st.sampled_from(sorted(tables.items())))
    table = pq.read_table(path)
    metadata = {name: value for name, value in table.schema.metadata.items() if name != b"sha256"}
    for _ in range(data.draw(st.integers(0, 2))):
        name = data.draw(st.sampled_from(sorted(metadata)))
        value = data.draw(damaged_trees(json.loads(metadata[name])))
        metadata[name] = json.dumps(value).encode()
    for _ in range(data.draw(st.integers(0, 2))):
        at = data.draw(st.integers(0, table.num_columns - 1))
        table = table.set_column(at, table.column_names[at], data.draw(columns(table.num_rows)))
    try:
        signed_table = with_checksum(table.replace_schema_metadata(metadata))
    except TypeError:  # columns that our tables never have
        signed_table = table.replace_schema_metadata({**metadata, b"sha256": b"0" * 64})
    sink = pa.BufferOutputStream()
    pq.write_table(signed_table, sink)
    result = read_damaged(path, sink.getvalue().to_pybytes(), lambda: [read(path), check_output(path)])
    if not isinstance(result, Rejection):
        assert set(result[0][0]) <= set(table.column_names)
        info = result[0][1]
        assert all(isinstance(each, str) for each in (info.model, info.split, info.careers, *info.details.values()))


def columns(num_rows: int) -> st.SearchStrategy[pa.Array]:
    """Return columns of many types."""
    return st.sampled_from((
        pa.nulls(num_rows), pa.array([None] * num_rows, pa.string()), pa.array(["x"] * num_rows),
        pa.array([1e300] * num_rows), pa.array([float("nan")] * num_rows), pa.array([2**40] * num_rows),
        pa.array([True] * num_rows), pa.array([b"\xff"] * num_rows), pa.array([[1.0]] * num_rows),
        pa.array([[None, 1.0]] * num_rows, pa.list_(pa.float64())), pa.array([{"x": 1}] * num_rows),
        pa.array([0] * num_rows, pa.timestamp("s")), pa.array(["a"] * num_rows).dictionary_encode(),
        pa.array([-1.0] * num_rows, pa.float32()), pa.array([0] * num_rows, pa.decimal128(5, 2)),
    ))  # fmt: skip


def test_enough_of_what_was_written_was_tried(request: pytest.FixtureRequest) -> None:
    check_number_of_cases(request)
