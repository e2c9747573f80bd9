"""How a sweep is executed: resumed, never repeated, stopped in order, with failures that stop no other run.

A program stands in the place of the scripts of launch/ (programs/step_of_run.py): it writes the records of runs, and
no model is trained. tests/sweeps/test_sweep.py trains.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import re
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from helpers.errors import raises
from helpers.processes import free_port, wait_until
from helpers.runs import small_run
from helpers.sweeps import ARRAY, opened_sweep, small_scripts
from submitit.slurm.slurm import _make_sbatch_string

from laborllm_dist.distributed.gpu_shares import GpuShare
from laborllm_dist.errors import DiskError, InterruptedRunError, LaborError
from laborllm_dist.io.files import file_lock, fingerprint_of, write_json
from laborllm_dist.io.run_directory import create_or_resume
from laborllm_dist.store.build import prepare_store
from laborllm_dist.sweeps.array import array_parameters, cancel_jobs, jobs_of, submit
from laborllm_dist.sweeps.execute import (
    PROCESS,
    StopSignals,
    cancel,
    execute_run,
    launcher,
    left_running,
    prepare_unknown,
    run_locally,
)
from laborllm_dist.sweeps.points import read_points
from laborllm_dist.sweeps.runs import plan_runs
from laborllm_dist.sweeps.state import (
    ProcessRecord,
    RunRecord,
    Sweep,
    end_groups,
    finished_folders,
    queued_jobs,
    read_record,
    state_of,
    write_record,
)
from laborllm_dist.sweeps.sweep import act

TwoRuns = Callable[..., Sweep]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the setting of a folder with the token store of the sweeps."""
    folder = tmp_path_factory.mktemp("prepared")
    prepare_store(opened_sweep(folder).runs[0].settings)
    return f"store.root={folder}/stores"


@pytest.fixture
def sweep(tmp_path: Path, stores: str, monkeypatch: pytest.MonkeyPatch) -> TwoRuns:
    """Return a function that opens a sweep of two runs whose steps are the small program's."""
    monkeypatch.chdir(tmp_path)
    scripts = small_scripts(tmp_path / "launch")

    def opened(**changes: object) -> Sweep:
        sweep = opened_sweep(tmp_path, scripts, more=(stores,), **changes)
        for run in sweep.runs:
            if run.mix in sweep.locations:
                location = sweep.locations[run.mix]
                store = {"fingerprint": fingerprint_of(location.identity), "folder": str(location.folder)}
                create_or_resume(dataclasses.replace(run.settings, output_dir="records"), store, None)
        return sweep

    return opened


def journal() -> list[str]:
    return Path("journal").read_text().splitlines() if Path("journal").exists() else []


def execute_apart(sweep: Sweep) -> BaseProcess:
    """Execute a sweep in a process of its own, which ends with a command's exit code."""

    def work() -> None:
        try:
            run_locally(sweep)
        except LaborError as error:
            os._exit(error.exit_code)
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


@contextlib.contextmanager
def first_run_waiting(sweep: Sweep) -> Iterator[BaseProcess]:
    """Execute a sweep until its first run waits to be stopped."""
    Path("wait_1").touch()
    process = execute_apart(sweep)
    wait_until(Path("waits_1").exists, time_limit=60, what="the first run is at work")
    Path("wait_1").unlink()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def test_runs_are_done_in_order_and_never_twice(sweep: TwoRuns) -> None:
    two = sweep(baselines=("truth", "first_order"))
    run_locally(two)
    assert journal() == ["prepare 1", "baselines 1", "train 1", "evaluate 1", "train 2", "evaluate 2"]
    points = read_points(two.folder / "points.csv")
    assert [(point.run, point.seed) for point in points] == [(str(run.folder), run.seed) for run in two.runs]
    assert (two.runs[0].folder / "scores/test.truth.parquet").is_file()
    run_locally(two)
    # Another sweep that shares a run, at its side another one.
    run_locally(sweep(name="other", seeds=(2, 3)))
    assert journal()[6:] == ["train 3", "evaluate 3"]


