"""How much memory a rank will need, kind by kind, before anything is loaded.

P weights of which L are learned, W ranks, b bytes a number (2 in bf16, 4 in fp32), T tokens of a pass:

    weights      P b; under ZeRO-3 P b / W, and the layers that are gathered for use; 1 or 0.56 bytes where quantized
    gradients    L b until they are reduced; from stage 2 on the rank's share L / W in fp32
    step         what the update needs beyond what the passes have freed: flat gradients, Adam's temporaries
    optimizer    fp32 copy and moments, 12 bytes a learned weight (6.03 with 8-bit moments), over W from stage 1 on
    activations  what the backward needs: of all layers, or of one and every layer's input (gradient checkpointing)
    logits       a chunk of tokens over the vocabulary, float32, and the output layer's gradient
    buffers      buckets of collectives
    process      interpreter and libraries on a CPU; context and NCCL on a GPU
    slack        what the allocator holds and cannot use
    pinned       of offloaded state: torch rounds each page-locked stretch of the host's memory up to a power of two

benchmarks/memory_plan.py compares plan and peak.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from laborllm_dist.config.model import AdapterSettings
from laborllm_dist.config.run import RunSettings
from laborllm_dist.distributed.deepspeed_config import LIVE_BUCKETS, SUB_GROUP
from laborllm_dist.models.dims import ModelShape

GIB = 2**30
INT8_BYTES, NF4_BYTES = 1.0, 0.5 + 4 / 64  # a weight, with bitsandbytes' scales of blocks of 64
EIGHT_BIT_MOMENTS, FULL_MOMENTS = 2 + 2 * 4 / 256, 8.0
CUDA_PROCESS_GIB = 1.5  # context and NCCL's own buffers
SLACK = 0.05  # of what changes with every pass, in expandable segments (benchmarks/gpu_memory.py)


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
        """Bytes of the rank in its host's memory, beside what a process needs."""
        return sum(self.host.values())


@dataclass(frozen=True, slots=True)
class MicroBatchShape:
    """What a pass of one rank forwards: rows and their length."""

    num_rows: int
    max_seq_length: int

    @property
    def num_tokens(self) -> int:
        """Slots, padding included."""
        return self.num_rows * self.max_seq_length


