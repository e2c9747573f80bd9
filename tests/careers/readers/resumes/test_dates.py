"""Dates of resumes as people have them: either order of day and month, ranges, objects, milliseconds, and broken ones."""

from __future__ import annotations

import dataclasses
import json
from datetime import date, datetime, timezone
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.errors import raises
from helpers.resumes import coded, job, read, rows_of
from hypothesis import given
from hypothesis import strategies as st

from laborllm_dist.careers.person_records import Exclusion, PersonRecord
from laborllm_dist.careers.readers.cells import date_text
from laborllm_dist.careers.readers.resumes.dates import (
    AmbiguousDateError,
    NotADateError,
    is_settled_by_itself,
    read_days,
    split_range,
)
from laborllm_dist.config.corpora import ResumeSettings

DAY = {"day": date(2017, 6, 3), "month": date(2017, 3, 6)}


def days_of(person: PersonRecord) -> dict[int, str]:
    assert person.career is not None
    return {each.year: each.occupation for each in person.career.jobs}


@pytest.mark.parametrize("sign", ["-", "/", "."])
def test_the_order_of_day_and_month_is_a_setting(sign: str) -> None:
    text = f"03{sign}06{sign}2017"
    assert read_days(text, "day_first") == (DAY["day"], DAY["day"])
    assert read_days(text, "month_first") == (DAY["month"], DAY["month"])
    with pytest.raises(
        AmbiguousDateError, match=r"can be month/day or day/month; write 2017-03-06 or 2017-06-03, or set"
    ):
        read_days(text)
    assert read_days(f"22{sign}08{sign}2015") == read_days(f"22{sign}08{sign}2015", "day_first")
    with pytest.raises(NotADateError, match=r"has no month from 1 to 12 where month_first has it"):
        read_days(f"22{sign}08{sign}2015", "month_first")
    assert read_days(f"05{sign}05{sign}2015") == (date(2015, 5, 5),) * 2


@given(st.dates(date(1850, 1, 1), date(2100, 12, 31)))
def test_a_date_settles_the_order_exactly_where_its_day_is_above_12(day: date) -> None:
    day_first, month_first = f"{day.day}/{day.month}/{day.year}", f"{day.month}/{day.day}/{day.year}"
    assert read_days(day_first, "day_first") == read_days(month_first, "month_first") == (day, day)
    assert is_settled_by_itself(day_first) == ("day_first" if day.day > 12 else None)
    assert is_settled_by_itself(month_first) == ("month_first" if day.day > 12 else None)


def test_other_rows_of_the_file_settle_the_order(tmp_path: Path) -> None:
    # 03-06-2017 is in June: of 2017, code 1 has 153 days up to June 2, code 2 has 212.
    rows = [job("a", "1", "01-01-2017", "02-06-2017"), job("a", "2", "03-06-2017", "22-08-2018")]
    path = tmp_path / "r.jsonl"
    path.write_text(rows_of(*rows))
    (person,) = read(coded(path))
    assert days_of(person) == {2017: "2", 2018: "2"}
    settled = "date whose day and month could be exchanged, read with the day first, as other dates settle it"
    assert person.changes == (settled,) * 2  # 01-01-2017 is one day in either order
    # The same with the month first: the second job begins on March 6.
    path.write_text(rows_of(job("a", "1", "01-01-2017", "03-05-2017"), job("a", "2", "03-06-2017", "08-22-2018")))
    (person,) = read(coded(path))
    assert days_of(person) == {2017: "2", 2018: "2"}
    assert person.changes == (settled.replace("day first", "month first"),) * 2
    path.write_text(rows_of(job("a", "1", "01-01-2017", "02-06-2017")))
    with raises(
        "data-file/invalid-content", "line 1, column end: '02-06-2017' can be", "nothing in the files settles wh"
    ):
        read(coded(path))
    (person,) = read(coded(path, date_order="day_first"))
    assert person.changes == ()
    path.write_text(rows_of(*rows, job("b", "1", "2-6-2017", "03-13-2017")))
    with raises("data-file/invalid-content", "3 problems", "the files have dates of both orders"):
        read(coded(path))


