"""The plan of memory: parameters and bytes against numbers worked out by hand, and what training refuses by them."""

from __future__ import annotations

import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.errors import raises
from helpers.runs import settings_of, small_run

from laborllm_dist.batching.batch import pack_batch
from laborllm_dist.batching.training_plan import plan_training
from laborllm_dist.config.run import RunSettings
from laborllm_dist.distributed import deepspeed_config
from laborllm_dist.distributed.jit_ops import check_nvme
from laborllm_dist.models.causal_lm import CareerLanguageModel
from laborllm_dist.models.dims import KNOWN, shape_of
from laborllm_dist.models.loading import new_llama
from laborllm_dist.planning.estimate import MemoryBudget, estimate_resources
from laborllm_dist.planning.memory import GIB, MicroBatchShape, plan_memory
from laborllm_dist.planning.memory_check import check_memory
from laborllm_dist.planning.workload import Workload
from laborllm_dist.store.build import prepare_store

SEVEN, THIRTEEN = KNOWN["meta-llama/Llama-2-7b-hf"], KNOWN["meta-llama/Llama-2-13b-hf"]


def settings_for(*more: str) -> RunSettings:
    return settings_of(["+experiment=pooled_7b", *more])


def test_parameters_are_those_published() -> None:
    assert SEVEN.num_parameters == 6_738_415_616
    assert THIRTEEN.num_parameters == 13_015_864_320
    assert KNOWN["models/smollm2_135m"].num_parameters == 134_515_008
    # LoRA of rank 8 on q and v of 32 layers: 32 x 2 x 8 x (4096 + 4096).
    adapter = settings_for("adapter=lora", "adapter.rank=8", "adapter.target_modules=[q_proj,v_proj]").adapter
    assert SEVEN.num_trainable(adapter) == 4_194_304


def test_parameters_are_those_of_the_model_that_is_made(tmp_path: Path) -> None:
    for tied in ("true", "false"):
        settings = settings_of(small_run(tmp_path, f"model.llama.tied_embeddings={tied}"))
        llama = new_llama(settings.model.llama, num_ids=400, attention_dropout=0.0, seed=1)
        expected = sum(parameter.numel() for parameter in llama.parameters())
        assert shape_of(settings.model, num_ids=400).num_parameters == expected
        llama.save_pretrained(tmp_path / tied)
        read = settings_of(["model=pretrained", f"model.path={tmp_path / tied}", "tokenizer=pretrained"]).model
        assert shape_of(read, num_ids=1).num_parameters == expected


@pytest.mark.parametrize("more", [[], ["adapter=lora"]])
def test_a_title_head_adds_its_weights_gradients_and_optimizer_state(more: list[str]) -> None:
    plain, head = (settings_for("zero=stage1", *more, f"title_head.kind={kind}") for kind in ("none", "two_stage"))
    work = Workload(8, 2400.0, 1, ((300,) * 8,), 300, 150.0, is_assumed=False, num_titles=335)
    room = MemoryBudget(total=80 * GIB, process=None, host=None)
    without, with_head = (estimate_resources(each, work, SEVEN, room) for each in (plain, head))
    num_weights = 336 * 4096
    assert with_head.shape.num_parameters == SEVEN.num_parameters + num_weights
    assert with_head.shape.num_trainable(head.adapter) == SEVEN.num_trainable(plain.adapter) + num_weights
    before, after = without.memory.device, with_head.memory.device
    added = {kind: after[kind] - before[kind] for kind in ("weights", "gradients", "optimizer")}
    ranks = plain.plan.num_gpus
    assert added == {"weights": 4 * num_weights, "gradients": 4 * num_weights, "optimizer": 12 * num_weights / ranks}
    assert estimate_resources(head, work, with_head.shape, room).memory == with_head.memory  # counted once


