"""A synthetic labor market with known probabilities: it samples careers, and gives the probability of every job.

The best possible perplexity of a real survey is unknown. Here it is known, so a report can show how far a model is from
the truth. The market is always the same; the seed only determines which people are sampled. Person i depends on
(seed, i) alone: the 132 uniform numbers of person i are draws 132 i .. 132 i + 131 of one counter-based generator, and
the result does not depend on the other people in the block.

titles.py has the rule and its numbers. Education does not depend on occupations: it is an attribute of the year, as in
the template.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from laborllm_dist.careers.person_records import PersonThunk
from laborllm_dist.careers.readers.reader import Reader, SourceTerms, as_people
from laborllm_dist.careers.readers.synthetic.titles import (
    AGE_BOUNDS,
    EDUCATIONS,
    FIRST_DECADE,
    GAP_CAP,
    GENDERS,
    MARKET_VERSION,
    NUM_AGE_CLASSES,
    NUM_DECADES,
    TENURE_BOUNDS,
    TENURE_CAP,
    Floats,
    affinities,
    attractions,
    entries,
    stay_factors,
    stratum_of,
    synthetic_vocabulary,
)
from laborllm_dist.careers.types import CareerHistory, Job, OccupationVocabulary
from laborllm_dist.config.corpora import SyntheticSettings
from laborllm_dist.errors import DataFileError
from laborllm_dist.randomness import stream

# Shapes: P people of a block, W waves, S strata (education, decade, age class), O occupations, T tenures, G genders.
Indices = NDArray[np.int64]

ETHNICITIES = ("white", "black or african american", "hispanic or latino", "asian or pacific islander")
REGIONS = ("northeast", "north central", "south", "west")
ETHNICITY_SHARES = (0.60, 0.22, 0.13, 0.05)
REGION_SHARES = (0.18, 0.25, 0.37, 0.20)
# The highest level a person reaches, by decade of birth; the age at which a level is reached at the earliest.
EDUCATION_SHARES = (
    (0.25, 0.37, 0.18, 0.12, 0.08),
    (0.18, 0.35, 0.23, 0.15, 0.09),
    (0.13, 0.32, 0.26, 0.19, 0.10),
    (0.09, 0.27, 0.28, 0.24, 0.12),
    (0.07, 0.22, 0.28, 0.28, 0.15),
)
EDUCATION_AGES = (18, 20, 22, 25)

FIRST_BIRTH_YEAR, LAST_BIRTH_YEAR = 1948, 1982
YOUNGEST_ENTRY, OLDEST_ENTRY = 16, 22
WAVES = (*range(1968, 1997), *range(1998, 2021, 2))  # yearly, later every second year
ATTRITION = 0.27  # share of the possible waves before a person leaves the survey: uniform ** ATTRITION
MISSED = 0.03  # chance that a wave after the second one is missed
_PEOPLE_PER_BLOCK = 1_000
_NUM_FACTS = 9  # uniforms of a person before those of the waves; 8 used, the ninth makes 132 a multiple of 4
_DRAWS_PER_PERSON = _NUM_FACTS + 3 * len(WAVES)


@dataclass(frozen=True, slots=True)
class SyntheticMarket:
    """The tables of the rule, and the seed of the sampled people; made by `make_market`."""

    seed: int
    num_people: int
    vocabulary: OccupationVocabulary
    index_of: dict[str, int]
    hold_OT: Floats  # factors of the odds of staying
    hold_OS: Floats
    hold_gap: Floats
    attraction_SO: Floats
    affinity_TOO: Floats  # by class of tenure, from, to; 0 from an occupation to itself
    entry_GO: Floats

    def careers(self, num_people: int | None = None, *, survey: str = "SYNTHETIC") -> Iterator[CareerHistory]:
        """Yield the first `num_people` people (default: as in the settings), holding one block of them at a time."""
        num_people = self.num_people if num_people is None else num_people
        jobs = _all_jobs(self.vocabulary.codes)
        for first in range(0, num_people, _PEOPLE_PER_BLOCK):
            yield from self._block(range(first, min(first + _PEOPLE_PER_BLOCK, num_people)), jobs, survey)

    def log_probabilities(self, career: CareerHistory) -> list[float]:
        """Return log P of every occupation given the previous ones and the covariates of its year, in nats.

        Raises:
            DataFileError: if the career lacks a covariate that the rule needs, or has an unknown value.
        """
        tenures = self._tenures(career)
        log_probabilities: list[float] = []
        for number, job in enumerate(career.jobs):
            stratum = _stratum(career, job.year, job.education)
            after = self._index(career, job.occupation)
            if number == 0:
                weights = self.attraction_SO[stratum] * self.entry_GO[_gender(career)]
                log_probabilities.append(math.log(weights[after] / weights.sum()))
                continue
            before = self._index(career, career.jobs[number - 1].occupation)
            tenure = tenures[number - 1]
            odds = self._stay_odds(before, tenure, stratum, job.year - career.jobs[number - 1].year)
            if after == before:
                log_probabilities.append(-math.log1p(1.0 / odds))
            else:
                weights = self.attraction_SO[stratum] * self.affinity_TOO[_tenure_class(tenure), before]
                log_probabilities.append(math.log(weights[after] / weights.sum()) - math.log1p(odds))
        return log_probabilities

    def occupation_distribution(self, prefix: CareerHistory, *, year: int, education: str) -> Floats:
        """Return the probability of every occupation, [O], for the observation in `year` after the jobs of `prefix`.

        Raises:
            DataFileError: as in `log_probabilities`; also if `year` is not after the last job.
        """
        tenures = self._tenures(prefix)
        stratum = _stratum(prefix, year, education)
        if not prefix.jobs:
            weights = self.attraction_SO[stratum] * self.entry_GO[_gender(prefix)]
            return np.asarray(weights / weights.sum(), dtype=np.float64)
        last = prefix.jobs[-1]
        if year <= last.year:
            raise DataFileError(
                f"person {prefix.person!r}: year {year} is not after the last job, of {last.year}",
                code="year-not-after-last-job",
            )
        before = self._index(prefix, last.occupation)
        odds = self._stay_odds(before, tenures[-1], stratum, year - last.year)
        weights = self.attraction_SO[stratum] * self.affinity_TOO[_tenure_class(tenures[-1]), before]
        distribution = weights / (weights.sum() * (1.0 + odds))
        distribution[before] = odds / (1.0 + odds)
        return np.asarray(distribution, dtype=np.float64)

    def _stay_odds(self, before: int, tenure: int, stratum: int, gap: int) -> float:
        factors = self.hold_OT[before, min(tenure, TENURE_CAP)] * self.hold_OS[before, stratum]
        return float(factors * self.hold_gap[min(gap, GAP_CAP)])

    def _index(self, career: CareerHistory, code: str) -> int:
        if code not in self.index_of:
            raise DataFileError(
                f"person {career.person!r}: occupation {code!r} is not one of the made labor market",
                code="unknown-synthetic-occupation",
            )
        return self.index_of[code]

    def _tenures(self, career: CareerHistory) -> list[int]:
        """Return the tenure of each job: the number of consecutive observations in its occupation up to it."""
        tenures: list[int] = []
        for number, job in enumerate(career.jobs):
            before = career.jobs[number - 1] if number else None
            if before is not None and job.year <= before.year:
                raise DataFileError(
                    f"person {career.person!r}: year {job.year} comes after {before.year}", code="years-out-of-order"
                )
            tenures.append(tenures[-1] + 1 if before is not None and before.occupation == job.occupation else 1)
        return tenures

    def _block(self, people: range, jobs: Sequence[Job], survey: str) -> Iterator[CareerHistory]:
        uniforms = person_uniforms(self.seed, people)
        birth_years = FIRST_BIRTH_YEAR + _chosen_evenly(uniforms[:, 3], LAST_BIRTH_YEAR + 1 - FIRST_BIRTH_YEAR)
        genders = _chosen_evenly(uniforms[:, 0], len(GENDERS))
        educations_PW = _educations(uniforms, birth_years)
        observed_PW = _observed(uniforms, birth_years)
        occupations_PW = self._occupations(uniforms, observed_PW, genders, _strata(birth_years, educations_PW))
        at_person, at_wave = np.nonzero(observed_PW)
        of_job = (at_wave * len(self.vocabulary) + occupations_PW[at_person, at_wave]) * len(EDUCATIONS)
        job_numbers = (of_job + educations_PW[at_person, at_wave]).tolist()
        ends = np.cumsum(observed_PW.sum(axis=1)).tolist()
        ethnicities = _chosen(np.array(ETHNICITY_SHARES), uniforms[:, 1]).tolist()
        regions = _chosen(np.array(REGION_SHARES), uniforms[:, 2]).tolist()
        facts = zip(people, birth_years.tolist(), genders.tolist(), ethnicities, regions, ends, strict=True)
        begin = 0
        for person, birth_year, gender, ethnicity, region, end in facts:
            yield CareerHistory(
                person=f"{person + 1:07d}",
                survey=survey,
                birth_year=birth_year,
                gender=GENDERS[gender],
                ethnicity=ETHNICITIES[ethnicity],
                region=REGIONS[region],
                jobs=tuple([jobs[number] for number in job_numbers[begin:end]]),
            )
            begin = end

    def _occupations(
        self, uniforms: Floats, observed_PW: NDArray[np.bool_], genders: Indices, strata_PW: Indices
    ) -> Indices:
        """Return the occupation of every person and wave, [P, W]; 0 if the person was not observed."""
        occupations_PW = np.zeros(observed_PW.shape, dtype=np.int64)
        current, tenure, last_year = (np.zeros(len(genders), dtype=np.int64) for _ in range(3))
        for wave, year in enumerate(WAVES):
            seen = observed_PW[:, wave]
            strata, old = strata_PW[:, wave], np.flatnonzero(seen & (tenure > 0))
            factors = (
                self.hold_OT[current[old], np.minimum(tenure[old], TENURE_CAP)]
                * self.hold_OS[current[old], strata[old]]
            )
            odds = factors * self.hold_gap[np.minimum(year - last_year[old], GAP_CAP)]
            stays = uniforms[old, _NUM_FACTS + len(WAVES) + wave] < odds / (1.0 + odds)
            movers, new = old[~stays], np.flatnonzero(seen & (tenure == 0))
            where_to = uniforms[:, _NUM_FACTS + 2 * len(WAVES) + wave]
            affinity_PO = self.affinity_TOO[
                np.searchsorted(TENURE_BOUNDS, tenure[movers], side="right"), current[movers]
            ]
            tenure[old[stays]] += 1
            current[movers] = _chosen(self.attraction_SO[strata[movers]] * affinity_PO, where_to[movers])
            current[new] = _chosen(self.attraction_SO[strata[new]] * self.entry_GO[genders[new]], where_to[new])
            tenure[movers], tenure[new] = 1, 1
            last_year[seen] = year
            occupations_PW[seen, wave] = current[seen]
        return occupations_PW


@functools.cache
def _all_jobs(codes: tuple[str, ...]) -> tuple[Job, ...]:
    """Return all 68,675 possible jobs; careers share these objects, which saves most of the time and memory."""
    return tuple(Job(year, code, level) for year in WAVES for code in codes for level in EDUCATIONS)


def make_market(settings: SyntheticSettings) -> SyntheticMarket:
    """Return the synthetic labor market with the people of `settings.seed`."""
    vocabulary = synthetic_vocabulary()
    hold_OT, hold_OS, hold_gap = stay_factors()
    return SyntheticMarket(
        seed=settings.seed,
        num_people=settings.num_people,
        vocabulary=vocabulary,
        index_of=vocabulary.index_of(),
        hold_OT=hold_OT,
        hold_OS=hold_OS,
        hold_gap=hold_gap,
        attraction_SO=attractions(),
        affinity_TOO=affinities(),
        entry_GO=entries(),
    )


def person_uniforms(seed: int, people: range) -> Floats:
    """Return the uniform numbers of each person, [P, 132]: a fixed section of the seed's stream per person."""
    draws = stream(seed, "careers", start=people.start * _DRAWS_PER_PERSON)
    return draws.random((len(people), _DRAWS_PER_PERSON))


