"""Tracking never decides about a training, and learns of no person and no path: wandb fails in every way there is."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import re
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from helpers.errors import raises
from helpers.runs import settings_of, small_run

from laborllm_dist.cli import launch
from laborllm_dist.config.run import RunSettings, TrackingSettings
from laborllm_dist.errors import InterruptedRunError, NonFiniteLossError
from laborllm_dist.tracking import tracker
from laborllm_dist.tracking.artifacts import Artifact, tracked_settings
from laborllm_dist.tracking.run_log import RunLog

# A package of wandb's name; BEHAVIOR says what goes wrong. It leaves what it was given in RECORD.
FAKE = """
import json, os, sys, time
BEHAVIOR, RECORD = os.environ["BEHAVIOR"].split(), os.environ["RECORD"]
if "no_import" in BEHAVIOR:
    raise ImportError("no wandb here")

def record(kind, values):
    with open(RECORD, "a") as file:
        file.write(json.dumps({"kind": kind, **values}) + "\\n")

def misbehave(when, mode=""):
    print("chatter"), print("chatter", file=sys.stderr)
    for name in (when, f"{when}_{mode}"):
        if f"{name}_raises" in BEHAVIOR:
            raise OSError(28, "No space left on device")
        if f"{name}_is_killed" in BEHAVIOR:
            os.kill(os.getpid(), 9)
        if f"{name}_hangs" in BEHAVIOR:
            time.sleep(600)
        if f"{name}_asks" in BEHAVIOR:
            input("API key? ")

class Settings:
    model_fields = {"init_timeout": None, "finish_timeout": None, "x_stats_pid": None}
    def __init__(self, **values):
        self.values = values

class Artifact:
    def __init__(self, name, type, metadata):
        misbehave("artifact")
        self.name, self.type, self.metadata = name, type, metadata
    def add_reference(self, uri, name, checksum):
        self.reference = uri

class Run:
    starting_step = int(os.environ.get("STARTING_STEP", 0))
    offline = False
    dir = "wandb/run-1/files"
    def __init__(self):
        self.summary = self
    def define_metric(self, name, step_metric=None):
        record("metric", {"name": name, "step_metric": step_metric})
    def log(self, numbers, step, commit):
        misbehave("log")
        record("log", {"numbers": numbers, "step": step})
    def update(self, values):
        record("summary", values)
    def log_artifact(self, artifact):
        record("output", vars(artifact))
    def use_artifact(self, artifact):
        record("input", vars(artifact))
    def mark_preempting(self):
        record("preempting", {})
    def finish(self, exit_code):
        misbehave("finish")
        record("finish", {"exit_code": exit_code})

def init(settings, **values):
    names = sorted(name for name in os.environ if name.startswith("WANDB_"))
    record("init", {"settings": settings.values, "pid": os.getpid(), "environment": names, **values})
    misbehave("init", values["mode"])
    return Run()

def teardown(exit_code):
    record("teardown", {})
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages/wandb.py").write_text(FAKE)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.setenv("RECORD", str(tmp_path / "record"))
    monkeypatch.setattr(tracker, "CLOSE_SECONDS", 4.0)
    yield tmp_path
    for line in recorded(tmp_path, "init"):
        with pytest.raises(ProcessLookupError):  # nothing is left behind
            os.kill(line["pid"], 0)


def recorded(folder: Path, kind: str) -> list[dict]:
    path = folder / "record"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    return [line for line in lines if line["kind"] == kind]


def track(folder: Path, mode: str = "online", num_steps: int = 3) -> float:
    """Log some steps as a training does; return the seconds that the end took."""
    settings = {"fingerprint": "0123456789abcdef", **tracked_settings(settings_of(small_run(folder)))}
    log = RunLog(folder / "metrics.jsonl", TrackingSettings(mode, "p"), name="a b", settings=settings, step=0)  # type: ignore[arg-type]
    started = monotonic()
    for step in range(1, num_steps + 1):
        log.write({"step": step, "loss": 1 / step, "careers": ["PSID 4711"], "left_out": "its careers: PSID 4711"})
    assert monotonic() - started < 1
    started = monotonic()
    log.close()
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == num_steps
    return monotonic() - started