def test_a_model_nobody_knows_is_refused(tmp_path: Path) -> None:
    unknown = settings_of(["model=pretrained", f"model.path={tmp_path}/none", "tokenizer=pretrained"]).model
    with raises("model/unknown-model-shape", "none"):
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
    memory = plan_memory(
        SEVEN, settings_for(f"zero.stage={stage}"), MicroBatchShape(1, 2048), world_size=8, process_bytes=None
    )
    for kind, expected in gib.items():
        assert memory.device[kind] / GIB == pytest.approx(expected, abs=0.01)
    # With every layer computed again: 32 inputs of 2,048 x 4,096 in bf16 are 536,870,912 bytes. On top comes one layer.
    # Bytes of a token there: 65,536 of two norms (input in float32; what is normalized and the output in bf16), 32,768
    # of queries, keys, values and what attention gives, 88,064 of gate, its activation, up, and their product; times
    # 2,048 tokens 381,681,664. The last norm's are 67,108,864.
    assert memory.device["activations"] == 985_661_440


def test_fused_kernels_save_no_wide_norms_and_no_activation_by_hand() -> None:
    settings = settings_for("compute.kernels=liger")
    memory = plan_memory(SEVEN, settings, MicroBatchShape(1, 2048), world_size=8, process_bytes=None)
    # Of a token: 32,768 bytes of two norms (input and output in bf16), 32,768 of queries, keys, values and what attention
    # gives, 66,048 of gate, up and their product; times 2,048 tokens 269,484,032. The last norm's are 33,554,432, the
    # inputs of the 32 layers 536,870,912.
    assert memory.device["activations"] == 839_909_376


def test_offload_moves_memory_to_the_host_and_8_bits_save() -> None:
    plain = plan_memory(SEVEN, settings_for(), MicroBatchShape(1, 1024), world_size=2, process_bytes=None)
    offload = ["zero.offload_optimizer=cpu", "optimizer.name=cpu_adamw", "zero.offload_param=cpu"]
    moved = plan_memory(SEVEN, settings_for(*offload), MicroBatchShape(1, 1024), world_size=2, process_bytes=None)
    for kind in ("weights", "gradients", "optimizer"):
        assert moved.host[kind] == plain.device[kind]
        assert not moved.device.get(kind)
    eight = plan_memory(
        SEVEN, settings_for("optimizer.name=adamw_8bit"), MicroBatchShape(1, 1024), world_size=2, process_bytes=None
    )
    assert eight.device["optimizer"] / plain.device["optimizer"] == pytest.approx((4 + 2.03125) / 12)


@pytest.mark.parametrize(("stage", "more"), [(0, 0), (1, 2), (2, 2), (3, 0)])
def test_overlapping_communication_takes_a_second_bucket(stage: int, more: int) -> None:
    sizes, written = [], []
    for overlaps in (False, True):
        overlap = f"zero.overlap_comm={overlaps}"
        settings = settings_for(f"zero.stage={stage}", "zero.bucket_size=1000000", "zero.precision=bf16", overlap)
        memory = plan_memory(SEVEN, settings, MicroBatchShape(1, 1024), world_size=2, process_bytes=None)
        sizes.append(memory.device["buffers"])
        config = deepspeed_config.deepspeed_config(settings.zero, None, 2, on_gpu=True)
        written.append(config["zero_optimization"]["overlap_comm"])
        on_cpu = deepspeed_config.deepspeed_config(settings.zero, None, 2, on_gpu=False)
        assert on_cpu["zero_optimization"]["overlap_comm"] is False
    # A bucket of a million bf16 gradients is 2 MB, and its copy in fp32 4 MB. At stage 0 gradients are fp32.
    assert sizes[0] == (4e6 if stage == 0 else 6e6)
    assert sizes[1] - sizes[0] == more * 1e6
    assert written == [False, stage > 0]


def test_page_locked_memory_comes_in_powers_of_two() -> None:
    settings = settings_for("zero.stage=2", "zero.offload_optimizer=cpu", "optimizer.name=cpu_adamw")
    memory = plan_memory(SEVEN, settings, MicroBatchShape(1, 1024), world_size=1, process_bytes=None)
    # fp32 weights and gradients of 25.10 GiB and a bf16 copy of 12.55 lie in stretches of 32, 32 and 16.
    assert memory.host["pinned"] / GIB == pytest.approx(80 - 2 * 25.10 - 12.55, abs=0.01)
    on_cpu = plan_memory(SEVEN, settings, MicroBatchShape(1, 1024), world_size=1, process_bytes=1.0)
    assert "pinned" not in on_cpu.host


