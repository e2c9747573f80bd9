"""Forecasts several years ahead: against a slow scorer that spells out every path, and against chains known by hand."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from helpers.errors import raises
from helpers.forecast_cases import CHAIN, ask_chain, full_sum
from helpers.reference.slow_scorer import slow_score
from helpers.runs import COMPUTE, settings_of
from helpers.scores import INFO
from helpers.scoring_cases import random_llama
from transformers import PreTrainedModel

from laborllm_dist.careers.types import CareerHistory, Job, OccupationVocabulary
from laborllm_dist.config.evaluation import EvaluationSettings
from laborllm_dist.errors import ScoreTableError
from laborllm_dist.evaluation.title_trie import build_trie, title_trie
from laborllm_dist.forecasting.iterate import (
    Distributions,
    IteratedForecast,
    Query,
    iterate_exact,
    iterate_sampled,
    num_prompts,
    path_draws,
)
from laborllm_dist.forecasting.origins import STRENGTH, Origins, find_origins, markov_scores
from laborllm_dist.forecasting.prompts import (
    ForecastTexts,
    ask_titles,
    ask_whole_texts,
    check_longest,
    prompt_ids,
)
from laborllm_dist.models.inference import wrap_for_inference
from laborllm_dist.store.store import CareerTable, store_rows
from laborllm_dist.store.tokenize import tokenize_careers
from laborllm_dist.store.tokenizer import CareerTokenizer, load_tokenizer, train_tokenizer
from laborllm_dist.tables.forecasts import (
    FORECAST_SCHEMA,
    coherence_of,
    describe_coherence,
    read_forecast_table,
    write_forecast_table,
)
from laborllm_dist.text.template import compile_template, render_career

TITLES = ("Cook", "Maid", "Aide", "Cook up")  # the first begins the last
VOCABULARY = OccupationVocabulary(codes=tuple("abcd"), titles=TITLES)
EVALUATION = EvaluationSettings(split="test", max_seq_length=700, batch_size=2, batches_per_part=1, precision="fp32")


def template():
    return compile_template(settings_of([]).template)


def careers_with_gaps() -> list[CareerHistory]:
    """Five years in a row; a gap, so that 1992 is two years after 1990 without a year between; one job only."""
    facts = {"survey": "PSID", "birth_year": 1963, "gender": "female", "ethnicity": "white", "region": "south"}
    bare = {"survey": "PSID", "birth_year": None, "gender": None, "ethnicity": None, "region": None}
    row = zip(range(1984, 1989), "abcda", ("high school", "high school", "college", "college", "college"), strict=True)
    return [
        CareerHistory(person="1", jobs=tuple(Job(*each) for each in row), **facts),
        CareerHistory(person="2", jobs=(Job(1990, "d"), Job(1992, "b"), Job(1993, "b")), **bare),
        CareerHistory(person="3", jobs=(Job(1990, "c", "college"),), **facts),
    ]


@dataclasses.dataclass(frozen=True)
class World:
    """A random model in float32, whose titles are nearly even, and everything that is asked of it."""

    model: PreTrainedModel
    texts: ForecastTexts
    evaluation: EvaluationSettings = EVALUATION

    def asker(self, starts: Origins, *, way=ask_titles, attention: str = "packed"):
        """Return what answers questions, a person at a time, as a part of the work does."""
        model = wrap_for_inference(copy.deepcopy(self.model), dataclasses.replace(COMPUTE, attention=attention))

        def ask(questions: Sequence[Query]) -> Distributions:
            actual = Distributions(np.empty((len(questions), len(TITLES))), np.empty(len(questions)))
            of_career = starts.careers_S[[question.start for question in questions]]
            for career in np.unique(of_career):
                places = np.flatnonzero(of_career == career)
                part = way(self.texts, starts, [questions[place] for place in places], self.evaluation, model)
                actual.log_probabilities_QT[places], actual.left_Q[places] = part.log_probabilities_QT, part.left_Q
            return actual

        return ask


@cache
def world() -> World:
    texts = [render_career(career, template(), VOCABULARY.title_of())[0].text for career in careers_with_gaps()]
    # Few merges, so that titles have several tokens.
    return world_of(train_tokenizer(texts, vocabulary_size=270))


def world_of(tokenizer: CareerTokenizer) -> World:
    careers = careers_with_gaps()
    texts = [render_career(career, template(), VOCABULARY.title_of())[0] for career in careers]
    table = store_rows(careers, texts, tokenize_careers(texts, tokenizer), VOCABULARY.index_of())
    rows = CareerTable(table=table.combine_chunks(), vocabulary=VOCABULARY)
    trie = title_trie("1984 (high school):", VOCABULARY, tokenizer)
    return World(random_llama(tokenizer, scale=0.12), ForecastTexts(rows, template(), tokenizer, trie, context=None))


def every_start(horizon: int) -> Origins:
    return find_origins(world().texts.careers, horizon)


@cache
def slow_model() -> PreTrainedModel:
    model = random_llama(world().texts.tokenizer, scale=0.12).double()
    model.set_attn_implementation("sdpa")
    return model


@cache
def slow_distribution(prompt: str) -> np.ndarray:
    """Return P(title) over the titles after a text, one forward a title."""
    tokenizer: CareerTokenizer = world().texts.tokenizer
    encode = lambda part: tokenizer.backend.encode(part, add_special_tokens=False).ids  # noqa: E731
    scores = [slow_score(slow_model(), encode, list(tokenizer.leading), prompt, title)[1] for title in TITLES]
    return np.exp(scores) / np.exp(scores).sum()


def slow_forecasts(career: CareerHistory, job: int, horizon: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the direct and the composed forecast: lines written by hand, every path spelled out."""
    (text,) = render_career(career, template(), VOCABULARY.title_of())
    known = text.text[: text.title_spans[job][1]] + "\n"
    year, education = career.jobs[job].year, career.jobs[job].education
    lines = [f"{year + ahead} ({education}):" if education else f"{year + ahead}:" for ahead in range(1, horizon + 1)]
    direct = slow_distribution(known + lines[-1])
    composed = np.zeros(len(TITLES))
    for path in itertools.product(range(len(TITLES)), repeat=horizon - 1):
        before, weight = known, 1.0
        for line, title in zip(lines, path, strict=False):
            weight *= slow_distribution(before + line)[title]
            before += f"{line} {TITLES[title]}\n"
        composed += weight * slow_distribution(before + lines[-1])
    return direct, composed


