"""Fused kernels for what a layer computes beside matrix products and attention: norms, rotary embeddings, SwiGLU.

transformers computes each of them by many operations, which all read and write whole activations. Here one kernel does
it: liger-kernel's, or what torch.compile makes of the same operations. A model's modules stay, with their names,
weights and hooks, and only compute differently. So adapters, quantized layers and gradient checkpointing work as
before, and ZeRO-3, whose hooks around every module would cut a compiled layer to pieces, does too.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from laborllm_dist.config.model import ComputeSettings, KernelSource
from laborllm_dist.distributed.library_internals import keep_first_size_open
from laborllm_dist.errors import ModelError, SettingsError, missing_package

# Prefixes of the classes of a model type whose norms, rotary embeddings and MLP are Llama's.
CLASSES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
PLAIN = "compute.kernels=plain (kernels=plain in an evaluation)"
ROTATION = "apply_rotary_pos_emb"  # the function that the attention of these types calls


@dataclass(frozen=True, slots=True)
class FusedKernels:
    """Kernels of a layer.

    norm: of hidden states, weight and epsilon; the mean of squares is float32.
    rotation: of queries and keys [B, H, T, D] by cosines and sines [B, T, D].
    gate: silu(gate) x up.
    """

    norm: Callable[[Tensor, Tensor, float], Tensor]
    rotation: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    gate: Callable[[Tensor, Tensor], Tensor]


def liger_kernels() -> FusedKernels:
    """Return liger-kernel's, which needs CUDA, or Triton's interpreter.

    Rotation overwrites its arguments, and the gate's backward overwrites what the forward saved; neither is needed
    again. The norm's backward could overwrite a gradient that others read, and does not.
    """
    from liger_kernel.ops import LigerRMSNormFunction, LigerRopeFunction, LigerSiLUMulFunction

    rms_norm, rotate, multiply = (
        each.apply for each in (LigerRMSNormFunction, LigerRopeFunction, LigerSiLUMulFunction)
    )

    def norm(hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        offset, casting, in_place = 0.0, "llama", False
        normalized: Tensor = rms_norm(hidden, weight, epsilon, offset, casting, in_place)
        return normalized

    return FusedKernels(norm, rotate, multiply)


@functools.cache
def compiled_kernels(backend: str = "inductor") -> FusedKernels:
    """Return those that torch.compile makes by a backend of it, at their first call.

    They see tokens in one dimension, so that other numbers of rows or slots do not compile them again.
    """
    norm: Any = torch.compile(_norm, backend=backend)
    rotation: Any = torch.compile(_rotation, backend=backend)
    gate: Any = torch.compile(_gate, backend=backend)

    def norm_of_tokens(hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        normalized_ND: Tensor = norm(_tokens(hidden, -2), weight, epsilon)
        return normalized_ND.view_as(hidden)

    def rotation_of_tokens(
        query_BHTD: Tensor, key_BHTD: Tensor, cos_BTD: Tensor, sin_BTD: Tensor
    ) -> tuple[Tensor, Tensor]:
        query_BTHD, key_BTHD = query_BHTD.transpose(1, 2), key_BHTD.transpose(1, 2)
        shape_BTD = (*query_BTHD.shape[:2], cos_BTD.shape[2])  # cosines of one row may serve all
        cos_ND, sin_ND = (_tokens(each.expand(shape_BTD), -2) for each in (cos_BTD, sin_BTD))
        query_NHD, key_NHD = rotation(_tokens(query_BTHD, 1), _tokens(key_BTHD, 1), cos_ND, sin_ND)
        return query_NHD.view_as(query_BTHD).transpose(1, 2), key_NHD.view_as(key_BTHD).transpose(1, 2)

    def gate_of_tokens(gate_BTD: Tensor, up_BTD: Tensor) -> Tensor:
        product_ND: Tensor = gate(_tokens(gate_BTD, -2), _tokens(up_BTD, -2))
        return product_ND.view_as(gate_BTD)

    return FusedKernels(norm_of_tokens, rotation_of_tokens, gate_of_tokens)


def _tokens(values: Tensor, last: int) -> Tensor:
    """Return values with their dimensions up to `last` in one, whose size the compiler does not build in."""
    flat = values.flatten(0, last)
    keep_first_size_open(flat)
    return flat


def _norm(hidden_ND: Tensor, weight_D: Tensor, epsilon: float) -> Tensor:
    wide_ND = hidden_ND.float()
    wide_ND = wide_ND * torch.rsqrt(wide_ND.square().mean(-1, keepdim=True) + epsilon)
    return weight_D * wide_ND.to(hidden_ND.dtype)


def _rotation(query_NHD: Tensor, key_NHD: Tensor, cos_ND: Tensor, sin_ND: Tensor) -> tuple[Tensor, Tensor]:
    cos_N1D, sin_N1D = cos_ND[:, None], sin_ND[:, None]

    def rotated(heads_NHD: Tensor) -> Tensor:
        first, second = heads_NHD.chunk(2, dim=-1)
        return heads_NHD * cos_N1D + torch.cat((-second, first), dim=-1) * sin_N1D

    return rotated(query_NHD), rotated(key_NHD)


def _gate(gate_ND: Tensor, up_ND: Tensor) -> Tensor:
    return nn.functional.silu(gate_ND) * up_ND


KERNELS: dict[KernelSource, Callable[[], FusedKernels]] = {"liger": liger_kernels, "compiled": compiled_kernels}


def use_kernels(model: nn.Module, source: KernelSource) -> None:
    """Make the layers of a model compute with fused kernels; `plain` changes nothing.

    Raises:
        ModelError: if the model's type has other norms, rotary embeddings or MLPs than Llama.
    """
    if source == "plain":
        return
    config: Any = model.config
    prefix = CLASSES.get(config.model_type)
    if prefix is None or config.hidden_act not in ("silu", "swish"):
        raise _unsupported(f"models of type {', '.join(CLASSES)} with SiLU, this one is {config.model_type}", source)
    fuse = {f"{prefix}RMSNorm": _fuse_norm, f"{prefix}Attention": _fuse_attention, f"{prefix}MLP": _fuse_mlp}
    kernels, fused = KERNELS[source](), set()
    for module in model.modules():
        name = type(module).__name__
        if name in fuse:
            fuse[name](module, kernels)
            fused.add(name)
    if missing := sorted(fuse.keys() - fused):
        raise _unsupported(f"layers of transformers' Llama, this model has no {missing[0]}", source)


def _unsupported(known: str, source: KernelSource) -> ModelError:
    return ModelError(f"compute.kernels={source} knows {known}; set {PLAIN}", code="kernels-unsupported")


def _fuse_norm(module: Any, kernels: FusedKernels) -> None:
    def forward(self: Any, hidden: Tensor) -> Tensor:
        return kernels.norm(hidden, self.weight, self.variance_epsilon)

    module.forward = MethodType(forward, module)


def _fuse_mlp(module: Any, kernels: FusedKernels) -> None:
    def forward(self: Any, hidden: Tensor) -> Any:
        return self.down_proj(kernels.gate(self.gate_proj(hidden), self.up_proj(hidden)))

    module.forward = MethodType(forward, module)


def _fuse_attention(module: Any, kernels: FusedKernels) -> None:
    """Give an attention layer a forward that differs from its class's only in what the rotation's name means."""
    original = type(module).forward
    if not inspect.isfunction(original) or ROTATION not in original.__code__.co_names:
        raise ModelError(
            f"{type(module).__name__} of this version of transformers does not call {ROTATION}; set {PLAIN}",
            code="kernels-unsupported",
        )
    forward = FunctionType(
        original.__code__,
        {**original.__globals__, ROTATION: kernels.rotation},
        original.__name__,
        original.__defaults__,
        original.__closure__,
    )
    forward.__kwdefaults__ = original.__kwdefaults__
    module.forward = MethodType(forward, module)


def check_training_kernels(compute: ComputeSettings, device: torch.device) -> None:
    """Check that layers and loss can be computed as the settings say.

    Raises:
        SettingsError: for liger-kernel without CUDA, or if torch.compile does not work here.
        MissingPackageError: without liger-kernel.
    """
    if compute.loss == "liger":
        _check_liger("compute.loss", "compute.loss=chunked, which gives the same loss", device)
    if compute.kernels == "liger":
        _check_liger("compute.kernels", f"{PLAIN}, which differs by rounding only", device)
    if compute.kernels == "compiled":
        _check_compiler(device)


def check_inference_kernels(compute: ComputeSettings, precision: str, device: torch.device) -> None:
    """Check that layers can be computed as the settings say; a fused loss is for training alone.

    Raises:
        SettingsError: for liger-kernel without CUDA or in fp64, or if torch.compile does not work here.
        MissingPackageError: without liger-kernel.
    """
    if compute.kernels == "liger" and precision == "fp64":
        raise SettingsError(
            "precision=fp64: liger-kernel computes SwiGLU in float32; set kernels=plain", code="liger-in-fp64"
        )
    check_training_kernels(dataclasses.replace(compute, loss="chunked"), device)


def _check_compiler(device: torch.device) -> None:
    try:
        KERNELS["compiled"]().gate(torch.ones(2, 2, device=device), torch.ones(2, 2, device=device))
    except RuntimeError as error:  # the base of the compiler's errors
        raise SettingsError(
            f"compute.kernels=compiled: torch.compile does not work here ({_reason(error)}); it needs a C++ compiler, "
            f"and on a GPU Triton; install them, or set {PLAIN}",
            code="not-compiled",
        ) from None


def _check_liger(setting: str, other: str, device: torch.device) -> None:
    if device.type != "cuda":
        raise SettingsError(f"{setting}=liger runs on CUDA only; set {other}", code="liger-needs-cuda")
    if importlib.util.find_spec("liger_kernel") is None:
        raise missing_package("liger_kernel")


def _reason(error: RuntimeError) -> str:
    cause = getattr(error, "inner_exception", error)  # of torch.compile's errors about its backend
    return next((line.strip() for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
