"""Settings of the model and of how it is computed: weights, adapter, kernels, ZeRO, optimizer.

As in `settings`: values live in conf/, here are their meaning, units and checks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from laborllm_dist.config.number_ranges import Share, Tokens, above, below, within
from laborllm_dist.config.reader import OutOfRangeError

OffloadPlace = Literal["none", "cpu", "nvme"]


@dataclass(frozen=True, slots=True)
class LlamaSettings:
    """Shape of a Llama made from nothing; the vocabulary's size is the tokenizer's."""

    hidden_size: Annotated[int, within(2, 131_072)]
    intermediate_size: Annotated[int, within(1, 1_048_576)]
    num_layers: Annotated[int, within(1, 1_000)]
    num_heads: Annotated[int, within(1, 4_096)]
    num_key_value_heads: Annotated[int, within(1, 4_096)]
    max_positions: Tokens
    rope_theta: Annotated[float, within(1, 1e12)]
    tied_embeddings: bool  # input and output share one matrix
    initializer_range: Annotated[float, above(0, 100)]

    def __post_init__(self) -> None:
        if self.hidden_size % (2 * self.num_heads):
            raise OutOfRangeError("hidden_size", "a multiple of 2 x num_heads")
        if self.num_heads % self.num_key_value_heads:
            raise OutOfRangeError("num_heads", "a multiple of num_key_value_heads")


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """Pretrained weights by `path` (a folder, a hub id, `builtin:NAME`), or a `llama` made from nothing.

    `weights`: only safetensors are opened unless it says `pickle`, which can run code of whoever made the file.
    """

    name: str
    path: str | None
    revision: str | None
    subfolder: str | None
    llama: LlamaSettings | None
    attention_dropout: Share
    weights: Literal["safetensors", "pickle"]

    def __post_init__(self) -> None:
        if (self.path is None) == (self.llama is None):
            raise OutOfRangeError(
                "path", "either model.path (pretrained weights) or model.llama (a new model), not both"
            )


@dataclass(frozen=True, slots=True)
class AdapterSettings:
    """What is learnt: all weights (`none`), or low-rank additions to some matrices of a frozen base (`lora`).

    `base`: how the frozen weights are held: in the precision of the run, or quantised by bitsandbytes.
    """

    kind: Literal["none", "lora"]
    rank: Annotated[int, within(1, 131_072)]
    alpha: Annotated[int, within(1, 1_000_000)]  # additions are scaled by alpha / rank
    dropout: Share
    target_modules: tuple[str, ...]  # names of the linear layers that get additions
    base: Literal["full", "int8", "nf4"]

    def __post_init__(self) -> None:
        if self.kind == "lora" and not self.target_modules:
            raise OutOfRangeError("target_modules", "at least one name of a linear layer, such as q_proj")
        if self.kind == "none" and self.base != "full":
            raise OutOfRangeError("base", "full, since quantised weights cannot be learnt; set adapter.kind=lora")


@dataclass(frozen=True, slots=True)
class ComputeSettings:
    """How a forward and backward are computed; what comes out moves by rounding only."""

    attention: Literal["auto", "packed", "mask"]  # auto: packed where the model can
    loss: Literal["chunked", "liger"]  # liger: liger-kernel's fused kernel, CUDA only, in training
    loss_chunk_tokens: Tokens  # tokens whose logits are in memory at once
    gradient_checkpointing: bool  # keep the input of each layer only, and compute the rest again in the backward


@dataclass(frozen=True, slots=True)
class ZeroSettings:
    """What DeepSpeed shards over ranks (0 nothing, 1 optimizer, 2 gradients too, 3 weights too), in what precision.

    Offload moves the optimizer's state, or ZeRO-3's weights, to the memory of the host or to files in
    `nvme_path`, which should lie on a local NVMe disk.
    """

    stage: Literal[0, 1, 2, 3]
    precision: Literal["fp32", "bf16"]
    bucket_size: Annotated[int, within(1, 10**10)]  # of one collective; larger is faster and takes more memory
    offload_optimizer: OffloadPlace
    offload_param: OffloadPlace
    nvme_path: str | None

    def __post_init__(self) -> None:
        if self.offload_optimizer != "none" and self.stage == 0:
            raise OutOfRangeError("offload_optimizer", "none at stage 0; DeepSpeed offloads from stage 1 on")
        if self.offload_param != "none" and self.stage != 3:
            raise OutOfRangeError("offload_param", f"none at stage {self.stage}; DeepSpeed offloads weights at stage 3")
        if "nvme" in (self.offload_optimizer, self.offload_param):
            if self.stage != 3:
                raise OutOfRangeError("offload_optimizer", f"none or cpu at stage {self.stage}; nvme is for stage 3")
            if self.nvme_path is None:
                raise OutOfRangeError("nvme_path", "a folder on a local NVMe disk, since something is offloaded to it")


@dataclass(frozen=True, slots=True)
class OptimizerSettings:
    """AdamW with warm-up and decay over the planned steps.

    `kind`: `adamw` has fp32 moments on the rank's device (torch); `cpu_adamw` is DeepSpeed's for an optimizer that is
    offloaded (compiled once); `adamw_8bit` has moments of 8 bits (bitsandbytes).
    """

    kind: Literal["adamw", "cpu_adamw", "adamw_8bit"]
    learning_rate: Annotated[float, above(0, 1e38, "weights have 32 bits")]
    beta1: Annotated[float, below(0, 1)]
    beta2: Annotated[float, below(0, 1)]
    epsilon: Annotated[float, within(1e-30, 1)]
    weight_decay: Annotated[float, within(0, 1_000)]
    warmup_ratio: Share  # of all planned steps
    lr_scheduler: Literal["linear", "cosine", "constant"]
    min_lr_ratio: Share  # of learning_rate, at the last step (cosine) or the one after it (linear)
    max_grad_norm: Annotated[float, above(0, 1e9)] | None  # None: no clipping


def check_together(
    model: ModelSettings, adapter: AdapterSettings, zero: ZeroSettings, optimizer: OptimizerSettings
) -> None:
    """Refuse combinations that are unsound, each with its reason (README, "Memory and speed").

    Raises:
        OutOfRangeError: naming the setting to change.
    """
    offloads = zero.offload_optimizer != "none"
    if adapter.base != "full":
        if model.path is None:
            raise OutOfRangeError("adapter.base", "full, since weights made from nothing are worth nothing frozen")
        if zero.stage == 3:
            raise OutOfRangeError(
                "zero.stage",
                f"at most 2 with adapter.base={adapter.base}: ZeRO-3 would cut packed weights apart, and "
                "bitsandbytes' scales would stay behind. A quantised base is small; every rank holds it whole",
            )
    if optimizer.kind == "cpu_adamw" and not offloads:
        raise OutOfRangeError(
            "optimizer.kind", "adamw or adamw_8bit without offload; cpu_adamw works in the host's memory"
        )
    if optimizer.kind == "adamw_8bit" and offloads:
        raise OutOfRangeError(
            "optimizer.kind",
            "adamw or cpu_adamw with an offloaded optimizer: moments of 8 bits are for a GPU's own memory",
        )
    if optimizer.kind == "adamw" and zero.offload_optimizer == "nvme":
        raise OutOfRangeError("optimizer.kind", "cpu_adamw with zero.offload_optimizer=nvme, which DeepSpeed wants")