def test_a_run_that_somebody_has_trained_under_another_name_is_done(sweep: TwoRuns) -> None:
    two = sweep()
    run_locally(sweep(seeds=(2,)))
    by_hand = two.runs[1].folder.rename(two.runs[1].folder.with_name("by_hand"))
    run_locally(two)
    assert journal()[3:] == ["prepare 1", "train 1", "evaluate 1"]
    assert [point.run for point in read_points(two.folder / "points.csv")] == [str(two.runs[0].folder), str(by_hand)]
    longer = sweep(models={"tiny": ("training.epochs=5",)})
    assert finished_folders(longer) == {}
    # Scores of another precision are others.
    other = sweep(models={"tiny": ("evaluation.precision=bf16",)})
    assert finished_folders(other) == {}


def test_a_run_that_fails_is_reported_and_stops_no_other(sweep: TwoRuns, capsys: pytest.CaptureFixture[str]) -> None:
    two = sweep()
    Path("fail_1").touch()
    with raises("sweep/runs-failed", "1 of 2 runs", two.runs[0].name, "the loss of step 7 is nan"):
        run_locally(two)
    log = two.log_of(two.runs[0].name)
    assert f"has failed in train, code 2: error: the loss of step 7 is nan [non-finite-loss/bad-step] ({log})" in (
        capsys.readouterr().err
    )
    record = read_record(two.record_of(two.runs[0].name))
    assert record is not None and state_of(two.runs[0], record, {}, {}) == "failed"
    assert journal() == ["prepare 1", "train 1", "train 2", "evaluate 2"]
    Path("fail_1").unlink()
    run_locally(two)
    assert journal()[4:] == ["train 1", "evaluate 1"]
    assert read_record(two.record_of(two.runs[0].name)) is None


