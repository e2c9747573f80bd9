"""Laws of the loss in nats per observation by number of parameters N and of observations D, and how they are fitted.

    additive        L = E + A N^-a + B D^-b         models trained from scratch
    multiplicative  L = E + A N^-a D^-b             pretrained models
    rectified       L = E + A N^-a / (D0^b + D^b)   pretrained models; D0: the data that pretraining is worth

For given exponents a law is linear in its coefficients, so they follow by non-negative least squares. This is exact: a
law has at most three coefficients, and every set of positive ones is tried. The constant of an excess, whose true value
is 0, may have either sign. That leaves a search over two or three exponents: a grid, then Gauss-Newton steps on the
residuals with the coefficients projected out (variable projection, Golub and Pereyra 1973; Kaufman's Jacobian). The
condition number of that problem's Hessian is about 10, against 1e11 with all five parameters. N and D are divided by
their geometric means. Many losses of the same runs (resamples) are fitted at once, each over the whole grid.

Shapes: F fits, A fits that still improve, P points (runs), Q exponents, K terms besides the constant, C = 1 + K
coefficients, G points of a grid.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import optimize

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
FormName = Literal["additive", "multiplicative", "rectified"]
FitMethod = Literal["variable_projection", "chinchilla"]

LEAST_EXPONENT, LARGEST_EXPONENT = 0.01, 4.0
HUBER_DELTA = 1e-3  # on log L, as in Hoffmann et al. (2022)
_NUMBERS_IN_MEMORY = 20_000_000  # 153 MiB of float64
_MOST_STEPS = 100
_EDGE = 1.02  # an exponent within 2 % of a bound of its range is at the edge
_EXACT = 1e-18  # a Huber loss below this is rounding error
_LARGEST_LOG = 100.0  # bound of the logarithm of a coefficient
_LEAST_COEFFICIENT = 1e-6  # of the mean loss; smaller ones have no useful logarithm


@dataclass(frozen=True, slots=True)
class Form:
    """The formula of a law: its terms besides the constant, and their derivatives with respect to the exponents.

    `terms(theta_FQ, n_P, d_P)` returns [F, P, K] and `slopes` [F, P, K, Q]; n and d are logarithms of N and D over
    their geometric means. `coefficients` and `exponents` are names, in the order of the arrays.
    """

    name: FormName
    coefficients: tuple[str, ...]
    exponents: tuple[str, ...]
    terms: Callable[[FloatArray, FloatArray, FloatArray], FloatArray]
    slopes: Callable[[FloatArray, FloatArray, FloatArray], FloatArray]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all parameters: the coefficients, then the exponents."""
        return (*self.coefficients, *self.exponents)

    def axes(self, d_P: FloatArray) -> tuple[FloatArray, ...]:
        """Return the grid values of each exponent; the first and the last are the bounds of its range."""
        if self.name != "rectified":
            return (_exponents(32), _exponents(32))
        return (_exponents(14), _exponents(14), np.linspace(d_P.min() - np.log(100), d_P.max() + np.log(10), 10))


def _exponents(number: int) -> FloatArray:
    return np.geomspace(LEAST_EXPONENT, LARGEST_EXPONENT, number)


def _additive_terms(theta_FQ: FloatArray, n_P: FloatArray, d_P: FloatArray) -> FloatArray:
    return np.stack([np.exp(-theta_FQ[:, :1] * n_P), np.exp(-theta_FQ[:, 1:] * d_P)], axis=-1)


def _additive_slopes(theta_FQ: FloatArray, n_P: FloatArray, d_P: FloatArray) -> FloatArray:
    terms_FPK = _additive_terms(theta_FQ, n_P, d_P)
    slopes = np.zeros((*terms_FPK.shape, 2))
    slopes[:, :, 0, 0] = -n_P * terms_FPK[:, :, 0]
    slopes[:, :, 1, 1] = -d_P * terms_FPK[:, :, 1]
    return slopes


