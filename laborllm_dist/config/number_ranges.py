"""Ranges of numbers: every number in the settings has its range in its type.

    epochs: Annotated[int, within(1, 100_000)]

Pydantic rejects numbers outside when settings are composed, before any file is read or written. Upper bounds are far
above sensible values, but low enough to prevent a hang or running out of memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

MOST_SHOWN_DIGITS = 15  # of a whole number in a range; a longer one is shown as a power of ten


@dataclass(frozen=True, slots=True)
class NumberRange:
    """The numbers from `least` to `most`; an end is excluded if its `has_` flag is False.

    Messages show `reason`, why the range is limited, and `noun`, the kind of number; None: number.
    """

    least: float
    most: float
    has_least: bool = True
    has_most: bool = True
    reason: str = ""
    noun: str | None = None

    def __contains__(self, value: float) -> bool:
        """Return whether a number is in the range; NaN is in no range."""
        is_above = value >= self.least if self.has_least else value > self.least
        return is_above and (value <= self.most if self.has_most else value < self.most)

    def __get_pydantic_core_schema__(self, source: type, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Return the schema of these numbers; its error message is the range in words."""
        ends = {
            "ge" if self.has_least else "gt": source(self.least),
            "le" if self.has_most else "lt": source(self.most),
        }
        schema = (
            core_schema.int_schema(strict=True, **ends)
            if source is int
            else core_schema.float_schema(strict=True, allow_inf_nan=False, **ends)
        )
        return core_schema.custom_error_schema(
            schema, custom_error_type="range", custom_error_message=self.describe(is_whole=source is int)
        )

    def describe(self, *, is_whole: bool) -> str:
        """Return the range in words, such as `a whole number from 1 to 10,000` or `a year from 1850 to 2100`."""
        if self.noun is not None:
            return f"a {self.noun} from {self.least:g} to {self.most:g}"
        least = f"{'from' if self.has_least else 'above'} {_shown(self.least)}"
        words = ("to", "to below") if self.has_least else ("and at most", "and below")
        most = f"{words[0] if self.has_most else words[1]} {_shown(self.most)}"
        reason = f" ({self.reason})" if self.reason else ""
        return f"a {'whole number' if is_whole else 'number'} {least} {most}{reason}"


def within(least: float, most: float, reason: str = "") -> NumberRange:
    """Return the range from `least` to `most`, both included."""
    return NumberRange(least, most, reason=reason)


def above(least: float, most: float, reason: str = "") -> NumberRange:
    """Return the range of numbers above `least`, up to `most`."""
    return NumberRange(least, most, has_least=False, reason=reason)


def below(least: float, most: float, reason: str = "") -> NumberRange:
    """Return the range from `least` to below `most`."""
    return NumberRange(least, most, has_most=False, reason=reason)


def between(least: float, most: float, reason: str = "") -> NumberRange:
    """Return the range of numbers above `least` and below `most`."""
    return NumberRange(least, most, has_least=False, has_most=False, reason=reason)


def _shown(number: float) -> str:
    if math.isfinite(number) and number == int(number) and abs(number) < 10**MOST_SHOWN_DIGITS:
        return f"{int(number):,}"
    return f"{number:g}"


# All seeds have the range of an unsigned 32-bit integer.
Seed = Annotated[int, within(0, 2**32 - 1)]
Share = Annotated[float, within(0, 1)]
Mass = Annotated[float, below(0, 1)]  # probability that may remain unscored
Tokens = Annotated[int, within(1, 10_000_000)]  # length of a text, a row or a context
Rows = Annotated[int, within(1, 100_000)]  # rows of one forward pass
People = Annotated[int, within(1, 1_000_000_000)]
Steps = Annotated[int, within(1, 1_000_000_000)]  # training steps
Threads = Annotated[int, within(1, 1024)]
Samples = Annotated[int, within(0, 10_000)]
Examples = Annotated[int, within(0, 10_000)]
Speed = Annotated[float, above(0, 1e9)]  # TFLOP/s, or gigabytes per second
MemoryGib = Annotated[float, above(0, 1e7)]
Minutes = Annotated[float, within(0, 1e7)]
Microseconds = Annotated[float, within(0, 1e9)]