def test_data_that_cannot_be_prepared_stop_only_their_own_runs(
    sweep: TwoRuns, stores: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The small program finds no record of a run whose data are missing."""
    common = (*(each for each in small_run(tmp_path) if not each.startswith("data")), stores)
    mixes = {
        "lost": ("data=long_panel", "data.corpora.long_panel.path=nowhere.csv", "training=default", "optimizer=adamw"),
        "market": ("data=synthetic", "data.corpora.synthetic.num_people=60"),
    }
    both = sweep(common=common, mixes=mixes, seeds=(1,))
    with raises("sweep/runs-failed", "1 of 2 runs", "No such file"):
        act(both)
    shown = capsys.readouterr()
    assert shown.err.count("lost-baselines has failed in prepare") == 1
    assert "Runs of sweep two_seeds: 1" in shown.out
    assert [run.mix for run in both.runs if run.name in finished_folders(both)] == ["market"]
    record = read_record(both.record_of(both.runs[0].name))
    assert record is not None and (both.runs[0].mix, record.state, record.step) == ("lost", "failed", "prepare")


def test_a_panel_of_unknown_size_is_prepared_before_its_runs_are_planned(tmp_path: Path) -> None:
    """By the real script: 20 people of three years each; a quarter of the 16 training people is about four."""
    (tmp_path / "titles.csv").write_text("code,title\na,Cooks\nb,Bakers\n")
    rows = [f"{person},{year},{'ab'[year % 2]},,,,,\n" for person in range(20) for year in (1990, 1991, 1992)]
    (tmp_path / "panel.csv").write_text(
        "person,year,occupation,birth_year,gender,ethnicity,region,education\n" + "".join(rows)
    )
    common = (
        *(each for each in small_run(tmp_path) if not each.startswith("data")),
        "split.train=0.8",
        "training.patience=null",
    )
    panel = (
        "data=long_panel", f"data.corpora.long_panel.path={tmp_path}/panel.csv",
        f"data.corpora.long_panel.vocabulary.path={tmp_path}/titles.csv", "tokenizer.vocabulary_size=300",
        "batch.global_batch_size=2",
    )  # fmt: skip
    sweep = opened_sweep(tmp_path, common=common, mixes={"panel": panel}, shares=(0.25, 1.0))
    with raises("data-file/unknown-corpus-size", "launch/sweep.py +sweep=NAME makes it itself"):
        plan_runs(sweep.runs, sweep.locations)
    prepare_unknown(sweep)
    log = sweep.log_of("panel-baselines").read_text()
    assert "20 careers" in log
    few, all_people = (run for run in plan_runs(sweep.runs, sweep.locations) if run.run.seed == 1)
    (num_training,) = (int(each) for each in re.findall(r"(\d+) train,", log))
    assert (few.work.is_assumed, all_people.num_people) == (False, num_training)
    assert 0 < few.num_people < all_people.num_people
    prepare_unknown(sweep)
    assert sweep.log_of("panel-baselines").read_text() == log


def test_a_panel_of_unknown_size_that_cannot_be_prepared_is_one_line(tmp_path: Path) -> None:
    common = tuple(each for each in small_run(tmp_path) if not each.startswith("data"))
    panel = ("data=long_panel", f"data.corpora.long_panel.path={tmp_path}/nowhere.csv", "training.patience=null")
    sweep = opened_sweep(tmp_path, common=common, mixes={"panel": panel})
    with raises("sweep/not-prepared", "panel cannot be prepared: error: ", "nowhere.csv", "panel-baselines.log"):
        prepare_unknown(sweep)
    records = [read_record(sweep.record_of(run.name)) for run in sweep.runs]
    assert {(record.state, record.step) for record in records if record is not None} == {("failed", "prepare")}
    assert len(records) == 2 and None not in records


@pytest.mark.parametrize("executor", ["local", "slurm"])
def test_a_second_start_prepares_nothing_of_unknown_size(executor: str, tmp_path: Path) -> None:
    common = tuple(each for each in small_run(tmp_path) if not each.startswith("data"))
    panel = ("data=long_panel", f"data.corpora.long_panel.path={tmp_path}/nowhere.csv", "training.patience=null")
    sweep = opened_sweep(tmp_path, common=common, mixes={"panel": panel}, executor=executor)
    with (
        file_lock(sweep.folder / "lock", busy=""),
        raises("already-running/locked-by-another-process", "another process executes"),
    ):
        prepare_unknown(sweep)
    assert not sweep.log_of("panel-baselines").exists()


def test_baselines_that_fail_stop_no_run_and_are_named(sweep: TwoRuns) -> None:
    two = sweep(baselines=("truth",))
    (two.scripts / "baselines.py").write_text("print('error: no truth [run/no-truth]')\nraise SystemExit(2)\n")
    with raises("sweep/runs-failed", "0 of 2 runs are not done, nor 1 sets of baselines", "error: no truth"):
        run_locally(two)
    assert len(finished_folders(two)) == 2


def test_a_signal_stops_the_sweep_and_its_run_in_order(sweep: TwoRuns) -> None:
    two = sweep()
    with first_run_waiting(two) as process:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGTERM)
        process.join(60)
        assert process.exitcode == InterruptedRunError.exit_code
    name = two.runs[0].name
    record = read_record(two.record_of(name))
    assert record is not None
    assert (record.state, record.last_line) == ("stopped", "stopped: on request, after step 1, which is saved")
    assert state_of(two.runs[0], record, {}, {}) == "interrupted"
    run_locally(two)
    assert journal() == ["prepare 1", "train 1", "train 1", "evaluate 1", "train 2", "evaluate 2"]


def test_runs_at_the_same_time_have_gpus_of_their_own_and_one_signal_stops_all(
    sweep: TwoRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,3")
    pair = sweep(max_parallel=2, seeds=(1, 2, 3))
    Path("wait_2").touch()
    with first_run_waiting(pair) as process:
        wait_until(Path("waits_2").exists, time_limit=60, what="the second run is at work")
        assert process.pid is not None
        os.kill(process.pid, signal.SIGTERM)
        process.join(60)
        assert process.exitcode == InterruptedRunError.exit_code
    records = [read_record(pair.record_of(run.name)) for run in pair.runs]
    stopped = ("stopped", "stopped: on request, after step 1, which is saved")
    assert [(each.state, each.last_line) for each in records[:2] if each is not None] == [stopped, stopped]
    assert sorted(journal()) == ["prepare 1", "train 1", "train 2"]  # the third has not started
    assert records[2] is None
    assert sorted(Path(f"gpus_{seed}").read_text() for seed in (1, 2)) == ["3\n", "5\n"]
    Path("wait_2").unlink()
    run_locally(pair)
    assert sorted(journal()[3:]) == sorted(f"{step} {seed}" for step in ("train", "evaluate") for seed in (1, 2, 3))
    assert len(read_points(pair.folder / "points.csv")) == 3
    assert all(set(Path(f"gpus_{seed}").read_text().split()) <= {"3", "5"} for seed in (1, 2, 3))


def test_a_run_that_fails_stops_none_beside_it(sweep: TwoRuns) -> None:
    many = sweep(max_parallel=3, seeds=(1, 2, 3, 4))
    Path("fail_2").touch()
    with raises("sweep/runs-failed", "1 of 4 runs", many.runs[1].name, "the loss of step 7 is nan"):
        run_locally(many)
    assert set(finished_folders(many)) == {run.name for run in many.runs} - {many.runs[1].name}


def test_a_disk_that_fails_starts_no_other_run(sweep: TwoRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: Sweep) -> dict[str, Path]:
        if any(line.startswith("evaluate") for line in journal()):
            raise DiskError("no space left", code="full")
        return {}

    monkeypatch.setattr("laborllm_dist.sweeps.execute.record_points", full)
    many = sweep(max_parallel=2, seeds=(1, 2, 3, 4, 5))
    with raises("disk/full", "no space left"):
        run_locally(many)
    assert {line for line in journal() if line.startswith("train")} == {"train 1", "train 2"}


def test_a_run_that_cannot_be_recorded_is_ended(sweep: TwoRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next start would not know of it."""

    def full(path: Path, record: RunRecord) -> None:
        if record.step == "train":
            wait_until(Path("waits_1").exists, time_limit=60, what="the first run is at work")
            raise DiskError("no space left", code="full")
        write_record(path, record)

    monkeypatch.setattr("laborllm_dist.sweeps.execute.write_record", full)
    two = sweep()
    Path("wait_1").touch()
    with raises("disk/full", "no space left"):
        run_locally(two)
    assert two.log_of(two.runs[0].name).read_text() == "stopped: on request, after step 1, which is saved\n"
    assert journal() == ["prepare 1", "train 1"]


def test_a_step_takes_its_port_when_it_starts(sweep: TwoRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hours later another process may have a port that was free when the training began."""
    before: list[tuple[str, list[str]]] = []

    def noted(sweep: Sweep, script: str, gpus: GpuShare) -> tuple[str, ...]:
        before.append((script, journal()))
        return launcher(sweep, script, gpus)

    monkeypatch.setattr("laborllm_dist.sweeps.execute.launcher", noted)
    run_locally(sweep(seeds=(1,)))
    assert before == [("train", ["prepare 1"]), ("evaluate", ["prepare 1", "train 1"])]


def test_a_second_start_is_refused_and_cancel_stops_the_first(sweep: TwoRuns) -> None:
    two = sweep()
    with first_run_waiting(two) as process:
        with raises("already-running/locked-by-another-process", "two_seeds", f"process {process.pid} on"):
            run_locally(two)
        record = read_record(two.record_of(two.runs[0].name))
        assert record is not None and record.process is not None
        assert [state_of(run, read_record(two.record_of(run.name)), {}, {}) for run in two.runs] == ["train", "waiting"]
        cancel(two)
        process.join(60)
        assert process.exitcode == InterruptedRunError.exit_code
        assert not record.process.is_running()
    cancel(two)  # nothing is at work
    assert journal() == ["prepare 1", "train 1"]


def test_a_killed_sweep_goes_on_and_ends_what_it_has_left_running(
    sweep: TwoRuns, capsys: pytest.CaptureFixture[str]
) -> None:
    two = sweep()
    with first_run_waiting(two) as process:
        process.kill()
        process.join()
    record = read_record(two.record_of(two.runs[0].name))
    assert record is not None and record.process is not None
    assert record.process.is_running()
    run_locally(two)
    assert not record.process.is_running()
    assert f"process {record.process.number} of a killed sweep is still at work; it is asked to save" in (
        capsys.readouterr().out
    )
    assert journal()[1:] == ["train 1", "train 1", "evaluate 1", "train 2", "evaluate 2"]


def test_several_runs_that_a_killed_sweep_has_left_are_stopped_and_resumed(
    sweep: TwoRuns, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = sweep(max_parallel=2)
    Path("wait_2").touch()
    with first_run_waiting(pair) as process:
        wait_until(Path("waits_2").exists, time_limit=60, what="the second run is at work")
        wait_until(lambda: len(left_running(pair)) == 2, time_limit=60, what="both runs are recorded")
        process.kill()
        process.join()
    Path("wait_2").unlink()
    records = [read_record(pair.record_of(run.name)) for run in pair.runs]
    left = [record.process for record in records if record is not None and record.process is not None]
    assert [process.is_running() for process in left] == [True, True]
    run_locally(pair)
    assert not any(process.is_running() for process in left)
    shown = capsys.readouterr().out
    assert all(f"process {process.number} of a killed sweep is still at work" in shown for process in left)
    steps = [f"{step} {seed}" for step in ("train", "evaluate") for seed in (1, 2)]
    assert sorted(journal()[3:]) == sorted(steps)


def test_process_groups_are_asked_to_stop_at_once(tmp_path: Path) -> None:
    """The first one ends only after the second has been asked."""
    wait = "while [ ! -e asked ]; do sleep 0.1; done"
    groups = [
        subprocess.Popen(
            ["sh", "-c", f"trap '{on_stop}; exit 0' TERM; touch {name}; while :; do sleep 0.1; done"],
            cwd=tmp_path, start_new_session=True,
        )
        for name, on_stop in (("first", wait), ("second", "touch asked"))
    ]  # fmt: skip
    for name in ("first", "second"):
        wait_until((tmp_path / name).exists, time_limit=60, what=f"the {name} group is at work")
    end_groups([group.pid for group in groups], seconds=30)
    assert [group.wait() for group in groups] == [0, 0]


def test_a_process_group_that_does_not_stop_is_killed(tmp_path: Path) -> None:
    deaf = subprocess.Popen(
        ["sh", "-c", "trap '' TERM; touch ready; while :; do sleep 0.1; done"], cwd=tmp_path, start_new_session=True
    )
    wait_until((tmp_path / "ready").exists, time_limit=60, what="the group is at work")
    end_groups([deaf.pid], seconds=0.5)
    assert deaf.wait() == -signal.SIGKILL


def test_cancel_touches_no_process_that_is_not_the_sweep_s(sweep: TwoRuns) -> None:
    """The number of a process that has ended may have been given to another one."""
    two = sweep()
    own = ProcessRecord.of(os.getpid())
    assert own is not None and own.is_running()
    others = [
        dataclasses.replace(own, born="1"),
        dataclasses.replace(own, boot="another boot"),
        dataclasses.replace(own, host="another-host"),
    ]
    for other in others:
        assert not other.is_running()
        write_json(two.folder / PROCESS, dataclasses.asdict(other))
        write_record(two.record_of(two.runs[0].name), RunRecord("running", "train", "log", other))
        cancel(two)  # this test would end
    assert state_of(two.runs[0], RunRecord("running", "train", "log", others[2]), {}, {}) == "train on another-host"


def test_the_state_of_a_job_is_the_queue_s(sweep: TwoRuns, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    two = sweep()
    run, queued, running = two.runs[0], RunRecord("queued", job="7_0"), RunRecord("running", "evaluate", job="7_0")
    assert state_of(run, queued, {}, {"7_0": "PENDING"}) == "queued"
    assert state_of(run, running, {}, {"7_0": "RUNNING"}) == "evaluate"
    assert state_of(run, running, {}, {"7_0": "PENDING"}) == "queued"  # again, after a preemption
    assert state_of(run, running, {}, {"8_0": "RUNNING"}) == "interrupted"
    assert state_of(run, running, {run.name: tmp_path}, {"7_0": "RUNNING"}) == "done"
    assert state_of(run, None, {}, {}) == "waiting"
    squeue = tmp_path / "bin" / "squeue"
    squeue.parent.mkdir()
    squeue.write_text("#!/bin/sh\necho '7_0 PENDING'\necho '9 RUNNING'\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{squeue.parent}:{os.environ['PATH']}")
    for each, job in zip(two.runs, ("7_0", "8_1"), strict=True):
        write_record(two.record_of(each.name), RunRecord("queued", job=job))
    assert jobs_of(two) == {run.name: "7_0"}


def test_a_queue_that_is_unknown_is_not_taken_for_empty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert queued_jobs() == {}  # no Slurm here
    squeue = tmp_path / "squeue"
    squeue.write_text("#!/bin/sh\necho 'unable to contact slurm controller' >&2\nexit 1\n")
    squeue.chmod(0o755)
    with raises("sweep/queue-unknown", "squeue failed", "unable to contact slurm controller"):
        queued_jobs()

    def late(*_: object, **__: object) -> None:
        raise subprocess.TimeoutExpired("squeue", 60)

    monkeypatch.setattr(subprocess, "run", late)
    with raises("sweep/queue-unknown", "within 60 seconds"):
        queued_jobs()


def test_what_slurm_does_not_cancel_is_one_line(
    sweep: TwoRuns, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    two = sweep(executor="slurm")
    write_record(two.record_of(two.runs[0].name), RunRecord("queued", job="7_0"))
    programs = {"squeue": "echo '7_0 PENDING'", "scancel": "echo 'Access denied' >&2; exit 1"}
    for name, line in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with raises("sweep/not-canceled", "scancel failed", "Access denied"):
        cancel_jobs(two)


def test_a_job_that_begins_before_its_submission_is_recorded_keeps_its_own_record(
    sweep: TwoRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = sweep(executor="slurm")
    first, second = (two.record_of(run.name) for run in two.runs)
    failed = RunRecord("failed", "train", "log", job="9_0", last_line="error: no memory")

    def take(*_: object) -> list[str]:
        write_record(first, failed)  # by the job itself
        write_record(second, RunRecord("stopped", job="8_1"))  # by an earlier one
        return ["9_0", "9_1"]

    monkeypatch.setattr("laborllm_dist.sweeps.array._submit", take)
    monkeypatch.setenv("PATH", "nowhere")  # no squeue
    submit(two)
    assert read_record(first) == failed
    assert read_record(second) == RunRecord("queued", log=str(two.log_of(two.runs[1].name)), job="9_1")


def test_a_stop_before_the_first_command_is_an_interruption(sweep: TwoRuns) -> None:
    two = sweep()
    with StopSignals() as stop:
        stop.is_set = True
        with raises("interrupted-run/sweep-stopped", two.runs[0].name):
            execute_run(two, two.runs[0], stop)
    assert journal() == []


def test_a_sweep_of_another_machine_is_canceled_there(sweep: TwoRuns) -> None:
    two = sweep()
    own = ProcessRecord.of(os.getpid())
    assert own is not None
    write_json(two.folder / PROCESS, dataclasses.asdict(dataclasses.replace(own, host="login7")))
    with file_lock(two.folder / "lock", busy="busy"), raises("sweep/elsewhere", "two_seeds", "login7"):
        cancel(two)


def test_what_slurm_does_not_take_is_one_line(sweep: TwoRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "nowhere")
    with raises("sweep/not-submitted", "srun"):
        submit(sweep(executor="slurm"))
    lost = {"lost": ("data.corpora.synthetic.seed=5",)}
    (sweep().scripts / "prepare.py").write_text("raise SystemExit('error: no file')\n")
    with raises("sweep/not-prepared", "lost"):
        submit(sweep(executor="slurm", mixes=lost))


def test_the_array_asks_slurm_for_ranks_and_nodes(sweep: TwoRuns) -> None:
    array = dataclasses.replace(
        ARRAY, partition="gpu", account="labor", minutes=90, has_gpus=True, memory_gib=None, signal_seconds=300
    )
    settings = sweep(executor="slurm", num_ranks=8, num_nodes=2, array=array).settings
    text = _make_sbatch_string(command="python -m job", folder="jobs", map_count=17, **array_parameters(settings))
    assert {line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH")} >= {
        "job-name=laborllm_two_seeds", "nodes=2", "ntasks-per-node=8", "gpus-per-node=8", "cpus-per-task=1", "time=90",
        "partition=gpu", "account=labor", "mem=0", "signal=TERM@300", "requeue", "array=0-16%2", "open-mode=append",
    }  # fmt: skip
    assert text.rstrip().endswith("python -m job")  # slurm.sbatch starts the ranks by srun


def test_several_ranks_are_started_by_deepspeed(sweep: TwoRuns) -> None:
    one, two, many = (sweep(num_ranks=1), sweep(num_ranks=2), sweep(executor="slurm", num_ranks=8, num_nodes=2))
    assert launcher(one, "train")[1:] == (str(one.scripts / "train.py"),)
    program, *words = launcher(two, "train")
    assert Path(program).name == "deepspeed"
    assert (words[:2], words[-1]) == (["--num_gpus", "2"], str(two.scripts / "train.py"))
    assert launcher(many, "evaluate") == ("bash", str(many.scripts / "slurm.sbatch"), "evaluate")
    program, *words = launcher(two, "train", GpuShare(("3", "5")))
    assert words[:2] == ["--include", "localhost:3,5"]


def test_ranks_meet_at_a_free_port_of_their_run(sweep: TwoRuns) -> None:
    two = sweep(num_ranks=2)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        first, other = taken.getsockname()[1], free_port()
        both = range(first, other + (1 if other > first else -1), other - first)
        _, *words = launcher(two, "train", GpuShare(ports=both))
    assert (list(both), words[words.index("--master_port") + 1]) == ([first, other], str(other))
