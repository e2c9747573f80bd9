"""The scaling law of a sweep: losses of its runs, the law's form, and all numbers with their intervals.

An interval covers two kinds of chance. Who was tested: people are resampled once per draw for all runs together, as in
the report, so what is common to all runs stays common. And how the runs came out: seeds, order and whatever the law
does not describe move every run on its own; the variance of that noise is what the residuals have beyond the people's
part, and each draw adds it to every run. In each draw the law is fitted anew, over the whole grid of exponents.

A law whose parameters the runs do not identify is refused, with the run that would help most.

Shapes: P points (runs), D draws; arrays with 1 + D rows have the sample's number first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from laborllm_dist.config.evaluation import FitLawSettings
from laborllm_dist.errors import LawError
from laborllm_dist.io.number_format import format_count
from laborllm_dist.plain_text import visible
from laborllm_dist.randomness import generator
from laborllm_dist.report.bootstrap import BoolArray, Estimate, estimate
from laborllm_dist.sweeps.law import (
    FORMS,
    Axes,
    FitMethod,
    Fits,
    FloatArray,
    Form,
    FormName,
    fit_law,
    profile,
    tangents,
)
from laborllm_dist.sweeps.losses import SweepLosses
from laborllm_dist.sweeps.points import SweepPoint

LEAST_POINTS, LEAST_VALUES = 5, 3
_SEVERAL_EPOCHS = 1.1  # a ratio of epochs that is more than rounding
_FRONTIER_FACTORS = (0.01, 0.1, 1.0, 10.0, 100.0)  # of the largest run's FLOPs
_CURVE_POINTS = 41
_NEVER = 1e300  # in place of infinity, between two of which percentiles cannot be interpolated


@dataclass(frozen=True, slots=True)
class PointNumbers:
    """A run, its loss, and what the law says; `fitted` minus `loss` is the law's error."""

    size: str
    run: str | None
    seed: int
    num_params: int
    num_non_embedding_params: int
    num_observations: int
    num_tokens: int | None
    epochs: float
    flops: float | None
    loss: Estimate
    fitted: float


@dataclass(frozen=True, slots=True)
class FormNumbers:
    """A form's fit to all runs, and to those without the largest size, which it then predicts."""

    form: FormName
    parameters: dict[str, float]
    rms_residual: float
    held_out_error: float | None  # root mean square over the runs of the largest size; None: too few runs are left
    problem: str | None  # why the runs do not identify it


@dataclass(frozen=True, slots=True)
class HeldOutNumbers:
    """The largest run, predicted from the runs of smaller sizes."""

    size: str
    num_params: int
    num_observations: int
    num_left_out: int
    observed: float
    predicted: Estimate
    is_inside: bool | None  # the interval contains the observed loss; None: there is no interval


@dataclass(frozen=True, slots=True)
class NoiseNumbers:
    """Standard deviations in nats of the chance in a run's loss."""

    people: float | None  # who was tested: the same for all runs to a great part
    runs: float | None  # of each run on its own, beyond the people: what the draws add; None: no degrees of freedom
    degrees_of_freedom: int
    seeds: float | None  # between runs of one size and share that differ in their seed
    num_repeated: int  # runs that have a twin of another seed


@dataclass(frozen=True, slots=True)
class BudgetNumbers:
    """The best N and D for a budget of FLOPs."""

    flops: float
    num_params: Estimate
    num_observations: Estimate
    loss: Estimate


@dataclass(frozen=True, slots=True)
class FrontierNumbers:
    """The compute-optimal frontier. FLOPs are `factor` N^`power_n` D^`power_d`, as the runs record them."""

    factor: float
    power_n: float
    power_d: float
    exponent_n: Estimate  # best N grows as FLOPs to this power
    exponent_d: Estimate
    budgets: tuple[BudgetNumbers, ...]
    curve: tuple[BudgetNumbers, ...]


@dataclass(frozen=True, slots=True)
class BreakEvenNumbers:
    """How many times the data make the small model equal the large one; infinite: no amount of data does."""

    small: str
    large: str
    num_observations: int  # of the large one
    multiple: Estimate
    share_never: float  # of the draws in which no amount of data does


