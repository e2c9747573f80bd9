"""Parse a date cell of a resume as a range: the first and the last day that it can mean.

2013, 2013.0             the year
2013-05, 2013/05, 2013.05, 05/2013, 05-2013, 05.2013, May 2013, May, 2013      the month
Q2 2013, 2013-Q2, 2013Q2                            the quarter
2013-05-17, 2013/05/17, 2013-05-17T08:30:00, 20130517, 17 May 2013, May 17, 2013         the day
05/17/2013, 17/05/2013, 17.05.2013   the day, if only one order of month and day is a date
05/06/2013               the day, if the order of the file is known
1370044800000            the day, in milliseconds from 1970 on (UTC), as pandas writes dates to JSON
Nov 2018 - Present, 2013-05 to 2014-06, May - Aug 2015       a start and an end (`split_range`)
"""

from __future__ import annotations

import calendar
import functools
import re
from collections.abc import Callable
from datetime import date, timedelta
from typing import Literal

from laborllm_dist.careers.readers.cells import whole_number
from laborllm_dist.config.corpora import EARLIEST_YEAR, LATEST_YEAR

Days = tuple[date, date]
DateOrder = Literal["day_first", "month_first"]

_MONTHS = {name.lower(): number for number, name in enumerate(calendar.month_name) if name}
_MONTHS |= {name[:3]: number for name, number in _MONTHS.items()} | {"sept": 9}
_YEAR_MONTH = re.compile(r"(\d{4})[-/](\d{1,2})|(\d{4})\.(\d{2})")
_MONTH_YEAR = re.compile(r"(\d{1,2})[-/.](\d{4})")
_NAMED_MONTH = re.compile(r"([a-z]{3,9})\.?,?\s*(\d{4})")
_QUARTER_YEAR = re.compile(r"q([1-4])[\s,/-]*(\d{4})")
_YEAR_QUARTER = re.compile(r"(\d{4})[\s/-]?q([1-4])")
_TIME = r"(?:[t ]\d{1,2}:\d{2}(?::\d{2}(?:\.\d+)?)?\s?(?:z|utc|[+-]\d{2}:?\d{2})?)?"
_YEAR_MONTH_DAY = re.compile(r"(\d{4})([-/])(\d{1,2})\2(\d{1,2})" + _TIME)
_TWO_AND_YEAR = re.compile(r"(\d{1,2})([/.-])(\d{1,2})\2(\d{4})" + _TIME)
_DAY_NAMED_MONTH = re.compile(r"(\d{1,2})\.?\s+([a-z]{3,9})\.?,?\s+(\d{4})")
_NAMED_MONTH_DAY = re.compile(r"([a-z]{3,9})\.?\s+(\d{1,2}),?\s+(\d{4})")
_EIGHT_DIGITS = re.compile(r"((?:19|20)\d{2})(\d{2})(\d{2})")
_LONG_NUMBER = re.compile(r"-?\d{5,}(?:\.\d*)?")
_LONGEST = 80  # characters of a date or a range
# Numbers with this many digits would be after the year 2286 as seconds, and within days of 1970 as microseconds.
_FEWEST_MILLISECONDS, _MOST_MILLISECONDS = 10**10, 10**13
_BETWEEN = re.compile(r"\s*(?:[-\u2010-\u2015~/]|\b(?:to|until|till|through)\b)\s*")
_AFTER_RANGE = re.compile(r"\s*(?:\([^()]*\)|[\u00b7\u2022|,].*)$")  # "(2 yrs 3 mos)", as some sites add
_BARE_MONTH = re.compile(r"(?:from\s+|since\s+)?([a-z]{3,9})\.?")
_BEFORE_START = re.compile(r"(?:from|since)\s+")
_YEAR_AT_END = re.compile(r"\b(\d{4})$")


class NotADateError(ValueError):
    """A text is not a date; the message says why."""


class AmbiguousDateError(NotADateError):
    """A text is a date in either order of month and day, and the order is unknown."""


