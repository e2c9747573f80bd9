"""NLS Investigator extracts: the files as the site gives them, and the careers in them, worked out by hand."""

from __future__ import annotations

import functools
import re
import shutil
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from conftest import shared_file
from helpers.errors import raises
from helpers.fuzzing import contents_of, write_contents
from helpers.nls import BOUNDS, NOBODY, SILENT, SMALL_ROWS, WOMAN, WOMAN_CAREER, WOMAN_YEARS, made_rows, write_extract
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from laborllm_dist.careers.occupations.occ1990dd import TABLES, crosswalk, occ1990dd_vocabulary
from laborllm_dist.careers.person_records import Exclusion, PersonRecord
from laborllm_dist.careers.readers.archives import ArchiveMember
from laborllm_dist.careers.readers.nls import extract
from laborllm_dist.careers.readers.nls.codebook import read_codebook, read_variable_names
from laborllm_dist.careers.readers.nls.extract import read_extract
from laborllm_dist.careers.readers.nls.files import find_extract, nls_files
from laborllm_dist.careers.readers.nls.people import missing_variables, nls_people
from laborllm_dist.careers.readers.nls.variables import Cohort, nls_variables
from laborllm_dist.careers.types import CareerHistory, Job
from laborllm_dist.config.corpora import SurveySettings
from laborllm_dist.errors import LaborError


def read(path: Path, cohort: Cohort = "NLSY79", **changes) -> list[PersonRecord]:
    survey_settings = SurveySettings(**{"path": str(path), "variables": "all", **BOUNDS, **changes})
    return [person() for person in nls_people(survey_settings, cohort, survey=cohort)]


WOMAN_DROPS = (
    Exclusion("working, occupation not codeable", 1984),
    Exclusion("working, occupation invalid skip", 1985),
    Exclusion("not working, unemployed or out of the labor force not told apart", 2008),
)


@pytest.mark.parametrize("form", ["references", "questions", "dat", "zip", "codebook"])
def test_careers_of_the_nlsy79_by_hand_in_every_form_of_the_extract(form: str, tmp_path: Path) -> None:
    rows = made_rows("NLSY79", [WOMAN, SILENT, NOBODY], [WOMAN_YEARS, {1990}, set()])
    woman, silent, nobody = read(write_extract(tmp_path, "NLSY79", rows, form=form))
    assert woman == PersonRecord(WOMAN_CAREER, WOMAN_DROPS)
    # Of 1979 nothing is known but that there was an interview.
    unknown = Exclusion("employment status not known, occupation valid skip", 1979)
    nothing = Exclusion("person without any observation")
    assert silent == PersonRecord(None, (unknown, Exclusion("working, occupation refused", 1990), nothing))
    assert nobody == PersonRecord(None, (unknown, nothing))


def test_careers_of_the_nlsy97_by_hand(tmp_path: Path) -> None:
    weeks = [
        variable.name.question
        for variable in nls_variables("NLSY97")
        if variable.name.question.startswith("EMP_STATUS_2005")
    ]
    assert len(weeks) == 12
    person = {
        ("person_id", 1997): 3, ("sex", 1997): 1, ("race_ethnicity", 1997): 4, ("birth_year", 1997): 1981,
        ("region", 1997): 2, ("enrollment", 1997): 8, ("weekly_status", 1997): 5, ("highest_grade", 1997): 9,
        # 2002 codes: 4020 Cooks; 3600 Nursing aides -> 447.
        ("occupation", 2000): 4020, ("weekly_status", 2000): 200001, ("highest_grade", 2000): 13,
        ("highest_degree", 2000): 2, ("enrollment", 2000): 10,
        ("occupation", 2005): 3600, ("highest_degree", 2005): 4, ("highest_grade", 2005): 16, ("enrollment", 2005): 6,
        ("occupation", 2011): 3600, ("weekly_status", 2011): 1, ("enrollment", 2011): 7, ("highest_degree", 2011): 5,
    }  # fmt: skip
    # Six weeks of work, four unemployed, two without information: working, since half of the known weeks or more are.
    for week, status in zip(weeks, [9701, 200501, 200501, 3, 6, 200501, 4, 4, 4, 4, 0, 0], strict=True):
        person["week " + week, 0] = status
    rows = made_rows("NLSY97", [person], [{1997, 2000, 2005, 2011}])
    (read_career,) = read(write_extract(tmp_path, "NLSY97", rows), "NLSY97")
    assert read_career.drops == ()
    assert read_career.career == CareerHistory(
        "3", "NLSY97", 1981, "male", "non-black non-hispanic", "north central",
        (
            Job(1997, "education", "less than high school"),
            Job(2000, "436", "some college"),  # a high school diploma and 13 grades
            Job(2005, "447", "college"),
            Job(2011, "not_in_labor_force", "graduate school"),
        ),
    )  # fmt: skip