def _chosen(weights: Floats, uniforms: Floats) -> Indices:
    """Sample an index for each uniform number, with probabilities proportional to the weights, [O] or [P, O]."""
    cumulative = np.cumsum(weights, axis=-1)
    # 1 - uniform is in (0, 1], so the sampled index is never past the end and never has weight 0.
    targets = (1.0 - uniforms) * cumulative[..., -1]
    return np.asarray((cumulative < targets[:, None]).sum(axis=-1), dtype=np.int64)


def _chosen_evenly(uniforms: Floats, num_choices: int) -> Indices:
    return (uniforms * num_choices).astype(np.int64)


def _educations(uniforms: Floats, birth_years: Indices) -> Indices:
    """Return the level of education of every person and wave, [P, W]; it never falls."""
    highest = _chosen(np.array(EDUCATION_SHARES)[_decade(birth_years)], uniforms[:, 5])
    delays = (6 * uniforms[:, 6] ** 4).astype(np.int64)  # most people are not late
    ages_PW = np.array(WAVES) - (birth_years + delays)[:, None]
    levels_PW = np.searchsorted(EDUCATION_AGES, ages_PW, side="right")
    return np.asarray(np.minimum(levels_PW, highest[:, None]), dtype=np.int64)


def _observed(uniforms: Floats, birth_years: Indices) -> NDArray[np.bool_]:
    """Return whether a person was interviewed in a wave, [P, W]; the first two waves after entry never fail."""
    entry_years = birth_years + YOUNGEST_ENTRY + _chosen_evenly(uniforms[:, 4], OLDEST_ENTRY + 1 - YOUNGEST_ENTRY)
    first_waves = np.searchsorted(WAVES, entry_years)
    possible = len(WAVES) - first_waves
    lengths = np.maximum(2, np.ceil(possible * uniforms[:, 7] ** ATTRITION).astype(np.int64))
    since_PW = np.arange(len(WAVES)) - first_waves[:, None]
    answered_PW = (uniforms[:, _NUM_FACTS : _NUM_FACTS + len(WAVES)] >= MISSED) | (since_PW < 2)
    return np.asarray((since_PW >= 0) & (since_PW < lengths[:, None]) & answered_PW)


