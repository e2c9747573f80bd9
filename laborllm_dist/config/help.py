"""Format the settings of a command as help text: value, description and type of each."""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from laborllm_dist.config.number_ranges import NumberRange
from laborllm_dist.config.reader import describe_settings, inner_type, types_of_fields

MEANING_COLUMN, NARROWEST_MEANING = 34, 40
_WORDS = {type(None): "null", str: "text", bool: "true or false", int: "whole number", float: "number"}
# Groups whose files are chosen by another name than their own.
_CHOSEN_AS = {
    "plan.gpu": ("gpu", "gpu@plan.gpu"), "plan.cluster": ("cluster", "cluster@plan.cluster"),
    "split": ("split_by", "split_by"),
}  # fmt: skip


def help_text(kind: type, values: Mapping[str, Any], conf: Path, width: int, only: Sequence[str] = ()) -> str:
    """Return the settings of a command as lines: name and value on the left, description and type on the right.

    Args:
        kind: class of the settings.
        values: plain values; ??? is a required value.
        conf: folder of the settings files.
        width: width of the terminal, in columns.
        only: paths of settings or groups to show; empty: all.
    """
    lines = list(_lines(kind, values, conf, ""))
    shown = [line for path, *line in lines if not only or _is_among(path, only)]
    return "\n".join(_laid_out(name, meaning, width) for name, meaning in shown)


def paths_of(kind: type, values: Mapping[str, Any], conf: Path) -> list[str]:
    """Return the full names of all settings and groups."""
    return [path for path, _, _ in _lines(kind, values, conf, "")]


def _is_among(path: str, only: Sequence[str]) -> bool:
    """Return whether a setting is one of those to show, is inside one, or contains one."""
    return any(f"{path}.".startswith(f"{name}.") or f"{name}.".startswith(f"{path}.") for name in only)


def _lines(
    kind: type, values: Mapping[str, Any], conf: Path, path: str, indent: str = ""
) -> Iterator[tuple[str, str, str]]:
    """Yield full path, indented name with value, and meaning of every setting; groups come after plain settings."""
    meanings, groups = describe_settings(kind), []
    for name, field_kind in types_of_fields(kind).items():
        full, value = f"{path}.{name}" if path else name, values.get(name, default_of(kind, name))
        inner = inner_type(field_kind, value)
        member = typing.get_args(inner)[1] if typing.get_origin(inner) is dict else None
        if member is not None and value and isinstance(value, Mapping) and dataclasses.is_dataclass(inner_type(member)):
            groups += [(f"{full}.{key}", inner_type(member, each), each) for key, each in value.items()]
        elif dataclasses.is_dataclass(inner) and isinstance(value, Mapping):
            groups.append((full, inner, value))
        else:
            plain = not dataclasses.is_dataclass(inner)
            words = f"{meanings[name]} [{type_text(field_kind)}]" if plain else summary(inner)
            yield full, f"{indent}{name}: {value_text(value)}", words
    for full, inner, value in groups:
        chosen = choices(conf, full)
        files = f" Choices: {', '.join(chosen)}." if chosen else ""
        name = full.removeprefix(f"{path}.") if path else full
        yield full, f"{indent}{name}:", f"{summary(inner)}{files}"
        yield from _lines(inner, value, conf, full, f"{indent}  ")


def _laid_out(name: str, meaning: str, width: int) -> str:
    room = max(NARROWEST_MEANING, width - MEANING_COLUMN)
    first, *rest = textwrap.wrap(meaning, room) or [""]
    beside = f"{name:<{MEANING_COLUMN - 2}}  {first}" if len(name) <= MEANING_COLUMN - 2 else None
    below = [" " * MEANING_COLUMN + line for line in rest]
    return "\n".join([beside, *below] if beside else [name, " " * MEANING_COLUMN + first, *below]).rstrip()


def default_of(kind: type, name: str) -> Any:
    """Return the default of a field; None if it has none."""
    default = next(field.default for field in dataclasses.fields(kind) if field.name == name)
    return None if default is dataclasses.MISSING else default


def summary(kind: type) -> str:
    """Return the first paragraph of a class's docstring, in one line."""
    return " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split())


def choices(conf: Path, path: str) -> list[str]:
    """Return the options of a group as command-line arguments, such as optimizer=finetune."""
    folder, name = _CHOSEN_AS.get(path, (path, path))
    return [f"{name}={file.stem}" for file in sorted((conf / folder).glob("*.yaml"))] if folder else []


def type_text(kind: Any) -> str:
    """Return a type in words: choices as `a, b`, numbers with their range, null for None, a group as its settings."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return ", ".join(str(choice) for choice in inner)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(type_text(part) for part in inner)
    if origin is typing.Annotated:
        (permitted,) = (each for each in inner[1:] if isinstance(each, NumberRange))
        return permitted.describe(is_whole=inner[0] is int).removeprefix("a ")
    if origin is tuple:
        return f"list of {type_text(inner[0])}"
    if origin in (dict, Mapping):
        return f"map of {type_text(inner[0])} to {type_text(inner[1])}"
    if dataclasses.is_dataclass(kind):
        return "{" + ", ".join(field.name for field in dataclasses.fields(kind)) + "}"
    return _WORDS[kind]


def value_text(value: Any) -> str:
    """Format a plain value as in a settings file; long lists and texts are shortened."""
    if isinstance(value, (list, tuple)):
        return f"[{textwrap.shorten(', '.join(map(value_text, value)), 60, placeholder=' ...')}]"
    if isinstance(value, Mapping):
        pairs = (f"{name}: {value_text(each)}" for name, each in value.items())
        return f"{{{textwrap.shorten(', '.join(pairs), 60, placeholder=' ...')}}}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return value if re.fullmatch(r"[\w./?{}-]+", value) else f'"{textwrap.shorten(value, 60, placeholder=" ...")}"'
    return repr(value)
