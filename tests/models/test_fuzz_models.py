"""Configurations of models and adapters, edited: refused in one line, or the model that they then describe."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from helpers.fuzzing import (
    Rejection,
    check_number_of_cases,
    damaged_bytes,
    damaged_trees,
    fuzz,
    limited_memory,
    outcome,
)
from helpers.models import saved_model, settings_for
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from laborllm_dist.models.dims import ModelShape, shape_of
from laborllm_dist.models.loading import context_of, pretrained_model
from laborllm_dist.models.lora import ADAPTER_CONFIG, base_of, check_adapter_kind, check_base
from laborllm_dist.models.safetensors_loading import read_index
from laborllm_dist.store.tokenizer import PROBE, load_tokenizer, train_tokenizer

ADAPTER = {
    "base_model_name_or_path": "models/llama", "revision": None, "peft_type": "LORA", "task_type": "CAUSAL_LM",
    "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], "bias": "none", "use_dora": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_model(tmp_path_factory.mktemp("llama"), "Llama")


@pytest.fixture(scope="module", autouse=True)
def memory(llama: Path) -> Iterator[None]:
    shape_of(settings_for(llama), num_ids=1)  # what is imported and started once
    with limited_memory():
        yield


def with_content(path: Path, content: bytes, use: Callable[[], Any]) -> Any:
    before = path.read_bytes() if path.exists() else b""
    path.write_bytes(content)
    try:
        return outcome(use)
    finally:
        path.write_bytes(before)


@st.composite
def edited(draw: st.DrawFn, values: dict[str, Any]) -> bytes:
    """Return a configuration that somebody has edited, or a disk has damaged."""
    if draw(st.sampled_from((False, False, False, True))):
        return draw(damaged_bytes(json.dumps(values).encode()))
    return json.dumps(draw(damaged_trees(values))).encode()


@given(st.data())
@fuzz(250)
def test_the_shape_of_an_edited_configuration_is_what_a_formula_makes_of_it(llama: Path, data: st.DataObject) -> None:
    path = llama / "config.json"
    content = data.draw(edited(json.loads(path.read_bytes())))

    def use() -> tuple[ModelShape, int | None]:
        return shape_of(settings_for(llama), num_ids=1), context_of(settings_for(llama))

    result = with_content(path, content, use)
    if isinstance(result, Rejection):
        return
    shape, context = result
    config = json.loads(content)
    if config.get("model_type") == "llama":
        assert shape.num_parameters == parameters_of_a_llama(config)
        assert context == config.get("max_position_embeddings", 2048)


def parameters_of_a_llama(config: dict[str, Any]) -> int:
    """Count the weights by hand."""
    hidden, intermediate = config.get("hidden_size", 4096), config.get("intermediate_size", 11008)
    heads = config.get("num_attention_heads", 32)
    num_kv_heads = config.get("num_key_value_heads")
    num_kv_heads = heads if num_kv_heads is None else num_kv_heads
    size = config.get("head_dim") or hidden // heads
    attention = 2 * hidden * heads * size + 2 * hidden * num_kv_heads * size
    if config.get("attention_bias"):
        attention += 2 * num_kv_heads * size + heads * size + hidden
    forward = 3 * hidden * intermediate + (2 * intermediate + hidden if config.get("mlp_bias") else 0)
    tables = config.get("vocab_size", 32000) * hidden * (1 if config.get("tie_word_embeddings", False) else 2)
    return int(tables + config.get("num_hidden_layers", 32) * (attention + forward + 2 * hidden) + hidden)


@given(st.data())
@fuzz(100)
def test_a_model_opens_under_an_edited_configuration_as_transformers_opens_it_or_is_refused(
    llama: Path, data: st.DataObject
) -> None:
    path = llama / "config.json"
    content = data.draw(edited(json.loads(path.read_bytes())))
    ids = torch.arange(12)[None]

    def use() -> torch.Tensor:
        with torch.no_grad():
            return pretrained_model(settings_for(llama), dtype=torch.float32).eval()(input_ids=ids).logits

    def as_transformers() -> torch.Tensor:
        with torch.no_grad():
            model = transformers.AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32).eval()
            return model(input_ids=ids).logits

    result = with_content(path, content, use)
    if not isinstance(result, Rejection):
        torch.testing.assert_close(result, with_content(path, content, as_transformers), equal_nan=True)


@given(st.data())
@fuzz(150)
def test_an_edited_configuration_of_an_adapter_names_its_base_or_is_refused(llama: Path, data: st.DataObject) -> None:
    content = data.draw(edited(ADAPTER))
    folder = llama.parent / "adapter"
    folder.mkdir(exist_ok=True)

    def use() -> Any:
        base = base_of(settings_for(folder))
        assert base is not None
        check_base(folder, base, "identity")
        check_adapter_kind(folder)
        return base

    result = with_content(folder / ADAPTER_CONFIG, content, use)
    if not isinstance(result, Rejection):
        config = json.loads(content.removeprefix(b"\xef\xbb\xbf"))
        assert (result.path, result.revision) == (config["base_model_name_or_path"], config.get("revision"))
        assert not config.get("use_dora") and not config.get("trainable_token_indices")


@given(st.data())
@fuzz(60)
def test_an_edited_index_of_weights_names_files_that_are_there_or_is_refused(llama: Path, data: st.DataObject) -> None:
    names = {"model.a.weight": "model.safetensors", "model.b.weight": "model.safetensors"}
    content = data.draw(edited({"metadata": {"total_size": 3}, "weight_map": names}))
    path = llama / "other.index.json"
    result = with_content(path, content, lambda: read_index(path))
    if not isinstance(result, Rejection):
        assert result == {str(name): str(file) for name, file in json.loads(content)["weight_map"].items()}
        assert all((llama / file).is_file() for file in result.values())


TEXTS = [PROBE, "Caf\u00e9, n.e.c.\n1990: 厨师 \U0001f600\n"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer([PROBE] * 5, vocabulary_size=300).save(folder)
    return folder


@given(st.data(), st.sampled_from(("tokenizer.json", "tokenizer.json", "tokenizer_config.json")))
@fuzz(170)
def test_an_edited_tokenizer_gives_the_ids_of_its_library_or_is_refused(
    tokenizer: Path, data: st.DataObject, name: str
) -> None:
    path = tokenizer / name
    values = json.loads(path.read_bytes())
    if data.draw(st.sampled_from((False, False, False, True))):
        content = data.draw(damaged_bytes(path.read_bytes()))
    else:  # rules, special tokens and templates; damage of the long vocabulary is what damaged bytes are
        model = values.get("model", {})
        long = {each: model.pop(each) for each in ("vocab", "merges") if each in model}
        tree = data.draw(damaged_trees(values))
        if isinstance(tree, dict) and isinstance(tree.get("model"), dict):
            tree["model"] = {**tree["model"], **long}
        content = json.dumps(tree).encode()

    def use() -> tuple[list[list[int]], list[list[int]], str, str]:
        opened = load_tokenizer(str(tokenizer))
        library = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
        library.no_truncation()
        library.no_padding()
        expected = [library.encode(text, add_special_tokens=False).ids for text in TEXTS]
        opened.save(tokenizer.parent / "saved")
        again = load_tokenizer(str(tokenizer.parent / "saved"))
        return (
            [opened.backend.encode(text, add_special_tokens=False).ids for text in TEXTS],
            expected,
            opened.fingerprint(),
            again.fingerprint(),
        )

    (tokenizer.parent / "saved").mkdir(exist_ok=True)
    result = with_content(path, content, use)
    if not isinstance(result, Rejection):
        ids, expected, fingerprint, of_saved = result
        assert ids == expected
        assert fingerprint == of_saved


def test_enough_models_were_tried(request: pytest.FixtureRequest) -> None:
    check_number_of_cases(request)
