"""PSID downloads in their true layouts, and the careers in them, worked out by hand for five people."""

from __future__ import annotations

import shutil
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from conftest import shared_file
from hypothesis import given, settings
from hypothesis import strategies as st
from made_psid import WIDTH, made_variables, write_cart, write_packaged

from laborllm_dist.careers.history import CareerHistory, Job
from laborllm_dist.careers.members import Member
from laborllm_dist.careers.psid.concepts import ethnicity_of, role_of, status_of
from laborllm_dist.careers.psid.layout import Variable, read_layout
from laborllm_dist.careers.psid.people import psid_people
from laborllm_dist.careers.psid.sources import psid_files
from laborllm_dist.careers.reading import Drop, PersonRead
from laborllm_dist.corpus_settings import SurveySettings
from laborllm_dist.errors import DataFileError, LaborError

BOUNDS = {"first_year": 1981, "last_year": None, "youngest_age": None, "oldest_age": None}


def read(path: Path, **changes) -> list[PersonRead]:
    wanted = SurveySettings(**{"path": str(path), "variables": "all", **BOUNDS, **changes})
    return [person() for person in psid_people(wanted, survey="PSID")]


def wave(year: int, interview: int, relation: int, **values: int) -> dict[tuple[str, int], int]:
    """Return a person's values of a year: present, in this family, with this relation."""
    return {
        ("ind_interview_no", year): interview, ("sequence_no", year): 1, ("relation_to_rp", year): relation,
        **{(concept, year): value for concept, value in values.items()},
    }  # fmt: skip