def _multiplicative_terms(theta_FQ: FloatArray, n_P: FloatArray, d_P: FloatArray) -> FloatArray:
    return np.exp(-theta_FQ[:, :1] * n_P - theta_FQ[:, 1:2] * d_P)[:, :, None]


def _multiplicative_slopes(theta_FQ: FloatArray, n_P: FloatArray, d_P: FloatArray) -> FloatArray:
    term_FP = _multiplicative_terms(theta_FQ, n_P, d_P)[:, :, 0]
    return np.stack([-n_P * term_FP, -d_P * term_FP], axis=-1)[:, :, None, :]


def _rectified_terms(theta_FQ: FloatArray, n_P: FloatArray, d_P: FloatArray) -> FloatArray:
    a, b, k = theta_FQ[:, :1], theta_FQ[:, 1:2], theta_FQ[:, 2:]
    return np.exp(-a * n_P - np.logaddexp(b * k, b * d_P))[:, :, None]


def _rectified_slopes(theta_FQ: FloatArray, n_P: FloatArray, d_P: FloatArray) -> FloatArray:
    b, k = theta_FQ[:, 1:2], theta_FQ[:, 2:]
    term_FP = _rectified_terms(theta_FQ, n_P, d_P)[:, :, 0]
    known_FP = np.exp(b * k - np.logaddexp(b * k, b * d_P))  # D0^b / (D0^b + D^b)
    by_b = -(k * known_FP + d_P * (1 - known_FP)) * term_FP
    return np.stack([-n_P * term_FP, by_b, -b * known_FP * term_FP], axis=-1)[:, :, None, :]


FORMS: Mapping[FormName, Form] = {
    "additive": Form("additive", ("E", "A", "B"), ("a", "b"), _additive_terms, _additive_slopes),
    "multiplicative": Form("multiplicative", ("E", "A"), ("a", "b"), _multiplicative_terms, _multiplicative_slopes),
    "rectified": Form("rectified", ("E", "A"), ("a", "b", "D0"), _rectified_terms, _rectified_slopes),
}


