"""Training over real ranks: ZeRO stages against plain torch, kills and resumes, other numbers of ranks."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from helpers.checkpoints import flip_a_bit
from helpers.errors import raises
from helpers.processes import EXTENSIONS, ON_CPU, PROJECT, kill_ranks, run_ranks, run_well, start_ranks
from helpers.runs import settings_of, small_run

from laborllm_dist.checkpoint.load import full_weights
from laborllm_dist.checkpoint.manifest import check_checkpoint, read_manifest
from laborllm_dist.checkpoint.save import checkpoint_folder
from laborllm_dist.config.run import TrackingSettings
from laborllm_dist.models.loading import new_llama
from laborllm_dist.store.build import prepare_store
from laborllm_dist.tracking.run_log import RunLog

pytestmark = pytest.mark.ranks


def final_weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    checkpoint = checkpoint_folder(folder / "runs/small/checkpoints", step)
    return dict(full_weights(checkpoint, read_manifest(checkpoint)))


def relative_error(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    assert actual.keys() == expected.keys()
    difference = sum(float((actual[name].double() - expected[name].double()).square().sum()) for name in expected)
    return (difference / sum(float(expected[name].double().square().sum()) for name in expected)) ** 0.5


PlainStep = tuple[Path, dict[str, torch.Tensor], float]


@pytest.fixture(scope="module")
def plain_step(tmp_path_factory: pytest.TempPathFactory) -> Callable[[float], PlainStep]:
    """Return a function that takes one step with a weight of the tokens outside titles."""
    folder = tmp_path_factory.mktemp("plain")
    return functools.cache(lambda weight: take_plain_step(folder, weight))


def take_plain_step(folder: Path, context_weight: float) -> PlainStep:
    """Take one step with plain torch, career by career: no packing, no ranks, no DeepSpeed."""
    settings = settings_of(small_run(folder, "training.epochs=1", "batch.global_batch_size=64"))
    store = prepare_store(settings)
    careers = store.careers("train")
    model = new_llama(settings.model.llama, num_ids=store.num_ids, attention_dropout=0.0, seed=settings.training.seed)
    total, sum_of_weights = torch.zeros(()), 0.0
    for row in range(len(careers)):
        ids = torch.from_numpy(careers.token_ids(row).astype("int64"))[None]
        logits = model(input_ids=ids).logits
        weights = torch.full((ids.shape[1],), context_weight)
        for start, end in careers.title_spans(row).tolist():
            weights[start : end + 1] = 1.0  # and the line break
        losses = torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="none")
        total = total + (losses * weights[1:]).sum()
        sum_of_weights += float(weights[1:].sum())
    (total / sum_of_weights).backward()
    optimizer_settings = settings.optimizer
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": optimizer_settings.weight_decay},
        {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        groups,
        lr=optimizer_settings.learning_rate,
        betas=(optimizer_settings.beta1, optimizer_settings.beta2),
        eps=optimizer_settings.epsilon,
    )
    torch.nn.utils.clip_grad_norm_(model.parameters(), optimizer_settings.max_grad_norm)
    optimizer.step()
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    return folder, weights, float(total.detach() / sum_of_weights)


@pytest.mark.parametrize(("stage", "weight"), [(0, 1.0), (1, 1.0), (2, 1.0), (3, 1.0), (2, 0.25), (3, 0.0)])
def test_a_step_on_two_ranks_equals_plain_torch(
    stage: int, weight: float, plain_step: Callable[[float], PlainStep], tmp_path: Path
) -> None:
    stores, expected, loss = plain_step(weight)
    run = small_run(
        tmp_path,
        f"store.root={stores}/stores",
        "training.epochs=1",
        "batch.global_batch_size=64",
        f"zero=stage{stage}",
        f"training.context_loss_weight={weight}",
    )
    run_well("train.py", run, world_size=2, log=tmp_path / "log")
    (line,) = (tmp_path / "runs/small/metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["loss_nats_per_token"] == pytest.approx(loss, rel=1e-6)
    assert relative_error(final_weights(tmp_path, 1), expected) <= 1e-6
    assert not list(Path(EXTENSIONS).iterdir()), "something was compiled at run time"


def steps_logged(folder: Path) -> int:
    metrics = folder / "runs/small/metrics.jsonl"
    return len(metrics.read_text().splitlines()) if metrics.is_file() else 0


def wait_for_steps(folder: Path, num_steps: int) -> None:
    """Wait until a run that was started has logged so many steps."""
    deadline = time.monotonic() + 120
    while steps_logged(folder) < num_steps:
        assert time.monotonic() < deadline, f"no {num_steps} steps within two minutes"
        time.sleep(0.05)


THIRTY_STEPS = [
    "training.epochs=10",
    "batch.global_batch_size=16",
    "training.checkpoint_every_steps=5",
    "training.log_every_steps=1",
]


@pytest.fixture(scope="module", params=[2, 3], ids=["stage2", "stage3"])
def thirty_steps(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """Train thirty steps on two ranks without a break."""
    folder = tmp_path_factory.mktemp("straight")
    run = small_run(folder, *THIRTY_STEPS, f"zero=stage{request.param}")
    run_well("train.py", run, world_size=2, log=folder / "log")
    assert steps_logged(folder) == 30
    return request.param, folder, final_weights(folder, 30)


def test_kill_and_resume_gives_bitwise_equal_weights(thirty_steps, tmp_path: Path) -> None:
    stage, straight, expected = thirty_steps
    run = small_run(tmp_path, *THIRTY_STEPS, f"zero=stage{stage}", f"store.root={straight}/stores")
    killed = run_ranks(
        "train.py", run, world_size=2, log=tmp_path / "log", kill_when=lambda: steps_logged(tmp_path) >= 15
    )
    assert -signal.SIGKILL in killed.codes, "the run ended before it was killed"
    text = run_well("train.py", run, world_size=2, log=tmp_path / "log")
    assert "train: resumes after step" in text
    actual = final_weights(tmp_path, 30)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
    numbers = [json.loads(line) for line in (tmp_path / "runs/small/metrics.jsonl").read_text().splitlines()]
    before = [json.loads(line) for line in (straight / "runs/small/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in numbers] == list(range(1, 31))
    assert [line["loss_nats_per_token"] for line in numbers] == [line["loss_nats_per_token"] for line in before]


def test_one_rank_at_another_stage_goes_on_where_two_were_killed(thirty_steps, tmp_path: Path) -> None:
    stage, straight, expected = thirty_steps
    run = small_run(tmp_path, *THIRTY_STEPS, f"zero=stage{stage}", f"store.root={straight}/stores")
    run_ranks("train.py", run, world_size=2, log=tmp_path / "log", kill_when=lambda: steps_logged(tmp_path) >= 15)
    other = [*run, f"zero=stage{5 - stage}", "batch.micro_batch_size=3"]
    text = run_well("train.py", other, world_size=1, log=tmp_path / "log")
    assert "train: resumes after step" in text
    # Thirty Adam steps amplify the last bits of sums that are added in another order.
    assert relative_error(final_weights(tmp_path, 30), expected) <= 2e-5


def test_a_request_to_stop_saves_the_step_and_exits_with_its_own_code(tmp_path: Path) -> None:
    run = small_run(tmp_path, *THIRTY_STEPS, "training.checkpoint_every_steps=null", "training.epochs=1000")
    processes = start_ranks("train.py", run, world_size=2, log=tmp_path / "log")
    wait_for_steps(tmp_path, 4)
    kill_ranks(processes, signal.SIGTERM)
    try:
        codes = [process.wait(timeout=60) for process in processes]
    finally:
        kill_ranks(processes)
    text = (tmp_path / "log").read_text()
    assert codes == [75, 75], text
    assert text.count("which is saved; the same command resumes the run") == 1
    done = steps_logged(tmp_path)
    assert read_manifest(checkpoint_folder(tmp_path / "runs/small/checkpoints", done)).step == done


def test_a_second_start_of_a_run_is_refused_while_the_first_works(tmp_path: Path) -> None:
    run = small_run(tmp_path, *THIRTY_STEPS, "training.epochs=1000")
    first = start_ranks("train.py", run, world_size=1, log=tmp_path / "first")
    try:
        wait_for_steps(tmp_path, 2)
        second = run_ranks("train.py", run, world_size=1, log=tmp_path / "second")
    finally:
        kill_ranks(first)
    assert second.codes == [2]
    assert f"error: another start is at work on {tmp_path}/runs/small; wait for it" in second.text


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk of two megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_stops_with_one_line_and_the_run_goes_on_when_there_is_room(
    small_disk: Path, tmp_path: Path
) -> None:
    run = small_run(
        tmp_path, *THIRTY_STEPS, f"output_dir={small_disk}", "training.epochs=2", "training.save_total_limit=1000"
    )
    outcome = run_ranks("train.py", [*run, "training.checkpoint_every_steps=1"], world_size=2, log=tmp_path / "log")
    assert 2 in outcome.codes, outcome.text[-2000:]
    assert "error: no room left on the disk of" in outcome.text
    assert "Traceback" not in outcome.text
    whole = [folder for folder in (small_disk / "small/checkpoints").glob("step_????????") if check_checkpoint(folder)]
    assert whole
    for folder in sorted(whole)[:-1]:
        shutil.rmtree(folder)
    text = run_well("train.py", [*run, "training.save_total_limit=1"], world_size=2, log=tmp_path / "log")
    assert f"train: resumes after step {int(max(whole).name.removeprefix('step_'))} of" in text


def test_a_full_disk_under_the_log_is_said_and_closing_does_not_try_again(small_disk: Path) -> None:
    off = TrackingSettings(wandb="off", project="p")
    log = RunLog(small_disk / "metrics.jsonl", off, name="n", settings={}, step=0)
    with raises("disk-full/no-room-left", "metrics.jsonl"), contextlib.closing(log):
        for step in range(1, 3000):
            log.write({"step": step, "careers": "x" * 1000})


def test_a_disk_that_is_read_only_is_one_clear_line(small_disk: Path, tmp_path: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    for where in (f"output_dir={small_disk}/runs", f"store.root={small_disk}/stores"):
        outcome = run_ranks("train.py", small_run(tmp_path, where), world_size=1, log=tmp_path / "log")
        assert outcome.codes == [2]
        assert outcome.text.splitlines()[-1].startswith(f"error: cannot use {small_disk}/")
        assert "Read-only file system; fix that, or name another folder" in outcome.text


def test_when_one_rank_is_killed_the_other_says_so_and_ends(tmp_path: Path) -> None:
    run = small_run(tmp_path, *THIRTY_STEPS, "training.epochs=1000")
    processes = start_ranks("train.py", run, world_size=2, log=tmp_path / "log")
    try:
        wait_for_steps(tmp_path, 4)
        kill_ranks(processes[1:])
        assert processes[0].wait(timeout=60) == 2
    finally:
        kill_ranks(processes)
    text = (tmp_path / "log").read_text()
    assert "error: rank 0 has lost another rank" in text
    assert "Traceback" not in text


def test_bf16_trains_at_every_stage_close_to_fp32(tmp_path: Path) -> None:
    losses = {}
    for stage in (0, 1, 2, 3):
        folder = tmp_path / str(stage)
        run = small_run(
            folder, f"store.root={tmp_path}/stores", "training.epochs=2", f"zero=stage{stage}", "zero.precision=bf16"
        )
        run_well("train.py", run, world_size=1, log=tmp_path / "log")
        lines = (folder / "runs/small/metrics.jsonl").read_text().splitlines()
        losses[stage] = [json.loads(line)["loss_nats_per_token"] for line in lines]
    folder = tmp_path / "fp32"
    run = small_run(folder, f"store.root={tmp_path}/stores", "training.epochs=2", "zero=stage1")
    run_well("train.py", run, world_size=1, log=tmp_path / "log")
    expected = [
        json.loads(line)["loss_nats_per_token"]
        for line in (folder / "runs/small/metrics.jsonl").read_text().splitlines()
    ]
    for stage, actual in losses.items():
        assert actual == pytest.approx(expected, rel=5e-3), f"stage {stage}"


def test_a_stop_in_the_last_validation_leaves_it_to_the_next_start(tmp_path: Path) -> None:
    run = small_run(tmp_path, "training.epochs=2", "batch.global_batch_size=32")
    program = [sys.executable, str(PROJECT / "tests/programs/stopped_rank.py"), *run]
    stopped = subprocess.run(
        program, capture_output=True, text=True, timeout=120, env={**os.environ, **ON_CPU}, check=False
    )
    assert stopped.returncode == 75, stopped.stderr[-2000:]
    assert "stopped: on request, after step 4, which is saved" in stopped.stderr
    assert not (tmp_path / "runs/small/export").exists()
    text = run_well("train.py", run, world_size=1, log=tmp_path / "log")
    assert "resumes after step 4 of 4" in text
    assert "train: weights of step 4 (best on validation)" in text
    lines = [json.loads(line) for line in (tmp_path / "runs/small/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert "validation_nats_per_token" in lines[-1]
    assert "loss_nats_per_token" in lines[-1]
    # Titles, a small part of the tokens, decide which weights are best.
    (validation,) = read_manifest(checkpoint_folder(tmp_path / "runs/small/checkpoints", 4)).state["validations"][-1:]
    loss = lines[-1]["validation_nats_per_title"]
    assert validation == {"step": 4, "loss": loss, "nats_per_title": loss}
    # What the late validation has changed is saved: there is nothing left to do.
    assert "is finished (4 steps, best after 4)" in run_well("train.py", run, world_size=1, log=tmp_path / "log")


def test_a_run_that_has_lost_its_best_weights_ends_and_one_that_has_lost_all_is_not_begun_anew(tmp_path: Path) -> None:
    # A rate of nothing: the first validation, after step 2 of 4, stays the best.
    run = small_run(tmp_path, "training.epochs=2", "batch.global_batch_size=32", "optimizer.learning_rate=1e-30")
    run_well("train.py", run, world_size=1, log=tmp_path / "log")
    folder = tmp_path / "runs/small"
    best, last = (checkpoint_folder(folder / "checkpoints", step) for step in (2, 4))
    flip_a_bit(best / "rank_00000_000.safetensors")
    assert "is finished (4 steps, best after 2)" in run_well("train.py", run, world_size=1, log=tmp_path / "log")
    (folder / "export/laborllm_dist.json").write_text('{"run": ')
    text = run_well("train.py", run, world_size=1, log=tmp_path / "log")
    assert f"train: the best weights, of step 2, are lost: {best}" in text
    assert "train: best on validation of what is left: step 4" in text
    assert "is finished (4 steps, best after 4)" in run_well("train.py", run, world_size=1, log=tmp_path / "log")
    metrics = (folder / "metrics.jsonl").read_bytes()
    (last / "manifest.json").unlink()
    outcome = run_ranks("train.py", run, world_size=1, log=tmp_path / "log")
    assert outcome.codes == [2]
    assert outcome.text.splitlines()[-1].startswith(f"error: no checkpoint in {folder}/checkpoints is intact; bring")
    assert (folder / "metrics.jsonl").read_bytes() == metrics


def test_a_disk_that_fails_under_one_rank_is_said_by_all_and_the_run_goes_on(tmp_path: Path) -> None:
    run = small_run(tmp_path, "training.epochs=1", "batch.global_batch_size=16", "training.checkpoint_every_steps=1")
    program = str(PROJECT / "tests/programs/failing_disk.py")
    outcome = run_ranks(program, run, world_size=2, log=tmp_path / "log")
    assert outcome.codes == [2, 2], outcome.text
    assert "checkpoints/step_00000002.partial: Input/output error; fix that" in outcome.text
    assert "Traceback" not in outcome.text
    assert "resumes after step 1 of 3" in run_well("train.py", run, world_size=2, log=tmp_path / "log")


def losses(folder: Path) -> list[float]:
    lines = (folder / "runs/small/metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss_nats_per_token"] for line in lines]


def test_the_curves_of_every_stage_and_of_a_run_resumed_at_others_are_one(tmp_path: Path) -> None:
    twelve_steps = ["training.epochs=4", "batch.global_batch_size=16", f"store.root={tmp_path}/stores"]

    def run_in(name: str, stage: int) -> list[str]:
        return small_run(tmp_path / name, *twelve_steps, "training.checkpoint_every_steps=1", f"zero=stage{stage}")

    for stage in (0, 1, 2, 3):
        run_well("train.py", run_in(str(stage), stage), world_size=2, log=tmp_path / "log")
    expected = losses(tmp_path / "0")
    assert len(expected) == 12
    assert expected[-1] < expected[0] - 1e-2  # something is learned, so agreement is no accident
    for stage in (1, 2, 3):
        assert losses(tmp_path / str(stage)) == pytest.approx(expected, rel=1e-6), f"stage {stage}"
    mixed = tmp_path / "mixed"
    for num_steps, stage, world_size in ((4, 3, 2), (8, 0, 1)):
        killed = run_ranks(
            "train.py",
            run_in("mixed", stage),
            world_size=world_size,
            log=tmp_path / "log",
            kill_when=lambda expected=num_steps: steps_logged(mixed) >= expected,
        )
        assert -signal.SIGKILL in killed.codes
    text = run_well("train.py", run_in("mixed", 1), world_size=3, log=tmp_path / "log")
    assert "train: resumes after step" in text
    assert losses(mixed) == pytest.approx(expected, rel=1e-6)
