"""Fine-tuning over real ranks: offload, LoRA, 8-bit states, quantized bases, bad steps, early stops; kills in between."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from helpers.processes import PROJECT, run_ranks, run_well
from helpers.runs import settings_of, small_run
from helpers.trained_runs import losses, saved_weights
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from laborllm_dist.checkpoint.manifest import read_manifest
from laborllm_dist.checkpoint.save import checkpoint_folder
from laborllm_dist.models.lora import lora_config
from laborllm_dist.store.build import prepare_store
from laborllm_dist.tables.scores import read_score_table
from laborllm_dist.training.lr_schedule import learning_rate_at

pytestmark = pytest.mark.ranks

SHORT = ["training.epochs=2", "batch.global_batch_size=16", "training.log_every_steps=1"]  # six steps
# Adam divides a gradient by its own size, so that the last bit of one near zero would be a whole step of the learning
# rate. With an epsilon far above a gradient's rounding (1e-7 of it), an update moves by rate x rounding / epsilon at most.
LORA = [
    "optimizer.epsilon=1e-3",
    "adapter=lora",
    "adapter.rank=4",
    "adapter.alpha=8",
    "optimizer.learning_rate=1e-2",
    "optimizer.weight_decay=0",
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a small model for an epoch, whose export is then fine-tuned; return the folder of all runs."""
    folder = tmp_path_factory.mktemp("base")
    # Wide enough for a block of bitsandbytes' 4-bit weights.
    wide = ["model.llama.hidden_size=64", "model.llama.intermediate_size=128", "model.llama.num_key_value_heads=2"]
    run_well("train.py", small_run(folder, "training.epochs=1", *wide), world_size=1, log=folder / "log")
    shutil.move(folder / "runs/small/export", folder / "base")
    return folder


def tune(base: Path, name: str, *more: str) -> list[str]:
    data_settings = [
        override for override in small_run(base) if not override.startswith(("model.", "tokenizer.", "name="))
    ]
    pretrained = ["model=pretrained", f"model.path={base}/base", "tokenizer=pretrained"]
    return [*data_settings, f"name={name}", *pretrained, *SHORT, *more]


@pytest.fixture(scope="module")
def plain(base: Path) -> list[float]:
    run_well("train.py", tune(base, "plain", "zero=stage2"), world_size=2, log=base / "log")
    return losses(base / "runs/plain")


@pytest.mark.parametrize(
    ("name", "settings", "tolerance"),
    [
        ("offload2", ["zero=stage2", "zero.offload_optimizer=cpu", "compute=large"], 1e-6),
        ("offload3", ["zero=stage3", "zero.offload_optimizer=cpu", "zero.offload_param=cpu"], 1e-6),
        ("eight2", ["zero=stage2", "optimizer.name=adamw_8bit"], 2e-4),
        ("eight3", ["zero=stage3", "optimizer.name=adamw_8bit"], 2e-4),
    ],
)
def test_loss_curves_lie_on_that_of_stage_2(name: str, settings: list[str], tolerance: float, base, plain) -> None:
    run_well("train.py", tune(base, name, *settings), world_size=2, log=base / "log")
    actual = losses(base / "runs" / name)
    assert len(actual) == len(plain) == 6
    assert actual == pytest.approx(plain, rel=tolerance)
    assert plain[-1] < plain[0] - 1e-3  # something is learned, so agreement is no accident


