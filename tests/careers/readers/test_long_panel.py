"""Panel files, good and broken: every problem has its file, line and column, and nothing is dropped silently."""

from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.errors import raises
from helpers.panels import panel, panel_of
from hypothesis import given, settings
from hypothesis import strategies as st

from laborllm_dist.careers.occupations.occ1990dd import occ1990dd_vocabulary
from laborllm_dist.careers.occupations.vocabulary import read_vocabulary
from laborllm_dist.careers.readers.long_panel import read_long_panel
from laborllm_dist.careers.readers.wage_panel import read_wage_panel
from laborllm_dist.careers.types import CareerHistory, Job
from laborllm_dist.config.corpora import LongPanelSettings
from laborllm_dist.errors import DataFileError

HEADER = "person,year,occupation,birth_year,gender,ethnicity,region,education"
GOOD = ["1,1984,a,1960,female,white,south,college", "1,1982,b,1960,female,white,west,high school", "2,1990,a,,,,,"]


def read(settings: LongPanelSettings) -> list[CareerHistory]:
    return list(read_long_panel(settings, survey="PANEL"))


EXPECTED = [
    CareerHistory(
        "1", "PANEL", 1960, "female", "white", "west", (Job(1982, "b", "high school"), Job(1984, "a", "college"))
    ),
    CareerHistory("2", "PANEL", None, None, None, None, (Job(1990, "a", None),)),
]


def test_a_panel_becomes_careers_in_order_of_year(tmp_path: Path) -> None:
    (tmp_path / "panel.csv").write_text("\n".join([HEADER, *GOOD]))
    assert read(panel(tmp_path)) == EXPECTED


