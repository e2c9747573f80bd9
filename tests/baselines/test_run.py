"""launch/baselines.py: every baseline ends in a score table, and in a table of titles that agrees with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.errors import raises
from helpers.runs import quiet
from helpers.trained_runs import random_run

from laborllm_dist.baselines.features import career_features, categories_of
from laborllm_dist.baselines.frequency import STRENGTHS, first_order_table, second_order_table
from laborllm_dist.baselines.run import NAMES, score_baselines
from laborllm_dist.cli import compose_settings
from laborllm_dist.config.baselines import BaselineSettings
from laborllm_dist.io.run_directory import read_run
from laborllm_dist.store.pooling import training_pool
from laborllm_dist.store.store import open_store
from laborllm_dist.tables.scores import read_score_table
from laborllm_dist.tables.title_distributions import read_title_table

FIT = "fit.max_updates=12", "fit.tokens_per_batch=600", "fit.validate_every_epochs=1", "fit.warmup_updates=4"
SMALL = [
    *(f"{name}.{each}" for name in ("logit_two_stage", "bag_of_jobs", "career") for each in FIT),
    "bag_of_jobs.width=8", "career.num_layers=1", "career.width=12", "career.num_heads=2", "career.feed_forward=16",
    "career.fit.learning_rate=0.01", "threads=1",
]  # fmt: skip
TWO_STAGE = {"two-stage logit", "bag of jobs", "CAREER"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_run(tmp_path_factory.mktemp("baselines"))


def settings(run: Path, baselines: str, *more: str) -> BaselineSettings:
    return compose_settings(BaselineSettings, "baselines", [f"run={run}", f"baselines=[{baselines}]", *SMALL, *more])


def test_every_baseline_has_a_score_table_and_a_distribution_over_titles(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("laborllm_dist.baselines.logit.STRENGTHS", (10.0,))
    names = [name for name in NAMES if name != "truth"]
    asked = settings(run, ",".join(names), "titles=all")
    tables = score_baselines(asked, quiet)
    assert [table.name for table in tables] == [f"test.{name}.parquet" for name in names]
    for path, name in zip(tables, names, strict=True):
        scores, info = read_score_table(path)
        titles = read_title_table(path.with_name(path.name.replace("test", "test_titles", 1)))
        assert info.model == titles.info.model == NAMES[name]
        logs = np.array(titles.table["title"].to_pylist())
        mass = titles.table["mass"].to_numpy()
        np.testing.assert_allclose(np.exp(logs).sum(axis=1), mass)
        observed = [titles.occupations.index(code) for code in titles.table["occupation"].to_pylist()]
        title = logs[np.arange(len(logs)), observed]
        np.testing.assert_allclose(title, scores["title"].to_numpy())
        np.testing.assert_allclose(titles.table["normalised"].to_numpy(), title - np.log(mass), atol=1e-12)
        if info.model in TWO_STAGE:  # marks of the dictionary, and staying at a first observation, are no titles
            assert (mass < 1).all()
            assert 1 < float(info.details["validation_perplexity"]) < 20
            first = titles.table["position"].to_numpy() == 0
            assert mass[first].max() < mass[~first].min()
        else:
            np.testing.assert_allclose(mass, 1)
    lines: list[str] = []
    before = {path: path.read_bytes() for path in tables}
    assert score_baselines(asked, lines.append) == []
    assert all("is there" in line for line in lines) and before == {path: path.read_bytes() for path in tables}


def test_other_settings_of_a_baseline_make_its_table_anew(run: Path) -> None:
    (path,) = score_baselines(settings(run, "logit_two_stage", "split=validation"), quiet)
    before = path.read_bytes()
    assert score_baselines(settings(run, "logit_two_stage", "split=validation"), quiet) == []
    assert score_baselines(
        settings(run, "logit_two_stage", "split=validation", "logit_two_stage.birth_year=false"), quiet
    ) == [path]
    assert path.read_bytes() != before


def test_pretraining_takes_surveys_of_the_run(run: Path) -> None:
    (survey,) = [corpus.survey for corpus in read_run(run)[1].data.corpora.values()]
    for tags in ("[RESUMES]", f"[{survey}]"):
        with raises("run/no-survey-to-pretrain-on", survey):
            score_baselines(settings(run, "career", f"career.pretrain_on={tags}"), quiet)


def test_second_order_frequencies_are_those_of_a_loop(run: Path) -> None:
    _, run_settings, folder = read_run(run)
    store = open_store(folder)
    careers = {split: store.careers(split) for split in ("train", "validation", "test")}  # type: ignore[arg-type]
    categories = categories_of(careers["train"])
    train, validation, test = (career_features(careers[split], categories) for split in careers)
    first = first_order_table(careers["train"], training_pool(store, run_settings), careers["validation"])
    weights = 1.0 + np.arange(len(train)) % 2
    table = second_order_table(train, weights, validation, first)
    assert table.strength in STRENGTHS
    counts: dict[tuple[int, int], np.ndarray] = {}
    for row in range(len(train)):
        pair = (int(train.second_previous[row]), int(train.previous[row]))
        counts.setdefault(pair, np.zeros(train.num_occupations))[train.occupation[row]] += weights[row]
    (rows, log_p), *others = table.distributions(test)
    assert not others and rows.tolist() == list(range(len(test)))
    for row in range(len(test)):
        previous = int(test.previous[row])
        seen = counts.get((int(test.second_previous[row]), previous), np.zeros(train.num_occupations))
        smoothed = seen + table.strength * np.exp(first.log_probabilities[previous])
        np.testing.assert_allclose(np.exp(log_p[row]), smoothed / (seen.sum() + table.strength))
