"""AdamW in its three kinds: fp32 moments on the device (torch), in the host's memory (DeepSpeed), 8-bit (bitsandbytes).

The moments are the larger part of what training holds: 8 bytes a weight in fp32, 2 in 8 bits. DeepSpeed flattens the
weights of a rank into long stretches, and these kinds differ in how the moments of such a stretch are kept:

    adamw, cpu_adamw   exp_avg, exp_avg_sq    float32, one an element
    adamw_8bit         state1, state2         uint8, one an element; and absmax1, absmax2, float32, one a block of 256
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from laborllm_dist.config.model import OptimizerSettings
from laborllm_dist.distributed.library_internals import whole_shape

BLOCK = 256  # elements that share one scale in bitsandbytes' 8-bit moments
MIN_8BIT = 4096  # bitsandbytes keeps the moments of smaller tensors in fp32


def make_optimizer(model: nn.Module, settings: OptimizerSettings) -> torch.optim.Optimizer:
    """Return the optimizer of these settings over all trainable weights; cpu_adamw needs its loaded operator."""
    groups = parameter_groups(model, settings.weight_decay)
    rest: dict[str, Any] = {
        "lr": settings.learning_rate,
        "betas": (settings.beta1, settings.beta2),
        "eps": settings.epsilon,
    }
    if settings.name == "adamw":
        return torch.optim.AdamW(groups, **rest)
    if settings.name == "adamw_8bit":
        import bitsandbytes

        optimizer: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(groups, **rest)
        return optimizer
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    compiled: torch.optim.Optimizer = DeepSpeedCPUAdam(groups, adamw_mode=True, **rest)
    return compiled


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return two parameter groups: matrices with weight decay, vectors (norms, biases) without."""
    trainable = [
        (parameter, len(whole_shape(parameter))) for parameter in model.parameters() if parameter.requires_grad
    ]
    groups = [
        {"params": [parameter for parameter, dimensions in trainable if dimensions >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter, dimensions in trainable if dimensions < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def moments(optimizer: torch.optim.Optimizer, kind: str, flat: Tensor) -> dict[str, Tensor]:
    """Return the moments of a stretch of weights, as the optimizer's own tensors; zeros are created if absent."""
    state = optimizer.state[flat]
    if kind == "adamw_8bit":
        if not state:
            _begin_8bit(optimizer, flat)
        names = ("state1", "state2", "absmax1", "absmax2")
        return {name: state[name] for name in names if name in state}
    if not state:
        # DeepSpeed's counts updates in an int, torch's in a tensor.
        state["step"] = 0 if kind == "cpu_adamw" else torch.tensor(0.0)
        state["exp_avg"] = torch.zeros_like(flat, memory_format=torch.preserve_format).detach()
        state["exp_avg_sq"] = torch.zeros_like(flat, memory_format=torch.preserve_format).detach()
    return {name: state[name] for name in ("exp_avg", "exp_avg_sq")}


def _begin_8bit(optimizer: Any, flat: Tensor) -> None:
    # bitsandbytes looks the settings of a stretch up by its place, and ZeRO-3 fills these places during a step only.
    group = optimizer.param_groups[0]
    before, group["params"] = group["params"], [flat]
    optimizer.init_state(group, flat, 0, 0)
    group["params"] = before


def set_steps_taken(optimizer: torch.optim.Optimizer, num_steps: int) -> None:
    """Set the number of updates in Adam's state, which its bias correction depends on."""
    for state in optimizer.state.values():
        state["step"] = torch.tensor(float(num_steps)) if torch.is_tensor(state["step"]) else num_steps


def to_8bit(values_N: Tensor, moment: str) -> tuple[Tensor, Tensor]:
    """Return codes, [N] uint8, and scales, [blocks] float32, of a moment (state1 or state2) in fp32."""
    from bitsandbytes.functional import quantize_blockwise

    codes_N, state = quantize_blockwise(values_N, code=_code_values(moment, values_N.device), blocksize=BLOCK)
    return codes_N, state.absmax


def from_8bit(codes_N: Tensor, scales: Tensor, *, moment: str, block_offset: int) -> Tensor:
    """Return a moment in fp32, [N], from codes that begin `block_offset` elements into the first of its blocks."""
    block_N = (torch.arange(len(codes_N), device=codes_N.device) + block_offset) // BLOCK
    return _code_values(moment, codes_N.device)[codes_N.int()] * scales[block_N]


def _code_values(moment: str, device: torch.device) -> Tensor:
    """Return the value in [-1, 1] of each of the 256 codes."""
    from bitsandbytes.functional import create_dynamic_map

    values: Tensor = create_dynamic_map(signed=moment == "state1")
    return values.to(device)
