"""The token store: made once, whole or not at all, the careers in it the careers that were read."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
from helpers.errors import raises
from helpers.panels import panels
from helpers.runs import settings_of, small_run
from helpers.trained_runs import ONE_RANK

from laborllm_dist.careers.corpus import pooled_vocabulary, read_careers
from laborllm_dist.careers.readers.long_panel import OPTIONAL
from laborllm_dist.careers.splits import SPLITS, split_of
from laborllm_dist.config.data import PersonSplit
from laborllm_dist.io import files
from laborllm_dist.io.files import sha256_of
from laborllm_dist.planning.workload import find_workload
from laborllm_dist.store.build import locate_store, prepare, prepare_store
from laborllm_dist.store.store import FORMAT, open_store, verify_store
from laborllm_dist.store.tokenizer import load_tokenizer
from laborllm_dist.text.template import compile_template, render_career
from laborllm_dist.training.train import train

COLUMN_NAMES = ("person", "year", "occupation", "birth_year", "gender", "ethnicity", "region", "education")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("store")
    # Pieces that do not divide the number of people, so that their seams are crossed.
    settings = settings_of(small_run(folder, "store.people_per_shard=20", num_people=90))
    return settings, prepare_store(settings)


def test_every_career_is_in_its_split_once_and_unchanged(prepared) -> None:
    settings, store = prepared
    actual = {}
    for split in SPLITS:
        careers = store.careers(split)
        for row in range(len(careers)):
            history = careers.history(row)
            assert split_of(history.survey, history.person, settings.split) == split
            actual[history.person] = history
    expected = {career.person: career for career in read_careers(settings.data)}
    assert actual == expected
    assert sum(store.num_people(split) for split in SPLITS) == len(expected) == 90
    assert len(store.facts["splits"]["train"]["shards"]) > 1


def test_a_split_without_people_is_a_warning(prepared, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings, _ = prepared
    prepare(settings)
    assert "there are no" not in caplog.text
    prepare(settings_of(small_run(tmp_path, "split.train=0.98", "split.validation=0.01", num_people=8)))
    assert "warning: there are no validation and no test people; change split" in caplog.text


def test_datasets_opens_the_shards_of_a_store(prepared) -> None:
    _, store = prepared
    for split in SPLITS:
        paths = [str(store.folder / name) for name in store.facts["splits"][split]["shards"]]
        theirs = datasets.concatenate_datasets([datasets.Dataset.from_file(path) for path in paths])
        assert theirs.to_list() == store.careers(split).table.to_pylist()


def test_tokens_are_those_of_the_career_s_text(prepared) -> None:
    settings, store = prepared
    tokenizer = load_tokenizer(str(store.folder / "tokenizer"))
    careers = store.careers("test")
    template = compile_template(settings.template)
    for row in range(len(careers)):
        (text,) = render_career(careers.history(row), template, store.vocabulary.title_of())
        ids = careers.token_ids(row)
        assert tokenizer.hugging_face.decode(ids[1:]) == text.text
        for (start, end), (first, last) in zip(text.title_spans, careers.title_spans(row), strict=True):
            assert tokenizer.hugging_face.decode(ids[first:last]) == text.text[start:end]


def test_a_second_call_uses_the_store_and_changed_settings_make_another(prepared, tmp_path: Path) -> None:
    settings, store = prepared
    before = (store.folder / "manifest.json").stat().st_mtime_ns
    assert prepare_store(settings).folder == store.folder
    assert (store.folder / "manifest.json").stat().st_mtime_ns == before
    root = str(store.folder.parent.parent)
    changed = settings_of(small_run(Path(root), "tokenizer.vocabulary_size=300", num_people=90))
    assert locate_store(changed).folder != store.folder
    batches = settings_of(small_run(Path(root), "prepare.num_workers=3", num_people=90))
    assert locate_store(batches).folder == store.folder


def test_the_size_of_pieces_does_not_change_what_is_in_a_store(prepared, tmp_path: Path) -> None:
    _, store = prepared
    other = prepare_store(settings_of(small_run(tmp_path, "store.people_per_shard=1000", num_people=90)))
    for split in SPLITS:
        assert other.careers(split).table.combine_chunks().equals(store.careers(split).table.combine_chunks())


def damaged(prepared, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared[1].folder, tmp_path / "copy"))


def test_unfinished_and_damaged_stores_are_refused(prepared, tmp_path: Path) -> None:
    folder = damaged(prepared, tmp_path)
    shard = folder / "pieces/synthetic-00000/train.arrow"
    shard.write_bytes(shard.read_bytes()[:-100])
    with raises("store/missing-or-incomplete-file", "train.arrow", "has", "bytes, the manifest says"):
        open_store(folder)
    shard.unlink()
    with raises("store/missing-or-incomplete-file", "train.arrow", "is missing"):
        open_store(folder)
    (folder / "manifest.json").write_text("{")
    with raises("store/damaged-manifest"):
        open_store(folder)
    (folder / "manifest.json").write_text(json.dumps({"format": 99}))
    with raises("store/unsupported-store-format", "99", "2"):
        open_store(folder)
    (folder / "manifest.json").unlink()
    with raises("store/no-store"):
        open_store(folder)


def test_a_failed_preparation_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "panel.csv").write_text("person,year,occupation\n1,1984,4\n1,1984,4\n")
    settings = settings_of([
        "data=long_panel",
        f"data.corpora.long_panel.path={tmp_path}/panel.csv", f"store.root={tmp_path}/stores",
        *(f"data.corpora.long_panel.columns.{name}=null" for name in OPTIONAL),
    ])  # fmt: skip
    with raises("data-file/invalid-content", "has 1984 twice"):
        prepare_store(settings)
    assert not (tmp_path / "stores").exists()


def test_a_missing_corpus_says_how_to_get_it(tmp_path: Path) -> None:
    settings = settings_of(["+experiment=pooled_13b", f"data.corpora.psid81.path={tmp_path}/none.zip"])
    with raises("data-file/unreadable-corpus", "PSID", "none.zip", "data.corpora.psid81", "PSID Data Center"):
        prepare_store(settings)


def test_a_folder_and_a_missing_vocabulary_are_refused(tmp_path: Path) -> None:
    place = "data.corpora.long_panel"
    with raises("data-file/unreadable-corpus", "PANEL", "a folder at"):
        prepare_store(settings_of(["data=long_panel", f"{place}.path={tmp_path}"]))
    (tmp_path / "panel.csv").write_text("person,year,occupation\n1,1984,4\n")
    wrong = ["data=long_panel", f"{place}.path={tmp_path}/panel.csv", f"{place}.vocabulary.path=builtin:occ1990"]
    with raises("data-file/no-occupation-list", "PANEL", "builtin:occ1990", "builtin:occ1990dd"):
        prepare_store(settings_of(wrong))


def test_a_changed_store_file_is_refused(prepared, tmp_path: Path) -> None:
    folder = damaged(prepared, tmp_path)
    shard = folder / "pieces/synthetic-00000/train.arrow"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with raises("store/file-checksum-mismatch", "train.arrow"):
        verify_store(open_store(folder))


def test_the_content_of_a_store_is_pinned_to_its_format(tmp_path: Path) -> None:
    """A store is found again by its settings; so code that changes what is in it must raise FORMAT."""
    store = prepare_store(settings_of(small_run(tmp_path, num_people=30)))
    content = hashlib.sha256()
    for split in SPLITS:
        for row in store.careers(split).table.to_pylist():
            content.update(repr(row).encode())
    assert (FORMAT, content.hexdigest()[:16]) == (2, "b3a26c240a8d4fd4"), (
        "the content changed: raise FORMAT in store/store.py"
    )


def test_a_corpus_too_small_to_train_on_is_refused(tmp_path: Path) -> None:
    settings = settings_of(small_run(tmp_path, "split.train=0.0001", "tokenizer.kind=trained", num_people=5))
    with raises("data-file/empty-training-split", "5", "synthetic"):
        prepare_store(settings)


def test_two_corpora_may_not_give_one_code_two_titles(tmp_path: Path) -> None:
    for survey, title in (("A", "Cooks"), ("B", "Bakers")):
        (tmp_path / f"{survey}_titles.csv").write_text(f"code,title\n1,{title}\n")
        (tmp_path / f"{survey}.csv").write_text("person,year,occupation\n1,1984,1\n")
    with raises("vocabulary/conflicting-titles", "'1'", "'Cooks'", "'Bakers'", "B"):
        pooled_vocabulary(panels(tmp_path, "A", "B"))


def test_splits_are_near_their_shares_and_ignore_other_people() -> None:
    settings = PersonSplit(salt="k", train=0.7, validation=0.1)
    splits = [split_of("S", str(person), settings) for person in range(20_000)]
    shares = [splits.count(split) / len(splits) for split in SPLITS]
    # Three standard errors of a share of 20,000 people are at most .0098.
    np.testing.assert_allclose(shares, [0.7, 0.1, 0.2], atol=0.0098)
    assert split_of("S", "1", settings) == splits[1]
    assert [split_of("T", str(person), settings) for person in range(50)] != splits[:50]


def test_a_command_reads_each_source_for_its_checksum_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    people = [f"{person},{year},{'ab'[person % 2]},1950,male,white,west,college" for person in range(40)
              for year in (1980, 1981)]  # fmt: skip
    (tmp_path / "panel.csv").write_text("\n".join([",".join(COLUMN_NAMES), *people]))
    (tmp_path / "titles.csv").write_text("code,title\na,Cooks\nb,Bakers\n")
    place = "data.corpora.long_panel"
    overrides = [
        *small_run(tmp_path, "tokenizer.vocabulary_size=270"),
        "data=long_panel",
        f"{place}.path={tmp_path}/panel.csv",
        f"{place}.vocabulary.path={tmp_path}/titles.csv",
    ]
    settings = settings_of([override for override in overrides if "num_people" not in override])
    read: list[str] = []
    monkeypatch.setattr(files, "sha256_of", lambda path: read.append(path.name) or sha256_of(path))

    def of_sources() -> list[str]:
        names = sorted(name for name in read if name in ("panel.csv", "titles.csv"))
        read.clear()
        return names

    prepare(settings)  # makes the store
    assert of_sources() == ["panel.csv", "titles.csv"]
    prepare(settings)  # which is there
    assert of_sources() == ["panel.csv", "titles.csv"]
    find_workload(settings)  # of the plan
    assert of_sources() == ["panel.csv", "titles.csv"]
    too_short = dataclasses.replace(settings, batch=dataclasses.replace(settings.batch, max_seq_length=8))
    with raises("sequence-too-long/career-too-long", "8"):  # after all that training asks of the sources
        train(too_short, ONE_RANK)
    assert of_sources() == ["panel.csv", "titles.csv"]


def test_files_that_are_moved_make_the_same_store_and_other_content_another(tmp_path: Path) -> None:
    folders = [tmp_path / "here", tmp_path / "there", tmp_path / "changed"]
    for folder in folders:
        folder.mkdir()
        (folder / "one.csv").write_text("person,year,occupation\n1,1990,a\n1,1991,b\n")
        (folder / "one_titles.csv").write_text("code,title\na,Cooks\nb,Bakers\n")
    (folders[2] / "one_titles.csv").write_text("code,title\na,Cooks\nb,Nurses\n")
    base = settings_of(small_run(tmp_path))
    here, there, changed = (
        locate_store(dataclasses.replace(base, data=panels(folder, "one"))).folder for folder in folders
    )
    assert here == there != changed
