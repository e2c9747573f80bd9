"""Make the small Llama and its tokenizer that tests open: python tests/assets/make_assets.py [FOLDER].

The tokenizer is a SentencePiece BPE with Llama-2's rules: bytes for what has no piece, digits apart, a blank before the
text, no other normalization, `<unk>`, `<s>` and `</s>` as ids 0, 1 and 2. It is trained on synthetic careers and on
careers through all occupations of occ1990dd. The weights are drawn by NumPy from a seed; nobody has trained them.
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, LlamaTokenizer

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))

from laborllm_dist.careers.corpus import pooled_vocabulary, read_careers  # noqa: E402
from laborllm_dist.careers.occupations.occ1990dd import occ1990dd_vocabulary  # noqa: E402
from laborllm_dist.careers.types import CareerHistory, Job  # noqa: E402
from laborllm_dist.cli import compose_settings  # noqa: E402
from laborllm_dist.config.run import RunSettings  # noqa: E402
from laborllm_dist.text.template import compile_template, render_career  # noqa: E402

SEED = 0
NUM_IDS = 1000
SHAPE = {
    "vocab_size": NUM_IDS,
    "hidden_size": 48,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "max_position_embeddings": 2048,
}
TOKENIZER_CONFIG = {
    "tokenizer_class": "LlamaTokenizer",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "add_bos_token": True,
    "add_eos_token": False,
    "legacy": True,
    "clean_up_tokenization_spaces": False,
    "model_max_length": SHAPE["max_position_embeddings"],
}


def training_lines() -> list[str]:
    """Return the lines of the careers that the tokenizer is trained on."""
    overrides = ["data=synthetic", "data.corpora.synthetic.num_people=200"]
    settings = compose_settings(RunSettings, "run", overrides)
    occupations = occ1990dd_vocabulary()
    titles = {**pooled_vocabulary(settings.data).title_of(), **occupations.title_of()}
    through_all = [
        CareerHistory(
            "1", "NLSY97", 1980, "male", "white", "west",
            tuple(Job(1985 + at, code, "college") for at, code in enumerate(occupations.codes[first : first + 30])),
        )
        for first in range(0, len(occupations.codes), 30)
    ]  # fmt: skip
    template = compile_template(settings.template)
    careers = [*read_careers(settings.data), *through_all]
    texts = [text.text for career in careers for text in render_career(career, template, titles)]
    return [line for text in texts for line in text.split("\n") if line]


def write_tokenizer(folder: Path) -> None:
    """Write the tokenizer as SentencePiece's file, and as the tokenizer.json that is published with Llama-2."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(training_lines()),
        model_writer=model,
        model_type="bpe",
        vocab_size=NUM_IDS,
        character_coverage=1.0,
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        num_threads=1,
        minloglevel=2,
    )
    files, whole = folder / "llama", folder / "tokenizer"
    for each in (files, whole):
        each.mkdir(parents=True, exist_ok=True)
    (files / "tokenizer.model").write_bytes(model.getvalue())
    write_json(files / "tokenizer_config.json", TOKENIZER_CONFIG)
    rules = json.loads(LlamaTokenizer.from_pretrained(str(files)).backend_tokenizer.to_str())
    rules["normalizer"] = {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ],
    }
    rules["pre_tokenizer"] = None
    rules["model"]["unk_token"] = "<unk>"
    (whole / "tokenizer.json").write_text(json.dumps(rules, ensure_ascii=False) + "\n", encoding="utf-8")
    write_json(whole / "tokenizer_config.json", {**TOKENIZER_CONFIG, "tokenizer_class": "PreTrainedTokenizerFast"})


def write_model(folder: Path) -> None:
    """Write a Llama in bfloat16 whose every weight is random, those of its norms around 1."""
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in LlamaForCausalLM(LlamaConfig(**SHAPE)).state_dict().items()}
    generator = np.random.default_rng(SEED)
    weights = {}
    for name in sorted(shapes):
        drawn = 0.15 * generator.standard_normal(tuple(shapes[name]))
        weights[name] = torch.from_numpy(drawn + (1.0 if len(shapes[name]) == 1 else 0.0)).to(torch.bfloat16)
    save_file(weights, folder / "llama/model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", **SHAPE, "head_dim": 8, "hidden_act": "silu",
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        "attention_bias": False, "attention_dropout": 0.0, "mlp_bias": False, "tie_word_embeddings": False,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None, "dtype": "bfloat16",
    }  # fmt: skip
    write_json(folder / "llama/config.json", config)


def write_json(path: Path, values: dict[str, object]) -> None:
    path.write_text(json.dumps(values, indent=1) + "\n")


def make_assets(folder: Path) -> None:
    write_tokenizer(folder)
    write_model(folder)


if __name__ == "__main__":
    make_assets(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
