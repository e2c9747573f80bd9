"""Which numbers a setting may have: every number in the settings states its range in its type.

    epochs: Annotated[int, within(1, 100_000)]

Pydantic refuses what lies outside, when settings are composed and before anything is read or written. An upper bound is
far above what is sensible, and below what would hang, or fill a memory.
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
    """The numbers from `least` to `most`, without the ends that are open.

    `reason` is why, and `noun` what they are, for messages; None: numbers.
    """

    least: float
    most: float
    has_least: bool = True
    has_most: bool = True
    reason: str = ""
    noun: str | None = None

    def __contains__(self, value: float) -> bool:
        """Return whether a number lies in the range; NaN lies in none."""
        is_above = value >= self.least if self.has_least else value > self.least
        return is_above and (value <= self.most if self.has_most else value < self.most)

    def __get_pydantic_core_schema__(self, source: type, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Return the schema of these numbers; what is none of them is refused with the range in words."""
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
    """Return the range from `least` to `most`, both among it."""
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


# Everything that is drawn is drawn by a seed: one range for all, that of an unsigned number of 32 bits.
Seed = Annotated[int, within(0, 2**32 - 1)]
Share = Annotated[float, within(0, 1)]
Mass = Annotated[float, below(0, 1)]  # probability that need not be looked at
Tokens = Annotated[int, within(1, 10_000_000)]  # of a text, a row or a context
Rows = Annotated[int, within(1, 100_000)]  # that are forwarded at once
People = Annotated[int, within(1, 1_000_000_000)]
Steps = Annotated[int, within(1, 1_000_000_000)]  # of a training
Threads = Annotated[int, within(1, 1024)]
Samples = Annotated[int, within(0, 10_000)]
Examples = Annotated[int, within(0, 10_000)]
Speed = Annotated[float, above(0, 1e9)]  # TFLOP/s, or gigabytes a second
MemoryGib = Annotated[float, above(0, 1e7)]