def test_bounds_of_year_and_age(tmp_path: Path) -> None:
    folder = write_extract(tmp_path, "NLSY79", made_rows("NLSY79", [WOMAN], [WOMAN_YEARS]))
    (read_career,) = read(folder, first_year=1980, last_year=1990, youngest_age=20, oldest_age=22)
    assert [job.year for job in read_career.career.jobs] == [1982, 1983]
    assert Counter(drop.reason for drop in read_career.drops) == {
        "younger than 20": 2, "working, occupation not codeable": 1, "older than 22": 1,
    }  # fmt: skip
    (read_career,) = read(folder, first_year=1980, last_year=1990)
    assert read_career.career.region == "west"  # of the first year taken


def test_the_tagsets_hold_every_variable_of_the_table_and_nothing_else() -> None:
    for cohort in ("NLSY79", "NLSY97"):
        tagset = (TABLES / f"laborllm.{cohort}").read_text().split()
        assert sorted(variable.name.reference for variable in nls_variables(cohort)) == tagset
        assert len(set(tagset)) == len(tagset)


def test_the_shared_reference_numbers_are_those_of_the_table() -> None:
    import csv

    with shared_file("data/nls/nlsy_key_reference_numbers.csv").open() as file:
        shared = {(row["cohort"], row["reference_number"]): row["year"] for row in csv.DictReader(file)}
    names = [(cohort, variable.name) for cohort in ("NLSY79", "NLSY97") for variable in nls_variables(cohort)]
    common = [(cohort, name) for cohort, name in names if (cohort, name.reference) in shared]
    assert len(common) > 150
    assert all(name.year == shared[cohort, name.reference] for cohort, name in common)


def test_every_target_of_the_crosswalks_is_an_occupation_or_a_state() -> None:
    known = set(occ1990dd_vocabulary().codes)
    assert len(known) == 334
    for variable in nls_variables("NLSY79") + nls_variables("NLSY97"):
        if variable.scheme is not None:
            assert set(crosswalk(variable.scheme).values()) <= known


# ---------------------------------------------------------------------------------------------- the real extracts


@pytest.mark.parametrize(
    ("name", "people", "variables", "unlisted"),
    # The codebooks list no values of the person's number, and of the year of birth.
    [("nlsy79_extract", 12_686, 25, {"R0000100"}), ("nlsy97_extract", 8_984, 59, {"R0536402"})],
)
def test_a_real_extract_reads_whole_and_agrees_with_its_codebook(
    name: str, people: int, variables: int, unlisted: set[str]
) -> None:
    files = find_extract(shared_file(f"data/nls/{name}"))
    extract = read_extract(files, read_variable_names(files.variables))
    assert (extract.num_people, len(extract.columns)) == (people, variables)
    counted = read_codebook(files.codebook)
    assert len(counted) == variables
    assert all(counts.total is not None for counts in counted.values())
    assert {name for name, counts in counted.items() if not counts.values} == unlisted


def test_the_occupations_of_2016_map_to_occ1990dd() -> None:
    files = find_extract(shared_file("data/nls/nlsy79_extract"))
    (variable,) = (each for each in nls_variables("NLSY79") if each.name.reference == "T5256900")
    codes = read_extract(files, [variable.name]).columns["T5256900"]
    valid = [int(code) for code in codes if code > 0 and code != 9990]
    mapped = [code for code in valid if code in crosswalk(variable.scheme)]
    assert len(valid) == 5319
    assert len(mapped) / len(valid) >= 0.998


