"""Files of dated jobs as careers: dates, one job a year, the shapes of three public corpora, and broken files."""

from __future__ import annotations

import dataclasses
import gzip
import itertools
import re
import sqlite3
from datetime import date, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.errors import raises
from helpers.resumes import coded, job, read, rows_of, shipped
from helpers.runs import settings_of
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from laborllm_dist.careers.person_records import Exclusion, PersonRecord
from laborllm_dist.careers.readers.resumes.dates import NotADateError, read_days
from laborllm_dist.careers.readers.resumes.files import resume_files
from laborllm_dist.careers.readers.resumes.people import resume_people
from laborllm_dist.careers.readers.resumes.spells import Spell, SpellReader, slots_of, with_ends
from laborllm_dist.careers.readers.resumes.wide_rows import PersonRows
from laborllm_dist.careers.readers.resumes.year_assignment import job_of_years
from laborllm_dist.careers.types import CareerHistory, Job
from laborllm_dist.config.corpora import ResumeSettings
from laborllm_dist.errors import LaborError
from laborllm_dist.store.build import prepare_store

DATES = {
    "2013": (date(2013, 1, 1), date(2013, 12, 31)),
    "2013.0": (date(2013, 1, 1), date(2013, 12, 31)),
    "2013-02": (date(2013, 2, 1), date(2013, 2, 28)),
    "2012/2": (date(2012, 2, 1), date(2012, 2, 29)),
    "05/2013": (date(2013, 5, 1), date(2013, 5, 31)),
    "Sept. 2013": (date(2013, 9, 1), date(2013, 9, 30)),
    "May, 2013": (date(2013, 5, 1), date(2013, 5, 31)),
    "Q2 2013": (date(2013, 4, 1), date(2013, 6, 30)),
    "2013-Q4": (date(2013, 10, 1), date(2013, 12, 31)),
    "2013-05-17T08:30:00Z": (date(2013, 5, 17), date(2013, 5, 17)),
    "05/17/2013": (date(2013, 5, 17), date(2013, 5, 17)),
    "17/05/2013": (date(2013, 5, 17), date(2013, 5, 17)),
    "17.05.2013": (date(2013, 5, 17), date(2013, 5, 17)),
    "17 May 2013": (date(2013, 5, 17), date(2013, 5, 17)),
    "May 17, 2013": (date(2013, 5, 17), date(2013, 5, 17)),
    "20130517": (date(2013, 5, 17), date(2013, 5, 17)),
    "01-2013": (date(2013, 1, 1), date(2013, 1, 31)),
    "2013.05": (date(2013, 5, 1), date(2013, 5, 31)),
}
NO_DATES = {
    "05/06/2013": r"can be month/day or day/month; write 2013-05-06 or 2013-06-05",
    "2013-13": r"has no month from 1 to 12",
    "2013-02-30": r"is not a day of the calendar",
    "1370000000": r"is a number, not a date",
    "1492": r"is not in a year from 1850 to 2100",
    "soon": r"is not a date; dates are written like",
}


@pytest.mark.parametrize("text", DATES)
def test_dates_by_hand(text: str) -> None:
    assert read_days(text) == DATES[text]


@pytest.mark.parametrize("text", NO_DATES)
def test_what_is_no_date_says_why(text: str) -> None:
    with pytest.raises(NotADateError, match=NO_DATES[text]):
        read_days(text)


def test_one_job_a_year_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(
        rows_of(
            # 2010: 1 has 273 days, 2 has 92. 2011: 2 alone. 2012: 2 to June (182 days), 3 from July (184): 3 is 1.
            job("a", "1", "2010-01", "2010-09", "bachelor"),
            job("a", "2", "2010-10", "2012-06"),
            job("a", "3", "2012-07", "Present", "master"),
            # Two jobs of the same days: the one that stands later in the file.
            job("b", "1", "2001", "2001"),
            job("b", "2", "2001", "2001"),
            job("c", "9", "2005", "2006"),
            job("c", "", "2007", "2007"),
            job("c", "1", "", "2009"),
        )
    )
    a, b, c = read(coded(path, last_year=2013))
    assert a == PersonRecord(
        CareerHistory(
            "a", "R", None, None, None, None,
            (Job(2010, "1", "bachelor"), Job(2011, "2", "bachelor"), Job(2012, "1", "master"), Job(2013, "1", "master")),
        )
    )  # fmt: skip
    assert b.career.jobs == (Job(2001, "2"),)
    reasons = [("code not in the vocabulary", 2005), ("code not in the vocabulary", 2006), ("job without a code", 2007)]
    undated = Exclusion("job without a start date", of="job")
    assert c == PersonRecord(None, (undated, *(Exclusion(reason, year) for reason, year in reasons)))
    assert b.drops == (Exclusion("job that no year belongs to, by the year rule", of="job"),)
    a, _, _ = read(coded(path, last_year=2013, year_rule="latest"))
    assert [each.occupation for each in a.career.jobs] == ["2", "2", "1", "1"]


