"""Read plain values (YAML, JSON) into frozen dataclasses, strictly, with pydantic.

A typo in an experiment file or on the command line raises an error with its full path and the nearest known name,
before any file is read or written. The records of runs, stores and checkpoints are read the same way.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import difflib
import functools
import inspect
import itertools
import json
import re
import textwrap
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from pydantic import ConfigDict, GetCoreSchemaHandler, TypeAdapter, ValidationError
from pydantic_core import CoreSchema, ErrorDetails, core_schema

from laborllm_dist.errors import SettingsError

Settings = TypeVar("Settings")
_UNWRITABLE = re.compile(r"[\0\ud800-\udfff]")
_MOST_PROBLEMS = 10  # listed in one message
LONGEST_NAME = 120  # bytes; leaves room for suffixes and fingerprints
FORBIDDEN_SIGNS, FORBIDDEN_BEGINNINGS = '/\\:*?"<>|', (".", "-", "~")
FILE_NAME = f"a file name of at most {LONGEST_NAME} bytes without {FORBIDDEN_SIGNS}, and without . - ~ in front"
# Expected types in the words of a settings file, by pydantic's error types.
_EXPECTED = {
    "string_type": "text",
    "bool_type": "true or false",
    "int_type": "a whole number",
    "float_type": "a number",
    "tuple_type": "a list",
    "dict_type": "named groups of settings",
    "dataclass_type": "a group of settings",
}


class Strict:
    """Base of the frozen dataclasses that `read_settings` reads; the docstring below a field is its description."""

    __slots__ = ()
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True, extra="forbid")


class OutOfRangeError(ValueError):
    """Raised by a settings class about one of its own fields; the reader adds the full path."""

    def __init__(self, field: str, expected: str) -> None:
        super().__init__(f"{field}: expected {expected}")
        self.field, self.expected = field, expected


@dataclass(frozen=True)
class ByKind:
    """Annotation of a group whose `tag` selects its class: a tagged union defined by a table.

    A group without the tag is of the kind `default`, if there is one.
    """

    classes: Mapping[str, type]
    tag: str = "kind"
    default: str | None = None

    def class_of(self, values: Any) -> type | None:
        """Return the class of a group; None if its tag is not in the table."""
        kind = values.get(self.tag, self.default) if isinstance(values, Mapping) else None
        return self.classes.get(kind) if isinstance(kind, str) else None

    def __get_pydantic_core_schema__(self, source: type, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Return a schema that reads a group as the class of its kind."""
        return core_schema.no_info_before_validator_function(self._read, handler(source))

    def _read(self, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        kind = self.class_of(values)
        if kind is None:
            is_there = self.tag in values
            expected = f"expected one of {', '.join(self.classes)}, got {values[self.tag]!r}" if is_there else None
            raise _KindError(self.tag, expected)
        return _adapter(kind).validate_json(json.dumps(values))


class _KindError(ValueError):
    """The tag of a group is unknown, or missing (`expected` is None)."""

    def __init__(self, tag: str, expected: str | None) -> None:
        super().__init__(expected)
        self.tag, self.expected = tag, expected


def check_file_name(settings: object, *fields: str) -> None:
    """Check that these fields are None or valid parts of a file name, which cannot lead out of a folder."""
    for field in fields:
        value = getattr(settings, field)
        if value is not None and not is_file_name(value):
            raise OutOfRangeError(field, f"{FILE_NAME}, got {value!r}")


def is_file_name(value: str) -> bool:
    """Return whether a text may be part of a file name; all names in settings follow this rule."""
    is_plain = value.isprintable() and not set(value) & set(FORBIDDEN_SIGNS) and value == value.strip()
    return is_plain and not value.startswith(FORBIDDEN_BEGINNINGS) and 0 < len(value.encode()) <= LONGEST_NAME


def read_settings(kind: type[Settings], values: Mapping[str, Any], path: str = "") -> Settings:
    """Create a `kind` from plain values, strictly.

    Args:
        kind: a frozen dataclass that inherits from `Strict`.
        values: content of a settings file: dicts, lists, numbers, texts.
        path: path of `values` in the settings, for messages.

    Raises:
        SettingsError: naming the full path of every setting that is unknown, missing, of another type or out of range.
    """
    problems = list(_unwritable(values, path))
    if not problems:
        try:
            settings: Settings = _adapter(kind).validate_json(json.dumps(values))  # type: ignore[arg-type]
            return settings
        except ValidationError as error:
            problems = [_problem(details, kind, values, path) for details in error.errors(include_url=False)]
    raise SettingsError(_listed(problems), code="invalid")


def _listed(problems: Sequence[str]) -> str:
    """Return a problem as a line, or several as an indented list."""
    if len(problems) == 1:
        return problems[0]
    shown = list(problems[:_MOST_PROBLEMS])
    if len(problems) > len(shown):
        shown.append(f"and {len(problems) - len(shown)} more")
    return "\n  ".join([f"{len(problems)} settings are invalid:", *shown])


@functools.cache
def _adapter(kind: type) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


@contextlib.contextmanager
def settings_errors(path: str = "") -> Iterator[None]:
    """Translate an OutOfRangeError about a field into a SettingsError with the full path."""
    try:
        yield
    except OutOfRangeError as error:
        place = _join(path, error.field)
        raise SettingsError(f"setting {place}: expected {error.expected}", code="invalid") from None


def describe_settings(kind: type) -> dict[str, str]:
    """Return the description of each field of a settings class, in one line.

    Only help needs them, so they are read here and not by pydantic, which would read every source at every start.
    """
    bases = [describe_settings(base) for base in kind.__bases__ if dataclasses.is_dataclass(base)]
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    own = {}
    for statement, below in itertools.pairwise(typing.cast(ast.ClassDef, definition).body):
        match statement, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                own[name] = " ".join(text.split())
    return {name: text for each in (*bases, own) for name, text in each.items()}


def settings_to_values(settings: Any) -> dict[str, Any]:
    """Return the settings as plain values for `read_settings` or JSON."""
    return dataclasses.asdict(settings)


def _join(path: str, name: str | int) -> str:
    if isinstance(name, int):
        return f"{path}[{name}]"
    return f"{path}.{name}" if path else name


def _unwritable(value: Any, path: str) -> Iterator[str]:
    """Yield a problem for each value that a settings file cannot contain."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            place = _join(path, str(name))
            yield from (*_unwritable(str(name), place), *_unwritable(inner, place))
    elif isinstance(value, str):
        if (unfit := _UNWRITABLE.search(value)) is not None:
            yield f"setting {path}: {value!r} holds {unfit[0]!r}, which neither a file nor its name can hold"
    elif isinstance(value, Sequence):
        for index, inner in enumerate(value):
            yield from _unwritable(inner, _join(path, index))
    elif isinstance(value, int) and value.bit_length() > 14_000:  # Python does not format numbers of over 4,300 digits
        yield f"setting {path}: expected a number of fewer digits"
    elif not isinstance(value, (int, float, type(None))):
        yield f"setting {path}: expected text, a number, a list or a group, got {value!r}"


def _problem(details: ErrorDetails, kind: type, values: Any, path: str) -> str:
    """Return one line about one of pydantic's errors."""
    full = functools.reduce(_join, details["loc"], path)
    value, error = details["input"], details.get("ctx", {}).get("error")
    if isinstance(error, OutOfRangeError):
        return f"setting {_join(full, error.field)}: expected {error.expected}"
    if isinstance(error, _KindError):
        place = _join(full, error.tag)
        return f"setting {place} is missing" if error.expected is None else f"setting {place}: {error.expected}"
    if details["type"] == "missing":
        return f"setting {full} is missing"
    if details["type"] == "unexpected_keyword_argument":
        return f"unknown setting {full}; {_nearest(details['loc'], kind, values, path)}"
    if details["type"] == "literal_error":
        expected = f"one of {', '.join(map(str, _choices(details['loc'], kind, values)))}"
    else:
        expected = _EXPECTED.get(details["type"], details["msg"])
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+e[+-]?\d+", value.strip(), re.IGNORECASE):
        return f"setting {full}: expected {expected}, got {value!r} (write 1.0e-5: YAML reads 1e-5 as a text)"
    return f"{f'setting {full}' if full else 'settings'}: expected {expected}, got {value!r}"


def _nearest(location: tuple[int | str, ...], kind: type, values: Any, path: str) -> str:
    """Return advice with the known name nearest to an unknown one, or with all known names."""
    owner = _type_at(kind, values, location[:-1])
    names = [field.name for field in dataclasses.fields(owner)]
    nearest = difflib.get_close_matches(str(location[-1]), names, n=1, cutoff=0.5)
    group = functools.reduce(_join, location[:-1], path)
    return f"did you mean {_join(group, nearest[0])}?" if nearest else f"known here: {', '.join(names)}"


def _choices(location: tuple[int | str, ...], kind: type, values: Any) -> tuple[Any, ...]:
    return typing.get_args(_type_at(kind, values, location))


def _type_at(kind: Any, values: Any, location: Sequence[int | str]) -> Any:
    """Return the type at a location in settings, without None and annotations."""
    kind = inner_type(kind, values)
    if not location:
        return kind
    part, inner = location[0], values[location[0]] if _holds(values, location[0]) else None
    if dataclasses.is_dataclass(kind):
        return _type_at(types_of_fields(kind)[str(part)], inner, location[1:])  # type: ignore[arg-type]
    return _type_at(typing.get_args(kind)[isinstance(values, Mapping)], inner, location[1:])


def _holds(values: Any, part: int | str) -> bool:
    return part in values if isinstance(values, Mapping) else isinstance(part, int) and part < len(values)


def inner_type(kind: Any, values: Any = None) -> Any:
    """Return a field's type without `None` and annotations; for a group of several kinds, the class of `values`."""
    if typing.get_origin(kind) is typing.Annotated:
        kind, *annotations = typing.get_args(kind)
        tables = [each for each in annotations if isinstance(each, ByKind)]
        return (tables[0].class_of(values) or kind) if tables else kind
    members = [each for each in typing.get_args(kind) if each is not type(None)]
    return inner_type(members[0], values) if _is_optional(kind) else kind


def _is_optional(kind: Any) -> bool:
    return type(None) in typing.get_args(kind) and typing.get_origin(kind) is not typing.Literal


@functools.cache
def types_of_fields(kind: type) -> dict[str, Any]:
    """Return the types of a class's fields with their ranges; cached, since evaluation is slow."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}
