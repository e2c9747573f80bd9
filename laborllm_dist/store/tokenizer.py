r"""The tokenizer of a run: any fast Hugging Face one, or byte-level BPE learned from the training people.

A text's ids are the tokenizer's own leading special tokens, or its BOS if it adds none, then the text. Nothing follows
the text. The model does not predict a text's first token, so with a special token in front it predicts every word.

A line break is a separate token, also for tokenizers that join it to the punctuation before it or to empty lines
(Llama-3, Qwen, Mistral's tekken, Gemma): their pre-tokenization gets one more rule, which splits before and after every
line break. So every title ends at a token boundary, whatever its last character. Tokenizers that never join line breaks
are unchanged, and the saved files are the tokenizer's own.

    Llama-3 alone       1984: Therap|ists|,| n|.e|.c|.\n|1985           with the rule    ...|.c|.|\n|1985
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
import transformers  # imports AutoTokenizer, and torch with it, lazily: a trained tokenizer needs neither
from tokenizers import Encoding, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers.utils.hub import cached_file, extract_commit_hash

from laborllm_dist.careers.readers.file_formats import pointer_in
from laborllm_dist.errors import CustomCodeError, TokenizerError
from laborllm_dist.store.auto_classes import open_tokenizer, reason_of
from laborllm_dist.store.hub import is_hub_id, look_for_hub, why_no_hub_id

BOS, EOS, PAD, UNKNOWN = "<s>", "</s>", "<pad>", "<unk>"
BYTE_LEVEL_NEWLINE = "\N{LATIN CAPITAL LETTER C WITH DOT ABOVE}"  # how byte-level tokenizers write a line break
TOKENIZER_FILES = ("*tokenizer*", "vocab*", "merges.txt", "*tekken*", "*.model", "*.tiktoken")
# Pre-tokenization for learning BPE with whole titles: a line's title, its education, words (GPT-2's pattern).
TITLE, EDUCATION = r"(?<=:) [^\n]+", r" \([^\n()]*\):"
WORD = r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
PROBE = "The worker was born in 1963.\n1984 (some college): Cooks\n1985 (some college): Food servers, nonrestaurant\n"


@dataclass(frozen=True, slots=True)
class CareerTokenizer:
    """A tokenizer that has been checked.

    `hugging_face` is the tokenizer that is saved; `backend` encodes texts: the same one, with separate line breaks.
    `leading` are the ids before a text. `reads_all_bytes`: every text has tokens, since each of the 256 bytes has one.
    """

    hugging_face: transformers.PreTrainedTokenizerBase
    backend: Tokenizer
    leading: tuple[int, ...]
    reads_all_bytes: bool

    @property
    def num_ids(self) -> int:
        """Number of ids, the rows an embedding needs."""
        return len(self.hugging_face)

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits: tokenizers with equal fingerprints give equal ids.

        It hashes the rules in use, not files; disabled rules count as absent, and merges are pairs, so that it does not
        depend on how a version of the tokenizers library writes them.
        """
        rules = json.loads(self.backend.to_str())
        model = rules["model"]
        if "merges" in model:
            model["merges"] = [each.split(" ") if isinstance(each, str) else each for each in model["merges"]]
        content = {name: rules.get(name) for name in ("added_tokens", "normalizer", "pre_tokenizer", "model")}
        written = json.dumps(_without_absent(content), sort_keys=True) + repr(self.leading)
        return hashlib.sha256(written.encode()).hexdigest()[:16]

    def unknown_characters(self, text: str, encoding: Encoding) -> list[str]:
        """Return the characters of a text that have no token: the tokenizer maps them to `<unk>` or drops them.

        If every character alone has one, return the substrings that have none.
        """
        if self.reads_all_bytes or not (stretches := self._stretches_without_token(text, encoding)):
            return []
        characters = [each for each in dict.fromkeys(text) if not each.isspace()]
        alone = self.backend.encode_batch(characters, add_special_tokens=False)
        unknown = [
            each for each, ids in zip(characters, alone, strict=True) if self._stretches_without_token(each, ids)
        ]
        return unknown or stretches

    def _stretches_without_token(self, text: str, encoding: Encoding) -> list[str]:
        """Return the substrings that became `<unk>` or that no token covers; spaces before a word are exempt."""
        stretches: list[str] = []
        covered = 0
        for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if token == self.hugging_face.unk_token_id:
                stretches.append(text[start:end])
            stretches.append(text[covered:start])
            covered = max(covered, end)
        return [each for each in (*stretches, text[covered:]) if each.strip(" ")]

    def save(self, folder: Path) -> None:
        """Write the files that AutoTokenizer reads: the tokenizer's own rules."""
        self.hugging_face.save_pretrained(str(folder))


