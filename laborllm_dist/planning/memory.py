"""Estimate the memory of a rank, kind by kind, before anything is loaded.

P weights, L of them trainable, W ranks, b bytes per value (2 in bf16, 4 in fp32), T tokens of a pass:

    weights      P b; under ZeRO-3 P b / W, and the gathered layers; 1 or 0.56 bytes if quantized
    gradients    L b until they are reduced; from stage 2 on the rank's share L / W in fp32
    step         what the update needs beyond the memory that the passes freed: flat gradients, Adam's temporaries
    optimizer    fp32 copy and moments, 12 bytes per trainable weight (6.03 with 8-bit moments), over W from stage 1 on
    activations  saved for the backward: of all layers, or of one and every layer's input (gradient checkpointing)
    logits       a chunk of tokens over the vocabulary, float32, and the output layer's gradient; all titles' logits
    buffers      buckets of collectives
    process      interpreter and libraries on a CPU; context and NCCL on a GPU
    slack        fragmentation of the allocator
    pinned       padding of offloaded state: torch rounds each page-locked allocation up to a power of two

benchmarks/memory_plan.py compares plan and peak.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from laborllm_dist.config.model import AdapterSettings, ZeroSettings
from laborllm_dist.config.run import RunSettings
from laborllm_dist.distributed.deepspeed_config import LIVE_BUCKETS, SUB_GROUP, overlaps_communication
from laborllm_dist.models.dims import ModelShape

GIB = 2**30
INT8_BYTES, NF4_BYTES = 1.0, 0.5 + 4 / 64  # a weight, with bitsandbytes' scales of blocks of 64
EIGHT_BIT_MOMENTS, FULL_MOMENTS = 2 + 2 * 4 / 256, 8.0
CUDA_PROCESS_GIB = 1.5  # context and NCCL's own buffers
FEWEST_LINE_TOKENS = 8  # of a career's text: year, education, title, line break
SLACK = 0.05  # share of the memory that changes with every pass, in expandable segments (benchmarks/gpu_memory.py)


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one rank by kind, on its device and in its host's memory."""

    device: Mapping[str, float]
    host: Mapping[str, float]

    @property
    def total(self) -> float:
        """Bytes on the device."""
        return sum(self.device.values())

    @property
    def host_total(self) -> float:
        """Bytes of the rank in its host's memory, without the process's own."""
        return sum(self.host.values())


@dataclass(frozen=True, slots=True)
class MicroBatchShape:
    """The rows, and their length, of one pass of a rank."""

    num_rows: int
    max_seq_length: int

    @property
    def num_tokens(self) -> int:
        """Number of slots, including padding."""
        return self.num_rows * self.max_seq_length


@dataclass(frozen=True, slots=True)
class _Bytes:
    """Bytes of one kind of memory."""

    device: float = 0.0
    host: float = 0.0


@dataclass(frozen=True, slots=True)
class _Case:
    """The inputs of a memory estimate, and the quantities that several kinds of memory share."""

    shape: ModelShape
    settings: RunSettings
    load: MicroBatchShape  # the largest pass
    world_size: int
    process_bytes: float | None  # bytes of the process before the model is made; None on a GPU

    @property
    def zero(self) -> ZeroSettings:
        return self.settings.zero

    @property
    def on_gpu(self) -> bool:
        return self.process_bytes is None

    @property
    def is_autocast(self) -> bool:
        return self.zero.stage == 0 and self.zero.precision == "bf16"

    @property
    def bytes_per_param(self) -> int:
        return 2 if self.zero.precision == "bf16" and not self.is_autocast else 4

    @property
    def num_trainable(self) -> int:
        return self.shape.num_trainable(self.settings.adapter)

    @property
    def num_own(self) -> float:
        """Number of trainable weights whose optimizer state is on this rank."""
        return self.num_trainable / (self.world_size if self.zero.stage >= 1 else 1)

    @property
    def offload(self) -> str:
        return self.zero.offload_optimizer

    def beside_optimizer(self, size: float) -> _Bytes:
        """Return `size` bytes in the memory of the optimizer's state; on NVMe it takes none."""
        return {"none": _Bytes(device=size), "cpu": _Bytes(host=size), "nvme": _Bytes()}[self.offload]

    @property
    def freed_by_passes(self) -> float:
        """Bytes on the device that the passes use and free before the update."""
        return _activations(self).device + _logits(self).device + _buffers(self).device


