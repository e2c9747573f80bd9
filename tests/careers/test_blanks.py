"""Blanks of other kinds, in lists of occupations, panels, resumes and careers to predict for: spaces, and said."""

from __future__ import annotations

import json
from pathlib import Path

from helpers.errors import raises
from helpers.panels import VOCABULARY, numbered, panel
from helpers.resumes import coded, job, rows_of, shipped
from helpers.resumes import read as read_resumes
from helpers.runs import settings_of
from hypothesis import given
from hypothesis import strategies as st

from laborllm_dist.careers.occupations.vocabulary import notes_of_vocabulary, read_occupations
from laborllm_dist.careers.readers.cells import with_plain_blanks
from laborllm_dist.careers.readers.long_panel import long_panel_people
from laborllm_dist.prediction.request_files import read_requests
from laborllm_dist.store.build import prepare_store

# Every blank that Unicode calls a space, and the signs without any width that web pages leave behind.
SPACES = "\t\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000"
NOTHING = "\u00ad\u200b\u2060\ufeff"
CHANGE = "column {}: a blank of another kind (a no-break space, say), taken as a space"


def test_every_blank_is_a_space_and_what_has_no_width_is_nothing() -> None:
    assert [with_plain_blanks(f"BSc{sign}(Hons)") for sign in SPACES] == ["BSc (Hons)"] * len(SPACES)
    assert [with_plain_blanks(f"BSc{sign}(Hons)") for sign in NOTHING] == ["BSc(Hons)"] * len(NOTHING)
    assert with_plain_blanks("\u00a0 caf\u00e9 \u00a0") == "caf\u00e9"
    assert with_plain_blanks("\u6599\u7406\u4eba") == "\u6599\u7406\u4eba"
    assert (
        with_plain_blanks("a\nb\x07\u2028") == "a\nb\x07"
    )  # line breaks inside stay, and are refused where they matter


@given(st.text())
def test_a_cleaned_text_stays_as_it_is(text: str) -> None:
    cleaned = with_plain_blanks(text)
    assert with_plain_blanks(cleaned) == cleaned
    assert not set(cleaned) & (set(SPACES) | set(NOTHING))


ESCO = (
    "conceptType,code,preferredLabel,altLabels\n"
    'Occupation,1120.1,president\u00a0of the board,"chair\nchairman"\nOccupation,5120.1,cook,\n'
    "Occupation,2166.1,web\u00a0designer,\n"
)


def test_the_list_of_esco_is_read_and_the_card_says_what_was_changed(tmp_path: Path) -> None:
    (tmp_path / "occupations_en.csv").write_text(ESCO, encoding="utf-8-sig")
    people = [
        {"resume_id": str(at), "matched_code": "1120.1", "start_date": "2010", "end_date": "2012"} for at in range(60)
    ]
    (tmp_path / "jobs.jsonl").write_text(rows_of(*({**row, "university_level": "BSc\u00a0(Hons)"} for row in people)))
    resumes = "data.corpora.jobhop"
    overrides = ["data=jobhop", f"{resumes}.path={tmp_path}/jobs.jsonl", f"store.root={tmp_path}/stores"]
    overrides += [f"{resumes}.vocabulary.path={tmp_path}/occupations_en.csv", "tokenizer.vocabulary_size=300"]
    store = prepare_store(settings_of(overrides))
    careers = store.careers("train")
    assert careers.history(0).jobs[0].education == "BSc (Hons)"
    card = json.loads((store.folder / "data_card.json").read_text())["corpora"]["jobhop"]
    assert card["taken_otherwise"] == [
        {
            "what": "list of occupations: 2 entries with a blank of another kind (a no-break space, say), taken as a space: "
            "president of the board, web designer",
            "count": None,
        },
        {"what": CHANGE.format("university_level"), "count": 60},
    ]
    assert f"| {CHANGE.format('university_level')} | 60 |" in (store.folder / "data_card.md").read_text()
    assert "president of the board" in (store.folder / "occupations.csv").read_text()


def test_titles_that_differ_by_a_blank_are_one_title(tmp_path: Path) -> None:
    vocabulary_settings = panel(tmp_path).vocabulary
    path = Path(vocabulary_settings.path)
    path.write_text("code,title\n1,web designer\n2,web\u00a0designer\n")
    with raises(
        "vocabulary/unreadable-vocabulary-file", "line 3, column title: 'web designer' appears at line 2 already"
    ):
        read_occupations(vocabulary_settings)
    path.write_text("code,title\n1,Cooks\n2,Bakers\n")
    assert notes_of_vocabulary(vocabulary_settings) == []


def test_panels_resumes_and_careers_to_predict_for(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("person,year\u00a0,occupation\nAnn\u00a0Lee,1984,1\u00a0\nAnn Lee,1985,2\n")
    (person,) = long_panel_people(numbered(tmp_path, "p.csv"), survey="P")
    assert (person().career.person, len(person().career.jobs)) == ("Ann Lee", 2)
    assert person().changes == (CHANGE.format("person"),)
    (request,) = read_requests(tmp_path / "p.csv", VOCABULARY, ("P",))
    assert (request.history.person, len(request.history.jobs)) == ("Ann Lee", 2)
    (tmp_path / "p.json").write_text(
        '{"person": "Ann\\u00a0Lee", "jobs": [{"year": 1984, "occupation": "Cooks\\u2009"}]}'
    )
    (request,) = read_requests(tmp_path / "p.json", VOCABULARY, ("P",))
    assert (request.history.person, request.history.jobs[0].occupation) == ("Ann Lee", "1")
    rows = [job("Ann\u00a0Lee", "1", "May\u00a02010", "2010", "BSc\u00a0(Hons)"), job("Ann Lee", "2", "2011", "2011")]
    (tmp_path / "r.jsonl").write_text(rows_of(*rows))
    (person,) = read_resumes(coded(tmp_path / "r.jsonl"))
    assert [(each.year, each.education) for each in person.career.jobs] == [(2010, "BSc (Hons)"), (2011, "BSc (Hons)")]
    assert person.changes == tuple(CHANGE.format(column) for column in ("id", "start", "education"))


def test_line_breaks_and_halves_of_characters_are_refused_or_harmless(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text(rows_of(job("a", "1", "2010", "2010", "BSc\n(Hons)")))
    with raises("data-file/invalid-content", "column education: 'BSc\\n(Hons)' holds a line break"):
        read_resumes(coded(tmp_path / "r.jsonl"))
    row = {"id": "a", "title": "Lawyer\n", "start": "2010", "end": "2010", "education": None}
    (tmp_path / "t.jsonl").write_text(rows_of({**row, "title": "Law\u00a0yer \ud800"}))
    with raises("data-file/invalid-content", "column title: 'Law yer \\ud800' holds a line break or control character"):
        read_resumes(shipped("resumes", tmp_path / "t.jsonl"))
    (tmp_path / "t.jsonl").write_text(rows_of(row))
    (person,) = read_resumes(shipped("resumes", tmp_path / "t.jsonl"))
    assert [each.occupation for each in person.career.jobs] == ["178"]