def test_a_real_extract_with_one_changed_cell_is_refused_by_its_codebook(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(shared_file("data/nls/nlsy79_extract"), tmp_path / "copy"))
    table = folder / "NLS_79.csv"
    lines = table.read_bytes().split(b"\r\n")
    assert lines[1].startswith(b"1,20,")
    table.write_bytes(b"\r\n".join([lines[0], b"1,21," + lines[1][5:], *lines[2:]]))
    files = find_extract(folder)
    with raises("data-file/invalid-content", "R0000600: 1,665 people have the value 20, the codebook says 1,666"):
        read_extract(files, read_variable_names(files.variables))
    table.write_bytes(b"\r\n".join(lines[:9000]))
    with raises("data-file/invalid-content", "the file has been cut or changed since it was downloaded"):
        read_extract(files, read_variable_names(files.variables))


def test_a_real_extract_lacks_variables_and_says_which() -> None:
    folder = shared_file("data/nls/nlsy79_extract")
    with raises('data-file/missing-variables', '352', 'R0000500 (birth_year 1979', 'upload the tagset', 'laborllm.NLSY79 to the NLS Investigator'):  # fmt: skip
        read(folder)
    # The extract has one occupation, of 2016, and no status of that year.
    people = read(folder, variables="available", unknown_status="count")
    assert len(people) == 12_686
    assert sum(person.career is not None for person in people) == 5_313
    people = read(folder, variables="available")
    assert sum(person.career is not None for person in people) == 0
    reasons = Counter(drop.reason for person in people for drop in person.drops)
    assert reasons["employment status not known, occupation is of the present or last job"] == 5_313
    survey_settings = SurveySettings(path=str(folder), variables="available", **BOUNDS)
    assert len(missing_variables(survey_settings, "NLSY79")) == 352


def test_an_extract_of_few_variables_says_which_are_missing(tmp_path: Path) -> None:
    variables = nls_variables("NLSY79")
    chosen = {("person_id", 1979), ("occupation", 2006)}
    places = [place for place, each in enumerate(variables) if (each.concept, each.year) in chosen]
    assert len(places) == 2
    rows = made_rows("NLSY79", [WOMAN, NOBODY], [WOMAN_YEARS, {1979}])
    header = [variables[place].name.reference for place in places]
    lines = [",".join(f'"{name}"' for name in header), *(",".join(str(row[at]) for at in places) for row in rows)]
    (tmp_path / "few.csv").write_text("".join(line + "\r\n" for line in lines))
    missing = len(variables) - 2
    with raises('data-file/missing-variables', missing, 'R0000500 (birth_year 1979', 'upload the tagset', 'laborllm.NLSY79 to the NLS Investigator'):  # fmt: skip
        read(tmp_path)
    counted, nobody = read(tmp_path, variables="available", unknown_status="count")
    assert counted.career.jobs == (Job(2006, "436"),)  # census code 4020: cooks
    assert nobody.career is None
    left_out, _ = read(tmp_path, variables="available")
    assert left_out.career is None
    assert "employment status not known, occupation is of the present or last job" in {
        drop.reason for drop in left_out.drops
    }
    survey_settings = SurveySettings(path=str(tmp_path), variables="available", **BOUNDS)
    assert len(missing_variables(survey_settings, "NLSY79")) == missing


# ---------------------------------------------------------------------------------------------- refusals


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return write_extract(tmp_path / "made", "NLSY79", made_rows("NLSY79", [WOMAN, NOBODY], [WOMAN_YEARS, {1979}]))


def changed(folder: Path, old: str, new: str, name: str = "made.csv") -> None:
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new, 1))


def test_broken_extracts_are_refused_with_file_line_and_advice(made: Path) -> None:
    header = (made / "made.csv").read_text().splitlines()[0]
    columns = header.replace('"', "").split(",")
    changed(made, "\n7,", "\n7x,")
    with raises("data-file/invalid-content", "1 problem:\n  line 2, column", columns[0], "'7x' is not a whole"):
        read(made)
    changed(made, "\n7x,", "\n,")
    with raises("data-file/invalid-content", "line 2, column", "empty\n  download the extract again"):
        read(made)
    changed(made, "\n,", "\n7,1,")
    with raises("data-file/invalid-content", "line 2", len(columns) + 1, "values, expected", len(columns)):
        read(made)
    changed(made, "\n7,1,", "\n9,")
    with raises("data-file/invalid-person-number", "9", "there twice"):
        read(made)
    changed(made, "\n9,", "\n-4,")
    with raises("data-file/invalid-person-number", "-4", "not above 0"):
        read(made)
    changed(made, "\n-4,", "\n7,")
    changed(made, ",-4,", ",-9,")
    with raises("data-file/invalid-content", "person 7, column", "-9 is no code of this variable"):
        read(made)
    changed(made, header, header.replace(columns[3], columns[4]))
    with raises("data-file/invalid-content", "column", columns[4], "this column appears twice"):
        read(made)
    (made / "made.csv").write_text(header + "\n")
    with raises("data-file/invalid-content", "no people in the file"):
        read(made)


