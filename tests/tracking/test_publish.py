"""A run that was killed, resumed, evaluated and published, read back by wandb's and TensorBoard's own readers."""

from __future__ import annotations

import functools
import json
import math
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.checkpoints import write_checkpoint
from helpers.errors import raises
from helpers.processes import wait_until
from helpers.runs import write_run
from helpers.scores import report_on, write_scores

from laborllm_dist.config.run import TrackingSettings, TrackSettings
from laborllm_dist.errors import AlreadyRunningError
from laborllm_dist.io.command_log import describe_machine
from laborllm_dist.io.files import file_lock, sha256_of
from laborllm_dist.io.recorded_folder import replacing_folder
from laborllm_dist.io.run_directory import LOCK, RunDirectory, read_run
from laborllm_dist.tracking.artifacts import _published_levels, score_artifacts, tracked_config, training_artifacts
from laborllm_dist.tracking.publish import publish_run
from laborllm_dist.tracking.run_log import RunLog

pytest.importorskip("wandb")
PEOPLE = [f"4711{number:02}" for number in range(20)]
HALVINGS = [1 + number % 3 for number in range(20)]
TRACKING = TrackingSettings("offline", "p", group="my_sweep", tensorboard=True)
# Planted where wandb, TensorBoard or this software might take them from.
SECRETS = {
    **{name: f"planted{number}" for number, name in enumerate(("USER", "LOGNAME", "HOSTNAME", "WANDB_ENTITY"))},
    **{f"WANDB_{name}": f"planted{name}" for name in ("NOTES", "TAGS", "HOST", "USERNAME", "NAME", "RUN_GROUP")},
    **{f"WANDB_{name}": f"planted{name}" for name in ("GIT_COMMIT", "GIT_REMOTE_URL", "PROGRAM", "DOCKER", "EMAIL")},
    "WANDB_API_KEY": "planted0" * 5,
    "HF_TOKEN": "plantedTOKEN",
}
TRAINING = """
import json, os, sys, time
from pathlib import Path
from laborllm_dist.config.run import TrackingSettings
from laborllm_dist.tracking.run_log import RunLog
path, tracking, config, lines = json.loads(sys.argv[1])
log = RunLog(Path(path), TrackingSettings(**tracking), name="small", settings=config, step=0)
for line in lines:
    log.write(line)
deadline = time.monotonic() + 90
while len(list(Path(path).parent.glob("*/*tfevents*")) + list(Path(path).parent.glob("wandb/*/*.wandb"))) < 2:
    assert time.monotonic() < deadline  # until both trackers have started
    time.sleep(0.1)
os.kill(os.getpid(), 9)
"""


def line_of(step: int) -> dict[str, Any]:
    validation = {"validation_nats_per_title": 10 / step} if step % 2 == 0 else {}
    seen = {"tokens_seen": 100 * step, "flops_seen": 1e9 * step, "time": 1.7e9 + step}
    return {"step": step, "loss_nats_per_token": 1 / step, **validation, **seen}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("planted_home_of_ann")