@dataclass(frozen=True, slots=True)
class LawNumbers:
    """Everything about a law that is printed, written or drawn."""

    form: FormName
    method: FitMethod
    counted: Literal["non_embedding", "total"]
    pretrained: str
    sources: str
    split: str
    measure: str
    is_excess: bool
    num_people: int | None
    num_observations: int | None
    bootstrap_draws: int
    seed: int
    parameters: dict[str, Estimate]
    parameters_other_count: dict[str, float]  # of the fit by the other count of parameters
    forms: tuple[FormNumbers, ...]
    noise: NoiseNumbers
    held_out: HeldOutNumbers | None
    frontier: FrontierNumbers | None
    break_even: tuple[BreakEvenNumbers, ...]
    points: tuple[PointNumbers, ...]
    scores: tuple[dict[str, str], ...]
    notes: tuple[str, ...]
    fits: Fits

    @property
    def loss_name(self) -> str:
        """What the loss is, in words."""
        return "nats per observation above the truth" if self.is_excess else "nats per observation"


@dataclass(frozen=True, slots=True)
class _Sweep:
    """The points of one family with the N that is chosen."""

    points: tuple[SweepPoint, ...]
    n_P: FloatArray
    d_P: FloatArray
    loss_P: FloatArray
    method: FitMethod

    @property
    def cells(self) -> set[tuple[float, float]]:
        return set(zip(self.n_P.tolist(), self.d_P.tolist(), strict=True))

    def fit(self, form: Form, loss_FP: FloatArray | None = None) -> Fits:
        losses = self.loss_P[None] if loss_FP is None else loss_FP
        return fit_law(form, self.n_P, self.d_P, losses, method=self.method)

    def size_name(self, num_params: float) -> str:
        return next(
            (point.size for point, n in zip(self.points, self.n_P, strict=True) if n == num_params),
            f"of about {format_count(_rounded(num_params))} parameters",
        )

    def run_name(self, num_params: float, num_observations: float) -> str:
        known = num_observations in self.d_P
        data = format_count(int(num_observations) if known else _rounded(num_observations))
        return f"a run of size {visible(self.size_name(num_params))} on {'' if known else 'about '}{data} observations"


def analyze_law(points: Sequence[SweepPoint], losses: SweepLosses, settings: FitLawSettings) -> LawNumbers:
    """Choose a form, fit it, and compute all numbers of the law.

    Args:
        points: of one family.
        losses: of these points.
        settings: form, method, count of parameters, draws.

    Raises:
        LawError: if the runs do not identify a law, naming what is missing.
    """
    sweep, other = _sweep(points, losses, settings), _sweep(points, losses, settings, other_count=True)
    _check_values(sweep, settings)
    _check_logarithms(losses.loss_P, settings)  # before the fits
    forms, fits = _compare_forms(sweep)
    form = FORMS[_chosen(forms, fits, sweep, settings)]
    noise = _noise(fits[form.name], sweep, losses)
    loss_FP = _drawn_losses(losses, noise, settings)
    _check_logarithms(loss_FP, settings)
    drawn = sweep.fit(form, loss_FP)
    has_interval = len(loss_FP) > 1
    notes = _notes(points, has_interval=has_interval)
    frontier, why_none = _frontier(drawn, sweep) if form.name == "additive" else (None, _NO_FRONTIER)
    return LawNumbers(
        form=form.name,
        method=settings.method,
        counted=settings.num_params,
        pretrained=points[0].pretrained,
        sources=points[0].sources,
        split=settings.split,
        measure=settings.measure,
        is_excess=losses.is_excess,
        num_people=losses.num_people,
        num_observations=losses.num_observations,
        bootstrap_draws=settings.bootstrap_draws if has_interval else 0,
        seed=settings.seed,
        parameters={name: _estimate(values) for name, values in drawn.parameters().items()},
        parameters_other_count={name: float(value[0]) for name, value in other.fit(form).parameters().items()},
        forms=forms,
        noise=noise,
        held_out=_held_out(form, sweep, loss_FP),
        frontier=frontier,
        break_even=_break_even(drawn, sweep),
        points=_point_numbers(sweep, losses, drawn),
        scores=_sources(losses),
        notes=(*notes, *([why_none] if why_none else [])),
        fits=drawn,
    )


_NO_FRONTIER = "this form has no compute-optimal frontier: it would put all compute into either parameters or data"


