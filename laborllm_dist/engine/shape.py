"""The shape of a model, known without its weights: from the settings, from its config.json, or from the table below."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laborllm_dist.engine_settings import AdapterSettings, ModelSettings
from laborllm_dist.errors import ModelError
from laborllm_dist.tokens.tokenizer import is_hub_id


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of a Llama-like decoder."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_key_value_heads: int
    num_ids: int
    tied_embeddings: bool

    @property
    def key_value_size(self) -> int:
        """Width of keys, and of values."""
        return self.hidden_size // self.num_heads * self.num_key_value_heads

    @property
    def linear_layers(self) -> Mapping[str, tuple[int, int]]:
        """Inputs and outputs of the linear layers of one decoder layer, by name."""
        hidden, wide, narrow = self.hidden_size, self.intermediate_size, self.key_value_size
        return {
            "q_proj": (hidden, hidden), "k_proj": (hidden, narrow), "v_proj": (hidden, narrow),
            "o_proj": (hidden, hidden), "gate_proj": (hidden, wide), "up_proj": (hidden, wide),
            "down_proj": (wide, hidden),
        }  # fmt: skip

    @property
    def linear_per_layer(self) -> int:
        """Weights of the linear layers of one decoder layer."""
        return sum(inputs * outputs for inputs, outputs in self.linear_layers.values())

    @property
    def embedding(self) -> int:
        """Weights of one matrix over the vocabulary."""
        return self.num_ids * self.hidden_size

    @property
    def num_norms(self) -> int:
        """Weights that are no part of a matrix."""
        return self.hidden_size * (2 * self.num_layers + 1)

    @property
    def num_parameters(self) -> int:
        """All weights."""
        embeddings = self.embedding * (1 if self.tied_embeddings else 2)
        return self.num_layers * self.linear_per_layer + self.num_norms + embeddings

    @property
    def num_multiplied(self) -> int:
        """Weights that every token is multiplied with: all but the input embedding and the norms."""
        return self.num_layers * self.linear_per_layer + self.embedding

    def num_learnt(self, adapter: AdapterSettings) -> int:
        """Return the number of weights that are learnt."""
        if adapter.kind == "none":
            return self.num_parameters
        sizes = [self.linear_layers[name] for name in adapter.targets if name in self.linear_layers]
        return self.num_layers * sum(adapter.rank * (inputs + outputs) for inputs, outputs in sizes)


# Llama 2 (arXiv 2307.09288) as published at these hub ids, and SmolLM2 (arXiv 2502.02737) where launch/convert.py puts
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
        num_ids: size of the vocabulary, for a model made from nothing.

    Raises:
        ModelError: if nothing is known of it.
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
            f"the shape of model.path={path} is not known: there is no such folder, and it is no hub id (OWNER/NAME); "
            "give a folder with config.json"
        )
    # A second, with torch: only for a model that is known by its config.json alone.
    from laborllm_dist.tokens.auto_classes import open_config

    try:
        config: Any = open_config(path, revision=settings.revision, subfolder=settings.subfolder)
        return ModelShape(
            config.hidden_size,
            config.intermediate_size,
            config.num_hidden_layers,
            config.num_attention_heads,
            getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
            config.vocab_size,
            bool(config.tie_word_embeddings),
        )
    except (ModelError, AttributeError) as error:
        raise ModelError(
            f"the shape of model.path={path} is not known: {error}; give a folder with config.json"
        ) from None