def plan_memory(
    shape: ModelShape, settings: RunSettings, load: MicroBatchShape, *, world_size: int, process_bytes: float | None
) -> Memory:
    """Return the memory of a rank in training.

    Args:
        shape: of the model.
        settings: of the run.
        load: the largest pass.
        world_size: number of ranks.
        process_bytes: what a process has before the model; None: that of a GPU.
    """
    zero, is_autocast = settings.zero, settings.zero.stage == 0 and settings.zero.precision == "bf16"
    number = 2 if settings.zero.precision == "bf16" and not is_autocast else 4
    learned = shape.num_trainable(settings.adapter)
    shared = world_size if zero.stage >= 1 else 1
    weights = weight_bytes(shape, settings, number)
    device: dict[str, float] = {}
    host: dict[str, float] = {}

    if zero.stage == 3:
        (host if zero.offload_param != "none" else device)["weights"] = weights / world_size
        device["gathered"] = _gathered(shape, settings, number, world_size)
    else:
        device["weights"] = weights + (_autocast_copies(shape, settings) if is_autocast else 0.0)
    is_offloaded = zero.offload_optimizer != "none"
    # At stage 1 gradients stay whole until the step. In bf16 DeepSpeed has a class for that stage (BF16_Optimizer) that
    # also keeps whole fp32 gradients on every rank; fp32 gradients have no second copy.
    whole = number * learned if zero.stage == 1 else 0.0
    gradients = 4.0 * learned / shared
    if zero.stage == 1 and not is_offloaded:
        gradients = 4.0 * learned if number == 2 else 0.0
    (host if is_offloaded else device)["gradients"] = gradients
    device["gradients"] = device.get("gradients", 0.0) + whole
    moments = EIGHT_BIT_MOMENTS if settings.optimizer.kind == "adamw_8bit" else FULL_MOMENTS
    copy = 4.0 if zero.stage >= 1 else 0.0
    (host if is_offloaded else device)["optimizer"] = (moments + copy) * learned / shared
    if is_offloaded and zero.stage < 3:
        host["narrow copy"] = number * learned / shared
    if zero.offload_optimizer == "cpu" and zero.stage == 3:
        host["reduced"] = 4.0 * learned / shared  # gradients as the passes left them, beside those the update reads
    if zero.offload_optimizer == "cpu" and process_bytes is None:
        sizes = [4.0, 4.0, number] if zero.stage < 3 else [4.0]  # fp32 weights, gradients and narrow copy are one each
        host["pinned"] = sum(_power_of_two(size * learned / shared) - size * learned / shared for size in sizes)
    if is_offloaded and settings.optimizer.kind == "adamw":
        host["step"] = 8.0 * learned / shared  # two temporaries of torch's Adam
    device["activations"] = activation_bytes(shape, settings, load, on_gpu=process_bytes is None)
    device["logits"] = _logit_bytes(shape, settings, load, number)
    device["buffers"] = _buffer_bytes(shape, settings, learned, number)
    # The optimizer's step comes when activations and logits are free again: what it needs beyond them counts.
    passing = device["activations"] + device["logits"] + device["buffers"]
    device["step"] = max(0.0, (0.0 if is_offloaded else _step_bytes(settings, learned / shared)) - passing)
    # malloc gives large blocks back to the system; CUDA's allocator keeps them, in sizes that do not always fit.
    slack = SLACK if process_bytes is None else 0.0
    device["slack"] = slack * (device["activations"] + device["logits"] + device["buffers"])
    device["process"] = CUDA_PROCESS_GIB * GIB if process_bytes is None else process_bytes
    if zero.offload_optimizer == "nvme":
        host = {name: size for name, size in host.items() if name not in ("optimizer", "gradients")}
    return Memory(device=device, host=host)


def _power_of_two(size: float) -> float:
    return 2.0 ** math.ceil(math.log2(size))


def _step_bytes(settings: RunSettings, held: float) -> float:
    """Return what an update needs for a moment: a flat copy of the gradients, and Adam's temporaries."""
    stage = settings.zero.stage
    at_once = min(held, SUB_GROUP) if stage == 3 else held
    adam = 4.0 if settings.optimizer.kind == "adamw" else 0.0
    # Stage 2 drops its first copy of the gradients before Adam runs, stage 3 keeps it.
    return at_once * {0: adam, 1: adam, 2: 4.0, 3: 4.0 + adam}[stage]


def weight_bytes(shape: ModelShape, settings: RunSettings, number: float) -> float:
    """Return the bytes of all weights of one copy of the model, additions of an adapter included."""
    added = 0 if settings.adapter.kind == "none" else shape.num_trainable(settings.adapter)
    quantized = {"full": number, "int8": INT8_BYTES, "nf4": NF4_BYTES}[settings.adapter.base]
    linear = shape.num_linear
    return quantized * linear + number * (shape.num_parameters - linear + added)


def _autocast_copies(shape: ModelShape, settings: RunSettings) -> float:
    """Return the bytes of bf16 copies of fp32 weights: learned ones are kept, frozen ones while a backward waits."""
    adapter, linear = settings.adapter, shape.num_linear / shape.num_layers
    if adapter.kind == "none":
        return 2.0 * shape.num_parameters
    layers = 1 if settings.compute.gradient_checkpointing else shape.num_layers
    return 2.0 * shape.num_trainable(adapter) + (2.0 * layers * linear if adapter.base == "full" else 0.0)


