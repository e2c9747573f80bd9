"""The table of readers: a kind of source is one value there, and one that is added is read like any other."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.runs import settings_of, small_run

from laborllm_dist.careers.corpus import READERS
from laborllm_dist.careers.readers.reader import Reader, as_people
from laborllm_dist.careers.types import CareerHistory, Job, OccupationVocabulary
from laborllm_dist.config.corpora import CORPUS_KINDS, SyntheticCorpus, SyntheticSettings
from laborllm_dist.store.build import prepare_store

CAREERS = [
    CareerHistory(str(person), "MADE", 1960, "female", None, None, (Job(1990, "a"), Job(1991, "ba"[person % 2])))
    for person in range(40)
]


def test_every_kind_has_a_reader_and_a_settings_file() -> None:
    assert READERS.keys() == CORPUS_KINDS.keys()


def test_a_reader_that_is_added_is_prepared_like_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "careers.made"
    source.write_text("anything")
    made: Reader[SyntheticSettings] = Reader(
        people=lambda settings, survey: as_people(CAREERS),
        vocabulary=lambda settings: OccupationVocabulary(("a", "b"), ("Cooks", "Bakers")),
        files=lambda settings: [source],
        reachable_by_year=lambda settings: {1991: frozenset("ab")},
        notes=lambda settings: ["made for a test"],
    )
    monkeypatch.setitem(READERS, "made", made)
    monkeypatch.setitem(CORPUS_KINDS, "made", SyntheticCorpus)
    settings = settings_of(
        small_run(tmp_path, "data.corpora.synthetic.kind=made", "data.corpora.synthetic.survey=MADE", num_people=3)
    )
    store = prepare_store(settings)
    people = {
        row["person"] for split in ("train", "validation", "test") for row in store.careers(split).table.to_pylist()
    }
    assert people == {career.person for career in CAREERS}
    assert store.vocabulary.title_of() == {"a": "Cooks", "b": "Bakers"}
    assert "made for a test" in (store.folder / "data_card.md").read_text()
    # Its file is what identifies it.
    source.write_text("something else")
    assert prepare_store(settings).folder != store.folder
