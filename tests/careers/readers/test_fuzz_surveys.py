"""Extracts of surveys, damaged: refused, or read as before wherever what a person's number is in stands as before."""

from __future__ import annotations

import functools
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers.fuzzing import Rejection, check_number_of_cases, damaged_bytes, fuzz, limited_memory, outcome
from helpers.nls import BOUNDS, NOBODY, SILENT, WOMAN, WOMAN_YEARS, made_rows, write_extract
from helpers.psid import PARTNER, wave, write_cart, write_packaged
from helpers.reference.slow_tables import Wrong, number_in, slow_csv
from hypothesis import given
from hypothesis import strategies as st

from laborllm_dist.careers.person_records import PersonRecord
from laborllm_dist.careers.readers.nls.people import nls_people
from laborllm_dist.careers.readers.psid.people import psid_people
from laborllm_dist.config.corpora import SurveySettings

FIRST_YEAR = 2013  # of the downloads: five waves
HEAD = {
    ("ER30001", 0): 5, ("ER30002", 0): 1, ("ER32000", 0): 1, ("birth_year", 2013): 1950, ("birth_year", 2015): 1950,
    **wave(2013, 11, 10, rp_employment_status=1, rp_occ_2000code=402, region=1, rp_race_1=1, grades_completed=12),
    **wave(2015, 12, 10, rp_employment_status=3, rp_occ_2000code=0, region=3, rp_race_1=1),
    **wave(2017, 13, 10, rp_employment_status=1, rp_occ_2010code=4020, rp_race_1=1, grades_completed=13),
    **wave(2021, 35, 20, sp_employment_status=1, sp_occ_2010code=4110, sp_race_1=1),
}  # fmt: skip
CHILD = {("ER30001", 0): 5, ("ER30002", 0): 30, ("ER32000", 0): 2, **wave(2013, 11, 30), ("age", 2013): 9}
PEOPLE = [HEAD, PARTNER, CHILD]
# Where a set-up file lists the variables, and the header before it.
SECTIONS = {".do": (b"JOBID", b"using"), ".sas": (b"INFILE", b"run ;"), ".sps": (b"LRECL", b"EXECUTE")}
Read = Callable[[Path], list[PersonRecord]]
NUMBERS = (
    "-1",
    "-4",
    "0",
    "1",
    "9",
    " ",
    "  ",
    "99999",
    "1979",
    "2010",
    "R0000100",
    "TO",
    ":",
    "-" * 80,
    "\n",
    "TOTAL",
    "Mean:",
)


@pytest.fixture(scope="module", autouse=True)
def memory() -> Iterator[None]:
    with limited_memory():
        yield


def read_nls(path: Path) -> list[PersonRecord]:
    people = nls_people(SurveySettings(path=str(path), variables="all", **BOUNDS), "NLSY79", survey="NLSY79")
    return [person() for person in people]


def read_psid(path: Path) -> list[PersonRecord]:
    settings = SurveySettings(path=str(path), variables="all", **{**BOUNDS, "first_year": FIRST_YEAR})
    return [person() for person in psid_people(settings, survey="PSID")]


