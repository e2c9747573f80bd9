"""The scaling law of a sweep, from the losses of its runs: its form, and all numbers with their intervals.

An interval covers two sources of randomness. The first is the choice of test people. Each draw resamples people once
for all runs together, as in the report, so that what is common to all runs stays common. The second is noise of each
run: the seed, the order of training, and misfit of the law. Its variance is that of the residuals, less the part that
resampling people explains, and each draw adds such noise to every run. Each draw refits the law over the whole grid of
exponents.

If the runs do not identify the parameters of a law, the error names the run that would help most.

Shapes: P points (runs), D draws; arrays with 1 + D rows have the sample's number first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from laborllm_dist.config.evaluation import FitLawSettings
from laborllm_dist.errors import LawError
from laborllm_dist.randomness import generator
from laborllm_dist.report.bootstrap import Estimate, estimate
from laborllm_dist.sweeps.law import FORMS, Fits, FloatArray, Form, FormName, tangents
from laborllm_dist.sweeps.law_identification import LawData, check_values, determines, identification_problem
from laborllm_dist.sweeps.law_results import (
    BaselineNumbers,
    BreakEvenNumbers,
    BudgetNumbers,
    FormNumbers,
    FrontierNumbers,
    HeldOutNumbers,
    LawNumbers,
    NoiseNumbers,
    PointNumbers,
)
from laborllm_dist.sweeps.losses import SweepLosses
from laborllm_dist.sweeps.points import SweepPoint

_SEVERAL_EPOCHS = 1.1  # runs whose epochs differ by a larger factor get a note
_FRONTIER_FACTORS = (0.01, 0.1, 1.0, 10.0, 100.0)  # of the largest run's FLOPs
_CURVE_POINTS = 41
_NEVER = 1e300  # stands for infinity, since percentiles cannot be interpolated between two infinite values


def analyze_law(points: Sequence[SweepPoint], losses: SweepLosses, settings: FitLawSettings) -> LawNumbers:
    """Choose a form, fit it, and compute all numbers of the law.

    Args:
        points: of one family.
        losses: of these points.
        settings: form, method, count of parameters, draws.

    Raises:
        LawError: if the runs do not identify a law; it names the run to add.
    """
    data, other = LawData.of(points, losses, settings), LawData.of(points, losses, settings, other_count=True)
    check_values(data, settings)
    _check_logarithms(losses.loss_P, settings)  # before the fits
    forms, fits = _compare_forms(data)
    form = FORMS[_chosen(forms, fits, data, settings)]
    noise = _noise(fits[form.name], data, losses.draws_DP)
    loss_FP = _drawn_losses(losses, noise, settings)
    drawn = data.fit(form, loss_FP)
    has_interval = len(loss_FP) > 1
    frontier, why_none = _frontier(drawn, data) if form.name == "additive" else (None, _NO_FRONTIER)
    parameters = {name: _estimate(values) for name, values in drawn.parameters().items()}
    notes = [*_notes(points, noise, has_interval=has_interval), *([why_none] if why_none else [])]
    if losses.is_excess and not _may_be_zero(parameters["E"]):
        notes.append(_EXCESS_LEFT.format(form=form.name))
    return LawNumbers(
        form=form.name,
        method=settings.method,
        counted=settings.num_params,
        pretrained="+".join(sorted({point.pretrained for point in points} - {""})),
        sources=points[0].sources,
        split=settings.split,
        measure=settings.measure,
        is_excess=losses.is_excess,
        num_people=losses.num_people,
        num_observations=losses.num_observations,
        bootstrap_draws=settings.bootstrap_draws if has_interval else 0,
        seed=settings.seed,
        parameters=parameters,
        parameters_other_count={name: float(value[0]) for name, value in other.fit(form).parameters().items()},
        forms=forms,
        noise=noise,
        held_out=_held_out(form, data, losses, settings),
        frontier=frontier,
        break_even=_break_even(drawn, data),
        baselines=_baselines(drawn, data, losses),
        points=_point_numbers(data, losses, drawn),
        scores=_sources(losses),
        notes=tuple(notes),
        fits=drawn,
    )


_NO_FRONTIER = "this form has no compute-optimal frontier: it would put all compute into either parameters or data"
_EXCESS_LEFT = (
    "the interval of E does not contain 0, the true value of an excess; do not extrapolate the {form} form beyond "
    "these runs"
)


def _may_be_zero(estimate: Estimate) -> bool:
    return estimate.low is None or estimate.high is None or estimate.low <= 0 <= estimate.high


def _check_logarithms(losses: FloatArray, settings: FitLawSettings) -> None:
    if settings.method == "chinchilla" and (losses <= 0).any():
        raise LawError(
            "method=chinchilla needs log L, but a loss or a resample of it is not above 0; set "
            "method=variable_projection",
            code="loss-not-positive",
        )


def _compare_forms(data: LawData) -> tuple[tuple[FormNumbers, ...], dict[FormName, Fits]]:
    """Fit every form to all runs, and again without the runs of the largest size."""
    numbers, all_fits = [], {}
    for form in FORMS.values():
        fits = data.fit(form)
        all_fits[form.name] = fits
        problem = identification_problem(fits, data)
        numbers.append(
            FormNumbers(
                form.name,
                {name: float(value[0]) for name, value in fits.parameters().items()},
                _root_mean_square(fits.loss(data.n_P, data.d_P)[0] - data.loss_P),
                _held_out_error(form, data),
                None if problem is None else str(problem),
            )
        )
    return tuple(numbers), all_fits


def _held_out_error(form: Form, data: LawData) -> float | None:
    """Return the error on the runs of the largest size; None if the others do not determine the form."""
    smaller, largest = _divided(data)
    if not determines(smaller, form):
        return None
    return _root_mean_square(smaller.fit(form).loss(largest.n_P, largest.d_P)[0] - largest.loss_P)


def _divided(data: LawData) -> tuple[LawData, LawData]:
    """Return the runs of all smaller sizes, and those of the largest size."""
    largest_P = data.n_P == data.n_P.max()
    return data.where(~largest_P), data.where(largest_P)


def _root_mean_square(values: FloatArray) -> float:
    return float(np.sqrt(np.mean(values**2)))


def _chosen(
    forms: Sequence[FormNumbers], fits: dict[FormName, Fits], data: LawData, settings: FitLawSettings
) -> FormName:
    """Return the form of the settings, or the one that predicts the largest size best from the others.

    If the smaller sizes are too few to fit the usual form of the family, the forms cannot be compared; then the usual
    form is chosen.

    Raises:
        LawError: if the runs do not identify the form, or any form.
    """
    usual: FormName = "multiplicative" if data.points[0].pretrained else "additive"
    if settings.form != "auto":
        usual = settings.form
    usable = [each for each in forms if each.problem is None and settings.form in ("auto", each.form)]
    if not usable:
        problem = identification_problem(fits[usual], data)
        assert problem is not None
        raise problem
    errors = {each.form: each.held_out_error for each in usable if each.held_out_error is not None}
    is_untested = usual not in errors and any(each.form == usual for each in usable)
    if errors and not is_untested:
        return min(errors, key=errors.__getitem__)
    return next((each.form for each in usable if each.form == usual), usable[0].form)


def _noise(fits: Fits, data: LawData, draws_DP: FloatArray | None) -> NoiseNumbers:
    """Split the variance of the residuals into the part that resampling people explains and the noise of each run."""
    slopes = tangents(fits, data.n_P, data.d_P)
    rank = int(np.linalg.matrix_rank(slopes))
    degrees = len(data.loss_P) - rank
    away = np.eye(len(data.loss_P)) - slopes @ np.linalg.pinv(slopes)  # projects out what the parameters absorb
    residual = data.loss_P - fits.loss(data.n_P, data.d_P)[0]
    by_people, level = 0.0, None
    if draws_DP is not None:
        moved_DP = draws_DP - data.loss_P
        by_people = float(np.mean(np.sum((moved_DP @ away) ** 2, axis=1)))
        level = float(np.std(draws_DP.mean(axis=1)))
    runs = math.sqrt(max(float(residual @ residual) - by_people, 0.0) / degrees) if degrees > 0 else None
    return NoiseNumbers(level, runs, max(degrees, 0), *_seed_noise(data))


def _seed_noise(data: LawData) -> tuple[float | None, int]:
    """Return the standard deviation between runs that differ only in their seed, and the number of these runs."""
    squares, num_free, num_repeated = 0.0, 0, 0
    for n, d in data.cells:
        same = data.loss_P[(data.n_P == n) & (data.d_P == d)]
        if len(same) > 1:
            squares += float(np.sum((same - same.mean()) ** 2))
            num_free += len(same) - 1
            num_repeated += len(same)
    return math.sqrt(squares / num_free) if num_free else None, num_repeated


def _drawn_losses(losses: SweepLosses, noise: NoiseNumbers, settings: FitLawSettings) -> FloatArray:
    """Return the losses of the sample, then of each draw, [1 + D, P]; only the sample's if no noise is known.

    Raises:
        LawError: if `method=chinchilla` would take the logarithm of a loss that is 0 or negative.
    """
    loss_P = losses.loss_P
    if losses.draws_DP is None and noise.runs is None:
        return loss_P[None]
    shape = (settings.bootstrap_draws, len(loss_P))
    draws_DP = np.broadcast_to(loss_P, shape) if losses.draws_DP is None else losses.draws_DP
    if noise.runs:
        random = generator(settings.seed, "noise of the runs of a law")
        # The variance is itself an estimate, so with few degrees of freedom the draws have the tails of Student's t.
        spread_D = noise.runs * np.sqrt(
            noise.degrees_of_freedom / random.chisquare(noise.degrees_of_freedom, settings.bootstrap_draws)
        )
        draws_DP = draws_DP + spread_D[:, None] * random.standard_normal(shape)
    loss_FP = np.concatenate([loss_P[None], draws_DP])
    _check_logarithms(loss_FP, settings)
    return loss_FP


def _estimate(values_F: FloatArray) -> Estimate:
    """Return the sample's value with the interval of its draws; infinite values rank above all others."""
    clipped = np.minimum(values_F, _NEVER)
    found = estimate(float(clipped[0]), clipped[1:], num_people=2)
    value, low, high = (None if end is None else math.inf if end > _NEVER**0.5 else end for end in
                        (found.value, found.low, found.high))  # fmt: skip
    assert value is not None
    return Estimate(value, low, high, found.std_error if np.isfinite(values_F).all() else None)


