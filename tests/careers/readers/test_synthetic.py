"""The made labor market: its stated probabilities are those that its careers follow."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
from collections import Counter

import numpy as np
import pytest
from helpers.errors import raises

from laborllm_dist.careers.readers.synthetic import market as market_module
from laborllm_dist.careers.readers.synthetic import titles as numbers
from laborllm_dist.careers.readers.synthetic.market import SyntheticMarket, make_market
from laborllm_dist.careers.readers.synthetic.titles import EDUCATIONS, FAMILIES, GENDERS, Slope, synthetic_vocabulary
from laborllm_dist.careers.types import CareerHistory, Job
from laborllm_dist.config.corpora import SyntheticSettings

CODES = synthetic_vocabulary().codes
TITLE_OF = synthetic_vocabulary().title_of()


@pytest.fixture(scope="module")
def market() -> SyntheticMarket:
    return make_market(SyntheticSettings(num_people=2_000, seed=5))


@pytest.fixture(scope="module")
def careers(market: SyntheticMarket) -> list[CareerHistory]:
    return list(market.careers())


def prefix_of(career: CareerHistory, num_jobs: int) -> CareerHistory:
    return dataclasses.replace(career, jobs=career.jobs[:num_jobs])


def distributions_of(market: SyntheticMarket, career: CareerHistory) -> list[np.ndarray]:
    return [
        market.occupation_distribution(prefix_of(career, number), year=job.year, education=job.education or "")
        for number, job in enumerate(career.jobs)
    ]


# The rule once more, slowly: from the words of a title to its family, trade and rank, one number at a time.


def place_by_words(title: str) -> tuple[int, int, int] | None:
    for number, family in enumerate(FAMILIES):
        for trade, name in enumerate(family.trades):
            if title.lower().endswith(name):
                return number, trade, family.rank_words.index(title[: -len(name)].strip())
    return None


PLACE_OF = {code: place_by_words(TITLE_OF[code]) for code in CODES}


def spread_evenly(number: int) -> float:
    product = number * (math.sqrt(5) - 1) / 2
    return product - math.floor(product) - 0.5


def facts_of_year(career: CareerHistory, job: Job) -> tuple[int, int, int]:
    """Return education, decade of birth and age class."""
    assert career.birth_year is not None and job.education is not None
    age = job.year - career.birth_year
    age_class = 0 if age < 20 else 1 if age < 25 else 2 if age < 40 else 3
    return EDUCATIONS.index(job.education), (career.birth_year - 1940) // 10, age_class


def slope(line: Slope, facts: tuple[int, int, int]) -> float:
    education, decade, age_class = facts
    return line.by_education * (education - 2) + line.by_decade * (decade - 2) + line.by_age[age_class]


def slow_attraction(code: str, facts: tuple[int, int, int]) -> float:
    place = PLACE_OF[code]
    if place is None:
        line = numbers.PULL_STATES[CODES.index(code) - 332]
        return math.exp(line.base + slope(line, facts))
    family, trade, rank = place
    popularity = numbers.TRADE_POPULARITY_SPREAD * spread_evenly(4 * family + trade) + numbers.RANK_POPULARITY[rank]
    misfit = facts[0] - (FAMILIES[family].schooling + numbers.RANK_NEED[rank])
    trend = numbers.FAMILY_TREND * FAMILIES[family].trend + numbers.TRADE_TREND * (trade - 1.5)
    return math.exp(popularity - numbers.SCHOOLING_FIT / 2 * misfit**2 + trend * (facts[1] - 2))


def slow_affinity(before: str, after: str, tenure: int) -> float:
    one, other = PLACE_OF[before], PLACE_OF[after]
    if one is None or other is None:
        return 1.0
    total = 0.0
    if one[0] == other[0]:
        total += numbers.SAME_FAMILY
    elif (one[0] - other[0]) % len(FAMILIES) in (1, len(FAMILIES) - 1):
        total += numbers.NEXT_FAMILY
    tenure_class = 0 if tenure == 1 else 1 if tenure < 4 else 2
    if one[:2] == other[:2] and other[2] - one[2] in (1, -1):
        total += (numbers.PROMOTION if other[2] > one[2] else numbers.DEMOTION)[tenure_class]
    return math.exp(total)


def slow_stay_odds(before: str, tenure: int, facts: tuple[int, int, int], gap: int) -> float:
    place = PLACE_OF[before]
    line = numbers.HOLD_STATES[CODES.index(before) - 332] if place is None else numbers.HOLD_OCCUPATION
    exponent = line.base + line.by_tenure * math.log(1 + min(tenure, 40)) + slope(line, facts)
    if place is not None:
        exponent += numbers.FAMILY_HOLD_SPREAD * spread_evenly(place[0]) + numbers.RANK_HOLD[place[2]]
    return math.exp(exponent - numbers.GAP_COST * min(gap - 1, 3))


def slow_probability(career: CareerHistory, number: int) -> float:
    job = career.jobs[number]
    facts = facts_of_year(career, job)
    if number == 0:
        sign = {"female": 1, "male": -1}[career.gender or ""]
        weights = {}
        for code in CODES:
            place = PLACE_OF[code]
            by_gender = sign * numbers.ENTRY_BY_GENDER * FAMILIES[place[0]].lean if place else 0.0
            by_rank = numbers.ENTRY_BY_RANK[place[2]] if place else 0.0
            weights[code] = slow_attraction(code, facts) * math.exp(by_rank + by_gender)
        return weights[job.occupation] / sum(weights.values())
    last = career.jobs[number - 1]
    tenure = len(
        list(itertools.takewhile(lambda one: one.occupation == last.occupation, career.jobs[number - 1 :: -1]))
    )
    odds = slow_stay_odds(last.occupation, tenure, facts, job.year - last.year)
    if job.occupation == last.occupation:
        return odds / (1 + odds)
    others = [code for code in CODES if code != last.occupation]
    weights = {code: slow_attraction(code, facts) * slow_affinity(last.occupation, code, tenure) for code in others}
    return weights[job.occupation] / sum(weights.values()) / (1 + odds)


def test_vocabulary_has_335_titles_of_two_to_four_words_and_none_begins_another() -> None:
    titles = synthetic_vocabulary().titles
    assert len(set(titles)) == len(set(CODES)) == 335
    assert titles[-3:] == ("Unemployed", "Not in labor force", "Education")
    assert {len(title.split()) for title in titles[:-3]} == {2, 3, 4}
    for one, other in itertools.pairwise(sorted(titles)):  # if any title began another, its next one in order would
        assert not other.startswith(one)


def test_probabilities_are_those_of_a_slow_computation_of_the_rule(
    market: SyntheticMarket, careers: list[CareerHistory]
) -> None:
    for career in careers[:12]:
        slow = [math.log(slow_probability(career, number)) for number in range(len(career.jobs))]
        np.testing.assert_allclose(market.log_probabilities(career), slow, rtol=1e-10)


def test_distributions_sum_to_one_and_hold_the_stated_probability(
    market: SyntheticMarket, careers: list[CareerHistory]
) -> None:
    for career in careers[:50]:
        stated = market.log_probabilities(career)
        for job, distribution, log_probability in zip(
            career.jobs, distributions_of(market, career), stated, strict=True
        ):
            assert distribution.shape == (335,)
            assert abs(distribution.sum() - 1) < 1e-12
            assert distribution.min() > 0
            assert math.log(distribution[market.index_of[job.occupation]]) == pytest.approx(log_probability, abs=1e-11)


def test_mean_loss_of_careers_is_the_mean_entropy_of_the_stated_distributions(
    market: SyntheticMarket, careers: list[CareerHistory]
) -> None:
    surplus = [
        -log_probability + float(distribution @ np.log(distribution))
        for career in careers[:600]
        for log_probability, distribution in zip(
            market.log_probabilities(career), distributions_of(market, career), strict=True
        )
    ]
    standard_error = np.std(surplus) / math.sqrt(len(surplus))
    assert standard_error < 0.02
    assert abs(np.mean(surplus)) < 4 * standard_error


@pytest.mark.parametrize("state", ["NLF", "UNE", "EDU"])
def test_moves_out_of_a_state_have_the_expected_counts(
    market: SyntheticMarket, careers: list[CareerHistory], state: str
) -> None:
    group_of = np.array([place[0] if place else -1 for place in PLACE_OF.values()])
    group_of[-3:] = (101, 102, 103)
    expected, actual = np.zeros(335), np.zeros(335)
    for career in careers:
        for number, (last, job) in enumerate(itertools.pairwise(career.jobs), start=1):
            if last.occupation == state:
                assert job.education is not None
                prefix = prefix_of(career, number)
                expected += market.occupation_distribution(prefix, year=job.year, education=job.education)
                actual[market.index_of[job.occupation]] += 1
    terms = [
        (actual[group_of == group].sum() - expected[group_of == group].sum()) ** 2 / expected[group_of == group].sum()
        for group in np.unique(group_of)
        if expected[group_of == group].sum() >= 5
    ]
    assert len(terms) >= 20
    assert sum(terms) < len(terms) + 4 * math.sqrt(2 * len(terms))


def test_men_begin_as_builders_far_more_often_than_women(careers: list[CareerHistory]) -> None:
    first_titles = {
        gender: Counter(PLACE_OF[c.jobs[0].occupation] for c in careers if c.gender == gender) for gender in GENDERS
    }
    builders = [sum(n for place, n in first_titles[gender].items() if place and place[0] == 1) for gender in GENDERS]
    assert builders[1] > 3 * builders[0]


def test_shares_of_first_moving_and_staying(careers: list[CareerHistory]) -> None:
    pairs = [pair for career in careers for pair in itertools.pairwise(career.jobs)]
    total = sum(len(career.jobs) for career in careers)
    staying = sum(one.occupation == other.occupation for one, other in pairs)
    assert len(careers) / total == pytest.approx(0.05, abs=0.02)
    assert (len(pairs) - staying) / total == pytest.approx(0.44, abs=0.02)
    assert staying / total == pytest.approx(0.51, abs=0.02)


def test_truth_is_clearly_better_than_a_table_of_transitions(
    market: SyntheticMarket, careers: list[CareerHistory]
) -> None:
    counts = np.full((336, 335), 0.01)  # row 335: nothing before
    for career in make_market(SyntheticSettings(num_people=20_000, seed=6)).careers():
        visited = [335, *(market.index_of[job.occupation] for job in career.jobs)]
        np.add.at(counts, (visited[:-1], visited[1:]), 1)
    table = np.log(counts / counts.sum(axis=1, keepdims=True))
    first_order, truth = [], []
    for career in careers:
        visited = [335, *(market.index_of[job.occupation] for job in career.jobs)]
        first_order += table[visited[:-1], visited[1:]].tolist()
        truth += market.log_probabilities(career)
    assert 7 < math.exp(-np.mean(truth)) < 10
    assert math.exp(np.mean(truth) - np.mean(first_order)) > 1.15


def test_a_person_is_the_same_whoever_else_is_drawn(market: SyntheticMarket) -> None:
    many = list(market.careers(3_000))
    assert list(market.careers(10)) == many[:10]
    assert list(market.careers(1_001))[1_000] == many[1_000]
    assert list(dataclasses.replace(market, seed=6).careers(10)) != many[:10]
    assert list(make_market(SyntheticSettings(num_people=10, seed=5)).careers()) == many[:10]


def test_a_person_is_the_same_for_any_block_size(market: SyntheticMarket, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = list(market.careers(50))
    monkeypatch.setattr(market_module, "_PEOPLE_PER_BLOCK", 7)
    assert list(market.careers(50)) == usual


def test_the_stream_is_lazy_and_the_tables_are_small(market: SyntheticMarket) -> None:
    first = next(market.careers(10**9, survey="MADE"))
    assert (first.person, first.survey) == ("0000001", "MADE")
    tables = [value for field in dataclasses.fields(market) if hasattr(value := getattr(market, field.name), "nbytes")]
    assert len(tables) == 6
    assert sum(table.nbytes for table in tables) < 100e6


def test_years_follow_the_waves_and_education_never_falls(careers: list[CareerHistory]) -> None:
    for career in careers:
        years = [job.year for job in career.jobs]
        levels = [EDUCATIONS.index(job.education or "") for job in career.jobs]
        assert career.survey == "SYNTHETIC"
        assert len(years) >= 2
        assert all(one < other for one, other in itertools.pairwise(years))
        assert all(1968 <= year <= 2020 and (year <= 1996 or year % 2 == 0) for year in years)
        assert levels == sorted(levels)
    assert {job.education for career in careers for job in career.jobs} == set(EDUCATIONS)
    assert np.std([len(career.jobs) for career in careers]) > 5


CAREER = CareerHistory(
    person="1",
    survey="SYNTHETIC",
    birth_year=1960,
    gender="male",
    ethnicity=None,
    region=None,
    jobs=(Job(1980, "UNE", "high school"), Job(1981, CODES[0], "high school")),
)


@pytest.mark.parametrize(
    ("career", "error"),
    [
        (dataclasses.replace(CAREER, birth_year=None), ("data-file/no-birth-year-or-education", "birth year None")),
        (dataclasses.replace(CAREER, gender=None), ("data-file/unknown-gender", "None", "female, male")),
        (
            dataclasses.replace(CAREER, jobs=(Job(1980, "UNE"),)),
            ("data-file/no-birth-year-or-education", "education None"),
        ),
        (
            dataclasses.replace(CAREER, jobs=(Job(1980, "x", "bachelor"),)),
            ("data-file/unknown-synthetic-occupation", "'x'"),
        ),
        (dataclasses.replace(CAREER, jobs=CAREER.jobs[::-1]), ("data-file/years-out-of-order", "1980", "1981")),
    ],
)
def test_a_career_that_the_rule_cannot_judge_is_refused(
    market: SyntheticMarket, career: CareerHistory, error: tuple[str, ...]
) -> None:
    with raises(*error):
        market.log_probabilities(career)


def test_a_prediction_for_a_year_already_seen_is_refused(market: SyntheticMarket) -> None:
    with raises("data-file/year-not-after-last-job", "1981"):
        market.occupation_distribution(CAREER, year=1981, education="high school")


def test_people_and_probabilities_are_pinned_to_the_market_s_version(careers: list[CareerHistory], market) -> None:
    """Stores and true scores are found again by the version; so what changes either must raise it."""
    people = hashlib.sha256(repr(careers[:100]).encode()).hexdigest()[:16]
    total = sum(sum(market.log_probabilities(career)) for career in careers[:100])
    actual = (numbers.MARKET_VERSION, people, round(total, 4))
    assert actual == (1, "9f35a0c0ff212e0b", -4360.3531), "people or probabilities changed: raise MARKET_VERSION"
