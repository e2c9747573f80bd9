"""Splits by column, files of ids, household and year: who is in which, what a text holds, and what is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from helpers.errors import raises
from helpers.panels import panels
from helpers.runs import settings_of, small_run
from helpers.trained_runs import ONE_RANK, TITLES, begun_run, panel

from laborllm_dist.baselines.features import CareerFeatures, career_features, categories_of
from laborllm_dist.baselines.run import score_baselines
from laborllm_dist.careers.readers.career_text import write_career_text
from laborllm_dist.careers.splits import SPLITS, career_splits
from laborllm_dist.careers.types import CareerHistory, Job
from laborllm_dist.cli import compose_settings
from laborllm_dist.config.baselines import BaselineSettings
from laborllm_dist.config.data import PersonSplit
from laborllm_dist.config.evaluation import ForecastSettings
from laborllm_dist.config.run import RunSettings
from laborllm_dist.evaluation.tasks import observation_facts
from laborllm_dist.forecasting.run import forecast_run, run_forecasts
from laborllm_dist.io.run_directory import create_or_resume, read_run, run_fingerprint
from laborllm_dist.planning.workload import assumed_plan
from laborllm_dist.store.build import locate_store, prepare, prepare_store
from laborllm_dist.store.store import TokenStore, whole_careers
from laborllm_dist.store.tokenizer import load_tokenizer
from laborllm_dist.tables.scores import read_score_table

CAREER = CareerHistory(
    "1", "S", 1960, "male", "white", "south", tuple(Job(1984 + at, "436", "college") for at in range(3))
)


def splits_of(store: TokenStore) -> dict[str, str]:
    """Return the split of every person of a store."""
    return {
        person: split
        for split in SPLITS
        if store.num_people(split)
        for person in store.careers(split).table["person"].to_pylist()
    }


def with_panel(folder: Path, *more: str) -> RunSettings:
    """Return the panel of 40 people with more columns: a split, and a household of two people that is odd or even."""
    overrides = [override for override in panel(folder) if not override.startswith("split.")]
    lines = (folder / "careers.csv").read_text().splitlines()
    rows = [lines[0] + ",sample,house"]
    for line in lines[1:]:
        person = int(line.split(",")[0])
        rows.append(f"{line},{('TRAIN', 'dev', 'test', 'training')[person % 4]},h{person // 2}.0")
    (folder / "careers.csv").write_text("\n".join(rows) + "\n")
    return settings_of([*overrides, *more])


def test_the_split_of_people_has_kept_its_settings_and_its_names(tmp_path: Path) -> None:
    settings = settings_of(small_run(tmp_path))
    assert settings.split == PersonSplit(salt="laborllm_dist", train=0.7, validation=0.1)
    # A record from before there were other rules has no `by`.
    run = begun_run(tmp_path)
    record = json.loads((run.path / "settings.json").read_text())
    del record["settings"]["split"]["by"], record["sha256"]
    (run.path / "settings.json").write_text(json.dumps(record))
    known = read_run(run.path)[1]
    assert known.split == settings.split
    assert run_fingerprint(known, "store", None) == run.fingerprint


def test_a_column_of_the_panel_names_the_splits(tmp_path: Path) -> None:
    store = prepare_store(with_panel(tmp_path, "split_by=column", "split.column=sample"))
    expected = {str(person): ("train", "validation", "test", "train")[person % 4] for person in range(40)}
    assert splits_of(store) == expected
    card = (store.folder / "data_card.md").read_text()
    assert "Split: by column; " in card and "train_values train, training" in card


def test_a_table_and_files_of_ids_give_the_same_split_wherever_they_are(tmp_path: Path) -> None:
    rows = ["id,part", *(f"{person}.0,{(0, 1, 2)[person % 3]}" for person in range(39)), "39,", "77,1"]
    words = [f"split.{name}_values=['{number}']" for number, name in enumerate(SPLITS)]
    stores = []
    for name in ("one.csv", "other.csv"):
        (tmp_path / name).write_text("\n".join(rows) + "\n")
        more = [f"split.table={tmp_path}/{name}", "split.person=id", "split.column=part", "split.unlisted=leave_out"]
        stores.append(prepare_store(with_panel(tmp_path, "split_by=column", *more, *words)))
    assert stores[0].folder == stores[1].folder
    expected = {str(person): SPLITS[person % 3] for person in range(39)}
    assert splits_of(stores[0]) == expected
    (left_out,) = json.loads((stores[0].folder / "data_card.json").read_text())["corpora"]["long_panel"]["left_out"]
    assert (left_out["reason"], left_out["count"]) == ("person whom the file of the split does not list", 1)
    for number, name in enumerate(SPLITS):
        ids = "\n".join(str(person) for person in range(39) if person % 3 == number)
        (tmp_path / f"{name}.txt").write_text(f"{ids}\n\n")
    files = [f"split.{name}_ids={tmp_path}/{name}.txt" for name in SPLITS]
    by_files = prepare_store(with_panel(tmp_path, "split_by=file", *files, "split.unlisted=leave_out"))
    assert splits_of(by_files) == expected
    (tmp_path / "test.txt").write_text("2\n")
    changed = locate_store(with_panel(tmp_path, "split_by=file", *files, "split.unlisted=leave_out"))
    assert changed.folder != by_files.folder


def test_people_of_one_household_stay_together(tmp_path: Path) -> None:
    settings = with_panel(
        tmp_path, "split_by=household", "split.column=house", "split.train=0.5", "split.validation=0.2"
    )
    actual = splits_of(prepare_store(settings))
    for person in range(40):
        # By hand: the first 64 bits of BLAKE2b of population and household under the key.
        text = f"PANEL\0household h{person // 2}.0".encode()
        digest = hashlib.blake2b(text, key=b"laborllm_dist", digest_size=8).digest()
        share = int.from_bytes(digest, "big") / 2**64
        assert actual[str(person)] == ("train" if share < 0.5 else "validation" if share < 0.7 else "test")
    assert set(actual.values()) == set(SPLITS)


def test_the_population_of_a_table_s_row_says_whose_person_it_is(tmp_path: Path) -> None:
    for survey in "AB":
        (tmp_path / f"{survey}_titles.csv").write_text("code,title\n1,Cooks\n")
        (tmp_path / f"{survey}.csv").write_text("person,year,occupation\n1,1984,1\n")
    (tmp_path / "people.csv").write_text("person,survey,split\n1,A,train\n1,B,test\n1,C,none\n")
    rule = ["split_by=column", f"split.table={tmp_path}/people.csv", "split.population=survey"]
    split = with_panel(tmp_path, *rule).split
    splits = career_splits(split, panels(tmp_path, "A", "B"))
    assert splits.listed is not None
    career = dataclasses.replace(CAREER, survey="x")
    assert [splits.segments(survey, career, None)[0].split for survey in "AB"] == ["train", "test"]
    with raises("data-file/person-not-in-split-file", "split_by=column", "person '1'"):
        splits.segments("C", career, None)


def error_text(folder: Path, code: str, *more: str) -> str:
    with raises(f"data-file/{code}") as error:
        prepare_store(with_panel(folder, *more))
    return str(error.value)


def test_what_a_split_s_files_cannot_say_is_refused(tmp_path: Path) -> None:
    table = tmp_path / "people.csv"
    rule = ["split_by=column", f"split.table={table}"]
    assert "setting split.table" in error_text(tmp_path, "no-split-file", *rule)
    table.write_text("person,part\n1,train\n")
    assert "missing (needed for column); the columns are person, part" in error_text(tmp_path, "invalid-content", *rule)
    table.write_text("person,split\n1,train\n2,tests\n,test\n3\n1234567890123456789.0,test\n")
    message = error_text(tmp_path, "invalid-content", *rule)
    assert "4 problems" in message and "'tests' names no split; those are train, training, valid" in message
    table.write_text("person,split\n1,train\n2,test\n1.0,test\n")
    assert f"line 2 of {table} and line 4 of {table} are of one person" in error_text(
        tmp_path, "person-has-two-values", *rule
    )
    table.write_text("person,split,split\n1,train,test\n")
    assert "column split: this column appears twice" in error_text(tmp_path, "invalid-content", *rule)
    table.write_text("person,split\n1,train\n")
    assert "person '0' of PANEL" in error_text(tmp_path, "person-not-in-split-file", *rule)
    table.write_text("person,house\n1,7\n1,8\n")
    error_text(tmp_path, "person-has-two-values", "split_by=household", f"split.table={table}", "split.column=house")
    files = []
    for name in SPLITS:
        (tmp_path / f"{name}.txt").write_text("5\n")
        files.append(f"split.{name}_ids={tmp_path}/{name}.txt")
    assert "differ in their split" in error_text(tmp_path, "person-has-two-values", "split_by=file", *files)
    (tmp_path / "test.txt").write_bytes(b"\xff\n")
    error_text(tmp_path, "invalid-content", "split_by=file", *files)
    (tmp_path / "test.txt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\n")
    assert "git lfs pull" in error_text(tmp_path, "placeholder-file", "split_by=file", *files)
    (tmp_path / "test.txt").unlink()
    assert "setting split.test_ids" in error_text(tmp_path, "no-split-file", "split_by=file", *files)


def test_a_person_of_two_corpora_in_two_splits_is_refused(tmp_path: Path) -> None:
    for survey, first in (("A", "train"), ("B", "test")):
        (tmp_path / f"{survey}_titles.csv").write_text("code,title\n1,Cooks\n")
        rows = [f"1,1984,1,{first}", "2,1984,1,train", "3,1984,1,validation", "4,1984,1,test"]
        (tmp_path / f"{survey}.csv").write_text("\n".join(["person,year,occupation,split", *rows]) + "\n")
    settings = dataclasses.replace(
        with_panel(tmp_path, "split_by=column"), data=panels(tmp_path, "A", "B", population="P")
    )
    with raises(
        "data-file/person-has-two-values", f"line 2 of {tmp_path}/A.csv", f"line 2 of {tmp_path}/B.csv", "split"
    ):
        prepare_store(settings)


def test_ids_with_blanks_of_another_kind_are_those_of_the_panel(tmp_path: Path) -> None:
    (tmp_path / "people.csv").write_text("person,split\nAnn\u00a0Lee,train\nBo\u2009Lee,test\n", encoding="utf-8")
    settings = with_panel(tmp_path, "split_by=column", f"split.table={tmp_path}/people.csv")
    splits = career_splits(settings.split, settings.data)
    for person, split in (("Ann Lee", "train"), ("Bo Lee", "test")):
        career = CareerHistory(person, "PANEL", None, None, None, None, (Job(1990, "1"),))
        assert [each.split for each in splits.segments("PANEL", career, None)] == [split]


INVALID = "settings/invalid"
REFUSED = {
    "split.by=age": (INVALID, "split.by:", "person, household, column, file, year", "'age'"),
    "split_by=household split.column=h": (INVALID, "split.table:", "wage_panel"),
    "split_by=household split.column=h split.table=x split.train=0.95": (INVALID, "split.train:", "validation"),
    "data=pooled split_by=column split.table=x": (INVALID, "split.population:", "PSID, NLSY79, NLSY97"),
    "data=pooled split_by=file split.train_ids=a split.validation_ids=b split.test_ids=c": (INVALID, "split.by:"),
    "split_by=column split.table=x split.test_values=[Train]": (INVALID, "split.train_values:"),
    "split_by=year split.last_training_year=1990 split.last_validation_year=1990": (
        INVALID, "split.last_validation_year:",
    ),
    "split_by=year split.last_training_year=1990 split.last_validation_year=1991 training.best_by=token": (
        INVALID, "training.best_by: expected title", "split_by=year",
    ),
    "split_by=year split.last_validation_year=1991": ("settings/missing-setting", "split.last_training_year"),
    f"split_by=year split.last_training_year=1 split.last_validation_year=1991 split.salt={65 * 'k'}": (
        INVALID, "split.last_training_year:", "1850", "2100", "got 1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("overrides", REFUSED)
def test_settings_that_are_wrong_are_refused(overrides: str) -> None:
    with raises(*REFUSED[overrides]):
        settings_of(overrides.split())


# By year: 40 people over 1990, 1991, 1992, 1993 and 1995.
BY_YEAR = ("split_by=year", "split.last_training_year=1991", "split.last_validation_year=1992")


def text_of(store: TokenStore, split: str, row: int) -> str:
    tokenizer = load_tokenizer(str(store.folder / "tokenizer"))
    ids = store.careers(split).token_ids(row)  # type: ignore[arg-type]
    return tokenizer.hugging_face.decode(ids[len(tokenizer.leading) :])


@pytest.fixture(scope="module")
def by_year(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunSettings, TokenStore]:
    settings = with_panel(tmp_path_factory.mktemp("by_year"), *BY_YEAR, "template.heading=['A {gender} worker:']")
    return settings, prepare_store(settings)


def test_a_text_holds_no_year_of_a_later_split_and_predicts_those_of_its_own(
    by_year: tuple[RunSettings, TokenStore],
) -> None:
    _, store = by_year
    person = 7
    codes = ["abc"[(person * (at + 1) + at * at) % 3] for at in range(5)]
    lines = [
        f"{year} ({'college' if at > 1 else 'high school'}): {TITLES[codes[at]]}\n"
        for at, year in enumerate((1990, 1991, 1992, 1993, 1995))
    ]
    heading = "A male worker:\n"
    assert text_of(store, "train", person) == heading + "".join(lines[:2])
    assert text_of(store, "validation", person) == heading + "".join(lines[:3])
    assert text_of(store, "test", person) == heading + "".join(lines) + "<END OF DATA>\n"
    facts = {split: observation_facts(store.careers(split)) for split in SPLITS}
    years = {split: set(facts[split]["year"].to_pylist()) for split in SPLITS}
    assert years == {"train": {1990, 1991}, "validation": {1992}, "test": {1993, 1995}}
    positions = {split: set(facts[split]["position"].to_pylist()) for split in SPLITS}
    assert positions == {"train": {0, 1}, "validation": {2}, "test": {3, 4}}
    rows = [row for split in SPLITS for row in facts[split].to_pylist() if row["person"] == str(person)]
    assert [row["occupation"] for row in rows] == codes
    assert [row["previous"] for row in rows] == [None, *codes[:-1]]
    spans = store.careers("test").title_spans(person)
    tokenizer = load_tokenizer(str(store.folder / "tokenizer"))
    ids = store.careers("test").token_ids(person)
    assert [tokenizer.hugging_face.decode(ids[a:b]) for a, b in spans] == [f" {TITLES[code]}" for code in codes[3:]]


def test_people_are_counted_once_and_in_every_split_that_has_years_of_theirs(
    by_year: tuple[RunSettings, TokenStore],
) -> None:
    _, store = by_year
    assert [store.num_people(split) for split in SPLITS] == [store.careers(split).num_people() for split in SPLITS]
    card = json.loads((store.folder / "data_card.json").read_text())["corpora"]["long_panel"]
    assert card["people"] == {"all": 40, "train": 40, "validation": 40, "test": 40}
    assert card["observations"] == 200


def test_limited_history_by_year_has_the_same_observations(by_year: tuple[RunSettings, TokenStore], tmp_path) -> None:
    _, store = by_year
    limited = prepare_store(with_panel(tmp_path, *BY_YEAR, "template.max_history=2"))
    cut = prepare_store(with_panel(tmp_path, *BY_YEAR, "+template.max_tokens=250", "tokenizer.vocabulary_size=270"))
    for split in SPLITS:
        expected = observation_facts(store.careers(split))
        for other in (limited, cut):
            actual = observation_facts(other.careers(split))
            for name in ("person", "position", "year", "occupation", "previous", "education"):
                assert actual[name].to_pylist() == expected[name].to_pylist()
    whole, is_own = whole_careers(limited.careers("test"), [limited.careers("train"), limited.careers("validation")])
    assert whole.num_observations().tolist() == [5] * 40
    assert is_own.reshape(40, 5).tolist() == [[False, False, False, True, True]] * 40


def test_baselines_know_the_years_before_those_that_they_are_scored_on(
    by_year: tuple[RunSettings, TokenStore], tmp_path: Path
) -> None:
    """Features of test observations equal those of whole careers of a split of people, in the same rows."""
    settings, store = by_year
    everybody = prepare_store(with_panel(tmp_path, "split.train=0.98", "split.validation=0.01"))
    train = everybody.careers("train")
    categories = categories_of(train)
    whole = career_features(train, categories)
    earlier = [store.careers("train"), store.careers("validation")]
    features = career_features(store.careers("test"), categories, earlier)
    people = train.table["person"].to_pylist()
    assert len(people) >= 35
    rows_of = defaultdict(list)
    for row, career in enumerate(features.career):
        rows_of[store.careers("test").table["person"][int(career)].as_py()].append(row)
    chosen = np.array([row for person in people for row in rows_of[person]])
    for field in dataclasses.fields(CareerFeatures):
        if field.name not in ("career", "covariates", "num_categories", "lengths", "num_occupations", "is_scored"):
            np.testing.assert_array_equal(getattr(features, field.name)[chosen], getattr(whole, field.name), field.name)
    assert features.is_scored[chosen].tolist() == [False, False, False, True, True] * len(people)
    assert len(features.scored()) == 80
    run = create_or_resume(settings, {"fingerprint": store.fingerprint, "folder": str(store.folder)}, None)
    small = ["career.num_layers=1", "career.width=8", "career.num_heads=2", "career.feed_forward=8"]
    names = "[marginal,first_order,second_order,logit,logit_two_stage,bag_of_jobs,career]"
    fits = [f"{name}.fit.max_updates=2" for name in ("logit_two_stage", "bag_of_jobs", "career")]
    baseline_settings = compose_settings(
        BaselineSettings, "baselines", [f"run={run.path}", f"baselines={names}", "titles=all", *small, *fits]
    )
    tables = score_baselines(baseline_settings)
    assert len(tables) == 7
    for path in tables:
        table, _ = read_score_table(path)
        assert set(table["year"].to_pylist()) == {1993, 1995} and table.num_rows == 80


def test_the_truth_is_known_of_years_after_a_cut(tmp_path: Path) -> None:
    scores = {}
    for name, rule in (("people", ()), ("years", BY_YEAR)):
        settings = settings_of([*small_run(tmp_path, *rule), f"name={name}"])
        store = prepare_store(settings)
        run = create_or_resume(settings, {"fingerprint": store.fingerprint, "folder": str(store.folder)}, None)
        overrides = [f"run={run.path}", "baselines=[truth]"]
        (path,) = score_baselines(compose_settings(BaselineSettings, "baselines", overrides))
        rows = read_score_table(path)[0].to_pylist()
        scores[name] = {(row["person"], row["position"]): row["title"] for row in rows}
        years = {(row["person"], row["position"]): row["year"] for row in rows}
    common = {key for key in scores["people"] if key in scores["years"]}
    assert len(common) > 20 and min(years.values()) > 1992
    assert all(scores["people"][key] == scores["years"][key] for key in common)


def test_examples_and_tokenizer_see_training_years_only(tmp_path: Path) -> None:
    settings = with_panel(tmp_path, *BY_YEAR, "template=examples_first", "template.num_fewshot=2")
    store = prepare_store(settings)
    text = json.loads((store.folder / "prefix.json").read_text())["text"]
    assert "1991 (high school)" in text
    assert not any(year in text for year in ("1992", "1993", "1995"))


def test_what_needs_whole_careers_is_refused_by_year(by_year: tuple[RunSettings, TokenStore], tmp_path: Path) -> None:
    settings, store = by_year
    text_settings = dataclasses.replace(
        settings, prepare=dataclasses.replace(settings.prepare, career_text=f"{tmp_path}/x")
    )
    with raises("store/truncated-careers"):
        prepare(text_settings)
    run = create_or_resume(settings, {"fingerprint": store.fingerprint, "folder": str(store.folder)}, None)
    forecast = compose_settings(ForecastSettings, "forecast", [f"run={run.path}", "horizon=2"])
    with raises("run/forecast-with-split-by-year", run.path):
        run_forecasts(forecast, forecast_run(forecast), ONE_RANK)
    with raises("data-file/unknown-corpus-size", "synthetic"):
        assumed_plan(settings_of(["data=synthetic", *BY_YEAR]))


def test_a_source_s_own_splits_give_way_to_another_rule(tmp_path: Path) -> None:
    careers = [("test", CAREER), ("train", CAREER), ("validation", CAREER)]
    write_career_text(careers, tmp_path / "files")  # type: ignore[arg-type]
    base = [*(override for override in small_run(tmp_path) if "synthetic" not in override), "data=career_text"]
    place = f"data.corpora.career_text.path={tmp_path}/files"
    own = prepare_store(settings_of([*base, place]))
    assert splits_of(own) == {"train-0000001": "train", "valid-0000001": "validation", "test-0000001": "test"}
    years = ["split_by=year", "split.last_training_year=1984", "split.last_validation_year=1985"]
    store = prepare_store(settings_of([*base, place, *years]))
    assert [store.num_people(split) for split in SPLITS] == [3, 3, 3]
