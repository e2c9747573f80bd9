"""Take values of JSON as the texts of cells, as a CSV would have them."""

from __future__ import annotations

import json
from collections.abc import Mapping

from laborllm_dist.careers.readers.cells import date_text, float_text
from laborllm_dist.io.json_files import NotJsonError, read_json_value

_SHOWN = 60  # characters of a value in a message


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
        except NotJsonError:
            continue
        date = cell_of(value, is_date=True) if end == len(text) else None
        return cell if date is None else date
    return cell


def shown_value(value: object) -> str:
    """Return a value for a message, shortened; nothing in it can break a line or a terminal."""
    try:
        return json.dumps(value)[:_SHOWN]
    except RecursionError:
        return "lists or objects nested too deep"