def all_slow_forecasts(starts: Origins, horizon: int) -> tuple[np.ndarray, np.ndarray]:
    careers = careers_with_gaps()
    pairs = zip(starts.careers_S.tolist(), starts.jobs_S.tolist(), strict=True)
    direct, composed = zip(*(slow_forecasts(careers[career], job, horizon) for career, job in pairs), strict=True)
    return np.array(direct), np.array(composed)


def test_forecasts_begin_where_the_same_person_is_observed_that_much_later() -> None:
    two, three = every_start(2), every_start(3)

    def triples(each: Origins) -> list[tuple[int, ...]]:
        return list(zip(each.careers_S.tolist(), each.jobs_S.tolist(), each.targets_S.tolist(), strict=True))

    # Person 2 is observed in 1990, 1992 and 1993: two years apart are the first two, without a year between.
    assert triples(two) == [(0, 0, 2), (0, 1, 3), (0, 2, 4), (1, 0, 1)]
    assert triples(three) == [(0, 0, 3), (0, 1, 4), (1, 0, 2)]
    assert triples(two.of_career(1)) == [(1, 0, 1)]


@pytest.mark.parametrize("horizon", [2, 3])
@pytest.mark.parametrize("way", [ask_titles, ask_whole_texts])
@pytest.mark.parametrize("attention", ["packed", "mask"])
def test_direct_and_composed_forecasts_equal_those_of_every_path_spelled_out(horizon: int, way, attention: str) -> None:
    starts = every_start(horizon)
    ask = world().asker(starts, way=way, attention=attention)
    direct, composed = all_slow_forecasts(starts, horizon)
    # Titles and starts differ, and so do the two forecasts: agreement is no accident.
    assert direct.std(axis=0).max() > 0.02
    assert direct.std(axis=1).min() > 0.05
    assert np.abs(direct - composed).max() > 0.005
    actual = ask([Query(start, (), horizon) for start in range(len(starts))])
    np.testing.assert_allclose(actual.probabilities_QT, direct, atol=1e-5, rtol=0)
    whole = full_sum(ask, len(starts), horizon)
    np.testing.assert_allclose(whole.probabilities_ST, composed, atol=1e-5, rtol=0)
    assert not actual.left_Q.any()
    assert not whole.bound_S.any()
    assert whole.errors_ST is None