@dataclass(frozen=True, slots=True)
class WholeTokens:
    """The texts that are one token each in a tokenizer learned for careers of one template.

    A title, with the space before it, is one token between ": " and a line's end. So is a phrase: a part of the
    template that is the same in every career.
    """

    titles: Sequence[str]
    phrases: Sequence[str]

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        """Return the rule that splits a text into titles, phrases, educations of a line, and words."""
        rule = "|".join([TITLE, *self._phrases(), EDUCATION, WORD])
        split = pre_tokenizers.Split(Regex(rule), "isolated")
        return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])

    def rest_of(self, text: str) -> str:
        """Return a text without titles and phrases."""
        return re.sub("|".join([TITLE, *self._phrases()]), "", text)

    def symbols(self) -> list[str]:
        """Return titles and phrases in a byte-level vocabulary's spelling."""
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        texts = (*(f" {title}" for title in self.titles), *self.phrases)
        return [byte_level.pre_tokenize_str(each)[0][0] for each in texts]

    def _phrases(self) -> list[str]:
        return [re.escape(phrase) for phrase in sorted(self.phrases, key=len, reverse=True)]


def load_tokenizer(path: str, *, revision: str | None = None, subfolder: str | None = None) -> CareerTokenizer:
    """Open the tokenizer of a folder or a hub id.

    Raises:
        TokenizerError: if it is missing, has no fast version, or does not give a text back as it was.
        CustomCodeError: if it is defined by code that comes with it.
    """
    if not (Path(path).exists() or is_hub_id(path)):
        raise TokenizerError(f"no tokenizer at {path}: {why_no_hub_id(path)}", code="no-tokenizer")
    folder = Path(path) / (subfolder or "")
    if folder.is_dir() and not any(any(folder.glob(each)) for each in TOKENIZER_FILES):
        expected = "tokenizer.json, or vocab.json and merges.txt, or tokenizer.model and tokenizer_config.json"
        raise TokenizerError(f"there is no tokenizer in {folder}: expected {expected}", code="no-tokenizer")
    if folder.is_dir() and (pointer := pointer_in(folder, ("*.json", *TOKENIZER_FILES))) is not None:
        raise TokenizerError(pointer, code="git-lfs-pointer")
    try:
        tokenizer = open_tokenizer(path, revision=revision, subfolder=subfolder, use_fast=True)
        return check_tokenizer(tokenizer, path)
    except (TokenizerError, CustomCodeError):
        raise
    except BaseException as error:  # of damaged or newer files: the Rust library raises plain Exception, or panics
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        why = " ".join(str(error).split()) or "no reason is given"
        if isinstance(error, OSError) and not Path(path).exists():
            raise TokenizerError(
                f"no tokenizer at {path}: there is no such folder, and the hub has not given it ({reason_of(error)})",
                code="no-tokenizer",
            ) from None
        raise TokenizerError(
            f"no tokenizer could be opened at {path} with transformers {transformers.__version__} and tokenizers "
            f"{tokenizers.__version__} ({type(error).__name__}: {why}); if its files are of a newer version, "
            "upgrade these",
            code="unreadable-tokenizer",
        ) from None


