"""Format numbers of any size for people to read; NaN and infinities become words."""

from __future__ import annotations

import math
from collections.abc import Callable

MINUS = "\N{MINUS SIGN}"
ABSENT = "\N{EN DASH}"
LARGE = 1e6  # from here on two digits and a power of ten


def word_for(value: float) -> str | None:
    """Return the words for NaN or an infinity; None for a finite number."""
    if math.isfinite(value):
        return None
    return "not defined" if math.isnan(value) else "too large" if value > 0 else "too far below 0"


def format_decimals(value: float, decimals: int) -> str:
    """Format with decimals, commas between thousands and a minus sign: 8.184; from a million on 2.7e11; or words."""
    if (word := word_for(value)) is not None:
        return word
    if abs(value) < LARGE:
        return _with_minus(f"{value:,.{decimals}f}")
    digits, exponent = f"{value:.1e}".split("e")
    return f"{_with_minus(digits)}e{int(exponent)}"


def _with_minus(text: str) -> str:
    """Return a printed number with a minus sign in place of the hyphen, and none before a number that rounds to 0."""
    return text.replace("-", MINUS if any(digit in text for digit in "123456789") else "")


def format_perplexity(value: float) -> str:
    """Format with three decimals, as papers of this field do, and with none from 1,000 on: 8.184, 364.655, 12,345."""
    return format_decimals(value, 3 if abs(value) < 1_000 else 0)


def format_signed_perplexity(value: float) -> str:
    """Format a difference of perplexities with its sign: +0.412, 0.000."""
    return _signed(value, format_perplexity(value))


def format_nats(value: float) -> str:
    """Format with four decimals and the sign: +0.0123."""
    return _signed(value, format_decimals(value, 4))


def _signed(value: float, text: str) -> str:
    return f"+{text}" if value > 0 and any(digit in text for digit in "123456789") else text


def format_auc(value: float) -> str:
    """Format an area under a ROC curve, a mean reciprocal rank or a calibration error: 0.754."""
    return format_decimals(value, 3)


def format_signed_auc(value: float) -> str:
    """Format a difference of such numbers with its sign: +0.012."""
    return _signed(value, format_auc(value))


def format_share(share: float) -> str:
    """Format a share as a percentage with one decimal and a no-break space: 97.5 %."""
    return word_for(share) or f"{format_decimals(100 * share, 1)}\N{NO-BREAK SPACE}%"


def format_probability(value: float) -> str:
    """Format a small probability with two digits: 0.00098; tiny ones as a power of ten: 3.1e-07."""
    return word_for(value) or (f"{value:.2g}".replace("-", MINUS) if value else "0")  # its digits never round to 0


def format_interval(low: float | None, high: float | None, format_number: Callable[[float], str]) -> str:
    """Return '8.01 to 8.36', or a dash if there is no interval."""
    return ABSENT if low is None or high is None else f"{format_number(low)} to {format_number(high)}"


def format_count(count: int) -> str:
    """Format 12345 as '12,345'."""
    return f"{count:,}"


def format_people(number: int, total: int, one: str, many: str, *, people: str = "people") -> str:
    """Return '1 of 20 people is longer' or '1,200 of 80,000 people are longer', by the verbs `one` and `many`."""
    return f"{number:,} of {total:,} {people} {one if number == 1 else many}"
