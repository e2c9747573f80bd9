"""Work in parts: every part once, what is there stays, what is damaged or does not add up is refused."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.errors import raises
from helpers.trained_runs import ONE_RANK, PARTED_KEYS, parted

from laborllm_dist.evaluation.resumable_parts import finish_parts, read_parts, remove_parts
from laborllm_dist.tables.parquet import with_checksum


def test_parts_are_made_once_and_come_back_in_order(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made: list[int] = []
    work = parted(tmp_path, made)
    finish_parts(work, ONE_RANK)
    (tmp_path / "parts/part-000001.parquet").unlink()
    finish_parts(work, ONE_RANK)
    assert made == [0, 1, 2, 1]
    assert "evaluate: 2 of 3 parts are there" in caplog.messages
    assert read_parts(work, PARTED_KEYS)["value"].to_pylist() == [0, 1, 100, 200, 201]
    remove_parts(work)
    assert list(tmp_path.iterdir()) == []


def test_parts_that_do_not_add_up_are_refused(tmp_path: Path) -> None:
    work = parted(tmp_path, [])
    finish_parts(work, ONE_RANK)
    doubled = tmp_path / "parts/part-000001.parquet"
    pq.write_table(with_checksum(pa.table({"career": [0], "position": [0], "value": [0]})), doubled)
    with raises("score-table/parts-of-other-observations", "5"):
        read_parts(work, PARTED_KEYS)
    doubled.write_bytes(b"PAR1")
    with raises("score-table/part-damaged", "part-000001.parquet"):
        read_parts(work, PARTED_KEYS)
