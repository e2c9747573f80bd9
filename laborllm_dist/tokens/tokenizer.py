"""The tokenizer of a run: any fast Hugging Face one, or byte-level BPE learned from the training people.

A text's ids are: the tokenizer's own leading marks, or its BOS where it adds none, then the text. Nothing follows
the text. The first token of a text has no prediction, so a mark in front lets every word of the text have one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import transformers  # loads AutoTokenizer, and torch with it, when it is first named: a trained tokenizer needs neither
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers.utils.hub import cached_file, extract_commit_hash

from laborllm_dist.careers.formats import pointer_in
from laborllm_dist.errors import TokenizerError
from laborllm_dist.files import sha256_of

BOS, EOS, PAD, UNKNOWN = "<s>", "</s>", "<pad>", "<unk>"
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip
PROBE = "The worker was born in 1963.\n1984 (some college): Cooks\n1985 (some college): Food servers, nonrestaurant\n"


@dataclass(frozen=True, slots=True)
class CareerTokenizer:
    """A tokenizer that has been checked: `leading` are the ids put before a text."""

    hugging_face: transformers.PreTrainedTokenizerBase
    backend: Tokenizer
    leading: tuple[int, ...]

    @property
    def num_ids(self) -> int:
        """Number of ids, the rows an embedding needs."""
        return len(self.hugging_face)

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits: two tokenizers with equal ones give equal ids."""
        content = self.backend.to_str() + repr(self.leading)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def save(self, folder: Path) -> None:
        """Write the files that AutoTokenizer reads."""
        self.hugging_face.save_pretrained(str(folder))


def load_tokenizer(path: str, *, revision: str | None = None, subfolder: str | None = None) -> CareerTokenizer:
    """Open a folder or a hub id.

    Raises:
        TokenizerError: if it is missing, has no fast version, or does not give a text back as it was.
    """
    if not (Path(path).exists() or is_hub_id(path)):
        raise TokenizerError(f"no tokenizer at {path}: neither a folder nor a hub id such as meta-llama/Llama-2-7b-hf")
    folder = Path(path) / (subfolder or "")
    if folder.is_dir() and (pointer := pointer_in(folder)) is not None:
        raise TokenizerError(pointer)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            path, revision=revision or "main", subfolder=subfolder or "", use_fast=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        if folder.is_dir() and not any((folder / name).is_file() for name in TOKENIZER_FILES):
            wanted = "tokenizer.json, or tokenizer.model and tokenizer_config.json"
            raise TokenizerError(f"there is no tokenizer in {folder}: wanted {wanted}") from None
        raise TokenizerError(f"no tokenizer could be opened at {path}: {' '.join(str(error).split())}") from None
    return check_tokenizer(tokenizer, path)


def is_hub_id(path: str) -> bool:
    """Return whether a path that is no folder here may be an id of the hub, OWNER/NAME."""
    return path.count("/") == 1 and not path.startswith((".", "/", "~"))


def tokenizer_identity(path: str, revision: str | None, subfolder: str | None) -> dict[str, str]:
    """Return what decides a tokenizer's ids: the checksums of its files, or a hub repository's commit and subfolder.

    Raises:
        TokenizerError: if a hub id can be found neither on the hub nor among what was downloaded before.
    """
    if Path(path).is_dir():
        files = [Path(path) / (subfolder or "") / name for name in TOKENIZER_FILES]
        return {file.name: sha256_of(file) for file in files if file.is_file()}
    try:
        commit = hub_commit(path, revision=revision, subfolder=subfolder, file="tokenizer_config.json")
    except OSError as error:
        raise TokenizerError(f"no tokenizer at {path}: {str(error).strip().splitlines()[0]}") from None
    return {"hub": path, "commit": commit, "subfolder": subfolder or ""}


def hub_commit(path: str, *, revision: str | None, subfolder: str | None, file: str) -> str:
    """Return the commit that a hub id's revision means now, or meant when it was downloaded, where the hub is away.

    Raises:
        OSError: if the file can be found in neither place.
    """
    found = cached_file(path, file, revision=revision or "main", subfolder=subfolder or "")
    return str(extract_commit_hash(found, None))


def check_tokenizer(tokenizer: transformers.PreTrainedTokenizerBase, path: str) -> CareerTokenizer:
    """Make a CareerTokenizer, after a text has come back from its ids unchanged.

    Raises:
        TokenizerError: if it has no fast version, or loses blanks, digits or line breaks.
    """
    if not isinstance(tokenizer, transformers.PreTrainedTokenizerFast):
        raise TokenizerError(
            f"the tokenizer at {path} has no fast version (tokenizer.json), which gives character positions"
        )
    ids = list(tokenizer(PROBE)["input_ids"])
    plain = list(tokenizer(PROBE, add_special_tokens=False)["input_ids"])
    if ids[len(ids) - len(plain) :] == plain:
        leading = ids[: len(ids) - len(plain)]
    else:  # marks after the text, such as EOS: left out, a career ends with its own last line
        start = next((at for at in range(len(ids)) if ids[at : at + len(plain)] == plain), 0)
        leading = ids[:start]
    if not leading and tokenizer.bos_token_id is not None:
        leading = [tokenizer.bos_token_id]
    back = tokenizer.decode(plain, clean_up_tokenization_spaces=False)
    if back.strip() != PROBE.strip():
        raise TokenizerError(
            f"the tokenizer at {path} does not give a text back as it was: {PROBE!r} became {back!r}; "
            "a folder with tokenizer.model alone lacks the settings in tokenizer_config.json or tokenizer.json"
        )
    return CareerTokenizer(hugging_face=tokenizer, backend=tokenizer.backend_tokenizer, leading=tuple(leading))


def train_tokenizer(texts: Iterable[str], *, vocabulary_size: int) -> CareerTokenizer:
    """Learn byte-level BPE of at most `vocabulary_size` pieces, the 256 bytes and 4 marks included."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[BOS, EOS, PAD, UNKNOWN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, backend.token_to_id(BOS))]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=BOS, eos_token=EOS, pad_token=PAD, unk_token=UNKNOWN
    )
    return check_tokenizer(tokenizer, "the trained tokenizer")
