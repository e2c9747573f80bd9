"""Titles too improbable for float64: every sum over titles against decimals of 60 digits, and perplexities beyond floats."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import warnings
from collections.abc import Sequence
from decimal import Decimal, localcontext
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from helpers.errors import raises
from helpers.forecast_cases import ask_chain, full_sum
from helpers.scores import KEYS, prediction_info, report_on, write_scores
from helpers.scoring_cases import VOCABULARY, careers_of_every_kind, rows_of, trained_tokenizer
from rich.console import Console

from laborllm_dist.batching.batch import pack_batch
from laborllm_dist.config.evaluation import EvaluationSettings
from laborllm_dist.evaluation.all_titles import AllTitles, Prompts, TitleScores, score_titles
from laborllm_dist.evaluation.tasks import Evaluation, EvaluationPlan
from laborllm_dist.evaluation.title_trie import build_trie, title_trie
from laborllm_dist.forecasting.iterate import Distributions, IteratedForecast, Query, iterate_exact, iterate_sampled
from laborllm_dist.forecasting.prompts import normalised
from laborllm_dist.models.tree_inference import PrefixState
from laborllm_dist.prediction.predict import TopTitlesQuery, best_titles, prediction_rows
from laborllm_dist.prediction.requests import PredictionRequest
from laborllm_dist.report.nonemployment import LaborStates
from laborllm_dist.report.terminal import show_predictions
from laborllm_dist.report.title_metrics import facts_of_table
from laborllm_dist.report.write import terminal_tables
from laborllm_dist.tables.forecasts import coherence_of, describe_coherence
from laborllm_dist.tables.log_domain import SMALLEST, log_sum_exp, perplexity_of, upper_probability
from laborllm_dist.tables.parquet import DistributionTable, ScoreTableInfo, write_lists
from laborllm_dist.tables.title_distributions import TITLE_SCHEMA, read_title_table, write_title_table
from laborllm_dist.training.progress import progress_line

LOST = -1000.0  # nats: exp is 0 in float64
NEVER = -math.inf
ROWS = [
    [LOST, LOST - 1, LOST - 2.5],
    [-0.5, LOST, -2.0],
    [LOST, NEVER, LOST - 3],
    [NEVER, NEVER, -745.5],
    [NEVER, NEVER, NEVER],
    [-1e6, -1e6 - 0.25, NEVER],
    [-0.1, -3.0, -4.0],
]


@pytest.fixture(autouse=True)
def _no_warning_passes() -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        yield


def log_sum_in_decimals(values: Sequence[float]) -> float:
    """Return log(sum(exp(x))) with 60 digits, whose exponents have no limit that matters."""
    with localcontext() as context:
        context.prec = 60
        total = sum((Decimal(value).exp() for value in values if value > NEVER), Decimal(0))
        return float(total.ln()) if total else NEVER


def test_sums_of_logarithms_equal_those_of_decimals() -> None:
    actual = log_sum_exp(np.array(ROWS), axis=1)
    np.testing.assert_allclose(actual, [log_sum_in_decimals(row) for row in ROWS], rtol=1e-15)
    assert actual[4] == NEVER  # of impossible events alone: impossible
    assert upper_probability(np.array([LOST, NEVER, 0.0])).tolist() == [SMALLEST, 0.0, 1.0]


def test_a_perplexity_is_infinite_where_a_float_has_no_room_and_never_zero() -> None:
    assert perplexity_of([-math.log(8), -800.0, NEVER]).tolist() == [pytest.approx(8), math.inf, math.inf]


class Improbable:
    """A model whose every token has the same log-likelihood, and what else an evaluation asks of a model."""

    device = torch.device("cpu")

    def __init__(self, nats: float) -> None:
        self.nats = nats

    def edges(self, prefix, nodes, slots_Q, edges) -> torch.Tensor:
        # By their tokens, so that titles differ.
        return self.nats - 0.125 * edges.tokens_E.double() if len(edges.tokens_E) else torch.zeros(0)


TRIE = build_trie([(1, 2), (1, 3), (4,)], terminator=9)


def title_nats(nats: float) -> list[float]:
    return [sum(nats - 0.125 * token for token in (*path, 9)) for path in ((1, 2), (1, 3), (4,))]


@pytest.mark.parametrize("nats", [-1.0, -500.0, -1e5])
def test_what_was_left_ungrown_is_known_however_improbable(nats: float) -> None:
    prefix = PrefixState(pack_batch([[np.arange(4, dtype=np.int32)]], 4))
    prompts = Prompts(np.array([[0, 0, 4]]), np.array([2]))
    scores = score_titles(Improbable(nats).edges, prefix, prompts, TRIE, tolerance=0.9, max_tree_tokens=10)
    assert np.isnan(scores.terminated_PT).tolist() == [[True, True, False]]
    assert scores.log_bound_P[0] == pytest.approx(nats - 0.125)  # of the first token of both that were left
    assert scores.bound_P[0] > 0
    assert scores.log_whole_P()[0] == pytest.approx(log_sum_in_decimals([title_nats(nats)[2], nats - 0.125]), rel=1e-14)


def test_a_token_of_probability_zero_is_refused() -> None:
    prefix = PrefixState(pack_batch([[np.arange(4, dtype=np.int32)]], 4))
    with raises("model/non-finite-log-likelihoods"):
        score_titles(
            Improbable(NEVER).edges, prefix, Prompts(np.array([[0, 0, 4]]), np.array([-1])), TRIE,
            tolerance=0.0, max_tree_tokens=10,
        )  # fmt: skip


@pytest.mark.parametrize("tolerance", [0.0, 0.5])
def test_an_evaluation_normalises_titles_that_all_underflow(tolerance: float, tmp_path: Path) -> None:
    tokenizer = trained_tokenizer()
    rows, trie = (
        rows_of(careers_of_every_kind()[:1], tokenizer),
        title_trie("1984 (high school):", VOCABULARY, tokenizer),
    )
    plan = EvaluationPlan(batches=(((0,),),), max_seq_length=len(rows.token_ids(0)), batches_per_part=1)
    task = AllTitles(EvaluationSettings("test", 512, 2, 1, "fp32", max_unscored_mass=tolerance))
    info = ScoreTableInfo("m", "test", "c", "0", {})
    work = Evaluation(task, rows, plan, info, tmp_path, tmp_path / "t.parquet")
    table = task.scorer(work, Improbable(LOST), lambda: trie)(0)
    observed = rows.occupations_of([0])
    for row, title in zip(table.to_pylist(), observed.tolist(), strict=True):
        scored = [value for value in row["terminated"] if value is not None]
        # Of what was left the first token is known: of all titles whose first one differs from the observed title's.
        path = trie.paths_MA[trie.ends_T[title]]
        left = []
        if tolerance:
            on_path = {-1, *path[path >= 0].tolist()}
            left = [
                sum(LOST - 0.125 * trie.tokens_M[node] for node in trie.paths_MA[edge] if node >= 0)
                for edge in range(trie.num_nodes)
                if trie.parents_M[edge] in on_path and edge not in on_path
            ]
        assert row["normalised"] == pytest.approx(
            row["terminated"][title] - log_sum_in_decimals([*scored, *left]), abs=1e-9
        )
        assert (row["mass"], row["bound"] > 0) == (0.0, bool(tolerance))
        assert math.isfinite(row["normalised"]) and row["normalised"] <= 0


@pytest.mark.parametrize("measure", ["normalised", "terminated"])
def test_predictions_of_titles_that_all_underflow(measure: str) -> None:
    prompts = [np.arange(4, dtype=np.int32), np.arange(3, dtype=np.int32)]
    evaluation = EvaluationSettings("test", 512, 2, 1, "fp32", max_unscored_mass=0.0)
    best = best_titles(Improbable(LOST), TopTitlesQuery(prompts, TRIE, 3, measure), evaluation)
    nats = sorted(title_nats(LOST), reverse=True)
    whole = log_sum_in_decimals(nats) if measure == "normalised" else 0.0
    np.testing.assert_allclose(best.scores_PK, [[value - whole for value in nats]] * 2, atol=1e-9)
    careers = [PredictionRequest(career, 1999, None) for career in careers_of_every_kind()[:2]]
    table = prediction_rows(careers, best, VOCABULARY)
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    show_predictions(table, prediction_info(measure), None, console)
    text = console.export_text()
    certain = "100.0\N{NO-BREAK SPACE}%"
    labels = [" ".join(line.split()[:2]) for line in text.splitlines() if certain in line]
    assert len(labels) == 2
    assert (labels == ["no title"] * 2) == (measure == "terminated")  # else the most probable title


def test_forecasts_are_log_probabilities_however_improbable_the_titles() -> None:
    terminated = np.array([[LOST, LOST - 1, LOST - 2.5], [-800.0, np.nan, np.nan]])
    normalized, left = normalised(TitleScores(terminated, terminated, np.array([NEVER, -801.0])))
    whole = [log_sum_in_decimals(terminated[0]), log_sum_in_decimals([-800.0, -801.0])]
    np.testing.assert_allclose(normalized[0], terminated[0] - whole[0], atol=1e-12)
    np.testing.assert_allclose(normalized[1], [-800 - whole[1], *[-801 - math.log(2) - whole[1]] * 2], atol=1e-12)
    np.testing.assert_allclose(left, [0, 1 / (1 + math.e)], rtol=1e-12)


def ask_lost(questions: Sequence[Query]) -> Distributions:
    """Answer for two titles: the second has -800 nats, and -1600 after a year in which it was imputed."""
    log_second = np.array([LOST * 0.8 * (1 + sum(question.imputed)) for question in questions])
    return Distributions(np.stack([np.zeros_like(log_second), log_second], axis=1), np.zeros(len(questions)))


def test_paths_that_underflow_add_up_as_decimals_do() -> None:
    # First year 0 or 1, then the second title: exp(-800) after 0, exp(-800) exp(-1600) after 1.
    forecast = iterate_exact(ask_lost, 1, horizon=2, tolerance=0.0, max_paths=10)
    np.testing.assert_allclose(forecast.log_probabilities_ST, [[0.0, log_sum_in_decimals([-800, -2400])]], atol=1e-9)
    drawn = iterate_sampled(ask_lost, np.zeros((1, 3, 1)))
    np.testing.assert_allclose(drawn.log_probabilities_ST, [[0.0, -800.0]], atol=1e-9)


def test_the_sum_over_paths_of_a_chain_is_as_before() -> None:
    whole = full_sum(ask_chain, 3, 4)
    direct = ask_chain([Query(start, (), 4) for start in range(3)])
    np.testing.assert_allclose(whole.log_probabilities_ST, direct.log_probabilities_QT, atol=1e-13)


def forecasts(direct: float, composed: float) -> pa.Table:
    lists = {"direct_all": [[1.0, 0.0]], "composed_all": [[1.0, 0.0]]}
    facts = {"survey": ["PSID"], "person": ["a"], "direct": [direct], "composed": [composed], "bound": [0.0]}
    return pa.table({**facts, **lists, "standard_error": pa.array([None], type=pa.list_(pa.float64()))})


def test_perplexities_of_forecasts_beyond_floats_are_words() -> None:
    line = describe_coherence(coherence_of(forecasts(LOST, -math.log(2.7e11))), math.inf)[1]
    assert line == "perplexity direct too large, composed 2.7e11; too large from the last occupation alone"


def title_table(normalised_nats: Sequence[float], *, mass: float = 0.0) -> pa.Table:
    rows = [
        {
            "survey": survey, "person": person, "position": position, "occupation": "1", "mass": mass, "bound": 0.0,
            "normalised": nats, "title": [LOST, LOST], "terminated": [LOST, LOST],
        }
        for (survey, person, position), nats in zip(KEYS, normalised_nats, strict=True)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=TITLE_SCHEMA)


def titles_info() -> ScoreTableInfo:
    return ScoreTableInfo("llm", "test", "careers-1", "code-1", {"weights": "w-llm"})


@pytest.mark.parametrize("nats", [math.inf, NEVER, math.nan, 0.5])
def test_a_report_of_titles_without_a_share_is_refused_and_is_no_perplexity_of_zero(
    nats: float, tmp_path: Path
) -> None:
    write_scores(tmp_path / "scores/test.parquet", "llm", [1, 2, 2, 3, 2])
    table, path = title_table([-1.0, nats, -1.0, -1.0, -1.0]), tmp_path / "scores/test_titles.parquet"
    error = ("score-table/invalid-title-probability", f"normalised of person 'a', observation 1 is {nats}", "<= 0")
    with raises(*error):
        write_title_table(table, titles_info(), ("1", "2"), path)
    write_lists(table, TITLE_SCHEMA, titles_info(), ("1", "2"), path)  # as an earlier version wrote it
    with raises(*error):
        read_title_table(path)
    with raises(*error):
        report_on(tmp_path, measure="normalised")


@pytest.mark.parametrize("mass", [-0.5, 1.5, math.nan, math.inf])
def test_a_mass_that_is_no_probability_is_refused(mass: float, tmp_path: Path) -> None:
    with raises("score-table/invalid-title-probability", "mass", "'a'", "0", mass, "a probability"):
        write_title_table(title_table([-1.0] * 5, mass=mass), titles_info(), ("1", "2"), tmp_path / "t.parquet")


def test_a_report_of_titles_that_all_underflow_has_their_shares(tmp_path: Path) -> None:
    write_scores(tmp_path / "scores/test.parquet", "llm", [2000] * 5)
    half = title_table([-math.log(2)] * 5)
    write_title_table(half, titles_info(), ("1", "2"), tmp_path / "scores/test_titles.parquet")
    assert report_on(tmp_path, measure="normalised").models[0].perplexity.value == pytest.approx(2)
    result = report_on(tmp_path)
    assert result.models[0].perplexity.value == math.inf
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(*terminal_tables(result))
    text = console.export_text()
    assert "too large" in text
    assert " 0.000" not in text
    assert json.loads(result.summary.read_text())["models"][0]["perplexity"]["value"] is None


def test_a_rank_counts_titles_left_with_less_than_a_float_can_hold() -> None:
    # Two of three titles were not scored; their mass is too small for float64, and so is that of the observed one.
    row = {"occupation": "1", "mass": 0.0, "bound": SMALLEST, "normalised": LOST, "terminated": [LOST, None, None]}
    table = pa.Table.from_pylist([row], schema=pa.schema([TITLE_SCHEMA.field(name) for name in row]))
    described = DistributionTable(table, titles_info(), ("1", "2", "3"))
    assert facts_of_table("m", described, [None], LaborStates((), (), (), ())).rank_N.tolist() == [3]


def test_probabilities_of_outcomes_keep_their_share_where_no_title_has_a_probability_that_float64_holds() -> None:
    # Titles 1 and 3 have 3 and 1 parts of what is left, all of them far below the smallest float64.
    row = {
        "occupation": "1", "mass": 0.0, "bound": 0.0, "normalised": math.log(0.75),
        "terminated": [LOST + math.log(3), -math.inf, LOST],
    }  # fmt: skip
    table = pa.Table.from_pylist([row], schema=pa.schema([TITLE_SCHEMA.field(name) for name in row]))
    described = DistributionTable(table, titles_info(), ("1", "2", "3"))
    facts = facts_of_table("m", described, ["1"], LaborStates(("3",), (), (), ()))
    assert facts.previous_probability_N == pytest.approx([0.75])
    assert facts.set_probability_SN[0] == pytest.approx([0.25])
    assert facts.top_probability_N == pytest.approx([0.75])


def test_a_composed_forecast_holds_logarithms() -> None:
    forecast = IteratedForecast(np.log([[0.25, 0.75]]), np.zeros(1), None)
    np.testing.assert_allclose(forecast.probabilities_ST, [[0.25, 0.75]])
    assert dataclasses.replace(forecast, bound_S=np.ones(1)).bound_S == 1


def test_a_step_s_line_has_words_for_what_is_no_number() -> None:
    numbers = {"loss_nats_per_token": math.nan, "learning_rate": 1e-5, "tokens_per_second": 1e3, "peak_memory_gib": 1.0}
    line = progress_line(1, 2, {**numbers, "validation_nats_per_token": math.inf, "validation_nats_per_title": 2.5e9})
    assert "loss not defined nats/token" in line
    assert "validation too large nats/token, 2.5e9 nats/title" in line
    assert "loss 1.4321 nats/token" in progress_line(1, 2, {**numbers, "loss_nats_per_token": 1.4321})


@pytest.mark.parametrize("nats", [709.7, 1e6, 1e289])
def test_a_report_of_extreme_scores_is_drawn_and_has_no_nan(nats: float, tmp_path: Path) -> None:
    for number, halvings in enumerate(([nats / math.log(2)] * 5, [nats / math.log(2) * 0.9] * 5, [1, 2, 2, 3, 2])):
        write_scores(tmp_path / f"scores/test.m{number}.parquet", f"m{number}", halvings)
    result = report_on(tmp_path)
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(*terminal_tables(result))
    page = re.sub(r"base64,[A-Za-z0-9+/=]+", "", result.page.read_text())
    page = re.sub(r'data-number="[^"]*"', "", page)  # for the script that sorts
    for text in (console.export_text(), page[page.index("<body>") :]):
        assert not re.search(r"\b(nan|inf)\b", text, re.IGNORECASE)
        assert not re.search(r"\d{8}", text.replace(",", ""))
    json.loads(result.summary.read_text(), parse_constant=pytest.fail)