def test_an_extract_of_the_other_cohort_is_refused(made: Path) -> None:
    with raises("data-file/variable-year-mismatch", "R0000100", "1979"):
        read(made, "NLSY97", variables="available")


def test_without_a_person_number_or_any_occupation_nothing_can_be_read(made: Path) -> None:
    changed(made, '"R0000100"', '"X0000100"')
    with raises("data-file/missing-variables", "1", "R0000100 (person_id 1979"):
        read(made, variables="available")


def test_folders_and_zips_that_are_no_extract_are_refused(tmp_path: Path, made: Path) -> None:
    with raises("data-file/no-file", "nowhere"):
        nls_files(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with raises("data-file/not-one-nls-extract", "no .csv or .dat file", "empty"):
        nls_files(tmp_path / "empty")
    shutil.copy(made / "made.csv", made / "other.csv")
    with raises("data-file/not-one-nls-extract", "more than one", "made.csv", "other.csv"):
        nls_files(made)
    assert nls_files(made / "made.csv") == [made / "made.csv", made / "made.sdf"]
    (tmp_path / "bad.zip").write_bytes(b"PK not a zip")
    with raises("data-file/damaged-zip", "bad.zip"):
        nls_files(tmp_path / "bad.zip")
    (tmp_path / "only.dat").write_text("1 2\n")
    with raises("data-file/no-sdf-file", "only"):
        nls_files(tmp_path / "only.dat")
    (tmp_path / "only.sdf").write_text("nothing\n")
    with raises("data-file/no-variables-listed", "only.sdf"):
        read(tmp_path / "only.dat")


def test_a_folder_with_the_downloaded_zip_alone_is_that_extract(tmp_path: Path) -> None:
    rows = made_rows("NLSY79", [WOMAN], [WOMAN_YEARS])
    path = write_extract(tmp_path / "zips", "NLSY79", rows, form="zip")
    assert read(path.parent) == read(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with raises("data-file/damaged-zip"):
        read(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "x")
    with raises("data-file/not-one-nls-extract", "no .csv or .dat file"):
        read(path)


def test_a_member_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    with raises("data-file/unreadable-file", "gone.csv"), ArchiveMember(tmp_path / "gone.csv").open():
        raise AssertionError("not reached")


@functools.cache
def undamaged(form: str) -> dict[str, bytes]:
    return contents_of(lambda folder: write_extract(folder, "NLSY79", SMALL_ROWS, form=form))


@settings(max_examples=200, deadline=None)
@given(
    damage=st.lists(st.tuples(st.integers(0, 10**6), st.binary(min_size=1, max_size=3)), min_size=1, max_size=4),
    cut=st.integers(0, 3000),
    name=st.sampled_from(["made.csv", "made.csv", "made.sdf", "made.dat", "made.zip", "made.cdb"]),
)
def test_any_damage_is_read_or_refused_with_the_file_never_a_traceback(
    tmp_path_factory, damage, cut: int, name: str
) -> None:
    folder = tmp_path_factory.mktemp("damage")
    form = {"made.dat": "dat", "made.zip": "zip", "made.cdb": "codebook"}.get(name, "references")
    write_contents(folder, undamaged(form))
    path = folder / name if form == "zip" else folder
    original = (folder / name).read_bytes()
    content = bytearray(original)
    for place, replacement in damage:
        at = place % len(content)
        content[at : at + len(replacement)] = replacement
    (folder / name).write_bytes(content[: max(1, len(content) - cut)])
    assume((folder / name).read_bytes() != original)
    try:
        people = read(path, last_year=1983)
    except LaborError as error:
        assert str(folder) in str(error)
        assert ADVICE.search(str(error)), str(error)
    else:
        # Nobody vanishes: a row that is still there is a person, with a career or with reasons.
        assert all(person.career is not None or person.drops for person in people)
        if name in ("made.csv", "made.dat"):
            # A line break in the header leaves a shorter header; what has the length of a row is a person.
            lines = re.findall(rb"[^\n]+", (folder / name).read_bytes())
            assert len(people) == sum(line.count(b",") + line.count(b" ") > 300 and b'"' not in line for line in lines)
        elif name in ("made.sdf", "made.cdb"):
            assert len(people) == 2


ADVICE = re.compile(r"download|name the one file|remove this file|save it with|is no code of")


def test_a_codebook_finds_any_cell_that_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one cell can change unseen, but between the two codes that codebooks count together (-4 and -5)."""
    path = write_extract(tmp_path, "NLSY79", SMALL_ROWS, form="codebook")
    codebook = read_codebook(ArchiveMember(path / "made.cdb"))
    monkeypatch.setattr(extract, "read_codebook", lambda _: codebook)  # which stays the same; reading it takes long
    assert len(read(path, last_year=1983)) == 2
    lines = (path / "made.csv").read_text().splitlines()
    cells = lines[1].split(",")
    for place in range(len(cells)):
        changed_cells = [*cells]
        changed_cells[place] = str(int(cells[place]) + 1) if cells[place] != "-5" else "3"
        (path / "made.csv").write_text("\n".join([lines[0], ",".join(changed_cells), lines[2]]) + "\n")
        with raises("data-file/invalid-content"):
            read(path, last_year=1983)


def test_a_codebook_of_nothing_or_of_another_download_is_refused(tmp_path: Path) -> None:
    path = write_extract(tmp_path, "NLSY79", SMALL_ROWS, form="codebook")
    text = (path / "made.cdb").read_text()
    (path / "made.cdb").write_text(text.replace("R02148.00", "R99999.00"))
    with raises("data-file/invalid-content", "made.cdb does not know this variable; the two are not of one download"):
        read(path, last_year=1983)
    (path / "made.cdb").write_text("")
    with raises("data-file/empty-codebook", "made.cdb"):
        read(path, last_year=1983)


def test_2010_codes_in_a_late_round_are_what_they_say() -> None:
    """Codes of the "2002" scheme that do not end in 0 are 2010 codes; occ1990dd by Dorn's crosswalk of 2010."""
    codes = {code: crosswalk("census2002").get(code) for code in (3255, 3645, 3945, 4465, 4020, 4025)}
    assert codes == {
        3255: "95",
        3645: "447",
        3945: crosswalk("census2010").get(3945),
        4465: "19",
        4020: "436",
        4025: None,
    }
    assert {code for code in crosswalk("census2000_4digit") if code % 10} == set()


def test_the_armed_forces_are_the_military_where_no_occupation_is_given(tmp_path: Path) -> None:
    person = {
        ("person_id", 1979): 1, ("sex", 1979): 1,
        ("employment_status", 1982): 4, ("occupation", 1982): -4,
        ("weekly_status", 2002): 7, ("occupation", 2002): -4,
    }  # fmt: skip
    (read_person,) = read(write_extract(tmp_path, "NLSY79", made_rows("NLSY79", [person], [{1982, 2002}])))
    assert [(job.year, job.occupation) for job in read_person.career.jobs] == [(1982, "905"), (2002, "905")]


def test_a_last_occupation_of_unknown_status_is_left_out_unless_the_settings_count_it(tmp_path: Path) -> None:
    person = {
        ("person_id", 1979): 1,
        ("occupation", 2014): 4020,
        ("occupation", 2002): 402,
        ("weekly_status", 2002): 100,
    }
    path = write_extract(tmp_path, "NLSY79", made_rows("NLSY79", [person], [{2002, 2014}]))
    (left_out,) = read(path)
    assert [job.year for job in left_out.career.jobs] == [2002]
    assert Exclusion("employment status not known, occupation is of the present or last job", 2014) in left_out.drops
    (counted,) = read(path, unknown_status="count")
    assert [job.year for job in counted.career.jobs] == [2002, 2014]


def test_bounds_without_any_year_of_the_survey_are_refused(made: Path) -> None:
    with raises("data-file/no-survey-year-in-range", "NLSY79", "2050", "None", "1979"):
        read(made, first_year=2050)
