"""Groups by length of history, by hand."""

from __future__ import annotations

import pyarrow as pa

from laborllm_dist.report.groupings import list_groupings
from laborllm_dist.tables.scores import SCORE_SCHEMA

FACTS = pa.schema([field for field in SCORE_SCHEMA if field.name not in ("num_tokens", "title", "terminated")])


def test_observations_are_grouped_by_the_number_of_earlier_ones() -> None:
    positions = [0, 1, 2, 3, 4, 5, 9, 10, 19, 20, 57]
    rows = [
        {
            "survey": "S",
            "person": "1",
            "position": at,
            "year": 1990 + at,
            "occupation": "a",
            "previous": "a" if at else None,
        }
        for at in positions
    ]
    (history,) = (
        grouping for grouping in list_groupings(pa.Table.from_pylist(rows, schema=FACTS)) if grouping.name == "history"
    )
    labels = [history.labels[group] for group in history.group_of_row]
    expected = [
        "0",
        "1",
        "2",
        "3 to 4",
        "3 to 4",
        "5 to 9",
        "5 to 9",
        "10 to 19",
        "10 to 19",
        "20 or more",
        "20 or more",
    ]
    assert labels == expected
    assert history.labels == ("0", "1", "2", "3 to 4", "5 to 9", "10 to 19", "20 or more")