@pytest.mark.parametrize("max_tree_tokens", [1, 50, 4096])
def test_imputed_lines_after_a_shared_history_score_as_whole_texts(max_tree_tokens: int) -> None:
    starts, questions = every_start(2), [Query(0, (1,), 2), Query(2, (), 1), Query(1, (3, 0), 3)]
    few = dataclasses.replace(world(), evaluation=dataclasses.replace(EVALUATION, max_tree_tokens=max_tree_tokens))
    shared, whole = (few.asker(starts, way=way)(questions) for way in (ask_titles, ask_whole_texts))
    np.testing.assert_allclose(shared.probabilities_QT, whole.probabilities_QT, atol=1e-5, rtol=0)
    few = dataclasses.replace(few, evaluation=dataclasses.replace(few.evaluation, max_unscored_mass=1e-12))
    shared, whole = (few.asker(starts, way=way)(questions) for way in (ask_titles, ask_whole_texts))
    assert whole.left_Q.any()
    np.testing.assert_allclose(shared.left_Q, whole.left_Q, atol=1e-5, rtol=0)
    np.testing.assert_allclose(shared.probabilities_QT, whole.probabilities_QT, atol=1e-5, rtol=0)


def test_a_sentencepiece_tokenizer_shares_histories(llama_tokenizer: Path) -> None:
    those, questions = world_of(load_tokenizer(str(llama_tokenizer))), [Query(0, (1,), 2), Query(2, (), 1)]
    # A row too short for whole texts: what answers all the same has shared the history.
    short = dataclasses.replace(those, evaluation=dataclasses.replace(EVALUATION, max_seq_length=8))
    shared, whole = short.asker(every_start(2))(questions), those.asker(every_start(2), way=ask_whole_texts)(questions)
    np.testing.assert_allclose(shared.probabilities_QT, whole.probabilities_QT, atol=1e-5, rtol=0)


def of_other_tokens(rows: CareerTable) -> CareerTable:
    ids = pa.array([[7, *rows.token_ids(row)[1:].tolist()] for row in range(len(rows))], type=pa.list_(pa.int32()))
    changed = rows.table.set_column(rows.table.schema.get_field_index("token_ids"), "token_ids", ids)
    return CareerTable(changed, VOCABULARY)


def test_a_history_of_other_tokens_than_the_prompts_is_not_shared() -> None:
    texts = dataclasses.replace(world().texts, careers=of_other_tokens(world().texts.careers))
    other = dataclasses.replace(world(), texts=texts)
    starts, questions = every_start(2), [Query(0, (1,), 2), Query(2, (), 1)]
    actual, expected = other.asker(starts)(questions), world().asker(starts, way=ask_whole_texts)(questions)
    assert np.array_equal(actual.probabilities_QT, expected.probabilities_QT)


