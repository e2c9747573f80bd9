"""The small Llama and its tokenizer that come with the tests: made by their script, and what they stand for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sentencepiece
import torch
from assets.make_assets import make_assets
from conftest import ASSETS
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from laborllm_dist.careers.occupations.occ1990dd import occ1990dd_vocabulary
from laborllm_dist.store.tokenizer import load_tokenizer


def pieces_of(path: Path) -> list[str]:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    return [processor.id_to_piece(piece) for piece in range(processor.get_piece_size())]


def test_the_script_makes_the_same_model_and_tokenizer_again(tmp_path: Path) -> None:
    make_assets(tmp_path)
    model = "llama/tokenizer.model"
    assert pieces_of(tmp_path / model) == pieces_of(ASSETS / model)
    weights, again = (load_file(folder / "llama/model.safetensors") for folder in (ASSETS, tmp_path))
    assert weights.keys() == again.keys()
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    for name in ("llama/config.json", "llama/tokenizer_config.json", "tokenizer/tokenizer_config.json"):
        assert json.loads((tmp_path / name).read_text()) == json.loads((ASSETS / name).read_text())


@pytest.mark.parametrize("form", ["llama", "tokenizer"])
def test_both_forms_of_the_tokenizer_give_the_ids_of_sentencepiece(form: str) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(ASSETS / "llama/tokenizer.model"))
    tokenizer = load_tokenizer(str(ASSETS / form))
    assert [processor.id_to_piece(piece) for piece in range(4)] == ["<unk>", "<s>", "</s>", "<0x00>"]
    assert (tokenizer.leading, tokenizer.num_ids, tokenizer.reads_all_bytes) == ((1,), 1000, True)
    texts = [f"1984 (some college): {title}\n1985: Caf\u00e9 aides\n" for title in occ1990dd_vocabulary().titles]
    encoded = tokenizer.backend.encode_batch(texts, add_special_tokens=False)
    assert [each.ids for each in encoded] == processor.encode(texts)


def test_the_weights_are_those_of_a_llama_with_grouped_queries() -> None:
    model, loading = AutoModelForCausalLM.from_pretrained(ASSETS / "llama", output_loading_info=True)
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.num_attention_heads == 2 * model.config.num_key_value_heads
    assert model.lm_head.weight.data_ptr() != model.get_input_embeddings().weight.data_ptr()


def test_all_assets_together_are_small() -> None:
    sizes = [path.stat().st_size for path in ASSETS.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(sizes) < 500_000
