"""Write a number for people to read, whatever its size; what is no finite number is a word."""

from __future__ import annotations

import math

MINUS = "\N{MINUS SIGN}"
LARGE = 1e6  # from here on two digits and a power of ten say more than a row of digits


def word_for(value: float) -> str | None:
    """Return the words for what is no finite number; None for a finite one."""
    if math.isfinite(value):
        return None
    return "not defined" if math.isnan(value) else "too large" if value > 0 else "too far below 0"


def format_decimals(value: float, decimals: int) -> str:
    """Give decimals, a comma between thousands and a proper minus: 8.184; from a million on 2.7e11; or words."""
    if (word := word_for(value)) is not None:
        return word
    if abs(value) < LARGE:
        return f"{value:,.{decimals}f}".replace("-", MINUS)
    digits, exponent = f"{value:.1e}".split("e")
    return f"{digits.replace('-', MINUS)}e{int(exponent)}"


def format_perplexity(value: float) -> str:
    """Give three decimals, as the papers of this field do, and none where they say nothing: 8.184, 364.655, 12,345."""
    return format_decimals(value, 3 if abs(value) < 1_000 else 0)


def format_people(number: int, total: int, one: str, many: str, *, people: str = "people") -> str:
    """Give '1 of 20 people is longer' or '1,200 of 80,000 people are longer', by the verbs `one` and `many`."""
    return f"{number:,} of {total:,} {people} {one if number == 1 else many}"
