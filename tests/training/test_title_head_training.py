"""Training with an output layer over titles: plain torch, ranks, ZeRO stages, resume, export, LoRA and its settings."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.errors import raises
from helpers.processes import run_well
from helpers.runs import settings_of, small_run
from helpers.trained_runs import saved_weights, score_alone
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from laborllm_dist.cli import compose_settings
from laborllm_dist.config.evaluation import EvaluateSettings
from laborllm_dist.config.run import RunSettings
from laborllm_dist.io.run_directory import run_fingerprint
from laborllm_dist.models.loading import new_llama
from laborllm_dist.models.title_head import TITLE_HEAD, TITLE_HEAD_FILE, read_title_head
from laborllm_dist.store.build import prepare_store
from laborllm_dist.store.store import CareerTable, open_store
from laborllm_dist.tables.scores import read_score_table

STEPS = [
    "training.epochs=3",
    "batch.global_batch_size=64",  # all training people, so a step does not depend on their order
    "batch.micro_batch_size=1",  # several passes a step
    "optimizer.lr_scheduler=constant",
    "optimizer.learning_rate=2e-3",
    "training.checkpoint_every_steps=1",
    "training.save_total_limit=9",
]
WEIGHT = 0.7


def log_p_by_hand(weight: torch.Tensor, states: torch.Tensor, careers: CareerTable, row: int) -> list[torch.Tensor]:
    """Return log P of every title of a career from the hidden states of its tokens, by the definition."""
    codes, previous, actual = careers.vocabulary.codes, None, []
    is_two_stage = len(weight) > len(codes)
    for (start, _), job in zip(careers.title_spans(row).tolist(), careers.history(row).jobs, strict=True):
        logits, title = weight @ states[start - 1], codes.index(job.occupation)
        if not is_two_stage or previous is None:
            actual.append(logits[title] - logits[: len(codes)].logsumexp(dim=0))
        elif title == previous:
            actual.append(torch.log(torch.sigmoid(logits[-1])))
        else:
            others = [place for place in range(len(codes)) if place != previous]
            actual.append(torch.log(1 - torch.sigmoid(logits[-1])) + logits[title] - logits[others].logsumexp(dim=0))
        previous = title
    return actual


Trained = tuple[Path, dict[str, torch.Tensor], list[tuple[float, float]]]


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Trained]:
    """Return a function that trains with plain torch, career by career: no packing, no ranks, no DeepSpeed."""
    folder = tmp_path_factory.mktemp("plain")
    return functools.cache(lambda kind: train_by_hand(folder, kind))


def train_by_hand(folder: Path, kind: str) -> Trained:
    settings = settings_of(small_run(folder, *STEPS, num_people=30))
    store = prepare_store(settings)
    careers, llama = store.careers("train"), settings.model.llama
    assert llama is not None
    model: Any = new_llama(llama, num_ids=store.num_ids, attention_dropout=0.0, seed=settings.training.seed)
    num_outputs = len(store.vocabulary) + (kind == "two_stage")
    weight = torch.nn.Parameter(torch.zeros(num_outputs, llama.hidden_size))
    learned, optimizer_settings, losses = [weight, *model.parameters()], settings.optimizer, []
    groups = [
        {"params": [each for each in learned if each.dim() > 1], "weight_decay": optimizer_settings.weight_decay},
        {"params": [each for each in learned if each.dim() == 1], "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(
        groups, lr=2e-3, betas=(optimizer_settings.beta1, optimizer_settings.beta2), eps=optimizer_settings.epsilon
    )
    for _ in range(3):
        of_tokens, of_titles = torch.zeros(()), []
        for row in range(len(careers)):
            ids = torch.from_numpy(careers.token_ids(row).astype("int64"))[None]
            output = model(input_ids=ids, output_hidden_states=True)
            of_tokens = of_tokens + torch.nn.functional.cross_entropy(
                output.logits[0, :-1], ids[0, 1:], reduction="sum"
            )
            of_titles += log_p_by_hand(weight, output.hidden_states[-1][0], careers, row)
        num_targets = int(careers.num_tokens().sum()) - len(careers)
        losses.append((of_tokens.item() / num_targets, -torch.stack(of_titles).mean().item()))
        (of_tokens / num_targets - WEIGHT * torch.stack(of_titles).mean()).backward()
        torch.nn.utils.clip_grad_norm_(learned, optimizer_settings.max_grad_norm)
        adam.step()
        adam.zero_grad()
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    return folder, {**weights, TITLE_HEAD: weight.detach().clone()}, losses


def trained(folder: Path, stores: Path, kind: str, *more: str, world_size: int = 2) -> Path:
    """Train with the layer, and return the run's folder."""
    head = [f"title_head.kind={kind}", f"title_head.loss_weight={WEIGHT}"]
    run = small_run(folder, *STEPS, f"store.root={stores}/stores", *head, *more, num_people=30)
    run_well("train.py", run, world_size=world_size, log=folder / "log")
    return folder / "runs/small"