def read_days(text: str, order: DateOrder | None = None) -> Days:
    """Return the first and the last day of a date of any precision.

    Args:
        text: text of the cell.
        order: order of day and month; None: unknown, so that an ambiguous date is an error.

    Raises:
        NotADateError: if the text is not a date in this order.
        AmbiguousDateError: if it is a date in both orders.
    """
    parsed = _read(text)
    if isinstance(parsed, tuple):
        return parsed
    year, one, two = parsed.year, parsed.one, parsed.two
    if order is None and is_settled_by_itself(text) is None and one != two:
        raise AmbiguousDateError(
            f"{text!r} can be month/day or day/month; write {year}-{one:02}-{two:02} or {year}-{two:02}-{one:02}, or "
            "set date_order=day_first or month_first"
        )
    first = order or is_settled_by_itself(text) or "day_first"
    day, month = (one, two) if first == "day_first" else (two, one)
    if order is not None and not 1 <= month <= 12:
        raise NotADateError(f"{text!r} has no month from 1 to 12 where {order} has it")
    return _day(text, year, month, day)


def is_settled_by_itself(text: str) -> DateOrder | None:
    """Return the only possible order of day and month of a date like 22-08-2015; None if both or none are possible."""
    try:
        parsed = _read(text)
    except NotADateError:
        return None
    if isinstance(parsed, tuple) or not (1 <= parsed.one <= 31 and 1 <= parsed.two <= 31):
        return None
    if parsed.one > 12 >= parsed.two:
        return "day_first"
    return "month_first" if parsed.two > 12 >= parsed.one else None


def is_ambiguous(text: str) -> bool:
    """Return whether a date is a different day in each order of day and month."""
    try:
        read_days(text)
    except AmbiguousDateError:
        return True
    except NotADateError:
        return False
    return False


def split_range(text: str, is_ongoing: Callable[[str], bool]) -> tuple[str, str] | None:
    """Split a text like "Nov 2018 - Present" into start and end; None if it is a single date or not a range.

    Args:
        text: text of the cell.
        is_ongoing: returns whether a text stands for an ongoing job, such as "Present".
    """
    text = text.strip()
    if len(text) > _LONGEST or _is_date(text):
        return None
    for candidate in dict.fromkeys((text, _AFTER_RANGE.sub("", text))):
        halves = {
            split
            for sign in _BETWEEN.finditer(candidate)
            if (split := _halves(candidate[: sign.start()], candidate[sign.end() :], is_ongoing)) is not None
        }
        if len(halves) == 1:
            return halves.pop()
    return None


def _halves(start: str, end: str, is_ongoing: Callable[[str], bool]) -> tuple[str, str] | None:
    """Return start and end if both are dates; in "May - Aug 2015" the start has the year of the end."""
    start, end = start.strip(), end.strip()
    if not (is_ongoing(end) or _is_date(end)):
        return None
    start = _BEFORE_START.sub("", start.lower()) if _BEFORE_START.match(start.lower()) else start
    month = _BARE_MONTH.fullmatch(start.lower())
    year = _YEAR_AT_END.search(end)
    if month is not None and month[1] in _MONTHS and year is not None:
        start = f"{start} {year[1]}"
    return (start, end) if _is_date(start) else None


def _is_date(text: str) -> bool:
    try:
        read_days(text)
    except AmbiguousDateError:
        return True
    except NotADateError:
        return False
    return True


class _TwoAndYear:
    """Two numbers, the day and the month in unknown order, and a year."""

    __slots__ = ("one", "two", "year")

    def __init__(self, one: int, two: int, year: int) -> None:
        self.one, self.two, self.year = one, two, year


