"""How often do the 95 % intervals of a scaling law contain the true number? Simulated sweeps, and the 4,500 starts.

    python benchmarks/law_coverage.py [--sweeps 200] [--people 300] [--draws 300]
    python benchmarks/law_coverage.py --starts tests/assets/chinchilla_points.csv

A sweep has 5 sizes x 4 shares of data and a second and third seed at the cheapest corner. The expected loss of a run is
a known additive law plus noise of its own. Test people differ in how hard they are, which moves all runs alike, and in
how hard they are for single runs. The losses and their resamples of people go through the same analysis as those of
score tables. Counted is, for each number, the share of sweeps whose interval contains the truth.

`--starts` minimizes the chinchilla objective from all 4,500 starting points of Hoffmann et al. (2022) with L-BFGS-B,
one after another, and prints the best optimum beside that of `fit_law`.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from interval_coverage import coverage
from records import Record, RecordFile
from scipy import optimize

from laborllm_dist.config.evaluation import FitLawSettings
from laborllm_dist.errors import LawError
from laborllm_dist.report.bootstrap import Estimate, ResampledPeople, resample_means
from laborllm_dist.sweeps.law import FORMS, HUBER_DELTA, fit_law
from laborllm_dist.sweeps.law_numbers import analyze_law
from laborllm_dist.sweeps.losses import SweepLosses
from laborllm_dist.sweeps.points import SweepPoint

Floats = npt.NDArray[np.float64]
SIZES = {"60k": 6e4, "200k": 2e5, "600k": 6e5, "2m": 2e6, "6m": 6e6}
SHARES = (10_000, 20_000, 40_000, 80_000)
# About what the synthetic market gives: .02 to .3 nats from the smallest to the largest run.
TRUTH = {"E": 1.9, "A": 35.0, "B": 90.0, "a": 0.5, "b": 0.6}
RUN_NOISE = 0.003  # nats: seeds, order
PERSON_LEVEL, PERSON_RUN = 0.6, 0.05  # nats: of a person's mean loss in all runs, and in each run on its own


def true_loss(num_params: npt.ArrayLike, num_observations: npt.ArrayLike, floor: float) -> Floats:
    """Return the law that sweeps are simulated from."""
    n, d = np.asarray(num_params, float), np.asarray(num_observations, float)
    loss: Floats = floor + TRUTH["A"] * n ** -TRUTH["a"] + TRUTH["B"] * d ** -TRUTH["b"]
    return loss


def sweep_points() -> tuple[SweepPoint, ...]:
    """Return the runs of a sweep: every size on every share, and two more seeds of the cheapest."""
    cheapest = (min(SIZES.items(), key=lambda each: each[1]), min(SHARES))
    cells = [(size, share, 1) for size, share in itertools.product(SIZES.items(), SHARES)]
    return tuple(
        SweepPoint(
            size=name, num_params=int(1.3 * n), num_non_embedding_params=int(n), num_observations=share,
            flops=6.0 * n * share, seed=seed,
        )
        for (name, n), share, seed in [*cells, (*cheapest, 2), (*cheapest, 3)]
    )  # fmt: skip


def simulated(
    points: tuple[SweepPoint, ...], num_people: int, draws: int, seed: int, *, is_excess: bool
) -> SweepLosses:
    """Draw runs and test people, and resample the people."""
    random = np.random.default_rng([seed, 77])
    n = [point.num_non_embedding_params for point in points]
    d = [point.num_observations for point in points]
    expected = true_loss(n, d, 0.0 if is_excess else TRUTH["E"]) + random.normal(0, RUN_NOISE, len(points))
    level = 0.0 if is_excess else random.normal(0, PERSON_LEVEL, num_people)
    loss_MN = expected[:, None] + level + random.normal(0, PERSON_RUN, (len(points), num_people))
    people = ResampledPeople(np.arange(num_people), num_people, None, draws, seed)
    means = resample_means(loss_MN, np.zeros((1, num_people), dtype=np.int64), people)
    return SweepLosses(means.sample_MG[:, 0], means.draws_MGD[:, 0].T, is_excess, num_people, num_people, (), None)


def settings_of(draws: int, seed: int) -> FitLawSettings:
    """Return the settings of a fit."""
    return FitLawSettings(
        points="simulated", output=None, form="additive", method="variable_projection", num_params="non_embedding",
        sources=None, pretrained=None, split="test", measure="title", loss="auto", baselines=(),
        bootstrap_draws=draws, seed=seed,
    )  # fmt: skip


def is_covered(estimate: Estimate, truth: float) -> bool:
    """Return whether an interval contains a number."""
    return estimate.low is not None and estimate.high is not None and estimate.low <= truth <= estimate.high


def covered(num_people: int, draws: int, seed: int, *, is_excess: bool) -> dict[str, bool]:
    """Return which intervals of a simulated sweep contain the truth."""
    points = sweep_points()
    numbers = analyze_law(
        points, simulated(points, num_people, draws, seed, is_excess=is_excess), settings_of(draws, seed)
    )
    floor = 0.0 if is_excess else TRUTH["E"]
    result = {name: is_covered(numbers.parameters[name], {**TRUTH, "E": floor}[name]) for name in TRUTH}
    assert numbers.frontier is not None
    result["power of best N"] = is_covered(numbers.frontier.exponent_n, TRUTH["b"] / (TRUTH["a"] + TRUTH["b"]))
    for budget in numbers.frontier.budgets[2:4]:
        n = np.geomspace(1e3, 1e12, 200_001)
        best = true_loss(n, budget.flops / 6 / n, floor)
        factor = budget.flops / numbers.points[-1].flops  # type: ignore[operator]
        result[f"best N at {factor:g} x FLOPs"] = is_covered(budget.num_params, float(n[best.argmin()]))
        result[f"loss at {factor:g} x FLOPs"] = is_covered(budget.loss, float(best.min()))
    large = max(SIZES.values())
    target = float(true_loss(large, max(SHARES), floor))
    for each in numbers.break_even[:2]:
        power = (target - floor - TRUTH["A"] * SIZES[each.small] ** -TRUTH["a"]) / TRUTH["B"]
        truth = power ** (-1 / TRUTH["b"]) / max(SHARES) if power > 0 else np.inf
        result[f"{each.small} = {each.large}: data x {truth:.2f}"] = is_covered(each.multiple, truth)
    assert numbers.held_out is not None
    result["largest run, held out"] = bool(numbers.held_out.is_inside)
    return result


def starts() -> Iterator[list[float]]:
    """Give the 4,500 starting points: log A, log B, log E, alpha, beta."""
    exponents, logs = (0.0, 0.5, 1.0, 1.5, 2.0), (0.0, 5.0, 10.0, 15.0, 20.0, 25.0)
    for alpha, beta, e, a, b in itertools.product(exponents, exponents, (-1.0, -0.5, 0.0, 0.5, 1.0), logs, logs):
        yield [a, b, e, alpha, beta]


def huber_of(values: Floats, log_n: Floats, log_d: Floats, log_loss: Floats) -> tuple[float, Floats]:
    """Return the chinchilla objective and its gradient, in plain N and D."""
    a, b, e, alpha, beta = values
    parts = np.stack([a - alpha * log_n, b - beta * log_d, np.full_like(log_n, e)])
    predicted = np.logaddexp.reduce(parts, axis=0)
    share = np.exp(parts - predicted)
    error = predicted - log_loss
    small = np.abs(error) <= HUBER_DELTA
    value = np.where(small, 0.5 * error**2, HUBER_DELTA * (np.abs(error) - 0.5 * HUBER_DELTA)).sum()
    slope = np.clip(error, -HUBER_DELTA, HUBER_DELTA)
    by_part = share @ slope
    return float(value), np.array([*by_part, -(share[0] * log_n) @ slope, -(share[1] * log_d) @ slope])


def compare_starts(path: Path) -> None:
    """Minimize from all starting points, and beside it by `fit_law`."""
    with path.open() as file:
        rows = [[float(row[name]) for name in ("num_params", "num_tokens", "loss")] for row in csv.DictReader(file)]
    n, d, loss = np.array(rows).T
    logs = (np.log(n), np.log(d), np.log(loss))
    begin = time.time()
    ends = [optimize.minimize(huber_of, np.array(each), args=logs, jac=True, method="L-BFGS-B") for each in starts()]
    best = min(ends, key=lambda end: float(end.fun))
    best = optimize.minimize(huber_of, best.x, args=logs, jac=True, method="BFGS", options={"gtol": 1e-12})
    print(f"{len(ends):,} starts of L-BFGS-B, the best polished by BFGS ({time.time() - begin:.0f} s): {best.fun:.12f}")
    print(f"  A {np.exp(best.x[0]):.3f}  B {np.exp(best.x[1]):.3f}  E {np.exp(best.x[2]):.6f}  "
          f"a {best.x[3]:.6f}  b {best.x[4]:.6f}")  # fmt: skip
    near = sum(float(end.fun) < best.fun * 1.001 for end in ends)
    print(f"  {near:,} of the starts end within 0.1 % of the lowest sum")
    begin = time.time()
    fits = fit_law(FORMS["additive"], n, d, loss[None], method="chinchilla")
    print(f"fit_law ({time.time() - begin:.1f} s): {fits.objective_F[0]:.12f}")
    print("  " + "  ".join(f"{name} {float(value[0]):.6g}" for name, value in fits.parameters().items()))


def main() -> None:
    """Simulate, and count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, default=200)
    parser.add_argument("--people", type=int, default=300)
    parser.add_argument("--draws", type=int, default=300)
    parser.add_argument("--starts", type=Path)
    arguments = parser.parse_args()
    if arguments.starts is not None:
        compare_starts(arguments.starts)
        return
    file = RecordFile.begin("law-coverage", "How often 95 % intervals of the scaling law contain the true number")
    for is_excess in (False, True):
        results, refused = [], 0
        for seed in range(arguments.sweeps):
            try:
                results.append(covered(arguments.people, arguments.draws, seed, is_excess=is_excess))
            except LawError as error:
                refused += 1
                print(error.labeled())
        name = "excess over the truth" if is_excess else "nats per observation"
        part = (
            f"{name}, {len(results)} sweeps of {len(sweep_points())} runs, {arguments.people:,} people, "
            f"{arguments.draws:,} draws, {refused} refused"
        )
        for number in results[0] if results else ():
            share = float(np.mean([result[number] for result in results]))
            file.add(Record(part, number, numbers=coverage({"covered_%": share}, len(results))))
    file.end()


if __name__ == "__main__":
    main()
