"""Values that ranks send each other, as JSON text: who reads knows the type, and nothing in a text can name another.

    to_text((Path("runs/a"), np.array([1, 2])), tuple[Path, NDArray[np.int64]])
    ["runs/a", {"dtype": "<i8", "shape": [2], "base64": "AQAAAAAAAAACAAAAAAAAAA=="}]

The types are a closed list: None, bool, int, float, str, bytes, Path, Literal, X | None, lists, tuples, dicts with
texts as keys, numpy arrays of DTYPES, and frozen dataclasses of these. Any and object are plain JSON values. Unlike
pickle, reading a text calls nothing that the text asks for.
"""

from __future__ import annotations

import base64
import collections.abc
import dataclasses
import json
import math
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from laborllm_dist.config.reader import Strict, read_settings, settings_to_values
from laborllm_dist.errors import SettingsError

PLAIN = Any  # what JSON has itself: None, bool, int, float, str, lists, dicts with texts as keys
DTYPES = (np.bool_, np.int32, np.int64, np.float32, np.float64)
_SCALARS = (bool, int, float, str)


class MessageError(ValueError):
    """A value is not of the stated type, or ranks cannot send that type."""


def to_text(value: Any, kind: Any) -> str:
    """Return a value of a type as JSON, ASCII only.

    Raises:
        MessageError: if the value is of another type, or the type is not one of the closed list.
    """
    return json.dumps(_encoded(value, kind, "value"), separators=(",", ":"))


def from_text(text: str, kind: Any) -> Any:
    """Return the value of a type that a text holds.

    Raises:
        MessageError: if it holds a value of another type.
    """
    try:
        plain = json.loads(text)
    except ValueError as error:
        raise MessageError(f"value: not JSON ({error})") from None
    return _decoded(plain, kind, "value")


def _encoded(value: Any, kind: Any, place: str) -> Any:
    if kind in (Any, object):
        return _checked_plain(value, place)
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return None if value is None else _encoded(value, _only_other(kind, inner), place)
    if kind is Path:
        return str(_checked(value, Path, place))
    if kind is bytes:
        return base64.b64encode(_checked(value, bytes, place)).decode()
    if origin is np.ndarray:
        return _encoded_array(value, _dtype_of(kind), place)
    if origin is tuple:
        _checked(value, tuple, place)
        return _each(value, _types_of_tuple(kind, inner, len(value), place), place, _encoded)
    if origin is list:
        return _each(_checked(value, list, place), inner[0], place, _encoded)
    if origin in (dict, collections.abc.Mapping):
        return _each_named(value, _type_of_values(kind, inner), place, _encoded)
    if dataclasses.is_dataclass(kind):
        if type(value) is not kind:
            raise _mismatch(value, kind, place)
        if issubclass(kind, Strict):
            return settings_to_values(value)
        hints = _fields_of(kind)
        return {name: _encoded(getattr(value, name), hint, f"{place}.{name}") for name, hint in hints.items()}
    return _checked_scalar(value, kind, place)


def _decoded(plain: Any, kind: Any, place: str) -> Any:
    if kind in (Any, object):
        return plain
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return None if plain is None else _decoded(plain, _only_other(kind, inner), place)
    if kind is Path:
        return Path(_checked(plain, str, place))
    if kind is bytes:
        return _bytes_of(plain, place)
    if origin is np.ndarray:
        return _decoded_array(plain, _dtype_of(kind), place)
    if origin is tuple:
        _checked(plain, list, place)
        return tuple(_each(plain, _types_of_tuple(kind, inner, len(plain), place), place, _decoded))
    if origin is list:
        return _each(_checked(plain, list, place), inner[0], place, _decoded)
    if origin in (dict, collections.abc.Mapping):
        return _each_named(plain, _type_of_values(kind, inner), place, _decoded)
    if dataclasses.is_dataclass(kind):
        if isinstance(kind, type) and issubclass(kind, Strict):
            try:
                return read_settings(kind, plain)
            except SettingsError as error:
                raise MessageError(f"{place}: {error}") from None
        hints = _fields_of(kind)
        if not isinstance(plain, dict) or plain.keys() != hints.keys():
            raise _mismatch(plain, kind, place)
        arguments = {name: _decoded(plain[name], hint, f"{place}.{name}") for name, hint in hints.items()}
        try:
            return kind(**arguments)  # type: ignore[operator]  # a class, not an instance
        except ValueError as error:
            raise MessageError(f"{place}: {error}") from None
    return _checked_scalar(plain, kind, place)


def _only_other(kind: Any, inner: tuple[Any, ...]) -> Any:
    """Return X of X | None, the only union that is sent: a reader could not tell the members of another apart."""
    others = [each for each in inner if each is not types.NoneType]
    if len(others) != 1 or len(inner) != 2:
        raise _unknown(kind)
    return others[0]


