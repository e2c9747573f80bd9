"""Census codes of real files that the crosswalks lacked, and other occupations of a year, worked out by hand."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import pytest
from conftest import shared_file
from helpers.errors import raises
from helpers.nls import BOUNDS, made_rows, write_extract
from helpers.psid import write_cart
from helpers.runs import settings_of

from laborllm_dist.careers.corpus import corpus_notes, reachable_by_year
from laborllm_dist.careers.corpus_counts import CorpusCounts, count_people, counts_from_values
from laborllm_dist.careers.occupations.occ1990dd import crosswalk, occ1990dd_vocabulary, reachable_codes
from laborllm_dist.careers.person_records import PersonRecord
from laborllm_dist.careers.readers.nls.people import missing_variables, nls_people
from laborllm_dist.careers.readers.nls.variables import nls_variables, other_occupations
from laborllm_dist.careers.readers.psid.people import psid_people
from laborllm_dist.config.corpora import SurveySettings
from laborllm_dist.store.build import prepare_store
from laborllm_dist.store.data_card import card_markdown, card_values

# 2110 judges, 0030 legislators, 0400 postmasters, 5830 desktop publishers, with the occ1990dd codes of the 2000 table.
LATE = {2110: "178", 30: "4", 400: "22", 5830: "313"}


def test_sales_clerks_of_1970_have_the_code_of_ipums() -> None:
    assert crosswalk("census1970")[280] == "274"
    assert set(range(280, 286)) <= set(crosswalk("census1970"))
    assert len(reachable_codes("census1970") - {"unemployed", "905"}) == 264


def test_2010_codes_fall_back_to_the_table_of_2000() -> None:
    table = {}
    path = Path(__file__).parents[3] / "laborllm_dist/careers/tables/occ1990dd_crosswalk.csv"
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            table.setdefault(row["census"], {})[int(row["source_code"])] = row["occ1990dd"]
    code_of = crosswalk("census2010")
    known = set(occ1990dd_vocabulary().codes)
    only_2000 = [code for code in table["2000"] if code * 10 not in table["2010"] and code not in table["2005"]]
    assert {211, 3, 40, 583} <= set(only_2000)
    for code in only_2000:
        target = {"874": "873", "991": "unemployed", "999": None}.get(table["2000"][code], table["2000"][code])
        assert code_of.get(code * 10) == target
        assert target is None or target in known
    # What the table of 2010 has is as it was.
    assert all(
        code_of.get(code) == target for code, target in table["2010"].items() if target in known and target != "874"
    )


def read(path: Path, **changes) -> list[PersonRecord]:
    settings = SurveySettings(**{"path": str(path), "variables": "all", **BOUNDS, **changes})
    return [person() for person in nls_people(settings, "NLSY79", survey="NLSY79")]


def with_1970_codes(folder: Path, person: dict, years: set[int]) -> Path:
    """Write an extract that has CPSOCC70 in place of CPSOCC80 from 1982 to 1993."""
    path = write_extract(folder, "NLSY79", made_rows("NLSY79", [person], [years]))
    own = {
        variable.year: variable.name.reference
        for variable in nls_variables("NLSY79")
        if variable.concept == "occupation"
    }
    for each in other_occupations("NLSY79"):
        for name in ("made.csv", "made.sdf"):
            text = (path / name).read_text()
            dotted = [f"{reference[:-2]}.{reference[-2:]}" for reference in (own[each.year], each.name.reference)]
            text = text.replace(own[each.year], each.name.reference).replace(*dotted)
            (path / name).write_text(text)
    return path


PERSON = {
    ("person_id", 1979): 7, ("sex", 1979): 2,
    ("employment_status", 1981): 1, ("occupation", 1981): 280,
    ("employment_status", 1982): 1, ("occupation", 1982): 280,
    ("employment_status", 1993): 1, ("occupation", 1993): 912,
    ("employment_status", 1994): 1, ("occupation", 1994): 436,
}  # fmt: skip


def test_the_nlsy79_takes_1970_codes_where_those_of_1980_are_lacking(tmp_path: Path) -> None:
    path = with_1970_codes(tmp_path, PERSON, {1981, 1982, 1993, 1994})
    (person,) = read(path)
    # 1970 code 280 sales clerks, 912 cooks; 1980 code 436 cooks.
    jobs = [(job.year, job.occupation) for job in person.career.jobs]
    assert jobs == [(1981, "274"), (1982, "274"), (1993, "436"), (1994, "436")]
    assert missing_variables(SurveySettings(str(path), "available", **BOUNDS), "NLSY79") == []
    corpus = settings_of(["data=nlsy79", f"data.corpora.nlsy79.path={path}"]).data.corpora["nlsy79"]
    notes = corpus_notes(corpus)
    assert len(notes) == 12
    assert notes[0].startswith("the occupation of 1982 is R0702100 (CPSOCC70, census1970 codes), since R0828000 is not")
    assert reachable_by_year(corpus)[1982] == reachable_by_year(corpus)[1981]
    assert reachable_by_year(corpus)[1994] != reachable_by_year(corpus)[1981]


def test_where_an_extract_has_both_the_codes_of_1980_count(tmp_path: Path) -> None:
    path = write_extract(
        tmp_path, "NLSY79", made_rows("NLSY79", [PERSON | {("occupation", 1982): 436}], [{1982}]), form=""
    )
    header, row, *_ = (path / "made.csv").read_text().splitlines()
    (path / "made.csv").write_text(f'{header},"R0702100"\n{row},280\n')
    (person,) = read(path, first_year=1982, last_year=1982)
    assert [(job.year, job.occupation) for job in person.career.jobs] == [(1982, "436")]


def test_an_extract_without_any_occupation_says_so_and_nothing_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_extract(tmp_path / "x", "NLSY79", made_rows("NLSY79", [PERSON], [{1981}]))
    text = (path / "made.csv").read_text()
    for each in nls_variables("NLSY79"):
        if each.concept == "occupation":
            text = text.replace(each.name.reference, f"X{each.name.reference[1:]}")
    (path / "made.csv").write_text(text)
    no_occupations = ("data-file/no-occupation-variables", "30", "NLSY79", "R0046400 (1979)", "tagset")
    for variables in ("all", "available"):
        with raises(*no_occupations):
            read(path, variables=variables)
    overrides = ["data=nlsy79", f"data.corpora.nlsy79.path={path}", f"store.root={tmp_path}/stores"]
    with raises(*no_occupations):
        prepare_store(settings_of([*overrides, "data.corpora.nlsy79.variables=available"]))
    assert not caplog.messages
    # Within bounds of years too: other years' occupations are of no use.
    path = write_extract(tmp_path / "y", "NLSY79", made_rows("NLSY79", [PERSON], [{1981}]))
    text = (path / "made.csv").read_text()
    (path / "made.csv").write_text(text.replace("R0446400", "X0446400"))
    with raises("data-file/no-occupation-variables", "1"):
        read(path, variables="available", first_year=1981, last_year=1981)


def test_a_psid_download_without_any_occupation_says_so(tmp_path: Path) -> None:
    people = [{("ER30001", 0): 5, ("ER30002", 0): 1, ("ER32000", 0): 1}]
    path = write_cart(tmp_path / "cart", people)
    setup = path / "J220485.do"
    from laborllm_dist.careers.readers.psid.concepts import psid_variables

    text = setup.read_text()
    for (concept, _), name in psid_variables().items():
        if "_occ_" in concept:
            text = text.replace(f"{name} ", f"X{name[1:]} ")
    setup.write_text(text)
    for variables in ("all", "available"):
        settings = SurveySettings(**{"path": str(path), "variables": variables, **BOUNDS, "first_year": 1981})
        with raises("data-file/missing-variables", "no year from 1981 to 2021 has an occupation of a known person"):
            list(psid_people(settings, survey="PSID"))


def test_the_data_card_lists_codes_without_an_occupation(tmp_path: Path) -> None:
    person = PERSON | {("occupation", 1981): 810, ("occupation", 1982): 102, ("occupation", 1993): 102}
    path = write_extract(tmp_path, "NLSY79", made_rows("NLSY79", [person], [{1981, 1982, 1993, 1994}]))
    people = read(path)
    tally = count_people([(read, ["train"]) for read in people])
    # 810 is no 1970 code, 102 no 1980 code that leads to an occupation.
    reasons = [f"working, occupation code without occ1990dd (census{year})" for year in (1970, 1980)]
    assert tally.unmapped == Counter({(reasons[1], "102"): 2, (reasons[0], "810"): 1})
    assert counts_from_values(json.loads(json.dumps(tally.to_values()))) == tally
    assert (tally + tally).unmapped[reasons[1], "102"] == 4
    data = settings_of(["data=nlsy79", f"data.corpora.nlsy79.path={path}"]).data
    card = card_values({"nlsy79": tally}, data, occ1990dd_vocabulary().title_of(), {}, {"nlsy79": {}}, [])
    assert card["corpora"]["nlsy79"]["unmapped_codes"] == [
        {"code": "102", "reason": reasons[1], "count": 2}, {"code": "810", "reason": reasons[0], "count": 1},
    ]  # fmt: skip
    assert f"| 102 | {reasons[1]} | 2 |" in card_markdown(card)
    assert "### Codes without an occupation" not in card_markdown(
        card_values({"nlsy79": CorpusCounts()}, data, {}, {}, {"nlsy79": {}}, [])
    )


def test_the_names_of_other_occupations_are_those_of_the_survey_s_own_list() -> None:
    lines = shared_file("data/nls/nlsy79_1203_variables.sdf").read_text(encoding="latin-1").splitlines()
    listed = {line.split()[0].replace(".", ""): line for line in lines if line[:1] == "R"}
    for each in other_occupations("NLSY79"):
        line = listed[each.name.reference]
        assert line.split()[1] == str(each.year)
        assert line.rstrip().endswith("CPSOCC70")
