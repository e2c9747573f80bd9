"""Numbers in messages."""

from __future__ import annotations

from laborllm_dist.io.number_format import format_people


def test_people_are_counted_with_the_right_verb() -> None:
    assert format_people(1, 20, "is longer", "are longer") == "1 of 20 people is longer"
    assert format_people(1200, 80000, "is", "are", people="people of this split") == (
        "1,200 of 80,000 people of this split are"
    )
    assert format_people(0, 1, "has", "have") == "0 of 1 people have"
