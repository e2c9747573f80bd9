"""People, whole numbers and missing words: one rule for all readers, whatever kind of file they read."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.errors import raises
from helpers.panels import VOCABULARY, numbered, panel
from helpers.resumes import coded
from helpers.resumes import read as read_resumes
from helpers.runs import settings_of

from laborllm_dist.careers.occupations.vocabulary import read_occupations
from laborllm_dist.careers.person_records import Exclusion
from laborllm_dist.careers.readers.career_text import career_text_people, escaped, unescaped
from laborllm_dist.careers.readers.cells import InexactIdError, float_text, person_id, same_code, whole_number
from laborllm_dist.careers.readers.long_panel import long_panel_people, read_long_panel
from laborllm_dist.careers.readers.nls.people import nls_people
from laborllm_dist.careers.splits import split_of
from laborllm_dist.config.corpora import MISSING_WORDS, CareerTextSettings, is_missing
from laborllm_dist.prediction.request_files import read_requests
from laborllm_dist.store.build import prepare_store

WHOLE = {
    "12": 12, "12.0": 12, "12.": 12, "12.000": 12, "-4": -4, "-4.0": -4, "+7": 7, "007": 7, "1e+05": 100_000,
    "1.5e+05": 150_000, "1.23e+02": 123,
}  # fmt: skip
NOT_WHOLE = ["", "12.5", "1.25e+01", "1e5", "12e4", "1,000", "x", "12 0", "\u0663", "1" * 19, "nan", "1e+30", "0x10"]


def test_whole_numbers_by_hand() -> None:
    assert {text: whole_number(text) for text in WHOLE} == WHOLE
    assert [whole_number(text) for text in NOT_WHOLE] == [None] * len(NOT_WHOLE)


def test_codes_keep_their_zeros_and_what_is_no_number() -> None:
    texts = ["12", "12.0", "007", "007.0", "-0.0", "11-1011.00", "2353.1", "12e4", "1e+05", "+12", "A12.0"]
    assert list(map(same_code, texts)) == [
        "12", "12", "007", "007", "0", "11-1011.00", "2353.1", "12e4", "100000", "+12", "A12.0",
    ]  # fmt: skip


def test_an_id_that_a_float_has_rounded_is_refused() -> None:
    assert person_id(float_text(123456789012345.0)) == "123456789012345"
    for value in (float(2**53 + 1), 1.2345678901234567e17):
        with pytest.raises(InexactIdError, match=r"is a number that a float has rounded; save the ids as texts"):
            person_id(float_text(value))
    assert person_id("12345678901234567890") == "12345678901234567890"


# The same three people in seven kinds of files: as texts, as whole numbers, and as floats of a column with gaps.
PEOPLE = ["12", "7", "100000"]
FORMS = {
    "panel.csv": "person,year,occupation\n12,1984,2\n7,1984,2\n100000,1984,2\n",
    "gaps.csv": "person,year,occupation\n12.0,1984.0,2.0\n7.0,1984.0,2.0\n100000.0,1984.0,2.0\n",
    "r.csv": 'person,year,occupation\n12,1984,2\n7,1984,2\n1e+05,1984,2\n',
    "whole.parquet": {"person": [12, 7, 100_000], "year": [1984] * 3, "occupation": [2] * 3},
    "floats.parquet": {"person": [12.0, 7.0, 1e5], "year": [1984.0] * 3, "occupation": [2.0] * 3},
    "texts.parquet": {"person": ["12.0", "7", "100000"], "year": ["1984.0"] * 3, "occupation": ["2.0"] * 3},
}  # fmt: skip


def write_table(path: Path, content: str | dict) -> Path:
    if isinstance(content, str):
        path.write_text(content)
    else:
        pq.write_table(pa.table(content), path)
    return path


@pytest.mark.parametrize("name", FORMS)
def test_people_of_a_panel_are_the_same_in_every_kind_of_file(name: str, tmp_path: Path) -> None:
    write_table(tmp_path / name, FORMS[name])
    careers = list(read_long_panel(numbered(tmp_path, name), survey="P"))
    assert [career.person for career in careers] == PEOPLE
    assert {(job.year, job.occupation) for career in careers for job in career.jobs} == {(1984, "2")}


@pytest.mark.parametrize("name", [*FORMS, "texts.jsonl", "numbers.jsonl", "floats.jsonl"])
def test_people_of_resumes_are_the_same_in_every_kind_of_file(name: str, tmp_path: Path) -> None:
    people = {
        "texts.jsonl": ["12.0", "7", "1e+05"],
        "numbers.jsonl": [12, 7, 100_000],
        "floats.jsonl": [12.0, 7.0, 1e5],
    }
    if name in people:
        rows = [{"id": person, "code": 2.0, "start": 1984.0, "end": "1984"} for person in people[name]]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif isinstance(content := FORMS[name], str):
        (tmp_path / name).write_text(content.replace("person,year,occupation", "id,start,code"))
    else:
        table = {"id": content["person"], "start": content["year"], "code": content["occupation"]}
        write_table(tmp_path / name, table)
    settings = coded(tmp_path / name, no_end="next_start", last_year=1984)
    columns = dataclasses.replace(settings.columns, end="end" if name in people else None, education=None)
    careers = read_resumes(dataclasses.replace(settings, columns=columns))
    assert [person.career.person for person in careers] == PEOPLE
    assert {(job.year, job.occupation) for person in careers for job in person.career.jobs} == {(1984, "2")}


def test_people_to_predict_for_are_the_same_in_every_kind_of_file(tmp_path: Path) -> None:
    for name, content in FORMS.items():
        careers = read_requests(write_table(tmp_path / name, content), VOCABULARY, ("P",))
        assert [career.history.person for career in careers] == PEOPLE
        assert {(job.year, job.occupation) for career in careers for job in career.history.jobs} == {(1984, "2")}
    for people in ([12, 7, 100_000], [12.0, 7.0, 1e5], ["12.0", "7.", "1e+05"]):
        objects = [{"person": person, "jobs": [{"year": 1984.0, "occupation": 2.0}]} for person in people]
        (tmp_path / "p.json").write_text(json.dumps(objects))
        careers = read_requests(tmp_path / "p.json", VOCABULARY, ("P",))
        assert [career.history.person for career in careers] == PEOPLE
        assert careers[0].history.jobs[0].occupation == "2"


def test_one_person_in_two_spellings_is_one_person(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("person,year,occupation\n12,1984,1\n12.0,1985,2\n12,1986,3.0\n")
    (career,) = read_long_panel(numbered(tmp_path, "p.csv"), survey="P")
    assert [(job.year, job.occupation) for job in career.jobs] == [(1984, "1"), (1985, "2"), (1986, "3")]
    (tmp_path / "p.csv").write_text("person,year,occupation\n12,1984,1\n12.0,1984.0,2\n")
    with raises("data-file/invalid-content", "line 3, column year: person '12' has 1984 twice, first at line 2"):
        list(read_long_panel(numbered(tmp_path, "p.csv"), survey="P"))


def test_covariates_follow_the_rule_of_whole_numbers(tmp_path: Path) -> None:
    rows = "1,1984,1,1960.0,1.0,2,3.0,12.0\n1,1985,1,1960,1,2.0,3,12\n"
    header = "person,year,occupation,birth_year,gender,ethnicity,region,education\n"
    (tmp_path / "p.csv").write_text(header + rows)
    settings = panel(tmp_path, "p.csv")
    (tmp_path / "titles.csv").write_text("code,title\n1,Cooks\n")
    (career,) = read_long_panel(settings, survey="P")
    assert (career.birth_year, career.gender, career.ethnicity, career.region) == (1960, "1", "2", "3")
    assert [job.education for job in career.jobs] == ["12", "12"]


def test_an_nls_table_that_pandas_wrote_again_is_read(tmp_path: Path) -> None:
    from helpers.nls import BOUNDS, WOMAN, WOMAN_CAREER, WOMAN_YEARS, made_rows, write_extract

    from laborllm_dist.config.corpora import SurveySettings

    path = write_extract(tmp_path, "NLSY79", made_rows("NLSY79", [WOMAN], [WOMAN_YEARS]))
    header, row, *_ = (path / "made.csv").read_text().splitlines()
    (path / "made.csv").write_text(header + "\n" + ",".join(f"{cell}.0" for cell in row.split(",")) + "\n")
    (person,) = nls_people(SurveySettings(path=str(path), variables="all", **BOUNDS), "NLSY79", survey="NLSY79")
    assert person().career == WOMAN_CAREER


def test_career_text_follows_the_rule_of_whole_numbers(tmp_path: Path) -> None:
    (tmp_path / "train.job").write_text("1.0 2\n")
    (tmp_path / "train.year").write_text("1984.0 1985\n")
    (tmp_path / "train.education").write_text("NaN college\n")
    vocabulary = dataclasses.replace(panel(tmp_path).vocabulary, path=str(tmp_path / "titles.csv"))
    (tmp_path / "titles.csv").write_text("code,title\n1,Cooks\n2,Bakers\n")
    settings = CareerTextSettings(str(tmp_path), vocabulary, ("unknown", *MISSING_WORDS))
    (person,) = career_text_people(settings, survey="C")
    jobs = [(job.year, job.occupation, job.education) for job in person().career.jobs]
    assert jobs == [(1984, "1", None), (1985, "2", "college")]
    for word in ("None", "nan", ".", "n/a", "Unknown"):
        assert not is_missing(escaped(word), ("unknown", *MISSING_WORDS))
        assert unescaped(escaped(word)) == word


# ------------------------------------------------------------------------------------------------ lists of occupations


def test_a_list_of_occupations_that_pandas_wrote_again_has_the_same_codes(tmp_path: Path) -> None:
    vocabulary_settings = panel(tmp_path).vocabulary
    path = Path(vocabulary_settings.path)
    path.write_text("code,title\n1.0,Cooks\n2.0,Bakers\n")
    occupations = read_occupations(vocabulary_settings)
    assert occupations.vocabulary.codes == ("1", "2")
    assert [occupations.find(cell) for cell in ("1", "1.0", "2.", "3", "1.5")] == ["1", "1", "2", None, None]
    # Where the list itself tells 1 and 1.0 apart, so does the reader.
    path.write_text("code,title\n1,All\n1.0,Cooks\n1.1,Bakers\n2.0,Maids\n")
    occupations = read_occupations(vocabulary_settings)
    assert occupations.vocabulary.codes == ("1", "1.0", "1.1", "2")
    assert [occupations.find(cell) for cell in ("1", "1.0", "2.0")] == ["1", "1.0", "2"]
    path.write_text("code,title\n1.0,Cooks\n1.0,Bakers\n")
    with raises("vocabulary/unreadable-vocabulary-file", "line 3, column code: '1.0' appears at line 2 already"):
        read_occupations(vocabulary_settings)


# ------------------------------------------------------------------------------------------------ missing words


def test_every_kind_of_file_has_the_one_list_of_missing_words() -> None:
    for name, more in {"long_panel": (), "resumes": (), "decorte": (), "jobhop": (), "karrierewege": ()}.items():
        corpus = settings_of([f"data={name}"]).data.corpora[name]
        assert corpus.missing == (*more, *MISSING_WORDS)
    corpus = settings_of(["data=career_text"]).data.corpora["career_text"]
    assert corpus.missing == ("unknown", "<unk>", *MISSING_WORDS)


WORDS = ["", " ", "nan", "NaN", "None", "none", "NA", "n/a", "#N/A", ".", "null", "NULL", "<NA>", "NaT"]


@pytest.mark.parametrize("word", WORDS)
def test_a_missing_word_is_missing_in_every_reader(word: str, tmp_path: Path) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(
        [["person", "year", "occupation", "gender"], ["a", "1984", "1", word], ["a", "1985", word, "male"]]
    )
    (tmp_path / "p.csv").write_text(text.getvalue())
    settings = numbered(tmp_path, "p.csv")
    settings = dataclasses.replace(settings, columns=dataclasses.replace(settings.columns, gender="gender"))
    (person,) = long_panel_people(settings, survey="P")
    assert person().career.gender == "male"
    assert [(job.year, job.occupation) for job in person().career.jobs] == [(1984, "1")]
    assert person().drops == (Exclusion("occupation missing", 1985),)
    (request,) = read_requests(tmp_path / "p.csv", VOCABULARY, ("P",))
    assert (request.year, request.history.gender) == (1985, "male")
    (tmp_path / "r.jsonl").write_text(json.dumps({"id": "a", "code": word, "start": "1984", "end": word}))
    resumes = coded(tmp_path / "r.jsonl", last_year=1984)
    (resume,) = read_resumes(dataclasses.replace(resumes, columns=dataclasses.replace(resumes.columns, education=None)))
    assert resume.drops == (Exclusion("job without a code", 1984),)
    (tmp_path / "q.csv").write_text(f"person,year,occupation\n{word},1984,1\n")
    with raises("data-file/invalid-content", "line 2, column person: empty"):
        list(read_long_panel(numbered(tmp_path, "q.csv"), survey="P"))


# ------------------------------------------------------------------------------------------------ rows left out


def test_rows_without_an_occupation_are_left_out_and_counted(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text(
        "person,year,occupation\na,1980,1\na,1981,\na,1982,-4\na,1983,-4.0\na,1984,-8\na,1985,3\nb,1980,NA\n"
    )
    a, b = (person() for person in long_panel_people(numbered(tmp_path, "p.csv"), survey="P"))
    # -8 is a code of the list.
    assert [(job.year, job.occupation) for job in a.career.jobs] == [(1980, "1"), (1984, "-8"), (1985, "3")]
    assert a.drops == (
        Exclusion("occupation missing", 1981),
        Exclusion("occupation a number below zero", 1982),
        Exclusion("occupation a number below zero", 1983),
    )
    assert [drop.code for drop in a.drops] == [None, "-4", "-4"]
    assert b.career is None
    assert b.drops == (Exclusion("occupation missing", 1980), Exclusion("person without any observation"))


def test_an_unknown_code_is_refused_and_a_word_of_the_settings_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("person,year,occupation\na,1980,1\na,1981,999\n")
    with raises("data-file/invalid-content", "line 3, column occupation: code '999' is not in", "long_panel.missing"):
        list(read_long_panel(numbered(tmp_path, "p.csv"), survey="P"))
    settings = dataclasses.replace(numbered(tmp_path, "p.csv"), missing=(*MISSING_WORDS, "999"))
    (person,) = long_panel_people(settings, survey="P")
    assert person().drops == (Exclusion("occupation missing", 1981),)


# ------------------------------------------------------------------------------------------------ shared people


def two_panels(folder: Path, first: list[str], second: list[str]) -> list[str]:
    """Return settings of two panels of one population, with the people of each."""
    (folder / "titles.csv").write_text("code,title\n1,Cooks\n2,Bakers\n")
    for name, people in (("a", first), ("b", second)):
        rows = "".join(f"{person},{year},{1 + year % 2}\n" for person in people for year in (1984, 1985))
        (folder / f"{name}.csv").write_text("person,year,occupation\n" + rows)
    overrides = [f"store.root={folder}/stores", "tokenizer.vocabulary_size=300", "data=long_panel"]
    overrides += ["+corpus@data.corpora.other=long_panel", "data.corpora.other.survey=OTHER"]
    for name, file in (("long_panel", "a"), ("other", "b")):
        corpus = f"data.corpora.{name}"
        overrides += [f"{corpus}.population=POP", f"{corpus}.path={folder}/{file}.csv"]
        overrides += [f"{corpus}.vocabulary.path={folder}/titles.csv"]
        absent = ("birth_year", "gender", "ethnicity", "region", "education")
        overrides += [f"{corpus}.columns.{column}=null" for column in absent]
    return overrides


def test_two_extracts_share_people_whatever_their_numbers_look_like(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    overrides = two_panels(
        tmp_path, [str(number) for number in range(80)], [f"{number}.0" for number in range(40, 120)]
    )
    store = prepare_store(settings_of(overrides))
    card = json.loads((store.folder / "data_card.json").read_text())
    assert card["shared_people"] == [{"corpora": ["long_panel", "other"], "population": "POP", "people": 40}]
    assert "| long_panel and other | POP | 40 |" in (store.folder / "data_card.md").read_text()
    assert not any("share nobody" in line for line in caplog.messages)
    split = settings_of(overrides).split
    for name in ("train", "validation", "test"):
        careers = store.careers(name)
        people = [careers.person(row) for row in range(len(careers))]
        assert all(split_of("POP", person, split) == name for _, person in people)


def test_populations_that_share_nobody_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    overrides = two_panels(tmp_path, [str(number) for number in range(30)], [f"0{number}" for number in range(30)])
    store = prepare_store(settings_of(overrides))
    (line,) = [line for line in caplog.messages if "share nobody" in line]
    assert "corpora long_panel and other are of one population (POP) and share nobody" in line
    card = json.loads((store.folder / "data_card.json").read_text())
    assert card["shared_people"][0]["people"] == 0
