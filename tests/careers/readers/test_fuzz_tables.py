"""Tables of people and titles, damaged: refused, or the careers that a slow independent reader finds in them."""

from __future__ import annotations

import csv
import dataclasses
import functools
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.fuzzing import (
    Rejection,
    check_message,
    check_number_of_cases,
    damaged_bytes,
    damaged_trees,
    fuzz,
    limited_memory,
    outcome,
)
from helpers.panels import panel
from helpers.reference.slow_tables import (
    MISSING,
    OPTIONAL,
    Wrong,
    code_in,
    known,
    person_in,
    plain,
    slow_csv,
    slow_dates,
    slow_panel,
    slow_years,
    year_in,
)
from helpers.runs import settings_of
from hypothesis import given
from hypothesis import strategies as st

from laborllm_dist.careers.occupations.vocabulary import read_occupations
from laborllm_dist.careers.readers.career_text import career_text_people
from laborllm_dist.careers.readers.long_panel import read_long_panel
from laborllm_dist.careers.readers.resumes.dates import NotADateError, read_days, split_range
from laborllm_dist.careers.readers.resumes.people import resume_people
from laborllm_dist.careers.types import CareerHistory, Job, OccupationVocabulary
from laborllm_dist.config.corpora import (
    MISSING_WORDS,
    CareerTextSettings,
    LongPanelSettings,
    ResumeSettings,
    VocabularySettings,
)
from laborllm_dist.prediction.request_files import read_requests
from laborllm_dist.prediction.requests import PredictionRequest

