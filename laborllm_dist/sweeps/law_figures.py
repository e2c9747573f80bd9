"""Figures of a scaling law: the loss by size and by data, the law's errors, and the compute-optimal frontier."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from laborllm_dist.io.number_format import MINUS, format_count
from laborllm_dist.plain_text import visible
from laborllm_dist.report.bootstrap import Estimate
from laborllm_dist.report.figures import (
    COLORS,
    FAINT,
    INK,
    MARKERS,
    WIDTH_INCHES,
    DrawnFigure,
    log_ticks,
    make_plain,
    new_figure,
    render_figure,
    style_of,
    tick_text,
)
from laborllm_dist.report.fonts import drawable
from laborllm_dist.sweeps.law import FloatArray
from laborllm_dist.sweeps.law_results import COUNTED, FrontierNumbers, LawNumbers

_MOST_CURVES = 8
_BEYOND = 1.4  # how far curves go beyond the runs, as a factor
_MARKER_SIZE, _SMALL_MARKER = 6, 4.5
_LEGEND_ROW = 0.22  # inches; a legend has two columns


def draw_figures(numbers: LawNumbers) -> tuple[DrawnFigure, ...]:
    """Draw the law by size and by data, its errors, and the frontier where there is one."""
    figures = [_draw_slices(_by_size(numbers)), _draw_slices(_by_data(numbers)), _draw_errors(numbers)]
    return (*figures, *([_draw_frontier(numbers.frontier, numbers)] if numbers.frontier is not None else []))


@dataclass(frozen=True, slots=True)
class _Slices:
    """The law as a function of N or D, with a curve for each value of the other one; P runs."""

    name: str
    alternative: str
    label: str  # of the axis
    loss_label: str
    along_P: tuple[float, ...]
    other_P: tuple[float, ...]
    loss_P: tuple[float, ...]
    curve_name: Callable[[float], str]
    curve: Callable[[FloatArray, float], FloatArray]  # loss by the law along the axis, for a value of the other one


def _by_size(numbers: LawNumbers) -> _Slices:
    """Return the loss as a function of N, with a curve for each D."""
    return _Slices(
        "law_by_size",
        "Loss of the runs and the law by number of parameters",
        f"N, {COUNTED[numbers.counted]}",
        numbers.loss_name,
        _sizes(numbers),
        _shares(numbers),
        _losses(numbers),
        lambda share: f"D = {format_count(int(share))}",
        lambda sizes, share: numbers.fits.loss(sizes, np.full_like(sizes, share))[0],
    )


def _by_data(numbers: LawNumbers) -> _Slices:
    """Return the loss as a function of D, with a curve for each N."""
    names = {size: point.size for size, point in zip(_sizes(numbers), numbers.points, strict=True)}
    return _Slices(
        "law_by_data",
        "Loss of the runs and the law by amount of data",
        "D, different observations to train on",
        numbers.loss_name,
        _shares(numbers),
        _sizes(numbers),
        _losses(numbers),
        lambda size: visible(names[size]),
        lambda shares, size: numbers.fits.loss(np.full_like(shares, size), shares)[0],
    )


def _draw_slices(slices: _Slices) -> DrawnFigure:
    curves = _thinned(sorted(set(slices.other_P)))
    names = [slices.curve_name(curve) for curve in curves]
    fonts = drawable(names)
    low, high = min(slices.along_P) / _BEYOND, max(slices.along_P) * _BEYOND
    grid = np.geomspace(low, high, 80)
    handles = []
    with matplotlib.rc_context(style_of(fonts)):
        figure, axes = new_figure(_height(3.0, len(curves)))
        for curve, name, color, marker in zip(curves, names, COLORS, MARKERS, strict=False):
            is_here = [other == curve for other in slices.other_P]
            axes.plot(grid, slices.curve(grid, curve), color=color, linewidth=1.3, zorder=2)
            _draw_points(axes, _those(slices.along_P, is_here), _those(slices.loss_P, is_here), marker, color)
            handles.append(_handle(fonts.text(name), color, marker, linewidth=1.3))
        _set_log_axis(axes, grid[0], grid[-1])
        axes.set_xlabel(slices.label)
        _set_loss(axes, slices.loss_label)
        _add_legend(figure, handles)
        return render_figure(figure, slices.name, slices.alternative, fonts)


def _draw_errors(numbers: LawNumbers) -> DrawnFigure:
    """Draw the error of the law (law minus loss) for every run, by N."""
    sizes, shares = _sizes(numbers), _shares(numbers)
    errors = [point.fitted - point.loss.value for point in numbers.points]
    values = sorted(set(shares))
    fonts = drawable([])
    handles = []
    with matplotlib.rc_context(style_of(fonts)):
        figure, axes = new_figure(_height(2.6, min(len(values), _MOST_CURVES)))
        axes.axhline(0, color=INK, linewidth=0.9, zorder=1)
        for place, value in enumerate(values):
            color, marker = COLORS[place % len(COLORS)], MARKERS[place % len(MARKERS)]
            is_here = [share == value for share in shares]
            _draw_points(axes, _those(sizes, is_here), _those(errors, is_here), marker, color)
            if place < _MOST_CURVES:
                handles.append(_handle(f"D = {format_count(int(value))}", color, marker, linewidth=0))
        _set_log_axis(axes, min(sizes) / _BEYOND, max(sizes) * _BEYOND)
        axes.set_xlabel(f"N, {COUNTED[numbers.counted]}")
        _set_loss(axes, f"law {MINUS} loss, nats")
        _add_legend(figure, handles)
        return render_figure(figure, "law_errors", "The law minus the loss of every run", fonts)


def _draw_frontier(frontier: FrontierNumbers, numbers: LawNumbers) -> DrawnFigure:
    """Draw the lowest loss and the best N by FLOPs, with their intervals, and the runs."""
    flops = [each.flops for each in frontier.curve]
    of_runs = [point.flops for point in numbers.points if point.flops is not None]  # all, where there is a frontier
    fonts = drawable([])
    with matplotlib.rc_context(style_of(fonts)):
        figure = Figure(figsize=(WIDTH_INCHES, 5.0), layout="constrained")
        FigureCanvasAgg(figure)
        losses, sizes = figure.subplots(2, sharex=True)
        for axes, estimates, values in (
            (losses, [each.loss for each in frontier.curve], _losses(numbers)),
            (sizes, [each.num_params for each in frontier.curve], _sizes(numbers)),
        ):
            make_plain(axes)
            _draw_band(axes, flops, estimates)
            _draw_points(axes, of_runs, values, MARKERS[1], COLORS[1], size=_SMALL_MARKER)
        _set_loss(losses, numbers.loss_name)
        sizes.set_yscale("log")
        sizes.grid(axis="y", color=FAINT, linewidth=0.6)
        _set_ticks(sizes.yaxis, *sizes.get_ylim())
        sizes.set_ylabel("N")
        _set_log_axis(sizes, flops[0] / _BEYOND, flops[-1])
        sizes.set_xlabel("FLOPs of the training")
        best = Line2D([], [], color=COLORS[0], linewidth=1.6, label="best for the FLOPs")
        _add_legend(figure, [best, _handle("runs", COLORS[1], MARKERS[1], linewidth=0, size=_SMALL_MARKER)])
        alternative = "Compute-optimal frontier: lowest loss and best number of parameters by FLOPs"
        return render_figure(figure, "law_frontier", alternative, fonts)


def _sizes(numbers: LawNumbers) -> tuple[float, ...]:
    return tuple(float(numbers.counted_params(point)) for point in numbers.points)


def _shares(numbers: LawNumbers) -> tuple[float, ...]:
    return tuple(float(point.num_observations) for point in numbers.points)


def _losses(numbers: LawNumbers) -> tuple[float, ...]:
    return tuple(point.loss.value for point in numbers.points)


def _those(values: Sequence[float], chosen: Sequence[bool]) -> list[float]:
    return [value for value, is_chosen in zip(values, chosen, strict=True) if is_chosen]


def _thinned(values: Sequence[float]) -> list[float]:
    """Return at most _MOST_CURVES of the values, evenly spaced and with both ends."""
    places = np.unique(np.linspace(0, len(values) - 1, min(len(values), _MOST_CURVES)).round().astype(int))
    return [values[place] for place in places]


def _height(inches: float, num_curves: int) -> float:
    """Return the height of a figure with a legend above it."""
    return inches + _LEGEND_ROW * math.ceil(num_curves / 2)


def _draw_points(
    axes: Axes,
    x: Sequence[float],
    y: Sequence[float],
    marker: str,
    color: str,
    *,
    size: float = _MARKER_SIZE,
) -> None:
    axes.plot(x, y, marker, color=color, markersize=size, markeredgewidth=0, zorder=3)


def _draw_band(axes: Axes, x: Sequence[float], estimates: Sequence[Estimate]) -> None:
    """Draw estimates as a line, with their intervals as a band where all have one."""
    lows = [each.low for each in estimates if each.low is not None]
    highs = [each.high for each in estimates if each.high is not None]
    if len(lows) == len(highs) == len(estimates):
        axes.fill_between(x, lows, highs, color=COLORS[0], alpha=0.18, linewidth=0, zorder=1)
    axes.plot(x, [each.value for each in estimates], color=COLORS[0], linewidth=1.6, zorder=2)


def _handle(label: str, color: str, marker: str, *, linewidth: float, size: float = _MARKER_SIZE) -> Line2D:
    return Line2D([], [], color=color, marker=marker, markersize=size, linewidth=linewidth, label=label)


def _add_legend(figure: Figure, handles: Sequence[Line2D]) -> None:
    figure.legend(handles=handles, loc="outside upper left", ncols=2, frameon=False)


def _set_log_axis(axes: Axes, low: float, high: float) -> None:
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    _set_ticks(axes.xaxis, low, high)


def _set_ticks(axis: Any, low: float, high: float) -> None:
    axis.set_major_locator(FixedLocator(log_ticks(low, high, most=5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: tick_text(value)))


def _set_loss(axes: Axes, label: str) -> None:
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.ticklabel_format(axis="y", style="plain", useOffset=False)
    axes.set_ylabel(label.replace(" above", "\nabove"))