def _held_out(form: Form, data: LawData, losses: SweepLosses, settings: FitLawSettings) -> HeldOutNumbers | None:
    """Predict the largest run (the largest size on most data) from the runs of smaller sizes alone.

    The noise in the interval is also that of the smaller sizes, so a bad fit of the largest size does not widen it.
    """
    smaller, largest = _divided(data)
    if not determines(smaller, form):
        return None
    is_smaller_P = data.n_P < data.n_P.max()
    smaller_draws = None if losses.draws_DP is None else losses.draws_DP[:, is_smaller_P]
    noise = _noise(smaller.fit(form), smaller, smaller_draws)
    # Without degrees of freedom the noise of a run is unknown, and an interval would be too narrow.
    loss_FP = data.loss_P[None] if noise.runs is None else _drawn_losses(losses, noise, settings)
    d = float(largest.d_P.max())
    run_P = ~is_smaller_P & (data.d_P == d)
    observed_F = loss_FP[:, run_P].mean(axis=1)
    # The test people are the same, so what moves all losses moves the prediction and the observed loss alike.
    fits = smaller.fit(form, loss_FP[:, is_smaller_P])
    predicted = _estimate(fits.loss(data.n_P.max(), d)[:, 0] - (observed_F - observed_F[0]))
    observed = float(observed_F[0])
    is_inside = None if predicted.low is None or predicted.high is None else predicted.low <= observed <= predicted.high
    size = data.size_name(float(data.n_P.max()))
    return HeldOutNumbers(size, int(data.n_P.max()), int(d), len(largest.points), observed, predicted, is_inside)


