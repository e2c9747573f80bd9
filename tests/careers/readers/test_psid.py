"""PSID downloads in their true layouts, and the careers in them, worked out by hand for five people."""

from __future__ import annotations

import functools
import re
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import shared_file
from helpers.errors import raises
from helpers.fuzzing import contents_of, write_contents
from helpers.psid import HEAD, PARTNER, WIDTH, cell, made_variables, setup_text, wave, write_cart, write_packaged
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from laborllm_dist.careers.person_records import Exclusion, PersonRecord
from laborllm_dist.careers.readers.archives import ArchiveMember
from laborllm_dist.careers.readers.psid.concepts import ethnicity_of, psid_years, role_of, status_of
from laborllm_dist.careers.readers.psid.layout import Variable, read_layout
from laborllm_dist.careers.readers.psid.people import psid_people
from laborllm_dist.careers.readers.psid.records import read_columns
from laborllm_dist.careers.readers.psid.sources import psid_files
from laborllm_dist.careers.types import CareerHistory, Job
from laborllm_dist.config.corpora import SurveySettings
from laborllm_dist.errors import LaborError

BOUNDS = {
    "unknown_status": "leave_out",
    "first_year": 1981,
    "last_year": None,
    "youngest_age": None,
    "oldest_age": None,
}


def read(path: Path, **changes) -> list[PersonRecord]:
    survey_settings = SurveySettings(**{"path": str(path), "variables": "all", **BOUNDS, **changes})
    return [person() for person in psid_people(survey_settings, survey="PSID")]


HEAD_READ = PersonRecord(
    CareerHistory(
        "5001", "PSID", 1950, "male", "white", "northeast",
        (
            Job(1981, "436", "high school"),
            Job(1982, "unemployed", "high school"),
            Job(1983, "education", "some college"),
            Job(1984, "435", "some college"),
        ),
    ),
    (Exclusion("working, occupation not ascertained", 1985),),
)  # fmt: skip
# His wife: relation 2 to 1982, 20 from 1983 on, a keeper of the house in 1984; her race is asked from 1985 on.
WIFE = {
    ("ER30001", 0): 5, ("ER30002", 0): 2, ("ER32000", 0): 2, ("age", 1981): 30, ("age", 1982): 31,
    **wave(1981, 11, 2, sp_employment_status=1, sp_occ_1970code=912, region=1),
    **wave(1982, 12, 2, sp_employment_status=1, sp_occ_1970code=600, region=3),
    **wave(1983, 13, 20, sp_employment_status=1, sp_occ_1970code=4),
    **wave(1984, 14, 20, sp_employment_status=6, sp_occ_1970code=912),
    **wave(1985, 15, 20, sp_employment_status=1, sp_occ_1970code=810, sp_race_1=3, sp_hispanic=1, grades_completed=17),
}  # fmt: skip
WIFE_READ = PersonRecord(
    CareerHistory(
        "5002", "PSID", 1951, "female", "hispanic or latino", "northeast",
        (Job(1981, "436"), Job(1982, "905"), Job(1983, "64"), Job(1984, "not_in_labor_force")),
    ),
    (Exclusion("working, occupation code without occ1990dd (census1970)", 1985),),
)  # fmt: skip
PARTNER_READ = PersonRecord(
    CareerHistory(
        "6170", "PSID", 1970, "female", "black or african american", "west",
        (
            Job(2003, "unemployed"),
            Job(2005, "435", "college"),
            Job(2017, "436", "college"),
            Job(2019, "not_in_labor_force", "college"),
            Job(2021, "905", "college"),
        ),
    ),
)  # fmt: skip
# Head once, but moved out by the interview of 1982 (sequence 71): the code 1 is that of the year before.
MOVER = {
    ("ER30001", 0): 7, ("ER30002", 0): 1, ("ER32000", 0): 9,
    **wave(1981, 21, 1, rp_employment_status=0, rp_occ_1970code=915, rp_race_1=7),
    **wave(1982, 22, 1, rp_employment_status=1, rp_occ_1970code=912), ("sequence_no", 1982): 71,
}  # fmt: skip
MOVER_READ = PersonRecord(CareerHistory("7001", "PSID", None, None, "other", None, (Job(1981, "435"),)))
# A child of the house is nobody's observation.
CHILD = {("ER30001", 0): 5, ("ER30002", 0): 3, ("ER32000", 0): 1, **wave(1983, 13, 30), ("age", 1983): 9}
PEOPLE = [HEAD, WIFE, PARTNER, MOVER, CHILD]
READ = [
    HEAD_READ, WIFE_READ, PARTNER_READ, MOVER_READ,
    PersonRecord(None, (Exclusion("never head or spouse in these years"),)),
]  # fmt: skip


