"""The shipped sbatch file under a real Slurm: preempted, queued again, finished with the weights of a run in peace."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.processes import run_well, wait_until
from helpers.runs import small_run
from helpers.slurm import MadeSlurm, made_slurm, why_no_slurm

from laborllm_dist.checkpoint.load import full_weights
from laborllm_dist.checkpoint.manifest import read_manifest
from laborllm_dist.checkpoint.save import checkpoint_folder

pytestmark = [pytest.mark.slurm, pytest.mark.skipif(bool(why_no_slurm()), reason=f"no Slurm: {why_no_slurm()}")]

NUM_STEPS = 45
STEPS = ["training.epochs=15", "batch.global_batch_size=16", "training.checkpoint_every_steps=null"]
TWO_RANKS = ["--nodes=1", "--gpus-per-node=2"]


@pytest.fixture(scope="module")
def slurm() -> Iterator[MadeSlurm]:
    with made_slurm() as made:
        yield made


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train on two ranks without Slurm and without a break."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run_well("train.py", small_run(folder, *STEPS), world_size=2, log=folder / "log")
    return folder


def metrics(folder: Path) -> list[dict[str, float]]:
    path = folder / "runs/small/metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def final_weights(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = checkpoint_folder(folder / "runs/small/checkpoints", NUM_STEPS)
    return dict(full_weights(checkpoint, read_manifest(checkpoint)))


def preempt(slurm: MadeSlurm, tmp_path: Path, *, after_step: int) -> None:
    """Wait until a training has done a step, and push it from the node."""
    wait_until(
        lambda: len(metrics(tmp_path)) > after_step + 2, time_limit=120, what=f"steps are done after {after_step}"
    )
    preempting = slurm.submit("--partition=high", "--exclusive", f"--output={tmp_path}/high", "--wrap=true")
    slurm.wait_for_end(preempting, time_limit=120)


def stops(log: Path) -> list[int]:
    """Return the steps after which a training has stopped on request."""
    return [int(step) for step in re.findall(r"stopped: on request, after step (\d+), which is saved", log.read_text())]


def test_a_preempted_training_saves_is_queued_again_and_ends_with_the_same_weights(
    slurm: MadeSlurm, undisturbed: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    run = small_run(tmp_path, *STEPS, f"store.root={undisturbed}/stores")
    job = slurm.submit("--partition=low", *TWO_RANKS, f"--output={log}", "launch/slurm.sbatch", "train", *run)
    # With grace time only the ranks are told to stop, and the sbatch file queues the job again.
    preempt(slurm, tmp_path, after_step=0)
    (first,) = stops(log)
    # Without it Slurm ends the whole job and queues it again itself.
    slurm.run("scontrol", "update", "PartitionName=low", "GraceTime=0")
    preempt(slurm, tmp_path, after_step=first)
    ended = slurm.wait_for_end(job, time_limit=120)
    text = log.read_text()
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("COMPLETED", "0:0", "2"), text[-3000:]
    assert 3 <= first < stops(log)[1] < NUM_STEPS
    assert [f"train: resumes after step {step} of {NUM_STEPS}" in text for step in stops(log)] == [True, True]
    actual, expected = final_weights(tmp_path), final_weights(undisturbed)
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
    losses = [line["loss_nats_per_token"] for line in metrics(undisturbed)]
    assert [line["loss_nats_per_token"] for line in metrics(tmp_path)] == losses


def test_a_job_is_not_queued_again_for_ever(slurm: MadeSlurm, undisturbed: Path, tmp_path: Path) -> None:
    """Its time is so short that it is told to stop before it can end."""
    log = tmp_path / "log"
    run = small_run(tmp_path, *STEPS, f"store.root={undisturbed}/stores", "training.epochs=100000")
    options = ["--time=2", "--signal=TERM@80", "--export=ALL,MOST_RESTARTS=1", *TWO_RANKS, f"--output={log}"]
    job = slurm.submit(*options, "launch/slurm.sbatch", "train", *run)
    ended = slurm.wait_for_end(job, time_limit=480)
    text = log.read_text()
    assert (ended["JobState"], ended["Restarts"]) == ("FAILED", "1"), text[-3000:]
    assert text.count("--time is 5 minutes or less") == 2
    assert text.count("not queued again, after 1 times (MOST_RESTARTS); submit it again, and it resumes") == 1


def test_a_cancelled_training_saves_and_stays_cancelled(slurm: MadeSlurm, undisturbed: Path, tmp_path: Path) -> None:
    run = small_run(tmp_path, *STEPS, f"store.root={undisturbed}/stores", "training.epochs=1000")
    job = slurm.submit(*TWO_RANKS, f"--output={tmp_path}/log", "launch/slurm.sbatch", "train", *run)
    wait_until(lambda: len(metrics(tmp_path)) >= 3, time_limit=120, what="three steps are done")
    slurm.run("scancel", str(job))
    wait_until(lambda: not slurm.run("squeue", "--noheader"), time_limit=120, what="the job has left the queue")
    assert slurm.job(job)["JobState"] == "CANCELLED"
    assert "which is saved; the same command resumes the run" in (tmp_path / "log").read_text()


def test_a_refusal_ends_the_job_with_its_code_and_one_line(slurm: MadeSlurm, tmp_path: Path) -> None:
    log = tmp_path / "log"
    job = slurm.submit(*TWO_RANKS, f"--output={log}", "launch/slurm.sbatch", "train", "+experiment=quickstrat")
    ended = slurm.wait_for_end(job, time_limit=120)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "2:0", "0")
    assert log.read_text().count("error: In 'run': Could not find 'experiment/quickstrat'") == 1


def test_plain_srun_starts_ranks(slurm: MadeSlurm, undisturbed: Path) -> None:
    text = slurm.run("srun", "--ntasks=2", "python", "launch/evaluate.py", f"run={undisturbed}/runs/small")
    assert "% full, over 2 ranks\n" in text


def test_a_shell_of_sbatch_or_salloc_is_one_rank(slurm: MadeSlurm, tmp_path: Path) -> None:
    show = "import os; from laborllm_dist.distributed.slurm import launcher_variables; print(launcher_variables(os.environ))"
    assert slurm.run("salloc", "--ntasks=2", "python", "-c", show) == "{}\n"
    job = slurm.submit("--ntasks=2", f"--output={tmp_path}/log", f"--wrap=python -c '{show}'")
    slurm.wait_for_end(job, time_limit=30)
    assert (tmp_path / "log").read_text() == "{}\n"


def test_an_array_of_jobs_prepares_the_store_of_one_process(slurm: MadeSlurm, tmp_path: Path) -> None:
    for name, more in (("one", []), ("array", ["prepare.num_workers=2", "prepare.executor=slurm", *SMALL_JOBS])):
        run = small_run(tmp_path / name, "store.people_per_shard=20", *more)
        slurm.run("python", "launch/prepare.py", *run)
    stores = [next((tmp_path / name / "stores").glob("synthetic-*[0-9a-f]")) for name in ("one", "array")]
    files = [sorted(path.relative_to(store) for path in store.rglob("*") if path.is_file()) for store in stores]
    assert files[0] == files[1]
    assert len(files[0]) > 10
    assert all((stores[0] / path).read_bytes() == (stores[1] / path).read_bytes() for path in files[0])


SMALL_JOBS = ["prepare.cpus=1", "prepare.memory_gib=1", "prepare.minutes=5"]