@functools.lru_cache(maxsize=20_000)
def _read(text: str) -> Days | _TwoAndYear:
    """Return the days of a date, or its numbers if their order matters."""
    lower = text.strip().lower()
    if not lower.isascii() or len(text) > _LONGEST:
        raise _no_date(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}...")
    if (year := whole_number(lower)) is not None and 1000 <= year <= 9999:
        return _months(text, year, 1, 12)
    if match := _YEAR_MONTH.fullmatch(lower):
        written_year, month = match[1] or match[3], match[2] or match[4]
        return _months(text, int(written_year), int(month), int(month))
    if match := _MONTH_YEAR.fullmatch(lower):
        return _months(text, int(match[2]), int(match[1]), int(match[1]))
    if (match := _NAMED_MONTH.fullmatch(lower)) and (named := _MONTHS.get(match[1])):
        return _months(text, int(match[2]), named, named)
    if match := _QUARTER_YEAR.fullmatch(lower):
        return _months(text, int(match[2]), 3 * int(match[1]) - 2, 3 * int(match[1]))
    if match := _YEAR_QUARTER.fullmatch(lower):
        return _months(text, int(match[1]), 3 * int(match[2]) - 2, 3 * int(match[2]))
    if match := _YEAR_MONTH_DAY.fullmatch(lower):
        return _day(text, int(match[1]), int(match[3]), int(match[4]))
    if match := _TWO_AND_YEAR.fullmatch(lower):
        return _two_and_year(text, int(match[1]), int(match[3]), int(match[4]))
    if (match := _DAY_NAMED_MONTH.fullmatch(lower)) and (named := _MONTHS.get(match[2])):
        return _day(text, int(match[3]), named, int(match[1]))
    if (match := _NAMED_MONTH_DAY.fullmatch(lower)) and (named := _MONTHS.get(match[1])):
        return _day(text, int(match[3]), named, int(match[2]))
    if match := _EIGHT_DIGITS.fullmatch(lower):
        return _day(text, int(match[1]), int(match[2]), int(match[3]))
    return _day_of_milliseconds(text, lower)


def _day_of_milliseconds(text: str, lower: str) -> Days:
    number = whole_number(lower)
    if number is not None and _FEWEST_MILLISECONDS <= abs(number) < _MOST_MILLISECONDS:
        day = date(1970, 1, 1) + timedelta(milliseconds=number)
        _check_year(text, day.year)
        return day, day
    if _LONG_NUMBER.fullmatch(lower):
        raise NotADateError(
            f"{text!r} is a number, not a date; write dates as 2013-05-17, 2013-05 or 2013, or as the milliseconds "
            "from 1970 on"
        )
    raise _no_date(text)


def _no_date(text: str) -> NotADateError:
    return NotADateError(
        f"{text!r} is not a date; dates are written like 2013-05-17, 2013-05, 05/2013, May 2013, Q2 2013, 2013"
    )


def _months(text: str, year: int, first: int, last: int) -> Days:
    """Return the days of the months from `first` to `last`."""
    _check_year(text, year)
    if not 1 <= first <= last <= 12:
        raise NotADateError(f"{text!r} has no month from 1 to 12")
    return date(year, first, 1), date(year, last, calendar.monthrange(year, last)[1])


def _day(text: str, year: int, month: int, day: int) -> Days:
    _check_year(text, year)
    try:
        calendar_day = date(year, month, day)
    except ValueError:
        raise NotADateError(f"{text!r} is not a day of the calendar") from None
    return calendar_day, calendar_day


def _two_and_year(text: str, one: int, two: int, year: int) -> _TwoAndYear:
    _check_year(text, year)
    if not _is_day(year, one, two) and not _is_day(year, two, one):
        raise NotADateError(f"{text!r} is not a day of the calendar")
    return _TwoAndYear(one, two, year)


def _is_day(year: int, month: int, day: int) -> bool:
    return 1 <= month <= 12 and 1 <= day <= calendar.monthrange(year, month)[1]


def _check_year(text: str, year: int) -> None:
    if not EARLIEST_YEAR <= year <= LATEST_YEAR:
        raise NotADateError(f"{text!r} is not in a year from {EARLIEST_YEAR} to {LATEST_YEAR}")