def plan_memory(
    shape: ModelShape, settings: RunSettings, load: MicroBatchShape, *, world_size: int, process_bytes: float | None
) -> Memory:
    """Return the memory of a rank in training, without kinds of zero bytes.

    Args:
        shape: of the model.
        settings: of the run.
        load: the largest pass.
        world_size: number of ranks.
        process_bytes: bytes of the process before the model is made; None on a GPU.
    """
    case = _Case(shape, settings, load, world_size, process_bytes)
    sizes = {kind: bytes_of(case) for kind, bytes_of in KINDS.items()}
    return Memory(
        device={kind: size.device for kind, size in sizes.items() if size.device},
        host={kind: size.host for kind, size in sizes.items() if size.host},
    )


def _weights(case: _Case) -> _Bytes:
    unpartitioned = weight_bytes(case.shape, case.settings, case.bytes_per_param)
    if case.zero.stage < 3:
        return _Bytes(device=unpartitioned + (_autocast_copies(case.shape, case.settings) if case.is_autocast else 0.0))
    own = unpartitioned / case.world_size
    return _Bytes(device=own) if case.zero.offload_param == "none" else _Bytes(host=own)


def _gathered(case: _Case) -> _Bytes:
    """Return the gathered weights that ZeRO-3 keeps for reuse, up to stage3_max_live_parameters."""
    if case.zero.stage < 3 or case.world_size == 1:
        return _Bytes()
    live = min(case.shape.num_parameters, LIVE_BUCKETS * case.zero.bucket_size)
    return _Bytes(device=float(case.bytes_per_param * live))


def _gradients(case: _Case) -> _Bytes:
    """Return the gradients that passes accumulate, and those that the update reads, in the optimizer's memory."""
    if case.zero.stage != 1:
        return case.beside_optimizer(4.0 * case.num_own)
    # At stage 1 gradients stay whole until the step. In bf16 DeepSpeed has a class for that stage (BF16_Optimizer) that
    # also keeps whole fp32 gradients on every rank; fp32 gradients have no second copy.
    unpartitioned = float(case.bytes_per_param * case.num_trainable)
    if case.offload == "none":
        return _Bytes(device=unpartitioned + (4.0 * case.num_trainable if case.bytes_per_param == 2 else 0.0))
    return _Bytes(device=unpartitioned, host=case.beside_optimizer(4.0 * case.num_own).host)


def _optimizer(case: _Case) -> _Bytes:
    moments = EIGHT_BIT_MOMENTS if case.settings.optimizer.name == "adamw_8bit" else FULL_MOMENTS
    fp32_copy = 4.0 if case.zero.stage >= 1 else 0.0
    return case.beside_optimizer((moments + fp32_copy) * case.num_own)


def _narrow_copy(case: _Case) -> _Bytes:
    """Return the copy of offloaded weights, in the model's precision, that stages 1 and 2 make."""
    if case.offload == "none" or case.zero.stage == 3:
        return _Bytes()
    return _Bytes(host=case.bytes_per_param * case.num_own)


def _reduced(case: _Case) -> _Bytes:
    """Return the gradients that ZeRO-3's passes leave on the host, in addition to those that the update reads."""
    return _Bytes(host=4.0 * case.num_own) if case.offload == "cpu" and case.zero.stage == 3 else _Bytes()


def _pinned(case: _Case) -> _Bytes:
    """Return the padding of page-locked memory: fp32 weights, gradients and the copy are one allocation each."""
    if case.offload != "cpu" or not case.on_gpu:
        return _Bytes()
    sizes = [4.0, 4.0, case.bytes_per_param] if case.zero.stage < 3 else [4.0]
    return _Bytes(host=sum(_power_of_two(size * case.num_own) - size * case.num_own for size in sizes))


def _power_of_two(size: float) -> float:
    return 2.0 ** math.ceil(math.log2(size))