def tokenizer_identity(path: str, revision: str | None, subfolder: str | None) -> dict[str, str]:
    """Return what determines a tokenizer's ids: the fingerprint of the opened tokenizer, whatever files it comes from.

    Raises:
        TokenizerError: as `load_tokenizer`.
    """
    folder = Path(path) / (subfolder or "")
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    stamps = tuple((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file())
    return {"opened": _opened_fingerprint(path, revision, subfolder, stamps)}


@functools.lru_cache(maxsize=8)
def _opened_fingerprint(
    path: str, revision: str | None, subfolder: str | None, stamps: tuple[tuple[str, int, int], ...]
) -> str:
    """Return the fingerprint of a tokenizer; `stamps` of its files make a changed folder another one."""
    return load_tokenizer(path, revision=revision, subfolder=subfolder).fingerprint()


def hub_commit(path: str, *, revision: str | None, subfolder: str | None, file: str) -> str:
    """Return the commit of a hub id's revision now or, if the hub is unreachable, when it was downloaded.

    Raises:
        OSError: if the file is neither on the hub nor in the local cache.
    """
    look_for_hub(path)
    cached = cached_file(path, file, revision=revision or "main", subfolder=subfolder or "")
    return str(extract_commit_hash(cached, None))


def check_tokenizer(tokenizer: transformers.PreTrainedTokenizerBase, path: str) -> CareerTokenizer:
    """Make a CareerTokenizer, after checking that a text survives encoding and decoding.

    Raises:
        TokenizerError: if it has no fast version, or loses blanks, digits or line breaks.
    """
    if not isinstance(tokenizer, transformers.PreTrainedTokenizerFast):
        raise TokenizerError(
            f"the tokenizer at {path} has no fast version (tokenizer.json), which gives character positions",
            code="no-fast-tokenizer",
        )
    ids = list(tokenizer(PROBE)["input_ids"])
    plain = list(tokenizer(PROBE, add_special_tokens=False)["input_ids"])
    if ids[len(ids) - len(plain) :] == plain:
        leading = ids[: len(ids) - len(plain)]
    else:  # special tokens after the text, such as EOS, are left out: a career ends with its own last line
        start = next((at for at in range(len(ids)) if ids[at : at + len(plain)] == plain), 0)
        leading = ids[:start]
    if not leading and tokenizer.bos_token_id is not None:
        leading = [tokenizer.bos_token_id]
    back = tokenizer.decode(plain, clean_up_tokenization_spaces=False)
    if back.strip() != PROBE.strip():
        raise TokenizerError(
            f"the tokenizer at {path} does not give a text back as it was: {PROBE!r} became {back!r}; "
            "a folder with tokenizer.model alone lacks the settings in tokenizer_config.json or tokenizer.json",
            code="lossy-tokenizer",
        )
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()  # a tokenizer.json may enable truncation or padding, which `encode` would apply
    backend.no_padding()
    if getattr(backend.model, "dropout", None):
        raise TokenizerError(
            f"the tokenizer at {path} draws its tokens at random (dropout {backend.model.dropout} in tokenizer.json), "
            "so that a text has no fixed probability; set model.dropout to null there",
            code="tokenizer-with-dropout",
        )
    vocabulary = backend.get_vocab(with_added_tokens=False)
    newline = _newline_symbol(backend, vocabulary)
    return CareerTokenizer(
        hugging_face=tokenizer,
        backend=_with_line_ends_apart(backend, vocabulary, newline),
        leading=tuple(leading),
        reads_all_bytes=_has_all_bytes(backend, vocabulary, newline),
    )


def _with_tokens(backend: Tokenizer, symbols: Sequence[str]) -> Tokenizer:
    """Return a tokenizer that has one token for each of these pre-tokens, whatever its merges would give."""
    content = json.loads(backend.to_str())
    vocabulary = content["model"]["vocab"]
    for symbol in symbols:
        vocabulary.setdefault(symbol, len(vocabulary))
    content["model"]["ignore_merges"] = True  # a pre-token that is in the vocabulary becomes that token
    return Tokenizer.from_str(json.dumps(content))


def _newline_symbol(backend: Tokenizer, vocabulary: Mapping[str, int]) -> str | None:
    """Return the vocabulary's spelling of a line break; None if it has no entry."""
    for symbol in ("\n", BYTE_LEVEL_NEWLINE):
        if symbol in vocabulary and backend.decode([vocabulary[symbol]], skip_special_tokens=False) == "\n":
            return symbol
    return None


def _with_line_ends_apart(backend: Tokenizer, vocabulary: Mapping[str, int], newline: str | None) -> Tokenizer:
    """Return a tokenizer whose line breaks are separate tokens; the same one if they always are.

    The rule follows the tokenizer's own rules, so that it only splits what they leave together.
    """
    if newline is None or not any(newline in token and token != newline for token in vocabulary):
        return backend
    content = json.loads(backend.to_str())
    # Added tokens, such as Gemma's empty lines, are matched before any rule.
    content["added_tokens"] = [each for each in content["added_tokens"] if "\n" not in each["content"]]
    apart, rules = Tokenizer.from_str(json.dumps(content)), [pre_tokenizers.Split(newline, "isolated")]
    if backend.pre_tokenizer is not None:
        rules.insert(0, backend.pre_tokenizer)
    apart.pre_tokenizer = pre_tokenizers.Sequence(rules)
    return apart


def _has_all_bytes(backend: Tokenizer, vocabulary: Mapping[str, int], newline: str | None) -> bool:
    if newline == BYTE_LEVEL_NEWLINE:
        return all(symbol in vocabulary for symbol in pre_tokenizers.ByteLevel.alphabet())
    return bool(getattr(backend.model, "byte_fallback", False)) and all(
        f"<0x{byte:02X}>" in vocabulary for byte in range(256)
    )


def _without_absent(value: Any) -> Any:
    """Return rules without null and false entries, which older versions do not write."""
    if isinstance(value, list):
        return [_without_absent(each) for each in value]
    if isinstance(value, dict):
        return {name: _without_absent(each) for name, each in value.items() if each is not None and each is not False}
    return value


def train_tokenizer(
    texts: Iterable[str], *, vocabulary_size: int, whole_tokens: WholeTokens | None = None
) -> CareerTokenizer:
    """Learn byte-level BPE with at most `vocabulary_size` entries, including the 256 bytes and 4 special tokens.

    Args:
        texts: careers.
        vocabulary_size: the largest number of entries.
        whole_tokens: texts that get one token each, in addition.
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if whole_tokens is not None:
        backend.pre_tokenizer = whole_tokens.pre_tokenizer()
        texts = (whole_tokens.rest_of(text) for text in texts)  # no entry is learned for a text that has a token
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[BOS, EOS, PAD, UNKNOWN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    if whole_tokens is not None:
        backend = _with_tokens(backend, whole_tokens.symbols())
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, backend.token_to_id(BOS))]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=BOS, eos_token=EOS, pad_token=PAD, unk_token=UNKNOWN
    )
    return check_tokenizer(tokenizer, "the trained tokenizer")
