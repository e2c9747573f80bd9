"""The one place where transformers' Auto classes open configurations, tokenizers and models.

A folder or a hub repository may name Python files of its own (`auto_map`). By default transformers asks on the terminal
whether to run them, and a typed y runs whatever they contain. This module never asks and never runs a model's own code:
it uses the class that transformers has for the model, and raises CustomCodeError where there is none. It also rejects a
config.json that names attention kernels on the hub, which transformers would download and run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import transformers  # loads an Auto class, and torch with it, when it is first named
from huggingface_hub.errors import StrictDataclassError

from laborllm_dist.errors import CustomCodeError, ModelError
from laborllm_dist.store.hub import look_for_hub

# What transformers raises on a config.json that holds something else than it expects.
UNREADABLE = (
    OSError, ValueError, TypeError, KeyError, AttributeError, IndexError, ArithmeticError, NotImplementedError,
    ImportError, RecursionError, StrictDataclassError,
)  # fmt: skip

MOST_LETTERS = 1_500  # of an error of another library: a path in it is not cut


def open_config(path: str | Path, *, revision: str | None = None, subfolder: str | None = None, **more: Any) -> Any:
    """Return the configuration of a model's folder or hub id, as a class of transformers.

    Raises:
        CustomCodeError: if only code that comes with the model knows it, or it names kernels of the hub.
        ModelError: if it is missing, or transformers cannot read it.
    """
    look_for_hub(path)
    try:
        _refuse_kernels(path, revision=revision, subfolder=subfolder)
        with _code_is_refused(path):
            config = transformers.AutoConfig.from_pretrained(
                str(path), revision=revision or "main", subfolder=subfolder or "", trust_remote_code=False, **more
            )
    except UNREADABLE as error:
        raise ModelError(
            f"transformers cannot read the model configuration at {path}: {reason_of(error)}",
            code="unreadable-model-config",
        ) from None
    return _without_code(config)


def open_model(path: str | Path, *, revision: str | None = None, subfolder: str | None = None, **more: Any) -> Any:
    """Return what AutoModelForCausalLM.from_pretrained returns for a folder or a hub id.

    Raises:
        CustomCodeError: if only code that comes with the model knows it, or it names kernels of the hub.
        Exception: what transformers raises on weights that it cannot open.
    """
    look_for_hub(path)
    with contextlib.suppress(OSError):  # as for an adapter on the hub, which has no config.json
        _refuse_kernels(path, revision=revision, subfolder=subfolder)
    with _code_is_refused(path):
        opened = transformers.AutoModelForCausalLM.from_pretrained(
            str(path), revision=revision or "main", subfolder=subfolder or "", trust_remote_code=False, **more
        )
    _without_code((opened[0] if isinstance(opened, tuple) else opened).config)
    return opened


def model_of(config: Any, **more: Any) -> Any:
    """Return a causal model of a configuration, without weights from anywhere.

    Raises:
        CustomCodeError: if only code that comes with the model knows it.
    """
    with _code_is_refused(config.name_or_path):
        return transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False, **more)


def open_tokenizer(path: str | Path, *, revision: str | None = None, subfolder: str | None = None, **more: Any) -> Any:
    """Return the tokenizer of a folder or a hub id.

    Raises:
        CustomCodeError: if only code that comes with the tokenizer knows it.
        Exception: what transformers raises on a tokenizer that it cannot open.
    """
    look_for_hub(path)
    with _code_is_refused(path):
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            str(path), revision=revision or "main", subfolder=subfolder or "", trust_remote_code=False, **more
        )
    tokenizer.init_kwargs.pop("auto_map", None)
    return tokenizer


def reason_of(error: BaseException) -> str:
    """Return an error as one line: its first non-empty line and, if that ends in a colon, the next one too.

    The class precedes texts that mean little alone, such as that of a KeyError.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:2]) if lines and lines[0].endswith(":") else "".join(lines[:1])
    text = text.rstrip(".:")
    if not isinstance(error, OSError | ValueError | RuntimeError | ImportError | StrictDataclassError) or not text:
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text if len(text) <= MOST_LETTERS else f"{text[: MOST_LETTERS - 4]} ..."


@contextlib.contextmanager
def _code_is_refused(path: str | Path) -> Iterator[None]:
    """Raise CustomCodeError where transformers would have to run a model's own code; silence its warnings."""
    logging = transformers.utils.logging
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise CustomCodeError(
            f"{path} comes with code of its own (auto_map in its .json files), and transformers has no class for it; "
            "such code is never run here: take a model and a tokenizer that transformers knows",
            code="custom-code-required",
        ) from None
    finally:
        logging.set_verbosity(verbosity)


def _refuse_kernels(path: str | Path, *, revision: str | None, subfolder: str | None) -> None:
    """Raise CustomCodeError if config.json names kernels on the hub: it would override the caller's choice."""
    reading = transformers.PreTrainedConfig.get_config_dict
    values, _ = reading(str(path), revision=revision or "main", subfolder=subfolder or "")
    if (kernels := next(_kernels_in(values), None)) is not None:
        raise CustomCodeError(
            f"{path}: its config.json names attention kernels of the hub ({kernels}), which would be downloaded and "
            "run; such code is never run here: take attn_implementation out of the file",
            code="hub-attention-kernels",
        )


def _kernels_in(values: Any) -> Iterator[str]:
    """Yield the repositories that a configuration, or one inside it, takes attention from."""
    if isinstance(values, dict):
        for name, value in values.items():
            if "attn_implementation" in str(name):
                yield from (each for each in _texts_in(value) if "/" in each)
            else:
                yield from _kernels_in(value)


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _texts_in(each)


def _without_code(config: Any) -> Any:
    """Return a configuration that no longer names code, so that nothing written from it does."""
    config.__dict__.pop("auto_map", None)
    return config