def _activations(case: _Case) -> _Bytes:
    return _Bytes(device=activation_bytes(case.shape, case.settings, case.load, on_gpu=case.on_gpu))


def _logits(case: _Case) -> _Bytes:
    shape, load, number = case.shape, case.load, case.bytes_per_param
    chunk = min(case.settings.compute.loss_chunk_tokens, load.num_tokens)
    of_chunk = chunk * shape.num_ids * (4 + (2 if number == 2 else 0))
    if not shape.has_plain_head:  # all logits in both precisions, their log-softmax, and its gradient
        of_chunk = load.num_tokens * shape.num_ids * (number + 3 * 4)
    head = 0 if case.settings.adapter.kind == "lora" else 4 * shape.embedding
    # Of titles: logits, their log-softmax and its gradient, in float32; and the weights in it.
    of_chunk += load.num_tokens // FEWEST_LINE_TOKENS * shape.num_head_outputs * 3 * 4 + 4 * shape.title_head
    return _Bytes(device=float(of_chunk + head + load.num_tokens * shape.hidden_size * (4 + number)))


def _buffers(case: _Case) -> _Bytes:
    """Return the buckets of collectives. Gradients are reduced in fp32: bf16 ones are copied for that.

    With overlap_comm, stages 1 and 2 fill a second bucket while the first is reduced (DeepSpeed's setup_buckets); stage
    3 has one bucket.
    """
    bucket = min(case.zero.bucket_size, case.num_trainable)
    filled = 4 if case.zero.stage == 0 else case.bytes_per_param
    copy = 4 if filled == 2 else 0
    has_two = overlaps_communication(case.zero, on_gpu=case.on_gpu) and case.zero.stage in (1, 2)
    return _Bytes(device=float(bucket * ((2 if has_two else 1) * filled + copy)))


def _step(case: _Case) -> _Bytes:
    """Return the temporary memory of an update: a flat copy of the gradients, and Adam's temporaries.

    On the device the update runs after activations and logits are freed: only the excess over them counts.
    """
    adam, stage = case.settings.optimizer.name == "adamw", case.zero.stage
    if case.offload != "none":
        return _Bytes(host=8.0 * case.num_own if adam else 0.0)
    at_once = min(case.num_own, SUB_GROUP) if stage == 3 else case.num_own
    # Stage 2 drops its first copy of the gradients before Adam runs, stage 3 keeps it.
    flat = {0: 0.0, 1: 0.0, 2: 4.0, 3: 4.0}[stage]
    temporary = 4.0 if adam and stage != 2 else 0.0
    return _Bytes(device=max(0.0, at_once * (flat + temporary) - case.freed_by_passes))


def _slack(case: _Case) -> _Bytes:
    """Return the fragmentation of CUDA's allocator; malloc returns large blocks to the system."""
    return _Bytes(device=SLACK * case.freed_by_passes if case.on_gpu else 0.0)


def _process(case: _Case) -> _Bytes:
    return _Bytes(device=CUDA_PROCESS_GIB * GIB if case.process_bytes is None else case.process_bytes)


# In printing order.
KINDS: Mapping[str, Callable[[_Case], _Bytes]] = {
    "weights": _weights,
    "gathered": _gathered,
    "gradients": _gradients,
    "optimizer": _optimizer,
    "narrow copy": _narrow_copy,
    "reduced": _reduced,
    "pinned": _pinned,
    "activations": _activations,
    "logits": _logits,
    "buffers": _buffers,
    "step": _step,
    "slack": _slack,
    "process": _process,
}


def weight_bytes(shape: ModelShape, settings: RunSettings, bytes_per_param: float) -> float:
    """Return the bytes of all weights of one copy of the model, including an adapter's."""
    added = 0 if settings.adapter.kind == "none" else shape.num_trainable(settings.adapter) - shape.title_head
    quantized = {"none": bytes_per_param, "int8": INT8_BYTES, "nf4": NF4_BYTES}[settings.adapter.quantization]
    linear = shape.num_linear
    return quantized * linear + bytes_per_param * (shape.num_parameters - linear + added)


