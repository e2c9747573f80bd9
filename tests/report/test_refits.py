"""Refits on resampled training people: every number by repeating rows in numpy; what is no refit is refused."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.errors import raises
from helpers.runs import write_run
from helpers.scores import KEYS, report_on, write_scores
from rich.console import Console

from laborllm_dist.cli import compose_settings
from laborllm_dist.config.evaluation import ReportSettings, WeightSettings
from laborllm_dist.report.bootstrap import Estimate, draw_weights
from laborllm_dist.report.load import compare_runs
from laborllm_dist.report.numbers import ReportNumbers, analyze
from laborllm_dist.report.refits import Refit, RefitNumbers
from laborllm_dist.report.write import terminal_tables

RUNS = {
    "A": {"own": [1, 2, 2, 3, 2], "marginal": [3, 3, 3, 3, 3]},
    "refit_1": {"own": [1, 2.5, 2, 3, 2], "marginal": [3, 3.5, 3, 3, 3]},
    "refit_2": {"own": [1.5, 2, 2, 4, 2], "marginal": [3, 3, 3, 2.5, 3.5]},
    "refit_3": {"own": [1, 2, 4, 3, 2.5], "marginal": [4, 3, 3, 3, 3]},
}
PERSON_OF_ROW = [0, 0, 1, 2, 2]  # of KEYS


def write_tables(run: Path, tables: Mapping[str, Sequence[float]]) -> None:
    """Write the scores of a run's own model, which is called after the run, and of baselines."""
    for name, halvings in tables.items():
        file = "test.parquet" if name == "own" else f"test.{name}.parquet"
        write_scores(run / "scores" / file, run.name if name == "own" else name, halvings)


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Give a run and three refits, each with a language model and a baseline."""
    paths = [write_run(tmp_path / name, place or None) for place, name in enumerate(RUNS)]
    for path, tables in zip(paths, RUNS.values(), strict=True):
        write_tables(path, tables)
    return paths


def numbers_with(runs: Sequence[Path], first: int = 1, **settings: Any) -> ReportNumbers:
    """Analyze the first runs, with the others as their refits."""
    folders = tuple(map(str, runs))
    chosen = ReportSettings(folders[:first], "test", None, "title", 50, 1, refits=folders[first:], **settings)
    return analyze(compare_runs(chosen.runs, split="test", measure="title", weights=chosen.weights), chosen)


def refits_with(runs: Sequence[Path], first: int = 1, **settings: Any) -> RefitNumbers:
    refits = numbers_with(runs, first, **settings).refits
    assert refits is not None
    return refits


def means_by_hand(halvings: Sequence[float], weight_of_person: Sequence[float]) -> np.ndarray:
    """Return the mean log-likelihood in the sample, then in each of the report's 50 resamples of people."""
    draws = [np.ones(3), *np.concatenate(list(draw_weights(3, num_draws=50, seed=1)))]
    means = []
    for times in draws:
        rows = [row for row in range(5) for _ in range(int(times[PERSON_OF_ROW[row]]))]
        weights = [weight_of_person[PERSON_OF_ROW[row]] for row in rows]
        means.append(-sum(w * halvings[row] for w, row in zip(weights, rows, strict=True)) * np.log(2) / sum(weights))
    return np.array(means)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (1.0, 3.0, 0.5)], ids=["unweighted", "survey_weights"])
def test_numbers_are_those_of_all_refits_and_resamples_by_hand(
    runs: list[Path], tmp_path: Path, weights: tuple[float, ...]
) -> None:
    settings: dict[str, Any] = {}
    if weights != (1.0, 1.0, 1.0):
        lines = ["person,weight", *(f"{person},{weight}" for person, weight in zip("abc", weights, strict=True))]
        (tmp_path / "weights.csv").write_text("\n".join(lines))
        settings["weights"] = WeightSettings(str(tmp_path / "weights.csv"))
    refits = refits_with(runs, **settings)
    # [refits, sample and resamples]
    own, marginal = (
        np.array([means_by_hand(RUNS[f"refit_{number}"][name], weights) for number in (1, 2, 3)])
        for name in ("own", "marginal")
    )
    assert [model.model for model in refits.models] == ["A", "marginal"]
    for numbers, means in zip(refits.models, (own, marginal), strict=True):
        perplexities = np.exp(-means)
        assert numbers.perplexity_of_refit == pytest.approx(perplexities[:, 0])
        assert numbers.std_error_training == pytest.approx(np.std(perplexities[:, 0], ddof=1))
        check_estimate(numbers.perplexity, perplexities)
    (pair,) = refits.pairs
    assert (pair.first, pair.second) == ("A", "marginal")
    check_estimate(pair.difference_nats, own - marginal)
    assert pair.std_error_training == pytest.approx(np.std((own - marginal)[:, 0], ddof=1))
    assert (refits.run, refits.num_refits, refits.left_out) == (str(runs[0]), 3, ())
    assert refits.refits == tuple(Refit(str(runs[number]), number) for number in (1, 2, 3))


