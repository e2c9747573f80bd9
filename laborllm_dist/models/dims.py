"""The shape of a model, without its weights: from settings, the table below, or a config.json (dims_from_config.py)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from laborllm_dist.config.model import AdapterSettings, ModelSettings
from laborllm_dist.errors import ModelError
from laborllm_dist.store.hub import is_hub_id, why_no_hub_id

AttentionKind = Literal["packed", "mask", "eager"]  # eager: stores the attention weights of all pairs of slots


@dataclass(frozen=True, slots=True)
class LinearLayers:
    """All linear layers of one name: number of weights, sum of inputs and outputs, inputs of the first."""

    number: int
    num_weights: int
    num_features: int
    inputs: int

    def with_one(self, inputs: int, outputs: int) -> LinearLayers:
        """Return the totals with another layer added."""
        return LinearLayers(
            self.number + 1, self.num_weights + inputs * outputs, self.num_features + inputs + outputs, self.inputs
        )


@dataclass(frozen=True, slots=True)
class CountedWeights:
    """Numbers of weights: all, those that a token is multiplied with, those in no matrix, of the largest tensor."""

    num_parameters: int
    num_matmul_params: int
    num_vectors: int
    largest: int
    linear: Mapping[str, LinearLayers]


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of a decoder. Weights are those of a Llama, unless they were `counted` on the model itself.

    `intermediate_size` is of the feed-forward layers that a token passes; `head_size` where it is not the hidden size
    divided by the heads; `has_plain_head`: logits are made a chunk at a time (models/causal_lm.py).
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_key_value_heads: int
    num_ids: int
    tied_embeddings: bool
    head_size: int | None = None
    is_gated: bool = True
    attention: AttentionKind = "packed"
    has_plain_head: bool = True
    counted: CountedWeights | None = None
    num_head_outputs: int = 0  # logits of an output layer over titles

    @property
    def query_size(self) -> int:
        """Width of queries, and of the attention's output."""
        return self.num_heads * (self.head_size or self.hidden_size // self.num_heads)

    @property
    def key_value_size(self) -> int:
        """Width of keys, and of values."""
        return self.num_key_value_heads * (self.head_size or self.hidden_size // self.num_heads)

    @property
    def linear_layers(self) -> Mapping[str, tuple[int, int]]:
        """Inputs and outputs of the linear layers of one decoder layer of a Llama, by name."""
        hidden, inner, kv, query = self.hidden_size, self.intermediate_size, self.key_value_size, self.query_size
        return {
            "q_proj": (hidden, query), "k_proj": (hidden, kv), "v_proj": (hidden, kv),
            "o_proj": (query, hidden), "gate_proj": (hidden, inner), "up_proj": (hidden, inner),
            "down_proj": (inner, hidden),
        }  # fmt: skip

    @property
    def weights(self) -> CountedWeights:
        """All weights of the model: counted, or by formula."""
        if self.counted is not None:
            return self.counted
        linear = {
            name: LinearLayers(
                self.num_layers, self.num_layers * inputs * outputs, self.num_layers * (inputs + outputs), inputs
            )
            for name, (inputs, outputs) in self.linear_layers.items()
        }
        num_linear = sum(layers.num_weights for layers in linear.values())
        num_vectors = self.hidden_size * (2 * self.num_layers + 1)
        return CountedWeights(
            num_parameters=num_linear + num_vectors + self.embedding * (1 if self.tied_embeddings else 2),
            num_matmul_params=num_linear + self.embedding,
            num_vectors=num_vectors,
            largest=self.hidden_size * max(self.num_ids, self.intermediate_size, self.query_size),
            linear=linear,
        )

    @property
    def num_linear(self) -> int:
        """Weights of all linear layers but the output layer: those that quantization affects."""
        return sum(layers.num_weights for layers in self.weights.linear.values())

    @property
    def embedding(self) -> int:
        """Weights of one matrix over the vocabulary."""
        return self.num_ids * self.hidden_size

    @property
    def num_norms(self) -> int:
        """Weights that are not in a matrix, such as those of norms."""
        return self.weights.num_vectors

    @property
    def num_parameters(self) -> int:
        """All weights."""
        return self.weights.num_parameters + self.title_head

    @property
    def title_head(self) -> int:
        """Weights of an output layer over titles."""
        return self.num_head_outputs * self.hidden_size

    @property
    def num_matmul_params(self) -> int:
        """Weights that every token is multiplied with: all but embeddings, norms and the experts that it skips."""
        return self.weights.num_matmul_params

    def num_trainable(self, adapter: AdapterSettings) -> int:
        """Return the number of trainable weights."""
        if adapter.kind == "none":
            return self.num_parameters
        linear = self.weights.linear
        additions = adapter.rank * sum(linear[name].num_features for name in adapter.target_modules if name in linear)
        return additions + self.title_head


# Llama 2 (arXiv 2307.09288) as published at these hub ids, and SmolLM2 (arXiv 2502.02737) where launch/convert_gguf.py
# puts
# it, so that a plan needs neither hub nor weights.
KNOWN: Mapping[str, ModelShape] = {
    "meta-llama/Llama-2-7b-hf": ModelShape(4096, 11008, 32, 32, 32, 32000, tied_embeddings=False),
    "meta-llama/Llama-2-13b-hf": ModelShape(5120, 13824, 40, 40, 40, 32000, tied_embeddings=False),
    "meta-llama/Llama-2-70b-hf": ModelShape(8192, 28672, 80, 64, 8, 32000, tied_embeddings=False),
    "models/smollm2_135m": ModelShape(576, 1536, 30, 9, 3, 49152, tied_embeddings=True),
}


def shape_of(settings: ModelSettings, *, num_ids: int) -> ModelShape:
    """Return the shape of the model of these settings.

    Args:
        settings: of the model.
        num_ids: size of the vocabulary, for a randomly initialized model.

    Raises:
        ModelError: if the shape cannot be determined.
    """
    llama = settings.llama
    if llama is not None:
        return ModelShape(
            llama.hidden_size, llama.intermediate_size, llama.num_layers, llama.num_heads, llama.num_key_value_heads,
            num_ids, llama.tied_embeddings,
        )  # fmt: skip
    path = str(settings.path)
    if path in KNOWN and not Path(path).is_dir():
        return KNOWN[path]
    if not (Path(path).is_dir() or is_hub_id(path)):
        raise ModelError(
            f"the shape of model.path={path} is not known: {why_no_hub_id(path)}; give a folder with config.json",
            code="unknown-model-shape",
        )
    # Imports torch, which takes seconds: only for models that are known by their config.json alone.
    from laborllm_dist.models.dims_from_config import counted_shape
    from laborllm_dist.models.lora import base_of

    try:
        base = base_of(settings) or settings
        return counted_shape(str(base.path), revision=base.revision, subfolder=base.subfolder)
    except ModelError as error:
        raise ModelError(
            f"the shape of model.path={path} is not known: {error}; give a folder with config.json",
            code="unknown-model-shape",
        ) from None


def check_targets(targets: Collection[str], layers: Collection[str]) -> None:
    """Check that the model has the linear layers that an adapter targets.

    Raises:
        ModelError: naming a missing one, and the layers of the model.
    """
    if unknown := sorted(set(targets) - set(layers)):
        raise ModelError(
            f"adapter.target_modules: the model has no linear layer {unknown[0]}; it has {', '.join(sorted(layers))}",
            code="unknown-target-module",
        )