def _types_of_tuple(kind: Any, inner: tuple[Any, ...], length: int, place: str) -> Any:
    """Return the one type of a tuple of any length, or the types of its members."""
    if len(inner) == 2 and inner[1] is Ellipsis:
        return inner[0]
    if len(inner) != length:
        raise MessageError(f"{place}: {length} members where {kind} has {len(inner)}")
    return inner


def _type_of_values(kind: Any, inner: tuple[Any, ...]) -> Any:
    if inner[0] is not str:
        raise _unknown(kind)
    return inner[1]


def _each(values: Any, kinds: Any, place: str, convert: Callable[[Any, Any, str], Any]) -> list[Any]:
    """Convert the members of a sequence: all of one type, or each of its own where `kinds` is a tuple."""
    if isinstance(kinds, tuple):
        pairs = enumerate(zip(values, kinds, strict=True))
        return [convert(value, kind, f"{place}[{number}]") for number, (value, kind) in pairs]
    if kinds in _SCALARS and set(map(type, values)) <= {kinds}:
        return list(values)  # a plan has millions of numbers
    return [convert(value, kinds, f"{place}[{number}]") for number, value in enumerate(values)]


def _each_named(values: Any, kind: Any, place: str, convert: Callable[[Any, Any, str], Any]) -> dict[str, Any]:
    if not isinstance(values, collections.abc.Mapping) or not all(type(name) is str for name in values):
        raise _mismatch(values, dict[str, kind], place)
    return {name: convert(value, kind, f"{place}.{name}") for name, value in values.items()}


def _fields_of(kind: Any) -> dict[str, Any]:
    """Return the types of a frozen dataclass's fields, all of which its constructor takes."""
    fields = dataclasses.fields(kind)
    if not (isinstance(kind, type) and kind.__dataclass_params__.frozen and all(field.init for field in fields)):  # type: ignore[attr-defined]
        raise _unknown(kind)
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields}


def _dtype_of(kind: Any) -> np.dtype[Any]:
    (scalar,) = typing.get_args(typing.get_args(kind)[1])
    if scalar not in DTYPES:
        raise _unknown(kind)
    dtype: np.dtype[Any] = np.dtype(scalar)
    return dtype


def _encoded_array(value: Any, dtype: np.dtype[Any], place: str) -> dict[str, Any]:
    if not isinstance(value, np.ndarray) or value.dtype != dtype:
        raise _mismatch(value, f"an array of {dtype}", place)
    data = np.ascontiguousarray(value, dtype.newbyteorder("<"))
    return {"dtype": data.dtype.str, "shape": list(value.shape), "base64": base64.b64encode(data.tobytes()).decode()}


def _decoded_array(plain: Any, dtype: np.dtype[Any], place: str) -> Any:
    stored = dtype.newbyteorder("<")
    if not isinstance(plain, dict) or plain.keys() != {"dtype", "shape", "base64"} or plain["dtype"] != stored.str:
        raise _mismatch(plain, f"an array of {dtype}", place)
    shape, data = _decoded(plain["shape"], tuple[int, ...], f"{place}.shape"), _bytes_of(plain["base64"], place)
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(data):
        raise MessageError(f"{place}: {len(data)} bytes for an array of {dtype} of shape {list(shape)}")
    return np.frombuffer(data, stored).reshape(shape).astype(dtype)  # a copy: it may be written to


def _bytes_of(plain: Any, place: str) -> bytes:
    try:
        return base64.b64decode(_checked(plain, str, place), validate=True)
    except ValueError as error:
        raise MessageError(f"{place}: no base64 ({error})") from None


def _checked_scalar(value: Any, kind: Any, place: str) -> Any:
    if kind in (None, types.NoneType):
        if value is not None:
            raise _mismatch(value, kind, place)
        return None
    if typing.get_origin(kind) is Literal:
        if not any(value == each and type(value) is type(each) for each in typing.get_args(kind)):
            raise _mismatch(value, kind, place)
        return value
    if kind not in _SCALARS:
        raise _unknown(kind)
    if kind is float and type(value) is int:
        return value
    return _checked(value, kind, place)


def _checked(value: Any, kind: type, place: str) -> Any:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise _mismatch(value, kind, place)
    return value


def _checked_plain(value: Any, place: str) -> Any:
    """Return a value that JSON gives back as it is; a tuple would come back as a list."""
    if value is None or type(value) in _SCALARS:
        return value
    if type(value) is list:
        return [_checked_plain(each, f"{place}[{number}]") for number, each in enumerate(value)]
    if type(value) is dict:
        return _each_named(value, Any, place, lambda each, _, where: _checked_plain(each, where))
    raise MessageError(f"{place}: {type(value).__name__} is no plain JSON value; state its type")


def _mismatch(value: Any, kind: Any, place: str) -> MessageError:
    return MessageError(f"{place}: {type(value).__name__} where {getattr(kind, '__name__', kind)} is stated")


def _unknown(kind: Any) -> MessageError:
    return MessageError(f"{kind} is no type that ranks send each other (distributed/serialization.py lists them)")
