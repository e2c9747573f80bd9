"""A model for evaluation, whole on every rank or in ZeRO-3 shards, and its forwards.

Under ZeRO-3 a forward is collective: all ranks run it together, or they hang. Ranks score different units, with unequal
numbers of forwards, so before each forward they exchange whether they have work; a rank without work forwards one short
row without targets until all are done (`join_remaining`). They exchange messages instead of using a collective, because
a rank may take long between two forwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from laborllm_dist.batching.batch import PackedBatch, pack_batch
from laborllm_dist.config.evaluation import EvaluationSettings
from laborllm_dist.config.model import ComputeSettings, ModelSettings, ZeroSettings
from laborllm_dist.distributed.context import DistributedContext
from laborllm_dist.distributed.deepspeed_config import deepspeed_config
from laborllm_dist.distributed.library_internals import import_deepspeed
from laborllm_dist.models.causal_lm import CareerLanguageModel
from laborllm_dist.models.kernels import check_inference_kernels
from laborllm_dist.models.loading import check_sharded, pretrained_model
from laborllm_dist.models.log_likelihood import log_prob_of, sample_tokens
from laborllm_dist.models.safetensors_loading import model_in_shards
from laborllm_dist.models.tree_inference import BranchingModel, BranchPass, Nodes, PrefixState
from laborllm_dist.models.weight_checks import check_in_place

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}
GATHERED_ELEMENTS = 50_000_000  # of ZeRO-3's collectives


@dataclass(frozen=True, slots=True)
class TokenQueries:
    """A request for log p(tokens_E | slot sources_E). Sources are slots of the pass, ascending; on the host."""

    sources_E: Tensor
    tokens_E: Tensor


class _Forwards(nn.Module):
    """One forward for all kinds of work, as a module, so that DeepSpeed's hooks run.

    All kinds of work call the same modules in the same order: ZeRO-3 prefetches weights by the order that it has
    traced, and ranks with different traces would deadlock.
    """

    def __init__(self, hugging_face: nn.Module, compute: ComputeSettings) -> None:
        super().__init__()
        self.hugging_face = hugging_face
        # Hidden from torch's list of submodules, since they share the weights.
        self._kinds = (CareerLanguageModel(hugging_face, compute), BranchingModel(hugging_face, compute))

    def forward(self, work: PackedBatch | BranchPass) -> Any:
        careers, branching = self._kinds
        return careers.forward(work)[1] if isinstance(work, PackedBatch) else branching.forward(work)

    def hidden_states(self, batch: PackedBatch, layer: int, slots_P: Tensor) -> Tensor:
        return self._kinds[0].hidden_states(batch, layer, slots_P)


class InferenceModel:
    """A model, whole or sharded. Its forwards are collective if it is sharded."""

    def __init__(
        self, forwards: Any, hugging_face: Any, compute: ComputeSettings, in_step: DistributedContext | None
    ) -> None:
        self.hugging_face = hugging_face
        self.device = next(hugging_face.parameters()).device
        self._forwards, self._chunk_tokens, self._in_step = forwards, compute.loss_chunk_tokens, in_step

    def scores(self, batch: PackedBatch) -> Tensor:
        """Return log p(target) of every slot with a target, [N]."""
        scores_N: Tensor = self._forward(batch.to(self.device))
        return scores_N

    def hidden_states(self, batch: PackedBatch, layer: int, slots_P: Tensor) -> Tensor:
        """Return the hidden states after a layer at slots of the flattened rows, [P, D]; the model is whole.

        Layer 0 is the token embedding; the last one, also -1, includes the final norm, as in transformers'
        `hidden_states`.
        """
        with torch.inference_mode():
            return self._forwards.hidden_states(batch.to(self.device), layer, slots_P)  # type: ignore[no-any-return]

    def edges(self, prefix: PrefixState, nodes: Nodes | None, slots_Q: Tensor, edges: TokenQueries) -> Tensor:
        """Return log p in nats of the requested tokens after slots of a pass, [E] (see BranchPass)."""

        def work(hidden_QD: Tensor, weight_VD: Tensor | None) -> Tensor:
            requested = (edges.sources_E, edges.tokens_E)
            return log_prob_of(hidden_QD, weight_VD, *requested, chunk_tokens=self._chunk_tokens)

        scores_E: Tensor = self._forward(BranchPass(prefix, nodes, slots_Q, work))
        return scores_E

    def hidden_states_after(self, prefix: PrefixState, nodes: Nodes | None, slots_Q: Tensor) -> Tensor:
        """Return the hidden states after the last norm at slots of a pass, [Q, D] (see BranchPass)."""
        hidden_QD: Tensor = self._forward(BranchPass(prefix, nodes, slots_Q, None))
        return hidden_QD

    def next_tokens(self, prefix: PrefixState, nodes: Nodes | None, slots_Q: Tensor, uniforms_Q: Tensor) -> Tensor:
        """Return the next token after slots of a pass, [Q]: the most probable one, or a sample (`sample_tokens`)."""

        def work(hidden_QD: Tensor, weight_VD: Tensor | None) -> Tensor:
            return sample_tokens(hidden_QD, weight_VD, uniforms_Q, chunk_tokens=self._chunk_tokens)

        tokens_Q: Tensor = self._forward(BranchPass(prefix, nodes, slots_Q, work))
        return tokens_Q

    def join_remaining(self) -> None:
        """Take part in the other ranks' forwards until none has work left. Collective if sharded."""
        if self._in_step is not None:
            empty = pack_batch([], 1).to(self.device)
            while any(self._in_step.share(False)):
                self._run(empty)

    def _forward(self, work: PackedBatch | BranchPass) -> Any:
        if self._in_step is not None:
            self._in_step.share(True)
        return self._run(work)

    def _run(self, work: PackedBatch | BranchPass) -> Any:
        # ZeRO-3 writes gathered weights in place, which inference tensors do not allow.
        with torch.inference_mode() if self._in_step is None else torch.no_grad():
            return self._forwards(work)


