"""The titles of the synthetic labor market (335) and the numbers of its transition rule.

A title is a rank word and a trade, such as "Senior welding technicians"; trades of a family share their last word.
So titles show which occupations belong to a family. No title is a prefix of another, so the probability of a title's
text is at most that of the title.

The rule. Given the occupation i held at the last observation, tenure t (observations in a row in i so far), education
e (0..4), decade of birth c (0: 1940s .. 4: 1980s), age class a (under 20, 25, 40, above), years g since the last:

    odds of staying in i   = exp(hold_i + by_tenure log(1 + t) + by_education (e - 2) + by_decade (c - 2) + by_age_a
                                 - GAP_COST min(g - 1, 3)), with one set of coefficients for occupations, one a state
    P(j | moving from i)   ~ attraction[e, c, a, j] * affinity[t, i, j] over all j but i
    P(j | nothing before)  ~ attraction[e, c, a, j] * entry[gender, j]

    log attraction of an occupation = popularity - SCHOOLING_FIT / 2 (e - need)^2 + (c - 2) (FAMILY_TREND trend
                                      + TRADE_TREND (number of the trade in its family - 1.5))
    log attraction of a state       = base + by_education (e - 2) + by_decade (c - 2) + by_age_a
    log affinity = SAME_FAMILY or NEXT_FAMILY; within a trade PROMOTION[t] one rank up, DEMOTION[t] one rank down

Attractions are low-rank and smooth by design, so that a small model that reads the titles can approach the truth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from laborllm_dist.careers.types import OccupationVocabulary

# Shapes: S strata (education, decade, age class), O occupations, T tenures, G genders.
Floats = NDArray[np.float64]

MARKET_VERSION = 1  # of people and probabilities: raise it when either changes (test_synthetic.py pins both)
EDUCATIONS = ("less than high school", "high school", "some college", "bachelor", "graduate degree")
GENDERS = ("female", "male")

NUM_RANKS = 4
CRAFT = ("Apprentice", "", "Senior", "Master")
SERVICE = ("Trainee", "", "Senior", "Lead")
PROFESSION = ("Assistant", "", "Senior", "Chief")
STATE_TITLES = ("Unemployed", "Not in labor force", "Education")
STATE_CODES = ("UNE", "NLF", "EDU")


@dataclass(frozen=True, slots=True)
class Family:
    """Trades that share a kind of work; neighboring families are close, as are the last and the first.

    `schooling` is the fitting level of education (0 less than high school .. 4 graduate degree), `trend` the growth of
    log attractiveness per decade of birth, `lean` the log attractiveness for women beginning work (minus for men).
    """

    schooling: float
    trend: float
    lean: float
    rank_words: tuple[str, str, str, str]
    trades: tuple[str, ...]


FAMILIES = (
    Family(
        0.0, -0.5, -0.5, SERVICE, ("crop farm hands", "dairy farm hands", "orchard farm hands", "stable farm hands")
    ),
    Family(0.6, -0.1, -1.0, CRAFT, ("roof builders", "road builders", "chimney builders", "scaffold builders")),
    Family(
        1.2, -0.7, -0.9, CRAFT, ("welding technicians", "casting technicians", "boiler technicians", "tool technicians")
    ),
    Family(
        0.4, -0.9, -0.1, SERVICE, ("press operators", "loom operators", "kiln operators", "bottling line operators")
    ),
    Family(1.3, -0.2, -1.0, CRAFT, ("engine mechanics", "brake mechanics", "aircraft mechanics", "pump mechanics")),
    Family(3.4, 0.2, -0.8, PROFESSION, ("bridge engineers", "mining engineers", "circuit engineers")),
    Family(
        3.0,
        1.0,
        -0.4,
        PROFESSION,
        ("database programmers", "network programmers", "graphics programmers", "game programmers"),
    ),
    Family(
        3.6,
        0.3,
        0.1,
        PROFESSION,
        ("soil lab analysts", "blood lab analysts", "paint lab analysts", "food lab analysts"),
    ),
    Family(2.6, 0.5, 1.0, PROFESSION, ("surgery nurses", "clinic nurses", "trauma nurses", "school nurses")),
    Family(
        1.0, 0.7, 0.9, SERVICE, ("nursery care aides", "home care aides", "hospital care aides", "hospice care aides")
    ),
    Family(
        4.0,
        0.4,
        0.5,
        PROFESSION,
        ("family counselors", "career counselors", "addiction counselors", "housing counselors"),
    ),
    Family(
        3.9, -0.2, 0.7, PROFESSION, ("music teachers", "history teachers", "mathematics teachers", "language teachers")
    ),
    Family(
        3.1, 0.0, 0.0, PROFESSION, ("tax accountants", "cost accountants", "trust accountants", "estate accountants")
    ),
    Family(
        1.9,
        -0.6,
        0.9,
        PROFESSION,
        ("billing office clerks", "payroll office clerks", "records office clerks", "mail office clerks"),
    ),
    Family(
        1.4,
        0.2,
        0.3,
        SERVICE,
        ("shoe sales clerks", "furniture sales clerks", "grocery sales clerks", "hardware sales clerks"),
    ),
    Family(1.2, 0.4, 1.0, CRAFT, ("hair stylists", "bridal stylists", "wig stylists", "window display stylists")),
    Family(0.5, 0.5, 0.0, SERVICE, ("canteen cooks", "bakery cooks", "hotel cooks", "banquet cooks")),
    Family(0.0, 0.1, 0.6, SERVICE, ("office cleaners", "hotel cleaners", "window cleaners", "laundry cleaners")),
    Family(1.6, 0.3, -0.6, SERVICE, ("prison guards", "bank guards", "museum guards", "harbor guards")),
    Family(
        0.5,
        0.4,
        -0.5,
        SERVICE,
        ("parcel stock handlers", "freight stock handlers", "grain stock handlers", "fuel stock handlers"),
    ),
    Family(0.8, -0.1, -0.8, SERVICE, ("truck drivers", "bus drivers", "tram drivers", "delivery van drivers")),
)

FIRST_DECADE, NUM_DECADES = 1940, 5
AGE_BOUNDS = (20, 25, 40)
NUM_AGE_CLASSES = len(AGE_BOUNDS) + 1
TENURE_CAP = 40  # longer tenures count as this one
TENURE_BOUNDS = (2, 4)  # three classes of tenure for affinity: 1, 2 to 3, 4 and more
GAP_CAP = 4


@dataclass(frozen=True, slots=True)
class Slope:
    """Coefficients of one log odds: a base, a slope on education - 2 and on decade - 2, one value per age class."""

    base: float
    by_education: float
    by_decade: float
    by_age: tuple[float, float, float, float]
    by_tenure: float = 0.0


# Order of the states: Unemployed, Not in labor force, Education.
HOLD_OCCUPATION = Slope(-2.1, 0.35, -0.40, (-0.5, -0.2, 0.0, 0.2), by_tenure=2.1)
HOLD_STATES = (
    Slope(-1.6, -0.35, 0.10, (0.0, 0.0, 0.0, 0.2), by_tenure=0.5),
    Slope(-1.0, -0.30, -0.20, (-0.8, -0.3, 0.0, 0.6), by_tenure=1.3),
    Slope(0.6, 0.10, 0.30, (1.0, 0.2, -0.8, -1.5), by_tenure=-0.3),
)
PULL_STATES = (
    Slope(3.7, -0.40, 0.10, (0.3, 0.2, 0.0, -0.2)),
    Slope(3.5, -0.40, -0.25, (0.2, 0.0, 0.0, 0.5)),
    Slope(2.0, 0.20, 0.20, (2.6, 1.4, -0.6, -2.5)),
)
FAMILY_HOLD_SPREAD, RANK_HOLD = 0.8, (-0.5, 0.1, 0.2, 0.3)
GAP_COST = 0.45
TRADE_POPULARITY_SPREAD, RANK_POPULARITY, RANK_NEED = 2.0, (0.2, 0.6, 0.0, -0.4), (-0.5, 0.0, 0.4, 0.8)
SCHOOLING_FIT, FAMILY_TREND, TRADE_TREND = 1.5, 1.0, 0.5  # later trades of a family are younger ones
SAME_FAMILY, NEXT_FAMILY = 4.2, 2.0
PROMOTION, DEMOTION = (0.5, 2.0, 3.6), (0.8, -0.2, -1.2)  # by class of tenure
ENTRY_BY_RANK, ENTRY_BY_GENDER = (1.2, 0.0, -1.5, -3.0), 1.3
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True, slots=True)
class Place:
    """The place of an occupation: its family, the number of its trade in the family and its rank, 0 to 3."""

    family: int
    trade: int
    rank: int


def places() -> tuple[Place, ...]:
    """Return the place of every occupation in the order of the vocabulary, without the three states."""
    return tuple(
        Place(number, trade, rank)
        for number, family in enumerate(FAMILIES)
        for trade in range(len(family.trades))
        for rank in range(NUM_RANKS)
    )


def synthetic_vocabulary() -> OccupationVocabulary:
    """Return the 335 occupations of the synthetic labor market: 332 titles, then the three states."""
    codes: list[str] = []
    titles: list[str] = []
    for place in places():
        family = FAMILIES[place.family]
        title = f"{family.rank_words[place.rank]} {family.trades[place.trade]}".strip()
        titles.append(title[0].upper() + title[1:])
        codes.append(f"{place.family + 1:02d}{place.trade + 1:02d}{place.rank + 1}")
    return OccupationVocabulary(codes=(*codes, *STATE_CODES), titles=(*titles, *STATE_TITLES))


def _golden(number: int) -> float:
    """Return a number from -1/2 to 1/2 of a low-discrepancy sequence (multiples of an irrational ratio)."""
    return number * _GOLDEN % 1.0 - 0.5


def stratum_of(education: int, birth_year: int, year: int) -> int:
    """Return the stratum of a person in a year."""
    decade = min(max((birth_year - FIRST_DECADE) // 10, 0), NUM_DECADES - 1)
    age_class = sum(year - birth_year >= bound for bound in AGE_BOUNDS)
    return (education * NUM_DECADES + decade) * NUM_AGE_CLASSES + age_class


def _slope_S(slope: Slope) -> Floats:
    educations, decades, ages = np.indices((len(EDUCATIONS), NUM_DECADES, NUM_AGE_CLASSES)).reshape(3, -1)
    by_education_S = slope.by_education * (educations - 2)
    return np.asarray(by_education_S + slope.by_decade * (decades - 2) + np.array(slope.by_age)[ages], dtype=np.float64)


def stay_factors() -> tuple[Floats, Floats, Floats]:
    """Return the factors of the odds of staying: [O, T] by tenure, [O, S] by stratum, [gap] by years since the last."""
    bases = [
        (HOLD_OCCUPATION, HOLD_OCCUPATION.base + FAMILY_HOLD_SPREAD * _golden(place.family) + RANK_HOLD[place.rank])
        for place in places()
    ]
    bases += [(slope, slope.base) for slope in HOLD_STATES]
    log_tenure_T = np.log1p(np.arange(TENURE_CAP + 1))
    by_tenure_OT = np.array([base + slope.by_tenure * log_tenure_T for slope, base in bases])
    by_stratum_OS = np.array([_slope_S(slope) for slope, _ in bases])
    by_gap = np.array([-GAP_COST * max(gap - 1, 0) for gap in range(GAP_CAP + 1)])
    return np.exp(by_tenure_OT), np.exp(by_stratum_OS), np.exp(by_gap)


def attractions() -> Floats:
    """Return how much every occupation attracts the people of a stratum, [S, O]."""
    educations, decades, _ = np.indices((len(EDUCATIONS), NUM_DECADES, NUM_AGE_CLASSES)).reshape(3, -1)
    columns: list[Floats] = []
    for place in places():
        family = FAMILIES[place.family]
        popularity = TRADE_POPULARITY_SPREAD * _golden(4 * place.family + place.trade) + RANK_POPULARITY[place.rank]
        trend = FAMILY_TREND * family.trend + TRADE_TREND * (place.trade - 1.5)
        misfit_S = educations - family.schooling - RANK_NEED[place.rank]
        columns.append(popularity - SCHOOLING_FIT / 2 * misfit_S**2 + trend * (decades - 2))
    columns += [slope.base + _slope_S(slope) for slope in PULL_STATES]
    return np.exp(np.stack(columns, axis=1))


def affinities() -> Floats:
    """Return how close every occupation is to every other after a tenure, [class of tenure, O, O]; 0 to itself."""
    family_P, trade_P, rank_P = np.array([(place.family, place.trade, place.rank) for place in places()]).T
    distance_PP = np.abs(family_P[:, None] - family_P)
    distance_PP = np.minimum(distance_PP, len(FAMILIES) - distance_PP)  # the families form a ring
    by_family_PP = np.select([distance_PP == 0, distance_PP == 1], [SAME_FAMILY, NEXT_FAMILY], 0.0)
    is_same_trade_PP = (distance_PP == 0) & (trade_P[:, None] == trade_P)
    steps_PP = np.where(is_same_trade_PP, rank_P - rank_P[:, None], 0)  # up by 1: a promotion
    num_places, num_occupations = len(family_P), len(family_P) + len(STATE_CODES)
    log_affinity_TOO = np.zeros((len(PROMOTION), num_occupations, num_occupations))
    for tenure, (promotion, demotion) in enumerate(zip(PROMOTION, DEMOTION, strict=True)):
        by_step_PP = np.select([steps_PP == 1, steps_PP == -1], [promotion, demotion], 0.0)
        log_affinity_TOO[tenure, :num_places, :num_places] = by_family_PP + by_step_PP
    affinity_TOO = np.exp(log_affinity_TOO)
    affinity_TOO[:, np.arange(num_occupations), np.arange(num_occupations)] = 0.0
    return affinity_TOO


def entries() -> Floats:
    """Return how much every occupation attracts people in their first observation, by gender, [G, O]."""
    by_rank = np.array([ENTRY_BY_RANK[place.rank] for place in places()])
    lean = np.array([FAMILIES[place.family].lean for place in places()])
    states = np.zeros(len(STATE_CODES))
    return np.exp([np.append(by_rank + sign * ENTRY_BY_GENDER * lean, states) for sign in (1, -1)])
