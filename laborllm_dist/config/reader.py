"""The one strict reader between plain values (YAML, JSON) and frozen settings.

It knows every name, so a typo in an experiment file or on the command line stops with its full path and the nearest
known name, before anything is read or written.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from laborllm_dist.config.number_ranges import NumberRange
from laborllm_dist.errors import SettingsError

Settings = TypeVar("Settings")
_LATER = {"later": True}
_UNWRITABLE = re.compile(r"[\0\ud800-\udfff]")
LONGEST_NAME = 120  # bytes: suffixes and fingerprints follow it
FORBIDDEN_SIGNS, FORBIDDEN_BEGINNINGS = '/\\:*?"<>|', (".", "-", "~")
FILE_NAME = f"a file name of at most {LONGEST_NAME} bytes without {FORBIDDEN_SIGNS}, and without . - ~ in front"


class OutOfRangeError(ValueError):
    """Raised by a settings class about one of its own fields; the reader adds the full path."""

    def __init__(self, field: str, wanted: str) -> None:
        super().__init__(f"{field}: wanted {wanted}")
        self.field, self.wanted = field, wanted


def added_later(default: Any) -> Any:
    """Return a field that older settings do not have; at its default it is not written, so that fingerprints stay."""
    return dataclasses.field(default=default, metadata=_LATER)


def check_file_name(settings: object, *fields: str) -> None:
    """Refuse fields that are set and cannot be a part of a file's name, or would lead out of the folder it is in."""
    for field in fields:
        value = getattr(settings, field)
        if value is not None and not is_file_name(value):
            raise OutOfRangeError(field, f"{FILE_NAME}, found {value!r}")


def is_file_name(value: str) -> bool:
    """Return whether a text may be a part of a file's name: one rule for all that is named by settings."""
    is_plain = value.isprintable() and not set(value) & set(FORBIDDEN_SIGNS) and value == value.strip()
    return is_plain and not value.startswith(FORBIDDEN_BEGINNINGS) and 0 < len(value.encode()) <= LONGEST_NAME


def read_settings(kind: type[Settings], values: Mapping[str, Any], where: str = "") -> Settings:
    """Make `kind` from plain values, strictly.

    Args:
        kind: a frozen dataclass of this module.
        values: what a settings file holds: dicts, lists, numbers, texts.
        where: path of `values` in the settings, for messages.

    Raises:
        SettingsError: naming the full path of a setting that is unknown, missing, of another type or out of range.
    """
    if not isinstance(values, Mapping):
        raise SettingsError(
            f"{f'setting {where}' if where else 'settings'}: wanted a group of settings, found {values!r}"
        )
    hints = _types_of_fields(kind)  # type: ignore[arg-type]
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name in values:
        if name not in fields:
            nearest = difflib.get_close_matches(str(name), fields, n=1, cutoff=0.5)
            hint = f"did you mean {_join(where, nearest[0])}?" if nearest else f"known here: {', '.join(fields)}"
            raise SettingsError(f"unknown setting {_join(where, str(name))}; {hint}")
    arguments: dict[str, Any] = {}
    for name, field in fields.items():
        if name in values:
            arguments[name] = _read_value(hints[name], values[name], _join(where, name))
        elif field.default is dataclasses.MISSING:
            raise SettingsError(f"setting {_join(where, name)} is missing")
    try:
        return kind(**arguments)
    except OutOfRangeError as error:
        raise SettingsError(f"setting {_join(where, error.field)}: wanted {error.wanted}") from None


@functools.cache
def _types_of_fields(kind: type) -> dict[str, Any]:
    """Return the types of a class's fields with their ranges; Python evaluates the annotations anew at every call."""
    return typing.get_type_hints(kind, include_extras=True)


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _read_value(wanted: Any, value: Any, path: str) -> Any:
    origin, inner = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (types.UnionType, typing.Union):  # X | None is the only union used
        if value is None:
            return None
        (wanted,) = (each for each in inner if each is not type(None))
        return _read_value(wanted, value, path)
    if origin is Annotated:
        return _read_number(inner[0], inner[1], value, path)
    if origin is Literal:
        for each in inner:
            if type(each) is type(value) and each == value:
                return each
        raise SettingsError(f"setting {path}: wanted one of {', '.join(map(str, inner))}, found {value!r}")
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, typing.Sequence):
            raise SettingsError(f"setting {path}: wanted a list, found {value!r}")
        return tuple(_read_value(inner[0], each, f"{path}[{index}]") for index, each in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise SettingsError(f"setting {path}: wanted named groups of settings, found {value!r}")
        return {str(name): _read_value(inner[1], each, _join(path, str(name))) for name, each in value.items()}
    if wanted is object:  # any plain value
        return value
    if dataclasses.is_dataclass(wanted):
        return read_settings(wanted, value, path)  # type: ignore[arg-type]
    if type(value) is not wanted:  # True is an int, too
        raise SettingsError(f"setting {path}: wanted {wanted.__name__}, found {value!r}")
    if wanted is str and (unfit := _UNWRITABLE.search(value)) is not None:
        raise SettingsError(f"setting {path}: {value!r} holds {unfit[0]!r}, which neither a file nor its name can hold")
    return value


def _read_number(kind: type, permitted: NumberRange, value: Any, path: str) -> int | float:
    """Return a number of its range; a whole one where `kind` is int."""
    is_number = isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)
    if is_number and value in permitted:
        number: int | float = kind(value)
        return number
    hint = " (write 1.0e-5: YAML reads 1e-5 as a text)" if kind is float and _is_exponent(value) else ""
    try:
        found = repr(value)
    except ValueError:  # Python writes no whole number of more than 4,300 digits
        found = "one of more than 4,300 digits"
    raise SettingsError(f"setting {path}: wanted {permitted.describe(is_whole=kind is int)}, found {found}{hint}")


def _is_exponent(value: Any) -> bool:
    """Return whether a value is a text such as 1e-5, which is a number everywhere but in YAML."""
    return isinstance(value, str) and re.fullmatch(r"[+-]?\d+e[+-]?\d+", value.strip(), re.IGNORECASE) is not None


def settings_to_values(settings: Any) -> dict[str, Any]:
    """Return the settings as plain values that `read_settings` and JSON take."""
    values: dict[str, Any] = _plain(settings)
    return values


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        held = {field: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {
            field.name: _plain(each)
            for field, each in held.items()
            if not (field.metadata == _LATER and each == field.default)
        }
    if isinstance(value, (tuple, list)):
        return type(value)(_plain(each) for each in value)
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return value
