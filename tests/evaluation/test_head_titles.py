"""Scores of an output layer over titles: transformers' states of one prompt at a time, both tables, report and average."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.errors import raises
from helpers.processes import run_well
from helpers.title_heads import CODES, NAMES, give_head, titles_by_hand
from helpers.trained_runs import random_run, score_alone

from laborllm_dist.baselines.run import score_baselines
from laborllm_dist.cli import compose_settings
from laborllm_dist.config.baselines import BaselineSettings
from laborllm_dist.config.evaluation import EvaluateSettings
from laborllm_dist.config.model import HeadKind
from laborllm_dist.io.run_directory import read_run
from laborllm_dist.models.title_head import TITLE_HEAD_FILE, write_title_head
from laborllm_dist.report.load import compare_runs
from laborllm_dist.store.store import open_store
from laborllm_dist.tables.scores import read_score_table
from laborllm_dist.tables.title_distributions import read_title_table, title_table_path
from laborllm_dist.text.template import compile_template, render_career


@pytest.fixture(scope="module", params=list(NAMES))
def headed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, HeadKind, Any]:
    folder = tmp_path_factory.mktemp(request.param)
    run = random_run(folder, "evaluation.max_seq_length=640", "evaluation.batch_size=2")
    return run, request.param, give_head(run, request.param)


def scored(run: Path, *overrides: str) -> Path:
    torch.set_num_threads(1)
    return score_alone(compose_settings(EvaluateSettings, "evaluate", [f"run={run}", "title_head=true", *overrides]))


def log_p_by_hand(run: Path, kind: HeadKind, weight: torch.Tensor) -> dict[tuple[str, int], tuple[str, list[float]]]:
    """Return code and log P of all titles of every test observation, each prompt forwarded alone by transformers."""
    _, settings, folder = read_run(run)
    store = open_store(folder)
    careers, template, actual = store.careers("test"), compile_template(settings.template), {}
    for row in range(len(careers)):
        career, previous = careers.history(row), None
        (text,) = render_career(career, template, store.vocabulary.title_of())
        for position, ((start, _), job) in enumerate(zip(text.title_spans, career.jobs, strict=True)):
            log_p = titles_by_hand(run, text.text[:start], previous, kind, weight)
            actual[career.person, position] = job.occupation, log_p
            previous = job.occupation
    return actual


def test_tables_are_the_layer_s_distribution_after_each_prompt_alone(headed: tuple[Path, HeadKind, Any]) -> None:
    run, kind, weight = headed
    path = scored(run, "precision=fp64", "model.name=exact", "titles=all")
    expected = log_p_by_hand(run, kind, weight)
    table, info = read_score_table(path)
    titles = read_title_table(title_table_path(path, "test"))
    assert info == titles.info and titles.occupations == CODES and info.details["num_titles"] == "3"
    assert table.num_rows == len(expected) == titles.table.num_rows
    for row, of_titles in zip(table.to_pylist(), titles.table.to_pylist(), strict=True):
        occupation, log_p = expected[row["person"], row["position"]]
        assert (row["occupation"], row["num_tokens"]) == (occupation, 0)
        np.testing.assert_allclose(of_titles["terminated"], log_p, rtol=1e-9)
        assert of_titles["title"] == of_titles["terminated"] and of_titles["bound"] == 0
        assert of_titles["mass"] == pytest.approx(1, rel=1e-12)
        observed = of_titles["title"][CODES.index(occupation)]
        assert row["title"] == row["terminated"] == of_titles["normalised"] == observed


def test_either_table_is_made_where_it_is_missing(
    headed: tuple[Path, HeadKind, Any],
) -> None:
    run, kind, _ = headed
    path = scored(run)
    assert path == run / f"scores/test.{NAMES[kind]}.parquet"
    titles, before = title_table_path(path, "test"), path.read_bytes()
    assert not titles.exists()
    assert scored(run, "titles=all") == path
    of_titles = titles.read_bytes()
    assert path.read_bytes() == before
    path.unlink()
    scored(run, "titles=all")
    assert (path.read_bytes(), titles.read_bytes()) == (before, of_titles)


@pytest.mark.ranks
@pytest.mark.parametrize("headed", ["softmax"], indirect=True)
def test_two_ranks_write_the_same_bytes(headed: tuple[Path, HeadKind, Any]) -> None:
    run, _, _ = headed
    path = scored(run, "titles=all")
    tables = [path, title_table_path(path, "test")]
    alone = [table.read_bytes() for table in tables]
    for table in tables:
        table.unlink()
    run_well("evaluate.py", [f"run={run}", "title_head=true", "titles=all"], world_size=2, log=run / "log")
    assert [table.read_bytes() for table in tables] == alone


def test_a_report_compares_the_layer_with_the_model_and_an_average_takes_both(
    headed: tuple[Path, HeadKind, Any],
) -> None:
    run, kind, _ = headed
    name = NAMES[kind]
    settings = compose_settings(
        BaselineSettings, "baselines",
        [f"run={run}", "baselines=[average]", f"average.of=[{name},marginal]", "split=validation"],
    )  # fmt: skip
    for table in (run / "scores").glob(f"validation.{name}.parquet"):
        table.unlink()
    with raises("run/no-scores-to-average", f"run={run} split=validation title_head=true"):
        score_baselines(settings)
    for split in ("validation", "test"):
        scored(run, f"split={split}", "titles=all")
        score_alone(compose_settings(EvaluateSettings, "evaluate", [f"run={run}", f"split={split}", "titles=all"]))
    settings = compose_settings(
        BaselineSettings, "baselines",
        [f"run={run}", "baselines=[average]", f"average.of=[language_model,{name}]", "titles=all"],
    )  # fmt: skip
    score_baselines(settings)
    for measure in ("title", "normalised"):
        compared = compare_runs([str(run)], split="test", measure=measure)
        of_model = {model.name: float(np.mean(model.log_likelihood)) for model in compared.models}
        assert {name, "small", "average"} <= of_model.keys() and compared.num_titles == 3
    _, table = (read_score_table(run / f"scores/test.{each}.parquet") for each in (name, "average"))
    weights = dict(part.split() for part in table[1].details["weights"].split(", "))
    assert sum(map(float, weights.values())) == pytest.approx(1, abs=1e-3) and name in weights


def test_what_has_no_such_layer_or_one_of_other_titles_is_refused(tmp_path: Path) -> None:
    run = random_run(tmp_path)
    with raises("model/no-title-head", run / "export", "title_head.kind"):
        scored(run)
    write_title_head(run / "export", torch.zeros(2, 32), ("a", "b"))
    with raises("model/title-head-of-other-titles", TITLE_HEAD_FILE, "2 there, 3 here"):
        scored(run)
    write_title_head(run / "export", torch.full((3, 32), torch.nan), CODES)
    with raises("model/non-finite-log-likelihoods"):
        scored(run)


@pytest.mark.parametrize("setting", ["placement=partitioned", "check_generations=true", "max_unscored_mass=0.1"])
def test_what_the_layer_cannot_do_is_refused(setting: str) -> None:
    with raises("settings/invalid", f"setting {setting.split('=')[0]}:", "title_head=true"):
        compose_settings(EvaluateSettings, "evaluate", ["run=x", "title_head=true", setting])


@pytest.mark.parametrize("name", NAMES.values())
def test_no_language_model_takes_the_name_of_the_layer_s_table(name: str) -> None:
    with raises("settings/invalid", "model.name:", "title_head, two_stage_head"):
        compose_settings(EvaluateSettings, "evaluate", ["run=x", f"model.name={name}"])
