"""What one cell of a data file means, by the same rules in every reader: whole numbers, people's ids, blanks.

A column of whole numbers is written in many ways: pandas makes floats of it where it has gaps (12.0), Stata writes a
bare point (12.), R writes 1e+05. All of these are the number, so that a person is one person in a CSV, a Parquet and a
JSON file. Texts keep their leading zeros (007): a file that has them was written by someone who means them.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping

from laborllm_dist.config.corpora import EARLIEST_YEAR, LATEST_YEAR

OTHER_BLANK = "a blank of another kind (a no-break space, say)"  # for the data card
DATE_PARTS = frozenset(("year", "month", "day"))
_WHOLE_NUMBER = re.compile(r"([+-]?)(\d+)(?:\.0*)?")
_R_NUMBER = re.compile(r"(-?)(\d)(?:\.(\d+))?e\+(\d{2})")  # as R and pandas write long numbers: 1.5e+05
_LAST_SIGNS = frozenset("0123456789.")  # of a number that is not written in digits alone
_MOST_DIGITS = 18
_EXACT_DIGITS = 15  # a float holds no more decimal digits than these exactly
_LONG_FLOAT = re.compile(rf"-?\d{{{_EXACT_DIGITS + 1},}}\.0*")
_INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200b\u2060\ufeff"))  # zero-width characters: removed, not replaced


class InexactIdError(ValueError):
    """An id was rounded by a float type; the message says what to do."""


def whole_number(text: str) -> int | None:
    """Parse a whole number: 12, +12, -4, 12.0, 12., 1e+05; None if the cell is not one."""
    plain = text if text.isdigit() and text.isascii() else _plain(text)
    return int(plain) if plain is not None and len(plain) <= _MOST_DIGITS else None


def as_year(text: str) -> int | None:
    """Parse a year; None if the cell is not one."""
    year = whole_number(text)
    return year if year is not None and EARLIEST_YEAR <= year <= LATEST_YEAR else None


def same_code(text: str) -> str:
    """Return a code or id in its canonical form: a whole number without decimal point, other texts unchanged."""
    if text.isdigit() or text[-1:] not in _LAST_SIGNS:  # the fast path of nearly every cell
        return text
    plain = _plain(text)
    return text if plain is None or text.startswith("+") else plain


def person_id(text: str) -> str:
    """Return a person's id in its canonical form.

    Raises:
        InexactIdError: if a float type has rounded it, so that two people may have the same id.
    """
    is_long_float = _LONG_FLOAT.fullmatch(text) is not None
    if is_long_float or ((match := _R_NUMBER.fullmatch(text)) is not None and int(match[4]) >= _EXACT_DIGITS):
        raise InexactIdError(f"{text!r} is a number that a float has rounded; save the ids as texts or whole numbers")
    return same_code(text)


def float_text(value: float) -> str:
    """Format a float of a Parquet or JSON file as in a CSV: whole numbers without decimal point, NaN as ""."""
    if value != value:
        return ""
    return str(int(value)) if value.is_integer() and abs(value) < 10**_EXACT_DIGITS else repr(value)


def date_text(value: Mapping[str, object]) -> str | None:
    """Format {"day": 3, "month": 6, "year": 2017} as 2017-06-03; day, or day and month, may be missing.

    A month may be a name. Returns "" if the object has no values, None if it is not a date.
    """
    parts = {str(name).lower(): _part_text(part) for name, part in value.items()}
    if not parts.keys() <= DATE_PARTS or None in parts.values():
        return None
    year, month, day = (parts.get(name) or "" for name in ("year", "month", "day"))
    if not year:
        return None if month or day else ""
    if not month.isdigit():
        return " ".join(part for part in (day if month else "", month, year) if part)
    return "-".join((year, month.zfill(2), *([day.zfill(2)] if day else [])))


def _part_text(part: object) -> str | None:
    """Return a part of a date as text; None if it is not one."""
    if part is None:
        return ""
    if isinstance(part, bool) or not isinstance(part, (str, int, float)):
        return None
    return same_code(float_text(part) if isinstance(part, float) else str(part).strip())


def _plain(text: str) -> str | None:
    """Return the sign and digits of a whole number; None if the text is not one."""
    if not text.isascii():
        return None
    if (match := _WHOLE_NUMBER.fullmatch(text)) is not None:
        sign = "-" if match[1] == "-" and match[2].strip("0") else ""
        return sign + match[2]
    if (match := _R_NUMBER.fullmatch(text)) is not None:
        decimals, exponent = match[3] or "", int(match[4])
        if exponent < _EXACT_DIGITS and len(decimals.rstrip("0")) <= exponent:
            return match[1] + match[2] + decimals[:exponent].ljust(exponent, "0")
    return None


def with_plain_blanks(text: str) -> str:
    """Replace other blanks, such as the no-break space, by spaces, and strip the text.

    Line breaks and control characters remain: readers report them as problems.
    """
    if text.isascii() and "\t" not in text:
        return text.strip()
    plain = "".join(" " if sign == "\t" or unicodedata.category(sign) == "Zs" else sign for sign in text)
    return plain.translate(_INVISIBLE).strip()