def slow_years(spells: list[Spell]) -> dict[int, Spell]:
    """The rule by counting days one by one."""
    careers = {}
    for year in range(2000, 2007):
        days = [date(year, 1, 1) + timedelta(days=number) for number in range(366)]
        held = [sum(each.start <= day <= each.end for day in days if day.year == year) for each in spells]
        if any(held):
            most = [spell for spell, number in zip(spells, held, strict=True) if number == max(held)]
            latest = [spell for spell in most if spell.start == max(each.start for each in most)]
            longest = [spell for spell in latest if spell.end == max(each.end for each in latest)]
            careers[year] = longest[-1]
    return careers


DAYS = st.dates(date(2000, 1, 1), date(2006, 12, 31))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(DAYS, DAYS), max_size=6))
def test_the_year_s_job_is_that_of_counting_days(pairs) -> None:
    spells = [Spell(min(pair), max(pair), None, None, str(at), None, at) for at, pair in enumerate(pairs)]
    assert job_of_years(spells, "days") == slow_years(spells)


def test_csv_gz_parquet_and_folders_are_the_same_careers(tmp_path: Path) -> None:
    rows = [job("a", "1", "2010", "2011"), job("a", "2", "2012", None), job("b", "3", "2001-05", "2002")]
    expected = None
    (tmp_path / "x").mkdir()
    for name in ("r.jsonl", "r.jsonl.gz", "r.csv", "r.csv.gz", "r.parquet"):
        path = tmp_path / "x" / name
        table = {key: [row[key] for row in rows] for key in rows[0]}
        header = ",".join(rows[0]) + "\n"
        text = rows_of(*rows) if "jsonl" in name else header + "".join(
            ",".join("" if value is None else value for value in row.values()) + "\n" for row in rows
        )  # fmt: skip
        if name.endswith("parquet"):
            pq.write_table(pa.table(table), path)
        elif name.endswith(".gz"):
            path.write_bytes(gzip.compress(text.encode()))
        else:
            path.write_text(text)
        careers = read(coded(path))
        expected = expected or careers
        assert careers == expected
        path.unlink()
    assert [each.career.person for each in expected] == ["a", "b"]
    for at, row in enumerate(rows[:2], start=1):
        (tmp_path / "x" / f"{at}.jsonl").write_text(rows_of(row))
    assert read(coded(tmp_path / "x"))[0] == expected[0]


def test_the_shape_of_jobhop(tmp_path: Path) -> None:
    table = {
        "resume_id": [0, 1, 0, 2], "matched_code": ["2353.1", "0310.3", "3118.3.12", "unknown"],
        "start_date": ["Q3 1996", "Q1 1994", "Q1 2000", "Q2 1999"], "end_date": ["Q1 2000", "Q4 1996", None, "Q3 1999"],
        "university_level": ["Master", "Bachelor", "Master", None],
    }  # fmt: skip
    pq.write_table(pa.table(table), tmp_path / "j.parquet")
    (tmp_path / "esco.csv").write_text(
        "code,preferredLabel\n2353.1,language teacher\n0310.3,soldier\n3118.3.12,draughtsperson\n"
    )
    resume_settings = shipped("jobhop", tmp_path / "j.parquet", last_year=2001)
    vocabulary = dataclasses.replace(resume_settings.vocabulary, path=str(tmp_path / "esco.csv"))
    zero, one, two = read(dataclasses.replace(resume_settings, vocabulary=vocabulary))
    # 2000: the teacher has 91 days of it, the draughtsperson all.
    codes = [(each.year, each.occupation) for each in zero.career.jobs]
    assert codes == [(year, "2353.1") for year in range(1996, 2000)] + [(2000, "3118.3.12"), (2001, "3118.3.12")]
    assert zero.career.jobs[0].education == "Master"
    assert [each.occupation for each in one.career.jobs] == ["0310.3"] * 3
    assert two == PersonRecord(None, (Exclusion("code not in the vocabulary", 1999),))


