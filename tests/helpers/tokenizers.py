"""Small tokenizers with the real rules of the families that people use, trained here on text full of line ends.

The rules (regular expressions, normalizers, byte fallback) are those of the published tokenizer.json files. The training
text repeats what the rules allow to be joined, so that the small vocabularies hold it as the large ones do: ".\\n", ")\\n".
"""

from __future__ import annotations

import json
import string
from pathlib import Path

import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from laborllm_dist.store.tokenizer import CareerTokenizer, check_tokenizer

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LETTERS, REST = r"[^\r\n\p{L}\p{N}]?\p{L}+", r"\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = rf"{CONTRACTIONS}|{LETTERS}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{REST}"
QWEN = rf"{CONTRACTIONS}|{LETTERS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{REST}"
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{REST}"
)
FAMILIES = ("llama2", "llama3", "qwen2.5", "tekken", "gemma", "gpt2", "smollm2")
JOINING = ("llama3", "qwen2.5", "tekken", "gemma")  # their own rules join a line's end to what stands before it
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def training_text() -> list[str]:
    """Return lines of careers whose titles end in every ASCII mark, and empty lines."""
    ends = [
        f"1984 (some college): Cooks{mark}\n1985 (college): Engineers, n.e.c{mark}\n" for mark in string.punctuation
    ]
    return [*ends * 3, *["<END OF DATA>\n\n<A worker from the PSID dataset>\nborn in 1963.\n"] * 9]


def made_tokenizer(family: str, *, vocabulary_size: int = 700) -> CareerTokenizer:
    """Return a small tokenizer of a family, opened as its files would be."""
    return check_tokenizer(made_hugging_face(family, vocabulary_size=vocabulary_size), f"the small {family}")


def made_hugging_face(family: str, *, vocabulary_size: int = 700) -> transformers.PreTrainedTokenizerFast:
    """Return a small tokenizer of a family with its own rules alone."""
    backend = _with_metaspace(family) if family in ("llama2", "gemma") else _byte_level(family)
    alphabet = [] if family in ("llama2", "gemma") else pre_tokenizers.ByteLevel.alphabet()
    marks = BYTES if family in ("llama2", "gemma") else []
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=["<unk>", "<s>", "</s>", *marks],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    texts = training_text()
    if family == "llama2":  # SentencePiece learns from lines, so a line break is a byte
        texts = [line for text in texts for line in text.split("\n")]
    backend.train_from_iterator(texts, trainer)
    if family in ("llama2", "gemma"):
        backend = _finished(family, backend)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def _byte_level(family: str) -> Tokenizer:
    backend = Tokenizer(models.BPE(ignore_merges=family == "llama3"))
    pattern = {"llama3": LLAMA3, "qwen2.5": QWEN, "tekken": TEKKEN}.get(family)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    if pattern is not None:
        rules = [pre_tokenizers.Split(Regex(pattern), "isolated"), byte_level]
    else:
        rules = [pre_tokenizers.Digits(individual_digits=True), byte_level] if family == "smollm2" else [byte_level]
    if family == "qwen2.5":
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Sequence(rules), decoders.ByteLevel()
    return backend


def _with_metaspace(family: str) -> Tokenizer:
    """Return what learns pieces of words, each with its blank before it; Gemma's may hold line breaks."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    digits = pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(prepend_scheme="never"), digits])
    return backend


def _finished(family: str, learned: Tokenizer) -> Tokenizer:
    """Return the pieces under the rules of the family, with the bytes as ordinary pieces."""
    content = json.loads(learned.to_str())
    content["added_tokens"] = [each for each in content["added_tokens"] if each["content"] not in BYTES]
    backend = Tokenizer.from_str(json.dumps(content))
    pieces = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if family == "llama2":
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        pieces.append(decoders.Strip(" ", 1, 0))
    else:
        backend.normalizer = normalizers.Replace(" ", "▁")
        backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
        backend.add_tokens([AddedToken("\n\n", normalized=False)])
    backend.decoder = decoders.Sequence(pieces)
    return backend


def save_vocabulary_and_merges(tokenizer: CareerTokenizer, folder: Path) -> None:
    """Write a GPT-2-like tokenizer as vocab.json and merges.txt alone, as older folders have it."""
    model = json.loads(tokenizer.hugging_face.backend_tokenizer.to_str())["model"]
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    merges = "\n".join(each if isinstance(each, str) else " ".join(each) for each in model["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    config = {"tokenizer_class": "GPT2Tokenizer", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