def _sweep(
    points: Sequence[SweepPoint], losses: SweepLosses, settings: FitLawSettings, *, other_count: bool = False
) -> _Sweep:
    counts_total = (settings.num_params == "total") != other_count
    n = [point.num_params if counts_total else point.num_non_embedding_params for point in points]
    d = [point.num_observations for point in points]
    return _Sweep(tuple(points), np.array(n, float), np.array(d, float), losses.loss_P, settings.method)


def _check_values(sweep: _Sweep, settings: FitLawSettings) -> None:
    """Check that there are enough points, sizes and shares of data for any law.

    Raises:
        LawError: naming a run that is missing.
    """
    sizes, shares, cells = np.unique(sweep.n_P), np.unique(sweep.d_P), sweep.cells
    if len(sizes) < LEAST_VALUES:
        missing = sweep.run_name(sizes[-1] * _ratio(sizes, 4.0), shares[-1])
        raise LawError(
            f"{settings.points} has {_many(len(sizes), 'model size')}; the exponent of N needs {LEAST_VALUES}, better "
            f"4 or 5: add {missing}",
            code="too-few-sizes",
        )
    if len(shares) < LEAST_VALUES:
        missing = sweep.run_name(sizes[-1], shares[0] / _ratio(shares, 2.0))
        raise LawError(
            f"{settings.points} has {_many(len(shares), 'amount')} of data; the exponent of D needs {LEAST_VALUES}, "
            f"better 4 or 5: add {missing}",
            code="too-few-shares",
        )
    if len(cells) < LEAST_POINTS:
        absent = next((n, d) for n in sizes for d in shares if (n, d) not in cells)
        raise LawError(
            f"{settings.points} has {len(cells)} different points (size and amount of data), and a law "
            f"{LEAST_POINTS} parameters: add {sweep.run_name(*absent)}",
            code="too-few-points",
        )


def _check_logarithms(losses: FloatArray, settings: FitLawSettings) -> None:
    if settings.method == "chinchilla" and (losses <= 0).any():
        raise LawError(
            "method=chinchilla is about log L, and a loss or a resample of it is not above 0; "
            "method=variable_projection is not",
            code="loss-not-positive",
        )