@pytest.mark.parametrize("form", ["do", "sas", "sps"])
def test_five_people_by_hand_from_a_cart(form: str, tmp_path: Path) -> None:
    folder = write_cart(tmp_path / "cart", PEOPLE, form=form)
    careers = read(folder)
    for person, expected in zip(careers, READ, strict=True):
        assert person == expected
    assert read(folder / "J220485.txt") == careers
    with zipfile.ZipFile(tmp_path / "J220485.zip", "w") as archive:
        for path in folder.iterdir():
            archive.write(path, path.name)
    assert read(tmp_path / "J220485.zip") == careers


@pytest.mark.parametrize("form", ["do", "sas", "sps"])
def test_the_same_people_from_packaged_files(form: str, tmp_path: Path) -> None:
    folder = write_packaged(tmp_path / "files", PEOPLE, form=form)
    assert read(folder, variables="available") == READ
    # Each in its zip, as the site gives them.
    for table in list(folder.glob("*.txt")):
        with zipfile.ZipFile(table.with_suffix(".zip"), "w") as archive:
            for path in (table, table.with_suffix(f".{form}")):
                archive.write(path, path.name)
                path.unlink()
    assert read(folder, variables="available") == READ
    assert all(path.suffix == ".zip" for path in psid_files(folder))


def test_the_three_languages_of_set_up_files_say_the_same(tmp_path: Path) -> None:
    layouts = [
        read_layout(ArchiveMember(write_cart(tmp_path / form, PEOPLE, form=form) / f"J220485.{form}"))
        for form in ("do", "sas", "sps")
    ]
    assert layouts[0].variables == layouts[1].variables == layouts[2].variables
    assert [layout.num_observations for layout in layouts] == [5, 5, 5]
    assert [layout.record_length for layout in layouts] == [WIDTH * len(made_variables())] * 3


# Columns of several widths, with gaps between them, as the Data Center writes them.
CART_LAYOUT = """#delimit ;
*  PSID DATA CENTER *****************************************************
   JOBID            : 1
   DATA_DOMAIN      : PSID
   N_OF_VARIABLES   : 4
   N_OF_OBSERVATIONS: 950
   MAX_REC_LENGTH   : 70
*************************************************************************
;

infix
      ER30001        2 - 5     ER30002        6 - 8     ER25029       10 - 16
      ER33903       69 - 70
using J1.txt, clear
;

label variable ER30001    "1968 INTERVIEW NUMBER" ;
"""