def _frontier(fits: Fits, data: LawData) -> tuple[FrontierNumbers | None, str | None]:
    """Return the compute-optimal frontier of an additive law, in closed form, or the reason why there is none."""
    flops = [point.flops for point in data.points if point.flops is not None]
    if len(flops) < len(data.points):
        return None, "there is no compute-optimal frontier, since not all points have flops"
    design = np.column_stack([np.ones(len(flops)), np.log(data.n_P), np.log(data.d_P)])
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
            # In a draw with A = 0 the best N is 0 and the best D infinite; with B = 0 it is the reverse. Then L = E.
            terms = np.where(A * B > 0, A * np.exp(-a * log_n) + B * np.exp(-b * log_d), 0.0)
            loss = values["E"] + terms
            return BudgetNumbers(budget, _estimate(np.exp(log_n)), _estimate(np.exp(log_d)), _estimate(loss))

    largest = max(flops)
    return FrontierNumbers(
        math.exp(log_factor), p, q, _estimate(b / (q * a + p * b)), _estimate(a / (q * a + p * b)),
        tuple(best(factor * largest) for factor in _FRONTIER_FACTORS),
        tuple(map(best, np.geomspace(min(flops), _FRONTIER_FACTORS[-1] * largest, _CURVE_POINTS).tolist())),
    ), None  # fmt: skip