def test_the_shape_of_karrierewege_which_has_an_order_and_no_dates(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(
        "_id,experience_order,preferredLabel_en,skills\n"
        'p1,2,waitress,x\np2,0,lawyer,x\np1,0,cook,"a, b"\np1,10,qqqq zzzz,x\n'
    )
    first, second = read(shipped("karrierewege", tmp_path))
    assert [(each.year, each.occupation) for each in first.career.jobs] == [(1, "436"), (2, "435")]
    assert first.drops == (Exclusion("title not coded (score below 0.6)", 3),)
    assert [(title.title, title.code) for title in first.titles] == [
        ("cook", "436"),
        ("waitress", "435"),
        ("qqqq zzzz", None),
    ]
    assert [(each.year, each.occupation) for each in second.career.jobs] == [(1, "178")]


def test_the_shape_of_decorte(tmp_path: Path) -> None:
    columns = ["identifier", "industry", *(f"{name}_{at}" for at in range(17) for name in ("title", "start", "end"))]
    row = {"identifier": "7", "title_0": "Cook", "start_0": "05/2010", "end_0": "12/2011"}
    row |= {"title_1": "Truck driver", "start_1": "01/2012", "end_1": "current"}
    (tmp_path / "d.csv").write_text(",".join(columns) + "\n" + ",".join(row.get(name, "") for name in columns) + "\n")
    (person,) = read(shipped("decorte", tmp_path / "d.csv", last_year=2013))
    assert [(each.year, each.occupation) for each in person.career.jobs] == [
        (2010, "436"), (2011, "436"), (2012, "804"), (2013, "804"),
    ]  # fmt: skip
    wide = shipped("decorte", tmp_path / "d.csv", last_year=2013, num_slots=1)
    with raises(
        "data-file/invalid-content", "line 2, column start_1: a job more than num_slots=1 allows; raise num_slots"
    ):
        read(wide)


def test_jobs_beyond_the_slots_are_seen_wherever_they_stand(tmp_path: Path) -> None:
    columns = [f"{name}_{at}" for at in range(4) for name in ("title", "start", "end")]
    empty = dict.fromkeys(columns, "")
    row = {"identifier": "7", "industry": "", **empty, "title_0": "Cook", "start_0": "2010", "end_0": "2011"}
    path = tmp_path / "d.csv"
    for name in ("title_3", "end_2"):
        path.write_text(",".join(row) + "\n" + ",".join({**row, name: "2012"}.values()) + "\n")
        with raises("data-file/invalid-content", "line 2, column", name, "a job more than num_slots=1 allows"):
            read(shipped("decorte", path, num_slots=1))
    for number in ("9" * 5000, "\u0664"):  # longer than Python reads; 4 in Arabic digits
        path.write_text(",".join([*row, f"title_{number}"]) + "\n" + ",".join([*row.values(), "Baker"]) + "\n")
        with raises("data-file/invalid-content", "line 2, column title_", "a job more than num_slots=1 allows"):
            read(shipped("decorte", path, num_slots=1))


def test_numbered_columns_with_an_order_and_no_dates(tmp_path: Path) -> None:
    resume_settings = shipped("decorte", tmp_path / "d.csv", num_slots=2)
    columns = dataclasses.replace(resume_settings.columns, start=None, end=None, order="order_{}")
    (tmp_path / "d.csv").write_text("identifier,title_0,order_0,title_1,order_1\n7,Cook,2,Lawyer,1\n")
    (person,) = read(dataclasses.replace(resume_settings, columns=columns))
    assert [(each.year, each.occupation) for each in person.career.jobs] == [(1, "178"), (2, "436")]


@pytest.mark.parametrize(
    ("no_end", "occupations", "num_left_out"),
    [
        ("next_start", {2000: "1", 2001: "1", 2002: "1", 2003: "2", 2004: "2", 2005: "1", 2006: "1"}, 0),
        ("ongoing", {year: "1" if year < 2003 or year > 2004 else "2" for year in range(2000, 2007)}, 0),
        ("leave_out", {2003: "2", 2004: "2"}, 2),
    ],
)
def test_what_becomes_of_a_job_without_an_end(no_end, occupations, num_left_out: int, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(
        rows_of(job("a", "1", "2000", None), job("a", "2", "2003", "2004"), job("a", "3", "2005", "n/a", "bachelor"))
    )
    (person,) = read(coded(path, no_end=no_end, last_year=2006))
    assert {each.year: each.occupation for each in person.career.jobs} == occupations
    assert person.drops == (Exclusion("job without an end", of="job"),) * num_left_out


def test_every_job_has_a_year_or_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(
        rows_of(
            job("a", "1", "2010-01", "2010-12"),
            job("a", "2", "2010-03", "2010-06"),
            job("a", "9", "2010-02", "2010-03"),
        )
    )
    (person,) = read(coded(path))
    assert [each.occupation for each in person.career.jobs] == ["1"]
    assert person.drops == (Exclusion("job that no year belongs to, by the year rule", of="job"),) * 2


def test_missing_and_ongoing_words_are_read_without_regard_to_capitals(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(rows_of(job("a", "1", "2019", "PRESENT", "None")))
    (person,) = read(coded(path))
    assert [(each.year, each.education) for each in person.career.jobs] == [(2019, None), (2020, None)]
    path.write_text(rows_of(job("NaN", "1", "2019", "2019")))
    with raises("data-file/invalid-content", "line 1, column id: empty"):
        read(coded(path))


def test_parquet_columns_that_hold_no_cells_are_refused(tmp_path: Path) -> None:
    table = pa.table({"id": ["a"], "code": ["1"], "start": ["2010"], "end": ["2011"], "education": [["x", "y"]]})
    pq.write_table(table, tmp_path / "r.parquet")
    with raises("data-file/unsupported-column-type", "r.parquet", "education", "list<", ">"):
        read(coded(tmp_path / "r.parquet"))


def test_people_whose_rows_stand_apart(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(
        rows_of(job("a", "1", "2010", "2010"), job("b", "1", "2010", "2010"), job("a", "2", "2011", "2011"))
    )
    with raises(
        "data-file/invalid-content",
        "line 3, column id: the rows of person 'a' are not adjacent, the first at line 1; sort",
    ):
        read(coded(path))
    a, b = read(coded(path, people="anywhere"))
    assert [each.occupation for each in a.career.jobs] == ["1", "2"]
    assert b.career.person == "b"


@pytest.mark.parametrize("people", ["together", "anywhere"])
@pytest.mark.parametrize("after", [(), ("b",)])
def test_contradictions_of_whoever_comes_last_are_rejected_too(
    after: tuple[str, ...], people: str, tmp_path: Path
) -> None:
    """The rows of the last person of a file are merged after its last row has been read."""
    folder = tmp_path / "rows"
    folder.mkdir()
    jobs = [job("a", "1", "2010", "2010") | {"gender": "f"}, job("a", "2", "2011", "2011") | {"gender": "m"}]
    (folder / "1.jsonl").write_text(rows_of(*jobs))
    for person in after:
        (folder / "2.jsonl").write_text(rows_of(job(person, "1", "2010", "2010") | {"gender": "f"}))
    settings = coded(folder, people=people)
    settings = dataclasses.replace(settings, columns=dataclasses.replace(settings.columns, gender="gender"))
    with raises(
        "data-file/invalid-content", "1.jsonl: 1 problem", "line 2, column gender: 'm', but 'f' in an earlier row"
    ):
        read(settings)


def test_people_of_more_files_whose_rows_stand_apart(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    for name, people in {"1": "ab", "2": "ca", "3": "d"}.items():
        (folder / f"{name}.jsonl").write_text(rows_of(*(job(person, "1", "2010", "2010") for person in people)))
    with raises(
        "data-file/invalid-content",
        "2.jsonl",
        "\n",
        "line 2",
        "person 'a' are not adjacent, the first at line 1 of",
        "1.jsonl",
    ):
        read(coded(folder))


def test_no_room_for_the_list_of_people_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(rows_of(*(job(f"person {number:0400d}", "1", "2010", "2010") for number in range(40))))
    assert len(read(coded(path))) == 40
    connect = sqlite3.connect

    def small(*place: str, **more: bool) -> sqlite3.Connection:
        database = connect(*place, **more)
        database.execute("PRAGMA max_page_count=3")
        return database

    monkeypatch.setattr(sqlite3, "connect", small)
    with raises("disk/temporary-files-failed", "database or disk is full"):
        read(coded(path))


INVALID = "data-file/invalid-content"
BROKEN = {
    "not JSON": ('{"id": "a", \n', INVALID, "r.jsonl: 1 problem:\n  line 1: not JSON"),
    "a list": ("[1]\n", INVALID, "line 1: not a JSON object", "'[1]'"),
    "twice": ('{"id": "a", "id": "b"}\n', INVALID, "line 1: not JSON", "'id'"),
    "a nested value": ('{"id": "a", "start": {"y": 1}}\n', INVALID, "line 1, column start", '{"y": 1}'),
    "no date": (rows_of(job("a", "1", "soon", "2011")), INVALID, "line 1, column start: 'soon'"),
    "an end before its start": (rows_of(job("a", "1", "2011", "2010")), INVALID, "'2010'", "before", "'2011'"),
    "after the collection": (rows_of(job("a", "1", "2021", None)), INVALID, "'2021'", "last_year=2020"),
    "no person": (rows_of(job("", "1", "2010", None)), INVALID, "line 1, column id: empty"),
    "a missing name": ('{"id": "a", "code": "1"}\n', INVALID, "column start", "id, code"),
    "nothing": ("\n", "data-file/no-rows", "r.jsonl"),
    "an empty file": ("", "data-file/empty-file", "r.jsonl"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_rows_are_refused_with_their_place(name: str, tmp_path: Path) -> None:
    text, label, *values = BROKEN[name]
    (tmp_path / "r.jsonl").write_text(text)
    with raises(label, *values):
        read(coded(tmp_path / "r.jsonl"))


def test_missing_files_and_mixed_folders_are_refused(tmp_path: Path) -> None:
    with raises("data-file/no-file", "nowhere"):
        resume_files(shipped("resumes", tmp_path / "nowhere"))
    (tmp_path / "a.txt").write_text("x")
    with raises("data-file/unknown-file-extension", "a.txt", ".jsonl"):
        resume_files(shipped("resumes", tmp_path / "a.txt"))
    with raises("data-file/no-resume-files"):
        resume_files(shipped("resumes", tmp_path))
    (tmp_path / "a.CSV").write_text("x")
    with raises("data-file/unknown-file-extension", "a.txt"):
        resume_files(shipped("resumes", tmp_path))
    (tmp_path / "a.txt").rename(tmp_path / "README.txt")
    assert [file.name for file in resume_files(shipped("resumes", tmp_path))] == ["a.CSV"]
    (tmp_path / "a.jsonl").write_text("x")
    with raises("data-file/mixed-file-types", "CSV, JSONL"):
        resume_files(shipped("resumes", tmp_path))


WRONG_SETTINGS = {
    "vocabulary.path=titles.csv": ("vocabulary.path: expected builtin:occ1990dd",),
    "columns.start=null": ("columns.start: expected", "columns.order"),
    "columns.title=null": ("columns.title: expected", "occupation_from"),
    "columns.start='start_{}'": ("columns.start: expected", "{}", "rows=job"),
    "rows=person": ("rows: expected num_slots", "{}"),
    "last_year=20": ("last_year: expected", "1850", "2100"),
    "min_score=2": ("min_score: expected", "0 to 1"),
}


@pytest.mark.parametrize("override", WRONG_SETTINGS)
def test_settings_that_contradict_each_other_are_refused(override: str) -> None:
    with raises("settings/invalid", *WRONG_SETTINGS[override]):
        settings_of(["data=resumes", f"data.corpora.resumes.{override}"])


def test_many_problems_end_the_reading(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text("x\n" * 5_000)
    with raises("data-file/invalid-content", "1,000 problems, the first 10 of them"):
        read(coded(tmp_path / "r.jsonl"))


GOOD_ROWS = [
    job("a", "1", "2010-01", "2010-09", "bachelor"), job("a", "2", "2010-10", "2012-06"), job("b", "3", "Q1 2001", "2003"),
    job("b", "9", "2004", "Present"), job("c", "2", "2019", None),
]  # fmt: skip


WIDE_ROWS = [
    {"id": "a", "code_0": "1", "start_0": "2010", "end_0": "2011", "code_1": "2", "start_1": "2012", "end_1": ""},
    {"id": "b", "code_0": "2", "start_0": "2001", "end_0": "2004", "code_1": "", "start_1": "", "end_1": ""},
]


def as_csv(rows: list[dict]) -> bytes:
    lines = [list(rows[0]), *(["" if cell is None else cell for cell in row.values()] for row in rows)]
    return "".join(",".join(line) + "\n" for line in lines).encode()


def content_of(form: str, path: Path) -> bytes:
    if form == "parquet":
        pq.write_table(pa.table({key: [row[key] for row in GOOD_ROWS] for key in GOOD_ROWS[0]}), path)
        return path.read_bytes()
    plain = (
        as_csv(WIDE_ROWS if form.startswith("wide") else GOOD_ROWS) if "csv" in form else rows_of(*GOOD_ROWS).encode()
    )
    return gzip.compress(plain) if form.endswith("gz") else plain


def settings_for(form: str, path: Path, people: str) -> ResumeSettings:
    if not form.startswith("wide"):
        return coded(path, people=people)
    columns = dataclasses.replace(coded(path).columns, code="code_{}", start="start_{}", end="end_{}", education=None)
    return coded(path, people=people, rows="person", num_slots=2, columns=columns)


@settings(max_examples=250, deadline=None)
@given(
    damage=st.lists(st.tuples(st.integers(0, 10**4), st.binary(min_size=1, max_size=3)), min_size=1, max_size=4),
    cut=st.integers(0, 60),
    form=st.sampled_from(["jsonl", "csv", "jsonl.gz", "csv.gz", "parquet", "wide.csv"]),
    people=st.sampled_from(["together", "anywhere"]),
)
def test_any_damage_is_read_or_refused_with_the_file(tmp_path_factory, damage, cut: int, form: str, people) -> None:
    path = tmp_path_factory.mktemp("damage") / f"r.{form}"
    original = content_of(form, path)
    content = bytearray(original)
    for place, replacement in damage:
        at = place % len(content)
        content[at : at + len(replacement)] = replacement
    path.write_bytes(content[: max(1, len(content) - cut)])
    assume(path.read_bytes() != original)
    resume_settings = settings_for(form, path, people)
    try:
        careers = read(resume_settings)
    except LaborError as error:
        assert str(path) in str(error)
        assert PLACE_OR_WHOLE.search(str(error)), str(error)
    else:
        # Nobody and no job vanishes: whoever is read has a career or reasons, and each job a year or a reason.
        assert all(person.career is not None or person.drops for person in careers)
        assert careers
        for person, rows in zip(
            careers,
            PersonRows(resume_settings, [path], SpellReader(resume_settings, tuple(slots_of(resume_settings)))),
            strict=True,
        ):
            years = job_of_years(
                with_ends(rows.spells, resume_settings.no_end, date(resume_settings.last_year, 12, 31)), "days"
            )
            num_dropped = sum(drop.unit == "job" for drop in person.drops)
            assert len({id(spell) for spell in years.values()}) + num_dropped == len(rows.spells)


# A refusal names the line or row of each problem; what concerns the whole file says what is wrong with it.
PLACE_OR_WHOLE = re.compile(
    r"\b(line|row) \d+|the file is empty|no rows|not a readable Parquet|holds a value|expected texts|gzip"
)


def test_titles_are_coded_for_the_people_who_are_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from laborllm_dist.careers.readers.resumes.occupations import MatchCache

    num_matched: list[int] = []
    real = MatchCache.match

    def counted(self: MatchCache, titles):
        expected = list(titles)
        num_matched.append(len(expected))
        return real(self, expected)

    monkeypatch.setattr(MatchCache, "match", counted)
    rows = [{"id": str(at), "title": "Cook", "start": "2010", "end": "2010", "education": None} for at in range(1000)]
    (tmp_path / "r.jsonl").write_text(rows_of(*rows))
    people = list(resume_people(shipped("resumes", tmp_path / "r.jsonl"), survey="R"))
    assert num_matched == []
    assert people[999]().career.jobs[0].occupation == "436"
    assert len(num_matched) == 1
    assert num_matched[0] < 1000
    assert len(list(itertools.islice(people, 3))) == 3


def test_a_store_lists_what_titles_were_coded_to(tmp_path: Path) -> None:
    titles = ["Lawyer", "Lawyer", "Truk driver", "qqqq zzzz"]
    rows = [
        {"id": f"{person}", "title": titles[person % 4], "start": "2010", "end": "2011", "education": None}
        for person in range(80)
    ]
    (tmp_path / "r.jsonl").write_text(rows_of(*rows))
    settings = settings_of([
        "data=resumes", f"data.corpora.resumes.path={tmp_path}/r.jsonl", f"store.root={tmp_path}/stores",
        "tokenizer.vocabulary_size=400",
    ])  # fmt: skip
    store = prepare_store(settings)
    lines = (store.folder / "titles_resumes.csv").read_text().splitlines()
    assert lines[:2] == ["title,jobs,matched_title,score,code", "Lawyer,40,Lawyer,0.99,178"]
    assert {line.split(",")[0]: line.split(",")[-1] for line in lines[2:]} == {"Truk driver": "804", "qqqq zzzz": ""}
