"""Read JSON that somebody may have damaged or edited: every way in which it is none is one error.

Python's own reader takes a name that stands twice in an object for its last value, and leaves deep nesting to whoever
calls it. Here the first is refused, as it means two things, and so is the second.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

MOST_BYTES = 1 << 30  # of a file that is held in memory as a whole; none that this software writes comes near


class NotJsonError(ValueError):
    """Raised where a text is no JSON, or one that means two things; its text says why, `position` where in it."""

    def __init__(self, why: str, position: int = 0) -> None:
        super().__init__(why)
        self.position = position


def read_json_value(text: str, at: int = 0) -> tuple[object, int]:
    """Return the JSON value that begins at a place of a text, and the place after it.

    Raises:
        NotJsonError: if there is none, one of its objects has a name twice, a number is too long or it is nested too
            deep.
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
    """Return the object that is all of a file's or a line's content.

    Raises:
        NotJsonError: if it is anything else.
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
    """Return the object that a file holds.

    Raises:
        NotJsonError: if it holds anything else, or is larger than any such file.
        OSError: if it cannot be read.
    """
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise NotJsonError(f"more than {MOST_BYTES >> 20:,} MiB")
    return json_object(content)


def _without_doubles(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        times = Counter(name for name, _ in pairs)
        doubled = next(name for name in times if times[name] > 1)
        raise ValueError(f"the name {doubled!r} stands twice")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_without_doubles)