def _decade(birth_years: Indices) -> Indices:
    return np.clip((birth_years - FIRST_DECADE) // 10, 0, NUM_DECADES - 1)


def _strata(birth_years: Indices, educations_PW: Indices) -> Indices:
    age_classes_PW = np.searchsorted(AGE_BOUNDS, np.array(WAVES) - birth_years[:, None], side="right")
    return (educations_PW * NUM_DECADES + _decade(birth_years)[:, None]) * NUM_AGE_CLASSES + age_classes_PW


def _stratum(career: CareerHistory, year: int, education: str | None) -> int:
    if career.birth_year is None or education not in EDUCATIONS:
        raise DataFileError(
            f"person {career.person!r}, {year}: birth year {career.birth_year}, education {education!r}; the made "
            f"labor market needs a birth year and one of: {', '.join(EDUCATIONS)}",
            code="no-birth-year-or-education",
        )
    return stratum_of(EDUCATIONS.index(education), career.birth_year, year)


def _gender(career: CareerHistory) -> int:
    if career.gender not in GENDERS:
        raise DataFileError(
            f"person {career.person!r}: gender {career.gender!r}; expected one of: {', '.join(GENDERS)}",
            code="unknown-gender",
        )
    return GENDERS.index(career.gender)


def _tenure_class(tenure: int) -> int:
    return sum(tenure >= bound for bound in TENURE_BOUNDS)


def _people(settings: SyntheticSettings, survey: str) -> Iterator[PersonThunk]:
    return as_people(make_market(settings).careers(settings.num_people, survey=survey))


SYNTHETIC: Reader[SyntheticSettings] = Reader(
    people=_people,
    vocabulary=lambda _: synthetic_vocabulary(),
    version=lambda: f"market {MARKET_VERSION}",
    terms=SourceTerms(
        title="Synthetic labor market",
        access="Generated by this software; the settings and the seed determine it.",
        rights="No real person is in it, and nothing restricts its use.",
        citation="None needed.",
        may_be_shared=True,
    ),
)
