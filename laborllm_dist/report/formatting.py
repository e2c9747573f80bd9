"""Write numbers as a reader wants them: enough digits to compare, no more, with a proper minus and an en dash.

Full precision is in summary.json; what these functions give is for eyes only.
"""

from __future__ import annotations

from laborllm_dist.io.number_format import MINUS, format_decimals, format_perplexity, word_for
from laborllm_dist.report.bootstrap import Estimate

ABSENT = "\N{EN DASH}"


def format_count(count: int) -> str:
    """Give 12345 as '12,345'."""
    return f"{count:,}"


def format_signed_perplexity(value: float) -> str:
    """Give a difference of perplexities with its sign: +0.412, 0.000."""
    return _signed(value, format_perplexity(value))


def format_nats(value: float) -> str:
    """Give four decimals and the sign: +0.0123."""
    return _signed(value, format_decimals(value, 4))


def _signed(value: float, text: str) -> str:
    return f"+{text}" if value > 0 and word_for(value) is None else text


def format_share(share: float) -> str:
    """Give a share as a percentage with one decimal: 97.5 %; the space does not break."""
    return word_for(share) or f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


def format_share_interval(numbers: Estimate) -> str:
    """Give '95.1 % to 96.0 %', or a dash where there is no interval."""
    if numbers.low is None or numbers.high is None:
        return ABSENT
    return f"{format_share(numbers.low)} to {format_share(numbers.high)}"


def format_probability(value: float) -> str:
    """Give a small probability with two digits: 0.00098, 0.0; tiny ones as a power of ten: 3.1e-07."""
    return word_for(value) or (f"{value:.2g}".replace("-", MINUS) if value else "0")


def format_perplexity_interval(numbers: Estimate) -> str:
    """Give '8.01 to 8.36', or a dash where there is no interval."""
    if numbers.low is None or numbers.high is None:
        return ABSENT
    return f"{format_perplexity(numbers.low)} to {format_perplexity(numbers.high)}"


def format_signed_perplexity_interval(numbers: Estimate) -> str:
    """Give '-0.51 to +0.02', or a dash where there is no interval."""
    if numbers.low is None or numbers.high is None:
        return ABSENT
    return f"{format_signed_perplexity(numbers.low)} to {format_signed_perplexity(numbers.high)}"


def format_nats_interval(numbers: Estimate) -> str:
    """Give '+0.0101 to +0.0145', or a dash where there is no interval."""
    if numbers.low is None or numbers.high is None:
        return ABSENT
    return f"{format_nats(numbers.low)} to {format_nats(numbers.high)}"
