"""Whether the runs of a sweep identify a scaling law and, if they do not, the run that would help most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from laborllm_dist.config.evaluation import FitLawSettings
from laborllm_dist.errors import LawError
from laborllm_dist.io.number_format import format_count
from laborllm_dist.plain_text import visible
from laborllm_dist.report.bootstrap import BoolArray
from laborllm_dist.sweeps.law import Axes, FitMethod, Fits, FloatArray, Form, fit_law, profile, tangents
from laborllm_dist.sweeps.losses import SweepLosses
from laborllm_dist.sweeps.points import SweepPoint

LEAST_POINTS, LEAST_VALUES = 5, 3


@dataclass(frozen=True, slots=True)
class LawData:
    """The points of one family and the N that the settings choose. With `is_excess` the constant may be negative."""

    points: tuple[SweepPoint, ...]
    n_P: FloatArray
    d_P: FloatArray
    loss_P: FloatArray
    method: FitMethod
    is_excess: bool

    @classmethod
    def of(
        cls, points: Sequence[SweepPoint], losses: SweepLosses, settings: FitLawSettings, *, other_count: bool = False
    ) -> LawData:
        """Take N as the settings count parameters or, with `other_count`, the other way."""
        counts_total = (settings.num_params == "total") != other_count
        n = [point.num_params if counts_total else point.num_non_embedding_params for point in points]
        d = [point.num_observations for point in points]
        return cls(
            tuple(points), np.array(n, float), np.array(d, float), losses.loss_P, settings.method, losses.is_excess
        )

    @property
    def cells(self) -> set[tuple[float, float]]:
        """The distinct pairs of N and D."""
        return set(zip(self.n_P.tolist(), self.d_P.tolist(), strict=True))

    def where(self, chosen_P: BoolArray) -> LawData:
        """Return the chosen points."""
        points = tuple(point for point, chosen in zip(self.points, chosen_P, strict=True) if chosen)
        return replace(
            self, points=points, n_P=self.n_P[chosen_P], d_P=self.d_P[chosen_P], loss_P=self.loss_P[chosen_P]
        )

    def fit(self, form: Form, loss_FP: FloatArray | None = None) -> Fits:
        """Fit a form to the losses of the points, or to other losses of the same points, [F, P]."""
        losses = self.loss_P[None] if loss_FP is None else loss_FP
        return fit_law(form, self.n_P, self.d_P, losses, method=self.method, signed_constant=self.is_excess)

    def size_name(self, num_params: float) -> str:
        """Return the name of a model size, or its approximate number of parameters if no run has that size."""
        return next(
            (point.size for point, n in zip(self.points, self.n_P, strict=True) if n == num_params),
            f"of about {format_count(_rounded(num_params))} parameters",
        )

    def run_name(self, num_params: float, num_observations: float) -> str:
        """Return a description of a run, whether it exists or is to be added."""
        known = num_observations in self.d_P
        data = format_count(int(num_observations) if known else _rounded(num_observations))
        return f"a run of size {visible(self.size_name(num_params))} on {'' if known else 'about '}{data} observations"


def check_values(data: LawData, settings: FitLawSettings) -> None:
    """Check that there are enough points, sizes and shares of data for any law.

    Raises:
        LawError: if there are too few; it names a run to add.
    """
    sizes, shares, cells = np.unique(data.n_P), np.unique(data.d_P), data.cells
    if len(sizes) < LEAST_VALUES:
        missing = data.run_name(sizes[-1] * _ratio(sizes, 4.0), shares[-1])
        raise LawError(
            f"{settings.points} has {_many(len(sizes), 'model size')}; the exponent of N needs {LEAST_VALUES}, better "
            f"4 or 5: add {missing}",
            code="too-few-sizes",
        )
    if len(shares) < LEAST_VALUES:
        missing = data.run_name(sizes[-1], shares[0] / _ratio(shares, 2.0))
        raise LawError(
            f"{settings.points} has {_many(len(shares), 'amount')} of data; the exponent of D needs {LEAST_VALUES}, "
            f"better 4 or 5: add {missing}",
            code="too-few-shares",
        )
    if len(cells) < LEAST_POINTS:
        absent = next((n, d) for n in sizes for d in shares if (n, d) not in cells)
        raise LawError(
            f"{settings.points} has {len(cells)} different points (size and amount of data), and a law "
            f"{LEAST_POINTS} parameters: add {data.run_name(*absent)}",
            code="too-few-points",
        )


def determines(data: LawData, form: Form) -> bool:
    """Return whether losses without noise would determine every parameter of a form.

    They do if the derivatives of the losses with respect to the parameters are linearly independent. That depends only
    on the sizes and amounts of data, and in special cases on the exponents. The additive form, for example, needs three
    sizes and three amounts of data; the multiplicative form needs two of each.
    """
    axes = Axes.of(data.n_P, data.d_P)
    num_coefficients = len(form.coefficients)
    exponents = np.array([[0.3, 0.4, 0.0]])[:, : len(form.exponents)]  # D0 at the mean amount of data
    typical = Fits(form, axes.scale_n, axes.scale_d, exponents, np.ones((1, num_coefficients)), np.zeros(1))
    return int(np.linalg.matrix_rank(tangents(typical, data.n_P, data.d_P))) == len(form.names)


def identification_problem(fits: Fits, data: LawData) -> LawError | None:
    """Return why the runs do not identify the parameters of a form, and the run to add; None if they do."""
    return (
        _undetermined_parameter(fits, data)
        or _zero_coefficient(fits, data)
        or _exponent_at_bound(fits, data)
        or _unbounded_exponent(fits, data)
    )


def _undetermined_parameter(fits: Fits, data: LawData) -> LawError | None:
    """Return an error if even losses without noise would not determine every parameter."""
    form = fits.form
    if len(data.cells) < len(form.names):
        return LawError(
            f"the {form.name} form has {len(form.names)} parameters, and there are {len(data.cells)} different "
            f"points: add {_most_useful_run(fits, data)}",
            code="too-few-points",
        )
    if not determines(data, form):
        return LawError(
            f"the sizes and amounts of data of the {len(data.cells)} different points leave a parameter of the "
            f"{form.name} form open: add {_most_useful_run(fits, data)}",
            code="too-few-points",
        )
    return None


def _zero_coefficient(fits: Fits, data: LawData) -> LawError | None:
    """Return an error if A or B is 0 in the best fit."""
    form, mean_loss = fits.form, float(np.mean(np.abs(data.loss_P)))
    for name, value in zip(form.coefficients[1:], fits.coefficient_FC[0, 1:], strict=True):
        if value < 1e-5 * mean_loss:
            return LawError(
                f"the {form.name} form fits best with {name} = 0, where its exponent is undefined: the losses do not "
                f"fall with {'D' if name == 'B' else 'N'}; add {_most_useful_run(fits, data)}",
                code="optimum-at-edge",
            )
    return None


def _exponent_at_bound(fits: Fits, data: LawData) -> LawError | None:
    """Return an error if an exponent of the best fit is at a bound of its range."""
    edges = fits.at_edge(Axes.of(data.n_P, data.d_P).d_P)
    if not edges:
        return None
    name, side = edges[0]
    return LawError(
        f"the {fits.form.name} form fits best with {name} at the {side} end of its range "
        f"({fits.parameters()[name][0]:.3g}); add {_most_useful_run(fits, data)}",
        code="optimum-at-edge",
    )


def _unbounded_exponent(fits: Fits, data: LawData) -> LawError | None:
    """Return an error if an exponent at a bound of its range fits not significantly worse (F test at 5 %)."""
    form, axes = fits.form, Axes.of(data.n_P, data.d_P)
    degrees = len(data.loss_P) - len(form.names)
    if degrees < 1:
        return None
    least_squares = replace(data, method="variable_projection")  # what `profile` minimizes
    squares = float(least_squares.fit(form).objective_F[0])
    limit = squares * (1 + stats.f.ppf(0.95, 1, degrees) / degrees)
    for place, name in enumerate(form.exponents):
        axis = form.axes(axes.d_P)[place]
        low, high = profile(form, axes, data.loss_P, place, (axis[0], axis[-1]), signed_constant=data.is_excess) < limit
        if low or high:
            return LawError(
                f"the runs do not bound {name} of the {form.name} form {'below' if low else 'above'}: with {name} at "
                f"the {'low' if low else 'high'} end of its range the law fits as well; add "
                f"{_most_useful_run(fits, data)}",
                code="open-profile",
            )
    return None


def _most_useful_run(fits: Fits, data: LawData) -> str:
    """Return a description of the new run that would reduce the largest relative variance of a parameter most.

    Candidates are the combinations of size and share without a run, including one more size at either end and one
    smaller share.
    """
    sizes, shares = np.unique(data.n_P), np.unique(data.d_P)
    by_size, by_share = _ratio(sizes, 4.0), _ratio(shares, 2.0)
    candidates = [
        (n, d)
        for n in (sizes[0] / by_size, *sizes, sizes[-1] * by_size)
        for d in (shares[0] / by_share, *shares)
        if (n, d) not in data.cells
    ]
    slopes = tangents(fits, data.n_P, data.d_P)
    # Derivatives by the logarithm of each parameter; the constant may be 0, so it is in units of the mean loss.
    scale = np.ones(slopes.shape[1])
    scale[0] = float(np.mean(np.abs(data.loss_P)))
    num_exponents = min(2, len(fits.form.exponents))
    first = len(fits.form.coefficients)
    scale[first : first + num_exponents] = fits.theta_FQ[0, :num_exponents]
    information = (slopes * scale).T @ (slopes * scale)
    information += 1e-9 * np.trace(information) * np.eye(len(information))

    def largest_variance(candidate: tuple[float, float]) -> float:
        row = tangents(fits, *candidate)[0] * scale
        return float(np.diag(np.linalg.inv(information + np.outer(row, row))).max())

    return data.run_name(*min(candidates, key=largest_variance))


def _many(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _ratio(values: FloatArray, otherwise: float) -> float:
    """Return the geometric mean of the ratios of neighboring values; the values are sorted."""
    return float((values[-1] / values[0]) ** (1 / (len(values) - 1))) if len(values) > 1 else otherwise


def _rounded(value: float) -> int:
    return int(float(f"{value:.2g}"))