@pytest.mark.parametrize("horizon", [2, 3])
@pytest.mark.parametrize(("tolerance", "max_unscored_mass"), [(0.02, 0.0), (0.5, 0.0), (0.0, 1e-12), (0.3, 1e-12)])
def test_what_is_left_out_is_off_by_no_more_than_the_bound(
    horizon: int, tolerance: float, max_unscored_mass: float
) -> None:
    starts = every_start(horizon)
    whole = full_sum(world().asker(starts), len(starts), horizon)
    bounded = dataclasses.replace(
        world(), evaluation=dataclasses.replace(EVALUATION, max_unscored_mass=max_unscored_mass)
    )
    all_queries: list[Query] = []

    def ask(questions: Sequence[Query]) -> Distributions:
        all_queries.extend(questions)
        return bounded.asker(starts)(questions)

    actual = iterate_exact(ask, len(starts), horizon=horizon, tolerance=tolerance, max_paths=10**6)
    np.testing.assert_allclose(actual.probabilities_ST.sum(axis=1), 1, atol=1e-12)
    off = actual.probabilities_ST - whole.probabilities_ST
    assert (np.abs(off).max(axis=1) <= actual.bound_S + 1e-6).all()
    assert (0.5 * np.abs(off).sum(axis=1) <= actual.bound_S + 1e-6).all()
    assert actual.bound_S.any()
    if not max_unscored_mass:
        assert (actual.bound_S <= tolerance).all()
    if tolerance >= 0.3:
        assert len(all_queries) < len(starts) * (num_prompts(len(TITLES), horizon) - 1)


def test_drawn_paths_come_near_the_full_sum() -> None:
    starts = every_start(3)
    ask = world().asker(starts)
    whole = full_sum(ask, len(starts), 3)
    draws = [path_draws(7, "PSID", "1", job, num_paths=3000, num_years=2) for job in range(len(starts))]
    actual = iterate_sampled(ask, np.stack(draws))
    assert (actual.errors_ST > 0).all()
    assert actual.errors_ST.max() < 0.01
    assert (np.abs(actual.probabilities_ST - whole.probabilities_ST) <= 4 * actual.errors_ST).all()
    np.testing.assert_allclose(actual.probabilities_ST.sum(axis=1), 1, atol=1e-12)


def test_draws_are_a_function_of_seed_person_start_path_and_year() -> None:
    some = path_draws(1, "PSID", "1", 0, num_paths=200, num_years=2)
    assert np.array_equal(path_draws(1, "PSID", "1", 0, num_paths=300, num_years=3)[:200, :2], some)
    others = [(2, "PSID", "1", 0), (1, "NLSY79", "1", 0), (1, "PSID", "11", 0), (1, "PSID", "1", 1)]
    for key in others:
        assert not np.isin(path_draws(*key, num_paths=200, num_years=2), some).any()
    assert 0.45 < some.mean() < 0.55
    assert some.min() >= 0
    assert some.max() < 1


