"""A bit that flips in a store, a score table, an export or an adapter gives the same numbers or a refusal, never others."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.damage import flipped, lists, resigned, unnoticed_flips, what_is_read
from helpers.errors import raises
from helpers.scores import INFO, scores
from helpers.trained_runs import ONE_RANK, PARTED_KEYS, forecast, parted, predict_alone, random_run, score_alone

from laborllm_dist.baselines.run import score_baselines
from laborllm_dist.cli import compose_settings
from laborllm_dist.config.baselines import BaselineSettings
from laborllm_dist.config.evaluation import EvaluateSettings, PredictSettings
from laborllm_dist.errors import DataFileError
from laborllm_dist.evaluation.resumable_parts import finish_parts, read_parts
from laborllm_dist.io.files import ChecksumCheck, sha256_of
from laborllm_dist.io.run_directory import read_run
from laborllm_dist.report.load import compare_runs
from laborllm_dist.store import store as token_store
from laborllm_dist.store.store import TOKENIZER, checking_store, open_store, verify_store
from laborllm_dist.tables.parquet import check_content, with_checksum, written_info
from laborllm_dist.tables.scores import SCORE_SCHEMA, read_score_table, write_score_table
from laborllm_dist.tables.title_distributions import read_title_table, write_title_table


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def store_folder(run: Path) -> Path:
    return read_run(run)[2]


def test_a_flip_in_any_file_of_a_store_is_refused_or_harmless(store_folder: Path) -> None:
    files = sorted(path for path in store_folder.rglob("*") if path.is_file())
    assert {"test.arrow", "train.arrow", "validation.arrow", "manifest.json", "occupations.csv", "tokenizer.json"} <= {
        path.name for path in files
    }
    for path in files:
        num_raised, wrong = unnoticed_flips(path, 6, lambda: what_is_read(store_folder))
        assert not wrong, f"{path}: flips of bits {wrong} went unnoticed"
        if path.suffix == ".arrow" or path.parent.name == TOKENIZER or path.name == "occupations.csv":
            assert num_raised == 8, f"{path}: only {num_raised} of 8 flips were seen"


def test_every_flip_of_a_manifest_is_seen_but_those_of_nothing(store_folder: Path) -> None:
    _, wrong = unnoticed_flips(store_folder / "manifest.json", 150, lambda: open_store(store_folder).facts)
    assert not wrong


def test_every_reader_looks_at_the_checksums(run: Path, store_folder: Path, tmp_path: Path) -> None:
    """Evaluate, forecast, predict and the baselines refuse a store with one flipped bit; none leaves a table."""
    people = tmp_path / "people.json"
    people.write_text(json.dumps({"person": "1", "jobs": [{"year": 1990, "occupation": "a"}]}))

    def evaluated() -> object:
        return score_alone(compose_settings(EvaluateSettings, "evaluate", [f"run={run}"]))

    def predicted() -> object:
        output = f"output={tmp_path}/p.parquet"
        return predict_alone(compose_settings(PredictSettings, "predict", [f"run={run}", f"careers={people}", output]))

    def compared() -> object:
        return score_baselines(compose_settings(BaselineSettings, "baselines", [f"run={run}"]))

    for reader, name in [
        (evaluated, "test"),
        (lambda: forecast(run), "test"),
        (predicted, "train"),
        (compared, "train"),
    ]:
        (shard,) = store_folder.glob(f"pieces/*/{name}.arrow")
        with (
            flipped(shard, 8 * shard.stat().st_size // 2),
            raises("store/file-checksum-mismatch", name, ".arrow"),
        ):
            reader()
    assert not list((run / "scores").glob("*.parquet")) and not list(tmp_path.glob("*.parquet"))


@pytest.fixture
def copied(store_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(store_folder, tmp_path / "store"))


def test_a_flip_in_the_settings_of_a_run_is_refused_or_harmless(run: Path) -> None:
    _, wrong = unnoticed_flips(run / "settings.json", 150, lambda: read_run(run))
    assert not wrong
    record = run / "settings.json"
    before = record.read_bytes()
    record.write_bytes(before.replace(b'"max_seq_length": 1024', b'"max_seq_length": 1025', 1))
    with raises("run/damaged-run-record", "settings.json", "it has changed since it was written"):
        score_alone(compose_settings(EvaluateSettings, "evaluate", [f"run={run}"]))
    record.write_bytes(before)


def test_training_people_cannot_stand_in_for_test_people(copied: Path) -> None:
    (train,), (test,) = (list(copied.glob(f"pieces/*/{split}.arrow")) for split in ("train", "test"))
    names = {path: str(path.relative_to(copied)) for path in (train, test)}

    def listed(facts: dict) -> None:
        facts["splits"]["test"] = facts["splits"]["train"]

    before = (copied / "manifest.json").read_bytes()
    resigned(copied, listed)
    with raises("store/wrong-split", "train.arrow", "test"):
        open_store(copied).careers("test")
    (copied / "manifest.json").write_bytes(before)
    # The file itself, with size, checksum and counts mended by hand.
    shutil.copyfile(train, test)

    def mended(facts: dict) -> None:
        facts["splits"]["test"] = {**facts["splits"]["train"], "shards": [names[test]]}
        facts["files"][names[test]] = {"bytes": test.stat().st_size, "sha256": sha256_of(test)}

    resigned(copied, mended)
    verify_store(open_store(copied))
    with raises("store/wrong-split", "test.arrow", "train.arrow"):
        open_store(copied).careers("test")


def test_a_manifest_without_a_checksum_of_its_own_is_refused(copied: Path) -> None:
    facts = json.loads((copied / "manifest.json").read_bytes())
    facts.pop("sha256")
    (copied / "manifest.json").write_text(json.dumps(facts))
    with raises("store/manifest-checksum-mismatch"):
        open_store(copied)


def test_only_the_files_of_the_splits_are_read(run: Path, store_folder: Path, monkeypatch) -> None:
    read: list[str] = []
    monkeypatch.setattr("laborllm_dist.io.files.sha256_of", lambda path: read.append(path.name) or sha256_of(path))
    store = open_store(store_folder)
    read.clear()
    with checking_store(store, ("test",)) as check:
        check.wait()
    with checking_store(store, ()) as check:
        check.wait()
    assert read == ["test.arrow"]


def test_a_large_store_is_checked_while_other_work_goes_on(store_folder: Path, monkeypatch) -> None:
    monkeypatch.setattr(token_store, "CHECKED_AT_ONCE_BYTES", 0)
    may_read = threading.Event()

    def slow(path: Path) -> str:
        assert may_read.wait(10)
        return sha256_of(path)

    store = open_store(store_folder)
    (shard,) = store_folder.glob("pieces/*/test.arrow")
    monkeypatch.setattr("laborllm_dist.io.files.sha256_of", slow)
    with flipped(shard, 4000):
        with checking_store(store, ("test",)) as check:
            other_work = 1 + 1  # done before any file has been read
            may_read.set()
            with raises("store/file-checksum-mismatch", "test.arrow"):
                check.wait()
        assert other_work == 2
        # Where the work stumbles over what it reads, the file is what is refused.
        with raises("store/file-checksum-mismatch", "test.arrow"), checking_store(store, ("test",)):
            raise KeyError("nonsense in a damaged file")
    with pytest.raises(KeyError), checking_store(store, ("test",)):
        raise KeyError("a bug")


def test_a_check_that_is_left_reads_no_more_files(tmp_path: Path, monkeypatch) -> None:
    paths = [tmp_path / str(number) for number in range(50)]
    for path in paths:
        path.write_text("x")
    begun, ignore_memory_check, read = threading.Event(), threading.Event(), []

    def slow(path: Path) -> str:
        read.append(path)
        begun.set()
        assert ignore_memory_check.wait(10)
        return "other"

    monkeypatch.setattr("laborllm_dist.io.files.sha256_of", slow)
    with ChecksumCheck(dict.fromkeys(paths, "x"), lambda path: DataFileError(str(path))):
        begun.wait(10)
    ignore_memory_check.set()
    assert len(read) <= 4


NUM_ROWS = 9000  # more than two blocks of a checksum


def many_scores() -> pa.Table:
    random = np.random.default_rng(1)
    one = scores().slice(0, 1).to_pylist()[0]
    columns = {name: [one[name]] * NUM_ROWS for name in SCORE_SCHEMA.names}
    columns["person"] = [f"{row // 3}é" for row in range(NUM_ROWS)]
    columns["position"] = [row % 3 for row in range(NUM_ROWS)]
    columns["previous"] = [None if row % 3 == 0 else "a" for row in range(NUM_ROWS)]
    columns["title"] = -random.exponential(size=NUM_ROWS)
    columns["terminated"] = columns["title"] - 1
    return pa.table(columns, schema=SCORE_SCHEMA)


def numbers_in(path: Path) -> object:
    table, info = read_score_table(path)
    return table.to_pydict(), info


def test_a_flip_in_a_score_table_is_refused_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    write_score_table(scores(), INFO, path)
    num_raised, wrong = unnoticed_flips(path, 250, lambda: numbers_in(path))
    assert not wrong and num_raised > 150
    path.write_bytes(path.read_bytes()[:-9])
    with raises("score-table/unreadable-table", "evaluate.py"):
        read_score_table(path)


def test_a_flip_in_a_table_of_titles_is_refused_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    write_title_table(lists(), INFO, "abcde", path)

    def read() -> object:
        read_back = read_title_table(path)
        return read_back.table.to_pydict(), read_back.info, read_back.occupations

    _, wrong = unnoticed_flips(path, 100, read)
    assert not wrong
    assert written_info(path) == INFO


def test_numbers_changed_by_hand_are_refused_with_their_old_metadata(tmp_path: Path) -> None:
    path = tmp_path / "scores/test.parquet"
    write_score_table(many_scores(), INFO, path)
    before, table = path.read_bytes(), pq.read_table(path)
    assert written_info(path) == INFO == read_score_table(path)[1]
    for row, name, value in [
        (0, "title", -0.25),
        (NUM_ROWS - 1, "terminated", -9.0),
        (5000, "person", "x"),
        (7, "previous", None),
    ]:
        values = table[name].to_pylist()
        values[row] = value
        place = table.schema.get_field_index(name)
        changed = table.set_column(place, table.schema.field(name), pa.array(values, table.schema.field(name).type))
        pq.write_table(changed, path)
        for code, read in (
            ("unreadable-table", read_score_table),
            ("damaged-table", written_info),
            ("unreadable-table", lambda _: compare_runs([str(tmp_path)], split="test", measure="title")),
        ):
            with raises(f"score-table/{code}", path, "rows or metadata have changed"):
                read(path)
    facts = json.loads(table.schema.metadata[b"laborllm_dist"])
    renamed = {**table.schema.metadata, b"laborllm_dist": json.dumps({**facts, "model": "better"}).encode()}
    pq.write_table(table.replace_schema_metadata(renamed), path)
    with raises("score-table/unreadable-table", "rows or metadata have changed"):
        read_score_table(path)
    bare = {name: value for name, value in table.schema.metadata.items() if name != b"sha256"}
    pq.write_table(table.replace_schema_metadata(bare), path)
    with raises("score-table/unreadable-table", "it has no checksum, so it was written by an earlier version"):
        read_score_table(path)
    path.write_bytes(before)
    read_score_table(path)


def test_the_checksum_is_of_the_content_by_hand() -> None:
    """Independent: the same bytes put together one value after the other."""
    table = pa.table({"n": pa.array([1, None, 3], pa.int32()), "t": ["a", "é", None]}, metadata={"m": "x"})
    digest = hashlib.sha256()
    digest.update(json.dumps([["n", "t"], {b"m".hex(): b"x".hex()}]).encode())
    digest.update(b"rows 3")
    digest.update(bytes([0b10100000]) + np.array([1, 3], np.int32).tobytes())
    digest.update(bytes([0b11000000]) + np.array([1, 2], np.int64).tobytes() + "aé".encode())
    actual = with_checksum(table)
    assert actual.schema.metadata[b"sha256"].decode() == digest.hexdigest()
    check_content(actual)
    check_content(pa.concat_tables([actual.slice(0, 1), actual.slice(1)]))  # however it lies in memory
    with pytest.raises(ValueError, match="have changed"):
        check_content(actual.take([1, 0, 2]))


def test_a_flip_in_a_part_is_refused_or_harmless(tmp_path: Path) -> None:
    work = parted(tmp_path, [])
    finish_parts(work, ONE_RANK)
    path = tmp_path / "parts/part-000000.parquet"
    _, wrong = unnoticed_flips(path, 100, lambda: read_parts(work, PARTED_KEYS).to_pydict())
    assert not wrong


def test_a_damaged_table_is_not_taken_for_finished(run: Path) -> None:
    settings = compose_settings(EvaluateSettings, "evaluate", [f"run={run}"])
    table = score_alone(settings)
    before = table.read_bytes()
    content = pq.read_table(table)
    place = content.schema.get_field_index("title")
    lower = pa.array(np.asarray(content["title"]) - 1)
    pq.write_table(content.set_column(place, content.schema.field("title"), lower), table)
    with raises("score-table/damaged-table", "its rows or metadata have changed"):
        score_alone(settings)
    table.unlink()
    assert score_alone(settings).read_bytes() == before
    table.unlink()


def test_metadata_that_is_no_metadata_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    for metadata in (b"[]", b"3", b"{}", b'{"model": 1}', b"\xff", b"null"):
        pq.write_table(scores().replace_schema_metadata({b"laborllm_dist": metadata}), path)
        with raises("score-table/unreadable-table", "score table"):
            read_score_table(path)