def check_estimate(estimate: Estimate, values: np.ndarray) -> None:
    """Compare with values of [refits, sample and resamples]."""
    assert estimate.value == pytest.approx(values[:, 0].mean())
    assert (estimate.low, estimate.high) == pytest.approx(tuple(np.percentile(values[:, 1:], [2.5, 97.5])))
    assert estimate.std_error == pytest.approx(values[:, 1:].std(ddof=1))


def test_refits_leave_all_other_numbers_as_they_are(runs: list[Path]) -> None:
    without = numbers_with(runs[:1])
    assert without.refits is None
    assert dataclasses.replace(numbers_with(runs), refits=None) == without


def test_tables_page_and_terminal_show_the_numbers_of_the_summary(runs: list[Path]) -> None:
    for run in runs[:3]:
        write_tables(run, {"logit": [2, 2, 2, 2, 1]})
    result = report_on(runs[0], refits=tuple(map(str, runs[1:])), figure_formats=())
    refits = json.loads(result.summary.read_text())["refits"]
    assert [model["model"] for model in refits["models"]] == ["A", "marginal"]
    assert refits["left_out"] == ["logit"]  # the third refit has no scores of it
    assert "logit" in next(note for note in result.notes if "refits" in note)
    with (result.page.parent / "tables/refits.csv").open(newline="") as file:
        rows = {(row["term"], row["model"], row["compared_with"]): row for row in csv.DictReader(file)}
    assert len(rows) == 6
    own, pair = refits["models"][0], refits["pairs"][0]
    for key, estimate in {
        ("perplexity", "A", ""): own["perplexity"],
        ("difference_nats", "A", "marginal"): pair["difference_nats"],
        ("perplexity_std_error_training", "A", ""): {"value": own["std_error_training"]},
        ("difference_nats_std_error_training", "A", "marginal"): {"value": pair["std_error_training"]},
    }.items():
        for column, part in {
            "estimate": "value",
            "conf.low": "low",
            "conf.high": "high",
            "std.error": "std_error",
        }.items():
            assert rows[key][column] == (repr(estimate[part]) if part in estimate else "")
        assert (rows[key]["n"], rows[key]["people"]) == ("5", "3")
    shown = {name: f"{own['perplexity'][name]:.3f}" for name in ("value", "low", "high")}
    std_error, difference = f"{own['std_error_training']:.3f}", f"+{pair['difference_nats']['value']:.4f}"
    latex = (result.page.parent / "tables/refits.tex").read_text()
    assert f"A & {shown['value']} & {std_error} " in latex and f"{{[}}{shown['low']}, {shown['high']}{{]}}" in latex
    assert "3 refits" in latex and difference in (result.page.parent / "tables/refit_differences.tex").read_text()
    page = result.page.read_text()
    section = page[page.index('<section id="refits">') :]
    section = section[: section.index("</section>")]
    for text in (
        f"<strong>{shown['value']}</strong><small>{shown['low']} to {shown['high']}",
        std_error,
        difference,
        "Without logit",
    ):
        assert text in section
    console = Console(width=100, record=True)
    for table in terminal_tables(result):
        console.print(table)
    line = rf" A +4.000 .*\n +refits +{shown['value']} +{shown['low']}–{shown['high']} +3 +5"
    text = console.export_text()
    assert re.search(line, text) and "mean of 3 on resampled training people" in text


