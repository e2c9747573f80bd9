"""Pretrained weights: fine-tuned under ZeRO-3, exported, scored as another model; offline tracking."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.processes import PROJECT, run_ranks, run_well
from helpers.runs import small_run
from transformers import AutoModelForCausalLM

from laborllm_dist.io.run_directory import read_run
from laborllm_dist.store.store import open_store
from laborllm_dist.tables.scores import read_score_table

pytestmark = pytest.mark.ranks


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a small model, whose export is then somebody's pretrained model."""
    folder = tmp_path_factory.mktemp("first")
    run = small_run(folder, "training.epochs=1", "tracking.wandb=offline")
    run_well("train.py", run, world_size=1, log=folder / "log")
    return folder


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()


def pretrained_run(first_run: Path, *more: str) -> list[str]:
    """Return overrides for fine-tuning the export of the first run."""
    export = f"{first_run}/runs/small/export"
    run = [override for override in small_run(first_run) if not override.startswith(("model.", "tokenizer.", "name="))]
    return [*run, "model=pretrained", f"model.path={export}", "tokenizer=pretrained", *more]


def test_wandb_offline_has_all_steps_and_what_they_were_made_from(first_run: Path) -> None:
    run = first_run / "runs/small"
    (folder,) = (run / "wandb").glob("offline-run-*")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    lines = map(json.loads, subprocess.run(command, capture_output=True, check=True, timeout=60).stdout.splitlines())
    records = [(line["type"], line[line["type"]]) for line in lines]
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["item"]["loss_nats_per_token"] for kind, record in records if kind == "history"] == [
        step["loss_nats_per_token"] for step in steps
    ]
    assert [record["type"] for kind, record in records if kind == "artifact"] == ["store", "checkpoint"]


def test_flops_are_those_of_matrices_and_attention(first_run: Path) -> None:
    run, _, store = read_run(first_run / "runs/small")
    last = json.loads(run.metrics.read_text().splitlines()[-1])
    lengths = open_store(store).careers("train").num_tokens()
    # Two layers: queries 32 x 32, keys and values 32 x 16 each, output 32 x 32, three matrices 32 x 64; logits 32 x 400.
    weights = 2 * (32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 64) + 32 * 400
    attention = 12 * 2 * 32 * (lengths**2).sum() / lengths.sum() / 2  # a token attends to half of its career
    assert last["flops_seen"] == pytest.approx(last["tokens_seen"] * (6 * weights + attention))


@pytest.mark.parametrize("stage", [2, 3])
def test_pretrained_weights_reach_every_rank_whole(first_run: Path, stage: int) -> None:
    # One step at a learning rate of almost nothing: what is exported is what was read.
    run = pretrained_run(
        first_run,
        f"name=second{stage}",
        f"zero=stage{stage}",
        "training.epochs=1",
        f"optimizer.learning_rate={1e-12 * stage}",
    )
    run_well("train.py", run, world_size=2, log=first_run / "log")
    before, after = weights_of(first_run / "runs/small/export"), weights_of(first_run / f"runs/second{stage}/export")
    assert before.keys() == after.keys()
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=1e-6, atol=1e-9)


def test_another_model_is_scored_with_its_own_tokenizer_under_its_name(first_run: Path) -> None:
    run = f"run={first_run}/runs/small"
    run_well("evaluate.py", [run], world_size=1, log=first_run / "log")
    other = [run, f"model.path={first_run}/runs/small/export", "model.name=twin", "precision=fp64"]
    run_well("evaluate.py", other, world_size=2, log=first_run / "log")
    own, info = read_score_table(first_run / "runs/small/scores/test.parquet")
    twin, twin_info = read_score_table(first_run / "runs/small/scores/test.twin.parquet")
    assert (info.model, twin_info.model, twin_info.details["precision"]) == ("small", "twin", "fp64")
    assert info.careers == twin_info.careers
    np.testing.assert_allclose(own["title"].to_numpy(), twin["title"].to_numpy(), atol=1e-4)
    assert twin_info.details["weights"] == info.details["weights"]


def test_a_career_longer_than_the_model_s_context_is_refused(first_run: Path) -> None:
    run = small_run(first_run, "name=short", "model.llama.max_positions=64")
    outcome = run_ranks("train.py", run, world_size=2, log=first_run / "log")
    assert outcome.codes == [2, 2]
    assert re.search(
        r"error: career '\d+' of SYNTHETIC \(train\) has \d+ tokens, the model's context is 64", outcome.text
    )
    assert outcome.text.count("error:") == 1


def test_scores_of_other_weights_are_not_replaced_under_the_same_name(first_run: Path) -> None:
    table = first_run / "runs/small/scores/test.second2.parquet"
    export = first_run / "runs/second2/export"
    arguments = [f"run={first_run}/runs/small", f"model.path={export}"]
    run_well("evaluate.py", arguments, world_size=1, log=first_run / "log")  # named by its run
    before = table.read_bytes()
    other = [arguments[0], f"model.path={first_run}/runs/second3/export", "model.name=second2"]
    outcome = run_ranks("evaluate.py", other, world_size=1, log=first_run / "log")
    assert outcome.codes == [2]
    assert "test.second2.parquet holds the scores of other weights; give these another name" in outcome.text
    assert table.read_bytes() == before


def test_evaluating_an_unfinished_run_is_refused(first_run: Path) -> None:
    outcome = run_ranks("evaluate.py", [f"run={first_run}/runs/short"], world_size=1, log=first_run / "log")
    assert outcome.codes == [2]
    assert "has no export yet; its training has not finished" in outcome.text


@pytest.mark.parametrize("instructions", ["fp16", "no_fp16"])
@pytest.mark.parametrize(
    ("zero", "dtype"), [("stage2_bf16", "bfloat16"), ("stage3", "float32"), ("stage3_bf16", "bfloat16")]
)
def test_weights_have_the_dtype_asked_for_whatever_the_cpu(first_run: Path, zero, dtype, instructions) -> None:
    program, export = str(PROJECT / "tests/programs/rotation.py"), f"{first_run}/runs/small/export"
    text = run_well(program, [export, zero, instructions], world_size=1, log=first_run / "log")
    assert f"frequencies torch.float32\nweights torch.{dtype}\ncontent same" in text


def test_an_answer_of_any_size_reaches_every_rank(tmp_path: Path) -> None:
    text = run_well(str(PROJECT / "tests/programs/large_answer.py"), [], world_size=3, log=tmp_path / "log")
    expected = hashlib.sha256(np.random.default_rng(1).bytes(20_000_000)).hexdigest()
    assert sorted(line for line in text.splitlines() if line) == [f"rank {rank}: {expected}" for rank in range(3)]
