"""The fit of a law equals published values, brute-force least squares, and the parameters that made the losses."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import optimize

from laborllm_dist.sweeps.law import FORMS, FitMethod, FloatArray, FormName, fit_law, tangents

N = np.repeat([6e4, 2.5e5, 1e6, 4e6], 4)
D = np.tile([1e4, 2e4, 4e4, 8e4], 4)
# Parameters in the order of `Form.names`; the formulas stand here a second time, in plain N and D.
TRUE: dict[FormName, dict[str, float]] = {
    "additive": {"E": 1.9, "A": 35.0, "B": 90.0, "a": 0.5, "b": 0.6},
    "multiplicative": {"E": 1.9, "A": 900.0, "a": 0.3, "b": 0.25},
    "rectified": {"E": 1.9, "A": 900.0, "a": 0.3, "b": 0.35, "D0": 20_000.0},
}


def plain_loss(form: FormName, values: dict[str, float], n: FloatArray, d: FloatArray) -> FloatArray:
    if form == "additive":
        return values["E"] + values["A"] * n ** -values["a"] + values["B"] * d ** -values["b"]
    if form == "multiplicative":
        return values["E"] + values["A"] * n ** -values["a"] * d ** -values["b"]
    return values["E"] + values["A"] * n ** -values["a"] / (values["D0"] ** values["b"] + d ** values["b"])


def test_the_golden_values_of_the_chinchilla_points_are_reached() -> None:
    """240 points of Hoffmann et al.'s figure 4, and the fit of Besiroglu et al. (2024, arXiv 2404.10102)."""
    with (Path(__file__).parent.parent / "assets" / "chinchilla_points.csv").open() as file:
        rows = [[float(row[name]) for name in ("num_params", "num_tokens", "loss")] for row in csv.DictReader(file)]
    n, d, loss = np.array(rows).T
    assert len(loss) == 240
    fits = fit_law(FORMS["additive"], n, d, loss[None], method="chinchilla")
    values = {name: float(value[0]) for name, value in fits.parameters().items()}
    assert fits.objective_F[0] == pytest.approx(0.0010182740, abs=1e-9)  # the sum; a mean would be 240 times less
    assert values["A"] == pytest.approx(477.84, rel=1e-3)
    assert values["B"] == pytest.approx(2143.86, rel=1e-3)
    assert values["E"] == pytest.approx(1.81724, abs=1e-4)
    assert values["a"] == pytest.approx(0.34731, abs=1e-4)
    assert values["b"] == pytest.approx(0.36718, abs=1e-4)


@pytest.mark.parametrize("form", list(TRUE))
@pytest.mark.parametrize("method", ["variable_projection", "chinchilla"])
def test_losses_without_noise_give_their_parameters_back(form: FormName, method: FitMethod) -> None:
    fits = fit_law(FORMS[form], N, D, plain_loss(form, TRUE[form], N, D)[None], method=method)
    for name, value in TRUE[form].items():
        assert float(fits.parameters()[name][0]) == pytest.approx(value, rel=1e-8), name
    assert fits.loss([7e5], [3e4])[0, 0] == pytest.approx(
        float(plain_loss(form, TRUE[form], np.array(7e5), np.array(3e4))), abs=1e-9
    )


@pytest.mark.parametrize("form", list(TRUE))
def test_no_start_of_plain_least_squares_finds_a_smaller_sum_of_squares(form: FormName) -> None:
    random = np.random.default_rng(4)
    loss = plain_loss(form, TRUE[form], N, D) + random.normal(0, 0.004, len(N))
    names = list(TRUE[form])
    fits = fit_law(FORMS[form], N, D, loss[None])

    def residual(logs: FloatArray) -> FloatArray:
        return plain_loss(form, dict(zip(names, np.exp(logs), strict=True)), N, D) - loss

    least = math.inf
    for _ in range(6):
        start = np.log(list(TRUE[form].values())) + random.normal(0, 0.4, len(names))
        result = optimize.least_squares(residual, start, x_scale=0.1, max_nfev=2_000, xtol=1e-12, ftol=1e-12)
        least = min(least, 2 * float(result.cost))
    assert fits.objective_F[0] <= least * (1 + 1e-9)
    assert fits.objective_F[0] == pytest.approx(least, rel=1e-3)