def test_a_refit_of_a_moved_folder_and_quantized_weights_are_matched(runs: list[Path]) -> None:
    for run in runs:
        write_scores(run / f"scores/test.{run.name}-int8.parquet", f"{run.name}-int8", [2] * 5, quantization="int8")
        write_scores(run / "scores/test.title_head.parquet", "title_head", [2.5] * 5)
    runs[3] = runs[3].rename(runs[3].with_name("moved"))  # its own table has the earlier name
    (runs[3] / "scores/test.refit_3-int8.parquet").unlink()
    write_scores(runs[3] / "scores/test.moved-int8.parquet", "moved-int8", [2] * 5, quantization="int8")
    assert [model.model for model in refits_with(runs).models] == ["A", "A-int8", "title_head", "marginal"]


def test_a_perplexity_beyond_float64_leaves_differences_in_nats(runs: list[Path]) -> None:
    write_tables(runs[2], {"own": [5000] * 5})
    refits = refits_with(runs)
    own = next(model for model in refits.models if model.model == "A")
    assert own.perplexity.value == np.inf and own.std_error_training is None
    means = [-np.mean(RUNS["refit_1"]["own"]), -5000, -np.mean(RUNS["refit_3"]["own"])]
    floors = [np.mean(RUNS[f"refit_{number}"]["marginal"]) for number in (1, 2, 3)]
    differences = np.log(2) * np.add(means, floors)
    assert refits.pairs[0].difference_nats.value == pytest.approx(differences.mean())
    assert refits.pairs[0].std_error_training == pytest.approx(differences.std(ddof=1))


def test_refits_belong_to_the_first_run(runs: list[Path], tmp_path: Path) -> None:
    write_tables(tmp_path / "B", {"own": [1, 1, 1, 1, 1], "marginal": [3, 3, 3, 3, 3.5]})
    refits = refits_with([runs[0], tmp_path / "B", *runs[1:]], first=2)
    assert [model.model for model in refits.models] == ["A", "marginal (A)"]


def test_one_refit_is_refused() -> None:
    assert compose_settings(ReportSettings, "report", ["runs=[A]", "refits=[B,C]"]).refits == ("B", "C")
    with raises("settings/invalid", "refits", "at least 2"):
        compose_settings(ReportSettings, "report", ["runs=[A]", "refits=[B]"])


def test_a_refit_with_other_settings_is_refused_with_the_first_that_differs(runs: list[Path], tmp_path: Path) -> None:
    for changes, setting in (({"epochs": 7}, "training.epochs: "), ({"patience": 9}, "training.patience: ")):
        other = write_run(tmp_path / f"other_{setting[9]}", 4, **changes)
        with raises("run/refit-with-other-settings", f"{other} is no refit of {runs[0]} ({setting}", f" in {other})"):
            refits_with([*runs, other])
    other = write_run(tmp_path / "other_weights", 4, weights="others")
    with raises("run/refit-with-other-settings", other, "the data or the weights behind it differ"):
        refits_with([*runs, other])


def test_a_run_without_a_seed_is_no_refit(runs: list[Path], tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", None)
    with raises("run/refit-without-seed", other):
        refits_with([*runs, other])
    with raises("run/run-is-a-refit", runs[1], "bootstrap_seed=1"):
        refits_with(runs[1:])


def test_two_refits_of_one_seed_are_refused(runs: list[Path], tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", 2)
    with raises("run/refits-of-one-seed", runs[2], other, "bootstrap_seed=2"):
        refits_with([*runs, other])
    with raises("run/refits-of-one-seed", runs[2]):
        refits_with([*runs, runs[2]])


def test_a_refit_without_the_table_is_refused(runs: list[Path]) -> None:
    (runs[2] / "scores/test.parquet").unlink()
    with raises("score-table/refit-without-scores", runs[2], runs[0] / "scores/test.parquet"):
        refits_with(runs)
    (runs[2] / "scores/test.marginal.parquet").unlink()
    with raises("score-table/no-scores", runs[2]):
        refits_with(runs)


def test_refits_without_a_common_baseline_are_refused(runs: list[Path]) -> None:
    for run in runs:
        (run / "scores/test.parquet").unlink()
    (runs[1] / "scores/test.marginal.parquet").rename(runs[1] / "scores/test.logit.parquet")
    with raises("score-table/refit-without-scores", runs[1], runs[0] / "scores/test.marginal.parquet"):
        refits_with(runs)


def test_a_refit_on_other_test_people_is_refused(runs: list[Path]) -> None:
    write_scores(runs[3] / "scores/test.parquet", "refit_3", [1] * 4, keys=KEYS[:4])
    with raises("score-table/different-observations", "refit_3"):
        refits_with(runs)
