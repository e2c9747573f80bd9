"""Numbers of a law against hand-made sweeps: noise, choice of form, prediction, frontier, break-even, refusals."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from helpers.errors import raises
from helpers.scores import KEYS, write_scores
from scipy import optimize

from laborllm_dist.config.evaluation import FitLawSettings
from laborllm_dist.report.load import ScoreFile
from laborllm_dist.sweeps.law import FORMS, FloatArray, FormName
from laborllm_dist.sweeps.law_identification import LawData, determines
from laborllm_dist.sweeps.law_numbers import analyze_law
from laborllm_dist.sweeps.law_results import LawNumbers
from laborllm_dist.sweeps.losses import BaselineLoss, SweepLosses, choose_family, read_losses
from laborllm_dist.sweeps.points import SweepPoint
from laborllm_dist.tables.parquet import ScoreTableInfo

SIZES = {"60k": 60_000, "250k": 250_000, "1m": 1_000_000, "4m": 4_000_000}
SHARES = (10_000, 20_000, 40_000, 80_000)
E, A, B, a, b = 1.9, 35.0, 90.0, 0.5, 0.6


def law(n: float, d: float) -> float:
    return float(E + A * n**-a + B * d**-b)


def settings(**changes: Any) -> FitLawSettings:
    values: dict[str, Any] = {
        "points": "points.csv", "output": None, "form": "auto", "method": "variable_projection",
        "num_params": "non_embedding", "sources": None, "pretrained": None, "split": "test", "measure": "title",
        "loss": "auto", "baselines": (), "bootstrap_draws": 60, "seed": 1, "figure_formats": ("png",),
    }  # fmt: skip
    return FitLawSettings(**{**values, **changes})


def point(size: str, share: int, loss: float | None = None, **changes: Any) -> SweepPoint:
    n = SIZES[size]
    facts: dict[str, Any] = {
        "size": size, "num_params": 2 * n, "num_non_embedding_params": n, "num_observations": share,
        "flops": 6.0 * n * share, "nats_per_observation": law(n, share) if loss is None else loss,
    }  # fmt: skip
    return SweepPoint(**{**facts, **changes})


def grid(**changes: Any) -> list[SweepPoint]:
    return [point(size, share, **changes) for size, share in itertools.product(SIZES, SHARES)]


def noisy(points: Sequence[SweepPoint], spread: float, seed: int = 1) -> list[SweepPoint]:
    noise = np.random.default_rng(seed).normal(0, spread, len(points))
    return [
        dataclasses.replace(each, nats_per_observation=(each.nats_per_observation or 0) + float(more))
        for each, more in zip(points, noise, strict=True)
    ]


def analyzed(points: Sequence[SweepPoint], **changes: Any) -> LawNumbers:
    chosen = settings(**changes)
    family = choose_family(points, chosen)
    return analyze_law(family, read_losses(family, chosen), chosen)


def test_a_sweep_without_noise_gives_the_law_and_what_follows_from_it() -> None:
    numbers = analyzed(grid())
    assert numbers.form == "additive"
    for name, value in {"E": E, "A": A, "B": B, "a": a, "b": b}.items():
        assert numbers.parameters[name].value == pytest.approx(value, rel=1e-6)
    # N is twice as large with embeddings: A grows by 2 ** a, nothing else changes.
    assert numbers.parameters_other_count["A"] == pytest.approx(A * 2**a, rel=1e-6)
    assert numbers.parameters_other_count["b"] == pytest.approx(b, rel=1e-6)
    assert numbers.held_out is not None
    assert (numbers.held_out.size, numbers.held_out.num_observations, numbers.held_out.num_left_out) == (
        "4m",
        80_000,
        4,
    )
    assert numbers.held_out.predicted.value == pytest.approx(law(4e6, 8e4), abs=1e-7)
    frontier = numbers.frontier
    assert frontier is not None
    assert (frontier.factor, frontier.power_n, frontier.power_d) == pytest.approx((6, 1, 1), rel=1e-9)
    assert frontier.exponent_n.value == pytest.approx(b / (a + b), rel=1e-6)
    for budget in frontier.budgets:  # by a search over log N
        best = optimize.minimize_scalar(
            lambda log_n, flops=budget.flops: law(math.exp(log_n), flops / 6 / math.exp(log_n)), bounds=(5, 30),
            method="bounded", options={"xatol": 1e-9},
        )  # fmt: skip
        assert math.log(budget.num_params.value) == pytest.approx(best.x, abs=1e-4)
        assert budget.loss.value == pytest.approx(best.fun, abs=1e-9)
        assert 6 * budget.num_params.value * budget.num_observations.value == pytest.approx(budget.flops, rel=1e-9)
    by_size = {each.small: each for each in numbers.break_even}
    data = optimize.brentq(lambda d: law(1e6, d) - law(4e6, 8e4), 1e4, 1e9)
    assert by_size["1m"].multiple.value == pytest.approx(data / 8e4, rel=1e-5)
    assert by_size["60k"].multiple.value == math.inf  # E + A N^-a of 60k is above the loss of 4m


@pytest.mark.parametrize(
    ("form", "true_loss"),
    [
        ("additive", law),
        ("multiplicative", lambda n, d: E + 900.0 * n**-0.3 * d**-0.2),
        ("rectified", lambda n, d: E + 900.0 * n**-0.3 / (20_000**0.2 + d**0.2)),
    ],
)
def test_baselines_are_equaled_where_the_law_has_their_loss(
    form: str, true_loss: Callable[[float, float], float]
) -> None:
    points = [
        dataclasses.replace(each, nats_per_observation=true_loss(each.num_non_embedding_params, each.num_observations))
        for each in grid()
    ]
    chosen = settings(form=form)
    losses = read_losses(points, chosen)
    table = pa.table({"title": [0.0]})
    info = ScoreTableInfo(model="some baseline", careers="", split="test", code="", details={})
    # The second is better than any model on these data, and the third than any model on any data.
    for target, is_reached in ((true_loss(5e5, 4e4), True), (E + 1e-9, False), (E - 0.1, False)):
        baseline = BaselineLoss(ScoreFile("run", Path("scores"), table, info), 80_000, np.array([target]))
        numbers = analyze_law(points, dataclasses.replace(losses, baselines=(baseline,)), chosen).baselines[0]
        assert (numbers.model, numbers.num_observations, numbers.loss.value) == ("some baseline", 80_000, target)
        multiples = {each.small: each.multiple.value for each in numbers.by_size}
        if not is_reached:
            assert numbers.num_params.value == math.inf or numbers.num_params.value > 1e12
            assert min(multiples.values()) > 1e6
            continue
        needed = optimize.brentq(lambda n, loss=target: true_loss(n, 8e4) - loss, 1e3, 1e9)
        assert numbers.num_params.value == pytest.approx(needed, rel=1e-4)
        for size in ("1m", "4m"):
            data = optimize.brentq(lambda d, n=SIZES[size], loss=target: true_loss(n, d) - loss, 1.0, 1e12)
            assert multiples[size] == pytest.approx(data / 8e4, rel=1e-3)


def test_total_parameters_are_an_option() -> None:
    numbers = analyzed(grid(), num_params="total", form="additive")
    assert numbers.parameters["A"].value == pytest.approx(A * 2**a, rel=1e-6)
    assert numbers.held_out is not None
    assert numbers.held_out.num_params == 8_000_000


@pytest.mark.parametrize("form", ["multiplicative", "rectified"])
def test_the_form_that_made_the_losses_is_chosen(form: str) -> None:
    def loss(n: float, d: float) -> float:
        return float(E + 900 * n**-0.3 * (d**-0.3 if form == "multiplicative" else 1 / (2e4**0.5 + d**0.5)))

    points = [point(size, share, loss(SIZES[size], share)) for size, share in itertools.product(SIZES, SHARES)]
    numbers = analyzed(noisy(points, 1e-6))
    assert numbers.form == form
    errors = {each.form: each.held_out_error for each in numbers.forms}
    assert min(errors.values(), key=lambda error: error or math.inf) == errors[numbers.form]
    assert numbers.frontier is None
    assert any("no compute-optimal frontier" in note for note in numbers.notes)


def test_noise_is_divided_into_people_runs_and_seeds() -> None:
    points = [*grid(), point("60k", 10_000, seed=2), point("60k", 10_000, seed=3)]
    loss = np.array([each.nats_per_observation for each in noisy(points, 0.004)], float)
    random = np.random.default_rng(8)
    level = random.normal(0, 0.05, 400)  # test people that are hard for all runs alike
    draws = loss + level[:, None] + random.normal(0, 0.001, (400, len(points)))
    losses = SweepLosses(loss, draws, False, 300, 600, (), None)
    numbers = analyze_law(points, losses, settings(form="additive", bootstrap_draws=400))
    noise = numbers.noise
    assert noise.people == pytest.approx(0.05, rel=0.1)
    first = [*loss[:1], *loss[-2:]]
    assert noise.seeds == pytest.approx(float(np.std(first, ddof=1)))
    assert (noise.num_repeated, noise.degrees_of_freedom) == (3, len(points) - 5)
    # What residuals have, without the part of the people on their own: the sums of squares by an ordinary fit.
    names = ("E", "A", "B", "a", "b")

    def residual(logs: FloatArray) -> FloatArray:
        e, big_a, big_b, small_a, small_b = np.exp(logs)
        n = np.array([each.num_non_embedding_params for each in points], float)
        d = np.array([each.num_observations for each in points], float)
        missed: FloatArray = e + big_a * n**-small_a + big_b * d**-small_b - loss
        return missed

    fitted = optimize.least_squares(residual, np.log([E, A, B, a, b]), x_scale=0.1)
    people_part = (len(points) - len(names)) * 0.001**2
    expected = math.sqrt((2 * fitted.cost - people_part) / (len(points) - len(names)))
    assert noise.runs == pytest.approx(expected, rel=0.03)
    # The level moves E and the loss of the largest run alike: the interval of E has it, that of the prediction not.
    low, high = numbers.parameters["E"].low, numbers.parameters["E"].high
    assert low is not None
    assert high is not None
    assert high - low > 2 * 1.96 * 0.05 * 0.85
    held_out = numbers.held_out
    assert held_out is not None
    assert held_out.predicted.low is not None
    assert held_out.predicted.high is not None
    assert held_out.predicted.high - held_out.predicted.low < 0.06


def test_the_constant_of_an_excess_has_an_interval_on_both_sides_of_0() -> None:
    """At the end of its range, a resample could not show how far below 0 it may be."""
    random = np.random.default_rng(3)
    points = grid()
    loss_P = np.array([law(SIZES[each.size], each.num_observations) - E for each in points])
    loss_P += random.normal(0, 0.002, len(points))
    draws_DP = loss_P + random.normal(0, 0.002, (60, len(points)))
    excess, plain = (
        analyze_law(points, SweepLosses(loss_P, draws_DP, is_excess, 100, 100, (), None), settings(form="additive"))
        for is_excess in (True, False)
    )
    for numbers, is_free in ((excess, True), (plain, False)):
        constant = numbers.parameters["E"]
        assert constant.low is not None and constant.high is not None
        assert (constant.low < 0 < constant.high) is is_free
    assert plain.parameters["E"].low == 0


def test_an_excess_whose_constant_is_not_0_gets_a_note() -> None:
    """The losses have E 1.8 or so; taken for an excess, they say that something is left with infinite data."""
    points = grid()
    loss_P = np.array([law(SIZES[each.size], each.num_observations) for each in points])
    loss_P += np.random.default_rng(3).normal(0, 0.002, len(points))
    draws_DP = loss_P + np.random.default_rng(4).normal(0, 0.002, (60, len(points)))
    for constant, is_excess, has_note in ((E, True, True), (0.0, True, False), (E, False, False)):
        losses = SweepLosses(loss_P - E + constant, draws_DP - E + constant, is_excess, 100, 100, (), None)
        notes = analyze_law(points, losses, settings(form="additive")).notes
        assert any("E does not contain 0" in note for note in notes) is has_note


def test_losses_and_excess_are_those_of_the_score_tables(tmp_path: Path) -> None:
    """Five observations of three people; log-probabilities are halvings."""
    halvings = {"60k": (3, 2, 4, 1, 2), "250k": (2, 2, 3, 1, 2), "1m": (2, 1, 3, 1, 1)}
    points = []
    for place, (size, each) in enumerate(halvings.items()):
        run = tmp_path / size
        write_scores(run / "scores" / "test.parquet", f"model of {size}", each)
        if place == 1:
            write_scores(run / "scores" / "test.truth.parquet", "truth", (1, 1, 2, 1, 1))
        points.append(point(size, 10_000, nats_per_observation=None, run=str(run)))
    points = [dataclasses.replace(each, nats_per_observation=None) for each in points]
    excess = read_losses(points, settings())
    assert excess.is_excess
    assert (excess.num_people, excess.num_observations) == (3, len(KEYS))
    assert excess.loss_P == pytest.approx([6 / 5 * math.log(2), 4 / 5 * math.log(2), 2 / 5 * math.log(2)])
    plain = read_losses(points, settings(loss="nats"))
    assert plain.loss_P == pytest.approx([12 / 5 * math.log(2), 10 / 5 * math.log(2), 8 / 5 * math.log(2)])
    assert plain.draws_DP is not None
    assert excess.draws_DP is not None
    # One draw of people for all runs: the difference of two runs is that of their excesses in every draw.
    assert plain.draws_DP[:, 0] - plain.draws_DP[:, 2] == pytest.approx(excess.draws_DP[:, 0] - excess.draws_DP[:, 2])
    # A baseline of the run on most data that has it, on the same observations, by the same draws of people.
    points[2] = dataclasses.replace(points[2], num_observations=20_000)
    for run, halves in (("1m", (1, 1, 1, 1, 1)), ("60k", (2, 2, 2, 2, 2))):
        write_scores(tmp_path / run / "scores" / "test.career.parquet", "CAREER", halves)
    [career] = read_losses(points, settings(baselines=("career",))).baselines
    assert (career.file.info.model, career.num_observations) == ("CAREER", 20_000)
    assert career.loss_F[0] == pytest.approx(-1 / 5 * math.log(2))  # 5 halvings less the truth's 6
    [plain_career] = read_losses(points, settings(baselines=("career",), loss="nats")).baselines
    assert plain_career.loss_F == pytest.approx(np.full(61, math.log(2)))  # the same for every observation and draw
    (tmp_path / "1m" / "scores" / "test.career.parquet").unlink()
    assert read_losses(points, settings(baselines=("career",))).baselines[0].num_observations == 10_000
    with raises("law/no-baseline", "bag_of_jobs", "launch/baselines.py"):
        read_losses(points, settings(baselines=("bag_of_jobs",)))
    with raises("law/baselines-without-runs", "career"):
        read_losses([point("60k", 10_000)], settings(baselines=("career",)))
    with raises("score-table/no-scores", "validation"):
        read_losses(points, settings(split="validation"))
    with raises("run/no-run-folder", "gone"):
        read_losses([dataclasses.replace(points[0], run=str(tmp_path / "gone"))], settings())
    (tmp_path / "250k" / "scores" / "test.truth.parquet").unlink()
    with raises("law/no-truth", "launch/baselines.py"):
        read_losses(points, settings(loss="excess"))
    with raises("law/no-truth"):
        read_losses([point("60k", 10_000)], settings(loss="excess"))


def test_one_family_is_chosen_by_the_settings() -> None:
    points = [*grid(sources="PSID81"), point("1m", 80_000, sources="PSID81", pretrained="SmolLM")]
    with raises("law/families-mixed", "2 families", "pretrained=SmolLM", "pretrained=scratch", "sources=PSID81"):
        analyzed(points)
    assert analyzed(points, pretrained="scratch").sources == "PSID81"
    with raises("law/no-such-runs", "pretrained=SmolLM"):
        analyzed(points, pretrained="Llama-2")
    with raises("law/families-mixed", "sources=NLSY79"):
        analyzed([*grid(sources="PSID81"), point("1m", 80_000, sources="NLSY79")])
    with raises("law/families-mixed", "sources=(empty: fill the column sources)"):
        analyzed([*grid(sources="PSID81"), point("1m", 80_000)])


def test_base_models_that_differ_in_their_size_are_joined_to_a_family() -> None:
    names = {"60k": "smol-s", "250k": "smol-m", "1m": "smol-l", "4m": "smol-xl"}
    points = [dataclasses.replace(each, sources="PSID81", pretrained=names[each.size]) for each in grid()]
    with raises("law/families-mixed", "4 families", "pretrained=smol-xl", "joined by +"):
        choose_family(points, settings())
    joined = "smol-s+smol-m+smol-l+smol-xl"
    assert choose_family([*points, point("1m", 80_000)], settings(pretrained=joined)) == tuple(points)
    assert analyzed(points, pretrained=joined, form="additive").pretrained == "smol-l+smol-m+smol-s+smol-xl"
    with raises("law/no-such-runs", "no run is from smol-xs", "pretrained=smol-m"):  # one of them is misspelled
        choose_family(points, settings(pretrained="smol-xs+smol-m+smol-l"))
    with raises("law/families-mixed", "pretrained=scratch"):  # models from scratch are of no base model's family
        choose_family([*points, point("1m", 80_000, sources="PSID81")], settings(pretrained=f"{joined}+scratch"))


def test_the_noise_of_the_prediction_is_that_of_the_smaller_sizes() -> None:
    """Runs of the largest size that leave the law cannot widen the interval of what is predicted for them."""
    points = noisy(grid(), 0.003)
    broken = [
        dataclasses.replace(each, nats_per_observation=(each.nats_per_observation or 0) + (each.size == "4m") * 0.02)
        for each in points
    ]
    plain, moved = (analyzed(each, form="additive").held_out for each in (points, broken))
    assert plain is not None
    assert moved is not None
    assert moved.predicted == plain.predicted
    assert moved.observed == pytest.approx(plain.observed + 0.02)


def test_nothing_is_predicted_where_the_smaller_sizes_leave_a_parameter_open() -> None:
    """Two sizes are met by E + A N^-a with any exponent; without D, the multiplicative form needs no third one."""
    points = [each for each in noisy(grid(), 1e-5) if each.size != "4m"]
    numbers = analyzed(points)
    errors = {each.form: each.held_out_error for each in numbers.forms}
    assert errors["additive"] is None
    assert errors["multiplicative"] is not None
    assert numbers.form == "additive"  # the usual one, since it cannot be compared
    assert numbers.held_out is None


@pytest.mark.parametrize("form", ["additive", "multiplicative", "rectified"])
def test_which_runs_determine_a_form_is_known_without_losses(form: FormName) -> None:
    """Beside it, the rank of finite differences of the plain formulas."""
    formulas: dict[str, Callable[..., Any]] = {
        "additive": lambda n, d, E, A, B, a, b: E + A * n**-a + B * d**-b,
        "multiplicative": lambda n, d, E, A, a, b: E + A * (n / 5e5) ** -a * (d / 3e4) ** -b,
        "rectified": lambda n, d, E, A, a, b, k: E + A * (n / 5e5) ** -a / (k**b + (d / 3e4) ** b),
    }
    values = {"additive": (1.9, 35.0, 90.0, 0.5, 0.6), "multiplicative": (1.9, 1.0, 0.3, 0.4),
              "rectified": (1.9, 1.0, 0.3, 0.4, 0.7)}[form]  # fmt: skip
    sizes, shares = list(SIZES), SHARES
    places = {
        "grid": [(size, share) for size in sizes for share in shares],
        "two sizes": [(size, share) for size in sizes[:2] for share in shares],
        "two shares": [(size, share) for size in sizes for share in shares[:2]],
        "two by two": [(size, share) for size in sizes[:2] for share in shares[:2]],
        "two by two and one": [*((size, share) for size in sizes[:2] for share in shares[:2]), ("1m", 40_000)],
    }
    for name, cells in places.items():
        points = [point(*cell) for cell in cells]
        data = LawData.of(points, read_losses(points, settings()), settings())
        columns = []
        for place, value in enumerate(values):
            ends = [[*values[:place], value * (1 + step), *values[place + 1 :]] for step in (1e-5, -1e-5)]
            high, low = (formulas[form](data.n_P, data.d_P, *end) for end in ends)
            columns.append((high - low) / np.abs(high - low).max())
        rank = np.linalg.matrix_rank(np.column_stack(columns), tol=1e-7)
        assert determines(data, FORMS[form]) == (rank == len(values)), name


def test_points_that_leave_a_parameter_open_are_refused_also_without_degrees_of_freedom() -> None:
    points = [point(*cell) for cell in itertools.product(("60k", "250k"), (10_000, 20_000))]
    with raises("law/too-few-points", "5 different points", "add a run of size"):
        analyzed([*points, point("1m", 40_000)], form="additive")


def test_draws_without_a_gain_from_parameters_count_in_the_frontier() -> None:
    """Where losses do not fall with N, the best N is 0 and the loss at any budget is E."""
    points = grid()
    loss = np.array([each.nats_per_observation for each in points], float)
    flat = np.array([1.5 + B * each.num_observations**-b for each in points])
    draws = np.concatenate([np.tile(loss, (40, 1)), np.tile(flat, (20, 1))])
    numbers = analyze_law(points, SweepLosses(loss, draws, False, 10, 20, (), None), settings(form="additive"))
    assert numbers.frontier is not None
    for budget in numbers.frontier.budgets:
        assert budget.loss.low == pytest.approx(1.5, abs=1e-3)
        assert budget.num_params.low is not None
        assert budget.num_params.low < 1


def test_intervals_of_people_alone_are_noted() -> None:
    five = [point("60k", 10_000), point("250k", 20_000), point("1m", 40_000), point("4m", 80_000), point("4m", 10_000)]
    loss = np.array([each.nats_per_observation for each in five], float)
    draws = loss + np.random.default_rng(3).normal(0, 1e-4, (60, len(five)))
    numbers = analyze_law(five, SweepLosses(loss, draws, False, 10, 20, (), None), settings(form="additive"))
    assert numbers.parameters["b"].low is not None
    assert any("test people alone" in note for note in numbers.notes)


def test_runs_that_do_not_identify_a_law_are_refused_with_the_one_that_is_missing() -> None:
    points = grid()
    two_sizes = [each for each in points if each.size in ("60k", "250k")]
    with raises("law/too-few-sizes", "2 model sizes", "about 1,000,000 parameters on 80,000 observations"):
        analyzed(two_sizes)  # 60k, 250k: the next by the same ratio is 1.04 million
    two_shares = [each for each in points if each.num_observations > 20_000]
    with raises("law/too-few-shares", "2 amounts", "4m on about 20,000 observations"):
        analyzed(two_shares)
    few = [point("60k", 10_000), point("250k", 20_000), point("1m", 40_000), point("1m", 40_000, seed=2)]
    with raises("law/too-few-points", "3 different points", "60k on 20,000 observations"):
        analyzed(few)


def test_exponents_that_the_losses_leave_open_are_refused() -> None:
    flat = [point(size, share, E + B * share**-b) for size, share in itertools.product(SIZES, SHARES)]
    with raises("law/optimum-at-edge", "A = 0", "add a run of size"):
        analyzed(noisy(flat, 1e-4, seed=3), form="additive")
    # Noise as large as what the sizes differ by: any exponent of N does.
    with raises("law/open-profile", "do not bound a", "add a run of size") as raised:
        analyzed(noisy(grid(), 0.03, seed=2), form="additive")
    named = str(raised.value).rpartition("size ")[2]
    assert not any(
        named.startswith(f"{each.size} on {each.num_observations:,} ") for each in grid()
    )  # no run that there is
    with raises("law/too-few-points", "5 parameters", "4 different"):
        points = [point("60k", 10_000), point("250k", 20_000), point("1m", 40_000), point("4m", 80_000)]
        analyzed(points, form="rectified")


def test_the_logarithm_of_a_loss_needs_a_loss_above_0() -> None:
    points = noisy(grid(), 0.01)
    loss = np.array([each.nats_per_observation for each in points], float) - E
    draws = np.broadcast_to(loss, (60, len(loss))) - 0.5
    losses = SweepLosses(loss, draws, True, 10, 20, (), None)
    with raises("law/loss-not-positive", "method=chinchilla"):
        analyze_law(points, losses, settings(method="chinchilla", form="additive"))
    with raises("law/loss-not-positive", "method=chinchilla"):
        analyzed([*grid(), point("4m", 80_000, -0.1, seed=2)], method="chinchilla")


def test_the_same_seed_gives_the_same_intervals_and_no_noise_gives_none() -> None:
    points = noisy(grid(), 0.003)
    first, second, other = (analyzed(points, form="additive", seed=seed).parameters["b"] for seed in (1, 1, 2))
    assert first == second
    assert other.value == first.value
    assert first.low != other.low
    five = [point("60k", 10_000), point("250k", 20_000), point("1m", 40_000), point("4m", 80_000), point("4m", 10_000)]
    numbers = analyzed(five, form="additive")
    assert numbers.parameters["b"].low is None
    assert any("no intervals" in note for note in numbers.notes)


def test_runs_of_different_epochs_are_noted() -> None:
    points = [dataclasses.replace(each, epochs=3.0 if each.size == "1m" else 1.0) for each in grid()]
    assert any("1 to 3 epochs" in note for note in analyzed(points).notes)