# By hand: 1970 code 912 Cooks -> 436; 915 Waiters -> 435; 2000 code 402 -> 436, 411 Waiters -> 435; 2010 code 4020 -> 436.
# A head who loses his job, then studies; his wife's columns of the same families are hers, below.
HEAD = {
    ("ER30001", 0): 5, ("ER30002", 0): 1, ("ER32000", 0): 1, ("birth_year", 1983): 1950, ("birth_year", 1984): 1950,
    ("birth_year", 1985): 1951,
    **wave(1981, 11, 1, rp_employment_status=1, rp_occ_1970code=912, region=1, rp_race_1=1, grades_completed=12),
    **wave(1982, 12, 1, rp_employment_status=3, rp_occ_1970code=0, region=3, rp_race_1=1),
    **wave(1983, 13, 10, rp_employment_status=7, rp_occ_1970code=0, rp_race_1=1, grades_completed=13),
    **wave(1984, 14, 10, rp_employment_status=2, rp_occ_1970code=915, rp_race_1=1),
    **wave(1985, 15, 10, rp_employment_status=1, rp_occ_1970code=999, rp_race_1=1),
}  # fmt: skip
HEAD_READ = PersonRead(
    CareerHistory(
        "5001", "PSID", 1950, "male", "white", "northeast",
        (
            Job(1981, "436", "high school"),
            Job(1982, "unemployed", "high school"),
            Job(1983, "education", "some college"),
            Job(1984, "435", "some college"),
        ),
    ),
    (Drop("working, occupation not ascertained", 1985),),
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
WIFE_READ = PersonRead(
    CareerHistory(
        "5002", "PSID", 1951, "female", "hispanic or latino", "northeast",
        (Job(1981, "436"), Job(1982, "905"), Job(1983, "64"), Job(1984, "not_in_labor_force")),
    ),
    (Drop("working, occupation code without occ1990dd (census1970)", 1985),),
)  # fmt: skip
# A partner (22) whose last occupation of 2003 does not count, since she looks for work; Alaska is in the west.
PARTNER = {
    ("ER30001", 0): 6, ("ER30002", 0): 170, ("ER32000", 0): 2, ("birth_year", 2003): 1970,
    **wave(2003, 31, 22, sp_employment_status=3, sp_occ_2000code=402, region=5, sp_race_1=2),
    **wave(2005, 32, 22, sp_employment_status=1, sp_occ_2000code=411, region=6, sp_race_1=2, grades_completed=16),
    **wave(2017, 33, 20, sp_employment_status=1, sp_occ_2010code=4020, sp_race_1=2),
    **wave(2019, 34, 20, sp_employment_status=4, sp_occ_2010code=4020, sp_race_1=2),
    **wave(2021, 35, 10, rp_employment_status=1, rp_occ_2010code=9840, rp_race_1=2, sp_occ_2010code=4020),
}  # fmt: skip
PARTNER_READ = PersonRead(
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
MOVER_READ = PersonRead(CareerHistory("7001", "PSID", None, None, "other", None, (Job(1981, "435"),)))
# A child of the house is nobody's observation.
CHILD = {("ER30001", 0): 5, ("ER30002", 0): 3, ("ER32000", 0): 1, **wave(1983, 13, 30), ("age", 1983): 9}
PEOPLE = [HEAD, WIFE, PARTNER, MOVER, CHILD]
READ = [HEAD_READ, WIFE_READ, PARTNER_READ, MOVER_READ, PersonRead(None)]


@pytest.mark.parametrize("form", ["do", "sas", "sps"])
def test_five_people_by_hand_from_a_cart(form: str, tmp_path: Path) -> None:
    folder = write_cart(tmp_path / "cart", PEOPLE, form=form)
    found = read(folder)
    for person, wanted in zip(found, READ, strict=True):
        assert person == wanted
    assert read(folder / "J220485.txt") == found
    with zipfile.ZipFile(tmp_path / "J220485.zip", "w") as archive:
        for path in folder.iterdir():
            archive.write(path, path.name)
    assert read(tmp_path / "J220485.zip") == found


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
        read_layout(Member(write_cart(tmp_path / form, PEOPLE, form=form) / f"J220485.{form}"))
        for form in ("do", "sas", "sps")
    ]
    assert layouts[0].variables == layouts[1].variables == layouts[2].variables
    assert [layout.num_observations for layout in layouts] == [5, 5, 5]
    assert [layout.record_length for layout in layouts] == [WIDTH * len(made_variables())] * 3


def test_the_real_set_up_file() -> None:
    layout = read_layout(Member(shared_file("data/psid/example_cart_layout.do")))
    assert len(layout.variables) == 17
    assert (layout.num_observations, layout.record_length) == (25_262, 70)
    assert layout.variables[0] == Variable("ER30000", 1, 1)
    assert layout.variables[4] == Variable("ER25029", 10, 16)
    assert layout.variables[-1] == Variable("ER33903", 69, 70)


def test_the_variables_are_those_of_the_cross_year_index() -> None:
    import csv

    from laborllm_dist.careers.psid.concepts import psid_variables

    with shared_file("data/psid/psid_key_variables.csv").open() as file:
        index = {(row["concept"], int(row["year"]), row["variable"]) for row in csv.DictReader(file)}
    assert {(*key, variable) for key, variable in psid_variables().items()} <= index
    assert len(psid_variables()) == len({row[:2] for row in index})
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
    (found,) = read(write_cart(tmp_path, [person], first_year=1968), first_year=1968)
    assert found.career.jobs == (Job(1974, "436"),)
    assert found.drops == (Drop("working, occupation not coded in retrospect", 1975),)


# ---------------------------------------------------------------------------------------------- refusals


@pytest.fixture
def cart(tmp_path: Path) -> Path:
    return write_cart(tmp_path / "cart", PEOPLE)


def changed(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


WRONG_SETUPS = {
    ("N_OF_VARIABLES   : ", "N_OF_VARIABLES   : 9"): r"the header says 9\d+ variables, \d+ are listed",
    (
        "MAX_REC_LENGTH   : ",
        "MAX_REC_LENGTH   : 9",
    ): r"the header says records of 9\d+ characters, the variables end at",
    ("ER30002      6 - 10", "ER30002      5 - 10"): r"line 14, column ER30002: columns 5 - 10 overlap ER30001, up to 5",
    ("ER30002      6 - 10", "ER30002      10 - 6"): r"columns 10 - 6 are no columns",
    ("ER30002      6 - 10", "ER30002 six to ten"): r"line 14: 'ER30002 six to ten.*' is no variable with columns",
    ("ER32000 ", "ER30002 "): r"column ER30002: this variable stands twice",
    ("infix", "insheet"): r"no list of variables; is this a set-up file\?",
    ("using", "with"): r"the list of variables has no end",
}


@pytest.mark.parametrize("change", WRONG_SETUPS)
def test_a_set_up_file_that_contradicts_itself_is_refused(change: tuple[str, str], cart: Path) -> None:
    changed(cart / "J220485.do", *change)
    with pytest.raises(DataFileError, match=WRONG_SETUPS[change]) as refusal:
        read(cart)
    assert str(cart / "J220485.do") in str(refusal.value)
    assert "download the set-up file again" in str(refusal.value)


def test_broken_data_are_refused_with_line_and_columns(cart: Path) -> None:
    table = cart / "J220485.txt"
    lines = table.read_text().splitlines()
    length = len(lines[0])

    def refused(*new: str) -> str:
        table.write_text("".join(line + "\r\n" for line in new))
        with pytest.raises(DataFileError) as refusal:
            read(cart)
        assert str(table) in str(refusal.value)
        return str(refusal.value)

    assert f"line 2: {length - 3} characters, the set-up file says {length}" in refused(
        lines[0], lines[1][:-3], *lines[2:]
    )
    assert "line 4: the file ends here; the set-up file says 5 records" in refused(*lines[:4])
    assert "line 6: the file ends here; the set-up file says 5 records" in refused(
        *lines, lines[4].replace("3", "4", 1)
    )
    assert "line 1, column ER30001, columns 1 - 5: '    x' is not a whole number" in refused(
        "    x" + lines[0][5:], *lines[1:]
    )
    assert "'1   5' is not a whole number" in refused("1   5" + lines[0][5:], *lines[1:])
    assert "line 1: no records in the file" in refused()
    assert "person 5001 (ER30001 x 1000 + ER30002) stands twice" in refused(lines[0], *lines[:4])
    assert "person 5 (ER30001 x 1000 + ER30002) is no person" in refused("    0    5" + lines[0][10:], *lines[1:])
    assert "2 problems" in refused(lines[0][:-1], lines[1][:-1], *lines[2:])


def test_missing_variables_are_named(cart: Path) -> None:
    setup = cart / "J220485.do"
    text = setup.read_text()
    setup.write_text(text.replace("ER30343 ", "X30343 ").replace("V7712 ", "X7712 "))
    with pytest.raises(DataFileError, match=r"2 variables of the method are not in this download: ER30343 .* 1981\), V7712 "
                       r"\(rp_occ_1970code 1981\); add the variables of .*psid_variables.csv to the cart"):  # fmt: skip
        read(cart)
    assert read(cart, variables="available")[2] == PARTNER_READ
    setup.write_text(text.replace("ER30001 ", "X30001 "))
    with pytest.raises(DataFileError, match=r"1 variables of the method are not in this download: ER30001;"):
        read(cart, variables="available")


def test_a_cart_without_any_readable_year_is_refused(cart: Path) -> None:
    with pytest.raises(DataFileError, match=r"not in this download: .*relation_to_rp 1968.*and \d+ more"):
        read(cart, variables="available", first_year=1968, last_year=1975)


def test_downloads_without_their_parts_are_refused(tmp_path: Path, cart: Path) -> None:
    with pytest.raises(DataFileError, match=r"no file at .*nowhere"):
        psid_files(tmp_path / "nowhere")
    (cart / "J220485.do").unlink()
    with pytest.raises(DataFileError, match=r"J220485.txt: no set-up file beside it \(J220485.do, .sas or .sps\)"):
        psid_files(cart)
    (cart / "J220485.txt").unlink()
    with pytest.raises(DataFileError, match=r"no .txt file in .*cart; a PSID download has its data as NAME.txt"):
        psid_files(cart)
    (tmp_path / "bad.zip").write_bytes(b"PK")
    with pytest.raises(DataFileError, match=r"bad.zip: not a readable zip file"):
        psid_files(tmp_path / "bad.zip")


def test_a_renamed_text_file_finds_the_only_set_up_file_and_formats_are_none(cart: Path) -> None:
    shutil.move(cart / "J220485.txt", cart / "mydata.TXT")
    (cart / "J220485_formats.do").write_text("label define X 1 'a'")
    assert read(cart) == READ


def test_a_family_file_without_its_interview_number_is_refused(tmp_path: Path) -> None:
    folder = write_packaged(tmp_path, PEOPLE, form="sas")
    from laborllm_dist.careers.psid.concepts import psid_variables

    number = psid_variables()["fam_interview_no", 1982]
    changed(folder / "FAM1982ER.sas", f"{number} ", f"X{number} ")
    text = (folder / "FAM1982ER.sas").read_text().replace(f"      {number} ", f"      X{number} ")
    (folder / "FAM1982ER.sas").write_text(text)
    with pytest.raises(DataFileError, match=rf"the family file of 1982 has no {number}, .*which joins it to people"):
        read(folder, variables="available")


@settings(max_examples=400, deadline=None)
@given(
    damage=st.lists(st.tuples(st.integers(0, 10**6), st.binary(max_size=3)), min_size=1, max_size=4),
    cut=st.integers(0, 2000),
    name=st.sampled_from(["J220485.txt", "J220485.do", "J220485.sas", "J220485.sps"]),
)
def test_any_damage_is_read_or_refused_with_the_file(tmp_path_factory, damage, cut: int, name: str) -> None:
    folder = tmp_path_factory.mktemp("damage")
    write_cart(folder, PEOPLE, form="do" if name.endswith(".txt") else Path(name).suffix[1:])
    content = bytearray((folder / name).read_bytes())
    for place, replacement in damage:
        at = place % len(content)
        content[at : at + len(replacement)] = replacement
    (folder / name).write_bytes(content[: max(1, len(content) - cut)])
    try:
        people = read(folder)
    except LaborError as refusal:
        assert str(folder) in str(refusal)
    else:
        assert len(people) == 5
        counts = Counter(person.career is not None for person in people)
        assert counts[True] >= 1
