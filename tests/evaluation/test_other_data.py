"""A run's model on all careers of other data: occupations by title or code, what has no match counted, scores by hand."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.errors import raises
from helpers.reference.slow_scorer import slow_score
from helpers.runs import settings_of
from helpers.trained_runs import panel, random_run, score_alone
from rich.console import Console
from transformers import AutoModelForCausalLM

from laborllm_dist.cli import compose_settings, compose_values
from laborllm_dist.config.evaluation import EvaluateSettings, ReportSettings
from laborllm_dist.io.run_directory import read_run
from laborllm_dist.report.write import terminal_tables, write_report
from laborllm_dist.store.build import prepare_store
from laborllm_dist.store.store import open_store
from laborllm_dist.store.tokenizer import load_tokenizer
from laborllm_dist.tables.generations import read_generated_table
from laborllm_dist.tables.parquet import ScoreTableInfo
from laborllm_dist.tables.scores import read_score_table
from laborllm_dist.tables.title_distributions import read_title_table

PLACE = "data.corpora.long_panel"
# Person, year, code of the other list. "x" is a Cook, "y" an Aide in other capitals, "b" a Pilot.
ROWS = [
    ("p", 2001, "x"), ("p", 2002, "b"), ("p", 2004, "y"), ("q", 2001, "b"), ("r", 2003, "y"), ("r", 2004, "y"),
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_run(tmp_path_factory.mktemp("other"), "template.heading=['A {survey} worker:']")


def other(folder: Path, titles: str = "code,title\nx,Cook\ny,AIDE\nb,Pilot\n") -> list[str]:
    """Write a panel with another list of occupations; return the settings that name it."""
    folder.mkdir(exist_ok=True)
    (folder / "other.csv").write_text(
        "\n".join(["person,year,occupation", *(f"{p},{y},{o}" for p, y, o in ROWS)]) + "\n"
    )
    (folder / "other_titles.csv").write_text(titles)
    absent = [f"{PLACE}.columns.{name}=null" for name in ("birth_year", "gender", "ethnicity", "region", "education")]
    return [
        "data=long_panel", "data.name=elsewhere", f"{PLACE}.survey=ELSE", f"{PLACE}.path={folder}/other.csv",
        f"{PLACE}.vocabulary.path={folder}/other_titles.csv", *absent,
    ]  # fmt: skip


def evaluate(run: Path, *overrides: str) -> tuple[Path, list[dict], ScoreTableInfo]:
    settings = compose_settings(EvaluateSettings, "evaluate", [f"run={run}", "precision=fp64", *overrides])
    path = score_alone(settings)
    table, info = read_score_table(path)
    return path, table.to_pylist(), info


def slow_scores(run: Path, lines: list[str], heading: str) -> list[float]:
    """Return log P of the title of every line after the text before it."""
    model = AutoModelForCausalLM.from_pretrained(run / "export").double()
    tokenizer = load_tokenizer(str(run / "export"))

    def encode(text: str) -> list[int]:
        return tokenizer.backend.encode(text, add_special_tokens=False).ids

    scores, text = [], heading
    for line in lines:
        prompt, title = line.split(": ")
        scores.append(slow_score(model, encode, list(tokenizer.leading), f"{text}{prompt}:", title)[0])
        text += f"{line}\n"
    return scores


def test_scores_are_those_of_the_texts_without_the_years_that_have_no_match(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, rows, info = evaluate(run, *other(tmp_path))
    assert path == run / "scores/data_elsewhere.parquet"
    assert (info.split, info.details["observations_without_match"], info.details["people_without_match"]) == (
        "data_elsewhere", "2", "1",
    )  # fmt: skip
    assert any("4 of 6 person-years have an occupation of the model's, by title; 1 of 3 people have none" in line
               and "left out: b Pilot (2)" in line for line in caplog.messages)  # fmt: skip
    keys = [(row["survey"], row["person"], row["position"], row["year"], row["occupation"]) for row in rows]
    assert keys == [
        ("ELSE", "p", 0, 2001, "a"), ("ELSE", "p", 1, 2004, "c"), ("ELSE", "r", 0, 2003, "c"), ("ELSE", "r", 1, 2004, "c"),
    ]  # fmt: skip
    texts = [["2001: Cook", "2004: Aide"], ["2003: Aide", "2004: Aide"]]
    expected = [score for lines in texts for score in slow_scores(run, lines, "A ELSE worker:\n")]
    np.testing.assert_allclose([row["title"] for row in rows], expected, rtol=1e-10)
    again = path.read_bytes()
    assert evaluate(run, *other(tmp_path))[0].read_bytes() == again


def test_all_titles_and_generations_have_files_named_after_the_data(run: Path, tmp_path: Path) -> None:
    more = ["titles=all", "check_generations=true", "model.name=second"]
    path, rows, _ = evaluate(run, *other(tmp_path), *more)
    assert path == run / "scores/data_elsewhere.second.parquet"
    titles = read_title_table(run / "scores/data_elsewhere_titles.second.parquet")
    assert titles.table.num_rows == len(rows) == 4
    observed = [row["title"][titles.occupations.index(row["occupation"])] for row in titles.table.to_pylist()]
    np.testing.assert_allclose(observed, [row["title"] for row in rows], rtol=1e-10)
    assert read_generated_table(run / "scores/data_elsewhere_generated.second.parquet")[0].num_rows == 8


def test_by_code_a_code_is_what_it_is_in_the_run(run: Path, tmp_path: Path) -> None:
    _, rows, info = evaluate(run, *other(tmp_path), "match_by=code", "model.name=by_code")
    assert [(row["person"], row["year"], row["occupation"]) for row in rows] == [("p", 2002, "b"), ("q", 2001, "b")]
    assert info.details["matched_by"] == "code"


def test_a_prepared_store_is_scored_whole_and_as_its_data(run: Path, tmp_path: Path) -> None:
    base = [override for override in panel(tmp_path) if not override.startswith(("data", "split"))]
    half = ["split.train=0.5", "split.validation=0.2"]
    rows = [f"{person},{year},{'xyb'[(person + year) % 3]}" for person in range(12) for year in (2001, 2003)]
    other_data = other(tmp_path)
    (tmp_path / "other.csv").write_text("\n".join(["person,year,occupation", *rows]) + "\n")
    store = prepare_store(settings_of([*base, *other_data, *half]))
    by_store = evaluate(run, f"data={store.folder}", "model.name=by_store")
    by_data = evaluate(run, *other_data, "model.name=by_data")
    assert by_store[0].name == "data_elsewhere.by_store.parquet"
    key = ("person", "position", "occupation", "title")
    assert sorted(tuple(row[name] for name in key) for row in by_store[1]) == sorted(
        tuple(row[name] for name in key) for row in by_data[1]
    )
    assert len(by_data[1]) == sum("b" not in row for row in rows) == 16
    path, of_split, _ = evaluate(run, f"data={store.folder}", "split=train", "model.name=by_store")
    assert path.name == "data_elsewhere_train.by_store.parquet"
    assert {row["person"] for row in of_split} <= set(store.careers("train").table["person"].to_pylist())
    scores = {tuple(row[name] for name in key) for row in by_store[1]}
    assert 0 < len(of_split) < 16 and {tuple(row[name] for name in key) for row in of_split} <= scores


def test_a_report_sets_models_and_data_side_by_side(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run.parent.parent, tmp_path / "copied")
    first, second = (tmp_path / "copied/runs" / name for name in ("small", "second"))
    shutil.rmtree(first / "scores", ignore_errors=True)
    shutil.copytree(first, second)
    other_data = other(tmp_path)
    rows = [f"{person},{year},{'xy'[(person + year) % 2]}" for person in range(12) for year in (2001, 2003)]
    (tmp_path / "other.csv").write_text("\n".join(["person,year,occupation", *rows]) + "\n")
    perplexity = {}
    for folder, name in ((first, "A"), (second, "B")):
        model = AutoModelForCausalLM.from_pretrained(folder / "export")
        with torch.no_grad():
            model.lm_head.weight.mul_(1 if name == "A" else 2)
        model.save_pretrained(tmp_path / name)
        load_tokenizer(str(folder / "export")).save(tmp_path / name)
        for more in ([], other_data):
            of_model = [f"model.path={tmp_path / name}", f"model.name={name}", *more]
            path, scored, _ = evaluate(folder, *of_model)
            nats = [row["title"] for row in scored]
            perplexity[path.name.split(".")[0], name] = math.exp(-math.fsum(nats) / len(nats))
    runs = f"runs=['{first}','{second}']"
    result = write_report(compose_settings(ReportSettings, "report", [runs, "bootstrap_draws=20"]))
    summary = json.loads(result.summary.read_text())
    (elsewhere,) = summary["other_data"]
    assert (elsewhere["data"], elsewhere["num_people"], elsewhere["num_observations"]) == ("elsewhere", 12, 24)
    for models, place in ((summary["models"], "test"), (elsewhere["models"], "data_elsewhere")):
        perplexities = {model["model"]: model["perplexity"]["value"] for model in models}
        assert perplexities == pytest.approx({name: perplexity[place, name] for name in "AB"})
    page = result.page.read_text()
    assert '<section id="other-data">' in page and "12 people, 24 observations" in page
    console = Console(width=100, file=io.StringIO())
    console.print(terminal_tables(result)[-1])
    assert "elsewhere" in console.file.getvalue()  # type: ignore[attr-defined]
    (table,) = [path for path in result.tables if path.name == "other_data.csv"]
    tidy = {row["model"]: row for row in csv.DictReader(table.read_text().splitlines()) if row["term"] == "perplexity"}
    assert {name: float(row["estimate"]) for name, row in tidy.items()} == pytest.approx(perplexities)
    assert {(row["grouping"], row["group"]) for row in tidy.values()} == {("data", "elsewhere")}
    more = [runs, "split=data_elsewhere", f"output={tmp_path}/r", "bootstrap_draws=20"]
    alone = write_report(compose_settings(ReportSettings, "report", more))
    assert [model.model for model in alone.models] == [model["model"] for model in elsewhere["models"]]
    with raises("settings/invalid", "setting split:", "train, validation, test, or data_NAME"):
        compose_settings(ReportSettings, "report", [runs, "split=tests"])
    damaged = first / "scores/data_elsewhere.A.parquet"
    damaged.write_bytes(damaged.read_bytes()[:100])
    with raises("score-table/unreadable-table", damaged):
        write_report(compose_settings(ReportSettings, "report", [runs, "bootstrap_draws=20"]))


def test_what_cannot_be_scored_is_refused(run: Path, tmp_path: Path) -> None:
    strange = other(tmp_path, "code,title\nx,Pilot\ny,Smith\nb,Tailor\n")
    with raises("data-file/no-occupation-matches", "x 'Pilot'"):
        evaluate(run, *strange)
    unheld = other(tmp_path, "code,title\nx,Pilot\ny,Smith\nb,Tailor\nz,Cook\n")
    with raises("data-file/nobody-has-matched-occupation", "elsewhere"):
        evaluate(run, *unheld)
    with raises("store/no-store", tmp_path):
        evaluate(run, f"store={tmp_path}")
    base = [override for override in panel(tmp_path) if not override.startswith("split")]
    parts = prepare_store(settings_of([*base, "template.max_history=1"]))
    with raises("store/other-data-in-parts", parts.folder):
        evaluate(run, f"data={parts.folder}")
    for overrides, label, value in (
        ([*other(tmp_path), "split=test"], "settings/invalid", "setting split: expected null"),
        ([*other(tmp_path), f"store={tmp_path}"], "settings/invalid", "setting store: expected null"),
        (["data=psid82"], "settings/settings-not-composed", "psid82"),
    ):
        with raises(label, value):
            evaluate(run, *overrides)


def test_data_are_composed_as_those_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = compose_values("evaluate", ["run=x", "data=psid81", "data.corpora.psid81.path=here.zip"])
    assert values["data"]["corpora"]["psid81"]["path"] == "here.zip"  # type: ignore[index]
    with raises("settings/unknown-setting", "data.corpora.psid81.paths; did you mean data.corpora"):
        compose_values("evaluate", ["run=x", "data=psid81", "data.corpora.psid81.paths=here.zip"])


def test_people_that_the_model_was_trained_on_or_chosen_by_are_counted_and_said(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(read_run(run)[2])
    evaluate(run, f"store={store.folder}", "model.name=again")
    number = store.num_people("train") + store.num_people("validation")
    assert number and any(f"; {number} of these people are among those that the model was trained on" in line
                          for line in caplog.messages)  # fmt: skip
    caplog.clear()
    evaluate(run, f"store={store.folder}", "split=test", "model.name=again")
    assert caplog.messages and not any("trained on" in line for line in caplog.messages)
