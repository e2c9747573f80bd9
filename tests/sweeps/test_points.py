"""The table of a sweep's points: what is written is read again, and what is wrong is one line."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from helpers.errors import raises

from laborllm_dist.sweeps.points import SweepPoint, read_points, write_points

POINT = SweepPoint(
    run="runs/a, b", size="1m", num_params=1_234_567, num_non_embedding_params=1_000_001, num_people=700,
    num_observations=9_007_199_254_740_993, num_tokens=81_000, epochs=3.5, flops=1.25e15, seed=7,
    sources="PSID81+NLSY79", pretrained="Llama-2-7b",
)  # fmt: skip
HEADER = "size,num_params,num_non_embedding_params,num_observations,nats_per_observation,extra"


def written(tmp_path: Path, *rows: str, header: str = HEADER) -> Path:
    path = tmp_path / "own.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8-sig")  # as Excel writes it
    return path


def test_points_are_read_as_they_were_written(tmp_path: Path) -> None:
    scratch = SweepPoint(run="runs/c", size="2m", num_params=2, num_non_embedding_params=1, num_observations=5)
    path = tmp_path / "sweep" / "points.csv"
    write_points([POINT, scratch], path)
    assert read_points(path) == (POINT, scratch)
    with path.open() as file:  # by the standard library alone
        first = next(csv.DictReader(file))
    assert first["run"] == "runs/a, b"
    assert first["flops"] == "1250000000000000.0"
    assert first["nats_per_observation"] == ""
    assert list(path.parent.iterdir()) == [path]


def test_a_file_of_a_users_own_needs_five_columns(tmp_path: Path) -> None:
    (point,) = read_points(written(tmp_path, "small,2e6,1500000,30000,2.25,ignored"))
    assert point == SweepPoint(
        size="small", num_params=2_000_000, num_non_embedding_params=1_500_000, num_observations=30_000,
        nats_per_observation=2.25,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("label", "values", "header", "rows"),
    [
        ("data-file/no-points", ["own.csv"], HEADER, []),
        ("data-file/points-without-column", ["num_observations"], "size,num_params,num_non_embedding_params", ["a,1,1"]),
        ("data-file/invalid-points-cell", ["row 2", "num_params", "'-3'"], HEADER, ["a,1,1,1,2,", "a,-3,1,1,2,"]),
        ("data-file/invalid-points-cell", ["num_params", "'1.5'"], HEADER, ["a,1.5,1,1,2,"]),
        ("data-file/invalid-points-cell", ["nats_per_observation", "nan"], HEADER, ["a,1,1,1,nan,"]),
        ("data-file/invalid-points-cell", ["size", "''"], HEADER, [",1,1,1,2,"]),
        ("data-file/point-without-loss", ["row 1"], HEADER, ["a,1,1,1,,"]),
        ("data-file/points-row-of-another-length", ["row 1", "7", "6"], HEADER, ["a,1,1,1,2,x,y"]),
        ("data-file/points-row-of-another-length", ["row 1", "2", "6"], HEADER, ["a,1"]),
        ("data-file/invalid-points-cell", ["num_params", "'1_0'"], HEADER, ["a,1_0,1,1,2,"]),
        ("data-file/invalid-points-cell", ["num_params", "'\u0663'"], HEADER, ["a,\u0663,1,1,2,"]),
        ("data-file/invalid-points-cell", ["size", r"'a\x1b[31m'"], HEADER, ["a\x1b[31m,1,1,1,2,"]),
        ("data-file/invalid-content", ["num_params: this column appears twice"], f"{HEADER},num_params", ["a,1,1,1,2,,3"]),
        ("data-file/wrong-column-separator", ["semicolons"], HEADER.replace(",", ";"), ["a;1;1;1;2;"]),
        ("data-file/invalid-content", ["line 2: holds a NUL byte"], HEADER, ["a\0,1,1,1,2,"]),
        ("data-file/points-with-and-without-loss", ["1 of 2"], f"{HEADER},run", ["a,1,1,1,2,,r", "a,1,1,1,,,r"]),
    ],
)  # fmt: skip
def test_what_is_no_point_is_refused(
    tmp_path: Path, label: str, values: list[str], header: str, rows: list[str]
) -> None:
    with raises(label, *values):
        read_points(written(tmp_path, *rows, header=header))


def test_a_file_that_is_missing_or_no_text_is_refused(tmp_path: Path) -> None:
    with raises("data-file/no-points-file", "none.csv", "launch/sweep.py"):
        read_points(tmp_path / "none.csv")
    (tmp_path / "binary.csv").write_bytes(b"size\xff\xfe\n")
    with raises("data-file/invalid-content", "binary.csv", "is not UTF-8"):
        read_points(tmp_path / "binary.csv")
