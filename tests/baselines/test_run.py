"""launch/baselines.py: every baseline ends in a score table, and in a table of titles that agrees with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import transformers
from helpers.errors import raises
from helpers.trained_runs import random_run, score_alone
from scipy import optimize
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from laborllm_dist.baselines.average import average_titles, averaged, mixture_weights, read_tables
from laborllm_dist.baselines.features import career_features, categories_of
from laborllm_dist.baselines.frequency import STRENGTHS, first_order_table, second_order_table
from laborllm_dist.baselines.run import NAMES, score_baselines
from laborllm_dist.cli import compose_settings
from laborllm_dist.config.baselines import BaselineSettings
from laborllm_dist.config.evaluation import EvaluateSettings
from laborllm_dist.evaluation.hidden_states import prompt_states
from laborllm_dist.io.run_directory import read_run
from laborllm_dist.report.load import compare_runs
from laborllm_dist.store.pooling import training_pool
from laborllm_dist.store.store import open_store
from laborllm_dist.tables.scores import read_score_table
from laborllm_dist.tables.title_distributions import read_title_table, write_title_table

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
    run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("laborllm_dist.baselines.run.STRENGTHS", (10.0,))
    monkeypatch.setattr("laborllm_dist.baselines.run.EMBEDDING_STRENGTHS", (30.0,))
    names = [name for name in NAMES if name not in ("average", "truth")]
    baseline_settings = settings(run, ",".join(names), "titles=all")
    tables = score_baselines(baseline_settings)
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
    caplog.clear()
    before = {path: path.read_bytes() for path in tables}
    assert score_baselines(baseline_settings) == []
    assert caplog.messages and all("is there" in line for line in caplog.messages)
    assert before == {path: path.read_bytes() for path in tables}


def test_a_logit_on_hidden_states_is_that_of_scikit_learn(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("laborllm_dist.baselines.run.EMBEDDING_STRENGTHS", (5.0,))
    for file in (run / "baselines").glob("embedding_logit.*.npy"):
        file.unlink()  # of other layers
    (path,) = score_baselines(settings(run, "embedding_logit", "split=train", "embedding_logit.layer=1"))
    states = {file.name.split(".")[1]: np.load(file) for file in (run / "baselines").glob("embedding_logit.*.npy")}
    np.testing.assert_array_equal(states["fitted"], states["train"])  # the run trains on all of them
    _, run_settings, folder = read_run(run)
    careers = open_store(folder).careers("train")
    settings_of_run = run_settings.evaluation
    model = transformers.AutoModelForCausalLM.from_pretrained(run / "export")
    for rows, part in prompt_states(model.eval(), careers, settings_of_run, run_settings.compute, 1):
        np.testing.assert_allclose(states["train"][rows], part, atol=1e-5)
    occupation = careers.transitions()[1]
    scaled = StandardScaler().fit_transform(states["train"].astype(np.float64))
    theirs = LogisticRegression(C=1 / 5.0, tol=1e-10, max_iter=5_000).fit(scaled, occupation)
    expected = theirs.predict_log_proba(scaled)[np.arange(len(occupation)), occupation]
    table, info = read_score_table(path)
    assert info.details["layer"] == "1"
    assert float(table["title"].to_numpy().sum()) == pytest.approx(float(expected.sum()), rel=1e-4)


def test_an_average_is_that_of_the_probabilities_with_the_best_weights_on_validation_people(run: Path) -> None:
    baseline_settings = settings(run, "average", "average.of=[language_model,first_order,career]", "titles=all")
    for split in ("test", "validation"):
        with raises("run/no-scores-to-average", "language_model", f"{split} people", f"split={split}"):
            score_baselines(baseline_settings)
        score_alone(compose_settings(EvaluateSettings, "evaluate", [f"run={run}", f"split={split}", "titles=all"]))
    path = score_baselines(baseline_settings)[-1]
    scores, info = read_score_table(path)
    parts = dict(part.split(" ") for part in info.details["weights"].split(", "))
    assert list(parts) == ["language_model", "first_order", "career"]
    weights = np.array([float(weight) for weight in parts.values()])
    names = ["{}", "{}.first_order", "{}.career"]

    def columns(split: str, column: str) -> np.ndarray:
        tables = [read_score_table(run / "scores" / f"{name.format(split)}.parquet")[0] for name in names]
        return np.stack([table[column].to_numpy() for table in tables], axis=1)

    def loss(free: np.ndarray) -> float:
        shares = np.exp(np.append(free, 0.0)) / np.exp(np.append(free, 0.0)).sum()
        return -float(np.log(np.exp(columns("validation", "terminated")) @ shares).mean())

    best = min(
        (optimize.minimize(loss, start, method="Nelder-Mead") for start in ([0, 0], [-9, 0])), key=lambda x: x.fun
    )
    assert -float(np.log(np.exp(columns("validation", "terminated")) @ weights).mean()) <= best.fun + 1e-4
    for column in ("title", "terminated"):
        expected = np.log(np.exp(columns("test", column)) @ weights)
        np.testing.assert_allclose(scores[column].to_numpy(), expected, atol=1e-3)
    titles = read_title_table(path.with_name("test_titles.average.parquet")).table
    logs = np.array(titles["terminated"].to_pylist())
    np.testing.assert_allclose(np.exp(logs).sum(axis=1), titles["mass"].to_numpy())
    np.testing.assert_allclose(
        titles["normalised"].to_numpy(), scores["terminated"].to_numpy() - np.log(titles["mass"].to_numpy()), atol=1e-9
    )
    assert score_baselines(baseline_settings) == []
    # Other scores of a model make the average anew.
    other = settings(run, "average", "average.of=[language_model,first_order,career]", "career.birth_year=false")
    assert score_baselines(other)[-1] == path


def test_an_average_by_hand() -> None:
    log_p = np.log(np.array([[0.5, 0.1], [0.2, 0.4], [0.5, 0.1], [0.5, 0.1]]))
    weights = mixture_weights(
        log_p
    )  # the derivative 3 x .4 / (.1 + .4 w) = .2 / (.4 - .2 w) is 0 at w = 1.375: above 1
    np.testing.assert_allclose(weights, [1.0, 0.0], atol=1e-4)
    log_p = np.log(np.array([[0.5, 0.1], [0.2, 0.4]]))
    weights = mixture_weights(log_p)  # .4 / (.1 + .4 w) = .2 / (.4 - .2 w) at w = .875
    np.testing.assert_allclose(weights, [0.875, 0.125], atol=1e-4)
    np.testing.assert_allclose(averaged(log_p, weights), np.log([0.45, 0.225]), atol=1e-4)
    assert averaged(np.array([[-1e4, -2e4]]), np.array([0.5, 0.5]))[0] == pytest.approx(-1e4 + np.log(0.5))


def test_normalised_scores_of_a_report_are_those_of_the_titles(run: Path) -> None:
    score_baselines(settings(run, "career,marginal", "split=train"))
    with raises("score-table/no-title-table", f"run={run} split=train baselines='[career]' titles=all"):
        compare_runs([str(run)], split="train", measure="normalised")
    score_baselines(settings(run, "career,marginal", "split=train", "titles=all"))
    for name in ("embedding_logit", "logit_two_stage"):
        (run / f"scores/train.{name}.parquet").unlink(missing_ok=True)
    models = {model.name: model for model in compare_runs([str(run)], split="train", measure="normalised").models}
    titles = read_title_table(run / "scores/train_titles.career.parquet").table
    np.testing.assert_array_equal(models["CAREER"].log_likelihood, titles["normalised"].to_numpy())
    scores = read_score_table(run / "scores/train.career.parquet")[0]["title"].to_numpy()
    assert (models["CAREER"].log_likelihood > scores).all()


def test_a_table_that_leaves_titles_out_has_no_average(run: Path, tmp_path: Path) -> None:
    score_baselines(settings(run, "marginal", "titles=all"))
    path = run / "scores/test_titles.marginal.parquet"
    titles = read_title_table(path)
    place, bound = titles.table.schema.get_field_index("bound"), pa.array(np.full(len(titles.table), 0.1))
    other = titles.table.set_column(place, "bound", bound)
    write_title_table(other, titles.info, titles.occupations, tmp_path / "bounded.parquet")
    with raises("score-table/average-of-different-titles", "bounded.parquet leaves titles out"):
        average_titles([path, tmp_path / "bounded.parquet"], np.array([0.5, 0.5]))


def test_tables_of_other_observations_have_no_average(run: Path) -> None:
    score_baselines(settings(run, "marginal", "split=validation"))
    (test,) = score_baselines(settings(run, "marginal", "split=test")) or [run / "scores/test.marginal.parquet"]
    with raises("score-table/average-of-different-observations", "validation.marginal.parquet", test):
        read_tables([test, run / "scores/validation.marginal.parquet"])


def test_other_settings_of_a_baseline_make_its_table_anew(run: Path) -> None:
    (path,) = score_baselines(settings(run, "logit_two_stage", "split=validation"))
    before = path.read_bytes()
    assert score_baselines(settings(run, "logit_two_stage", "split=validation")) == []
    assert score_baselines(
        settings(run, "logit_two_stage", "split=validation", "logit_two_stage.birth_year=false")
    ) == [path]
    assert path.read_bytes() != before


def test_pretraining_takes_surveys_of_the_run(run: Path) -> None:
    (survey,) = [corpus.survey for corpus in read_run(run)[1].data.corpora.values()]
    for tags in ("[RESUMES]", f"[{survey}]"):
        with raises("run/no-survey-to-pretrain-on", survey):
            score_baselines(settings(run, "career", f"career.pretrain_on={tags}"))


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
