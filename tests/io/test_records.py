"""JSON that this software reads of runs, stores and models: whatever is wrong with it is one line, never a traceback."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from helpers.damage import resigned
from helpers.errors import raises
from helpers.models import settings_for
from helpers.processes import PROJECT
from helpers.scores import INFO, scores
from helpers.trained_runs import random_run

from laborllm_dist.errors import DataFileError, LaborError, RunError
from laborllm_dist.io.json_files import NotJsonError, json_object
from laborllm_dist.io.recorded_folder import replacing_folder
from laborllm_dist.io.run_directory import read_run
from laborllm_dist.models.lora import base_of, check_adapter_kind, check_base
from laborllm_dist.store.few_shot import read_prefix
from laborllm_dist.store.shards import corpus_end, read_piece
from laborllm_dist.store.store import open_store
from laborllm_dist.tables.parquet import with_checksum
from laborllm_dist.tables.scores import read_score_table, write_score_table

NO_OBJECTS = {
    b"": "Expecting value",
    b"null": "no names in it",
    b"[1]": "no names in it",
    b'{"a": 1} x': "something follows its end",
    b'{"a": 1, "a": 1}': "the name 'a' appears twice",
    b'{"a": {"b": 1, "b": 2}}': "the name 'b' appears twice",
    b'{"a": "\xff"}': "byte 8 is not UTF-8",
    b'{"a": ' + b"9" * 5000 + b"}": "Exceeds the limit",
    b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}": "nested too deep",
    b'{"a": ' * 100_000: "nested too deep",
}


@pytest.mark.parametrize("content", NO_OBJECTS, ids=range(len(NO_OBJECTS)))
def test_what_is_no_object_of_json_says_why(content: bytes) -> None:
    with pytest.raises(NotJsonError, match=NO_OBJECTS[content]) as error:
        json_object(content)
    assert len(str(error.value)) < 200


def test_an_object_is_read_with_a_mark_and_blanks_around_it() -> None:
    assert json_object(b'\xef\xbb\xbf \n{"a": [1, {"b": null}]}\r\n') == {"a": [1, {"b": None}]}


def test_no_refusal_breaks_its_line_or_fills_a_screen() -> None:
    text = str(LaborError("no file at a\nb\x1b[31m\u2028\x00"))
    assert text == "no file at a\\nb\\x1b[31m\\u2028\\x00"
    assert str(DataFileError("x.csv: 2 problems:\n  line 1: a\n  line 2: b\tc")) == (
        "x.csv: 2 problems:\n  line 1: a\n  line 2: b\\tc"
    )
    text = str(LaborError("x" * 10_000 + "; do this"))
    assert len(text) < 2_100 and text.endswith("; do this")


# ---------------------------------------------------------------------------------------------------- runs and stores


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def store_folder(run: Path) -> Path:
    return read_run(run)[2]


@pytest.fixture
def restored(run: Path, store_folder: Path) -> Any:
    """Put back what a test changes."""
    paths = [run / "settings.json", *(path for path in store_folder.rglob("*") if path.is_file())]
    before = {path: path.read_bytes() for path in paths}
    yield
    for path, content in before.items():
        path.write_bytes(content)


EDITS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "settings are null": lambda known: known.update(settings=None),
    "settings are a list": lambda known: known.update(settings=[1]),
    "store is a text": lambda known: known.update(store="x"),
    "store's way is null": lambda known: known["store"].update(from_run=None),
    "store's way holds a NUL": lambda known: known["store"].update(from_run="a\0b"),
    "store's folder is half a character": lambda known: known["store"].update(folder="\ud800"),
    "store's folder is null": lambda known: known["store"].update(folder=None),
    "fingerprint is a number": lambda known: known.update(fingerprint=3),
    "versions are null": lambda known: known.update(versions=None),
    "nothing": lambda known: known.clear(),
}


@pytest.mark.parametrize("name", EDITS)
def test_settings_of_a_run_that_were_edited_are_refused(name: str, run: Path, restored: None) -> None:
    record = run / "settings.json"
    known = json.loads(record.read_bytes())
    del known["sha256"]
    EDITS[name](known)
    record.write_text(json.dumps(known))
    with raises("run/damaged-run-record", "settings.json"):
        read_run(run)


FACTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "people": (
        lambda facts: facts["splits"]["test"].update(people="many"),
        "splits.test.people: expected a whole number",
    ),
    "splits": (lambda facts: facts.update(splits=True), "splits: expected named groups"),
    "one split": (lambda facts: facts["splits"].pop("test"), "its splits are"),
    "shards": (lambda facts: facts["splits"]["test"].update(shards=[["x"]]), r"shards[0]: expected text"),
    "a shard that is no file": (lambda facts: facts["splits"]["test"].update(shards=["../x.arrow"]), "'../x.arrow'"),
    "bytes": (lambda facts: facts["files"]["occupations.csv"].update(bytes=None), "bytes: expected a whole number"),
    "tokenizer": (lambda facts: facts.update(tokenizer=[]), "tokenizer: expected a group"),
    "identity": (lambda facts: facts.update(identity={"careers": {}}), "'sources'"),
    "unknown": (lambda facts: facts.update(x=1), "unknown setting x"),
}


@pytest.mark.parametrize("name", FACTS)
def test_a_manifest_that_was_edited_and_signed_is_refused(name: str, store_folder: Path, restored: None) -> None:
    change, text = FACTS[name]
    resigned(store_folder, change)
    with raises("store/damaged-manifest", "manifest.json", text):
        open_store(store_folder)


def test_a_piece_whose_counts_have_changed_is_refused(store_folder: Path, restored: None) -> None:
    (piece,) = (store_folder / "pieces").iterdir()
    record, before = piece / "piece.json", (piece / "piece.json").read_bytes()
    read_piece(piece)
    for content in (before.replace(b'"people": ', b'"people": 1', 1), b"", b"[]", before[:-9]):
        assert content != before
        record.write_bytes(content)
        with raises("store/damaged-piece", "piece.json"):
            read_piece(piece)


def test_a_damaged_end_of_a_corpus_and_a_damaged_prefix_are_refused(tmp_path: Path) -> None:
    (tmp_path / "ends/c").mkdir(parents=True)
    for content in ("", "[]", '{"pieces": 1}', '{"pieces": 1e999, "people": 1}', '{"pieces": {}, "people": 1}'):
        (tmp_path / "ends/c/0-of-1.json").write_text(content)
        with raises("store/damaged-corpus-totals", "ends/c"):
            corpus_end(tmp_path, "c")
    for content in ("", "[]", "{}", '{"text": "a", "text": "b"}'):
        (tmp_path / "prefix.json").write_text(content)
        with raises("store/damaged-prefix", "prefix.json"):
            read_prefix(tmp_path / "prefix.json")


METADATA = [
    "[]",
    "null",
    '{"model": null, "split": "test", "careers": "c", "code": "x"}',
    "[" * 100_000,
    '{"model": 3}',
]


@pytest.mark.parametrize("content", METADATA, ids=range(len(METADATA)))
def test_metadata_of_scores_that_are_no_texts_are_refused_though_signed(content: str, tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    write_score_table(scores(), INFO, path)
    table = pq.read_table(path)
    pq.write_table(with_checksum(table.replace_schema_metadata({b"laborllm_dist": content.encode()})), path)
    with raises("score-table/unreadable-table", "t.parquet", "score table"):
        read_score_table(path)


# ---------------------------------------------------------------------------------------------------- adapters


def test_an_adapter_s_configuration_that_is_none_is_refused(tmp_path: Path) -> None:
    for content in ("null", "[]", "{", '{"base_model_name_or_path": "a", "base_model_name_or_path": "b"}', "{" * 9999):
        (tmp_path / "adapter_config.json").write_text(content)
        for use in (lambda: base_of(settings_for(tmp_path)), lambda: check_adapter_kind(tmp_path)):
            with raises("model/damaged-adapter-config", "adapter_config.json"):
                use()


def test_a_record_whose_base_is_no_group_of_names_is_refused(tmp_path: Path) -> None:
    with replacing_folder(tmp_path / "adapter", {"base": ["x"]}, "") as partial:
        (partial / "adapter_config.json").write_text('{"base_model_name_or_path": "a"}')
    settings = settings_for(tmp_path / "adapter")
    with raises("model/damaged-adapter-config", "laborllm_dist.json is damaged (its base is no group of names"):
        base_of(settings)
    with raises("model/damaged-adapter-record", "laborllm_dist.json is damaged (its base is no group of names"):
        check_base(tmp_path / "adapter", settings, "x")


# ---------------------------------------------------------------------------------------------------- commands


@pytest.mark.ranks
def test_a_command_says_an_error_in_one_line_and_ends_with_its_exit_code(run: Path, restored: None) -> None:
    record = run / "settings.json"
    record.write_bytes(record.read_bytes().replace(b'"settings": {', b'"settings": {"a\\u001b[31m\\nb": 1, ', 1))
    outcome = subprocess.run(
        [sys.executable, str(PROJECT / "launch/baselines.py"), f"run={run}"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (outcome.returncode, outcome.stdout) == (RunError.exit_code, "")
    (line,) = outcome.stderr.splitlines()
    assert line.startswith(f"error: {record} is damaged (it has changed since it was written")
    # By hand, without its checksum: the name of the setting is shown with its escapes.
    known = json.loads(record.read_bytes())
    del known["sha256"]
    record.write_text(json.dumps(known))
    outcome = subprocess.run(
        [sys.executable, str(PROJECT / "launch/baselines.py"), f"run={run}"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert outcome.returncode == RunError.exit_code
    assert outcome.stderr.startswith("error: unknown setting a\\x1b[31m\\nb; ")
    assert len(outcome.stderr.splitlines()) == 1
