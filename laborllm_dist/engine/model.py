"""Make models: a Llama from nothing, or pretrained weights from a folder or the hub."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel, set_seed

from laborllm_dist.errors import ModelError, RowTooShort
from laborllm_dist.settings import LlamaSettings, ModelSettings


def check_weights(settings: ModelSettings) -> None:
    """Refuse weights that are plainly missing, before anything else is done.

    Raises:
        ModelError: saying how to get them.
    """
    if settings.path is None or Path(settings.path).is_dir():
        return
    is_hub_id = settings.path.count("/") == 1 and not settings.path.startswith((".", "/", "~"))
    try:
        if not is_hub_id:
            raise OSError(f"{settings.path} is neither a folder nor a hub id")
        AutoConfig.from_pretrained(settings.path, **_where(settings))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise ModelError(
            f"no weights for model.path={settings.path}: {reason}. Either give a local folder (model.path=FOLDER, with "
            "config.json, *.safetensors and the tokenizer), or, for a hub id, accept the model's licence on its page, "
            "log in (hf auth login) and start again where the hub can be reached"
        ) from None


def new_llama(shape: LlamaSettings, *, num_ids: int, attention_dropout: float, seed: int) -> PreTrainedModel:
    """Return a Llama with random weights, a function of shape and seed."""
    set_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=num_ids,
            hidden_size=shape.hidden_size,
            intermediate_size=shape.intermediate_size,
            num_hidden_layers=shape.num_layers,
            num_attention_heads=shape.num_heads,
            num_key_value_heads=shape.num_key_value_heads,
            max_position_embeddings=shape.max_positions,
            rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
            tie_word_embeddings=shape.tied_embeddings,
            initializer_range=shape.initializer_range,
            attention_dropout=attention_dropout,
            attn_implementation="sdpa",
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=None,
        )
    )


def pretrained_model(settings: ModelSettings, *, dtype: torch.dtype) -> PreTrainedModel:
    """Open pretrained weights, safetensors only.

    Raises:
        ModelError: if weights are missing, in another format, or some tensors of the model are not among them.
    """
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            settings.path,
            **_where(settings),
            dtype=dtype,
            attn_implementation="sdpa",
            use_safetensors=True,
            trust_remote_code=False,
            attention_dropout=settings.attention_dropout,
            output_loading_info=True,
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot open the weights at {settings.path}: {str(error).strip().splitlines()[0]}") from None
    if missing := sorted(report["missing_keys"]):
        raise ModelError(f"the weights at {settings.path} lack {len(missing)} tensors of the model, first {missing[0]}")
    return model


def check_fit(model: PreTrainedModel, *, num_ids: int, longest_career: int, row_of: str) -> None:
    """Refuse a model that cannot read the careers.

    Raises:
        ModelError: if the tokenizer has ids the model has no embedding for.
        RowTooShort: if a career is longer than the model's context.
    """
    num_embeddings = model.get_input_embeddings().num_embeddings
    if num_ids > num_embeddings:
        raise ModelError(
            f"the tokenizer has {num_ids:,} ids, the model embeds {num_embeddings:,}; they do not belong together"
        )
    context = getattr(model.config, "max_position_embeddings", None)
    if context is not None and longest_career > context:
        raise RowTooShort(
            f"{row_of} has {longest_career} tokens, the model's context is {context}; a career is never cut: "
            "take a model with a longer context or a shorter template"
        )


def _where(settings: ModelSettings) -> dict[str, str]:
    return {"revision": settings.revision or "main", "subfolder": settings.subfolder or ""}