def _many(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _ratio(values: FloatArray, otherwise: float) -> float:
    """Return the mean ratio of neighbors among sorted values."""
    return float((values[-1] / values[0]) ** (1 / (len(values) - 1))) if len(values) > 1 else otherwise


def _rounded(value: float) -> int:
    return int(float(f"{value:.2g}"))


def _compare_forms(sweep: _Sweep) -> tuple[tuple[FormNumbers, ...], dict[FormName, Fits]]:
    """Fit every form to all runs and to those without the largest size."""
    largest_P = sweep.n_P == sweep.n_P.max()
    numbers, all_fits = [], {}
    for form in FORMS.values():
        fits = sweep.fit(form)
        all_fits[form.name] = fits
        predicted = _without(sweep, largest_P, form, sweep.loss_P[None])
        error = None
        if predicted is not None:
            missed = predicted.loss(sweep.n_P[largest_P], sweep.d_P[largest_P])[0] - sweep.loss_P[largest_P]
            error = float(np.sqrt(np.mean(missed**2)))
        residual = fits.loss(sweep.n_P, sweep.d_P)[0] - sweep.loss_P
        numbers.append(
            FormNumbers(
                form.name,
                {name: float(value[0]) for name, value in fits.parameters().items()},
                float(np.sqrt(np.mean(residual**2))),
                error,
                None if (problem := _problem(fits, sweep)) is None else str(problem),
            )
        )
    return tuple(numbers), all_fits


def _without(sweep: _Sweep, left_out_P: BoolArray, form: Form, loss_FP: FloatArray) -> Fits | None:
    """Fit a form to the other runs; None if there are fewer different points than parameters."""
    rest_P = ~left_out_P
    cells = set(zip(sweep.n_P[rest_P].tolist(), sweep.d_P[rest_P].tolist(), strict=True))
    if len(cells) < len(form.names) or len({n for n, _ in cells}) < 2:
        return None
    return fit_law(form, sweep.n_P[rest_P], sweep.d_P[rest_P], loss_FP[:, rest_P], method=sweep.method)


def _chosen(
    forms: Sequence[FormNumbers], fits: dict[FormName, Fits], sweep: _Sweep, settings: FitLawSettings
) -> FormName:
    """Return the form of the settings, or the one that predicts the largest size best from the others.

    Raises:
        LawError: if the runs do not identify the form, or any form.
    """
    usual: FormName = "multiplicative" if sweep.points[0].pretrained else "additive"
    if settings.form != "auto":
        usual = settings.form
    usable = [each for each in forms if each.problem is None and settings.form in ("auto", each.form)]
    if not usable:
        problem = _problem(fits[usual], sweep)
        assert problem is not None
        raise problem
    tested = [each for each in usable if each.held_out_error is not None]
    if tested:
        return min(tested, key=lambda each: each.held_out_error or 0.0).form
    return next((each.form for each in usable if each.form == usual), usable[0].form)


def _problem(fits: Fits, sweep: _Sweep) -> LawError | None:
    """Return why the runs do not identify a form's parameters, with the run that would help most; None: they do."""
    form, axes = fits.form, Axes.of(sweep.n_P, sweep.d_P)
    if len(sweep.cells) < len(form.names):
        return LawError(
            f"the {form.name} form has {len(form.names)} parameters, and there are {len(sweep.cells)} different "
            f"points: add {_most_useful_run(fits, sweep)}",
            code="too-few-points",
        )
    mean_loss = float(np.mean(np.abs(sweep.loss_P)))
    zero = [
        name
        for name, value in zip(form.coefficients[1:], fits.coefficient_FC[0, 1:], strict=True)
        if value < 1e-5 * mean_loss
    ]
    if zero:
        return LawError(
            f"the {form.name} form fits best with {zero[0]} = 0, where its exponent means nothing: the losses do not "
            f"fall with {'D' if zero[0] == 'B' else 'N'}; add {_most_useful_run(fits, sweep)}",
            code="optimum-at-edge",
        )
    if edges := fits.at_edge(axes.d_P):
        name, side = edges[0]
        return LawError(
            f"the {form.name} form fits best with {name} at the {side} end of its range "
            f"({fits.parameters()[name][0]:.3g}); add {_most_useful_run(fits, sweep)}",
            code="optimum-at-edge",
        )
    degrees = len(sweep.loss_P) - len(form.names)
    if degrees < 1:
        return None
    squares = float(np.sum((fits.loss(sweep.n_P, sweep.d_P)[0] - sweep.loss_P) ** 2))
    limit = squares * (1 + stats.f.ppf(0.95, 1, degrees) / degrees)
    for place, name in enumerate(form.exponents):
        axis = form.axes(axes.d_P)[place]
        low, high = profile(form, axes, sweep.loss_P, place, (axis[0], axis[-1])) < limit
        if low or high:
            return LawError(
                f"the runs do not bound {name} of the {form.name} form {'below' if low else 'above'}: with {name} at "
                f"the {'low' if low else 'high'} end of its range the law fits as well; add "
                f"{_most_useful_run(fits, sweep)}",
                code="open-profile",
            )
    return None


def _most_useful_run(fits: Fits, sweep: _Sweep) -> str:
    """Return the name of the run that would lower the largest relative variance of a parameter most.

    Candidates are the sizes and shares without a run, one more size at either end, and one smaller share.
    """
    sizes, shares = np.unique(sweep.n_P), np.unique(sweep.d_P)
    by_size, by_share = _ratio(sizes, 4.0), _ratio(shares, 2.0)
    candidates = [
        (n, d)
        for n in (sizes[0] / by_size, *sizes, sizes[-1] * by_size)
        for d in (shares[0] / by_share, *shares)
        if (n, d) not in sweep.cells
    ]
    slopes = tangents(fits, sweep.n_P, sweep.d_P)
    # By the logarithm of each parameter; the constant may be 0, so it is in units of the mean loss.
    scale = np.ones(slopes.shape[1])
    scale[0] = float(np.mean(np.abs(sweep.loss_P)))
    num_exponents = min(2, len(fits.form.exponents))
    first = len(fits.form.coefficients)
    scale[first : first + num_exponents] = fits.theta_FQ[0, :num_exponents]
    information = (slopes * scale).T @ (slopes * scale)
    information += 1e-9 * np.trace(information) * np.eye(len(information))

    def largest_variance(candidate: tuple[float, float]) -> float:
        row = tangents(fits, *candidate)[0] * scale
        return float(np.diag(np.linalg.inv(information + np.outer(row, row))).max())

    return sweep.run_name(*min(candidates, key=largest_variance))


def _noise(fits: Fits, sweep: _Sweep, losses: SweepLosses) -> NoiseNumbers:
    """Divide the residuals into what resamples of people explain, and the rest, which is each run's own."""
    slopes = tangents(fits, sweep.n_P, sweep.d_P)
    rank = int(np.linalg.matrix_rank(slopes))
    degrees = len(sweep.loss_P) - rank
    away = np.eye(len(sweep.loss_P)) - slopes @ np.linalg.pinv(slopes)  # what no parameter takes up
    residual = sweep.loss_P - fits.loss(sweep.n_P, sweep.d_P)[0]
    by_people, level = 0.0, None
    if losses.draws_DP is not None:
        moved_DP = losses.draws_DP - losses.loss_P
        by_people = float(np.mean(np.sum((moved_DP @ away) ** 2, axis=1)))
        level = float(np.std(losses.draws_DP.mean(axis=1)))
    runs = math.sqrt(max(float(residual @ residual) - by_people, 0.0) / degrees) if degrees > 0 else None
    squares, num_free, num_repeated = 0.0, 0, 0
    for n, d in sweep.cells:
        same = sweep.loss_P[(sweep.n_P == n) & (sweep.d_P == d)]
        if len(same) > 1:
            squares += float(np.sum((same - same.mean()) ** 2))
            num_free += len(same) - 1
            num_repeated += len(same)
    seeds = math.sqrt(squares / num_free) if num_free else None
    return NoiseNumbers(level, runs, max(degrees, 0), seeds, num_repeated)


def _drawn_losses(losses: SweepLosses, noise: NoiseNumbers, settings: FitLawSettings) -> FloatArray:
    """Return the losses of the sample, then of each draw, [1 + D, P]; of the sample alone without any known noise."""
    loss_P = losses.loss_P
    if losses.draws_DP is None and noise.runs is None:
        return loss_P[None]
    shape = (settings.bootstrap_draws, len(loss_P))
    draws_DP = np.broadcast_to(loss_P, shape) if losses.draws_DP is None else losses.draws_DP
    if noise.runs:
        random = generator(settings.seed, "noise of the runs of a law")
        # The variance is itself an estimate: with few degrees of freedom the draws have the tails of Student's t.
        spread_D = noise.runs * np.sqrt(
            noise.degrees_of_freedom / random.chisquare(noise.degrees_of_freedom, settings.bootstrap_draws)
        )
        draws_DP = draws_DP + spread_D[:, None] * random.standard_normal(shape)
    return np.concatenate([loss_P[None], draws_DP])


def _estimate(values_F: FloatArray) -> Estimate:
    """Return the sample's value with the interval of its draws; infinite values are larger than all others."""
    clipped = np.minimum(values_F, _NEVER)
    found = estimate(float(clipped[0]), clipped[1:], num_people=2)
    value, low, high = (None if end is None else math.inf if end > _NEVER**0.5 else end for end in
                        (found.value, found.low, found.high))  # fmt: skip
    assert value is not None
    return Estimate(value, low, high, found.std_error if np.isfinite(values_F).all() else None)


def _held_out(form: Form, sweep: _Sweep, loss_FP: FloatArray) -> HeldOutNumbers | None:
    """Predict the largest run, of the largest size on most data, from the runs of smaller sizes."""
    largest_P = sweep.n_P == sweep.n_P.max()
    fits = _without(sweep, largest_P, form, loss_FP)
    if fits is None:
        return None
    d = float(sweep.d_P[largest_P].max())
    run_P = largest_P & (sweep.d_P == d)
    observed_F = loss_FP[:, run_P].mean(axis=1)
    # The same people: what moves all losses moves the prediction and the run alike.
    predicted_F = fits.loss(sweep.n_P.max(), d)[:, 0] - (observed_F - observed_F[0])
    predicted, observed = _estimate(predicted_F), float(observed_F[0])
    is_inside = None if predicted.low is None or predicted.high is None else predicted.low <= observed <= predicted.high
    largest = sweep.points[int(np.flatnonzero(run_P)[0])]
    return HeldOutNumbers(
        largest.size, int(sweep.n_P.max()), int(d), int(largest_P.sum()), observed, predicted, is_inside
    )


def _frontier(fits: Fits, sweep: _Sweep) -> tuple[FrontierNumbers | None, str | None]:
    """Return the compute-optimal frontier of an additive law, in closed form; or why there is none."""
    flops = [point.flops for point in sweep.points if point.flops is not None]
    if len(flops) < len(sweep.points):
        return None, "there is no compute-optimal frontier, since not all points have flops"
    design = np.column_stack([np.ones(len(flops)), np.log(sweep.n_P), np.log(sweep.d_P)])
    log_factor, p, q = (float(value) for value in np.linalg.lstsq(design, np.log(flops), rcond=None)[0])
    if min(p, q) <= 0:
        return None, "there is no compute-optimal frontier: the runs' FLOPs do not grow with both N and D"
    values = fits.parameters()
    a, b, A, B = (values[name] for name in ("a", "b", "A", "B"))
    with np.errstate(divide="ignore", invalid="ignore"):
        # dL = 0 along p log N + q log D = log(FLOPs): q a A N^-a = p b B D^-b.
        balance = np.log(p * b * B / (q * a * A))

    def best(budget: float) -> BudgetNumbers:
        log_budget = math.log(budget) - log_factor
        log_n = (b * log_budget / q - balance) / (a + b * p / q)
        log_d = (log_budget - p * log_n) / q
        with np.errstate(over="ignore", invalid="ignore"):
            loss = values["E"] + A * np.exp(-a * log_n) + B * np.exp(-b * log_d)
            return BudgetNumbers(budget, _estimate(np.exp(log_n)), _estimate(np.exp(log_d)), _estimate(loss))

    largest = max(flops)
    return FrontierNumbers(
        math.exp(log_factor), p, q, _estimate(b / (q * a + p * b)), _estimate(a / (q * a + p * b)),
        tuple(best(factor * largest) for factor in _FRONTIER_FACTORS),
        tuple(map(best, np.geomspace(min(flops), _FRONTIER_FACTORS[-1] * largest, _CURVE_POINTS).tolist())),
    ), None  # fmt: skip


def _break_even(fits: Fits, sweep: _Sweep) -> tuple[BreakEvenNumbers, ...]:
    """Compare every smaller size with the largest one on most data."""
    *smaller, large = np.unique(sweep.n_P)
    d = float(sweep.d_P[sweep.n_P == large].max())
    target_F = fits.loss(large, d)[:, 0]
    result = []
    for small in reversed(smaller):
        multiple_F = fits.data_for_loss(float(small), target_F) / d
        never = float(np.mean(np.isinf(multiple_F[1:]))) if len(multiple_F) > 1 else float(np.isinf(multiple_F[0]))
        names = (sweep.size_name(float(small)), sweep.size_name(float(large)))
        result.append(BreakEvenNumbers(*names, int(d), _estimate(multiple_F), never))
    return tuple(result)


def _point_numbers(sweep: _Sweep, losses: SweepLosses, fits: Fits) -> tuple[PointNumbers, ...]:
    fitted = fits.loss(sweep.n_P, sweep.d_P)[0]
    numbers = []
    for place, point in enumerate(sweep.points):
        draws: list[float] = [] if losses.draws_DP is None else losses.draws_DP[:, place].tolist()
        loss = _estimate(np.array([losses.loss_P[place], *draws]))
        numbers.append(
            PointNumbers(
                point.size,
                point.run,
                point.seed,
                point.num_params,
                point.num_non_embedding_params,
                point.num_observations,
                point.num_tokens,
                point.epochs,
                point.flops,
                loss,
                float(fitted[place]),
            )
        )
    order = sorted(range(len(numbers)), key=lambda at: (sweep.n_P[at], sweep.d_P[at], sweep.points[at].seed))
    return tuple(numbers[at] for at in order)


def _notes(points: Sequence[SweepPoint], *, has_interval: bool) -> tuple[str, ...]:
    notes = []
    epochs = [point.epochs for point in points]
    if max(epochs) > _SEVERAL_EPOCHS * min(epochs):
        notes.append(
            f"the runs have {min(epochs):.3g} to {max(epochs):.3g} epochs; D counts different observations, so the law "
            "mixes more data with more repetition"
        )
    if not has_interval:
        notes.append("no intervals: the file has no score tables, and as many parameters as points")
    return tuple(notes)


def _sources(losses: SweepLosses) -> tuple[dict[str, str], ...]:
    files = [*losses.files, *([losses.truth] if losses.truth is not None else [])]
    return tuple(
        {"run": file.run, "file": str(file.path), "model": file.info.model, "careers": file.info.careers,
         "code": file.info.code}
        for file in files
    )  # fmt: skip
