"""Read JSON that may be damaged or edited by hand; every defect raises the same error.

Python's json module keeps the last value of a duplicate name and raises RecursionError on deep nesting. Here both are
errors like invalid syntax.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

MOST_BYTES = 1 << 30  # of a file that is read into memory whole; this software writes far smaller ones


class NotJsonError(ValueError):
    """A text is not valid JSON or has a duplicate name; `position` is the index of the character."""

    def __init__(self, why: str, position: int = 0) -> None:
        super().__init__(why)
        self.position = position


def read_json_value(text: str, at: int = 0) -> tuple[object, int]:
    """Return the JSON value that begins at index `at` of a text, and the index after its end.

    Raises:
        NotJsonError: if the JSON is invalid, an object has a duplicate name, a number is too long or the nesting is
            too deep.
    """
    try:
        return _DECODER.raw_decode(text, at)
    except json.JSONDecodeError as error:
        raise NotJsonError(error.msg, error.pos) from None
    except RecursionError:
        raise NotJsonError("lists or objects nested too deep", at) from None
    except ValueError as error:
        raise NotJsonError(str(error).split(";")[0], at) from None


def json_object(content: bytes) -> dict[str, Any]:
    """Parse the content of a file or line that is one JSON object.

    Raises:
        NotJsonError: if it is not.
    """
    try:
        text = content.decode("utf-8-sig").strip(" \t\r\n")
    except UnicodeDecodeError as error:
        raise NotJsonError(f"byte {error.start + 1} is not UTF-8") from None
    value, end = read_json_value(text)
    if end != len(text):
        raise NotJsonError("something follows its end", end)
    if not isinstance(value, dict):
        raise NotJsonError("no names in it")
    return value


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        NotJsonError: if the content is not one JSON object, or the file is larger than MOST_BYTES.
        OSError: if it cannot be read.
    """
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise NotJsonError(f"more than {MOST_BYTES >> 20:,} MiB")
    return json_object(content)


def is_finite_number(value: object) -> bool:
    """Return whether a JSON value is a number that a float64 can hold; true, false, NaN and infinities are not."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer of more than 308 digits
        return False


def _without_doubles(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) < len(pairs):
        times = Counter(name for name, _ in pairs)
        doubled = next(name for name in times if times[name] > 1)
        raise ValueError(f"the name {doubled!r} appears twice")
    return values


_DECODER = json.JSONDecoder(object_pairs_hook=_without_doubles)
