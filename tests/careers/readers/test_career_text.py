"""CAREER's parallel text files, in and out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.errors import raises
from helpers.runs import settings_of, small_run
from hypothesis import given, settings
from hypothesis import strategies as st

from laborllm_dist.careers.person_records import PersonRecord
from laborllm_dist.careers.readers.career_text import (
    career_text_files,
    career_text_people,
    escaped,
    unescaped,
    write_career_text,
)
from laborllm_dist.careers.splits import Split
from laborllm_dist.careers.types import CareerHistory, Job
from laborllm_dist.config.corpora import CareerTextSettings, VocabularySettings
from laborllm_dist.errors import LaborError
from laborllm_dist.store.build import prepare, prepare_store

WRITTEN = {
    "train.job": "25 23 23\n11\n",
    "train.year": "2005 2006 2010\n1999\n",
    "train.education": "masters masters doctorate_degree\nunknown\n",
    "train.gender": "female\nmale\n",
    "train.ethnicity": "black_or_african_american\n<unk>\n",
    "train.location": "AL\nNew_York\n",
    "test.job": "11\n",
    "test.year": "2001\n",
    "test.education": "bachelors\n",
    "test.gender": "male\n",
    "test.ethnicity": "white\n",
    "test.location": "CA\n",
}
FIRST = CareerHistory(
    "train-0000001", "CAREER", None, "female", "black or african american", "AL",
    (Job(2005, "25", "masters"), Job(2006, "23", "masters"), Job(2010, "23", "doctorate degree")),
)  # fmt: skip
SECOND = CareerHistory("train-0000002", "CAREER", None, "male", None, "New York", (Job(1999, "11"),))
THIRD = CareerHistory("test-0000001", "CAREER", None, "male", "white", "CA", (Job(2001, "11", "bachelors"),))


def write(folder: Path, **changes: str) -> CareerTextSettings:
    folder.mkdir(exist_ok=True)
    for name, text in {**WRITTEN, **{name.replace("_", "."): text for name, text in changes.items()}}.items():
        (folder / name).write_text(text)
    (folder / "codes.csv").write_text("code,title\n11,Managers\n23,Lawyers\n25,Teachers\n")
    codes = VocabularySettings(str(folder / "codes.csv"), "code", "title", "error")
    return CareerTextSettings(str(folder), codes, ("unknown", "<unk>"))


def read(text_settings: CareerTextSettings) -> list[PersonRecord]:
    return [person() for person in career_text_people(text_settings, survey="CAREER")]


def test_three_people_by_hand(tmp_path: Path) -> None:
    assert read(write(tmp_path)) == [
        PersonRecord(FIRST, (), "train"), PersonRecord(SECOND, (), "train"), PersonRecord(THIRD, (), "test"),
    ]  # fmt: skip


def test_a_kind_may_be_absent_everywhere_but_not_somewhere(tmp_path: Path) -> None:
    text_settings = write(tmp_path)
    (tmp_path / "test.gender").unlink()
    with raises("data-file/missing-split-file", "test", "gender", "train, test"):
        career_text_files(text_settings)
    (tmp_path / "train.gender").unlink()
    assert [person.career.gender for person in read(text_settings)] == [None] * 3
    (tmp_path / "train.year").unlink()
    with raises("data-file/missing-split-file", "train", "year"):
        career_text_files(text_settings)


BROKEN = {
    "train_job": {
        "25 23\n11\n": ("train.year: 1 problem:\n  line 1: 3 values, expected 2",),
        "25 23 99\n11\n": ("train.job: 1 problem:\n  line 1: code '99'", "codes.csv"),
        "25 23 23\n\n": ("line 2: 0 values",),
        "25 23 23\n11\n23\n": ("line 3: the file ends",),
        "25 23 23\n": ("line 2: train.job",),
        "25 23 23\n1\0 1\n": ("line 2", "NUL byte"),
    },
    "train_year": {
        "2005 2005 2010\n1999\n": ("line 1: '2005 2005 2010'",),
        "2005 2006 2010\nsoon\n": ("line 2: 'soon'",),
    },
    "train_gender": {
        "female male\nmale\n": ("train.gender: 1 problem:\n  line 1: 2 values, expected 1",),
        "female\nmale%0A1990:_Cooks\n": ("line 2: 'male%0A1990:_Cooks'", "line break"),
    },
    "train_education": {"masters %1B[31m doctorate\nunknown\n": ("line 1: '%1B[31m'", "control")},
}


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in BROKEN.items() for text in texts])
def test_broken_files_are_refused_with_file_and_line(kind: str, text: str, tmp_path: Path) -> None:
    with raises("data-file/invalid-content", *BROKEN[kind][text]):
        read(write(tmp_path, **{kind: text}))


def test_missing_folders_are_refused(tmp_path: Path) -> None:
    text_settings = write(tmp_path / "a")
    with raises("data-file/no-folder", "nowhere"):
        career_text_files(dataclasses.replace(text_settings, path=str(tmp_path / "nowhere")))
    (tmp_path / "empty").mkdir()
    with raises("data-file/no-split-files"):
        career_text_files(dataclasses.replace(text_settings, path=str(tmp_path / "empty")))


@given(st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp", "Zs")) | st.sampled_from(" _%"), min_size=1))
def test_any_value_is_one_word_and_comes_back(value: str) -> None:
    assert unescaped(escaped(value)) == value
    assert len(escaped(value).split(" ")) == 1


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    text_settings = write(tmp_path / "in")
    counts = write_career_text([("train", FIRST), ("train", SECOND), ("test", THIRD)], tmp_path / "out")
    assert counts == {"train": 2, "valid": 0, "test": 1}
    assert (tmp_path / "out/train.ethnicity").read_text() == "black_or_african_american\nunknown\n"
    assert read(dataclasses.replace(text_settings, path=str(tmp_path / "out"))) == read(text_settings)
    with raises("data-file/output-folder-exists", "out"):
        write_career_text([], tmp_path / "out")
    odd = dataclasses.replace(THIRD, jobs=(Job(2001, "1 1"),))
    with raises("data-file/blank-in-code", "'1 1'"):
        write_career_text([("test", odd)], tmp_path / "odd")
    assert not list(tmp_path.glob("odd*"))


def test_a_store_keeps_the_splits_of_the_files_and_is_written_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    many = {"train": 30, "valid": 7, "test": 5}
    for name, number in many.items():
        for kind, text in (("job", "25 23\n"), ("year", "2001 2002\n"), ("gender", "male\n")):
            (tmp_path / f"{name}.{kind}").write_text(text * number)
    (tmp_path / "codes.csv").write_text("code,title\n23,Lawyers\n25,Teachers\n")
    place = "data.corpora.career_text"
    settings = settings_of([
        *small_run(tmp_path)[2:], "data=career_text", f"{place}.path={tmp_path}",
        f"{place}.vocabulary.path={tmp_path}/codes.csv", f"prepare.career_text={tmp_path}/out",
    ])  # fmt: skip
    assert prepare(settings).startswith("30 train, 7 validation, 5 test people")
    assert f"prepare: CAREER's text files of 30 train, 7 valid, 5 test people in {tmp_path}/out" in caplog.messages
    assert (tmp_path / "out/valid.job").read_text() == (tmp_path / "valid.job").read_text()


def test_a_folder_that_another_process_is_writing_is_refused(tmp_path: Path) -> None:
    def while_written() -> Iterator[tuple[Split, CareerHistory]]:
        yield "train", FIRST
        with raises(
            "already-running/locked-by-another-process", "another process is writing to", "/out; wait for it, or name"
        ):
            write_career_text([("test", SECOND)], tmp_path / "out")
        yield "train", SECOND

    assert write_career_text(while_written(), tmp_path / "out") == {"train": 2, "valid": 0, "test": 0}
    assert len((tmp_path / "out/train.job").read_text().splitlines()) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # no lock is left


def test_a_person_in_two_splits_is_refused(tmp_path: Path) -> None:
    """The survey's own split against that of the files: the same people under one population."""
    from helpers.panels import panels

    rows = "".join(f"train-{person:07d},2001,25\n" for person in range(1, 31))
    (tmp_path / "A.csv").write_text("person,year,occupation\n" + rows)
    (tmp_path / "A_titles.csv").write_text("code,title\n23,Lawyers\n25,Teachers\n")
    for name in ("train", "test"):
        (tmp_path / f"{name}.job").write_text("25 23\n" * 30)
        (tmp_path / f"{name}.year").write_text("2001 2002\n" * 30)
    one = settings_of(["data=career_text"]).data.corpora["career_text"]
    vocabulary = dataclasses.replace(one.vocabulary, path=str(tmp_path / "A_titles.csv"))
    text = dataclasses.replace(one, path=str(tmp_path), vocabulary=vocabulary, population="PEOPLE")
    data = panels(tmp_path, "A", population="PEOPLE")
    both = {**data.corpora, "T": text}
    settings = dataclasses.replace(settings_of(small_run(tmp_path)), data=dataclasses.replace(data, corpora=both))
    with raises("data-file/person-in-several-splits", "'train-", "'", "train and", "A and T"):
        prepare_store(settings)


@settings(max_examples=300, deadline=None)
@given(
    damage=st.lists(st.tuples(st.integers(0, 10**4), st.binary(max_size=3)), min_size=1, max_size=4),
    cut=st.integers(0, 30),
    name=st.sampled_from(sorted(WRITTEN)),
)
def test_any_damage_is_read_or_refused_with_the_file(tmp_path_factory, damage, cut: int, name: str) -> None:
    folder = tmp_path_factory.mktemp("damage")
    text_settings = write(folder)
    content = bytearray((folder / name).read_bytes())
    for place, replacement in damage:
        at = place % len(content)
        content[at : at + len(replacement)] = replacement
    (folder / name).write_bytes(content[: max(1, len(content) - cut)])
    try:
        people = read(text_settings)
    except LaborError as error:
        assert str(folder) in str(error)
    else:
        assert len(people) == 3
