"""Models of a shape with random weights, and careers of random tokens with the lengths of the NLSY97."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from utilization import Work

from laborllm_dist.batching.batch import TokenIds
from laborllm_dist.batching.packing import pack_careers
from laborllm_dist.cli import compose_settings
from laborllm_dist.config.run import RunSettings
from laborllm_dist.models.causal_lm import CareerLanguageModel
from laborllm_dist.models.dims import KNOWN, ModelShape
from laborllm_dist.models.loading import new_llama
from laborllm_dist.models.lora import with_adapter

Row = list[TokenIds]
SHAPES = {
    "7b": KNOWN["meta-llama/Llama-2-7b-hf"],
    "1b": ModelShape(2048, 5632, 22, 32, 4, 32000, tied_embeddings=False),
    "tiny": ModelShape(64, 192, 2, 4, 4, 512, tied_embeddings=False),
}
MEAN_TOKENS, SPREAD_TOKENS, SHORTEST = 431, 102, 60  # of an NLSY97 career with the Llama-2 tokenizer
BF16 = ("zero=stage1", "zero.precision=bf16")


def rows_of_careers(num_rows: int, max_seq_length: int, num_ids: int, seed: int) -> list[Row]:
    """Return rows full of careers of random tokens."""
    random = np.random.default_rng(seed)
    drawn = random.normal(MEAN_TOKENS, SPREAD_TOKENS, 40 * num_rows)
    lengths = np.clip(drawn, SHORTEST, max_seq_length).astype(int).tolist()
    full = pack_careers(lengths, max_seq_length).rows[:-1]  # longest careers first, so rows are drawn
    chosen = [full[place] for place in random.permutation(len(full))[:num_rows]]
    return [[random.integers(0, num_ids, lengths[career]).astype(np.int32) for career in row] for row in chosen]


def settings_for(shape: ModelShape, *more: str) -> RunSettings:
    """Return settings of a Llama of a shape."""
    llama = {
        "hidden_size": shape.hidden_size, "intermediate_size": shape.intermediate_size, "num_layers": shape.num_layers,
        "num_heads": shape.num_heads, "num_key_value_heads": shape.num_key_value_heads, "max_positions": 4096,
        "tied_embeddings": str(shape.tied_embeddings).lower(),
    }  # fmt: skip
    of_model = [f"model.llama.{name}={value}" for name, value in llama.items()]
    return compose_settings(RunSettings, "run", [*of_model, *more])


def synchronize() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def new_model(settings: RunSettings, shape: ModelShape, device: torch.device) -> CareerLanguageModel:
    """Return a model with random weights, made on the device in the precision of `zero`."""
    assert settings.model.llama is not None
    torch.set_default_dtype(torch.bfloat16 if settings.zero.precision == "bf16" else torch.float32)
    with device:
        llama = new_llama(settings.model.llama, num_ids=shape.num_ids, attention_dropout=0.0, seed=1)
    torch.set_default_dtype(torch.float32)
    if settings.compute.gradient_checkpointing:
        llama.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    learned = llama if settings.adapter.kind == "none" else with_adapter(llama, settings.adapter, seed=1)
    return CareerLanguageModel(learned, settings.compute)


def workload_of(steps: Sequence[Sequence[Row]], row_length: int) -> Work:
    """Return the work of steps with rows of a length."""
    slots = sum(map(len, steps)) * row_length
    return Work(len(steps), slots, row_length, [len(career) for step in steps for row in step for career in row])
