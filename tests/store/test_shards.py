"""Stores made in pieces: by one process or many, killed or not, the same bytes; and what the data card says of them."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.errors import raises
from helpers.panels import panels
from helpers.processes import PROJECT
from helpers.runs import settings_of, small_run
from helpers.stores import NUM_PEOPLE, pooled, small

from laborllm_dist.careers.splits import SPLITS
from laborllm_dist.config.data import DataSettings
from laborllm_dist.config.run import RunSettings
from laborllm_dist.errors import (
    DataFileError,
    DiskFullError,
    LaborError,
)
from laborllm_dist.io.files import file_lock
from laborllm_dist.store import workers
from laborllm_dist.store.build import (
    locate_store,
    prepare,
    prepare_store,
    prepare_worker,
)
from laborllm_dist.store.workers import error_of, run_workers


def content(folder: Path) -> dict[str, str]:
    """Return the checksum of every file of a store."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return content(prepare_store(small(tmp_path_factory.mktemp("whole"))).folder)


def test_five_pieces_and_nothing_of_the_work_is_left(whole: dict[str, str]) -> None:
    pieces = {Path(name).parts[1] for name in whole if name.startswith("pieces/")}
    assert pieces == {f"synthetic-{number:05d}" for number in range(5)}
    tops = {Path(name).parts[0] for name in whole}
    assert tops == {"pieces", "tokenizer", "occupations.csv", "manifest.json", "data_card.json", "data_card.md"}


@pytest.mark.parametrize("num_workers", [2, 3])
def test_shards_one_after_the_other_make_the_same_bytes(num_workers: int, whole, tmp_path: Path) -> None:
    stores = [
        prepare_worker(small(tmp_path, f"prepare.num_workers={num_workers}", f"prepare.worker_index={shard}"))
        for shard in range(num_workers)
    ]
    assert stores[:-1] == [None] * (num_workers - 1)
    assert content(stores[-1].folder) == whole


def test_a_shard_says_whether_it_was_the_last(tmp_path: Path) -> None:
    first, last = (small(tmp_path, "prepare.num_workers=2", f"prepare.worker_index={shard}") for shard in (1, 0))
    assert prepare(first) == "worker 1 of 2 is done; the last one to be done makes the store"
    assert prepare(last).startswith("70 train, ")
    assert prepare(first).startswith("70 train, ")