@pytest.fixture(params=["small", "real"])
def cart_layout(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return a set-up file of a cart: one written here, and the Data Center's own where it is at hand."""
    if request.param == "real":
        return shared_file("data/psid/example_cart_layout.do")
    (tmp_path / "J1.do").write_text(CART_LAYOUT)
    return tmp_path / "J1.do"


def test_a_set_up_file_with_columns_of_several_widths(tmp_path: Path) -> None:
    (tmp_path / "J1.do").write_text(CART_LAYOUT)
    layout = read_layout(ArchiveMember(tmp_path / "J1.do"))
    assert (layout.num_observations, layout.record_length) == (950, 70)
    assert list(layout.variables) == [
        Variable("ER30001", 2, 5), Variable("ER30002", 6, 8), Variable("ER25029", 10, 16), Variable("ER33903", 69, 70),
    ]  # fmt: skip


def test_the_real_set_up_file() -> None:
    layout = read_layout(ArchiveMember(shared_file("data/psid/example_cart_layout.do")))
    assert len(layout.variables) == 17
    assert (layout.num_observations, layout.record_length) == (25_262, 70)
    assert layout.variables[0] == Variable("ER30000", 1, 1)
    assert layout.variables[4] == Variable("ER25029", 10, 16)
    assert layout.variables[-1] == Variable("ER33903", 69, 70)


def test_the_variables_are_those_of_the_cross_year_index() -> None:
    import csv

    from laborllm_dist.careers.readers.psid.concepts import psid_variables

    with shared_file("data/psid/psid_key_variables.csv").open() as file:
        index = {(row["concept"], int(row["year"]), row["variable"]) for row in csv.DictReader(file)}
    assert {(*key, variable) for key, variable in psid_variables().items()} <= index
    unused = {"state_gsa", "state_fips", "employment_status_ind"}
    assert len(psid_variables()) == len({row[:2] for row in index if row[0] not in unused})
    assert psid_variables()["rp_employment_status", 1994] == "ER2068"  # the summary, not the first mention


def test_codes_by_year() -> None:
    assert [role_of(code, 1982) is not None for code in (1, 2, 9, 10, 20)] == [True, True, False, False, False]
    assert [role_of(code, 1983) is not None for code in (1, 2, 10, 20, 22, 88)] == [
        False,
        False,
        True,
        True,
        True,
        False,
    ]
    assert [status_of(3, year) for year in (1975, 1976)] == ["not_working", "unemployed"]
    assert [status_of(5, year) for year in (1975, 1976)] == ["enrolled", "not_working"]
    assert status_of(9, 1990) is None
    assert ethnicity_of(3, 0, 1984) == "hispanic or latino"
    assert ethnicity_of(3, 0, 1985) == "american indian"
    assert ethnicity_of(1, 9, 1990) == "white"
    assert ethnicity_of(5, 0, 2005) == "asian or pacific islander"


def test_years_before_1981_are_read_from_the_retrospective_codes(tmp_path: Path) -> None:
    person = {
        ("ER30001", 0): 9, ("ER30002", 0): 1, ("ER32000", 0): 1,
        **wave(1974, 41, 1, rp_employment_status=1, rp_occ_1970code_retro=912),
        **wave(1975, 42, 1, rp_employment_status=1, rp_occ_1970code_retro=0),
    }  # fmt: skip
    (read_career,) = read(write_cart(tmp_path, [person], first_year=1968), first_year=1968)
    assert read_career.career.jobs == (Job(1974, "436"),)
    assert read_career.drops == (Exclusion("working, occupation not coded in retrospect", 1975),)


# ---------------------------------------------------------------------------------------------- refusals


@pytest.fixture
def cart(tmp_path: Path) -> Path:
    return write_cart(tmp_path / "cart", PEOPLE)


def changed(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


WRONG_SETUPS = {
    ("N_OF_VARIABLES   : ", "N_OF_VARIABLES   : 9"): ("header", "variables"),
    (
        "MAX_REC_LENGTH   : ",
        "MAX_REC_LENGTH   : 9",
    ): ("header", "characters"),
    ("ER30002      6 - 10", "ER30002      5 - 10"): ("line 14, column ER30002: columns 5 - 10", "ER30001", "up to 5"),
    ("ER30002      6 - 10", "ER30002      10 - 6"): ("columns 10 - 6",),
    ("ER30002      6 - 10", "ER30002 six to ten"): ("line 14: 'ER30002 six to ten",),
    ("ER32000 ", "ER30002 "): ("column ER30002", "twice"),
    ("infix", "insheet"): ("no list of variables",),
    ("using", "with"): ("list of variables", "no end"),
}


@pytest.mark.parametrize("change", WRONG_SETUPS)
def test_a_set_up_file_that_contradicts_itself_is_refused(change: tuple[str, str], cart: Path) -> None:
    changed(cart / "J220485.do", *change)
    with raises("data-file/invalid-content", *WRONG_SETUPS[change], cart / "J220485.do", "download the set-up file"):
        read(cart)


def test_broken_data_are_refused_with_line_and_columns(cart: Path) -> None:
    table = cart / "J220485.txt"
    lines = table.read_text().splitlines()
    length = len(lines[0])

    for records, label, *values in (
        (
            [lines[0], lines[1][:-3], *lines[2:]],
            "data-file/invalid-content",
            f"line 2: {length - 3} characters, the set-up file says {length}",
        ),
        (lines[:4], "data-file/invalid-content", "line 4", "5 records"),
        ([*lines, lines[4].replace("3", "4", 1)], "data-file/invalid-content", "line 6", "5 records"),
        (
            ["    x" + lines[0][5:], *lines[1:]],
            "data-file/invalid-content",
            "line 1, column ER30001, columns 1 - 5: '    x'",
        ),
        (["1   5" + lines[0][5:], *lines[1:]], "data-file/invalid-content", "'1   5'"),
        ([], "data-file/invalid-content", "line 1: no records"),
        ([lines[0], *lines[:4]], "data-file/invalid-person-number", "5001", "(ER30001 x 1000 + ER30002)", "twice"),
        (
            ["    0    5" + lines[0][10:], *lines[1:]],
            "data-file/invalid-person-number",
            "person 5 (ER30001 x 1000 + ER30002)",
        ),
        ([lines[0][:-1], lines[1][:-1], *lines[2:]], "data-file/invalid-content", "2 problems"),
    ):
        table.write_text("".join(line + "\r\n" for line in records))
        with raises(label, table, *values):
            read(cart)


def test_missing_variables_are_named(cart: Path) -> None:
    setup = cart / "J220485.do"
    text = setup.read_text()
    setup.write_text(text.replace("ER30343 ", "X30343 ").replace("V7712 ", "X7712 "))
    with raises('data-file/missing-variables', '2', 'ER30343', '1981), V7712 (rp_occ_1970code 1981', 'psid_variables.csv'):  # fmt: skip
        read(cart)
    assert read(cart, variables="available")[2] == PARTNER_READ
    setup.write_text(text.replace("ER30001 ", "X30001 "))
    with raises("data-file/missing-variables", "1", "ER30001"):
        read(cart, variables="available")


def test_a_cart_without_any_readable_year_is_refused(cart: Path) -> None:
    with raises("data-file/missing-variables", "relation_to_rp 1968", "and", "more"):
        read(cart, variables="available", first_year=1968, last_year=1975)


def test_downloads_without_their_parts_are_refused(tmp_path: Path, cart: Path) -> None:
    with raises("data-file/no-file", "nowhere"):
        psid_files(tmp_path / "nowhere")
    (cart / "J220485.do").unlink()
    with raises("data-file/no-setup-file", "J220485.txt", "J220485"):
        psid_files(cart)
    (cart / "J220485.txt").unlink()
    with raises("data-file/no-psid-data-file", "cart"):
        psid_files(cart)
    (tmp_path / "bad.zip").write_bytes(b"PK")
    with raises("data-file/damaged-zip", "bad.zip"):
        psid_files(tmp_path / "bad.zip")


def test_a_renamed_text_file_finds_the_only_set_up_file_and_formats_are_none(cart: Path) -> None:
    shutil.move(cart / "J220485.txt", cart / "mydata.TXT")
    (cart / "J220485_formats.do").write_text("label define X 1 'a'")
    assert read(cart) == READ


def test_a_family_file_without_its_interview_number_is_refused(tmp_path: Path) -> None:
    folder = write_packaged(tmp_path, PEOPLE, form="sas")
    from laborllm_dist.careers.readers.psid.concepts import psid_variables

    number = psid_variables()["fam_interview_no", 1982]
    changed(folder / "FAM1982ER.sas", f"{number} ", f"X{number} ")
    text = (folder / "FAM1982ER.sas").read_text().replace(f"      {number} ", f"      X{number} ")
    (folder / "FAM1982ER.sas").write_text(text)
    with raises("data-file/no-interview-number", "FAM1982ER.txt", number, "1982"):
        read(folder, variables="available")


# ---------------------------------------------------------------------------------------- several files, and their quarrels


def split_cart(folder: Path, *, keep: list[list[int]]) -> Path:
    """Cut a cart by years into J1, J2, ...: each has the people's numbers and the variables of its years."""
    whole = made_variables()
    folder.mkdir()
    for number, years in enumerate(keep, start=1):
        chosen = [each for each in whole if each[1] == "id" or each[2] in years]
        lines = ["".join(cell(person, *entry) for entry in chosen) for person in PEOPLE]
        name = f"J22048{number}"
        (folder / f"{name}.txt").write_text("".join(line + "\r\n" for line in lines))
        (folder / f"{name}.do").write_text(setup_text("do", name, [entry[0] for entry in chosen], len(PEOPLE)))
    return folder


def test_a_cart_cut_by_years_is_joined_by_person(tmp_path: Path) -> None:
    early = [year for year in psid_years(1981, None) if year < 1984]
    late = [year for year in psid_years(1981, None) if year >= 1984]
    folder = split_cart(tmp_path / "two", keep=[early, late])
    assert read(folder) == READ
    # The second cart has its people in another order, and lacks one who is in the first.
    lines = (folder / "J220482.txt").read_text().splitlines()
    (folder / "J220482.txt").write_text("".join(line + "\r\n" for line in lines[:0:-1]))
    changed(folder / "J220482.do", "N_OF_OBSERVATIONS: 5", "N_OF_OBSERVATIONS: 4")
    careers = read(folder)
    assert careers[1:] == READ[1:]
    assert careers[0].career == replace(HEAD_READ.career, jobs=HEAD_READ.career.jobs[:3], birth_year=1950)


def test_a_variable_in_two_files_is_refused(tmp_path: Path) -> None:
    folder = split_cart(tmp_path / "two", keep=[[1981, 1982], [1982, 1983]])
    with raises("data-file/variable-in-two-files", "J220482.txt", "J220481.txt"):
        read(folder, variables="available")


def test_a_family_that_stands_twice_is_refused_with_both_lines(tmp_path: Path) -> None:
    folder = write_packaged(tmp_path, PEOPLE, form="sas")
    lines = (folder / "FAM1982ER.txt").read_text().splitlines()
    (folder / "FAM1982ER.txt").write_text("".join(line + "\n" for line in [*lines, lines[0]]))
    changed(folder / "FAM1982ER.sas", f"N_OF_OBSERVATIONS: {len(lines)}", f"N_OF_OBSERVATIONS: {len(lines) + 1}")
    with raises('data-file/duplicate-interview-number', 'FAM1982ER.txt', '1 and', len(lines) + 1, '12'):  # fmt: skip
        read(folder, variables="available")


def test_a_packaged_file_without_its_set_up_file_is_refused_not_passed_over(tmp_path: Path) -> None:
    folder = write_packaged(tmp_path, PEOPLE, form="sas")
    (folder / "notes.txt").write_text("my notes\n")
    assert read(folder, variables="available") == READ
    (folder / "FAM1982ER.sas").unlink()
    with raises("data-file/no-setup-file", "FAM1982ER.txt"):
        read(folder, variables="available")


def test_a_last_occupation_counts_only_where_the_person_is_known_to_work(tmp_path: Path) -> None:
    person = {
        ("ER30001", 0): 8, ("ER30002", 0): 1, ("ER32000", 0): 1,
        **wave(1984, 41, 10, rp_employment_status=9, rp_occ_1970code=912),
        **wave(2003, 42, 10, rp_employment_status=99, rp_occ_2000code=402),
    }  # fmt: skip
    folder = write_cart(tmp_path / "cart", [person])
    (left_out,) = read(folder)
    assert [job.year for job in left_out.career.jobs] == [1984]  # to 2001 the question is for the present job
    assert left_out.drops == (Exclusion("employment status not known, occupation is of the present or last job", 2003),)
    (counted,) = read(folder, unknown_status="count")
    assert [job.year for job in counted.career.jobs] == [1984, 2003]


def test_bounds_without_any_year_of_the_survey_are_refused(tmp_path: Path) -> None:
    folder = write_cart(tmp_path / "cart", PEOPLE)
    with raises("data-file/no-survey-year-in-range", "2050", "None", "1968", "2021"):
        read(folder, first_year=2050)


def test_data_in_the_layout_of_a_set_up_file(cart_layout: Path, tmp_path: Path) -> None:
    layout = read_layout(ArchiveMember(cart_layout))
    people = [(4, 1), (4, 170), (5, 3)]
    names = ("ER30001", "ER30002", "ER33903")
    places = {variable.name: variable for variable in layout.variables}
    with (tmp_path / "J1.txt").open("w") as file:
        for row in range(layout.num_observations):
            record = [" "] * layout.record_length
            numbers = (*people[row], row) if row < len(people) else (100 + row // 900, 1 + row % 900, row % 90)
            for name, number in zip(names, numbers, strict=True):
                place = places[name]
                record[place.start - 1 : place.end] = str(number).rjust(place.end - place.start + 1)
            file.write("".join(record) + "\r\n")
    columns = read_columns(ArchiveMember(tmp_path / "J1.txt"), layout, names)
    assert {name: columns[name][:3].tolist() for name in names} == {
        "ER30001": [4, 4, 5], "ER30002": [1, 170, 3], "ER33903": [0, 1, 2],
    }  # fmt: skip
    assert len(columns["ER30001"]) == layout.num_observations


FORMS = ["J220485.txt", "J220485.do", "J220485.zip", "IND2021ER.txt", "FAM1982ER.txt", "FAM1982ER.sas"]


@functools.cache
def undamaged(name: str) -> dict[str, bytes]:
    """Return the files of a download of which one has this name."""

    def write(folder: Path) -> None:
        if name.startswith("J"):
            write_cart(folder, PEOPLE)
        else:
            write_packaged(folder, PEOPLE, form="sas")
        if name.endswith(".zip"):
            with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED) as archive:
                for path in [each for each in folder.iterdir() if each.suffix != ".zip"]:
                    archive.write(path, path.name)
                    path.unlink()

    return contents_of(write)


@settings(max_examples=150, deadline=None)
@given(
    damage=st.lists(st.tuples(st.integers(0, 10**6), st.binary(min_size=1, max_size=3)), min_size=1, max_size=4),
    cut=st.integers(0, 300),
    name=st.sampled_from(FORMS),
)
def test_any_damage_is_read_or_refused_with_the_file(tmp_path_factory, damage, cut: int, name: str) -> None:
    folder = tmp_path_factory.mktemp("damage")
    write_contents(folder, undamaged(name))
    path = folder / name
    original = path.read_bytes()
    content = bytearray(original)
    for place, replacement in damage:
        at = place % len(content)
        content[at : at + len(replacement)] = replacement
    path.write_bytes(content[: max(1, len(content) - cut)])
    assume(path.read_bytes() != original)
    try:
        people = read(folder, variables="available")
    except LaborError as error:
        assert str(folder) in str(error)
        assert ADVICE.search(str(error)), str(error)
    else:
        # Nobody vanishes without a word: every person of the file of individuals has a career or a reason.
        assert len(people) == 5
        assert all(person.career is not None or person.drops for person in people)


ADVICE = re.compile(r"download|make a cart|leave one of|add these two|add the variables|needed|is no person")


def test_no_variable_loses_digits_by_a_column_too_few(tmp_path: Path) -> None:
    """Each variable's last column, taken from it in turn, is missed: the values in it stand at the right."""
    folder = write_cart(tmp_path, [PARTNER], first_year=2017)
    setup, names = folder / "J220485.do", made_variables(2017)
    text = setup.read_text()
    for end in range(WIDTH, WIDTH * len(names), WIDTH):
        setup.write_text(text.replace(f" {end - WIDTH + 1} - {end}", f" {end - WIDTH + 1} - {end - 1}"))
        assert setup.read_text() != text
        with raises(
            "data-file/invalid-content", "line 1: column", end, "holds something, but no variable of J220485.do"
        ):
            read(folder, first_year=2017)
    # Blank columns that no variable has are no harm.
    data = folder / "J220485.txt"
    setup.write_text(text.replace(" 6 - 10", " 7 - 10"))
    assert read(folder, first_year=2017)[0].career.person == "6170"
    assert data.read_text()[5] == " "