@pytest.fixture(autouse=True)
def environment(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    for name, value in {**SECRETS, "HOME": str(home)}.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def run(home: Path) -> Path:
    """Make a run of eight steps that was killed after step 5, resumed after step 4, evaluated and reported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        for name, value in {**SECRETS, "HOME": str(home)}.items():
            patch.setenv(name, value)
        folder = write_run(home / "runs/small")
        directory, settings, _ = read_run(folder)
        write_store(home / "stores/one")
        write_checkpoint(folder / "checkpoints", 6, run=directory.fingerprint)
        config = tracked_config(directory, settings, machine=describe_machine(), num_ranks=1)

        skipped = {"step": 3, "left_out": f"its careers: PSID {PEOPLE[0]}", "careers": [f"PSID {PEOPLE[0]}"]}
        steps = [line_of(1), line_of(2), skipped, *map(line_of, (3, 4, 5))]
        tracking = {"wandb": "offline", "project": "p", "group": "my_sweep", "tensorboard": True}
        arguments = json.dumps([str(folder / "metrics.jsonl"), tracking, config, steps])
        killed = subprocess.run([sys.executable, "-c", TRAINING, arguments], timeout=120)
        assert killed.returncode == -9
        (first,) = offline_runs(folder)
        wait_until(
            lambda: '"exit"' in inspect.__wrapped__(first), time_limit=60, what="the killed run's tracker has ended"
        )

        with RunLog(folder / "metrics.jsonl", TRACKING, name="small", settings=config, step=4) as log:
            for step in (5, 6, 7, 8):
                log.write(line_of(step))
            log.summarize(6, training_artifacts(directory, 6))
        with replacing_folder(folder / "export", {"run": directory.fingerprint, "step": 6}, "") as export:
            (export / "config.json").write_text("{}")
    return folder


def write_store(folder: Path) -> None:
    """Write what artifacts read of a token store."""
    folder.mkdir(parents=True)
    splits = {"train": {"people": 48, "texts": 48, "observations": 983, "tokens": 24_092, "shards": ["a/train.arrow"]}}
    manifest = {
        "fingerprint": "store-1", "careers_fingerprint": "c1", "sha256": "m1", "splits": splits,
        "tokenizer": {"fingerprint": "t1", "num_ids": 400}, "files": {"a/train.arrow": {"bytes": 7, "sha256": "s"}},
        "identity": {"careers": {"sources": "/planted/careers.csv"}},
    }  # fmt: skip
    corpus = {"survey": "PSID", "people": {"all": 60}, "shares": {"first": 0.1}, "observations": 1_215}
    corpus |= {"unmapped_codes": [{"code": "planted", "count": 1}], "occupations": [{"title": "planted title"}]}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "data_card.json").write_text(json.dumps({"corpora": {"psid": corpus, "planted name": corpus}}))


@functools.cache  # a process of a second; a run that has ended does not change
def inspect(folder: Path, *options: str) -> str:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", *options, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def records(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = map(json.loads, inspect(folder).splitlines())
    return [line[kind] for line in lines if line["type"] == kind]


def offline_runs(run: Path, suffix: str = "") -> list[Path]:
    """Return the folders of a run, oldest first."""
    fingerprint = read_run(run)[0].fingerprint[:8]
    return sorted((run / "wandb").glob(f"offline-run-*-small-{fingerprint}{suffix}"))


def logged(folder: Path) -> list[dict[str, Any]]:
    return [each["item"] for each in records(folder, "history")]


def assert_nothing_private(folder: Path, run: Path) -> None:
    private = ["planted", *PEOPLE, str(run.parent.parent), os.uname().release]
    private += [name for name in (socket.gethostname(),) if len(name) > 5]  # a short one may be part of any random text
    for path in folder.rglob("*"):
        content = path.name.encode() + (path.read_bytes() if path.is_file() else b"")
        assert not path.is_symlink()
        for text in private:
            assert text.encode() not in content, f"{text} in {path}"


def test_the_folder_of_a_resumed_run_has_every_step_once(run: Path) -> None:
    killed, resumed = offline_runs(run)[:2]
    assert [each["step"] for each in logged(killed)] == [1, 2, 3, 4, 5]
    for step, item in enumerate(logged(resumed), start=1):
        written = line_of(step)
        assert {name: item[name] for name in written} == written
        assert (item["_step"], item["_timestamp"]) == (step, written["time"])
    assert [each["step"] for each in logged(resumed)] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert (killed / "superseded.txt").read_text().startswith(resumed.name)
    assert list(killed.glob("*.wandb.synced"))  # which `wandb sync` skips
    assert not (resumed / "superseded.txt").exists()


def test_the_folder_has_settings_summary_axes_and_system_metrics(run: Path) -> None:
    folder = offline_runs(run)[1]
    summary = json.loads(inspect(folder, "--summary"))
    assert (summary["project"], summary["name"], summary["state"], summary["exit_code"]) == (
        "p",
        "small",
        "finished",
        0,
    )
    assert summary["entity"] == ""
    assert summary["config"]["optimizer"]["learning_rate"] == 1e-3
    assert summary["config"]["hardware"]["num_ranks"] == 1
    assert summary["config"]["fingerprint"] == read_run(run)[0].fingerprint
    # Of the best step, not of the last one, whose validation is 10 / 8.
    assert summary["summary"]["validation_nats_per_title"] == 10 / 6
    assert summary["summary"]["best_step"] == 6
    ((start,), metrics) = (records(folder, "run"), records(folder, "metric"))
    assert (start["run_group"], start["job_type"]) == ("my_sweep", "train")
    assert [each.get("name") for each in metrics] == ["step", "tokens_seen", "flops_seen", None]
    assert (metrics[3]["glob_name"], metrics[3]["step_metric"]) == ("*", "step")
    assert records(folder, "stats")[0]["item"]["proc.memory.rssMB"] > 10  # of the training's process
    assert json.loads(inspect(offline_runs(run)[0], "--summary"))["exit_code"] == 255  # which a kill does not say


def test_artifacts_lead_from_the_store_to_the_checkpoint(run: Path) -> None:
    fingerprint = read_run(run)[0].fingerprint
    store, checkpoint = records(offline_runs(run)[1], "artifact")
    assert (store["name"], store["type"], store["use_after_commit"]) == ("store-store-1", "store", True)
    facts = json.loads(store["metadata"])
    assert facts["corpora"] == {
        "psid": {"survey": "PSID", "people": {"all": 60}, "shares": {"first": 0.1}, "observations": 1_215}
    }
    assert facts["splits"]["train"] == {"people": 48, "texts": 48, "observations": 983, "tokens": 24_092}
    assert (checkpoint["name"], checkpoint["type"]) == (f"checkpoint-{fingerprint}-6", "checkpoint")
    facts = json.loads(checkpoint["metadata"])
    assert (facts["step"], facts["made_from"]) == (6, ["store-store-1"])
    file = run / "checkpoints/step_00000006/rank_00001_000.safetensors"
    assert facts["files"][file.name] == {"bytes": file.stat().st_size, "sha256": sha256_of(file)}
    for artifact in (store, checkpoint):  # a reference, and no file
        assert [each["path"] for each in artifact["manifest"]["contents"]] == ["identity"]


def test_no_key_host_user_path_or_person_is_in_the_folders(run: Path) -> None:
    for name in ("wandb", "tensorboard"):
        assert_nothing_private(run / name, run)
    assert b"learning_rate" in next(offline_runs(run)[1].glob("*.wandb")).read_bytes()  # what was given is in plain


def test_tensorboard_has_every_step_once(run: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert len(list((run / "tensorboard").iterdir())) == 2  # one of each start
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    losses = [(each.step, each.wall_time, each.value) for each in events.Scalars("loss_nats_per_token")]
    assert losses == [(step, 1.7e9 + step, pytest.approx(1 / step)) for step in range(1, 9)]
    assert [each.step for each in events.Scalars("validation_nats_per_title")] == [2, 4, 6, 8]
    assert {"tokens_seen", "flops_seen"} <= set(events.Tags()["scalars"])
    (text,) = [each for each in events.Tags()["tensors"] if each.startswith("summary")]
    (value,) = events.Tensors(text)[-1].tensor_proto.string_val
    assert json.loads(value.strip(b"`\n")) == {"best_step": 6, "validation_nats_per_title": 10 / 6}


@pytest.fixture(scope="module")
def published(run: Path, home: Path) -> Path:
    """Publish a copy of the run with scores and a report, as somebody would after the evaluation."""
    copy = home / "runs/copy"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("wandb", "tensorboard"))
    keys = [("PSID", person, 0) for person in PEOPLE]
    write_scores(copy / "scores/test.parquet", "small", HALVINGS, keys=keys)
    write_scores(copy / "scores/test.marginal.parquet", "marginal", [3] * 20, keys=keys)
    report_on(copy, num_careers=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        for name, value in {**SECRETS, "HOME": str(home)}.items():
            patch.setenv(name, value)
        settings = TrackSettings(str(copy), None, "offline", None, "afterwards", tensorboard=False)
        assert publish_run(settings) == [copy / "wandb"]
    return copy


def test_a_finished_run_is_published_from_its_folder(published: Path) -> None:
    (folder,) = offline_runs(published)
    summary = json.loads(inspect(folder, "--summary"))
    assert [each["step"] for each in logged(folder)] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert summary["summary"]["validation_nats_per_title"] == 10 / 6
    nats = sum(HALVINGS) / 20 * math.log(2)
    assert summary["summary"]["test_nats_per_observation"] == pytest.approx(nats)
    assert summary["summary"]["test_perplexity"] == pytest.approx(2 ** (sum(HALVINGS) / 20))
    assert records(folder, "run")[0]["run_group"] == "afterwards"
    assert [each["type"] for each in records(folder, "artifact")] == ["store", "checkpoint"]


def test_scores_and_report_lead_back_to_the_checkpoint(published: Path) -> None:
    (folder,) = offline_runs(published, "-evaluate")
    artifacts = records(folder, "artifact")
    assert [each["type"] for each in artifacts] == ["store", "checkpoint", "scores", "scores", "report"]
    assert [each.get("use_after_commit", False) for each in artifacts] == [True, True, False, False, False]
    facts = [json.loads(each["metadata"]) for each in artifacts]
    by_model = {each["model"]: each for each in facts[2:4]}
    assert by_model["small"]["made_from"] == [artifacts[1]["name"]]
    assert by_model["marginal"]["made_from"] == ["store-store-1"]
    assert (by_model["small"]["num_people"], by_model["small"]["num_observations"]) == (20, 20)
    assert by_model["marginal"]["nats_per_observation"] == pytest.approx(3 * math.log(2))
    assert by_model["small"]["by_transition"]["first"]["num_people"] == 20
    assert facts[4]["made_from"] == [artifacts[2]["name"], artifacts[3]["name"]]
    files = {each["path"] for each in artifacts[4]["manifest"]["contents"]}
    assert {"report.html", "figures/perplexity.png"} < files
    assert "careers.html" not in files  # of single people
    assert_nothing_private(published / "wandb", published)
    table = published / "scores/test.parquet"
    assert str(table) in (published / "report/report.html").read_text()
    assert table.name in (published / "wandb/published/report.html").read_text()  # in place of its path


def summary_of(folder: Path, num_people: Mapping[str, int]) -> Mapping[str, Any]:
    """Return the summary of a table with so many people of each survey, each with one observation."""
    keys = [(survey, str(person), 0) for survey, number in num_people.items() for person in range(number)]
    halvings = [1 + index % 7 for index in range(len(keys))]
    run = RunDirectory(folder, "0123456789abcdef")
    write_scores(run.scores("test"), "m", halvings, keys=keys)
    (artifact,) = score_artifacts(run, [])
    return artifact.facts


@pytest.mark.parametrize(
    ("num_people", "published"),
    [
        ({"A": 10, "B": 11, "C": 12}, ["A", "B", "C"]),
        ({"A": 10}, ["A"]),
        ({"A": 12, "B": 9}, []),  # one alone would leave the other
        ({"A": 30, "B": 3, "C": 20, "D": 25}, ["A", "D"]),  # C goes with B
        ({"A": 30, "B": 3, "C": 4, "D": 25, "E": 26}, ["A", "E"]),  # B and C are 7 people, so D goes, too
        ({"A": 30, "B": 6, "C": 4, "D": 25}, ["A", "D"]),  # B and C are 10 people
        ({"A": 30, "B": 3, "C": 25}, []),
        ({"A": 3, "B": 3, "C": 3}, []),
    ],
)
def test_no_group_of_few_people_can_be_computed(
    num_people: dict[str, int], published: list[str], tmp_path: Path
) -> None:
    facts = summary_of(tmp_path, num_people)
    assert list(facts["by_survey"]) == published
    total = sum(num_people.values())
    if total < 10:
        assert facts.keys().isdisjoint(("num_people", "num_observations", "perplexity", "nats_per_observation"))
        assert facts["by_transition"] == {}
        return
    assert facts["num_people"] == total
    # What subtraction gives is nothing, or a sum over at least two groups and ten people.
    rest = total - sum(part["num_people"] for part in facts["by_survey"].values())
    hidden = num_people.keys() - set(published)
    assert rest == sum(num_people[survey] for survey in hidden)
    assert not hidden or (len(hidden) >= 2 and rest >= 10)


def test_summaries_of_tables_with_impossible_or_damaged_scores(tmp_path: Path) -> None:
    run, keys = RunDirectory(tmp_path, "0123456789abcdef"), [("A", str(person), 0) for person in range(12)]
    write_scores(run.scores("test"), "m", [2000.0] * 12, keys=keys)  # a perplexity of 2 to the power of 2,000
    (artifact,) = score_artifacts(run, [])
    assert artifact.facts["perplexity"] == math.inf
    assert artifact.facts["nats_per_observation"] == pytest.approx(2000 * math.log(2))
    (tmp_path / "scores/test_titles.parquet").write_bytes(b"PAR1")
    with raises("score-table/unreadable-table", "test_titles.parquet"):
        score_artifacts(run, [])


def test_people_of_two_groups_count_once(tmp_path: Path) -> None:
    """Five people move and stay: both groups together are five people, so the next group goes with them."""
    levels = ["first"] * 30 + ["staying"] * 5 + ["moving"] * 5 + ["other"] * 20 + ["more"] * 40
    people = [*range(30), *range(5), *range(5), *range(20), *range(40)]
    assert _published_levels(np.array(people), np.array(levels)) == ["first", "more"]


def test_without_a_tracker_nothing_is_published(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_run(home / "runs/untracked")
    (folder / "metrics.jsonl").write_text(json.dumps(line_of(1)) + "\n")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with raises("settings/no-tracker", "wandb=auto", "tensorboard=false"):
        publish_run(TrackSettings(str(folder), None, "auto", None, None, tensorboard=False))

    def refuse(*_: object, **__: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr("laborllm_dist.tracking.tracker.subprocess.Popen", refuse)
    with raises("settings/no-tracker", "wandb=offline", "tensorboard=true"):
        publish_run(TrackSettings(str(folder), None, "offline", None, None, tensorboard=True))


def test_what_cannot_be_published_is_one_line(run: Path, home: Path, tmp_path: Path) -> None:
    settings = TrackSettings(str(run), None, "offline", None, None, tensorboard=False)
    with raises("settings/no-tracker"):
        publish_run(TrackSettings(str(run), None, "off", None, None, tensorboard=False))
    with raises("run/no-run", str(tmp_path)):
        publish_run(TrackSettings(str(tmp_path), None, "offline", None, None, tensorboard=False))
    with raises("run/not-trained", "metrics.jsonl"):
        publish_run(TrackSettings(str(write_run(home / "runs/other")), None, "offline", None, None, tensorboard=False))
    with file_lock(run / LOCK, busy=None), pytest.raises(AlreadyRunningError, match="is training"):
        publish_run(settings)
    with pytest.MonkeyPatch.context() as patch, raises("run/not-published", "wandb: it failed"):
        patch.setattr("sys.executable", "/bin/false")
        publish_run(settings)