def test_quantized_weights_by_hand() -> None:
    qlora = settings_for("adapter=qlora", "zero=stage2_bf16")
    memory = plan_memory(SEVEN, qlora, MicroBatchShape(1, 512), world_size=1, process_bytes=None)
    # 32 layers of 202,375,168 weights at 4 bits and a scale of 4 bytes for 64: 3,642,753,024 bytes. Embeddings and norms,
    # 262,410,240 weights, and 39,976,960 of the adapter (rank 16 on all seven layers) in bf16: 604,774,400 bytes.
    assert memory.device["weights"] == 4_247_527_424


@pytest.mark.parametrize(
    ("more", "num_bytes"),
    [
        # 6,738,415,616 weights and 39,976,960 of the adapter in 4 bytes, a copy of the latter in 2: 27,193,524,224; and
        # bf16 copies of the 202,375,168 weights of all 32 layers, or of one.
        (["adapter=lora"], 27_193_524_224 + 12_952_010_752),
        (["adapter=lora", "compute.gradient_checkpointing=true"], 27_193_524_224 + 404_750_336),
        # 3,642,753,024 of 4-bit weights, 302,387,200 weights in 4 bytes, and the copy of the adapter; no other copies.
        (["adapter=qlora"], 3_642_753_024 + 1_209_548_800 + 79_953_920),
    ],
)
def test_autocast_copies_what_is_learned_and_what_a_backward_waits_for(more: list[str], num_bytes: int) -> None:
    settings = settings_for("zero=stage0", "zero.precision=bf16", "compute.gradient_checkpointing=false", *more)
    memory = plan_memory(SEVEN, settings, MicroBatchShape(1, 512), world_size=1, process_bytes=None)
    assert memory.device["weights"] == num_bytes


def small_plan(tmp_path: Path, *more: str):
    settings = settings_of(small_run(tmp_path, *more))
    store = prepare_store(settings)
    return settings, plan_training(store, settings, world_size=1), store.num_ids


def test_training_refuses_what_cannot_fit_unless_told_to_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings, plan, num_ids = small_plan(tmp_path)
    caplog.clear()  # of the preparation
    check_memory(settings, plan, num_ids, MemoryBudget(4.0 * GIB, 0.5 * GIB, None))
    assert caplog.messages[0].startswith("plan: a rank needs about 0.5")
    little = MemoryBudget(0.4 * GIB, 0.5 * GIB, None)
    with raises("memory-estimate/not-enough-device-memory", "0.5", "of 0.40 GiB", "no setting"):
        check_memory(settings, plan, num_ids, little)
    going_on = settings_of(small_run(tmp_path, "plan.ignore_memory_check=true"))
    check_memory(going_on, plan, num_ids, little)


def test_training_refuses_to_offload_more_than_the_host_has(tmp_path: Path) -> None:
    offload = ["zero=stage2", "zero.offload_optimizer=cpu", "optimizer.name=cpu_adamw"]
    settings, plan, num_ids = small_plan(tmp_path, *offload)
    check_memory(settings, plan, num_ids, MemoryBudget(4.0 * GIB, None, 1.0 * GIB))
    little = MemoryBudget(4.0 * GIB, None, 1e5)
    with raises("memory-estimate/not-enough-host-memory", "0.00"):
        check_memory(settings, plan, num_ids, little)
    going_on = settings_of(small_run(tmp_path, *offload, "plan.ignore_memory_check=true"))
    check_memory(going_on, plan, num_ids, little)