@dataclass(frozen=True, slots=True)
class Fits:
    """A law fitted to F losses of the same runs; row 0 is the sample, the other rows are resamples.

    `theta_FQ` and `coefficient_FC` are for N over `scale_n` and D over `scale_d`; `parameters` are for plain N and D.
    `objective_F` is the minimum of the sum of squares, or of the Huber loss.
    """

    form: Form
    scale_n: float
    scale_d: float
    theta_FQ: FloatArray
    coefficient_FC: FloatArray
    objective_F: FloatArray

    def loss(self, num_params: npt.ArrayLike, num_observations: npt.ArrayLike) -> FloatArray:
        """Return the loss at some points, [F, points]."""
        n, d = self.logs(num_params, num_observations)
        return _losses(self.form, self.theta_FQ, self.coefficient_FC, n, d)

    def parameters(self) -> dict[str, FloatArray]:
        """Return each parameter of the formula for plain N and D, [F]."""
        log_n, log_d = np.log(self.scale_n), np.log(self.scale_d)
        a, b = self.theta_FQ[:, 0], self.theta_FQ[:, 1]
        values = dict(zip(self.form.coefficients, self.coefficient_FC.T, strict=True))
        if self.form.name == "additive":
            values |= {"A": values["A"] * np.exp(a * log_n), "B": values["B"] * np.exp(b * log_d)}
        else:
            values |= {"A": values["A"] * np.exp(a * log_n + b * log_d)}
        exponents = dict(zip(self.form.exponents, self.theta_FQ.T, strict=True))
        if "D0" in exponents:
            exponents["D0"] = np.exp(exponents["D0"] + log_d)
        return {**values, **exponents}

    def data_for_loss(self, num_params: float, loss_F: FloatArray) -> FloatArray:
        """Return the D with which a model of a given size reaches a loss, [F]; infinite if no D is enough."""
        n = np.log(num_params / self.scale_n)
        constant, *others = self.coefficient_FC.T
        a, b = self.theta_FQ[:, 0], self.theta_FQ[:, 1]
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            if self.form.name == "additive":
                power = (loss_F - constant - others[0] * np.exp(-a * n)) / others[1]  # of D^-b
            else:
                power = (loss_F - constant) / (others[0] * np.exp(-a * n))
            if self.form.name == "rectified":
                inverse = 1 / power - np.exp(b * self.theta_FQ[:, 2])
                power = np.where(power > 0, np.where(inverse > 0, 1 / inverse, np.inf), power)
            data = self.scale_d * np.exp(-np.log(power) / b)
        return np.where(power > 0, data, np.inf)

    def params_for_loss(self, num_observations: float, loss_F: FloatArray) -> FloatArray:
        """Return the N with which a model on given data reaches a loss, [F]; infinite if no N is enough."""
        d_P = np.log(np.array([num_observations]) / self.scale_d)
        terms_FK = self.form.terms(self.theta_FQ, np.zeros(1), d_P)[:, 0] * self.coefficient_FC[:, 1:]
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            # The first term depends on N, and is here for N = scale_n; the others do not depend on N.
            power = (loss_F - self.coefficient_FC[:, 0] - terms_FK[:, 1:].sum(axis=1)) / terms_FK[:, 0]
            params = self.scale_n * np.exp(-np.log(power) / self.theta_FQ[:, 0])
        return np.where(power > 0, params, np.inf)

    def at_edge(self, d_P: FloatArray) -> list[tuple[str, Literal["low", "high"]]]:
        """Return the exponents of the first fit that are at a bound of their range, and at which one."""
        edges: list[tuple[str, Literal["low", "high"]]] = []
        for name, value, axis in zip(self.form.exponents, self.theta_FQ[0], self.form.axes(d_P), strict=True):
            margin = 0.02 if name == "D0" else value * (_EDGE - 1)
            if value <= axis[0] + margin:
                edges.append((name, "low"))
            elif value >= axis[-1] - margin:
                edges.append((name, "high"))
        return edges

    def logs(self, num_params: npt.ArrayLike, num_observations: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Return the logarithms of N and D over their scales."""
        n = np.log(np.atleast_1d(np.asarray(num_params, dtype=np.float64)) / self.scale_n)
        return n, np.log(np.atleast_1d(np.asarray(num_observations, dtype=np.float64)) / self.scale_d)


@dataclass(frozen=True, slots=True)
class Axes:
    """N and D of the points, as logarithms over their geometric means."""

    scale_n: float
    scale_d: float
    n_P: FloatArray
    d_P: FloatArray

    @staticmethod
    def of(num_params_P: npt.ArrayLike, num_observations_P: npt.ArrayLike) -> Axes:
        """Return the axes of points."""
        log_n = np.log(np.asarray(num_params_P, dtype=np.float64))
        log_d = np.log(np.asarray(num_observations_P, dtype=np.float64))
        mean_n, mean_d = float(log_n.mean()), float(log_d.mean())
        return Axes(float(np.exp(mean_n)), float(np.exp(mean_d)), log_n - mean_n, log_d - mean_d)


def fit_law(
    form: Form,
    num_params_P: npt.ArrayLike,
    num_observations_P: npt.ArrayLike,
    loss_FP: FloatArray,
    *,
    method: FitMethod = "variable_projection",
    signed_constant: bool = False,
) -> Fits:
    """Fit a law to losses, by least squares or by the Huber loss of log L (`chinchilla`, Hoffmann et al. 2022).

    The Huber loss is minimized from a single start, the least-squares fit of relative errors over the whole grid of
    exponents. It reaches the best optimum of the 4,500 starting points of that paper.

    Args:
        form: which law.
        num_params_P: N of each point.
        num_observations_P: D of each point.
        loss_FP: losses; each row is fitted on its own. Positive for `chinchilla`.
        method: what is minimized.
        signed_constant: allow a negative constant, for losses whose true constant is 0. If it were bounded at 0,
            resamples would not show how uncertain it is. `chinchilla` ignores this: its constant is positive.
    """
    axes = Axes.of(num_params_P, num_observations_P)
    if method == "variable_projection":
        squares = LeastSquares(form, axes, np.ones(loss_FP.shape[1]), int(signed_constant))
        return squares.refined(loss_FP, squares.best_on_grid(loss_FP))
    relative = LeastSquares(form, axes, 1 / loss_FP[0], 0)
    return _huber_fits(relative.refined(loss_FP, relative.best_on_grid(loss_FP)), axes, loss_FP)


def profile(
    form: Form, axes: Axes, loss_P: FloatArray, place: int, values: Sequence[float], *, signed_constant: bool = False
) -> FloatArray:
    """Return the smallest sum of squares with the exponent at index `place` held at each of some values."""
    squares = LeastSquares(form, axes, np.ones(len(loss_P)), int(signed_constant))
    others = [axis for at, axis in enumerate(form.axes(axes.d_P)) if at != place]
    rest_GQ = np.array(list(itertools.product(*others)))
    best = []
    for value in values:
        theta_GQ = np.insert(rest_GQ, place, value, axis=1)
        start = int(squares.grid_objectives(loss_P[None], theta_GQ)[:, 0].argmin())
        best.append(float(squares.refined(loss_P[None], theta_GQ[start][None], held=place).objective_F[0]))
    return np.array(best)


def tangents(fits: Fits, num_params: npt.ArrayLike, num_observations: npt.ArrayLike) -> FloatArray:
    """Return the derivatives of the first fit's loss at some points, [points, C + Q].

    They are with respect to the constant, the logarithms of the other coefficients, and the exponents. The constant has
    no logarithm here, since it may be 0.
    """
    n, d = fits.logs(num_params, num_observations)
    theta, coefficient = fits.theta_FQ[:1], fits.coefficient_FC[0]
    terms = fits.form.terms(theta, n, d)[0] * coefficient[1:]
    slopes = np.einsum("pkq,k->pq", fits.form.slopes(theta, n, d)[0], coefficient[1:])
    columns: FloatArray = np.column_stack([np.ones(len(n)), terms, slopes])
    return columns


def _losses(form: Form, theta_FQ: FloatArray, coefficient_FC: FloatArray, n: FloatArray, d: FloatArray) -> FloatArray:
    losses: FloatArray = np.einsum("fpk,fk->fp", form.terms(theta_FQ, n, d), coefficient_FC[:, 1:])
    losses += coefficient_FC[:, :1]
    return losses


@dataclass(frozen=True, slots=True)
class LeastSquares:
    """Weighted least squares of a law; all coefficients but the first `num_signed` are non-negative.

    `root_P`: square roots of the weights.
    """

    form: Form
    axes: Axes
    root_P: FloatArray
    num_signed: int

    def grid_objectives(self, loss_FP: FloatArray, theta_GQ: FloatArray) -> FloatArray:
        """Return the sum of squares of every loss at every point of a grid of exponents, [G, F]."""
        scaled_PF = (loss_FP * self.root_P).T
        total_F = np.einsum("pf,pf->f", scaled_PF, scaled_PF)
        design_GPC = self._design(theta_GQ)
        best_GF: FloatArray = np.tile(total_F, (len(theta_GQ), 1))
        for support in self._supports():
            basis_GPS, triangle_GSS = np.linalg.qr(design_GPC[:, :, support])
            along_GSF = np.swapaxes(basis_GPS, 1, 2) @ scaled_PF
            coefficient_GSF = _solved(triangle_GSS, along_GSF)
            objective_GF = total_F - np.einsum("gsf,gsf->gf", along_GSF, along_GSF)
            np.minimum(best_GF, objective_GF, out=best_GF, where=self._are_allowed(coefficient_GSF))
        return best_GF

    def best_on_grid(self, loss_FP: FloatArray) -> FloatArray:
        """Return the best exponents of the form's grid for each loss, [F, Q]."""
        theta_GQ = np.array(list(itertools.product(*self.form.axes(self.axes.d_P))))
        at_a_time = max(1, _NUMBERS_IN_MEMORY // (len(theta_GQ) * (1 + len(self.form.coefficients))))
        best = [
            theta_GQ[self.grid_objectives(loss_FP[start : start + at_a_time], theta_GQ).argmin(axis=0)]
            for start in range(0, len(loss_FP), at_a_time)
        ]
        return np.concatenate(best)

    def refined(self, loss_FP: FloatArray, start_FQ: FloatArray, *, held: int | None = None) -> Fits:
        """Improve exponents by damped Gauss-Newton steps on the projected residuals, all fits at once.

        Args:
            loss_FP: losses.
            start_FQ: exponents to start from.
            held: index of an exponent that stays at its start; None: all are free.
        """
        axes, slopes_of = self.axes, self.form.slopes
        scaled_FP = loss_FP * self.root_P
        ends = [(axis[0], axis[-1]) for axis in self.form.axes(axes.d_P)]
        low_Q, high_Q = (np.array(each) for each in zip(*ends, strict=True))
        free_Q = np.array([place != held for place in range(len(ends))])
        theta_FQ = start_FQ.copy()
        coefficient_FC, residual_FP = self._coefficients(theta_FQ, scaled_FP)
        objective_F = np.einsum("fp,fp->f", residual_FP, residual_FP)
        damping_F = np.full(len(theta_FQ), 1e-3)
        active_A = np.arange(len(theta_FQ))  # fits that still improve
        for _ in range(_MOST_STEPS):
            theta_AQ, coefficient_AC = theta_FQ[active_A], coefficient_FC[active_A]
            slopes_APQ = np.einsum("apkq,ak->apq", slopes_of(theta_AQ, axes.n_P, axes.d_P), coefficient_AC[:, 1:])
            slopes_APQ *= self.root_P[:, None] * free_Q
            basis_APC = _basis(self._design(theta_AQ), coefficient_AC != 0)
            slopes_APQ -= basis_APC @ (np.swapaxes(basis_APC, 1, 2) @ slopes_APQ)  # what the coefficients absorb
            step_AQ = _damped_step(slopes_APQ, residual_FP[active_A], damping_F[active_A])
            new_theta_AQ = np.clip(theta_AQ + step_AQ, low_Q, high_Q)
            new_coefficient_AC, new_residual_AP = self._coefficients(new_theta_AQ, scaled_FP[active_A])
            new_objective_A = np.einsum("ap,ap->a", new_residual_AP, new_residual_AP)

            better_A = new_objective_A < objective_F[active_A]
            moved_A = np.abs(new_theta_AQ - theta_AQ).max(axis=1)
            is_done_A = better_A & (objective_F[active_A] - new_objective_A <= 1e-13 * new_objective_A)
            improved = active_A[better_A]
            theta_FQ[improved], coefficient_FC[improved] = new_theta_AQ[better_A], new_coefficient_AC[better_A]
            residual_FP[improved], objective_F[improved] = new_residual_AP[better_A], new_objective_A[better_A]
            damping_F[active_A] *= np.where(better_A, 0.1, 10.0)
            active_A = active_A[(moved_A > 1e-11) & (damping_F[active_A] < 1e12) & ~is_done_A]
            if not active_A.size:
                break
        return Fits(self.form, axes.scale_n, axes.scale_d, theta_FQ, coefficient_FC, objective_F)

    def _design(self, theta_FQ: FloatArray) -> FloatArray:
        """Return the weighted design matrix, a column for each coefficient, [F, P, C]."""
        terms = self.form.terms(theta_FQ, self.axes.n_P, self.axes.d_P)
        return np.concatenate([np.ones((*terms.shape[:2], 1)), terms], axis=2) * self.root_P[:, None]

    def _supports(self) -> Iterator[list[int]]:
        """Yield every set of columns that may be in use, the largest first; signed coefficients always are in use."""
        signed = range(self.num_signed)
        others = range(self.num_signed, len(self.form.coefficients))
        for size in range(len(others), -1, -1):
            for chosen in itertools.combinations(others, size):
                if support := [*signed, *chosen]:
                    yield support

    def _are_allowed(self, coefficient_FSR: FloatArray) -> BoolArray:
        """Return whether the signs of a support's coefficients are allowed, [F, R]."""
        is_allowed_FSR = np.isfinite(coefficient_FSR)
        is_allowed_FSR[:, self.num_signed :] &= coefficient_FSR[:, self.num_signed :] >= 0
        return np.asarray(is_allowed_FSR.all(axis=1))

    def _coefficients(self, theta_FQ: FloatArray, scaled_FP: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return the best coefficients for given exponents, [F, C], and their residuals, [F, P]."""
        design_FPC = self._design(theta_FQ)
        basis, triangle = np.linalg.qr(design_FPC)
        along_FC = np.einsum("fpc,fp->fc", basis, scaled_FP)
        solved_FCR = _solved(triangle, along_FC[:, :, None])
        coefficient_FC = solved_FCR[:, :, 0]
        outside = np.flatnonzero(~self._are_allowed(solved_FCR)[:, 0])
        if outside.size:
            coefficient_FC[outside] = self._best_support(triangle[outside], along_FC[outside])
        return coefficient_FC, scaled_FP - np.einsum("fpc,fc->fp", design_FPC, coefficient_FC)

    def _best_support(self, triangle_FCC: FloatArray, along_FC: FloatArray) -> FloatArray:
        """Return the best allowed solution of a triangular least-squares problem, over all sets of columns, [F, C]."""
        best_FC = np.zeros_like(along_FC)
        best_F = np.einsum("fc,fc->f", along_FC, along_FC)
        for support in self._supports():
            columns = triangle_FCC[:, :, support]
            values = np.linalg.pinv(columns) @ along_FC[:, :, None]
            left = along_FC - (columns @ values)[:, :, 0]
            objective = np.einsum("fc,fc->f", left, left)
            better = self._are_allowed(values)[:, 0] & (objective < best_F)
            best_F = np.where(better, objective, best_F)
            whole = np.zeros_like(best_FC)
            whole[:, support] = values[:, :, 0]
            best_FC = np.where(better[:, None], whole, best_FC)
        return best_FC


def _damped_step(slopes_FPQ: FloatArray, residual_FP: FloatArray, damping_F: FloatArray) -> FloatArray:
    """Return the Levenberg-Marquardt step of each fit, [F, Q]; 0 for exponents without a slope."""
    normal_FQQ = np.swapaxes(slopes_FPQ, 1, 2) @ slopes_FPQ
    diagonal_FQ = np.einsum("fqq->fq", normal_FQQ)
    ridge_FQ = damping_F[:, None] * diagonal_FQ + np.where(diagonal_FQ > 0, 1e-30, 1.0)
    normal_FQQ += ridge_FQ[:, :, None] * np.eye(normal_FQQ.shape[1])
    right_FQ = np.einsum("fpq,fp->fq", slopes_FPQ, residual_FP)
    step_FQ: FloatArray = np.linalg.solve(normal_FQQ, right_FQ[:, :, None])[:, :, 0]
    return step_FQ


def _solved(triangle_FCC: FloatArray, right_FCR: FloatArray) -> FloatArray:
    """Solve upper triangular systems with few unknowns, [F, C, R]; non-finite where a system is singular."""
    solved = np.empty_like(right_FCR)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for row in reversed(range(right_FCR.shape[1])):
            left = right_FCR[:, row].copy()
            for column in range(row + 1, right_FCR.shape[1]):
                left -= triangle_FCC[:, row, column, None] * solved[:, column]
            solved[:, row] = left / triangle_FCC[:, row, row, None]
    return solved


def _basis(design_FPC: FloatArray, in_use_FC: BoolArray) -> FloatArray:
    """Return an orthonormal basis of the columns of a design that are in use, [F, P, C]; the other columns are 0."""
    order_FC = np.argsort(~in_use_FC, axis=1, kind="stable")  # columns in use first
    basis: FloatArray = np.linalg.qr(np.take_along_axis(design_FPC, order_FC[:, None, :], axis=2))[0]
    basis *= (np.arange(in_use_FC.shape[1]) < in_use_FC.sum(axis=1, keepdims=True))[:, None, :]
    return basis


def _huber_fits(start: Fits, axes: Axes, loss_FP: FloatArray) -> Fits:
    """Minimize the Huber loss of the errors of log L, each fit from its own start."""
    form, num_coefficients = start.form, len(start.form.coefficients)
    ends = [(axis[0], axis[-1]) for axis in form.axes(axes.d_P)]
    thetas, coefficients, objectives = [], [], []
    for loss_P, theta_Q, coefficient_C in zip(loss_FP, start.theta_FQ, start.coefficient_FC, strict=True):
        logs = np.log(np.maximum(coefficient_C, _LEAST_COEFFICIENT * loss_P.mean()))
        best = _minimized(partial(_huber, form, axes, loss_P), np.append(logs, theta_Q), ends)
        coefficients.append(np.exp(best[:num_coefficients]))
        thetas.append(best[num_coefficients:])
        objectives.append(_huber(form, axes, loss_P, best)[0])
    return replace(
        start, theta_FQ=np.array(thetas), coefficient_FC=np.array(coefficients), objective_F=np.array(objectives)
    )


def _minimized(
    value_and_gradient: Callable[[FloatArray], tuple[float, FloatArray]],
    start: FloatArray,
    ends: Sequence[tuple[float, float]],
) -> FloatArray:
    """Return the minimum near a start, by L-BFGS-B, which is restarted from its result until it gains nothing."""
    lowest = value_and_gradient(start)[0]
    if lowest < _EXACT:
        return start
    bounds = [(-_LARGEST_LOG, _LARGEST_LOG)] * (len(start) - len(ends)) + list(ends)
    scale = 1 / lowest  # the tolerances of the optimizer are for values near 1

    def scaled(values: FloatArray) -> tuple[float, FloatArray]:
        value, gradient = value_and_gradient(values)
        return value * scale, gradient * scale

    best, lowest = start, 1.0
    for _ in range(20):
        found = optimize.minimize(
            scaled, best, jac=True, method="L-BFGS-B", bounds=bounds,
            options={"maxiter": 5_000, "maxfun": 20_000, "ftol": 1e-15, "gtol": 1e-10, "maxcor": 20},
        )  # fmt: skip
        gain = lowest - float(found.fun)
        if gain > 0:
            best, lowest = found.x, float(found.fun)
        if gain <= 1e-10 * lowest:
            break
    return best


def _huber(form: Form, axes: Axes, loss_P: FloatArray, values: FloatArray) -> tuple[float, FloatArray]:
    """Return the Huber loss of the errors of log L, and its gradient in log coefficients and exponents."""
    num_coefficients = len(form.coefficients)
    coefficient = np.exp(values[:num_coefficients])
    theta = values[num_coefficients:][None]
    terms_PK = form.terms(theta, axes.n_P, axes.d_P)[0]
    columns_PC = np.column_stack([np.ones(len(loss_P)), terms_PK]) * coefficient
    predicted_P = columns_PC.sum(axis=1)
    error_P = np.log(predicted_P / loss_P)
    inside = np.abs(error_P) <= HUBER_DELTA
    value = np.where(inside, 0.5 * error_P**2, HUBER_DELTA * (np.abs(error_P) - 0.5 * HUBER_DELTA)).sum()
    slopes_PQ = np.einsum("pkq,k->pq", form.slopes(theta, axes.n_P, axes.d_P)[0], coefficient[1:])
    gradient = (np.clip(error_P, -HUBER_DELTA, HUBER_DELTA) / predicted_P) @ np.column_stack([columns_PC, slopes_PQ])
    return float(value), gradient