def forecast_table(direct: np.ndarray, composed: IteratedForecast, observed: np.ndarray) -> pa.Table:
    places, num = (np.arange(len(observed)), observed), len(observed)
    errors = None if composed.errors_ST is None else composed.errors_ST.tolist()
    return pa.table(
        {
            "survey": ["PSID"] * num,
            "person": [str(each // 2) for each in range(num)],
            "direct": np.log(direct[places]),
            "composed": np.log(composed.probabilities_ST[places]),
            "bound": composed.bound_S,
            "direct_all": direct.tolist(),
            "composed_all": composed.probabilities_ST.tolist(),
            "standard_error": pa.array(errors or [None] * num, type=pa.list_(pa.float64())),
        }
    )


@pytest.mark.parametrize("horizon", [2, 3, 5])
def test_a_first_order_chain_is_coherent(horizon: int) -> None:
    direct = ask_chain([Query(start, (), horizon) for start in range(3)]).probabilities_QT
    np.testing.assert_allclose(direct, np.linalg.matrix_power(CHAIN, horizon))
    whole = full_sum(ask_chain, 3, horizon)
    np.testing.assert_allclose(whole.probabilities_ST, direct, atol=1e-14)
    actual = coherence_of(forecast_table(direct, whole, np.array([0, 1, 2])))
    assert (actual.num_forecasts, actual.num_people) == (3, 2)
    np.testing.assert_allclose(
        (actual.divergence_mean, actual.divergence_median, actual.total_variation_mean), 0, atol=1e-14
    )
    np.testing.assert_allclose((actual.correlation_observed, actual.correlation_all), 1, atol=1e-12)
    np.testing.assert_allclose(actual.perplexity_direct, actual.perplexity_composed, rtol=1e-12)
    assert (actual.bound_largest, actual.standard_error_mean) == (0.0, None)


def test_drawn_paths_of_a_chain_come_near_its_power() -> None:
    draws = np.stack([path_draws(3, "PSID", str(start), 0, num_paths=4000, num_years=3) for start in range(3)])
    actual = iterate_sampled(ask_chain, draws)
    assert (np.abs(actual.probabilities_ST - np.linalg.matrix_power(CHAIN, 4)) <= 4 * actual.errors_ST).all()


def test_the_coherence_of_two_forecasts_by_hand() -> None:
    direct, composed = np.array([[0.5, 0.5], [0.8, 0.2]]), np.array([[0.25, 0.75], [0.8, 0.2]])
    errors = np.full((2, 2), 0.01)
    table = forecast_table(direct, IteratedForecast(np.log(composed), np.array([0.1, 0.2]), errors), np.array([0, 1]))
    actual = coherence_of(table)
    first = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
    np.testing.assert_allclose((actual.divergence_mean, actual.divergence_median), first / 2)
    np.testing.assert_allclose((actual.total_variation_mean, actual.total_variation_median), 0.125)
    np.testing.assert_allclose(actual.perplexity_direct, 1 / np.sqrt(0.5 * 0.2))
    np.testing.assert_allclose(actual.perplexity_composed, 1 / np.sqrt(0.25 * 0.2))
    assert (actual.bound_largest, actual.num_people) == (0.2, 1)
    np.testing.assert_allclose(actual.correlation_observed, 1.0)  # two points
    assert "mean standard error 0.01" in describe_coherence(actual, None)[-1]
    alone = coherence_of(table.slice(0, 1))
    assert alone.correlation_observed is None
    assert "not defined (observed titles)" in describe_coherence(alone, None)[2]
    assert describe_coherence(alone, 3.25)[1].endswith("composed 4.000; 3.250 from the last occupation alone")


NO_FORECAST = {
    "nan": ({"direct": [math.nan, -1.0]}, "column direct has a number that no forecast has"),
    "positive": ({"composed": [0.5, -1.0]}, "column composed has"),
    "share": ({"direct_all": [[1.5, -0.5], [0.5, 0.5]]}, "column direct_all has"),
    "sum": ({"composed_all": [[0.5, 0.25], [0.5, 0.5]]}, "in a list composed_all do not add up to 1"),
    "absent": ({"direct_all": [[None, 1.0], [0.5, 0.5]]}, "column direct_all has"),
    "length": ({"direct_all": [[1.0], [0.5, 0.5]]}, "lists direct_all are not as long as its 2 occupations"),
    "some": ({"standard_error": [None, [0.1, 0.1]]}, "some forecasts are of sampled paths"),
    "twice": ({"position": [3, 3]}, "an observation twice"),
}


@pytest.mark.parametrize("name", NO_FORECAST)
def test_a_table_of_what_are_no_forecasts_is_refused(name: str, tmp_path: Path) -> None:
    changes, words = NO_FORECAST[name]
    sound: dict[str, list[object]] = {
        "survey": ["P", "P"], "person": ["1", "1"], "position": [0, 1], "year": [1990, 1991],
        "target_year": [1992, 1993], "occupation": ["a", "b"], "direct": [-0.7, -math.inf], "composed": [-0.7, -0.7],
        "bound": [0.0, 0.1], "direct_all": [[0.5, 0.5], [1.0, 0.0]], "composed_all": [[0.5, 0.5], [0.5, 0.5]],
        "standard_error": [[0.1, 0.1], [0.1, 0.1]],
    }  # fmt: skip
    path = tmp_path / "test_forecast_h2.parquet"
    write_forecast_table(pa.table(sound, FORECAST_SCHEMA), INFO, "ab", path)
    assert read_forecast_table(path).table.num_rows == 2
    write_forecast_table(pa.table({**sound, **changes}, FORECAST_SCHEMA), INFO, "ab", path)
    with pytest.raises(ScoreTableError, match=words):
        read_forecast_table(path)
    write_forecast_table(pa.table({each: [] for each in sound}, FORECAST_SCHEMA), INFO, "ab", path)
    with raises("score-table/invalid-forecasts", "no forecasts"):
        read_forecast_table(path)


def test_the_markov_baseline_knows_the_last_occupation_only() -> None:
    # Two years apart, of titles a b c d: a -> c, b -> d, c -> a, and d -> b across a gap.
    rows, starts = world().texts.careers, every_start(2)
    actual = markov_scores(rows, rows, starts, 2)
    # Every pair was seen once, every target once among four.
    np.testing.assert_allclose(np.exp(actual), (1 + STRENGTH * (1 + 1) / (4 + 4)) / (1 + STRENGTH))


def test_the_number_of_prompts_of_a_full_sum() -> None:
    # One direct; then 1, 4 and 16 prompts of the yearly steps.
    assert num_prompts(4, 3) == 1 + 1 + 4 + 16


def test_too_many_followed_paths_are_refused() -> None:
    with raises("run/too-many-paths", "3", "1", "2"):
        iterate_exact(ask_chain, 3, horizon=2, tolerance=0.01, max_paths=2)
    iterate_exact(ask_chain, 3, horizon=2, tolerance=0.4, max_paths=2)


def test_a_forecast_that_fits_no_row_or_context_is_refused() -> None:
    starts = every_start(2)
    short = dataclasses.replace(world(), evaluation=dataclasses.replace(EVALUATION, max_seq_length=200))
    with raises("sequence-too-long/prompt-too-long-for-row", "career '1' of PSID with imputed years", "200"):
        short.asker(starts, way=ask_whole_texts)([Query(0, (), 2)])
    narrow = dataclasses.replace(world(), texts=dataclasses.replace(world().texts, context=200))
    with raises("sequence-too-long/prompt-too-long-for-model", "200"):
        narrow.asker(starts)([Query(0, (), 2)])


@pytest.mark.parametrize("horizon", [2, 3])
def test_the_longest_text_that_is_asked_for_is_known_before(horizon: int) -> None:
    texts, starts = world().texts, every_start(horizon)
    paths = [path for years in range(horizon) for path in itertools.product(range(len(TITLES)), repeat=years)]
    questions = [Query(start, path, horizon) for start in range(len(starts)) for path in paths]
    ids = prompt_ids(texts, starts, questions)
    of_first = [
        len(each) for each, question in zip(ids, questions, strict=True) if not starts.careers_S[question.start]
    ]
    longest = max(of_first)
    assert longest == max(map(len, ids))
    context = longest + int(texts.trie.depths_M.max())
    check_longest(dataclasses.replace(texts, context=context), starts, horizon, max_seq_length=8)
    with raises(
        "sequence-too-long/career-too-long", "'1'", "PSID", context, "context is", context - 1, "1 of 2 people is"
    ):
        check_longest(dataclasses.replace(texts, context=context - 1), starts, horizon, max_seq_length=8)
    # Where the history is not shared, rows hold whole texts.
    other = dataclasses.replace(texts, careers=of_other_tokens(texts.careers))
    check_longest(other, starts, horizon, max_seq_length=longest)
    with raises("sequence-too-long/career-too-long", longest, "a row has 8", "set max_seq_length=", "2 of 2"):
        check_longest(other, starts, horizon, max_seq_length=8)


def test_titles_of_other_tokens_after_imputed_years_are_refused() -> None:
    trie = build_trie([(1, 2), (3,), (4,), (5,)], terminator=9)
    other = dataclasses.replace(world(), texts=dataclasses.replace(world().texts, trie=trie))
    with raises("title-boundary/titles-tokenized-differently", "2"):
        other.asker(every_start(2))([Query(0, (), 2)])