def _autocast_copies(shape: ModelShape, settings: RunSettings) -> float:
    """Return the bytes of autocast's bf16 copies: all trainable weights, and the frozen ones that a backward needs."""
    adapter, linear = settings.adapter, shape.num_linear / shape.num_layers
    if adapter.kind == "none":
        return 2.0 * shape.num_parameters
    layers = 1 if settings.compute.gradient_checkpointing else shape.num_layers
    return 2.0 * shape.num_trainable(adapter) + (2.0 * layers * linear if adapter.quantization == "none" else 0.0)


def activation_bytes(shape: ModelShape, settings: RunSettings, load: MicroBatchShape, *, on_gpu: bool) -> float:
    """Return the bytes that a pass saves for the backward.

    Per layer and token: the inputs of both norms in float32, the normalized values (if the norms are trainable) and the
    outputs; queries and keys after RoPE, values, the attention's output; gate, its activation, up, and their product.
    Fused kernels save the norms' inputs as they are, no normalized values and no activation of the gate. A GPU's kernel
    writes its output in slot order, which elsewhere needs a copy, and on GPUs fp32 has no kernel for grouped-query
    attention.
    """
    hidden, inner, kv, query = shape.hidden_size, shape.intermediate_size, shape.key_value_size, shape.query_size
    num_bytes = 2 if settings.zero.precision == "bf16" else 4
    is_frozen, is_fused = settings.adapter.kind == "lora", settings.compute.kernels != "plain"
    of_input = num_bytes if is_fused else 4
    norms = 2 * (of_input + (1 if is_frozen or is_fused else 2) * num_bytes) * hidden
    given = 1 if on_gpu and num_bytes == 2 else 2
    attention = num_bytes * ((1 + given) * query + 2 * (query if on_gpu and num_bytes == 4 else kv))
    feed_forward = num_bytes * ((3 if is_fused else 4) if shape.is_gated else 2) * inner
    additions = 0
    if num_bytes == 2 and settings.zero.stage == 0 and not is_frozen:
        # Under autocast norms compute in float32, and each of five linear layers has its own bf16 copy of its input.
        additions = 2 * 2 * hidden + (5 - 2) * 2 * hidden
    if is_frozen:
        inputs = {"gate_proj": hidden, "down_proj": inner, "q_proj": hidden}
        dropped = (
            sum(inputs.get(name, 0) for name in settings.adapter.target_modules) if settings.adapter.dropout else 0
        )
        additions = num_bytes * (dropped + settings.adapter.rank * len(settings.adapter.target_modules))
    of_layer = load.num_tokens * (norms + attention + feed_forward + additions)
    last = load.num_tokens * hidden * (of_input + (1 if is_fused else 2) * num_bytes)  # the last norm
    if settings.compute.attention == "mask" or shape.attention != "packed":
        of_layer += load.num_rows * load.max_seq_length**2
    if shape.attention == "eager":  # products, and weights in float32 and in the model's precision
        of_layer += shape.num_heads * load.num_rows * load.max_seq_length**2 * (4 + 2 * num_bytes)
    if not settings.compute.gradient_checkpointing:
        return float(shape.num_layers * of_layer + last)
    layer_inputs = shape.num_layers * load.num_tokens * hidden * num_bytes
    return float(layer_inputs + of_layer + last)


def largest_stretch(shape: ModelShape, adapter: AdapterSettings, *, stage: int, world_size: int) -> int:
    """Return the number of weights in the longest tensor that a rank's optimizer updates at once.

    At stage 0 that is one matrix; from stage 1 on it is all trainable matrices, flattened and divided over the ranks
    (norms are separate); stage 3 splits it further.
    """
    learns_all = adapter.kind == "none"
    if stage == 0:
        if learns_all:
            return shape.weights.largest
        return adapter.rank * max(shape.intermediate_size, shape.hidden_size, shape.query_size)
    matrices = shape.num_trainable(adapter) - (shape.num_norms if learns_all else 0)
    of_rank = -(-matrices // world_size)
    return min(of_rank, int(SUB_GROUP)) if stage == 3 else of_rank