CODES = {"1": "1", "2": "2", "2.0": "2", "03": "03", "-8": "-8", "a b": "a b"}
HEADER = ["person", "year", "occupation", "birth_year", "gender", "ethnicity", "region", "education", "extra"]
# Cells of each column: as they should be, in other spellings, and wrong.
CELLS: dict[str, tuple[list[str], list[str]]] = {
    "person": (["12", "12.0", "7", "1e+05", "Ann", "Ann\u00a0B", "\u4e2d", "007"], ["", "NaN", ".", "1e+15", "9" * 17 + ".0", "a\nb", "\x1b[31m", "x\u2028"]),
    "year": (["1984", "1985.0", "1986", "1987.", "+1988", "1.989e+03"], ["", "84", "1849", "2101", "1984.5", "soon", "\u0661\u0669\u0668\u0664", "1_984", "9" * 40]),
    "occupation": (["1", "2", "2.0", "03", "-8", "a b", "a\u00a0b", "", "NA", "-4", "-1.0"], ["3", "x", "03.0", "1.5", "0", "2e0", "\u0662"]),
    "birth_year": (["", "", "1960", "1960.0"], ["1961", "1990", "soon", "-1", "19600"]),
    "gender": (["", "female", "female", "1"], ["male", "fe\x00male", "[bold]"]),
    "ethnicity": (["", "$x$", "$x$"], ["y"]),
    "region": (["", "south", "west", "3", "3.0"], ["a\rb"]),
    "education": (["", "college", "12", "12.0", "na"], ["\x07"]),
    "extra": (["", "anything", "1"], ["\x07"]),
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def memory() -> Iterator[None]:
    with limited_memory():
        yield


def cells_of(column: str) -> st.SearchStrategy[str]:
    good, bad = CELLS[column]
    return st.one_of(st.sampled_from(good), st.sampled_from(good * 40 + bad))


def rows_of_panels(columns: list[str] = HEADER, *, most: int = 6) -> st.SearchStrategy[list[list[str]]]:
    row = st.tuples(*map(cells_of, columns)).map(list)
    return st.lists(row, min_size=1, max_size=most).map(lambda rows: [list(columns), *rows])


def as_csv(rows: list[list[str]], **how: Any) -> bytes:
    text = io.StringIO()
    csv.writer(text, **how).writerows(rows)
    return text.getvalue().encode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tables")


def panel_settings(folder: Path, name: str) -> LongPanelSettings:
    expected = dataclasses.replace(panel(folder, name), missing=MISSING_WORDS)
    (folder / "titles.csv").write_text("code,title\n1,Cooks\n2.0,Bakers\n03,Maids\n-8,On the move\na b,Aides\n")
    return expected


def check_panel(folder: Path, name: str, rows: list[list[str]] | None) -> None:
    """Read a panel; `rows` are what a slow reader finds in it, None where it finds no table."""
    result = outcome(lambda: list(read_long_panel(panel_settings(folder, name), survey="P")))
    try:
        assert rows is not None
        expected = slow_panel(rows, CODES, "P")
    except (Wrong, AssertionError) as wrong:
        assert isinstance(result, Rejection), f"{wrong}: {result}"
        return
    if set(HEADER[:-1]) <= {row.strip() for row in rows[0]}:
        assert result == expected


@given(rows_of_panels(), st.sampled_from(("csv", "quoted", "gz", "parquet")))
@fuzz(300)
def test_a_panel_is_read_as_it_is_meant_or_refused(folder: Path, rows: list[list[str]], form: str) -> None:
    if form == "parquet":
        name = "p.parquet"
        pq.write_table(
            pa.table({name: [row[at] for row in rows[1:]] for at, name in enumerate(rows[0])}), folder / name
        )
    else:
        name = "p.csv.gz" if form == "gz" else "p.csv"
        content = as_csv(rows, **({"quoting": csv.QUOTE_ALL, "lineterminator": "\n"} if form == "quoted" else {}))
        (folder / name).write_bytes(gzip.compress(content) if form == "gz" else content)
    check_panel(folder, name, rows)


@st.composite
def sound_panels(draw: st.DrawFn) -> list[list[str]]:
    """Draw a panel that nothing is wrong with."""
    rows = [
        [draw(st.sampled_from(CELLS["person"][0][:4])), str(1984 + at), draw(st.sampled_from(CELLS["occupation"][0])),
         "1960", "female", "$x$", draw(st.sampled_from(("", "south"))), "college", "a, b"]
        for at in range(draw(st.integers(1, 5)))
    ]  # fmt: skip
    return [HEADER, *rows]


@given(st.data())
@fuzz(200)
def test_a_damaged_panel_is_read_as_it_then_stands_or_refused(folder: Path, data: st.DataObject) -> None:
    quoting = data.draw(st.sampled_from((csv.QUOTE_MINIMAL, csv.QUOTE_ALL)))
    content = data.draw(damaged_bytes(as_csv(data.draw(sound_panels()), quoting=quoting)))
    (folder / "p.csv").write_bytes(content)
    try:
        rows = slow_csv(content)
    except Wrong:
        rows = None
    check_panel(folder, "p.csv", rows)


@given(st.data())
@fuzz(100)
def test_a_damaged_parquet_or_gzip_file_is_refused_or_holds_what_its_library_says(
    folder: Path, data: st.DataObject
) -> None:
    """Neither kind of file says whether it is whole but gzip's checksum: what a library still reads is what counts."""
    rows, suffix = data.draw(sound_panels()), data.draw(st.sampled_from((".parquet", ".csv.gz")))
    path = folder / f"p{suffix}"
    if suffix == ".parquet":
        columns = {name: [row[at] for row in rows[1:]] for at, name in enumerate(rows[0])}
        compression = data.draw(st.sampled_from(("none", "snappy", "zstd", "gzip")))
        pq.write_table(pa.table(columns), path, compression=compression)
    else:
        path.write_bytes(gzip.compress(as_csv(rows), mtime=0))
    path.write_bytes(data.draw(damaged_bytes(path.read_bytes())))
    try:
        if suffix == ".parquet":
            table = pq.read_table(path, use_threads=False)
            texts = [
                [str(value) if value is not None else "" for value in column.to_pylist()] for column in table.columns
            ]
            actual = [table.column_names, *(list(row) for row in zip(*texts, strict=True))]
        else:
            actual = slow_csv(gzip.decompress(path.read_bytes()))
    except (Wrong, OSError, EOFError, ValueError, pa.ArrowException, zlib.error):
        actual = None
    check_panel(folder, path.name, actual)


# ---------------------------------------------------------------------------------------------------- resumes


@functools.lru_cache
def composed() -> ResumeSettings:
    corpus = settings_of(["data=resumes"]).data.corpora["resumes"]
    assert isinstance(corpus, ResumeSettings)
    return corpus


def resume_settings(path: Path, **changes: Any) -> ResumeSettings:
    """Settings of a file of jobs with the codes 1, 2 and 3, which is merged into 1."""
    titles = path.parent / "codes.csv"
    titles.write_text("code,title\n1,Cooks\n2,Bakers\n3,Cooks\n")
    columns = dataclasses.replace(composed().columns, title=None, code="code", gender="gender")
    vocabulary = VocabularySettings(str(titles), "code", "title", "merge")
    return dataclasses.replace(
        composed(),
        **{"path": str(path), "columns": columns, "vocabulary": vocabulary, "occupation_from": "code",
           "last_year": 2020, "people": "anywhere", **changes},
    )  # fmt: skip


RESUME_HEADER = ["id", "code", "start", "end", "education", "gender"]
RESUME_CODES = {"1": "1", "2": "2", "3": "1"}
RESUME_CELLS: dict[str, list[Any]] = {
    "id": ["a", "a", "b", "12", 12, 12.0, "12.0"],
    "code": ["1", 2, 2.0, "3", "3.0", None, "9", "x"],
    "start": ["2010", 2011, 2012.0, "2010-05", "05/2011", "May 2012", "Q3 2011", "2012-02-29", "2011.06", "20110517",
              "17 Sept 2010", "Mar 3, 2012", 1.2e12, 1300000000000, "2010-06-30T08:30:00Z", "June, 2012", {"year": 2011},
              {"year": "2012", "month": 2, "day": 29}, {"$date": "2012-02-03"}, None],
    "end": ["2013", "2013-02", "2014-06-15", "Present", "current", None, "12/2013", 2015, "2014-Q1", {"year": 2013, "month": 7}],
    "education": [None, "", "college", 12, 12.0, "na"],
    "gender": [None, "f", "f"],
}  # fmt: skip
BAD_RESUME_CELLS: dict[str, list[Any]] = {
    "id": [None, "", True, [], {}, float("inf"), 1e16, 12.5, "\ud800", "a\nb", 10**400],
    "code": [True, [1], {"x": 1}, float("nan"), "\x00", 10**30],
    "start": ["soon", "2010-13", "2011-02-29", "1849", 20101, "0", True, [2010], {"year": None}, {"year": 2010, "x": 1},
              {"day": 3}, float("inf"), float("nan"), -1, 10**400, "2010-05-01T99", "\u0662\u0660\u0661\u0660", "2199", "x" * 300,
              "2010 - 2012", "2010-2011", "Feb 2010 to Present"],
    "end": ["2009", "2011-02-30", "", "soon", {"$date": {"$numberLong": "1"}}, False, "0", "1e400", 10**13],
    "education": ["\x1b[31m", True, ["x"], "a\u2029b"],
    "gender": ["m", "\n", 1.5, "[/bold]"],
}  # fmt: skip


@st.composite
def rows_of_resumes(draw: st.DrawFn, *, num_bad: int = 2) -> list[dict[str, Any]]:
    rows = draw(
        st.lists(
            st.fixed_dictionaries({name: st.sampled_from(cells) for name, cells in RESUME_CELLS.items()}),
            min_size=1,
            max_size=6,
        )
    )
    for _ in range(draw(st.sampled_from((0, 0, 1, num_bad)))):
        name = draw(st.sampled_from(RESUME_HEADER))
        draw(st.sampled_from(rows))[name] = draw(st.sampled_from(BAD_RESUME_CELLS[name]))
    return rows


def json_text(value: Any, *, is_date: bool) -> str:
    """Return a value of JSON as the text of a cell."""
    if value is None or value != value:
        return ""
    if isinstance(value, dict) and is_date:
        if value.keys() == {"$date"}:
            return json_text(value["$date"], is_date=False)
        value = {name.lower(): part for name, part in value.items()}  # Year and YEAR are year
        parts = [json_text(value.get(name), is_date=False) for name in ("year", "month", "day")]
        if not value.keys() <= {"year", "month", "day"} or (not parts[0] and any(parts)):
            raise Wrong("no date")
        return "-".join(part.zfill(2) for part in parts if part)
    if isinstance(value, (bool, list, dict)):
        raise Wrong("no cell")
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return repr(value) if isinstance(value, float) else str(value)


def slow_resumes(
    rows: list[dict[str, Any]], *, leave_out: bool, codes: Mapping[str, str] = RESUME_CODES
) -> list[CareerHistory | None]:
    """Return everybody's career, None where nothing is left of it; raise Wrong where the file must be refused."""
    people: dict[str, list[dict[str, str]]] = {}
    if not rows:
        raise Wrong("no rows")
    for row in rows:
        cells = {name: plain(json_text(row.get(name), is_date=name in ("start", "end"))) for name in RESUME_HEADER}
        if not all(cells[name].isprintable() for name in ("id", "education", "gender")):
            raise Wrong("signs")
        people.setdefault(person_in(cells["id"]), []).append(cells)
    return [slow_career(person, jobs, codes, leave_out=leave_out) for person, jobs in people.items()]


def slow_career(
    person: str, rows: list[dict[str, str]], codes: Mapping[str, str], *, leave_out: bool
) -> CareerHistory | None:
    genders = {known(row["gender"]) for row in rows} - {None}
    if len(genders) > 1:
        raise Wrong("gender changes")
    held: list[tuple[date, date | None, dict[str, str]]] = []
    for row in rows:
        if row["start"].casefold() not in MISSING:
            try:
                held.append((*slow_span(row["start"], row["end"]), row))
            except Wrong:
                if not leave_out:
                    raise
    starts = sorted(start for start, _, _ in held)
    last = date(2020, 12, 31)
    ended = [
        (start, end or next((each - timedelta(days=1) for each in starts if each > start), last), row)
        for start, end, row in held
    ]
    jobs: list[Job] = []
    education = None
    for year, row in slow_years([(start, end, row) for start, end, row in ended]).items():
        education = known(row["education"]) or education
        code = codes.get(row["code"]) or codes.get(code_in(row["code"]))
        if code is not None:
            jobs.append(Job(year, code, education))
    if not jobs:
        return None
    return CareerHistory(person, "R", None, genders.pop() if genders else None, None, None, tuple(jobs))


def slow_span(start: str, end: str) -> tuple[date, date | None]:
    """Return the first and the last day of a job; None where it has no end."""
    if (end.casefold() in MISSING and len(both := start.replace(" to ", " - ").split(" - ")) == 2) or (
        end.casefold() in MISSING and len(both := start.split("-")) == 2 and len(both[1]) == 4 and len(both[0]) == 4
    ):
        start, end = both
    begins, last = slow_dates(start), date(2020, 12, 31)
    if len(begins) != 1:
        raise Wrong("start")
    first = begins.pop()[0]
    if first > last:
        raise Wrong("late")
    if end.casefold() in MISSING:
        return first, None
    if end.casefold() in ("present", "current", "now", "today", "ongoing"):
        return first, last
    ends = slow_dates(end)
    if len(ends) != 1 or min(ends.copy().pop()[1], last) < first:
        raise Wrong("end")
    return first, min(ends.pop()[1], last)


def check_resumes(path: Path, rows: list[dict[str, Any]] | None, bad_dates: str) -> None:
    """Read resumes; `rows` are what a slow reader finds in the file, None where it finds no JSON."""
    settings = resume_settings(path, bad_dates=bad_dates)
    result = outcome(lambda: [person().career for person in resume_people(settings, survey="R")])
    try:
        if rows is None:
            raise Wrong("no JSON")
        careers = slow_resumes(rows, leave_out=bad_dates == "leave_out")
    except Wrong as wrong:
        assert isinstance(result, Rejection), f"{wrong}: {result}"
        return
    if all(any(name in row for row in rows) for name in RESUME_HEADER):
        assert result == careers


def as_json_lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def slow_json_lines(content: bytes) -> list[dict[str, Any]] | None:
    """Return the objects of a file, None where it is none of JSON lines, or a name stands twice in an object."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("twice")
        return dict(pairs)

    try:
        lines = content.removeprefix(b"\xef\xbb\xbf").decode().split("\n")
        rows = [json.loads(line, object_pairs_hook=once) for line in lines if line.strip()]
    except (ValueError, RecursionError):
        return None
    return rows if all(isinstance(row, dict) for row in rows) and "\0" not in content.decode() else None


@given(rows_of_resumes(), st.sampled_from(("error", "leave_out")), st.sampled_from((".jsonl", ".jsonl.gz")))
@fuzz(250)
def test_resumes_are_read_as_they_are_meant_or_refused(
    folder: Path, rows: list[dict[str, Any]], bad_dates: str, suffix: str
) -> None:
    path, content = folder / f"r{suffix}", as_json_lines(rows)
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    check_resumes(path, rows, bad_dates)


@given(st.data())
@fuzz(200)
def test_damaged_resumes_are_read_as_they_then_stand_or_refused(folder: Path, data: st.DataObject) -> None:
    content = data.draw(damaged_bytes(as_json_lines(data.draw(rows_of_resumes(num_bad=0)))))
    (folder / "r.jsonl").write_bytes(content)
    check_resumes(folder / "r.jsonl", slow_json_lines(content), data.draw(st.sampled_from(("error", "leave_out"))))


@given(rows_of_resumes(), st.sampled_from((2, 6)))
@fuzz(100)
def test_numbered_columns_give_the_careers_of_one_row_a_job_or_a_refusal(
    folder: Path, rows: list[dict[str, Any]], num_slots: int
) -> None:
    """The same jobs in another shape: a person a line, whose jobs have numbers."""
    people: dict[str, list[dict[str, Any]]] = {}
    try:
        for row in rows:
            people.setdefault(person_in(plain(json_text(row["id"], is_date=False))), []).append(row)
    except Wrong:
        return
    genders = {person: next((row["gender"] for row in jobs if row["gender"]), None) for person, jobs in people.items()}
    names = ("code", "start", "end", "education")
    wide = [
        {"id": jobs[0]["id"], "gender": genders[person]}
        | {f"{name}_{at}": row[name] for at, row in enumerate(jobs) for name in names}
        for person, jobs in people.items()
    ]
    (folder / "w.jsonl").write_bytes(as_json_lines(wide))
    (folder / "r.jsonl").write_bytes(as_json_lines(rows))
    columns = {name: f"{name}_{{}}" for name in names}
    settings = resume_settings(folder / "w.jsonl", rows="job", num_slots=None)
    settings = dataclasses.replace(
        settings, rows="person", num_slots=num_slots, columns=dataclasses.replace(settings.columns, **columns)
    )
    result = outcome(lambda: [person().career for person in resume_people(settings, survey="R")])
    narrow = resume_settings(folder / "r.jsonl")
    other = outcome(lambda: [person().career for person in resume_people(narrow, survey="R")])
    seen = {name for row in wide for name in row}
    has_all = seen >= {"gender", *(f"{name}_0" for name in names)}
    if isinstance(other, Rejection) or max(map(len, people.values())) > num_slots or not has_all:
        return
    assert isinstance(result, Rejection) or result == other


# ---------------------------------------------------------------------------------------------------- dates

DATE_FORMATS = (
    "%Y-%m-%d", "%d.%m.%Y", "%m/%d/%Y", "%d-%m-%Y", "%Y%m%d", "%d %b %Y", "%b %d, %Y", "%B %Y", "%m/%Y", "%Y", "%Y.%m",
    "%Y-%m-%dT%H:%M:%SZ", "%s000", "Q2 %Y", "%Y-Q3", "%b. %Y",
)  # fmt: skip


@given(st.dates(date(1845, 1, 1), date(2105, 12, 31)), st.sampled_from(DATE_FORMATS), st.data())
@fuzz(300)
def test_a_damaged_date_means_what_strptime_makes_of_it_or_nothing(day: date, form: str, data: st.DataObject) -> None:
    text = day.strftime(form)
    if data.draw(st.booleans()):
        text = data.draw(damaged_bytes(text.encode())).decode("utf-8", "surrogateescape")
    order = data.draw(st.sampled_from((None, "day_first", "month_first")))
    possible = slow_dates(text)
    try:
        result = read_days(text, order)
    except NotADateError as error:
        check_message(str(error))
        if text == day.strftime(form) and 1850 <= day.year <= 2100:
            assert len(possible) != 1 or order is not None, text
        return
    assert result in possible, f"{text!r} is {result}, not {possible}"
    assert order is not None or len(possible) == 1
    assert split_range(text, lambda word: word == "now") is None


# ---------------------------------------------------------------------------------------------------- titles

TITLES = [["code", "title", "note"], ["1", "Cooks", "x"], ["2.0", "Bakers, head", ""], ["03", 'The "Aide"', "y"], ["x y", "Maids", ""]]  # fmt: skip


@given(st.data())
@fuzz(200)
def test_a_damaged_list_of_titles_is_the_one_that_then_stands_or_refused(folder: Path, data: st.DataObject) -> None:
    content = data.draw(damaged_bytes(as_csv(TITLES)))
    (folder / "t.csv").write_bytes(content)
    same_titles = data.draw(st.sampled_from(("error", "merge")))
    settings = VocabularySettings(str(folder / "t.csv"), "code", "title", same_titles)
    result = outcome(lambda: read_occupations(settings))
    try:
        codes, titles = slow_titles(slow_csv(content), same_titles)
    except Wrong as wrong:
        assert isinstance(result, Rejection), f"{wrong}: {result}"
        return
    assert not isinstance(result, Rejection), result.text
    assert dict(zip(result.vocabulary.codes, result.vocabulary.titles, strict=True)) == titles
    assert dict(result.code_of) == codes


def slow_titles(
    rows: list[list[str]], same_titles: str, columns: tuple[str, str] = ("code", "title")
) -> tuple[dict[str, str], dict[str, str]]:
    """Return what each code stands for, and the title of each of these."""
    names = list(map(plain, rows[0])) if rows else []
    if not set(columns) <= set(names) or any(len(row) != len(names) for row in rows):
        raise Wrong("columns")
    pairs = [tuple(plain(row[names.index(name)]) for name in columns) for row in rows[1:]]
    if not pairs or not all(cell and cell.isprintable() for pair in pairs for cell in pair):
        raise Wrong("cells")
    spelled = [code for code, _ in pairs]
    if len(set(spelled)) < len(pairs) or (same_titles == "error" and len({title for _, title in pairs}) < len(pairs)):
        raise Wrong("twice")
    alike = [code_in(code) for code in spelled]
    codes, first = {}, {}
    for code, title in pairs:
        code = code_in(code) if alike.count(code_in(code)) == 1 else code
        codes[code] = first.setdefault(title, code)
    return codes, {code: title for title, code in first.items()}


# ---------------------------------------------------------------------------------------------------- JobHop and ESCO

# Rows of ESCO's own list: several lines in a cell, no-break spaces, two codes with one label.
ESCO = [
    ["conceptType", "iscoGroup", "code", "preferredLabel", "altLabels"],
    ["Occupation", "1120", "1120.1", "president\u00a0of the board", "chair\nchairman"],
    ["Occupation", "5120", "5120.1", "cook", ""], ["Occupation", "2166", "2166.10", "web designer", '"web" artist'],
    ["Occupation", "2166", "2166.1.2", "web\u00a0designer", ""],
]  # fmt: skip
JOBHOP_NAMES = {
    "resume_id": "id", "matched_code": "code", "start_date": "start", "end_date": "end", "university_level": "education",
}  # fmt: skip
JOBHOP_CELLS = {
    "resume_id": ["1", "1", "2", "2.0"],
    "matched_code": ["1120.1", "5120.1", "2166.10", "2166.1.2", "1120.10", "", "0000.1"],
    "start_date": ["Q1 2010", "Q3 2011", "Q4 2012", "2012-Q2", "Q1 2019"],
    "end_date": ["Q2 2013", "Q4 2019", "Present", "", "Q1 2030"],
    "university_level": ["", "bachelor", "BSc\u00a0(Hons)"],
}


@functools.lru_cache
def composed_jobhop() -> ResumeSettings:
    corpus = settings_of(["data=jobhop"]).data.corpora["jobhop"]
    assert isinstance(corpus, ResumeSettings)
    return dataclasses.replace(corpus, last_year=2020)


@given(st.data(), st.sampled_from((".csv", ".parquet")))
@fuzz(200)
def test_damaged_files_of_jobhop_and_esco_are_read_as_they_then_stand_or_refused(
    folder: Path, data: st.DataObject, suffix: str
) -> None:
    rows = data.draw(
        st.lists(st.tuples(*map(st.sampled_from, JOBHOP_CELLS.values())).map(list), min_size=1, max_size=5)
    )
    jobs, esco = as_csv([list(JOBHOP_NAMES), *rows]), as_csv(ESCO)
    if suffix == ".parquet" or data.draw(st.booleans()):
        esco = data.draw(damaged_bytes(esco))
    else:
        jobs = data.draw(damaged_bytes(jobs))
    path = folder / f"jobhop{suffix}"
    if suffix == ".csv":
        path.write_bytes(jobs)
    else:
        table = {name: [row[at] or None for row in rows] for at, name in enumerate(JOBHOP_NAMES)}
        pq.write_table(pa.table(table, schema=pa.schema(dict.fromkeys(JOBHOP_NAMES, pa.string()))), path)
    (folder / "esco.csv").write_bytes(esco)
    vocabulary = dataclasses.replace(composed_jobhop().vocabulary, path=str(folder / "esco.csv"))
    settings = dataclasses.replace(composed_jobhop(), path=str(path), vocabulary=vocabulary)
    result = outcome(lambda: [person().career for person in resume_people(settings, survey="R")])
    try:
        codes, _ = slow_titles(slow_csv(esco), "merge", ("code", "preferredLabel"))
        careers = slow_resumes(slow_jobhop(slow_csv(jobs)), leave_out=False, codes=codes)
    except Wrong as wrong:
        assert isinstance(result, Rejection), f"{wrong}: {result}"
        return
    assert result == careers


def slow_jobhop(rows: list[list[str]]) -> list[dict[str, Any]]:
    """Return the jobs of a table with the columns of JobHop."""
    names = list(map(plain, rows[0])) if rows else []
    if not set(JOBHOP_NAMES) <= set(names) or len(set(names)) < len(names):
        raise Wrong("columns")
    if any(len(row) != len(names) for row in rows):
        raise Wrong("length")
    return [{JOBHOP_NAMES.get(name, name): cell for name, cell in zip(names, row, strict=True)} for row in rows[1:]]


# ---------------------------------------------------------------------------------------------------- careers to predict

VOCABULARY = OccupationVocabulary(("1", "2", "c d"), ("Cooks", "Bakers", "Maids"))
REQUEST = {
    "person": "Ann", "survey": "P", "birth_year": 1960, "gender": "female", "region": "south",
    "jobs": [{"year": 1984, "occupation": "Cooks", "education": "college"}, {"year": "1986.0", "occupation": 2}],
    "next": {"year": 1990, "education": "phd"},
}  # fmt: skip
ANOTHER = {"person": 12.0, "jobs": [{"year": 1990, "occupation": "maids"}]}


@given(st.data(), st.sampled_from(("json", "jsonl", "damaged")))
@fuzz(250)
def test_damaged_careers_to_predict_for_are_read_as_they_then_stand_or_refused(
    folder: Path, data: st.DataObject, form: str
) -> None:
    people = data.draw(damaged_trees([REQUEST, ANOTHER]))
    path = folder / ("a.jsonl" if form == "jsonl" and isinstance(people, list) else "a.json")
    text = "".join(json.dumps(person) + "\n" for person in people) if path.suffix == ".jsonl" else json.dumps(people)
    content = text.encode()
    if form == "damaged":
        people, content = None, data.draw(damaged_bytes(json.dumps([REQUEST, ANOTHER]).encode()))
    path.write_bytes(content)
    surveys = ("P", "Q")[: data.draw(st.sampled_from((1, 2)))]
    result = outcome(lambda: read_requests(path, VOCABULARY, surveys))
    try:
        careers = slow_requests(slow_json(content), surveys)
    except (Wrong, ValueError) as wrong:
        assert isinstance(result, Rejection), f"{wrong}: {result}"
        return
    assert result == careers


def slow_json(content: bytes) -> list[Any]:
    """Return the values of a list, or of a file that has one after the other; raise ValueError where it is no JSON."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("twice")
        return dict(pairs)

    text, values = content.removeprefix(b"\xef\xbb\xbf").decode().strip(" \t\r\n"), []
    while text:
        value, end = json.JSONDecoder(object_pairs_hook=once).raw_decode(text)
        values, text = [*values, value], text[end:].lstrip(" \t\r\n")
        if isinstance(value, list) and len(values) == 1:
            if text:
                raise Wrong("something after the list")
            return value
    return values


def slow_requests(people: list[Any], surveys: tuple[str, ...]) -> list[PredictionRequest]:
    """Return the careers that objects ask for."""
    careers: dict[tuple[str, str], PredictionRequest] = {}
    for value in people:
        cells = slow_texts(value, {"person", "survey", *OPTIONAL[:4], "jobs", "next"})
        survey = cells.get("survey", "")
        survey = surveys[0] if survey.casefold() in MISSING and len(surveys) == 1 else survey
        if survey not in surveys:
            raise Wrong("survey")
        key = (survey, person_in(cells.get("person", "")))
        if key in careers:
            raise Wrong("twice")
        facts = {name: known(cells.get(name)) for name in OPTIONAL[:4]}
        born = None if facts["birth_year"] is None else year_in(facts["birth_year"])
        careers[key] = slow_request(key, value, (born, facts["gender"], facts["ethnicity"], facts["region"]))
    if not careers:
        raise Wrong("nobody")
    return list(careers.values())


def slow_request(key: tuple[str, str], value: dict[str, Any], facts: tuple[Any, ...]) -> PredictionRequest:
    jobs, next_job = value.get("jobs"), value.get("next")
    if not isinstance(jobs, list | None):
        raise Wrong("jobs")
    years: dict[int, Job] = {}
    expected: list[tuple[int, str | None]] = []
    for job in [*(jobs or []), *([] if next_job is None else [next_job])]:
        is_next = job is next_job
        cells = slow_texts(job, {"year", "education", *(() if is_next else ("occupation",))})
        year, education = year_in(cells.get("year", "")), known(cells.get("education"))
        occupation = cells.get("occupation", "")
        if not is_next and not occupation:
            raise Wrong("a job without an occupation")
        alike = [code for code, title in VOCABULARY.title_of().items() if title.casefold() == occupation.casefold()]
        codes = [code for code in (occupation, code_in(occupation), *alike) if code in VOCABULARY.codes]
        if is_next or (not codes and occupation.casefold() in MISSING):
            expected.append((year, education))
        elif not codes or year in years:
            raise Wrong("occupation or year")
        else:
            years[year] = Job(year, codes[0], education)
    last = max(years, default=0)
    if len(expected) > 1 or (not expected and not years) or (expected and expected[0][0] <= last):
        raise Wrong("year to predict")
    year, education = expected[0] if expected else (last + 1, None)
    if facts[0] is not None and min([*years, *([year] if expected else [])]) < facts[0]:
        raise Wrong("birth")
    in_order = tuple(job for _, job in sorted(years.items()))
    before = [job.education for job in in_order if job.education is not None]
    history = CareerHistory(key[1], key[0], *facts, in_order)
    return PredictionRequest(history, year, education or (before[-1] if before else None))


def slow_texts(value: Any, names: set[str]) -> dict[str, str]:
    if not isinstance(value, dict) or not value.keys() <= names:
        raise Wrong("names")
    cells = {}
    for name, each in value.items():
        if name in ("jobs", "next"):
            continue
        if isinstance(each, float) and each == each and not each.is_integer():
            raise Wrong("a fraction")
        cells[name] = plain(json_text(each, is_date=False))
        if not cells[name].isprintable():
            raise Wrong("signs")
    return cells


# ---------------------------------------------------------------------------------------------------- CAREER's files

CAREER_FILES = {
    "train.job": "1 2.0 03\n2\n", "train.year": "2005 2006 2010.0\n1999\n", "train.education": "b a_b phd\nunknown\n",
    "train.gender": "female\nmale\n", "test.job": "x%20y\n", "test.year": "2001\n", "test.education": "NA\n",
    "test.gender": "a%5Fb\n",
}  # fmt: skip
CAREER_CODES = {"1": "1", "2": "2", "2.0": "2", "03": "03", "x%20y": "x%20y"}


@given(st.data())
@fuzz(150)
def test_damaged_parallel_text_files_are_read_as_they_then_stand_or_refused(folder: Path, data: st.DataObject) -> None:
    inside = folder / "career"
    inside.mkdir(exist_ok=True)
    files = {name: text.encode() for name, text in CAREER_FILES.items()}
    chosen = data.draw(st.sampled_from(sorted(files)))
    files[chosen] = data.draw(damaged_bytes(files[chosen]))
    for name, content in files.items():
        (inside / name).write_bytes(content)
    (folder / "codes.csv").write_text("code,title\n1,Cooks\n2,Bakers\n03,Maids\nx%20y,Aides\n")
    codes = VocabularySettings(str(folder / "codes.csv"), "code", "title", "error")
    settings = CareerTextSettings(str(inside), codes, ("unknown", *MISSING_WORDS))
    result = outcome(lambda: [person().career for person in career_text_people(settings, survey="C")])
    try:
        careers = [career for split in ("train", "test") for career in slow_career_text(split, files)]
    except (Wrong, UnicodeDecodeError) as wrong:
        assert isinstance(result, Rejection), f"{wrong}: {result}"
        return
    assert result == careers


def slow_career_text(split: str, files: dict[str, bytes]) -> list[CareerHistory]:
    """Return the careers of a split: line by line, in all of its files."""
    lines = {}
    for kind in ("job", "year", "education", "gender"):
        text = files[f"{split}.{kind}"].removeprefix(b"\xef\xbb\xbf").decode()
        if "\0" in text:
            raise Wrong("NUL")
        lines[kind] = text.removesuffix("\n").split("\n") if text else []
    if len({len(each) for each in lines.values()}) > 1:
        raise Wrong("lines")
    careers = []
    for number, row in enumerate(zip(*lines.values(), strict=True), start=1):
        jobs, years, educations, genders = (line.split() for line in row)
        if not jobs or not len(jobs) == len(years) == len(educations) or len(genders) != 1:
            raise Wrong("values")
        numbers = list(map(year_in, years))
        if sorted(set(numbers)) != numbers or any(
            code not in CAREER_CODES and code_in(code) not in CAREER_CODES for code in jobs
        ):
            raise Wrong("order or code")
        occupations = [CAREER_CODES.get(code) or CAREER_CODES[code_in(code)] for code in jobs]
        levels = map(slow_word, educations)
        career_jobs = tuple(map(Job, numbers, occupations, levels))
        careers.append(
            CareerHistory(f"{split}-{number:07d}", "C", None, slow_word(genders[0]), None, None, career_jobs)
        )
    return careers


def slow_word(word: str) -> str | None:
    """Return what a word of these files stands for: _ is a blank, %5F is _."""
    if word.casefold() in {"unknown", *MISSING}:
        return None
    letters = re.sub("%[0-9A-F][0-9A-F]", lambda match: chr(int(match[0][1:], 16)), word.replace("_", " "))
    if not plain(letters).isprintable():
        raise Wrong("signs")
    return plain(letters)


def test_enough_tables_were_tried(request: pytest.FixtureRequest) -> None:
    check_number_of_cases(request)