def test_numbers_arrive_and_nothing_else(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEHAVIOR", "")
    track(fake)
    (start,) = recorded(fake, "init")
    assert (start["mode"], start["project"], start["name"], start["id"]) == ("online", "p", "a b", "a-b-01234567")
    expected = {"console": "off", "disable_git": True, "disable_code": True, "x_disable_meta": True, "host": ""}
    assert expected.items() <= start["settings"].items()
    assert {"init_timeout", "finish_timeout"} <= start["settings"].keys()
    assert "login_timeout" not in start["settings"]  # which this version does not know
    assert start["settings"]["x_stats_pid"] == os.getpid()
    logged = [{"kind": "log", "numbers": {"step": step, "loss": 1 / step}, "step": step} for step in (1, 2, 3)]
    assert recorded(fake, "log") == logged
    assert [(line["name"], line["step_metric"]) for line in recorded(fake, "metric")] == [
        ("step", None), ("tokens_seen", None), ("flops_seen", None), ("*", "step"),
    ]  # fmt: skip
    assert [line["exit_code"] for line in recorded(fake, "finish")] == [0]


def write_steps(folder: Path, first: int, last: int) -> None:
    """Write metrics.jsonl as a run that was stopped, with a validation after every second step."""
    lines = []
    for step in range(first, last + 1):
        validation = {"validation_nats_per_title": 10 / step} if step % 2 == 0 else {}
        lines.append({"step": step, "loss": 1 / step, **validation, "tokens_seen": 100 * step, "time": 1e9 + step})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def open_log(folder: Path, tracking: TrackingSettings, step: int) -> RunLog:
    settings = {"fingerprint": "0123456789abcdef"}
    return RunLog(folder / "metrics.jsonl", tracking, name="n", settings=settings, step=step)


ONLINE = TrackingSettings("online", "p", group="my_sweep")
STORE = Artifact("store", "s1", {"people": 5}, is_input=True)
CHECKPOINT = Artifact("checkpoint", "c1", {"step": 2, "loss": float("nan")}, made_from=(STORE.name,))


def test_a_resumed_run_sends_the_steps_that_a_server_lacks(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEHAVIOR", "")
    monkeypatch.setenv("STARTING_STEP", "3")  # wandb's: the server has steps 1 and 2
    write_steps(fake, 1, 6)
    with open_log(fake, ONLINE, step=4) as log:  # steps 5 and 6 were not saved
        log.write({"step": 5, "loss": 0.2, "time": 1e9 + 5})
        log.summarize(4, [STORE, CHECKPOINT])
    assert [line["step"] for line in recorded(fake, "log")] == [3, 4, 5]
    assert [line["numbers"]["_timestamp"] for line in recorded(fake, "log")] == [1e9 + 3, 1e9 + 4, 1e9 + 5]
    assert recorded(fake, "summary") == [{"kind": "summary", "best_step": 4, "validation_nats_per_title": 2.5}]
    ((start,), (store,), (checkpoint,)) = (recorded(fake, kind) for kind in ("init", "input", "output"))
    assert (start["group"], start["resume"], start["job_type"]) == ("my_sweep", "allow", "train")
    assert (store["name"], store["type"], store["reference"]) == ("store-s1", "store", "laborllm://store/s1")
    assert checkpoint["metadata"] == {"step": 2, "loss": None, "fingerprint": "c1", "made_from": ["store-s1"]}


def test_an_artifact_that_fails_costs_nothing_else(
    fake: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BEHAVIOR", "artifact_raises")
    with open_log(fake, ONLINE, step=0) as log:
        log.summarize(None, [STORE])
        log.write({"step": 1, "loss": 1.0})
    assert "wandb: lacks the artifact store-s1 ([Errno 28] No space left on device)" in capsys.readouterr().out
    assert [line["step"] for line in recorded(fake, "log")] == [1]


@pytest.mark.parametrize(
    ("error", "exit_code", "is_preempted"),
    [
        (InterruptedRunError("on request", code="stopped-on-request"), 75, True),  # an agent starts it again
        (NonFiniteLossError("a step", code="bad-step"), 2, False),
        (ZeroDivisionError(), 1, False),
    ],
)
def test_a_run_ends_in_the_tracker_as_its_process_does(
    error: Exception, exit_code: int, is_preempted: bool, fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BEHAVIOR", "")
    with contextlib.suppress(type(error)), open_log(fake, ONLINE, step=0):
        raise error
    assert [line["exit_code"] for line in recorded(fake, "finish")] == [exit_code]
    assert bool(recorded(fake, "preempting")) == is_preempted


def test_in_a_sweep_wandb_chooses_id_and_project_and_the_config_has_one_name(
    fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BEHAVIOR", "")
    for name in ("SWEEP_ID", "SWEEP_PARAM_PATH", "RUN_ID", "API_KEY", "ENTITY", "NOTES", "TAGS", "DIR", "GIT_COMMIT"):
        monkeypatch.setenv(f"WANDB_{name}", "x")
    track(fake)
    (start,) = recorded(fake, "init")
    assert {"id", "project", "resume"} & start.keys() == set()
    assert list(start["config"]) == ["laborllm_dist"]
    assert start["config"]["laborllm_dist"]["optimizer"]["learning_rate"] == 1e-3
    kept = ("API_KEY", "ENTITY", "RUN_ID", "SWEEP_ID", "SWEEP_PARAM_PATH")
    assert start["environment"] == [f"WANDB_{name}" for name in kept]


@pytest.mark.parametrize(
    ("setting", "environment", "mode"),
    [
        ("off", {"WANDB_API_KEY": "k"}, None),
        ("auto", {}, "offline"),
        ("auto", {"WANDB_API_KEY": "k"}, "online"),
        ("auto", {"WANDB_API_KEY": "k", "WANDB_MODE": "offline"}, "offline"),
        ("auto", {"WANDB_API_KEY": "k", "WANDB_MODE": "disabled"}, None),
        ("online", {"WANDB_MODE": "disabled"}, "online"),
    ],
)
def test_the_mode_of_wandb(setting: Any, environment: dict[str, str], mode: str | None) -> None:
    assert tracker._wandb_mode(TrackingSettings(setting, "p"), environment) == mode


AFTER = "metrics.jsonl has the numbers"


@pytest.mark.parametrize(
    ("behavior", "text", "num_logged"),
    [
        (
            "init_online_raises",
            "wandb: does not start online ([Errno 28] No space left on device); continues offline",
            3,
        ),
        ("init_online_asks", "wandb: does not start online (EOF when reading a line); continues offline", 3),
        (
            "init_raises",
            f"wandb: does not start ([Errno 28] No space left on device); continues without it, {AFTER}",
            0,
        ),
        ("no_import", f"wandb: does not start (no wandb here); continues without it, {AFTER}", 0),
        ("log_raises", f"wandb: has failed ([Errno 28] No space left on device); {AFTER}", 0),
        ("finish_raises", f"wandb: has failed ([Errno 28] No space left on device); {AFTER}", 3),
        ("init_is_killed", "wandb: ended before everything was written or uploaded; `python launch/track.py run=", 0),
        ("log_is_killed", "wandb: ended before everything was written or uploaded", 0),
        ("init_hangs", "wandb: was ended before everything was written or uploaded", 0),
        ("log_hangs", "wandb: was ended before everything was written or uploaded", 0),
        ("finish_hangs", "wandb: was ended before everything was written or uploaded", 3),
    ],
)
def test_a_training_goes_on_and_says_so_in_a_line(
    behavior: str, text: str, num_logged: int, fake: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("BEHAVIOR", behavior)
    if behavior.endswith("hangs"):
        monkeypatch.setattr(tracker, "CLOSE_SECONDS", 2.0)
    assert track(fake) < 6
    printed = capsys.readouterr()
    assert printed.err == ""
    assert text in printed.out
    assert len(recorded(fake, "log")) == num_logged
    if "offline" in text:
        assert [line["mode"] for line in recorded(fake, "init")] == ["online", "offline"]
        assert recorded(fake, "teardown")
    else:
        assert len(printed.out.splitlines()) <= 2


def test_one_limit_holds_for_the_end_of_all_trackers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker, "PROGRAM", "import time; time.sleep(60)")
    monkeypatch.setattr(tracker, "CLOSE_SECONDS", 2.0)
    log = open_log(tmp_path, TrackingSettings("offline", "p", tensorboard=True), step=0)
    assert len(log._trackers) == 2
    started = monotonic()
    log.close()
    assert 2 <= monotonic() - started < 3.5


def test_lines_that_nobody_takes_fill_no_memory(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEHAVIOR", "init_hangs")
    monkeypatch.setattr(tracker, "CLOSE_SECONDS", 0.5)
    monkeypatch.setattr(tracker, "MOST_WAITING", 10)
    track(fake, num_steps=2_000)


def test_signals_for_the_training_do_not_reach_the_process(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEHAVIOR", "")
    settings = {"fingerprint": "0123456789abcdef"}
    log = RunLog(fake / "metrics.jsonl", TrackingSettings("offline", "p"), name="n", settings=settings, step=0)
    log.write({"step": 1, "loss": 1.0})
    log.write({"step": 2, "loss": 0.5})  # the first one is complete now
    started = monotonic()
    while not recorded(fake, "log"):
        assert monotonic() - started < 30
    (start,) = recorded(fake, "init")
    assert os.getpgid(start["pid"]) != os.getpgid(0)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(start["pid"], number)
    log.write({"step": 3, "loss": 0.4})
    log.close()
    assert [line["step"] for line in recorded(fake, "log")] == [1, 2, 3]


def test_no_process_can_be_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr("subprocess.Popen", refuse)
    track(tmp_path)
    assert capsys.readouterr().out == (
        f"wandb: does not start (Resource temporarily unavailable); continues without it, {AFTER}\n"
    )


def test_a_process_that_ends_by_itself_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    track(tmp_path)
    assert capsys.readouterr().out == f"wandb: failed; {AFTER}\n"


@pytest.mark.parametrize("key", ["0123456789" * 4, "faulty"])
def test_a_key_without_a_network_goes_on_offline_with_wandb_itself(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracker, "INIT_SECONDS", 2.0)
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # where nobody listens
    assert track(tmp_path, "auto") < 25
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("wandb: does not start online (")
    assert line.endswith("); continues offline, `wandb sync` uploads it later")
    (file,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    assert b"loss" in file.read_bytes()
    assert key.encode() not in file.read_bytes()


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_pipe_or_a_folder_in_the_log_s_place_is_refused(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "metrics.jsonl")
    with raises("foreign-file/not-a-regular-file", "metrics.jsonl"):
        RunLog(tmp_path / "metrics.jsonl", TrackingSettings("off", "p"), name="n", settings={}, step=0)


def test_settings_that_are_tracked_hold_no_text_that_somebody_has_written() -> None:
    paths = ["output_dir=/home/ann/runs", "store.root=/home/ann/stores", "zero.nvme_path=/home/ann/nvme"]
    weights = ["model=pretrained", "model.path=/home/ann/llama", "tokenizer=pretrained", "tokenizer.path=/home/ann/t"]
    values = tracked_settings(
        settings_of([*paths, *weights, "split.salt=ann", "name=mine", "optimizer.learning_rate=2e-5"])
    )
    text = json.dumps(values)
    assert "ann" not in text.replace("channel", "")
    assert (values["name"], values["optimizer"]["learning_rate"], values["zero"]["stage"]) == ("mine", 2e-5, 2)
    model = {"attention_dropout": 0.0, "weights": "safetensors", "path": "llama"}  # the last part of the path
    assert values["model"] == {**model, "name": "pretrained"}
    assert values["tokenizer"]["path"] == "t"
    assert values["corpora"] == {"wage_panel": {"kind": "wage_panel", "fraction": 1.0, "weight": 1.0}}
    assert tracked_settings(settings_of([]))["batch"]["global_batch_size"] == 32


def test_wandb_s_own_folder_holds_no_person_path_host_or_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_CONSOLE", "wrap")  # what a user's environment turns on stays off
    monkeypatch.setenv("WANDB_SAVE_CODE", "true")
    home = tmp_path / "ann_s_home"
    (home / "run").mkdir(parents=True)
    settings = {"fingerprint": "0123456789abcdef", **tracked_settings(settings_of(small_run(home)))}
    log = RunLog(home / "run/metrics.jsonl", TrackingSettings("offline", "p"), name="n", settings=settings, step=0)
    print("step 1 was not learned from; its careers: PSID 4711")
    log.write({"step": 1, "loss": 0.123456789, "careers": ["PSID 4711"], "left_out": "its careers: PSID 4711"})
    log.close()
    files = [path for path in (home / "run/wandb").rglob("*") if path.is_file() or path.is_symlink()]
    (wandb_file,) = [path for path in files if path.suffix == ".wandb"]
    assert b"0.123456789" in wandb_file.read_bytes()  # what was given is there in plain
    assert b"learning_rate" in wandb_file.read_bytes()
    private = ["4711", "ann_s_home", str(tmp_path), socket.gethostname(), os.uname().release, str(Path.home())]
    private += [name for name in (getpass.getuser(),) if len(name) > 3 and name != "root"]
    for path in files:
        assert not path.is_symlink()
        for text in private:
            assert text.encode() not in path.read_bytes(), f"{text} in {path}"


def launched(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> RunSettings:
    """Return the settings with which launch/train.py starts."""
    seen: list[RunSettings] = []
    monkeypatch.setattr("sys.argv", ["launch/train.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        launch(RunSettings, "run", seen.append, "Train.")
    assert ended.value.code == 0
    return seen[0]


def test_in_a_sweep_a_run_is_named_by_its_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launched(monkeypatch, "name=small").name == "small"
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    first = launched(monkeypatch, "name=small", "optimizer.learning_rate=1e-3").name
    assert re.fullmatch(r"small-[0-9a-f]{16}", first)
    # An agent that starts a run again sends all of wandb's config; how a run is computed is not what it is.
    added = ["_wandb={'cli_version': '0.31.0'}", "laborllm_dist={'optimizer': {'learning_rate': 0.001}}"]
    again = launched(monkeypatch, "name=small", *added, "optimizer.learning_rate=0.001", "tracking.wandb=offline")
    assert again.name == first
    assert launched(monkeypatch, "name=small", "optimizer.learning_rate=2e-3").name != first
    long = launched(monkeypatch, f"name={'n' * 120}", "optimizer.learning_rate=1e-3").name
    assert (len(long), long[-16:]) == (120, first[-16:])