def activation_bytes(shape: ModelShape, settings: RunSettings, load: MicroBatchShape, *, on_gpu: bool) -> float:
    """Return what the backward needs of a pass.

    Of a layer and token: what goes into both norms in float32, what is normalised (where the norms learn) and what
    comes out; queries and keys after the rotation, values, what attention gives; gate, its activation, up, and their
    product. A GPU's kernel writes in the order of slots, which elsewhere is a copy, and fp32 has no kernel there for
    keys that heads share.
    """
    hidden, wide, narrow, query = shape.hidden_size, shape.intermediate_size, shape.key_value_size, shape.query_size
    number = 2 if settings.zero.precision == "bf16" else 4
    is_frozen = settings.adapter.kind == "lora"
    norms = 2 * (4 * hidden + (1 if is_frozen else 2) * number * hidden)
    given = 1 if on_gpu and number == 2 else 2
    attention = number * ((1 + given) * query + 2 * (query if on_gpu and number == 4 else narrow))
    feed_forward = number * (4 if shape.is_gated else 2) * wide
    additions = 0
    if number == 2 and settings.zero.stage == 0 and not is_frozen:
        # Under autocast norms work in float32, and each of five layers has a narrow copy of its input of its own.
        additions = 2 * 2 * hidden + (5 - 2) * 2 * hidden
    if is_frozen:
        inputs = {"gate_proj": hidden, "down_proj": wide, "q_proj": hidden}
        dropped = (
            sum(inputs.get(name, 0) for name in settings.adapter.target_modules) if settings.adapter.dropout else 0
        )
        additions = number * (dropped + settings.adapter.rank * len(settings.adapter.target_modules))
    of_layer = load.num_tokens * (norms + attention + feed_forward + additions)
    last = load.num_tokens * hidden * (4 + 2 * number)  # the last norm
    if settings.compute.attention == "mask" or shape.attention != "packed":
        of_layer += load.num_rows * load.max_seq_length**2
    if shape.attention == "eager":  # products, and weights in float32 and in the model's precision
        of_layer += shape.num_heads * load.num_rows * load.max_seq_length**2 * (4 + 2 * number)
    if not settings.compute.gradient_checkpointing:
        return float(shape.num_layers * of_layer + last)
    kept = shape.num_layers * load.num_tokens * hidden * number
    return float(kept + of_layer + last)


def _logit_bytes(shape: ModelShape, settings: RunSettings, load: MicroBatchShape, number: int) -> float:
    chunk = min(settings.compute.loss_chunk_tokens, load.num_tokens)
    narrow = number if number == 2 else 0
    of_chunk = chunk * shape.num_ids * (4 + narrow)
    if not shape.has_plain_head:  # all logits, in the model's precision and wide; their log-softmax, and its gradient
        of_chunk = load.num_tokens * shape.num_ids * (number + 3 * 4)
    head = 0 if settings.adapter.kind == "lora" else 4 * shape.embedding
    return float(of_chunk + head + load.num_tokens * shape.hidden_size * (4 + number))


def _gathered(shape: ModelShape, settings: RunSettings, number: int, world_size: int) -> float:
    # DeepSpeed keeps gathered what it will use again soon, up to stage3_max_live_parameters (zero_engine.py).
    live = min(shape.num_parameters, LIVE_BUCKETS * settings.zero.bucket_size)
    return float(number * live) if world_size > 1 else 0.0


def _buffer_bytes(shape: ModelShape, settings: RunSettings, learned: int, number: int) -> float:
    bucket = min(settings.zero.bucket_size, learned)
    # Gradients are reduced in fp32: narrow ones have a copy while they are on their way.
    return float(bucket * (4 if number == 4 or settings.zero.stage == 0 else number + 4))


def largest_stretch(shape: ModelShape, adapter: AdapterSettings, *, stage: int, world_size: int) -> int:
    """Return how many weights lie in the longest stretch that a rank's optimizer updates at once.

    That is a matrix at stage 0; from stage 1 on all matrices that are learned, in one piece, over the ranks (norms have
    a stretch of their own), which stage 3 cuts.
    """
    learns_all = adapter.kind == "none"
    if stage == 0:
        if learns_all:
            return shape.weights.largest
        return adapter.rank * max(shape.intermediate_size, shape.hidden_size, shape.query_size)
    matrices = shape.num_trainable(adapter) - (shape.num_norms if learns_all else 0)
    of_rank = -(-matrices // world_size)
    return min(of_rank, int(SUB_GROUP)) if stage == 3 else of_rank
