"""A real sweep of two small models by launch/sweep.py, killed between and in its runs; and one as an array of Slurm."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from helpers.processes import ON_CPU, PROJECT, python_path, wait_until
from helpers.runs import small_run
from helpers.slurm import MadeSlurm, made_slurm, why_no_slurm

from laborllm_dist.sweeps.points import read_points

NUM_STEPS = 8  # of 48 training people, 14 a step, two epochs
COMMON = ["batch.global_batch_size=14", "training.epochs=2", "training.checkpoint_every_steps=1"]


def arguments_of(folder: Path, *more: str) -> list[str]:
    """Return the arguments of launch/sweep.py for a sweep of two seeds of a tiny model."""
    common = json.dumps([*small_run(folder), *COMMON, "gpu@plan.gpu=cpu_core"])
    return [
        "name=two", f"sweeps_dir={folder}/sweeps", f"common={common}", "models={tiny: []}", "mixes={market: []}",
        "seeds=[1,2]", "baselines=[truth]", *more,
    ]  # fmt: skip


def metrics(run: Path) -> list[dict[str, float]]:
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def trained(folder: Path, seed: int) -> Path:
    (run,) = (folder / "runs").glob(f"*-seed{seed}-*")
    return run


def check_whole(folder: Path) -> None:
    """Check that both runs are trained, step by step, scored, and recorded."""
    for seed in (1, 2):
        assert [line["step"] for line in metrics(trained(folder, seed))] == list(range(1, NUM_STEPS + 1))
        metric = yaml.safe_load((PROJECT / "conf/wandb_sweep/learning_rates.yaml").read_text())["metric"]["name"]
        assert metric in metrics(trained(folder, seed))[-1]
    points = read_points(folder / "sweeps/two/points.csv")
    assert [(point.size, point.seed, point.run) for point in points] == [
        ("tiny", seed, str(trained(folder, seed))) for seed in (1, 2)
    ]
    assert all((Path(str(point.run)) / "scores/test.parquet").is_file() for point in points)
    assert (trained(folder, 1) / "scores/test.truth.parquet").is_file()


@pytest.mark.ranks
@pytest.mark.timeout(1200)
def test_a_sweep_that_is_killed_goes_on_to_its_end(tmp_path: Path) -> None:
    environment = {**os.environ, **ON_CPU, **python_path(), "COLUMNS": "80"}
    command = [sys.executable, str(PROJECT / "launch/sweep.py")]

    def begun(*arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*command, *arguments], env=environment, cwd=tmp_path, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def is_in_second_run() -> bool:
        return any(metrics(run) for run in (tmp_path / "runs").glob("*-seed2-*"))

    first = begun(*arguments_of(tmp_path))
    try:
        wait_until(is_in_second_run, time_limit=580, what="the second run is at work")
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate()
    text, _ = begun(*arguments_of(tmp_path)).communicate(timeout=580)
    assert "Runs of sweep two: 2" in text
    assert "run 1 of 2" in text and ", is done\n" in text
    assert text.rstrip().endswith(f"all 2 runs are done; {tmp_path}/sweeps/two/points.csv")
    check_whole(tmp_path)
    status, _ = begun("status", *arguments_of(tmp_path)).communicate(timeout=200)
    rows = [line.split() for line in status.splitlines() if line.startswith("tiny")]
    assert [row[:6] for row in rows] == [["tiny", "market", "1", seed, "done", "8/8"] for seed in ("1", "2")]
    assert all(0 < float(row[-1]) < 200 for row in rows)
    # The disk that the list names is for the newest two checkpoints, the best one, and the export.
    (listed,) = {line.split()[-2] for line in text.splitlines() if line.startswith("tiny") and "min" in line}
    run = trained(tmp_path, 1)
    newest, export = max((run / "checkpoints").glob("step_????????")), run / "export"
    sizes = [sum(path.stat().st_size for path in folder.glob("*.safetensors")) for folder in (newest, export)]
    assert float(listed.removesuffix("MB")) * 1e6 == pytest.approx(3 * sizes[0] + sizes[1], rel=0.05)


@pytest.fixture(scope="module")
def slurm() -> Iterator[MadeSlurm]:
    with made_slurm() as made:
        yield made


@pytest.mark.slurm
@pytest.mark.timeout(1200)
@pytest.mark.skipif(bool(why_no_slurm()), reason=f"no Slurm: {why_no_slurm()}")
def test_an_array_of_jobs_executes_a_sweep(slurm: MadeSlurm, tmp_path: Path) -> None:
    array = "{minutes: 30, cpus_per_rank: 1, memory_gib: 1, has_gpus: false, max_parallel: 1}"
    arguments = arguments_of(tmp_path, "executor=slurm", f"array={array}")
    sweep = ("python", "launch/sweep.py")
    text = slurm.run(*sweep, *arguments, time_limit=300)
    assert text.rstrip().endswith("0 of 2 runs are done, 0 in the queue, 2 submitted; sweep.py status shows them")
    again = slurm.run(*sweep, *arguments, time_limit=120)
    assert "in the queue, 0 submitted" in again
    wait_until(lambda: not slurm.run("squeue", "--noheader"), time_limit=900, what="the jobs have ended")
    check_whole(tmp_path)
    assert "2 of 2 runs are done" in slurm.run(*sweep, "status", *arguments, time_limit=120)