def test_a_signed_constant_may_be_negative_and_others_may_not() -> None:
    values = {**TRUE["additive"], "E": -0.05}
    loss = plain_loss("additive", values, N, D)[None]
    fits = fit_law(FORMS["additive"], N, D, loss, signed_constant=True)
    for name, value in values.items():
        assert float(fits.parameters()[name][0]) == pytest.approx(value, rel=1e-8), name
    assert float(fit_law(FORMS["additive"], N, D, loss).parameters()["E"][0]) == 0
    # Losses that fall like log N: the best constant is below 0. The first ones do not fall with D at all.
    random = np.random.default_rng(5)
    losses = np.stack([2.0 - 0.1 * np.log(N / 6e4) - slope * np.log(D / 1e4) for slope in (-0.01, 0.02, 0.1)])
    losses += random.normal(0, 0.01, losses.shape)
    fits = fit_law(FORMS["additive"], N, D, losses, signed_constant=True)
    n, d = fits.logs(N, D)
    for theta, coefficient, one in zip(fits.theta_FQ, fits.coefficient_FC, losses, strict=True):
        design = np.column_stack([np.ones(len(n)), np.exp(-theta[0] * n), np.exp(-theta[1] * d)])
        bounds = ([-np.inf, 0.0, 0.0], [np.inf] * 3)
        assert coefficient == pytest.approx(optimize.lsq_linear(design, one, bounds, tol=1e-14).x, abs=1e-6)
    assert (fits.coefficient_FC[:, 0] < 0).all()
    assert fits.coefficient_FC[0, 2] == 0


def test_coefficients_are_those_of_non_negative_least_squares() -> None:
    random = np.random.default_rng(5)
    # Losses that fall like log N: the best constant would be below 0. The first ones do not fall with D at all.
    losses = np.stack([2.0 - 0.1 * np.log(N / 6e4) - slope * np.log(D / 1e4) for slope in (0.0, 0.02, 0.1)])
    losses += random.normal(0, 0.01, losses.shape)
    fits = fit_law(FORMS["additive"], N, D, losses)
    n, d = fits.logs(N, D)
    for theta, coefficient, loss in zip(fits.theta_FQ, fits.coefficient_FC, losses, strict=True):
        design = np.column_stack([np.ones(len(n)), np.exp(-theta[0] * n), np.exp(-theta[1] * d)])
        assert coefficient == pytest.approx(optimize.nnls(design, loss)[0], abs=1e-8)
    assert (fits.coefficient_FC == 0).any(axis=1).sum() == 3


def test_many_losses_are_fitted_as_each_alone() -> None:
    random = np.random.default_rng(6)
    losses = plain_loss("additive", TRUE["additive"], N, D) + random.normal(0, 0.01, (7, len(N)))
    together = fit_law(FORMS["additive"], N, D, losses)
    for place, loss in enumerate(losses):
        alone = fit_law(FORMS["additive"], N, D, loss[None])
        assert together.theta_FQ[place] == pytest.approx(alone.theta_FQ[0], rel=1e-6)
        assert together.objective_F[place] == pytest.approx(alone.objective_F[0], rel=1e-10)


@pytest.mark.parametrize("form", list(TRUE))
def test_the_data_for_a_loss_give_that_loss(form: FormName) -> None:
    fits = fit_law(FORMS[form], N, D, plain_loss(form, TRUE[form], N, D)[None])
    target = float(plain_loss(form, TRUE[form], np.array(1e6), np.array(5e4)))
    data = float(fits.data_for_loss(2.5e5, np.array([target]))[0])
    assert float(plain_loss(form, TRUE[form], np.array(2.5e5), np.array(data))) == pytest.approx(target, abs=1e-9)
    assert data > 5e4
    assert fits.data_for_loss(2.5e5, np.array([1.5]))[0] == math.inf  # below the constant


@pytest.mark.parametrize("form", list(TRUE))
def test_slopes_are_those_of_finite_differences(form: FormName) -> None:
    fits = fit_law(FORMS[form], N, D, plain_loss(form, TRUE[form], N, D)[None])
    places, slopes, step = [*range(3, 6)], tangents(fits, N[3:6], D[3:6]), 1e-5
    for column, name in enumerate(FORMS[form].names):
        ends = []
        for sign in (1, -1):
            theta, coefficient = fits.theta_FQ.copy(), fits.coefficient_FC.copy()
            if name == "E":
                coefficient[0, 0] += sign * step
            elif name in FORMS[form].coefficients:
                coefficient[0, column] *= math.exp(sign * step)
            else:
                theta[0, column - len(FORMS[form].coefficients)] += sign * step
            moved = type(fits)(fits.form, fits.scale_n, fits.scale_d, theta, coefficient, fits.objective_F)
            ends.append(moved.loss(N[places], D[places])[0])
        assert slopes[:, column] == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=1e-7), name
