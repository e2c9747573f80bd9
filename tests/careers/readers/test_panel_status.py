"""A panel with a column of employment statuses follows the surveys' rule; the rows worked out by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from helpers.errors import raises
from helpers.runs import settings_of

from laborllm_dist.careers.person_records import Exclusion, PersonRecord
from laborllm_dist.careers.readers.long_panel import long_panel_people
from laborllm_dist.config.corpora import LongPanelSettings

PANEL = "data.corpora.long_panel"
ABSENT = ("birth_year", "gender", "ethnicity", "region", "education")


def with_status(folder: Path, rows: str, *more: str) -> LongPanelSettings:
    (folder / "panel.csv").write_text("person,year,occupation,status\n" + rows)
    overrides = ["data=long_panel", f"{PANEL}.path={folder}/panel.csv", f"{PANEL}.columns.status=status"]
    overrides += [f"{PANEL}.columns.{column}=null" for column in ABSENT]
    corpus = settings_of([*overrides, *more]).data.corpora["long_panel"]
    assert isinstance(corpus, LongPanelSettings)
    return corpus


def read(settings: LongPanelSettings) -> list[PersonRecord]:
    return [person() for person in long_panel_people(settings, survey="P")]


# Codes of occ1990dd: 436 Cooks, 905 the military.
ROWS = """a,1980,436,working
a,1981,436,Unemployed
a,1982,,student
a,1983,-4,RETIRED
a,1984,436,armed forces
a,1985,,military
a,1986,,working
a,1987,436,
a,1988,,nan
a,1989,436,not working
a,1990,436,-2
a,1991,-4,employed
"""
JOBS = {
    1980: "436", 1981: "unemployed", 1982: "education", 1983: "not_in_labor_force", 1984: "436", 1985: "905",
    1987: "436", 1990: "436",
}  # fmt: skip
DROPS = (
    Exclusion("working, occupation missing", 1986),
    Exclusion("employment status not known, occupation missing", 1988),
    Exclusion("not working, unemployed or out of the labor force not told apart", 1989),
    Exclusion("working, occupation a number below zero", 1991),
)


def test_the_rule_of_the_surveys_by_hand(tmp_path: Path) -> None:
    (person,) = read(with_status(tmp_path, ROWS))
    assert {job.year: job.occupation for job in person.career.jobs} == JOBS
    assert person.drops == DROPS


def test_an_occupation_that_may_be_the_last_one_counts_while_the_person_works(tmp_path: Path) -> None:
    (person,) = read(with_status(tmp_path, ROWS, f"{PANEL}.status.unknown=leave_out"))
    assert [job.year for job in person.career.jobs] == [year for year in JOBS if year not in (1987, 1990)]
    uncertain = "employment status not known, occupation is of the present or last job"
    assert [drop.year for drop in person.drops if drop.reason == uncertain] == [1987, 1990]


def test_codes_of_numbers_are_words_too(tmp_path: Path) -> None:
    words = [f"{PANEL}.status.working=['1']", f"{PANEL}.status.unemployed=['2']"]
    (person,) = read(with_status(tmp_path, "a,1980,436.0,1.0\na,1981,436.0,2.0\na,1982,,2\n", *words))
    assert [job.occupation for job in person.career.jobs] == ["436", "unemployed", "unemployed"]


def test_a_word_that_no_list_has_is_refused(tmp_path: Path) -> None:
    with raises(
        "data-file/invalid-content", "line 2, column status: 'furloughed' is none of the words of long_panel.st"
    ):
        read(with_status(tmp_path, "a,1980,436,furloughed\n"))


def test_a_state_that_the_list_of_occupations_lacks_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "titles.csv").write_text("code,title\n436,Cooks\nidle,Not working\n")
    settings = with_status(
        tmp_path, ROWS, f"{PANEL}.vocabulary.path={tmp_path}/titles.csv", f"{PANEL}.status.codes.enrolled=idle"
    )
    (person,) = read(settings)
    jobs = {job.year: job.occupation for job in person.career.jobs}
    assert jobs == {1980: "436", 1982: "idle", 1984: "436", 1987: "436", 1990: "436"}
    assert Exclusion("unemployed, for which the list of occupations has no code", 1981) in person.drops
    assert Exclusion("not working, for which the list of occupations has no code", 1983) in person.drops
    assert Exclusion("working, occupation missing", 1985) in person.drops  # armed forces without an occupation


def test_status_settings_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    with raises("settings/invalid", "enrolled", "a word in one of the lists only, 'student' is in unem"):
        with_status(tmp_path, "", f"{PANEL}.status.unemployed=[Student]", f"{PANEL}.status.enrolled=[student]")
    with raises("settings/invalid", "status", "the words of the status column, since columns.status"):
        with_status(tmp_path, "", f"{PANEL}.status=null")


def test_without_a_status_column_nothing_changes(tmp_path: Path) -> None:
    settings = with_status(tmp_path, "a,1980,436,student\na,1981,,working\n")
    settings = dataclasses.replace(settings, columns=dataclasses.replace(settings.columns, status=None))
    (person,) = read(settings)
    assert [(job.year, job.occupation) for job in person.career.jobs] == [(1980, "436")]
    assert person.drops == (Exclusion("occupation missing", 1981),)