def load_for_inference(
    settings: ModelSettings, evaluation: EvaluationSettings, compute: ComputeSettings, ranks: DistributedContext
) -> InferenceModel:
    """Open pretrained weights for evaluation, whole or sharded as the settings say. Collective if sharded.

    Raises:
        ModelError: if they cannot be opened, or not in shards.
        SettingsError: if the kernels of the settings cannot be used here, or not in this precision.
        MissingPackageError: without the package of the kernels.
    """
    ranks.run_on_main(lambda: check_inference_kernels(compute, evaluation.precision, ranks.device))
    dtype = DTYPES[evaluation.precision]
    if evaluation.placement == "replicated":
        model = pretrained_model(settings, dtype=dtype, base=evaluation.quantization, device=ranks.device)
        return wrap_for_inference(model, compute)
    check_sharded(settings)
    precision = "bf16" if evaluation.precision == "bf16" else "fp32"
    zero = ZeroSettings(3, precision, GATHERED_ELEMENTS, False, "none", "none", None)  # type: ignore[arg-type]
    config = deepspeed_config(zero, None, ranks.world_size, on_gpu=ranks.device.type == "cuda")
    model = model_in_shards(settings, dtype=dtype, config=config, ranks=ranks)
    ranks.barrier()  # ranks take different times to read weights, and DeepSpeed begins with a collective
    forwards = _Forwards(model, compute).eval()
    engine, *_ = import_deepspeed().initialize(model=forwards, config=config, dist_init_required=False)
    engine.eval()
    check_in_place(forwards, ranks)
    inference = InferenceModel(engine, model, compute, ranks if ranks.world_size > 1 else None)
    inference.device = ranks.device
    return inference


def wrap_for_inference(hugging_face: nn.Module, compute: ComputeSettings) -> InferenceModel:
    """Return a model for evaluation that is whole on this rank."""
    return InferenceModel(_Forwards(hugging_face, compute).eval(), hugging_face, compute, None)
