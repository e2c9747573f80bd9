"""Read JSON that others wrote: no name twice in an object, no depth without end, every value as the text of a cell."""

from __future__ import annotations

import json
from collections.abc import Mapping

from laborllm_dist.careers.cells import date_text, float_text

_SHOWN = 60  # characters of a value in a message


class NotJson(ValueError):
    """Raised where a text is no JSON, or one that means two things; its text says why, `position` where in it."""

    def __init__(self, why: str, position: int = 0) -> None:
        super().__init__(why)
        self.position = position


def read_json_value(text: str, at: int = 0) -> tuple[object, int]:
    """Return the JSON value that begins at a place of a text, and the place after it.

    Raises:
        NotJson: if there is none, one of its objects has a name twice, a number is too long or it is nested too deep.
    """
    try:
        return _DECODER.raw_decode(text, at)
    except json.JSONDecodeError as error:
        raise NotJson(error.msg, error.pos) from None
    except RecursionError:
        raise NotJson("lists or objects nested too deep", at) from None
    except ValueError as error:
        raise NotJson(str(error).split(";")[0], at) from None


def cell_of(value: object, *, is_date: bool = False) -> str | None:
    """Return a JSON value as a CSV would have it; None where it is no cell: a list, an object, true or false.

    NaN, which pandas writes for absent numbers, is absent. With `is_date`, {"day": 3, "month": 6, "year": 2017} is a
    cell too, and so is {"$date": ...}, as MongoDB writes dates.
    """
    if value is None:
        return ""
    if is_date and isinstance(value, Mapping):
        return cell_of(value["$date"]) if value.keys() == {"$date"} else date_text(value)
    if isinstance(value, (bool, list, dict)):
        return None
    return float_text(value) if isinstance(value, float) else str(value)


def date_cell(cell: str) -> str:
    """Return a cell that holds {"day": 3, "month": 6, "year": 2017} as text, as JSON or as Python writes it, as a date.

    Any other cell is returned as it is.
    """
    if not cell.lstrip().startswith("{"):
        return cell
    for text in (cell.strip(), cell.strip().replace("'", '"').replace("None", "null")):
        try:
            value, end = read_json_value(text)
        except NotJson:
            continue
        found = cell_of(value, is_date=True) if end == len(text) else None
        return cell if found is None else found
    return cell


def shown_value(value: object) -> str:
    """Return a value for a message, shortened; nothing in it can break a line or a terminal."""
    try:
        return json.dumps(value)[:_SHOWN]
    except RecursionError:
        return "lists or objects nested too deep"


def _without_doubles(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        doubled = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {doubled!r} stands twice")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_without_doubles)