@pytest.fixture(scope="module")
def extracts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Make the same people in every form in which the sites give them."""
    folder = tmp_path_factory.mktemp("surveys")
    rows = made_rows("NLSY79", [WOMAN, SILENT, NOBODY], [WOMAN_YEARS, {1990}, set()])
    made = {
        f"nls {form}": write_extract(folder / form, "NLSY79", rows, form=form)
        for form in ("references", "codebook", "dat", "zip")
    }
    made |= {
        f"psid {form}": write_cart(folder / form, PEOPLE, form=form, first_year=FIRST_YEAR)
        for form in ("do", "sas", "sps")
    }
    made["psid packaged"] = write_packaged(folder / "packaged", PEOPLE, form="sas", first_year=FIRST_YEAR)
    made["psid zip"] = folder / "J220485.zip"
    with zipfile.ZipFile(made["psid zip"], "w", zipfile.ZIP_DEFLATED) as archive:
        for path in made["psid do"].iterdir():
            archive.write(path, path.name)
    return made


@functools.lru_cache
def read_before(read: Read, where: Path) -> list[PersonRecord]:
    """Return the people of an extract that nothing is wrong with."""
    return read(where)


def read_damaged(path: Path, content: bytes, where: Path, read: Read) -> list[PersonRecord] | Rejection:
    """Read an extract with other content in one of its files."""
    before = path.read_bytes()
    read_before(read, where)
    path.write_bytes(content)
    try:
        return outcome(lambda: read(where))
    finally:
        path.write_bytes(before)


def tables_of(where: Path, *suffixes: str) -> list[Path]:
    return sorted(path for path in ([where] if where.is_file() else where.iterdir()) if path.suffix in suffixes)


@given(st.data(), st.sampled_from(("nls codebook", "nls zip", "nls dat", "nls dat")))
@fuzz(180)
def test_an_extract_with_a_codebook_or_checksums_is_refused_or_read_as_before(
    extracts: dict[str, Path], data: st.DataObject, name: str
) -> None:
    where = extracts[name]
    path = data.draw(st.sampled_from(tables_of(where, ".sdf" if name == "nls dat" else ".csv", ".cdb", ".sdf", ".zip")))
    content = data.draw(damaged_bytes(path.read_bytes(), tokens=NUMBERS))
    result = read_damaged(path, content, where, read_nls)
    assert isinstance(result, Rejection) or result == read_before(read_nls, where)


@given(st.data())
@fuzz(100)
def test_people_of_an_extract_whose_rows_stand_as_before_are_read_as_before(
    extracts: dict[str, Path], data: st.DataObject
) -> None:
    where = extracts["nls references"]
    path = where / "made.csv"
    content = data.draw(damaged_bytes(path.read_bytes()))
    result = read_damaged(path, content, where, read_nls)
    try:
        before, rows = slow_csv(path.read_bytes()), slow_csv(content)
        numbers = [list(map(number_in, row)) for row in rows[1:]]
    except Wrong as wrong:
        assert isinstance(result, Rejection), str(wrong)
        return
    if not rows or rows[0] != before[0] or isinstance(result, Rejection):
        assert isinstance(result, Rejection) or result == read_before(read_nls, where)
        return
    assert None not in [number for row in numbers for number in row]
    expected = dict(zip(map(tuple, (map(int, row) for row in before[1:])), read_before(read_nls, where), strict=True))
    for row, person in zip(numbers, result, strict=True):
        assert expected.get(tuple(row), person) == person


@given(st.data(), st.sampled_from(("psid do", "psid sas", "psid sps", "psid zip", "psid packaged")))
@fuzz(250)
def test_a_download_with_a_damaged_layout_is_refused_or_read_as_before(
    extracts: dict[str, Path], data: st.DataObject, name: str
) -> None:
    where = extracts[name]
    path = data.draw(st.sampled_from(tables_of(where, ".do", ".sas", ".sps", ".zip")))
    content = data.draw(damaged_bytes(path.read_bytes(), tokens=NUMBERS, part=SECTIONS.get(path.suffix)))
    result = read_damaged(path, content, where, read_psid)
    assert isinstance(result, Rejection) or result == read_before(read_psid, where)


@given(st.data())
@fuzz(120)
def test_people_of_a_download_whose_records_stand_as_before_are_read_as_before(
    extracts: dict[str, Path], data: st.DataObject
) -> None:
    where = extracts["psid do"]
    path = where / "J220485.txt"
    content = data.draw(damaged_bytes(path.read_bytes(), tokens=NUMBERS))
    result = read_damaged(path, content, where, read_psid)
    if isinstance(result, Rejection):
        return
    expected = dict(zip(path.read_bytes().split(b"\r\n"), read_before(read_psid, where), strict=False))
    records = [line.rstrip(b"\r") for line in content.rstrip(b"\r\n").split(b"\n")]
    for record, person in zip(records, result, strict=True):
        assert expected.get(record, person) == person


def test_enough_surveys_were_tried(request: pytest.FixtureRequest) -> None:
    check_number_of_cases(request)