@pytest.mark.ranks
def test_local_processes_make_the_same_bytes(whole, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = prepare_store(small(tmp_path, "prepare.num_workers=2"))
    assert content(store.folder) == whole
    assert (
        caplog.messages[-1] == "prepare: worker 1 is done (2 of 2)"
        or caplog.messages[-1] == "prepare: worker 0 is done (2 of 2)"
    )


@pytest.mark.ranks
def test_the_refusal_of_a_local_shard_is_the_user_s_line(tmp_path: Path) -> None:
    (tmp_path / "A.csv").write_text("person,year,occupation\n1,1984,1\n1,1984,1\n")
    (tmp_path / "A_titles.csv").write_text("code,title\n1,Cooks\n")
    settings = dataclasses.replace(small(tmp_path, "prepare.num_workers=2"), data=panels(tmp_path, "A"))
    with raises("data-file/invalid-content", "has 1984 twice"):
        prepare_store(settings)


def test_without_slurm_the_refusal_says_so(tmp_path: Path) -> None:
    with raises("worker-failed/workers-not-started", "slurm"):
        prepare_store(small(tmp_path, "prepare.num_workers=2", "prepare.executor=slurm"))


class Killed(Exception):
    """A process is killed between two pieces."""


def begun(settings: RunSettings, num_done: int) -> Path:
    """Make the first pieces of a store as a process does that is killed then; return the folder it leaves."""
    pieces = itertools.count(1)

    def killed(line: str) -> None:
        if line.endswith("careers") and next(pieces) == num_done:
            raise Killed

    with pytest.raises(Killed), pytest.MonkeyPatch.context() as patched:
        patched.setattr("laborllm_dist.store.build.logger.info", killed)
        prepare_store(settings)
    return locate_store(settings).building


def test_a_killed_prepare_goes_on_where_it_was(whole, tmp_path: Path) -> None:
    settings = small(tmp_path)
    building = begun(settings, 3)
    (building / "pieces" / ".synthetic-00003.killed").mkdir()  # what a kill leaves of a piece
    made = {path: path.stat().st_mtime_ns for path in building.rglob("*.arrow")}
    assert len(made) >= 3
    store = prepare_store(settings)
    assert content(store.folder) == whole
    assert all((store.folder / path.relative_to(building)).stat().st_mtime_ns == at for path, at in made.items())


def test_a_piece_that_has_changed_is_refused(tmp_path: Path) -> None:
    settings = small(tmp_path)
    piece = next(begun(settings, 2).glob("pieces/*/train.arrow"))
    piece.write_bytes(piece.read_bytes()[:-9])
    with raises("store/damaged-piece", "train.arrow"):
        prepare_store(settings)


def test_one_process_a_shard(tmp_path: Path) -> None:
    settings = small(tmp_path, "prepare.num_workers=2", "prepare.worker_index=1")
    lock = locate_store(settings).building / "work" / "worker-1-of-2.lock"
    with (
        file_lock(lock, busy="here"),
        raises("already-running/locked-by-another-process", "another process is preparing as worker 1 of 2"),
    ):
        prepare_worker(settings)


@pytest.mark.ranks
def test_kill_9_at_any_moment_loses_no_finished_piece(whole, tmp_path: Path) -> None:
    overrides = small_run(tmp_path, "store.people_per_shard=20", num_people=NUM_PEOPLE)
    command = [sys.executable, str(PROJECT / "launch/prepare.py"), *overrides]
    folder = locate_store(small(tmp_path)).folder
    pieces = locate_store(small(tmp_path)).building / "pieces"
    process = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        waited_until = time.monotonic() + 120
        while not any(pieces.glob("synthetic-*")) and process.poll() is None and time.monotonic() < waited_until:
            time.sleep(0.01)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    names = {path.name for path in pieces.glob("synthetic-*")} if pieces.is_dir() else set()
    subprocess.run(command, cwd=PROJECT, check=True, timeout=300, stdout=subprocess.DEVNULL)
    assert content(folder) == whole
    assert names or folder.is_dir()


def test_pieces_of_another_size_are_not_taken_for_these(whole, tmp_path: Path) -> None:
    begun(small(tmp_path, "store.people_per_shard=7"), 3)
    store = prepare_store(small(tmp_path))
    assert content(store.folder) == whole
    assert sum(store.num_people(split) for split in SPLITS) == NUM_PEOPLE


@pytest.mark.parametrize("leftover", ["manifest.json", "manifest.json.partial", "data_card.json.partial"])
def test_a_kill_between_manifest_and_name_leaves_a_store_that_opens(leftover: str, whole, tmp_path: Path) -> None:
    settings = small(tmp_path)
    (begun(settings, 5) / leftover).write_text('{"half": ')
    assert content(prepare_store(settings).folder) == whole


def test_a_list_of_occupations_is_there_whole_or_not_at_all(whole, tmp_path: Path, monkeypatch) -> None:
    settings = small(tmp_path)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("laborllm_dist.io.files.fsync_path", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare_store(settings)
    monkeypatch.undo()
    assert not (locate_store(settings).building / "occupations.csv").exists()
    assert content(prepare_store(settings).folder) == whole


def test_a_folder_without_its_manifest_is_refused_before_any_work(tmp_path: Path) -> None:
    settings = small(tmp_path)
    locate_store(settings).folder.mkdir(parents=True)
    with raises("store/store-without-manifest", "manifest.json"):
        prepare_store(settings)
    assert not locate_store(settings).building.exists()


@pytest.mark.ranks
def test_local_shards_end_with_the_process_that_started_them_and_lose_nothing(tmp_path: Path) -> None:
    overrides = small_run(tmp_path, "store.people_per_shard=5", "prepare.num_workers=2", num_people=600)
    command = [sys.executable, str(PROJECT / "launch/prepare.py"), *overrides]
    settings = settings_of(overrides)
    pieces = locate_store(settings).building / "pieces"

    def actual() -> set[str]:
        return {path.name for path in pieces.glob("synthetic-*")} if pieces.is_dir() else set()

    process = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        waited_until = time.monotonic() + 120
        while len(actual()) < 3 and process.poll() is None and time.monotonic() < waited_until:
            time.sleep(0.01)
        process.kill()  # the parent alone
        process.wait()
        time.sleep(3)
        made = actual()
        assert made
        time.sleep(2)
        assert actual() == made, "shards work on although nobody waits for them"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    times = {name: (pieces / name).stat().st_mtime_ns for name in made}
    subprocess.run(command, cwd=PROJECT, check=True, timeout=300, stdout=subprocess.DEVNULL)
    pieces_folder = locate_store(settings).folder / "pieces"
    assert all((pieces_folder / name).stat().st_mtime_ns == at for name, at in times.items())


def test_shards_of_a_command_in_the_background_are_stopped_at_once(tmp_path: Path) -> None:
    def fail_or_wait(shard: int) -> LaborError | None:
        if shard == 0:
            return DataFileError("no", code="no-file")
        time.sleep(300)
        return None

    prepare_settings = dataclasses.replace(settings_of(small_run(tmp_path)).prepare, num_workers=2, executor="local")
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell does it that starts a command with &
    try:
        with raises("data-file/no-file") as error:
            run_workers(fail_or_wait, prepare_settings, tmp_path / "logs")
        assert str(error.value) == "no"
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    marks = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not any(str(tmp_path).encode() in mark for mark in marks), "a shard is still at work"


def test_a_shard_s_error_reaches_the_starter_with_class_text_and_code() -> None:
    def full() -> None:
        raise DiskFullError("no room", code="disk-full")

    received = pickle.loads(pickle.dumps(error_of(full)))
    assert (type(received), str(received), received.code) == (DiskFullError, "no room", "disk-full")
    assert error_of(lambda: None) is None


def test_the_tokenizer_learns_from_training_people_as_the_source_splits_them(tmp_path: Path) -> None:
    """Independent: a word that stands with test people only is in no learned piece."""
    folder = tmp_path / "career"
    folder.mkdir()
    for split, education in (("train", "college"), ("valid", "college"), ("test", "zzyzx")):
        lines = {"job": "436 435", "year": "1984 1985", "education": f"{education} {education}"}
        lines |= {"ethnicity": "white", "gender": "female", "location": "south"}
        for kind, line in lines.items():
            (folder / f"{split}.{kind}").write_text(f"{line}\n" * 60)
    settings = settings_of([
        "data=career_text", f"data.corpora.career_text.path={folder}", f"store.root={tmp_path}/stores",
        "tokenizer.vocabulary_size=600",
    ])  # fmt: skip
    pieces = json.loads((prepare_store(settings).folder / "tokenizer/tokenizer.json").read_text())["model"]["vocab"]
    assert any("colle" in piece for piece in pieces)
    assert not any("zz" in piece for piece in pieces)


# ------------------------------------------------------------------------------------------------- people


def test_the_same_files_as_two_populations_are_refused(tmp_path: Path) -> None:
    settings = pooled(tmp_path, "A", "B")
    (tmp_path / "B.csv").write_bytes((tmp_path / "A.csv").read_bytes())
    with raises("data-file/shared-files-different-population", "A", "B"):
        prepare_store(settings)


def test_two_corpora_of_one_population_put_a_person_into_one_split(tmp_path: Path) -> None:
    store = prepare_store(pooled(tmp_path, "A", "B", population="PEOPLE"))
    for split in ("train", "validation", "test"):
        table = store.careers(split).table
        people = {survey: set() for survey in "AB"}
        for survey, person in zip(table["survey"].to_pylist(), table["person"].to_pylist(), strict=True):
            people[survey].add(person)
        assert people["A"] == people["B"]
        assert people["A"]
    apart = prepare_store(pooled(tmp_path, "A", "B"))
    table = apart.careers("test").table
    assert len(set(table["person"].to_pylist())) > apart.num_people("test") / 2


# ------------------------------------------------------------------------------------------------- data card


def test_the_data_card_by_hand(tmp_path: Path) -> None:
    (tmp_path / "A.csv").write_text(
        "person,year,occupation\n"
        + "".join(f"{person},{1980 + at},{code}\n" for person in range(30) for at, code in enumerate("112"))
    )
    (tmp_path / "A_titles.csv").write_text("code,title\n1,Cooks\n2,Bakers | pastry\n")
    settings = dataclasses.replace(small(tmp_path), data=panels(tmp_path, "A"))
    store = prepare_store(settings)
    card = json.loads((store.folder / "data_card.json").read_text())["corpora"]["A"]
    assert card["people_read"] == card["people"]["all"] == 30
    assert card["people"]["train"] == store.num_people("train")
    assert card["observations"] == 90
    assert card["shares"] == {"first": 1 / 3, "moving": 1 / 3, "staying": 1 / 3}
    assert card["paper"] is None
    assert card["years"] == [
        {"year": year, "observations": 30, "occupations": 1, "reachable": None} for year in (1980, 1981, 1982)
    ]
    assert card["occupations"][0] == {"code": "1", "title": "Cooks", "observations": 60}
    text = (store.folder / "data_card.md").read_text()
    assert "| share moving | 0.333 |" in text
    assert "| 2 | Bakers \\| pastry | 30 |" in text
    assert "| 1981 | 30 | 1 |" in text
    assert text.count("Nothing.") == 1


def test_a_corpus_of_nobody_says_why(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from helpers.nls import made_rows, write_extract

    nobody = {("person_id", 1979): 1}
    path = write_extract(tmp_path / "extract", "NLSY79", made_rows("NLSY79", [nobody], [{1980}]))
    settings = settings_of(["data=nlsy79", f"data.corpora.nlsy79.path={path}", f"store.root={tmp_path}/stores"])
    with raises("data-file/empty-corpora", "data=nlsy79", "person without any observation (1)"):
        prepare_store(settings)
    assert not any("learning a tokenizer" in line for line in caplog.messages)


def test_the_surveys_stand_beside_the_paper_s_figures(tmp_path: Path) -> None:
    from helpers.nls import WOMAN, WOMAN_YEARS, made_rows, write_extract

    people = [{**WOMAN, ("person_id", 1979): person} for person in range(1, 41)]
    path = write_extract(tmp_path / "extract", "NLSY79", made_rows("NLSY79", people, [WOMAN_YEARS] * 40))
    settings = settings_of([
        "data=nlsy79", f"data.corpora.nlsy79.path={path}", f"store.root={tmp_path}/stores",
        "tokenizer.vocabulary_size=400",
    ])  # fmt: skip
    store = prepare_store(settings)
    card = json.loads((store.folder / "data_card.json").read_text())["corpora"]["nlsy79"]
    # Nine observations a person: one first, of the other eight one stays (1982 after 1981 is a move, and so on).
    assert card["observations"] == 360
    assert card["shares"]["first"] == pytest.approx(1 / 9)
    assert card["shares"]["staying"] == 0
    assert card["left_out"] == [
        {"unit": "person-year", "reason": reason, "count": 40, "years": {str(year): 40}}
        for reason, year in (
            ("not working, unemployed or out of the labor force not told apart", 2008),
            ("working, occupation invalid skip", 1985),
            ("working, occupation not codeable", 1984),
        )
    ]
    assert card["variables_missing"] == []
    years = {each["year"]: each["reachable"] for each in card["years"]}
    # 266 occupations can be reached from 1970 codes, one of them the state unemployed; two more states.
    assert years[1980] == 268
    assert years[1982] == 333
    assert "| share first | 0.111 | 0.048 |" in (store.folder / "data_card.md").read_text()


def test_data_settings_refuse_a_tag_that_stands_twice(tmp_path: Path) -> None:
    one = panels(tmp_path, "A").corpora["A"]
    from laborllm_dist.config.reader import OutOfRangeError

    with pytest.raises(OutOfRangeError, match="a survey tag of its own"):
        DataSettings("x", {"a": one, "b": one})


def test_what_jobs_answer_is_unpickled_from_a_new_folder_of_this_user_alone(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir(mode=0o777)
    folders = [workers.new_folder(tmp_path / "jobs") for _ in range(2)]
    assert len(set(folders)) == 2
    assert [folder.stat().st_mode & 0o777 for folder in folders] == [0o700, 0o700]
