"""The plan of memory: parameters and bytes against numbers worked out by hand, and what training refuses by them."""

from __future__ import annotations

from pathlib import Path

import pytest
from worlds import settings_of, small_run

from laborllm_dist.engine.capacity import Capacity
from laborllm_dist.engine.compiled import check_nvme
from laborllm_dist.engine.memory_plan import GIB, Load, plan_memory
from laborllm_dist.engine.shape import KNOWN, shape_of
from laborllm_dist.errors import DoesNotFit, ModelError, SettingsError
from laborllm_dist.settings import RunSettings
from laborllm_dist.tokens.prepare import prepare_store
from laborllm_dist.training.memory_check import check_memory
from laborllm_dist.training.plan import plan_training

SEVEN, THIRTEEN = KNOWN["meta-llama/Llama-2-7b-hf"], KNOWN["meta-llama/Llama-2-13b-hf"]


def settings_for(*more: str) -> RunSettings:
    return settings_of(["+experiment=pooled_7b", *more])


def test_parameters_are_those_published() -> None:
    assert SEVEN.num_parameters == 6_738_415_616
    assert THIRTEEN.num_parameters == 13_015_864_320
    assert KNOWN["models/smollm2_135m"].num_parameters == 134_515_008
    # LoRA of rank 8 on q and v of 32 layers: 32 x 2 x 8 x (4096 + 4096).
    adapter = settings_for("adapter=lora", "adapter.rank=8", "adapter.targets=[q_proj,v_proj]").adapter
    assert SEVEN.num_learnt(adapter) == 4_194_304


def test_parameters_are_those_of_the_model_that_is_made(tmp_path: Path) -> None:
    from laborllm_dist.engine.model import new_llama

    for tied in ("true", "false"):
        settings = settings_of(small_run(tmp_path, f"model.llama.tied_embeddings={tied}"))
        llama = new_llama(settings.model.llama, num_ids=400, attention_dropout=0.0, seed=1)
        wanted = sum(parameter.numel() for parameter in llama.parameters())
        assert shape_of(settings.model, num_ids=400).num_parameters == wanted
        llama.save_pretrained(tmp_path / tied)
        read = settings_of(["model=pretrained", f"model.path={tmp_path / tied}", "tokenizer=pretrained"]).model
        assert shape_of(read, num_ids=1).num_parameters == wanted


def test_a_model_nobody_knows_is_refused(tmp_path: Path) -> None:
    unknown = settings_of(["model=pretrained", f"model.path={tmp_path}/none", "tokenizer=pretrained"]).model
    with pytest.raises(ModelError, match=r"the shape of model.path=.*none is not known: .*; give a folder"):
        shape_of(unknown, num_ids=1)


@pytest.mark.parametrize(
    ("stage", "gib"),
    [
        # 7B on 8 ranks, bf16 from stage 1 on. GiB of: weights, gradients, optimizer.
        (1, {"weights": 12.55, "gradients": 12.55 + 25.10, "optimizer": 75.31 / 8}),
        (2, {"weights": 12.55, "gradients": 25.10 / 8, "optimizer": 75.31 / 8}),
        (3, {"weights": 12.55 / 8, "gradients": 25.10 / 8, "optimizer": 75.31 / 8}),
    ],
)
def test_memory_of_llama_2_7b_by_hand(stage: int, gib: dict[str, float]) -> None:
    memory = plan_memory(SEVEN, settings_for(f"zero.stage={stage}"), Load(1, 2048), world_size=8, process_bytes=None)
    for kind, wanted in gib.items():
        assert memory.device[kind] / GIB == pytest.approx(wanted, abs=0.01)
    # With every layer computed again: 32 inputs of 2,048 x 4,096 in bf16 are 0.5 GiB, and one layer's all on top.
    layer = 2048 * (2 * (4 * 4096 + 4 * 4096) + 2 * (2 * 4096 + 2 * 4096) + 2 * 4 * 11008)
    assert memory.device["activations"] == pytest.approx(0.5 * GIB + layer + 2048 * 4096 * 8)


def test_offload_moves_memory_to_the_host_and_8_bits_save() -> None:
    plain = plan_memory(SEVEN, settings_for(), Load(1, 1024), world_size=2, process_bytes=None)
    offload = ["zero.offload_optimizer=cpu", "optimizer.kind=cpu_adamw", "zero.offload_weights=cpu"]
    moved = plan_memory(SEVEN, settings_for(*offload), Load(1, 1024), world_size=2, process_bytes=None)
    for kind in ("weights", "gradients", "optimizer"):
        assert moved.host[kind] == plain.device[kind]
        assert not moved.device.get(kind)
    eight = plan_memory(
        SEVEN, settings_for("optimizer.kind=adamw_8bit"), Load(1, 1024), world_size=2, process_bytes=None
    )
    assert eight.device["optimizer"] / plain.device["optimizer"] == pytest.approx((4 + 2.03125) / 12)


def test_page_locked_memory_comes_in_powers_of_two() -> None:
    settings = settings_for("zero.stage=2", "zero.offload_optimizer=cpu", "optimizer.kind=cpu_adamw")
    memory = plan_memory(SEVEN, settings, Load(1, 1024), world_size=1, process_bytes=None)
    # fp32 weights and gradients of 25.10 GiB and a bf16 copy of 12.55 lie in stretches of 32, 32 and 16.
    assert memory.host["pinned"] / GIB == pytest.approx(80 - 2 * 25.10 - 12.55, abs=0.01)
    on_cpu = plan_memory(SEVEN, settings, Load(1, 1024), world_size=1, process_bytes=1.0)
    assert "pinned" not in on_cpu.host