@pytest.fixture(scope="module")
def lora_by_hand(base: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Fine-tune with peft and torch alone: one process, no packing, every career by itself."""
    settings = settings_of(tune(base, "hand", *LORA))
    store = prepare_store(settings)
    careers = store.careers("train")
    from laborllm_dist.batching.training_plan import plan_training

    plan = plan_training(store, settings, world_size=1)
    model = AutoModelForCausalLM.from_pretrained(base / "base", dtype=torch.float32)
    torch.manual_seed(settings.training.seed)
    from transformers import set_seed

    set_seed(settings.training.seed)
    model = peft.get_peft_model(model, lora_config(settings.adapter, "x")).train()
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer_settings = settings.optimizer
    adam = torch.optim.AdamW(
        learned,
        betas=(optimizer_settings.beta1, optimizer_settings.beta2),
        eps=optimizer_settings.epsilon,
        weight_decay=0.0,
    )
    actual = []
    for step in range(plan.num_steps):
        total, num_targets = torch.zeros(()), 0
        for row in plan.order.careers_of_step(step):
            ids = torch.from_numpy(careers.token_ids(int(row)).astype(np.int64))[None]
            logits = model(input_ids=ids).logits
            total = total + torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum")
            num_targets += ids.shape[1] - 1
        (total / num_targets).backward()
        torch.nn.utils.clip_grad_norm_(learned, optimizer_settings.max_grad_norm)
        for group in adam.param_groups:
            group["lr"] = learning_rate_at(step, plan.num_steps, optimizer_settings)
        adam.step()
        adam.zero_grad()
        actual.append(float(total.detach()) / num_targets)
    return actual, {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_lora_on_two_ranks_equals_peft_and_torch(stage: int, base: Path, lora_by_hand) -> None:
    expected_losses, expected = lora_by_hand
    run_well("train.py", tune(base, f"lora{stage}", *LORA, f"zero=stage{stage}"), world_size=2, log=base / "log")
    assert losses(base / f"runs/lora{stage}") == pytest.approx(expected_losses, rel=2e-6)
    actual = saved_weights(base / f"runs/lora{stage}", 6)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-4, atol=1e-5)


def test_lora_in_bf16_is_one_curve_at_every_stage(base: Path, lora_by_hand) -> None:
    for stage in (2, 3):
        run = tune(base, f"narrow{stage}", *LORA, f"zero=stage{stage}", "zero.precision=bf16", "training.epochs=1")
        run_well("train.py", run, world_size=2, log=base / "log")
        assert losses(base / f"runs/narrow{stage}")[0] == pytest.approx(lora_by_hand[0][0], rel=5e-3)
    assert losses(base / "runs/narrow2") == pytest.approx(losses(base / "runs/narrow3"), rel=1e-3)


def test_the_adapter_alone_and_merged_are_one_model_and_evaluation_opens_both(base: Path) -> None:
    run = base / "runs/lora2"
    assert sum(value.numel() for value in load_file(run / "adapter/adapter_model.safetensors").values()) < 10_000
    ids = torch.arange(4, 40)[None]
    merged = AutoModelForCausalLM.from_pretrained(run / "export", dtype=torch.float32)
    plain = AutoModelForCausalLM.from_pretrained(base / "base", dtype=torch.float32)
    before = plain(input_ids=ids).logits
    alone = peft.PeftModel.from_pretrained(plain, str(run / "adapter"))
    with torch.inference_mode():
        torch.testing.assert_close(alone(input_ids=ids).logits, merged(input_ids=ids).logits, rtol=0, atol=1e-4)
        assert float((merged(input_ids=ids).logits - before).abs().max()) > 1e-2
    run_well("evaluate.py", [f"run={run}"], world_size=1, log=base / "log")
    other = [f"run={run}", f"model.path={run}/adapter", "model.name=adapter"]
    run_well("evaluate.py", other, world_size=2, log=base / "log")
    scores = [
        read_score_table(run / f"scores/{name}.parquet")[0]["title"].to_numpy() for name in ("test", "test.adapter")
    ]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-4)


KILLED = ["training.epochs=4", "training.checkpoint_every_steps=5", "model.attention_dropout=0.1"]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("killed_lora", [*LORA, "adapter.dropout=0.1", "zero=stage3"]),
        ("killed_eight", ["optimizer.name=adamw_8bit", "zero=stage2"]),
    ],
)
def test_kill_and_resume_is_bitwise_with_adapters_and_8_bit_moments(name: str, settings: list[str], base: Path) -> None:
    run_well("train.py", tune(base, f"{name}_not", *settings, *KILLED), world_size=2, log=base / "log")
    run = tune(base, name, *settings, *KILLED)

    def is_far() -> bool:
        metrics = base / "runs" / name / "metrics.jsonl"
        return metrics.is_file() and len(metrics.read_text().splitlines()) >= 8

    killed = run_ranks("train.py", run, world_size=2, log=base / "log", kill_when=is_far)
    assert killed.codes != [0, 0]
    assert "resumes after step" in run_well("train.py", run, world_size=2, log=base / "log")
    expected, actual = (saved_weights(base / "runs" / each, 12) for each in (f"{name}_not", name))
    assert all(torch.equal(actual[key], expected[key]) for key in expected)
    assert losses(base / "runs" / name) == losses(base / "runs" / f"{name}_not")


def test_8_bit_moments_go_on_at_another_number_of_ranks_and_stage(base: Path) -> None:
    """Blocks are cut anew there, so moments are rounded once more: the losses stay near, not the same."""
    source, target = base / "runs/killed_eight_not", base / "runs/other_eight"
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("export", "scores"))
    shutil.rmtree(checkpoint_folder(target / "checkpoints", 12))
    newest = max(int(path.name.removeprefix("step_")) for path in (target / "checkpoints").iterdir())
    settings = ["optimizer.name=adamw_8bit", "zero=stage3", *KILLED]
    text = run_well("train.py", tune(base, "other_eight", *settings), world_size=1, log=base / "log")
    assert f"resumes after step {newest} of 12" in text
    assert losses(target) == pytest.approx(losses(source), rel=1e-4)
    assert losses(target) != losses(source)


@pytest.mark.parametrize("kind", ["lora_int8", "qlora"])
def test_a_quantized_base_learns_nearly_as_a_whole_one(kind: str, base: Path, lora_by_hand) -> None:
    settings = [*LORA, f"adapter={kind}", "zero=stage2"]
    text = run_well("train.py", tune(base, kind, *settings), world_size=2, log=base / "log")
    assert re.search(r"plan: [\d,]+ parameters, [\d,]+ of them trainable", text)
    actual, (expected, _) = losses(base / "runs" / kind), lora_by_hand
    assert actual == pytest.approx(expected, rel=3e-2)
    assert actual != pytest.approx(expected, rel=3e-7)  # it is quantized
    assert actual[-1] < actual[0]
    AutoModelForCausalLM.from_pretrained(base / "runs" / kind / "export")


BUMPY = ["training.epochs=4", "optimizer.learning_rate=5e-2", "optimizer.lr_scheduler=constant", "zero=stage2"]
BUMP = 1.0005


def test_a_spike_stops_with_its_careers_named_and_nothing_of_it_learned(base: Path) -> None:
    run_well("train.py", tune(base, "bumpy", *BUMPY), world_size=2, log=base / "log")
    bumpy = losses(base / "runs/bumpy")
    # Any loss above the one before counts as a spike here; the run without a watch says which step is the first.
    spike = next(step for step in range(1, 12) if bumpy[step] > BUMP * bumpy[step - 1])
    run = tune(base, "wary", *BUMPY, f"training.loss_spike_ratio={BUMP}", "training.loss_spike_window=1")
    outcome = run_ranks("train.py", run, world_size=2, log=base / "log")
    assert outcome.codes == [2, 2]
    (error,) = [line for line in outcome.text.splitlines() if line.startswith("error:")]
    assert re.search(
        rf"step {spike + 1} was not applied: its loss of [\d.]+ nats/token is 1.0 times the median of the last 1 steps "
        rf".*; its careers: SYNTHETIC \d+, SYNTHETIC \d+, SYNTHETIC \d+ and 13 more .*Steps up to {spike} are saved",
        error,
    )
    noted = [json.loads(line) for line in (base / "runs/wary/metrics.jsonl").read_text().splitlines()][-1]
    assert (noted["step"], len(noted["careers"])) == (spike + 1, 16)
    # The same command without that step goes on from what is saved.
    text = run_well("train.py", [*run, "training.on_bad_step=skip"], world_size=2, log=base / "log")
    assert f"resumes after step {spike} of 12" in text
    assert f"train: step {spike + 1} was not applied" in text
    left_out = text.count("was not applied")
    assert re.search(rf"; {left_out} of 12 steps were not applied$", text, re.MULTILINE)
    manifest = read_manifest(checkpoint_folder(base / "runs/wary/checkpoints", 12))
    assert spike in manifest.state["left_out"]
    actual = losses(base / "runs/wary")
    assert actual[: spike + 1] == bumpy[: spike + 1]


OFFLOAD = ["zero.offload_optimizer=cpu", "optimizer.name=adamw"]


@pytest.mark.parametrize(
    ("stage", "precision", "more"),
    [
        *((stage, precision, []) for stage in (0, 1, 2, 3) for precision in ("fp32", "bf16")),
        *((stage, "fp32", ["optimizer.name=adamw_8bit"]) for stage in (0, 2, 3)),
        *((stage, "fp32", OFFLOAD) for stage in (1, 2)),
        (3, "bf16", [*OFFLOAD, "zero.offload_param=cpu"]),
    ],
)
def test_a_step_that_is_left_out_changes_nothing(stage: int, precision: str, more: list[str], tmp_path: Path) -> None:
    """Two steps with a bad one between them are the two steps alone, bit by bit: weights, masters and moments."""
    program = str(PROJECT / "tests/programs/skipped_step.py")
    text = run_well(program, [str(stage), precision, *more], world_size=1, log=tmp_path / "log")
    assert text.split()[-3:] == ["same", "finite", "infinite"]


def test_weights_that_are_no_numbers_stop_the_run_in_one_line(base: Path) -> None:
    # The first update makes every weight infinite.
    run = tune(base, "ruined", "optimizer.learning_rate=3e37", "optimizer.weight_decay=0", "zero=stage2")
    outcome = run_ranks("train.py", run, world_size=2, log=base / "log")
    assert outcome.codes == [2, 2]
    assert re.search("error: step 2 was not applied: its (loss is|gradient is not finite)", outcome.text)
    assert "Traceback" not in outcome.text


def test_weights_with_nan_are_named_where_nothing_has_been_learned_yet(base: Path) -> None:
    weights = load_file(base / "base/model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][3, 5] = torch.nan
    shutil.copytree(base / "base", base / "broken", ignore=shutil.ignore_patterns("laborllm_dist.json"))
    save_file(weights, base / "broken/model.safetensors", metadata={"format": "pt"})
    run = [*tune(base, "broken", "zero=stage2"), f"model.path={base}/broken"]
    outcome = run_ranks("train.py", run, world_size=1, log=base / "log")
    assert outcome.codes == [2]
    (error,) = [line for line in outcome.text.splitlines() if line.startswith("error:")]
    assert f"Nothing has been learned yet, so the weights at {base}/broken may be damaged" in error
    assert "learning rate" not in error
    assert "saved" not in error


def test_older_files_train_as_safetensors_do_where_they_are_allowed(base: Path, plain: list[float]) -> None:
    shutil.copytree(base / "base", base / "older", ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save(load_file(base / "base/model.safetensors"), base / "older/pytorch_model.bin")
    run = [*tune(base, "older", "zero=stage2"), f"model.path={base}/older"]
    outcome = run_ranks("train.py", run, world_size=2, log=base / "log")
    assert outcome.codes == [2, 2]
    assert "model.weights=pickle opens its *.bin files, which can run code of whoever made them" in outcome.text
    run_well("train.py", [*run, "model.weights=pickle"], world_size=2, log=base / "log")
    assert losses(base / "runs/older") == plain


def test_skipping_bad_steps_has_an_end(base: Path) -> None:
    run = tune(base, "hopeless", "optimizer.learning_rate=3e37", "optimizer.weight_decay=0", "zero=stage2")
    skip = ["training.on_bad_step=skip", "training.max_consecutive_skips=2"]
    outcome = run_ranks("train.py", [*run, *skip], world_size=2, log=base / "log")
    assert outcome.codes == [2, 2]
    assert outcome.text.count("train: step") == 2
    assert re.search(
        "error: step 4 was not .* That makes 3 in a row, training.max_consecutive_skips is 2; steps up to 3 are saved",
        outcome.text,
    )


def test_lora_curves_of_the_stages_are_one(base: Path) -> None:
    curves = [losses(base / f"runs/lora{stage}") for stage in (0, 2, 3)]
    assert len(curves[0]) == 6
    for curve in curves[1:]:
        assert curve == pytest.approx(curves[0], rel=1e-6)


def test_training_stops_early_when_validation_has_not_gained(base: Path) -> None:
    # A rate of nothing: no validation is better than the first.
    run = tune(base, "early", "training.patience=2", "training.epochs=50", "optimizer.learning_rate=1e-30")
    text = run_well("train.py", run, world_size=1, log=base / "log")
    assert "train: stops early after step 9: 2 validations without a better one than after step 3" in text
    assert "train: weights of step 3 (best on validation)" in text
    assert "is finished (9 steps, best after 3)" in run_well("train.py", run, world_size=1, log=base / "log")


def test_an_adapter_for_layers_that_are_not_there_is_refused(base: Path) -> None:
    outcome = run_ranks(
        "train.py", tune(base, "bad", "adapter=lora", "adapter.target_modules=[c_attn]"), world_size=1, log=base / "log"
    )
    assert outcome.codes == [2]
    assert (
        "error: adapter.target_modules: the model has no linear layer c_attn; it has down_proj, gate_proj"
        in outcome.text
    )
