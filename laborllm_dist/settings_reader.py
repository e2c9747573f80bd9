"""The one strict reader between plain values (YAML, JSON) and frozen settings.

It knows every name, so a typo in an experiment file or on the command line stops with its full path and the nearest
known name, before anything is read or written.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from laborllm_dist.errors import SettingsError

Settings = TypeVar("Settings")
_LATER = {"later": True}
LONGEST_NAME = 120  # bytes: suffixes and fingerprints follow it
FORBIDDEN_SIGNS, FORBIDDEN_BEGINNINGS = '/\\:*?"<>|', (".", "-", "~")
FILE_NAME = f"a file name of at most {LONGEST_NAME} bytes without {FORBIDDEN_SIGNS}, and without . - ~ in front"


class OutOfRange(ValueError):
    """Raised by a settings class about one of its own fields; the reader adds the full path."""

    def __init__(self, field: str, wanted: str) -> None:
        super().__init__(f"{field}: wanted {wanted}")
        self.field, self.wanted = field, wanted


def added_later(default: Any) -> Any:
    """Return a field that older settings do not have; at its default it is not written, so that fingerprints stay."""
    return dataclasses.field(default=default, metadata=_LATER)


def check_positive(settings: object, *fields: str) -> None:
    """Refuse fields that are set and not above 0."""
    for field in fields:
        value = getattr(settings, field)
        if value is not None and not value > 0:
            raise OutOfRange(field, f"a number above 0, found {value}")


def check_file_name(settings: object, *fields: str) -> None:
    """Refuse fields that are set and cannot be a part of a file's name, or would lead out of the folder it is in."""
    for field in fields:
        value = getattr(settings, field)
        if value is not None and not is_file_name(value):
            raise OutOfRange(field, f"{FILE_NAME}, found {value!r}")


def is_file_name(value: str) -> bool:
    """Return whether a text may be a part of a file's name: one rule for all that is named by settings."""
    is_plain = value.isprintable() and not set(value) & set(FORBIDDEN_SIGNS) and value == value.strip()
    return is_plain and not value.startswith(FORBIDDEN_BEGINNINGS) and 0 < len(value.encode()) <= LONGEST_NAME


def check_share(settings: object, *fields: str) -> None:
    """Refuse fields that are not from 0 to 1."""
    for field in fields:
        value = getattr(settings, field)
        if not 0 <= value <= 1:
            raise OutOfRange(field, f"a number from 0 to 1, found {value}")


def read_settings(kind: type[Settings], values: Mapping[str, Any], where: str = "") -> Settings:
    """Make `kind` from plain values, strictly.

    Args:
        kind: a frozen dataclass of this module.
        values: what a settings file holds: dicts, lists, numbers, texts.
        where: path of `values` in the settings, for messages.

    Raises:
        SettingsError: naming the full path of a setting that is unknown, missing, of another type or out of range.
    """
    hints = typing.get_type_hints(kind)
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
    except OutOfRange as error:
        raise SettingsError(f"setting {_join(where, error.field)}: wanted {error.wanted}") from None


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _read_value(wanted: Any, value: Any, path: str) -> Any:
    origin, inner = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (types.UnionType, typing.Union):  # X | None is the only union used
        if value is None:
            return None
        (wanted,) = (each for each in inner if each is not type(None))
        return _read_value(wanted, value, path)
    if origin is Literal:
        if value not in inner or isinstance(value, bool):
            raise SettingsError(f"setting {path}: wanted one of {', '.join(map(str, inner))}, found {value!r}")
        return value
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
        if not isinstance(value, Mapping):
            raise SettingsError(f"setting {path}: wanted a group of settings, found {value!r}")
        return read_settings(wanted, value, path)  # type: ignore[arg-type]
    if wanted is float and _is_endless(value):
        raise SettingsError(f"setting {path}: wanted a finite number, found {value}")
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, wanted) or (wanted is not bool and isinstance(value, bool)):
        hint = " (write 1.0e-5: YAML reads 1e-5 as a text)" if wanted is float and isinstance(value, str) else ""
        raise SettingsError(f"setting {path}: wanted {wanted.__name__}, found {value!r}{hint}")
    return value


def _is_endless(value: Any) -> bool:
    """Return whether a value is an infinity or no number (NaN), written in YAML's way (.inf) or Python's."""
    if isinstance(value, str):
        return value.strip().lower().lstrip("+-") in (".inf", ".nan", "inf", "nan", "infinity")
    return isinstance(value, float) and not math.isfinite(value)


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