def _break_even(fits: Fits, data: LawData) -> tuple[BreakEvenNumbers, ...]:
    """Return how much data each smaller size needs to equal the largest size on most data."""
    *smaller, large = np.unique(data.n_P)
    d = float(data.d_P[data.n_P == large].max())
    target_F = fits.loss(large, d)[:, 0]
    return _data_multiples(fits, data, smaller, target_F, int(d), data.size_name(float(large)))


def _baselines(fits: Fits, data: LawData, losses: SweepLosses) -> tuple[BaselineNumbers, ...]:
    """Compare every size with each baseline, on the same resamples of people."""
    sizes = list(np.unique(data.n_P))
    numbers = []
    for baseline in losses.baselines:
        target_F = baseline.loss_F if len(fits.theta_FQ) > 1 else baseline.loss_F[:1]
        model, d = baseline.file.info.model, baseline.num_observations
        numbers.append(
            BaselineNumbers(
                model,
                d,
                _estimate(baseline.loss_F),
                _estimate(fits.params_for_loss(d, target_F)),
                _data_multiples(fits, data, sizes, target_F, d, model),
            )
        )
    return tuple(numbers)


def _data_multiples(
    fits: Fits, data: LawData, sizes: Sequence[float], target_F: FloatArray, num_observations: int, target: str
) -> tuple[BreakEvenNumbers, ...]:
    """Return how many times `num_observations` each size needs to reach a loss, the largest size first."""
    result = []
    for size in reversed(sizes):
        multiple_F = fits.data_for_loss(float(size), target_F) / num_observations
        never = float(np.mean(np.isinf(multiple_F[1:]))) if len(multiple_F) > 1 else float(np.isinf(multiple_F[0]))
        name = data.size_name(float(size))
        result.append(BreakEvenNumbers(name, target, num_observations, _estimate(multiple_F), never))
    return tuple(result)


def _point_numbers(data: LawData, losses: SweepLosses, fits: Fits) -> tuple[PointNumbers, ...]:
    fitted = fits.loss(data.n_P, data.d_P)[0]
    numbers = []
    for place, point in enumerate(data.points):
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
    order = sorted(range(len(numbers)), key=lambda at: (data.n_P[at], data.d_P[at], data.points[at].seed))
    return tuple(numbers[at] for at in order)


def _notes(points: Sequence[SweepPoint], noise: NoiseNumbers, *, has_interval: bool) -> tuple[str, ...]:
    notes = []
    epochs = [point.epochs for point in points]
    if max(epochs) > _SEVERAL_EPOCHS * min(epochs):
        notes.append(
            f"the runs have {min(epochs):.3g} to {max(epochs):.3g} epochs; D counts different observations, so the law "
            "mixes more data with more repetition"
        )
    if not has_interval:
        notes.append("no intervals: there are no test people to resample, and the law has as many parameters as points")
    elif noise.runs is None:
        notes.append(
            "the intervals are for the choice of test people alone, and too narrow: the law has as many parameters as "
            "points, so the noise between runs is unknown"
        )
    return tuple(notes)


def _sources(losses: SweepLosses) -> tuple[dict[str, str], ...]:
    baselines = (baseline.file for baseline in losses.baselines)
    files = [*losses.files, *baselines, *([losses.truth] if losses.truth is not None else [])]
    return tuple(
        {"run": file.run, "file": str(file.path), "model": file.info.model, "careers": file.info.careers,
         "code": file.info.code}
        for file in files
    )  # fmt: skip
