"""launch/plan.py: every experiment plans without data, and what training refuses is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from helpers.errors import raises
from helpers.processes import PROJECT
from helpers.runs import settings_of, small_run
from rich.console import Console

from laborllm_dist.batching.training_plan import plan_training
from laborllm_dist.distributed.deepspeed_config import check_8bit
from laborllm_dist.models.dims import KNOWN, check_targets
from laborllm_dist.planning.display import show_plan
from laborllm_dist.planning.estimate import ResourceEstimate
from laborllm_dist.planning.memory import largest_stretch
from laborllm_dist.store.build import prepare_store

EXPERIMENTS = sorted(path.stem for path in (PROJECT / "conf/experiment").glob("*.yaml"))
SEVEN = KNOWN["meta-llama/Llama-2-7b-hf"]


def shown(folder: Path, *overrides: str, width: int = 80) -> tuple[str, ResourceEstimate]:
    with (folder / "out").open("w") as file:
        estimate = show_plan(settings_of(list(overrides)), Console(file=file, width=width))
    return (folder / "out").read_text(), estimate


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_plans_in_a_fresh_clone_in_80_columns(
    experiment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # no data, stores or models below
    text, estimate = shown(tmp_path, f"+experiment={experiment}")
    assert "(assumed: no store yet)" in text
    assert max(map(len, text.splitlines())) <= 80
    assert estimate.fits
    assert shown(tmp_path, f"+experiment={experiment}", width=140)[0].split() == text.split()


@pytest.mark.parametrize(
    "overrides",
    [
        ["data=long_panel"],
        ["data=career_text"],
        ["data=psid81", "split_by=year", "split.last_training_year=2001", "split.last_validation_year=2005"],
        ["data=psid81", "template=titles_first"],
        ["data=psid81", "template=last_10_lines"],
    ],
)
def test_a_plan_without_a_store_says_which_sizes_are_known(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with raises("data-file/unknown-corpus-size", "split by person or household, with a template without prefix"):
        shown(tmp_path, *overrides)


def test_few_tokens_are_printed_in_full(tmp_path: Path) -> None:
    text, estimate = shown(tmp_path, *small_run(tmp_path))  # no store there: assumed
    assert 1_000 < estimate.work.tokens_per_epoch < 1e6
    assert f"careers of {round(estimate.work.tokens_per_epoch):,} tokens an epoch" in text


def test_the_plan_in_the_manual_is_what_the_command_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text, _ = shown(tmp_path, "+experiment=pooled_13b")
    assert "\n".join(line.rstrip() for line in text.splitlines()) in (PROJECT / "docs/planning.md").read_text()


def test_the_plan_of_the_store_counts_what_the_plan_of_training_does(tmp_path: Path) -> None:
    overrides = small_run(tmp_path, "plan.num_gpus=2")
    settings = settings_of(overrides)
    plan = plan_training(prepare_store(settings), settings, world_size=2)
    text, estimate = shown(tmp_path, *overrides)
    assert "tokens an epoch (token store)" in text
    assert estimate.work.num_steps == plan.num_steps
    assert estimate.work.tokens_per_epoch == int(plan.lengths[plan.order.rows].sum())
    steps = [plan.step(step) for step in range(plan.num_steps)]
    assert estimate.passes.num_passes == sum(len(step.assignment.passes) for step in steps) / len(steps)
    assert estimate.passes.num_rows == sum(len(step.packing.rows) for step in steps) / len(steps)


@pytest.mark.parametrize(
    ("more", "error"),
    [
        (["batch.global_batch_size=40000"], ("settings/batch-exceeds-epoch", "40,000", "36,763")),
        (
            ["adapter=lora", "adapter.target_modules=[q_prj]"],
            ("model/unknown-target-module", "q_prj", "down_proj, gate_proj"),
        ),
        (
            ["zero=stage2_bf16", "optimizer.name=adamw_8bit", "plan.num_gpus=2"],
            ("settings/too-many-weights-for-8bit", "3,369,074,688"),
        ),
        (["plan.gpu.matmul_utilization=5"], ("settings/invalid", "plan.gpu.matmul_utilization:", "at most 1", "got 5")),
        (["plan.gpu.matmul_utilization=0"], ("settings/invalid", "plan.gpu.matmul_utilization:", "above 0", "got 0")),
        (
            ["plan.gpu.dollars_per_hour=-5"],
            ("settings/invalid", "plan.gpu.dollars_per_hour:", "0 to 1,000,000,000", "got -5"),
        ),
        (["plan.gpu.gpus_per_host=0"], ("settings/invalid", "plan.gpu.gpus_per_host:", "1 to 10,000", "got 0")),
        (["batch.max_seq_length=160"], ("sequence-too-long/career-exceeds-row", "586 tokens")),
    ],
)
def test_what_training_refuses_or_cannot_be_is_refused(more: list[str], error: tuple[str, ...], tmp_path: Path) -> None:
    with raises(*error):
        shown(tmp_path, "+experiment=pooled_7b", *more)


def test_what_does_not_fit_is_said_with_what_to_type(tmp_path: Path) -> None:
    text, _ = shown(tmp_path, "+experiment=pooled_7b", "plan.num_gpus=1")
    assert "memory   does not fit: " in text
    assert "nearest  zero.offload_optimizer=cpu\n         fits: " in text
    nothing, _ = shown(tmp_path, "+experiment=pooled_7b", "plan.gpu.memory_gib=1")
    assert "no setting known here fits; take a smaller model" in nothing
    offload = ["zero=stage3_bf16_offload", "optimizer.name=cpu_adamw", "plan.gpu.host_memory_gib=1"]
    assert "of 1.0 on the host (assumed)" in shown(tmp_path, "+experiment=pooled_7b", *offload)[0]


@pytest.mark.ranks
@pytest.mark.parametrize("more", [[], ["adapter=qlora", "zero=stage2_bf16", "gpu@plan.gpu=l40s", "plan.num_gpus=1"]])
def test_the_plan_of_13b_prints_without_data_weights_or_network(more: list[str]) -> None:
    command = [sys.executable, str(PROJECT / "launch/plan.py"), "+experiment=pooled_13b", *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "36,763 careers of 11.09 million tokens an epoch (assumed: no store yet)" in done.stdout
    assert "13,015,864,320 parameters" in done.stdout
    assert "memory   fits:" in done.stdout


def test_more_weights_than_8_bit_adamw_can_count_are_refused() -> None:
    settings = settings_of(["+experiment=pooled_7b", "optimizer.name=adamw_8bit", "zero.stage=2"])
    check_8bit(settings.optimizer, settings.zero, largest=2**31 - 1)
    with raises("settings/too-many-weights-for-8bit", "6,738,415,616"):
        check_8bit(settings.optimizer, settings.zero, largest=6_738_415_616)


@pytest.mark.parametrize(
    ("stage", "world_size", "num_weights"),
    [
        (0, 4, 32_000 * 4_096),  # the largest matrix
        (1, 4, 1_684_537_344),  # all but the norms: (6,738,415,616 - 266,240) / 4
        (3, 4, 1_000_000_000),  # DeepSpeed's sub-groups
        (3, 8, 842_268_672),
    ],
)
def test_the_longest_stretch_by_hand(stage: int, world_size: int, num_weights: int) -> None:
    adapter = settings_of([]).adapter
    assert largest_stretch(SEVEN, adapter, stage=stage, world_size=world_size) == num_weights


def test_an_adapter_for_no_layer_is_refused() -> None:
    check_targets(["q_proj"], SEVEN.linear_layers)
    with raises("model/unknown-target-module", "fc1", "down_proj"):
        check_targets(["q_proj", "fc1"], SEVEN.linear_layers)
