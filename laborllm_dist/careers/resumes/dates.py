"""Read one cell of a resume as the first and the last day that it can mean.

2013, 2013.0             the year
2013-05, 2013/05, 2013.05, 05/2013, 05-2013, 05.2013, May 2013, May, 2013      the month
Q2 2013, 2013-Q2, 2013Q2                            the quarter
2013-05-17, 2013/05/17, 2013-05-17T08:30:00, 20130517, 17 May 2013, May 17, 2013         the day
05/17/2013, 17/05/2013, 17.05.2013   the day, where only one order of month and day is a date
"""

from __future__ import annotations

import calendar
import functools
import re
from datetime import date

from laborllm_dist.corpus_settings import EARLIEST_YEAR, LATEST_YEAR

Days = tuple[date, date]

_MONTHS = {name.lower(): number for number, name in enumerate(calendar.month_name) if name}
_MONTHS |= {name[:3]: number for name, number in _MONTHS.items()} | {"sept": 9}
_YEAR = re.compile(r"(\d{4})(?:\.0)?")
_YEAR_MONTH = re.compile(r"(\d{4})[-/](\d{1,2})|(\d{4})\.(\d{2})")
_MONTH_YEAR = re.compile(r"(\d{1,2})[-/.](\d{4})")
_NAMED_MONTH = re.compile(r"([a-z]{3,9})\.?,?\s*(\d{4})")
_QUARTER_YEAR = re.compile(r"q([1-4])[\s,/-]*(\d{4})")
_YEAR_QUARTER = re.compile(r"(\d{4})[\s/-]?q([1-4])")
_TIME = r"(?:[t ]\d{1,2}:\d{2}(?::\d{2}(?:\.\d+)?)?\s?(?:z|utc|[+-]\d{2}:?\d{2})?)?"
_YEAR_MONTH_DAY = re.compile(r"(\d{4})([-/])(\d{1,2})\2(\d{1,2})" + _TIME)
_TWO_AND_YEAR = re.compile(r"(\d{1,2})([/.-])(\d{1,2})\2(\d{4})")
_DAY_NAMED_MONTH = re.compile(r"(\d{1,2})\.?\s+([a-z]{3,9})\.?,?\s+(\d{4})")
_NAMED_MONTH_DAY = re.compile(r"([a-z]{3,9})\.?\s+(\d{1,2}),?\s+(\d{4})")
_EIGHT_DIGITS = re.compile(r"((?:19|20)\d{2})(\d{2})(\d{2})")
_LONG_NUMBER = re.compile(r"-?\d{5,}(?:\.\d*)?")


class NotADate(ValueError):
    """Raised where a text is no date; its own text says why."""


@functools.lru_cache(maxsize=20_000)
def read_days(text: str) -> Days:
    """Return the first and the last day of a date of whatever precision.

    Raises:
        NotADate: if the text is no date, or one that can be read in two ways.
    """
    lower = text.strip().lower()
    if found := _YEAR.fullmatch(lower):
        return _months(text, int(found[1]), 1, 12)
    if found := _YEAR_MONTH.fullmatch(lower):
        year, month = found[1] or found[3], found[2] or found[4]
        return _months(text, int(year), int(month), int(month))
    if found := _MONTH_YEAR.fullmatch(lower):
        return _months(text, int(found[2]), int(found[1]), int(found[1]))
    if (found := _NAMED_MONTH.fullmatch(lower)) and (month := _MONTHS.get(found[1])):
        return _months(text, int(found[2]), month, month)
    if found := _QUARTER_YEAR.fullmatch(lower):
        return _months(text, int(found[2]), 3 * int(found[1]) - 2, 3 * int(found[1]))
    if found := _YEAR_QUARTER.fullmatch(lower):
        return _months(text, int(found[1]), 3 * int(found[2]) - 2, 3 * int(found[2]))
    if found := _YEAR_MONTH_DAY.fullmatch(lower):
        return _day(text, int(found[1]), int(found[3]), int(found[4]))
    if found := _TWO_AND_YEAR.fullmatch(lower):
        return _day_in_either_order(text, int(found[4]), int(found[1]), int(found[3]))
    if (found := _DAY_NAMED_MONTH.fullmatch(lower)) and (month := _MONTHS.get(found[2])):
        return _day(text, int(found[3]), month, int(found[1]))
    if (found := _NAMED_MONTH_DAY.fullmatch(lower)) and (month := _MONTHS.get(found[1])):
        return _day(text, int(found[3]), month, int(found[2]))
    if found := _EIGHT_DIGITS.fullmatch(lower):
        return _day(text, int(found[1]), int(found[2]), int(found[3]))
    if _LONG_NUMBER.fullmatch(lower):
        raise NotADate(f"{text!r} is a number, not a date; write dates as 2013-05-17, 2013-05 or 2013")
    raise NotADate(
        f"{text!r} is not a date; dates are written like 2013-05-17, 2013-05, 05/2013, May 2013, Q2 2013, 2013"
    )


def _months(text: str, year: int, first: int, last: int) -> Days:
    """Return the days of the months from `first` to `last`."""
    _check_year(text, year)
    if not 1 <= first <= last <= 12:
        raise NotADate(f"{text!r} has no month from 1 to 12")
    return date(year, first, 1), date(year, last, calendar.monthrange(year, last)[1])


def _day(text: str, year: int, month: int, day: int) -> Days:
    _check_year(text, year)
    try:
        found = date(year, month, day)
    except ValueError:
        raise NotADate(f"{text!r} is not a day of the calendar") from None
    return found, found


def _day_in_either_order(text: str, year: int, one: int, two: int) -> Days:
    if one <= 12 and two <= 12 and one != two:
        raise NotADate(
            f"{text!r} can be month/day or day/month; write {year}-{one:02}-{two:02} or {year}-{two:02}-{one:02}"
        )
    month, day = (one, two) if one <= 12 else (two, one)
    return _day(text, year, month, day)


def _check_year(text: str, year: int) -> None:
    if not EARLIEST_YEAR <= year <= LATEST_YEAR:
        raise NotADate(f"{text!r} is not in a year from {EARLIEST_YEAR} to {LATEST_YEAR}")
