"""The suite for a GPU, without one: what it says of parts that fail, hang or leave nothing, and its comparisons."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from gpu_suite import correctness, peers, runner
from records import Record, RecordFile

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"

CPU = torch.device("cpu")


def begun(folder: Path) -> RecordFile:
    return RecordFile.begin("gpu-suite", "Suite", folder)


def is_running(pid: int) -> bool:
    """Return whether a process is there and no zombie."""
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def wait_until(condition) -> None:
    deadline = time.monotonic() + 180  # on a machine that does other work, too
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_every_part_leaves_a_record_whatever_becomes_of_it(tmp_path: Path, monkeypatch) -> None:
    file = begun(tmp_path)
    program = "import sys; from pathlib import Path; from records import Record, RecordFile; "
    program += "RecordFile(Path(sys.argv[1])).add(Record('good', 'x', numbers={'seconds': 1.5}))"
    monkeypatch.setenv("PYTHONPATH", str(BENCHMARKS), prepend=os.pathsep)
    jobs = [
        runner.Job("good", "x", 60, (sys.executable, "-c", program, str(file.path))),
        runner.Job("broken", "x", 60, ("sh", "-c", "exit 3")),
        runner.Job("silent", "x", 60, ("true",)),
    ]
    runner.run_jobs(jobs, file, seconds=120)
    runner.run_jobs([runner.Job("late", "x", 60, ("true",))], file, seconds=1)
    *_, records = file.read()
    assert dataclasses.replace(records[0], load=None) == Record("good", "x", "measured", {"seconds": 1.5})
    assert [(record.part, record.outcome) for record in records[1:]] == [
        ("broken", "failed"), ("silent", "failed"), ("late", "skipped")
    ]  # fmt: skip
    assert [record.note for record in records[2:]] == ["left no record", "not measured: no time left"]
    assert records[1].note.endswith("code 3")


def test_a_part_that_hangs_is_ended_with_its_children(tmp_path: Path) -> None:
    file, pids = begun(tmp_path), tmp_path / "pids"
    hanging = f"sh -c 'sleep 600 & echo $! >> {pids}; wait' & echo $! >> {pids}; echo $$ >> {pids}; wait"
    runner.run_jobs([runner.Job("hanging", "x", 3, ("sh", "-c", hanging))], file, seconds=60)
    started = [int(pid) for pid in pids.read_text().split()]
    assert len(started) == 3
    wait_until(lambda: not any(map(is_running, started)))
    (record,) = file.read()[2]
    assert record.outcome == "failed"
    assert record.note == "ended after 3 s, its limit"


def test_a_failing_part_makes_the_exit_code_1_and_a_record(tmp_path: Path, monkeypatch, capsys) -> None:
    # The process of the case is the suite's own, which knows no such case and ends with an error.
    unknown = runner.Case("unknown", "x", 120, correctness.step)
    monkeypatch.setattr(runner, "cases", lambda: [unknown, dataclasses.replace(unknown, part="other")])
    file = begun(tmp_path)
    assert runner.run_suite(file, ["unknown"], "tiny", 120) == 1
    _, environment, records = file.read()
    assert environment.versions["torch"] == torch.__version__
    assert [(record.part, record.outcome) for record in records] == [("unknown", "failed"), ("other", "skipped")]
    printed = capsys.readouterr().out
    assert "hardware" in printed and "not asked for" in printed


def test_the_suite_runs_from_anywhere_and_says_what_a_cpu_cannot_show(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [
        sys.executable,
        str(BENCHMARKS / "gpu_suite"),
        "--shape",
        "tiny",
        "--parts",
        "step,lora",
        "--out",
        "found",
    ]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (records_path,) = (tmp_path / "found").glob("*-gpu-suite.json")
    *_, records = RecordFile(records_path).read()
    outcomes = {(record.part, record.subject): record.outcome for record in records}
    if not torch.cuda.is_available():
        assert outcomes[("step", "fp32")] == "skipped"
        (lora, _) = (record for record in records if record.part == "lora")
        assert lora.outcome == "measured"
        assert "memory not measured: there is no GPU" in lora.note
        assert "planned_gib" not in lora.numbers
        assert 5 < lora.numbers["first_loss_nats_per_token"] < 8  # of 512 ids: log(512) is 6.2
    assert outcomes[("offload", "rows of 4,096")] == "skipped"


def test_a_suite_that_is_ended_ends_its_part(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, str(BENCHMARKS / "gpu_suite"), "--shape", "tiny", "--parts", "evaluate"]
    suite = subprocess.Popen([*command, "--out", str(tmp_path)], env=environment, stdout=subprocess.DEVNULL)

    def children() -> list[int]:
        return [int(pid) for pid in Path(f"/proc/{suite.pid}/task/{suite.pid}/children").read_text().split()]

    def part() -> list[int]:
        return [pid for pid in children() if b"--case" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    wait_until(part)
    (running,) = part()
    suite.send_signal(signal.SIGTERM)
    assert suite.wait(timeout=180) == 128 + signal.SIGTERM
    wait_until(lambda: not is_running(running))


def test_steps_agree_within_tolerances_and_nothing_agrees_with_no_number() -> None:
    fp32, bf16 = (correctness.one_step(precision, CPU) for precision in ("fp32", "bf16"))
    assert correctness.compared("fp32", fp32, fp32).outcome == "passed"
    # bf16 is as far from fp32 as two devices in bf16 may be from each other: the tolerance is neither tight nor empty.
    rounded = correctness.compared("bf16", bf16, fp32)
    assert rounded.outcome == "passed"
    assert rounded.numbers["largest_gradient_error"] > 1e-3
    assert correctness.compared("fp32", bf16, fp32).outcome == "failed"
    name = next(iter(fp32.gradients))
    for gradient in (1.1 * fp32.gradients[name], float("nan") * fp32.gradients[name]):
        other = dataclasses.replace(fp32, gradients={**fp32.gradients, name: gradient})
        record = correctness.compared("bf16", other, fp32)
        assert record.outcome == "failed"
        assert name in record.note
    assert correctness.compared("fp32", dataclasses.replace(fp32, loss=fp32.loss * 1.01), fp32).outcome == "failed"
    assert 5 < fp32.loss < 8


def test_ratios_are_of_the_peers_that_were_measured() -> None:
    records = [
        Record("peers", peers.OURS, "measured", {"tokens_per_second": 300.0}),
        Record("peers", peers.TRAINER, "measured", {"tokens_per_second": 150.0}),
        Record("peers", peers.SFT, "skipped", note="trl is not installed"),
    ]
    assert [(each.subject, each.numbers) for each in peers.ratios(records)] == [
        ("laborllm_dist / transformers.Trainer", {"ratio": 2.0})
    ]
    assert peers.ratios(records[1:]) == []