def test_gzip_parquet_and_a_byte_order_mark_read_the_same(tmp_path: Path) -> None:
    text = "\n".join([HEADER, *GOOD]) + "\n"
    (tmp_path / "panel.csv.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + text.encode()))
    assert read(panel(tmp_path, "panel.csv.gz")) == EXPECTED
    cells = [line.split(",") for line in GOOD]
    columns = {name: [row[at] or None for row in cells] for at, name in enumerate(HEADER.split(","))}
    columns["year"] = [int(year) for year in columns["year"]]
    # As pandas writes numbers of a column that has gaps.
    columns["birth_year"] = [float("nan") if year is None else float(year) for year in columns["birth_year"]]
    pq.write_table(pa.table(columns), tmp_path / "panel.parquet")
    assert read(panel(tmp_path, "panel.parquet")) == EXPECTED


INVALID = "data-file/invalid-content"
BROKEN = {
    "missing column": ("person,year,job\n1,1984,a", INVALID, "line 1, column occupation: missing"),
    "column twice": (HEADER.replace("region", "year") + "\n", INVALID, "line 1, column year", "twice"),
    "doubled person-year": (
        "\n".join([HEADER, *GOOD, GOOD[0]]), INVALID, "line 5, column year: person '1'", "1984", "line 2",
    ),
    "year before birth": (f"{HEADER}\n1,1950,a,1960,,,,", INVALID, "line 2, column year: 1950", "birth", "1960"),
    "unknown code": (f"{HEADER}\n1,1984,z,1960,,,,", INVALID, "line 2, column occupation: code 'z'", "titles.csv"),
    "empty person": (f"{HEADER}\n,1984,a,1960,,,,", INVALID, "line 2, column person: empty"),
    "no year": (f"{HEADER}\n1,soon,a,1960,,,,", INVALID, "line 2, column year: 'soon'"),
    "changed birth year": (
        f"{HEADER}\n1,1984,a,1960,,,,\n1,1985,a,1961,,,,", INVALID, "line 3, column birth_year: '1961'", "'1960'",
    ),
    "too few values": (f"{HEADER}\n1,1984,a", INVALID, "line 2: 3 values", "8"),
    "line break in a value": (
        f'{HEADER}\n1,1984,a,1960,,,"so\nuth",', INVALID, "column region: 'so\\nuth'", "line break",
    ),
    "no rows": (HEADER + "\n", "data-file/no-rows", "panel.csv"),
    "open quote": (f'{HEADER}\n1,1984,"a,1960,,,,', INVALID, "line 2: not CSV"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_panel_is_refused_with_its_place(name: str, tmp_path: Path) -> None:
    text, label, *values = BROKEN[name]
    (tmp_path / "panel.csv").write_text(text)
    with raises(label, tmp_path / "panel.csv", *values):
        read(panel(tmp_path))


def test_bytes_that_are_no_text_are_refused_with_their_lines(tmp_path: Path) -> None:
    rows = [HEADER.encode(), b"1,1984,a,1960,fem\xe9le,,,", b"2,1984,a,1960,,,,", b"3,1984,\xff,1960,,,,"]
    (tmp_path / "panel.csv").write_bytes(b"\n".join(rows))
    with raises("data-file/invalid-content", "2 problems") as error:
        read(panel(tmp_path))
    assert "line 2: byte b'\\xe9' is not UTF-8" in str(error.value)
    assert "line 4: byte" in str(error.value)


def test_truncated_gzip_empty_and_missing_files_are_refused(tmp_path: Path) -> None:
    whole = gzip.compress(("\n".join([HEADER, *GOOD] * 50)).encode())
    (tmp_path / "panel.csv.gz").write_bytes(whole[: len(whole) // 2])
    with raises("data-file/damaged-gzip"):
        read(panel(tmp_path, "panel.csv.gz"))
    (tmp_path / "panel.csv").write_bytes(b"")
    with raises("data-file/empty-file"):
        read(panel(tmp_path))
    with raises("data-file/no-file", "nowhere.csv"):
        read(panel(tmp_path, "nowhere.csv"))
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not really")
    with raises("data-file/damaged-parquet-file"):
        read(panel(tmp_path, "bad.parquet"))


def test_all_problems_are_counted_and_ten_are_shown(tmp_path: Path) -> None:
    (tmp_path / "panel.csv").write_text("\n".join([HEADER, *(f"{person},1984,z,1960,,,," for person in range(37))]))
    with raises("data-file/invalid-content", "37 problems, the first 10 of them") as error:
        read(panel(tmp_path))
    assert len(str(error.value).splitlines()) == 11


@settings(max_examples=300, deadline=None)
@given(
    damage=st.lists(st.tuples(st.integers(0, 10_000), st.binary(max_size=3)), min_size=1, max_size=5),
    cut=st.integers(0, 400),
)
def test_any_damage_is_read_or_refused_never_a_traceback(tmp_path_factory, damage, cut: int) -> None:
    folder = tmp_path_factory.mktemp("damage")
    content = bytearray("\n".join([HEADER, *GOOD]).encode())
    for place, replacement in damage:
        at = place % len(content)
        content[at : at + len(replacement)] = replacement
    (folder / "panel.csv").write_bytes(content[: max(1, len(content) - cut)])
    try:
        careers = read(panel(folder))
    except DataFileError as error:
        assert str(folder / "panel.csv") in str(error)
    else:
        assert all(career.jobs for career in careers)


UNREADABLE = "vocabulary/unreadable-vocabulary-file"
VOCABULARIES = {
    "code,title\na,Cooks\nb,\n,Bakers\n": (
        UNREADABLE, "2 problems:\n  line 3, column title: empty\n  line 4, column code: empty",
    ),
    "code,title\na,Cooks\na,Bakers\n": (UNREADABLE, "line 3, column code: 'a'", "line 2"),
    "code,title\na,Cooks\nb,Cooks\n": (UNREADABLE, "line 3, column title: 'Cooks'", "line 2"),
    'code,title\na,"Co\noks"\nb,\n': (
        UNREADABLE, "line 3, column title: 'Co\\noks'", "line break", "\n  line 4, column title",
    ),
    "code,name\na,Cooks\n": (UNREADABLE, "line 1, column title: missing", "code, name"),
    "code,title\na\n": (UNREADABLE, "line 2: 1 values", "2"),
    "code,title\n": ("vocabulary/invalid-vocabulary-file", "titles.csv"),
    "": (UNREADABLE, "titles.csv", "empty"),
}  # fmt: skip


@pytest.mark.parametrize("text", VOCABULARIES)
def test_a_bad_list_of_occupations_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "titles.csv").write_text(text)
    with raises(*VOCABULARIES[text]):
        read_vocabulary(tmp_path / "titles.csv")


def test_a_panel_through_all_occupations_reads_whole(tmp_path: Path) -> None:
    """In the order of columns, and with the codes, that files of the NLSY97 have."""
    codes = occ1990dd_vocabulary().codes
    rows = [
        f"{1 + at // 25},{1997 + at % 25},female,white,1981,northeast,high school,{code}"
        for at, code in enumerate(codes)
    ]
    header = "person,year,gender,ethnicity,birth_year,region,education,occupation"
    with gzip.open(tmp_path / "careers.csv.gz", "wt") as file:
        file.write("\n".join([header, *rows, ""]))
    careers = read(panel_of(tmp_path / "careers.csv.gz", "builtin:occ1990dd"))
    assert [len(career.jobs) for career in careers] == [25] * 13 + [9]  # 334 years
    assert [job.occupation for career in careers for job in career.jobs] == list(codes)


def test_the_real_nlsy97_panel_reads_whole(nlsy97_dev: Path) -> None:
    careers = read(panel_of(nlsy97_dev, "builtin:occ1990dd"))
    assert len(careers) == 7134
    assert sum(len(career.jobs) for career in careers) == 159_222
    assert len({job.occupation for career in careers for job in career.jobs}) == 324


def test_the_wage_panel_is_545_men_over_eight_years() -> None:
    careers = list(read_wage_panel(survey="NLSY79"))
    assert len(careers) == 545
    assert {len(career.jobs) for career in careers} == {8}
    moves = sum(a.occupation != b.occupation for c in careers for a, b in zip(c.jobs, c.jobs[1:], strict=False))
    assert moves == 1613
    # Person 13: experience 1 in 1980 with 14 years of school, so born in 1980 - 1 - 14 - 6.
    assert careers[0].person == "13"
    assert careers[0].birth_year == 1959