def test_nvme_offload_wants_the_cuda_toolkit_on_a_gpu_s_host(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_for(
        "zero.stage=3", "zero.offload_optimizer=nvme", "zero.nvme_path=/nvme", "optimizer.name=cpu_adamw"
    )
    monkeypatch.setattr("torch.utils.cpp_extension.CUDA_HOME", None)
    check_nvme(settings.zero, is_on_gpu=False)
    with raises("settings/no-cuda-toolkit"):
        check_nvme(settings.zero, is_on_gpu=True)
    monkeypatch.setattr("torch.utils.cpp_extension.CUDA_HOME", "/usr/local/cuda")
    check_nvme(settings.zero, is_on_gpu=True)


def test_autocast_keeps_wide_norms_and_a_copy_of_its_input_for_each_linear_layer() -> None:
    plain = ["zero.precision=bf16", "compute.gradient_checkpointing=false"]
    sizes = [
        plan_memory(SEVEN, settings_for(zero, *plain), MicroBatchShape(1, 512), world_size=1, process_bytes=None).device
        for zero in ("zero=stage0", "zero=stage1")
    ]
    # Of a token and layer: the output of two norms in 4 bytes a number, not 2, are 16,384 bytes more; a bf16 copy for
    # each of three more of the layers that share an input, 24,576. There are 512 tokens and 32 layers.
    assert sizes[0]["activations"] - sizes[1]["activations"] == 671_088_640


class SavedTensor:
    """A tensor that autograd keeps for the backward pass, alive as long as the graph that needs it."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


def bytes_for_backward(settings: RunSettings, *, is_autocast: bool) -> int:
    """Return the bytes of what autograd keeps of a forward of 512 tokens, weights and copies of them not counted."""
    dtype = torch.bfloat16 if settings.zero.precision == "bf16" and not is_autocast else torch.float32
    model = new_llama(settings.model.llama, num_ids=400, attention_dropout=0.0, seed=1).to(dtype)
    of_weights = {tuple(weight.shape) for weight in model.parameters()}
    of_weights |= {shape[::-1] for shape in of_weights}
    saved: weakref.WeakSet[SavedTensor] = weakref.WeakSet()

    def keep(tensor: torch.Tensor) -> SavedTensor:
        packed = SavedTensor(tensor)
        saved.add(packed)
        return packed

    lengths = [[200, 40], [256]]
    batch = pack_batch([[np.arange(length) for length in row] for row in lengths], 256)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda packed: packed.tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=is_autocast),
    ):
        output = CareerLanguageModel(model, settings.compute).train()(batch)
    # What the graph still holds: a tensor whose part of the graph is gone has freed its memory, and another one may lie
    # at its address.
    storages = {
        packed.tensor.untyped_storage().data_ptr(): packed.tensor.untyped_storage().nbytes()
        for packed in saved
        if tuple(packed.tensor.shape) not in of_weights
    }
    del output
    return sum(storages.values())


@pytest.mark.usefixtures("quickly_compiled")
@pytest.mark.parametrize(
    ("zero", "precision", "is_autocast", "source"),
    [
        ("stage1", "fp32", False, "plain"), ("stage1", "bf16", False, "plain"), ("stage0", "bf16", True, "plain"),
        ("stage1", "fp32", False, "compiled"), ("stage1", "bf16", False, "compiled"),
    ],
)  # fmt: skip
def test_activations_of_a_layer_are_what_torch_keeps_for_its_backward(
    zero: str, precision: str, is_autocast: bool, source: str, tmp_path: Path
) -> None:
    planned, saved = [], []
    for num_layers in (2, 4):
        settings = settings_of(
            small_run(
                tmp_path, f"zero={zero}", f"zero.precision={precision}", "compute.gradient_checkpointing=false",
                f"compute.kernels={source}",
                f"model.llama.num_layers={num_layers}", "model.llama.hidden_size=64", "model.llama.num_heads=4",
                "model.llama.intermediate_size=176", "model.llama.num_key_value_heads=2",
            )
        )  # fmt: skip
        shape = shape_of(settings.model, num_ids=400)
        memory = plan_memory(shape, settings, MicroBatchShape(2, 256), world_size=1, process_bytes=0.0)
        planned.append(memory.device["activations"])
        saved.append(bytes_for_backward(settings, is_autocast=is_autocast))
    assert planned[1] - planned[0] == pytest.approx(saved[1] - saved[0], rel=0.015)
