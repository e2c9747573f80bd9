"""How often do the report's 95 % intervals contain the true number? Simulated on the synthetic labor market.

    python benchmarks/interval_coverage.py [--people 200000] [--sizes 100 400] [--draws 1000]

Two models are evaluated: the truth and a smoothed first-order model, estimated on other people. The perplexities over
all people of the market, and the models' difference in nats, are the true numbers. The people are then divided into
test sets, and each set gets the intervals that report.py would print for it. Counted is, by size of the test set,
statistic and kind of observation, the share of test sets whose interval contains the true number.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from records import Record, RecordFile

from laborllm_dist.careers.readers.synthetic.market import make_market
from laborllm_dist.careers.types import CareerHistory
from laborllm_dist.config.corpora import SyntheticSettings
from laborllm_dist.report.bootstrap import ResampledPeople, estimate, resample_means
from laborllm_dist.tables.log_domain import perplexity_of

KINDS = ("first", "moving", "staying", "all")
TRAINING_PEOPLE = 5_000
PRIOR_WEIGHT = 30.0  # observations that the marginal distribution counts for in each row of the first-order model
Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Observations:
    """Log-likelihoods of two models in nats, [2, N], with the person and the kind of each observation, [N]."""

    nats_MN: Floats
    person_N: Integers
    kind_N: Integers


def first_order_model(careers: Sequence[CareerHistory], index_of: dict[str, int]) -> Floats:
    """Return log P(occupation | previous one), [O + 1, O]; the last row is that of first observations."""
    num_titles = len(index_of)
    counts = np.zeros((num_titles + 1, num_titles))
    for career in careers:
        codes = [index_of[job.occupation] for job in career.jobs]
        np.add.at(counts, ([num_titles, *codes[:-1]], codes), 1.0)
    marginal = (counts.sum(axis=0) + 1.0) / (counts.sum() + num_titles)
    smoothed = counts + PRIOR_WEIGHT * marginal
    shares: Floats = smoothed / smoothed.sum(axis=1, keepdims=True)
    return np.asarray(np.log(shares), dtype=np.float64)


def observe(num_people: int, seed: int) -> Observations:
    """Sample people of the market and evaluate both models on them."""
    market = make_market(SyntheticSettings(num_people=TRAINING_PEOPLE + num_people, seed=seed))
    careers = market.careers()
    log_first_order = first_order_model([next(careers) for _ in range(TRAINING_PEOPLE)], market.index_of)
    truth: list[float] = []
    rows: list[tuple[int, int, int, int]] = []
    for person, career in enumerate(careers):
        truth.extend(market.log_probabilities(career))
        before = len(market.index_of)
        for place, job in enumerate(career.jobs):
            code = market.index_of[job.occupation]
            rows.append((before, code, person, 0 if place == 0 else 1 + (code == before)))
            before = code
    before_N, code_N, person_N, kind_N = np.array(rows).T
    return Observations(np.stack([np.array(truth), log_first_order[before_N, code_N]]), person_N, kind_N)


def true_means(observations: Observations) -> Floats:
    """Return the mean log-likelihood over all people, [2, kinds]."""
    kinds = [observations.kind_N == kind for kind in range(3)] + [np.ones(len(observations.kind_N), dtype=bool)]
    return np.stack([observations.nats_MN[:, chosen].mean(axis=1) for chosen in kinds], axis=1)


def covered(
    observations: Observations, first: int, end: int, num_draws: int, truth_MK: Floats
) -> npt.NDArray[np.bool_]:
    """Return whether the intervals of the test set of people [first, end) contain the true numbers, [3, kinds].

    The statistics are the perplexities of the two models, and the difference of their means.
    """
    begin, stop = np.searchsorted(observations.person_N, [first, end])
    person_N, kind_N = observations.person_N[begin:stop] - first, observations.kind_N[begin:stop]
    people = ResampledPeople(person_N, end - first, None, num_draws, seed=1 + first)
    means = resample_means(observations.nats_MN[:, begin:stop], np.stack([kind_N, np.full(len(kind_N), 3)]), people)
    result = np.zeros((3, len(KINDS)), dtype=bool)
    for kind in range(len(KINDS)):
        value_M, draws_MD, truth_M = means.sample_MG[:, kind], means.draws_MGD[:, kind], truth_MK[:, kind]
        statistics = [tuple(map(perplexity_of, each)) for each in zip(value_M, draws_MD, truth_M, strict=True)]
        statistics.append((value_M[0] - value_M[1], draws_MD[0] - draws_MD[1], truth_M[0] - truth_M[1]))
        for statistic, (value, draws, true_number) in enumerate(statistics):
            interval = estimate(float(value), draws, num_people=end - first)
            assert interval.low is not None and interval.high is not None
            result[statistic, kind] = interval.low <= true_number <= interval.high
    return result


def coverage(shares: Mapping[str, float], number: int) -> dict[str, float]:
    """Return shares in percent, each with its standard error."""
    errors = {f"{name}_standard_error": 100 * (share * (1 - share) / number) ** 0.5 for name, share in shares.items()}
    return {**{name: 100 * share for name, share in shares.items()}, **errors}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=200_000, help="people that are divided into test sets")
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 400], help="people of a test set")
    parser.add_argument("--draws", type=int, default=1_000, help="resamples of an interval")
    parser.add_argument("--seed", type=int, default=1, help="of the people")
    args = parser.parse_args()
    started = time.perf_counter()
    observations = observe(args.people, args.seed)
    truth_MK = true_means(observations)
    file = RecordFile.begin("interval-coverage", "How often the report's 95 % intervals contain the true number")
    facts = {"people": args.people, "observations": len(observations.kind_N), "seconds": time.perf_counter() - started}
    file.add(Record("simulated", "the synthetic market", numbers=facts))
    for model, name in enumerate(("the truth", "first-order")):
        perplexities = {kind: float(perplexity_of(mean)) for kind, mean in zip(KINDS, truth_MK[model], strict=True)}
        file.add(Record("perplexity", name, numbers=perplexities))
    for size in args.sizes:
        starts = range(0, args.people - size + 1, size)
        shares = np.stack([covered(observations, first, first + size, args.draws, truth_MK) for first in starts])
        share_SK, num_sets = shares.mean(axis=0), len(shares)
        part = f"coverage in %, {num_sets:,} test sets of {size} people, {args.draws:,} resamples each"
        for statistic, name in enumerate(
            ("perplexity of the truth", "perplexity of first-order", "difference in nats, paired")
        ):
            file.add(
                Record(
                    part, name, numbers=coverage(dict(zip(KINDS, share_SK[statistic].tolist(), strict=True)), num_sets)
                )
            )
    file.end()


if __name__ == "__main__":
    main()