def numbers_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def relative_error(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    assert actual.keys() == expected.keys()
    difference = sum(float((actual[name].double() - expected[name].double()).square().sum()) for name in expected)
    return (difference / sum(float(expected[name].double().square().sum()) for name in expected)) ** 0.5


@pytest.mark.ranks
@pytest.mark.parametrize(("stage", "kind", "world_size"), [(2, "two_stage", 2), (3, "softmax", 2), (0, "two_stage", 1)])
def test_steps_with_the_layer_equal_plain_torch_on_any_ranks_and_resume_bit_for_bit(
    stage: int, kind: str, world_size: int, by_hand: Callable[[str], Trained], tmp_path: Path
) -> None:
    stores, expected, losses = by_hand(kind)
    run = trained(tmp_path, stores, kind, f"zero=stage{stage}", world_size=world_size)
    lines = numbers_of(run)
    logged = [(line["loss_nats_per_token"], line["title_head_loss_nats_per_title"]) for line in lines]
    np.testing.assert_allclose(logged, losses, rtol=2e-5)
    weights = saved_weights(run, 3)
    assert relative_error(weights, expected) <= 1e-4

    export = load_file(run / "export" / TITLE_HEAD_FILE)[TITLE_HEAD]
    if world_size > 1:  # killed after the first step, and started again
        for step in (2, 3):
            shutil.rmtree(run / f"checkpoints/step_{step:08d}")
        shutil.rmtree(run / "export")
        trained(tmp_path, stores, kind, f"zero=stage{stage}", world_size=world_size)
        again = saved_weights(run, 3)
        assert all(torch.equal(again[name], weights[name]) for name in weights)

    # The export opens without the layer, whose file is that of the best step.
    best = min(lines, key=lambda line: line["validation_nats_per_title"])
    saved = saved_weights(run, best["step"])
    assert torch.equal(export, saved[TITLE_HEAD])
    assert torch.equal(load_file(run / "export" / TITLE_HEAD_FILE)[TITLE_HEAD], export)
    model, report = AutoModelForCausalLM.from_pretrained(run / "export", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert all(torch.equal(value, saved[name]) for name, value in model.named_parameters())
    head = read_title_head(run / "export")
    assert (head.head.kind, head.occupations) == (kind, open_store_of(run).vocabulary.codes)

    # An evaluation gives the number by which a validation has judged the weights.
    settings = compose_settings(EvaluateSettings, "evaluate", [f"run={run}", "split=validation", "title_head=true"])
    table, _ = read_score_table(score_alone(settings))
    of_head = best["validation_title_head_nats_per_title"]
    assert -float(np.mean(table["title"].to_numpy())) == pytest.approx(of_head, rel=1e-6)


def open_store_of(run: Path) -> Any:
    return open_store(Path(json.loads((run / "settings.json").read_text())["store"]["folder"]))


@pytest.mark.ranks
@pytest.mark.parametrize("zero", ["zero=stage0 zero.precision=bf16", "zero=stage3_bf16"])
def test_the_layer_learns_in_bf16_what_it_learns_in_fp32(
    zero: str, by_hand: Callable[[str], Trained], tmp_path: Path
) -> None:
    stores, _, losses = by_hand("two_stage")
    more = ["compute.gradient_checkpointing=true", "optimizer.name=adamw_8bit"] if "stage3" in zero else []
    lines = numbers_of(trained(tmp_path, stores, "two_stage", *zero.split(), *more, world_size=1))
    logged = [(line["loss_nats_per_token"], line["title_head_loss_nats_per_title"]) for line in lines]
    np.testing.assert_allclose(logged, losses, rtol=3e-3)


@pytest.mark.ranks
def test_the_layer_is_trained_and_saved_with_an_adapter(by_hand: Callable[[str], Trained], tmp_path: Path) -> None:
    stores, _, _ = by_hand("softmax")
    base = tmp_path / "base"
    store = open_store(next((stores / "stores").iterdir()))
    llama = settings_of(small_run(tmp_path)).model.llama
    assert llama is not None
    new_llama(llama, num_ids=store.num_ids, attention_dropout=0.0, seed=3).save_pretrained(base)
    shutil.copytree(store.folder / "tokenizer", base, dirs_exist_ok=True)
    more = [
        "adapter=lora", "adapter.rank=4", "adapter.dropout=0", f"model.path={base}", "model.llama=null",
        "tokenizer=pretrained", "training.best_by=title_head", "zero=stage3", "compute.gradient_checkpointing=true",
    ]  # fmt: skip
    own = [each for each in more if each != "tokenizer=pretrained"]
    overrides = [
        override
        for override in small_run(tmp_path, *STEPS, num_people=30)
        if not override.startswith(("model.llama.", "tokenizer."))
    ]
    run_well(
        "train.py",
        [*overrides, "tokenizer=pretrained", *own, "title_head.kind=softmax", "title_head.loss_weight=1"],
        world_size=2,
        log=tmp_path / "log",
    )
    run = tmp_path / "runs/small"
    lines = numbers_of(run)
    best = min(lines, key=lambda line: line["validation_title_head_nats_per_title"])
    weight = saved_weights(run, best["step"])[TITLE_HEAD]
    assert weight.any() and lines[-1]["title_head_loss_nats_per_title"] < lines[0]["title_head_loss_nats_per_title"]
    for folder in ("export", "adapter"):
        assert torch.equal(load_file(run / folder / TITLE_HEAD_FILE)[TITLE_HEAD], weight)
    own_model = [f"model.path={run}/adapter", "model.name=adapter"]
    for chosen in ([], own_model):
        settings = compose_settings(
            EvaluateSettings, "evaluate", [f"run={run}", "split=validation", "title_head=true", *chosen]
        )
        table, info = read_score_table(score_alone(settings))
        assert info.model == ("adapter" if chosen else "title_head")
        of_head = best["validation_title_head_nats_per_title"]
        assert -float(np.mean(table["title"].to_numpy())) == pytest.approx(of_head, rel=1e-5)


def test_a_run_without_the_layer_has_the_fingerprint_of_one_that_knows_of_none() -> None:
    none, other, softmax = (
        compose_settings(RunSettings, "run", each)
        for each in ([], ["title_head.loss_weight=2"], ["title_head.kind=softmax"])
    )
    assert run_fingerprint(none, "store", None) == run_fingerprint(other, "store", None)
    assert run_fingerprint(none, "store", None) != run_fingerprint(softmax, "store", None)


def test_weights_are_not_selected_by_a_layer_that_is_not_there() -> None:
    with raises("settings/invalid", "training.best_by: expected title or token", "title_head.kind="):
        compose_settings(RunSettings, "run", ["training.best_by=title_head"])
