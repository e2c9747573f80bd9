"""Numbers in messages."""

from __future__ import annotations

import pytest

from laborllm_dist.io.number_format import (
    format_auc,
    format_decimals,
    format_nats,
    format_people,
    format_perplexity,
    format_probability,
    format_share,
    format_signed_auc,
    format_signed_perplexity,
)


def test_people_are_counted_with_the_right_verb() -> None:
    assert format_people(1, 20, "is longer", "are longer") == "1 of 20 people is longer"
    assert format_people(1200, 80000, "is", "are", people="people of this split") == (
        "1,200 of 80,000 people of this split are"
    )
    assert format_people(0, 1, "has", "have") == "0 of 1 people have"


@pytest.mark.parametrize("value", [-0.00004, -0.0, 0.0, 0.00004])
def test_what_rounds_to_zero_has_no_sign(value: float) -> None:
    assert format_perplexity(value) == format_signed_perplexity(value) == "0.000"
    assert format_auc(value) == format_signed_auc(value) == "0.000"
    assert format_nats(value) == "0.0000"
    assert format_decimals(value, 1) == "0.0"
    assert format_share(value) == "0.0\N{NO-BREAK SPACE}%"


def test_the_smallest_numbers_that_are_printed_keep_their_signs() -> None:
    assert [format_nats(value) for value in (-0.00006, 0.00006)] == ["\N{MINUS SIGN}0.0001", "+0.0001"]
    assert [format_signed_auc(value) for value in (-0.0006, 0.0006)] == ["\N{MINUS SIGN}0.001", "+0.001"]
    assert format_share(-0.0006) == "\N{MINUS SIGN}0.1\N{NO-BREAK SPACE}%"
    assert format_decimals(-10.04, 1) == "\N{MINUS SIGN}10.0"
    assert [format_probability(value) for value in (-0.0, -1e-9)] == ["0", "\N{MINUS SIGN}1e\N{MINUS SIGN}09"]