def test_quantised_weights_by_hand() -> None:
    qlora = settings_for("adapter=qlora", "zero=stage2_bf16")
    memory = plan_memory(SEVEN, qlora, Load(1, 512), world_size=1, process_bytes=None)
    # 32 layers of 202,375,168 weights at 4 bits and a scale of 4 bytes for 64; embeddings, norms, additions in bf16.
    linear = 32 * 202_375_168
    rest = 6_738_415_616 - linear + SEVEN.num_learnt(qlora.adapter)
    assert memory.device["weights"] == pytest.approx(linear * 0.5625 + 2 * rest)


@pytest.mark.parametrize(
    ("more", "linear_copies"),
    [(["adapter=lora"], 32), (["adapter=lora", "compute.gradient_checkpointing=true"], 1), (["adapter=qlora"], 0)],
)
def test_autocast_copies_what_is_learnt_and_what_a_backward_waits_for(more: list[str], linear_copies: int) -> None:
    """ZeRO-0 in bf16: fp32 weights, and bf16 copies of the 202,375,168 weights of so many layers, and of the adapter."""
    settings = settings_for("zero=stage0", "zero.precision=bf16", "compute.gradient_checkpointing=false", *more)
    memory = plan_memory(SEVEN, settings, Load(1, 512), world_size=1, process_bytes=None)
    learnt, linear = 39_976_960, 202_375_168
    held = 32 * linear * (4 if "adapter=lora" in more else 0.5625) + 4 * (6_738_415_616 - 32 * linear + learnt)
    assert memory.device["weights"] == pytest.approx(held + 2 * learnt + 2 * linear_copies * linear)


def small_plan(tmp_path: Path, *more: str):
    settings = settings_of(small_run(tmp_path, *more))
    store = prepare_store(settings, lambda line: None)
    return settings, plan_training(store, settings, world_size=1), store.num_ids


def test_training_refuses_what_cannot_fit_unless_told_to_go_on(tmp_path: Path) -> None:
    settings, plan, num_ids = small_plan(tmp_path)
    said: list[str] = []
    check_memory(settings, plan, num_ids, Capacity(4.0 * GIB, 0.5 * GIB, None), said.append)
    assert said[0].startswith("plan: a rank needs about 0.5")
    little = Capacity(0.4 * GIB, 0.5 * GIB, None)
    with pytest.raises(
        DoesNotFit, match=r"a rank needs about 0.5\d of 0.40 GiB; no setting .*; to try all the same: plan.go_on"
    ):
        check_memory(settings, plan, num_ids, little, said.append)
    going_on = settings_of(small_run(tmp_path, "plan.go_on=true"))
    check_memory(going_on, plan, num_ids, little, said.append)


def test_training_refuses_to_offload_more_than_the_host_has(tmp_path: Path) -> None:
    offload = ["zero=stage2", "zero.offload_optimizer=cpu", "optimizer.kind=cpu_adamw"]
    settings, plan, num_ids = small_plan(tmp_path, *offload)
    check_memory(settings, plan, num_ids, Capacity(4.0 * GIB, None, 1.0 * GIB), lambda line: None)
    little = Capacity(4.0 * GIB, None, 1e5)
    with pytest.raises(DoesNotFit, match=r"a rank offloads about 0.00 GiB to its host, whose memory has 0.00 GiB left"):
        check_memory(settings, plan, num_ids, little, lambda line: None)
    going_on = settings_of(small_run(tmp_path, *offload, "plan.go_on=true"))
    check_memory(going_on, plan, num_ids, little, lambda line: None)


def test_nvme_offload_wants_the_cuda_toolkit_on_a_gpu_s_host(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_for(
        "zero.stage=3", "zero.offload_optimizer=nvme", "zero.offload_folder=/nvme", "optimizer.kind=cpu_adamw"
    )
    monkeypatch.setattr("torch.utils.cpp_extension.CUDA_HOME", None)
    check_nvme(settings.zero, is_on_gpu=False)
    with pytest.raises(SettingsError, match=r"against the CUDA toolkit.* set zero.offload_optimizer=cpu"):
        check_nvme(settings.zero, is_on_gpu=True)
    monkeypatch.setattr("torch.utils.cpp_extension.CUDA_HOME", "/usr/local/cuda")
    check_nvme(settings.zero, is_on_gpu=True)


def test_autocast_keeps_wide_norms_and_a_copy_of_its_input_for_each_linear_layer() -> None:
    """Both norms' output of 4,096 numbers in 4 bytes, not 2; three inputs in 2 bytes more than the two that are shared."""
    plain = ["zero.precision=bf16", "compute.gradient_checkpointing=false"]
    sizes = [
        plan_memory(SEVEN, settings_for(zero, *plain), Load(1, 512), world_size=1, process_bytes=None).device
        for zero in ("zero=stage0", "zero=stage1")
    ]
    extra = 32 * 512 * (2 * 2 * 4096 + 3 * 2 * 4096)
    assert sizes[0]["activations"] - sizes[1]["activations"] == extra