def test_each_file_of_a_folder_settles_its_own_order_and_helps_the_others(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    folder.mkdir()
    (folder / "1.jsonl").write_text(rows_of(job("a", "1", "03-06-2016", "22-08-2018")))
    (folder / "2.jsonl").write_text(rows_of(job("b", "1", "01-12-2016", "02-01-2017")))
    a, b = read(coded(folder))
    assert days_of(a) == dict.fromkeys((2016, 2017, 2018), "1")
    assert days_of(b) == dict.fromkeys((2016, 2017), "1")  # December 2016 to January 2017
    (folder / "2.jsonl").write_text(
        rows_of(job("b", "1", "12-01-2016", "01-31-2017"), job("c", "1", "02-01-2017", "2018"))
    )
    _, b, c = read(coded(folder))
    assert days_of(b) == dict.fromkeys((2016, 2017), "1")
    assert c.changes == (
        "date whose day and month could be exchanged, read with the month first, as other dates settle it",
    )


def test_a_range_in_one_cell_settles_the_order_too(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(
        rows_of(job("a", "1", "03-06-2017 - 22-08-2018", None), job("a", "2", "04-06-2016 to 05-06-2016", None))
    )
    (person,) = read(coded(path))
    assert days_of(person) == {2016: "2", 2017: "1", 2018: "1"}


RANGES = {
    "Nov 2018 - Present": ("Nov 2018", "Present"),
    "Nov 2018 \u2013 Present (2 yrs 3 mos)": ("Nov 2018", "Present"),
    "Nov 2018 to Present \u00b7 2 yrs": ("Nov 2018", "Present"),
    "2013-2015": ("2013", "2015"),
    "2013-05-2014-06": ("2013-05", "2014-06"),
    "2013-05-17/2014-01-02": ("2013-05-17", "2014-01-02"),
    "05/2013-06/2014": ("05/2013", "06/2014"),
    "May - Aug 2015": ("May 2015", "Aug 2015"),
    "from 2013 until 2014": ("2013", "2014"),
    "03-06-2017 - 22-08-2018": ("03-06-2017", "22-08-2018"),
}
NO_RANGES = [
    "2013",
    "Nov 2018",
    "2013-05",
    "2013-05-17",
    "03-06-2017",
    "x - y",
    "Nov 2018 -",
    "- Present",
    "2013-14",
    "a" * 500,
]


def test_ranges_by_hand() -> None:
    def is_ongoing(text: str) -> bool:
        return text.lower() == "present"

    assert {text: split_range(text, is_ongoing) for text in RANGES} == RANGES
    assert [split_range(text, is_ongoing) for text in NO_RANGES] == [None] * len(NO_RANGES)


def test_a_column_of_ranges_is_a_start_and_an_end(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    rows = [
        {"id": "a", "code": "1", "start": "Nov 2018 - Present"},
        {"id": "b", "code": "2", "start": "May 2013 to June 2015"},
        {"id": "c", "code": "2", "start": "2013"},
    ]
    path.write_text(rows_of(*rows))
    settings = coded(path, last_year=2020, no_end="leave_out")
    columns = dataclasses.replace(settings.columns, end=None, education=None)
    a, b, c = read(dataclasses.replace(settings, columns=columns))
    assert list(days_of(a)) == [2018, 2019, 2020]
    assert list(days_of(b)) == [2013, 2014, 2015]
    assert c.drops == (Exclusion("job without an end", of="job"),)
    path.write_text(rows_of(job("a", "1", "2013 - 2014", "2015")))
    with raises(
        "data-file/invalid-content", "column start: '2013 - 2014' is not", "it is a start and an end, but the job"
    ):
        read(coded(path))
    path.write_text(rows_of(job("a", "1", "2013 - 2014", "2013 - 2014")))
    (person,) = read(coded(path))
    assert list(days_of(person)) == [2013, 2014]


OBJECTS = {
    "2017-06-03": {"day": 3, "month": 6, "year": 2017},
    "2017-06": {"year": "2017", "month": 6.0},
    "2017": {"Year": 2017, "month": None, "day": None},
    "3 May 2017": {"day": 3, "month": "May", "year": 2017},
    "": {"day": None, "month": None, "year": None},
    None: {"day": 3, "month": 6},
}


def test_objects_of_day_month_and_year_by_hand() -> None:
    assert {text: date_text(value) for text, value in OBJECTS.items()} == {text: text for text in OBJECTS}
    assert [date_text(value) for value in ({"y": 1}, {"year": [1]}, {"year": True})] == [None] * 3


def test_objects_are_dates_in_jsonl_in_parquet_and_as_text_in_csv(tmp_path: Path) -> None:
    begin, end = {"day": 3, "month": 6, "year": 2017}, {"day": 22, "month": 8, "year": 2018}
    (tmp_path / "r.jsonl").write_text(rows_of({**job("a", "1", "", ""), "start": begin, "end": end}))
    table = {"id": ["a"], "code": ["1"], "start": [begin], "end": [end], "education": [""]}
    pq.write_table(pa.table(table), tmp_path / "r.parquet")
    texts = [json.dumps(begin).replace('"', '""'), str(end)]
    (tmp_path / "r.csv").write_text(f'id,code,start,end,education\na,1,"{texts[0]}","{texts[1]}",\n')
    for name in ("r.jsonl", "r.parquet", "r.csv"):
        (person,) = read(coded(tmp_path / name))
        assert list(days_of(person)) == [2017, 2018], name
    (tmp_path / "r.jsonl").write_text(rows_of({**job("a", "1", "2010", "2010"), "education": begin}))
    with raises("data-file/invalid-content", 'column education: holds {"day": 3'):
        read(coded(tmp_path / "r.jsonl"))
    (tmp_path / "r.jsonl").write_text(
        rows_of({**job("a", "1", "", "2018"), "start": {"$date": "2017-06-03T00:00:00Z"}})
    )
    assert list(days_of(read(coded(tmp_path / "r.jsonl"))[0])) == [2017, 2018]


@given(st.dates(date(1974, 1, 1), date(2100, 12, 31)))
def test_milliseconds_are_the_day_in_utc(day: date) -> None:
    noon = datetime(day.year, day.month, day.day, 12, tzinfo=timezone.utc).timestamp() * 1000
    assert read_days(str(int(noon))) == read_days(f"{noon:.1f}") == (day, day)


def test_numbers_that_may_be_seconds_are_no_dates(tmp_path: Path) -> None:
    assert read_days("-315619200000") == (date(1960, 1, 1),) * 2
    for text in ("1370044800", "315532800", "1370044800000000", "0", "99999999999999"):
        with pytest.raises(NotADateError):
            read_days(text)
    path = tmp_path / "r.jsonl"
    path.write_text(rows_of({**job("a", "1", "", ""), "start": 1496448000000, "end": 1534896000000.0}))
    assert list(days_of(read(coded(path))[0])) == [2017, 2018]


FAULTS = [
    job("a", "1", "2010", "2010"),
    job("a", "1", "soon", "2012"),
    job("a", "1", "2012", "31-02-2013"),
    job("a", "1", "2014", "2013"),
    job("a", "1", "2030", None),
    job("a", "1", "1955", "1956"),
    job("b", "1", "13-13-2013", None),
]


def left_out(path: Path, **changes) -> ResumeSettings:
    settings = coded(path, **changes)
    return dataclasses.replace(settings, columns=dataclasses.replace(settings.columns, birth_year="born"))


def test_dates_that_cannot_be_are_left_out_and_counted_on_request(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(rows_of(*({**row, "born": "1960" if row["id"] == "a" else "?"} for row in FAULTS)))
    with raises("data-file/invalid-content", "line 2, column start: 'soon' is not a date"):
        read(left_out(path))
    a, b = read(left_out(path, bad_dates="leave_out"))
    assert days_of(a) == {2010: "1"}
    unreadable = Exclusion("job with a date that cannot be read", of="job")
    assert a.drops == (
        unreadable,
        unreadable,
        Exclusion("job that ends before it starts", of="job"),
        Exclusion("job that starts after the resumes were collected", of="job"),
        Exclusion("job that starts before the person's birth", of="job"),
    )
    assert (b.career, b.drops) == (None, (unreadable,))
    assert b.changes == ("column born: a birth year that cannot be read, taken as not known",)


def test_ambiguous_dates_are_left_out_and_counted_on_request(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(rows_of(job("a", "1", "03-06-2017", "2018"), job("a", "2", "2019", "2019")))
    (person,) = read(coded(path, bad_dates="leave_out"))
    assert days_of(person) == {2019: "2"}
    assert person.drops == (Exclusion("job with a date that cannot be read", of="job"),)
