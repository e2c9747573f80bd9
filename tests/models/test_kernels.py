"""Fused kernels against transformers' layers: values, gradients, every type that has them, and where they are refused."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from helpers.errors import raises
from helpers.models import GPT_LIKE, LLAMA_LIKE, SHARDED_TYPES
from helpers.processes import PROJECT, run_well
from helpers.runs import COMPUTE

from laborllm_dist.batching.batch import pack_batch
from laborllm_dist.models import kernels
from laborllm_dist.models.causal_lm import CareerLanguageModel
from laborllm_dist.models.kernels import check_inference_kernels, check_training_kernels, compiled_kernels, use_kernels
from laborllm_dist.models.log_likelihood import chunked_log_likelihood, fused_log_likelihood

CPU = torch.device("cpu")
LIGER, COMPILED = (dataclasses.replace(COMPUTE, kernels=source) for source in ("liger", "compiled"))
gpu = pytest.mark.gpu
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def random_model(kind: str, **more: object) -> transformers.PreTrainedModel:
    torch.manual_seed(1)
    config = getattr(transformers, f"{kind}Config")(**{**LLAMA_LIKE, **more})
    model = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.1)
    return model


def check_fused_model(kind: str, source: kernels.KernelSource, *more: str) -> None:
    """Compare the scores and gradients of a model with fused kernels with those of transformers' own layers.

    In float32 the largest error of 24 log-likelihoods is 1e-6 nats, and gradients agree to 2e-6 of their norms; in bf16
    both round to 8 bits after other operations.
    """
    device = torch.device("cuda" if "cuda" in more else "cpu")
    wide = "bf16" not in more
    plain, fused = (random_model(kind).to(device, torch.float32 if wide else torch.bfloat16) for _ in range(2))
    if "lora" in more:  # what is frozen has no gradient
        for model in (plain, fused):
            model.model.requires_grad_(False)
            model.model.layers[0].mlp.gate_proj.requires_grad_(True)
    if "checkpointing" in more:
        for model in (plain, fused):
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    rng = np.random.default_rng(2)
    wrapped = [
        CareerLanguageModel(plain, COMPUTE),
        CareerLanguageModel(fused, dataclasses.replace(COMPUTE, kernels=source)),
    ]
    for lengths in ([[6, 3], [8]], [[11]]):  # another number of rows and slots
        batch = pack_batch([[rng.integers(0, 96, length).astype(np.int32) for length in row] for row in lengths], 12)
        (total, scores), (other_total, other) = (model.train()(batch.to(device)) for model in wrapped)
        torch.testing.assert_close(other, scores, rtol=0, atol=2e-6 if wide else 0.05)
        with torch.no_grad():
            torch.testing.assert_close(wrapped[1](batch.to(device))[1], other, rtol=0, atol=1e-6 if wide else 1e-2)
        total.backward()
        other_total.backward()
    for parameter, other in zip(plain.parameters(), fused.parameters(), strict=True):
        assert (parameter.grad is None) == (other.grad is None)
        if parameter.grad is not None:
            error = (other.grad - parameter.grad).norm() / parameter.grad.norm()
            assert float(error) < (2e-6 if wide else 0.03)


def check_liger_kernels(device: torch.device, dtype: torch.dtype, tolerance: float) -> None:
    """Compare liger-kernel's norm, rotation and gate with their formulas in float64, values and gradients."""
    torch.manual_seed(6)
    fused = kernels.liger_kernels()
    hidden, up = torch.randn(2, 5, 24), torch.randn(2, 5, 24)
    weight = torch.rand(24) + 0.5
    query, key, angles = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 5, 4)
    cos, sin = (torch.cat([each, each], dim=-1).to(device, dtype) for each in (angles.cos(), angles.sin()))

    def norm(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return weight * hidden / (hidden.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()

    def rotation(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """Multiply pairs of numbers, as complex ones, with the angles' points on the unit circle."""
        points = torch.complex(*(each.double().cpu()[:, None, :, :4].contiguous() for each in (cos, sin)))
        turned = [points * torch.complex(*each.contiguous().chunk(2, dim=-1)) for each in (query, key)]
        return torch.cat([torch.cat([each.real, each.imag], dim=-1).flatten() for each in turned])

    def gate(hidden: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        return hidden / (1 + (-hidden).exp()) * up

    cases = (
        (lambda *each: fused.norm(*each, 1e-6), norm, (hidden, weight)),
        (lambda *each: torch.cat([part.flatten() for part in fused.rotation(*each, cos, sin)]), rotation, (query, key)),
        (fused.gate, gate, (hidden, up)),
    )
    for own, reference, inputs in cases:
        given = [each.to(device, dtype, copy=True).requires_grad_() for each in inputs]
        exact = [each.detach().double().cpu().requires_grad_() for each in given]
        # What a linear layer returns, which a kernel may overwrite.
        actual, expected = own(*(each * 1 for each in given)), reference(*exact)
        outward = torch.randn(expected.shape).double()
        (actual.double().cpu() * outward).sum().backward()
        (expected * outward).sum().backward()
        torch.testing.assert_close(actual.double().cpu(), expected, rtol=tolerance, atol=tolerance)
        for one, other in zip(given, exact, strict=True):
            assert float((one.grad.double().cpu() - other.grad).norm() / other.grad.norm()) < tolerance


@pytest.mark.ranks
def test_compiled_kernels_train_at_every_zero_stage_as_plain_ones_do(tmp_path: Path) -> None:
    """Weights after two steps at a rate of 0.01, with gradient checkpointing, on one rank."""
    text = run_well(str(PROJECT / "tests/programs/fused_steps.py"), [], world_size=1, log=tmp_path / "log")
    errors = {int(stage): float(error) for stage, error in map(str.split, text.splitlines()[-4:])}
    assert errors.keys() == {0, 1, 2, 3}
    assert all(error < 2e-5 for error in errors.values())


@pytest.mark.usefixtures("quickly_compiled")
@pytest.mark.parametrize(
    ("kind", "more"),
    [*((kind, ()) for kind in SHARDED_TYPES), ("Llama", ("bf16", "checkpointing")), ("Llama", ("lora",))],
)
def test_compiled_kernels_score_and_learn_as_transformers_layers_do(kind: str, more: tuple[str, ...]) -> None:
    check_fused_model(kind, "compiled", *more)


@pytest.mark.usefixtures("quickly_compiled")
def test_other_rows_and_lengths_do_not_compile_again() -> None:
    from torch._dynamo.utils import counters

    fused = compiled_kernels("aot_eager")
    weight = torch.ones(40, requires_grad=True)
    for num_rows, num_slots in ((2, 3), (1, 7), (5, 2), (3, 11)):
        fused.norm(torch.ones(num_rows, num_slots, 40), weight, 1e-6)
        if num_rows == 2:
            first = counters["stats"]["unique_graphs"]
    assert counters["stats"]["unique_graphs"] == first


def test_plain_kernels_change_nothing_and_fused_ones_only_their_model() -> None:
    plain, other = random_model("Llama"), random_model("Llama")
    before = transformers.models.llama.modeling_llama.apply_rotary_pos_emb
    use_kernels(plain, "plain")
    use_kernels(other, "compiled")
    assert transformers.models.llama.modeling_llama.apply_rotary_pos_emb is before
    changed = [sum("forward" in vars(module) for module in model.modules()) for model in (plain, other)]
    assert changed == [0, 2 * (2 + 1 + 1) + 1]  # of two layers two norms, attention and MLP, and the last norm
    assert plain.state_dict().keys() == other.state_dict().keys()


def test_models_with_other_layers_are_refused() -> None:
    gpt2 = transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT_LIKE))
    with raises("model/kernels-unsupported", "llama, mistral, qwen2, qwen3", "gpt2", "compute.kernels=plain"):
        CareerLanguageModel(gpt2, COMPILED)
    with raises("model/kernels-unsupported", "SiLU"):
        use_kernels(random_model("Llama", hidden_act="gelu"), "compiled")
    with raises("model/kernels-unsupported", "no LlamaMLP"):
        headless = random_model("Llama")
        for layer in headless.model.layers:
            layer.mlp = torch.nn.Identity()
        use_kernels(headless, "compiled")


def test_an_attention_that_calls_another_rotation_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    attention = transformers.models.llama.modeling_llama.LlamaAttention
    monkeypatch.setattr(attention, "forward", lambda self, hidden_states, **_: hidden_states)
    with raises("model/kernels-unsupported", "LlamaAttention", "apply_rotary_pos_emb"):
        use_kernels(random_model("Llama"), "compiled")


@pytest.mark.parametrize("compute", [LIGER, dataclasses.replace(COMPUTE, loss="liger")])
def test_liger_kernel_is_refused_where_it_cannot_run(
    compute: kernels.ComputeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = "compute.kernels" if compute is LIGER else "compute.loss"
    with raises("settings/liger-needs-cuda", setting):
        check_training_kernels(compute, CPU)
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda _: None)
    with raises("missing-package/not-installed", "liger-kernel"):
        check_training_kernels(compute, torch.device("cuda"))


def test_an_evaluation_refuses_liger_kernel_without_cuda_and_in_fp64_but_not_for_its_loss() -> None:
    check_inference_kernels(dataclasses.replace(COMPUTE, loss="liger"), "fp64", CPU)
    with raises("settings/liger-needs-cuda"):
        check_inference_kernels(LIGER, "fp32", CPU)
    with raises("settings/liger-in-fp64"):
        check_inference_kernels(LIGER, "fp64", torch.device("cuda"))


def test_a_compiler_that_does_not_work_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(*_: object) -> None:
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setitem(kernels.KERNELS, "compiled", lambda: compiled_kernels(no_compiler))
    with raises("settings/not-compiled", "No working C++ compiler found", "compute.kernels=plain"):
        check_training_kernels(COMPILED, CPU)


def check_fused_loss(device: torch.device, num_ids: int) -> None:
    """Compare liger-kernel's loss and gradients with the chunked ones, in float32."""
    torch.manual_seed(5)
    hidden, weight = torch.randn(1000, 256, device=device), torch.randn(num_ids, 256, device=device) / 16
    targets = torch.randint(0, num_ids, (1000,), device=device)
    own, fused = ([each.clone().requires_grad_() for each in (hidden, weight)] for _ in range(2))
    total, _ = chunked_log_likelihood(*own, targets, chunk_tokens=256)
    other, _ = fused_log_likelihood(*fused, targets)
    assert float(other) == pytest.approx(float(total), rel=1e-5)
    total.backward()
    other.backward()
    for actual, expected in zip(fused, own, strict=True):
        assert float((actual.grad - expected.grad).norm() / expected.grad.norm()) < 1e-3


def interpreted(*calls: str) -> None:
    """Call functions of this file in Triton's interpreter, which runs a GPU's kernels on a CPU.

    It must be asked for before triton is imported. Two things are added that a GPU has: floats that are passed to a
    kernel are scalars with a dtype there, and CUDA's library has a reciprocal square root.
    """
    program = f"""
import torch, triton.language as tl, triton.runtime.interpreter as interpreter, numpy as np
convert = interpreter._implicit_cvt
def with_floats(value):
    if isinstance(value, float):
        return tl.core.tensor(interpreter.TensorHandle(np.array([value], dtype=np.float32), tl.float32), tl.float32)
    return convert(value)
interpreter._implicit_cvt = with_floats
import liger_kernel.ops.rms_norm
liger_kernel.ops.rms_norm.rsqrt = lambda values: tl.rsqrt(values)
import test_kernels
{chr(10).join(f"test_kernels.{call}" for call in calls)}
"""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr


peers = pytest.mark.peers


def needs_liger() -> None:
    pytest.importorskip("liger_kernel", reason="wants liger-kernel: make peers")
    pytest.importorskip("triton", reason="wants triton: make peers")


@peers
def test_the_fused_loss_is_the_chunked_one_in_triton_s_interpreter() -> None:
    needs_liger()
    interpreted("check_fused_loss(torch.device('cpu'), 3000)")


@peers
def test_liger_s_kernels_are_their_formulas_in_triton_s_interpreter() -> None:
    """In float32 and float16; the interpreter has no arithmetic of bfloat16."""
    needs_liger()
    interpreted(
        "check_liger_kernels(torch.device('cpu'), torch.float32, 1e-6)",
        "check_liger_kernels(torch.device('cpu'), torch.float16, 0.005)",
    )


@peers
def test_models_score_and_learn_the_same_by_liger_s_kernels_in_triton_s_interpreter() -> None:
    needs_liger()
    cases = [*((kind, "") for kind in SHARDED_TYPES), ("Llama", "checkpointing"), ("Llama", "lora")]
    interpreted(*(f"check_fused_model({kind!r}, 'liger', {more!r})" for kind, more in cases))


@peers
def test_machine_code_of_the_compiled_kernels_scores_and_learns_as_transformers_layers_do() -> None:
    check_training_kernels(COMPILED, CPU)
    check_fused_model("Llama", "compiled")


@gpu
@needs_gpu
@pytest.mark.parametrize("source", ["liger", "compiled"])
@pytest.mark.parametrize("more", [(), ("bf16",)])
def test_fused_kernels_on_a_gpu(source: kernels.KernelSource, more: tuple[str, ...]) -> None:
    if source == "liger":
        needs_liger()
    check_fused_model("Llama", source, "cuda", *more)


@gpu
@needs_gpu
def test_the_fused_loss_is_the_chunked_one() -> None:
    pytest.importorskip("liger_kernel")
    check_training_kernels(dataclasses.replace(COMPUTE, loss="liger"), torch.device("cuda"))
    check_fused_loss(torch.device("cuda"), 32_000)
