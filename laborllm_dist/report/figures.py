"""Draw a report's figures: a dot and its interval per row, narrow enough to be read on a phone.

Figures are 4.6 inches wide with 10-point text: that is the width of a phone, and on a desk they grow to a column.
A model keeps its color and its marker in every figure; the marker serves those who do not tell the colors apart.
The same numbers give the same bytes, where the same fonts draw the names (report/fonts.py): no date goes in, and the
ids inside an SVG come from a fixed salt.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from rich.cells import cell_len, chop_cells

from laborllm_dist.config.evaluation import FigureFormat
from laborllm_dist.io.number_format import LARGE, MINUS, format_count, format_nats, format_perplexity
from laborllm_dist.plain_text import visible
from laborllm_dist.report.bootstrap import Estimate
from laborllm_dist.report.fonts import FIRST, Drawable, drawable
from laborllm_dist.report.numbers import GroupingNumbers, GroupNumbers, ModelNumbers, PairNumbers
from laborllm_dist.report.outcomes import OutcomeNumbers
from laborllm_dist.report.training_curves import TrainingNumbers

WIDTH_INCHES = 4.6
LETTERS_ACROSS = 40  # 10-point letters beside a number; longer names lose their middle
LARGEST_DRAWN = 1e290  # the ends of an axis are beyond it and must be finite in float64
MANY_BANDS = 12  # more are drawn narrower
GROUP_LETTERS, GROUP_LINES = 17, 3  # of a group's name beside the axis
# Okabe and Ito's colors, in an order that keeps the first few far apart; the true model is always black.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f5539", "#6a4c93")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
TRUE_COLOR, TRUE_MARKER = "#1a1a1a", "*"
_TRAINING: Any = {"color": COLORS[0], "linewidth": 1.3, "label": "training"}
_VALIDATION: Any = {"color": COLORS[1], "linewidth": 1.5, "marker": "o", "markersize": 4, "label": "validation"}
INK, FAINT, BAND, GROUND = "#1f2328", "#d0d5db", "#f3f5f7", "#ffffff"
# What stands for a color where the reader's screen is dark; GROUND becomes that of the page.
IN_THE_DARK = {
    **dict(
        zip(
            COLORS,
            ("#5db4f0", "#ff8f3f", "#2fc79a", "#e79cc4", "#f2b632", "#a5dafc", "#c79b7d", "#b8a1e6"),
            strict=True,
        )
    ),
    TRUE_COLOR: "#ffffff", INK: "#e4e7eb", FAINT: "#3a414a", BAND: "#1e2329", GROUND: "#14171b",
}  # fmt: skip
STYLE: Any = {  # Any: matplotlib types its keys as one literal of all settings
    "text.parse_math": False,  # a dollar sign in a name is one
    "text.usetex": False,
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.axisbelow": True,
    "svg.fonttype": "path",
    "pdf.fonttype": 42,  # TrueType, which journals ask for; matplotlib's default is Type 3
    "svg.hashsalt": "laborllm_dist",
    "figure.facecolor": GROUND,
    "savefig.facecolor": GROUND,
}


@dataclass(frozen=True, slots=True)
class DrawnFigure:
    """A figure with its alternative text.

    `undrawn`: characters of names that no font of this machine has.
    """

    name: str
    alternative: str
    svg: bytes
    undrawn: str
    figure: Figure

    def as_bytes(self, kind: FigureFormat) -> bytes:
        """Return the content of a file of this figure."""
        return _saved(self.figure, kind)

    def _repr_svg_(self) -> str:
        """Return what a notebook shows."""
        return self.svg.decode()


@dataclass(frozen=True, slots=True)
class _Mark:
    color: str
    marker: str


def draw_perplexities(models: Sequence[ModelNumbers], *, measure: str) -> DrawnFigure:
    """Draw every model's perplexity with its interval, best on top."""
    fonts = drawable([visible(model.model) for model in models])
    with matplotlib.rc_context(_style_of(fonts)):
        figure, axes = _new_figure(0.55 * len(models) + 0.75)
        marks = _marks(models)
        for row, model in enumerate(models):
            _write_above(axes, row, _model_label(model, fonts), format_perplexity(model.perplexity.value))
            _draw_estimate(axes, row, model.perplexity, marks[row], size=7)
        _set_perplexity_axis(axes, (model.perplexity for model in models), measure)
        axes.set_ylim(len(models) - 0.65, -0.75)
        return _render(figure, "perplexity", "Perplexity of every model with its 95 % interval", fonts)


def draw_differences(pairs: Sequence[PairNumbers], *, measure: str) -> DrawnFigure:
    """Draw the paired difference of every two models in nats, with its interval."""
    fonts = drawable([visible(name) for pair in pairs for name in (pair.first, pair.second)])
    with matplotlib.rc_context(_style_of(fonts)):
        labels = [_pair_label(pair, fonts) for pair in pairs]
        lines = max(label.count("\n") for label in labels) + 1
        row_inches = 0.32 + 0.17 * lines
        figure, axes = _new_figure(row_inches * len(pairs) + 0.85)
        axes.axvline(0, color=INK, linewidth=0.9, zorder=1)
        for row, pair in enumerate(pairs):
            _write_above(axes, row, labels[row], format_nats(pair.difference_nats.value))
            _draw_estimate(axes, row, pair.difference_nats, _Mark(COLORS[0], "o"), size=7)
        _set_difference_axis(axes, [pair.difference_nats for pair in pairs])
        axes.set_xlabel(f"difference in log-likelihood ({measure}),\nnats per observation; above 0 the first is better")
        axes.set_ylim(len(pairs) - 0.65, -0.85)
        return _render(figure, "differences", "Paired differences between models in nats per observation", fonts)


def draw_grouping(grouping: GroupingNumbers, models: Sequence[ModelNumbers], *, measure: str) -> DrawnFigure:
    """Draw the perplexities of all models in each group: a band per group, a dot and interval per model."""
    groups, many = grouping.groups, len(grouping.groups) > MANY_BANDS
    fonts = drawable(map(visible, [*(model.model for model in models), *(group.group for group in groups)]))
    with matplotlib.rc_context(_style_of(fonts)):
        estimates = [[score.perplexity for score in group.scores] for group in groups]
        labels = [_group_label(group, fonts, short=many) for group in groups]
        figure, axes = _draw_bands(labels, estimates, models, fonts)
        _set_perplexity_axis(axes, (each for row in estimates for each in row), measure)
        alternative = f"Perplexity {grouping.title.lower()}, with 95 % intervals"
        return _render(figure, f"by_{grouping.name}", alternative, fonts)


def draw_auc(outcomes: Sequence[OutcomeNumbers], models: Sequence[ModelNumbers]) -> DrawnFigure:
    """Draw the area under the ROC curve of every outcome: a band per outcome, a dot and interval per model.

    Args:
        outcomes: with an area for some of the models, the same ones in every outcome.
        models: all of the report, which decide the colors.
    """
    names = [score.model for score in outcomes[0].scores]
    fonts = drawable(map(visible, names))
    with matplotlib.rc_context(_style_of(fonts)):
        estimates = [[score.auc for score in outcome.scores if score.auc is not None] for outcome in outcomes]
        labels = [
            "\n".join([*textwrap.wrap(outcome.title, GROUP_LETTERS), f"{format_count(outcome.num_events)} events"])
            for outcome in outcomes
        ]
        figure, axes = _draw_bands(labels, estimates, models, fonts, shown=names)
        axes.axvline(0.5, color=INK, linewidth=0.9, zorder=1)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.set_xlabel("area under the ROC curve; higher is better,\n0.5 is chance")
        return _render(figure, "auc", "Area under the ROC curve of every outcome, with 95 % intervals", fonts)


def draw_calibration(outcome: OutcomeNumbers, models: Sequence[ModelNumbers]) -> DrawnFigure:
    """Draw observed shares over predicted probabilities, a curve per model, with intervals of the shares.

    Args:
        outcome: with curves of some of the models.
        models: all of the report, which decide the colors.
    """
    names = [score.model for score in outcome.scores]
    fonts, shown = drawable(map(visible, names)), _shown(models, names)
    with matplotlib.rc_context(_style_of(fonts)):
        figure, axes = _new_figure(WIDTH_INCHES + 0.22 * _legend_shape([model for model, _ in shown])[0])
        largest = 0.0
        for (_, mark), curve in zip(shown, outcome.curves, strict=True):
            points = [each for each in curve if _has_place(each.observed.value)]
            predicted, observed = [each.predicted for each in points], [each.observed.value for each in points]
            axes.plot(predicted, observed, color=mark.color, marker=mark.marker, markersize=5, linewidth=1.2, zorder=3)
            for each in points:
                if each.observed.low is not None and each.observed.high is not None:
                    ends = [each.observed.low, each.observed.high]
                    axes.plot([each.predicted] * 2, ends, color=mark.color, linewidth=1.2, alpha=0.6)
                    largest = max(largest, ends[1])
            largest = max([largest, *predicted, *observed])
        limit = min(1.0, 1.08 * largest) if largest else 1.0
        axes.plot([0, limit], [0, limit], color=INK, linewidth=0.9, zorder=1)
        axes.set(xlim=(0, limit), ylim=(0, limit), aspect="equal")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(5))
        axes.grid(axis="y", color=FAINT, linewidth=0.6)
        axes.tick_params(axis="x", pad=8)  # apart from the 0 of the other axis
        axes.set_xlabel("predicted probability (mean of a bin)")
        axes.set_ylabel("observed share")
        _add_legend(figure, shown, fonts)
        figure.draw_without_rendering()  # a square finds its place in the second layout
        alternative = f"Calibration, {outcome.title.lower()}: observed shares over predicted probabilities"
        return _render(figure, f"calibration_{outcome.name}", alternative, fonts)


def draw_training(training: TrainingNumbers, name: str) -> DrawnFigure:
    """Draw the training loss and the validation losses of a run by step: per token, and where measured per title.

    Args:
        training: of one run.
        name: of the figure.
    """
    loss = [(point.step, point.nats_per_token) for point in training.training]
    per_token = [(point.step, point.nats_per_token) for point in training.validation]
    per_title = [
        (point.step, point.nats_per_title) for point in training.validation if point.nats_per_title is not None
    ]
    panels = [("nats per token", [(_TRAINING, loss), (_VALIDATION, per_token)])]
    if per_title:
        panels.append(("nats per title", [(_VALIDATION, per_title)]))
    fonts = drawable([])
    with matplotlib.rc_context(_style_of(fonts)):
        figure = Figure(figsize=(WIDTH_INCHES, 0.8 + 1.9 * len(panels)), layout="constrained")
        FigureCanvasAgg(figure)
        for axes, (unit, curves) in zip(
            figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0], panels, strict=True
        ):
            _make_plain(axes)
            for style, points in curves:
                axes.plot(*zip(*points, strict=True), **style) if points else None
            values = [value for _, points in curves for _, value in points]
            _set_loss_axis(axes, values)
            axes.set_ylabel(unit)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tick_text(value)))
        handles = [Line2D([], [], **style) for style, points in panels[0][1] if points]
        figure.legend(handles=handles, loc="outside upper left", ncols=2, frameon=False)
        return _render(figure, name, "Training loss and validation loss by step", fonts)


def _set_loss_axis(axes: Axes, values: Sequence[float]) -> None:
    """Set an axis of losses above 0: logarithmic where they differ much, since most of a training is at its low end."""
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    low, high = min(values), max(values)
    if low > 0 and high > 5 * low:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(FixedLocator(_log_ticks(low, high)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick_text(value)))
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5))


def _draw_bands(
    labels: Sequence[str],
    estimates: Sequence[Sequence[Estimate]],
    models: Sequence[ModelNumbers],
    fonts: Drawable,
    *,
    shown: Sequence[str] | None = None,
) -> tuple[Figure, Axes]:
    """Draw a band per label with an estimate of each model in it.

    `models` are all of the report; `shown` names those that have estimates; None: all.
    """
    many = len(labels) > MANY_BANDS
    marked = _shown(models, [model.model for model in models] if shown is None else shown)
    line_inches = 0.12 if many else 0.16
    band_inches = max(0.3 if many else 0.5, line_inches * (len(marked) + 1))
    legend_rows, _ = _legend_shape([model for model, _ in marked])
    figure, axes = _new_figure(band_inches * len(labels) + 0.75 + 0.22 * legend_rows)
    step = line_inches / band_inches
    for row, of_models in enumerate(estimates):
        if row % 2 == 0:
            axes.axhspan(row - 0.5, row + 0.5, color=BAND, linewidth=0, zorder=0)
        for index, each in enumerate(of_models):
            place = row + (index - (len(marked) - 1) / 2) * step
            _draw_estimate(axes, place, each, marked[index][1], size=4.5 if many else 6)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    _add_legend(figure, marked, fonts)
    return figure, axes


def _style_of(fonts: Drawable) -> Any:
    return {**STYLE, "font.family": list(fonts.families)}


def _new_figure(height_inches: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH_INCHES, height_inches), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _make_plain(axes)
    axes.yaxis.set_major_locator(NullLocator())
    return figure, axes


def _make_plain(axes: Axes) -> None:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="x", color=FAINT, linewidth=0.6)
    axes.tick_params(length=0)


def _marks(models: Sequence[ModelNumbers]) -> list[_Mark]:
    marks, used = [], 0
    for model in models:
        if model.true_model:
            marks.append(_Mark(TRUE_COLOR, TRUE_MARKER))
            continue
        # Past eight models the colors come again with other markers, so that a pair of both stays one model's.
        marks.append(_Mark(COLORS[used % len(COLORS)], MARKERS[(used + used // len(COLORS)) % len(MARKERS)]))
        used += 1
    return marks


def _draw_estimate(axes: Axes, place: float, numbers: Estimate, mark: _Mark, *, size: float) -> None:
    if not _has_place(numbers.value):
        return
    if numbers.low is not None and numbers.high is not None and _has_place(numbers.low) and _has_place(numbers.high):
        axes.plot([numbers.low, numbers.high], [place, place], color=mark.color, linewidth=2, solid_capstyle="round")
    size += 3 * (mark.marker == TRUE_MARKER)  # a star of equal size looks smaller
    axes.plot([numbers.value], [place], mark.marker, color=mark.color, markersize=size, markeredgewidth=0, zorder=3)


def _write_above(axes: Axes, row: int, label: str, value: str) -> None:
    # Above its dot a name may be as long as the figure is wide; beside it, it would squeeze the axis on a phone.
    place, along = row - 0.22, axes.get_yaxis_transform()
    clear: dict[str, Any] = {"facecolor": GROUND, "edgecolor": "none", "pad": 0.8}
    axes.text(0, place, label, transform=along, ha="left", va="bottom", bbox=clear)
    axes.text(
        1, place, value, transform=along, ha="right", va="bottom", fontweight="bold", fontfamily=FIRST, bbox=clear
    )


def _model_label(model: ModelNumbers, fonts: Drawable) -> str:
    name = f"{model.model} (true model)" if model.true_model else model.model
    return shorten(fonts.text(visible(name)), LETTERS_ACROSS)


def _pair_label(pair: PairNumbers, fonts: Drawable) -> str:
    first, second = (fonts.text(visible(name)) for name in (pair.first, pair.second))
    label = f"{first} {MINUS} {second}"
    if cell_len(label) <= LETTERS_ACROSS:
        return label
    return f"{shorten(first, LETTERS_ACROSS)}\n{MINUS} {shorten(second, LETTERS_ACROSS - 2)}"


def shorten(name: str, letters: int) -> str:
    """Cut a name in the middle: long names tend to differ at either end, such as in the run's name."""
    if cell_len(name) <= letters:
        return name
    start, end = chop_cells(name, letters // 2)[0], chop_cells(name[::-1], letters - letters // 2 - 1)[0][::-1]
    return f"{start}…{end}"


def _group_label(group: GroupNumbers, fonts: Drawable, *, short: bool) -> str:
    words = textwrap.wrap(fonts.text(visible(group.group)), width=GROUP_LETTERS)
    lines = [line for part in words for line in chop_cells(part, GROUP_LETTERS)]
    if len(lines) > GROUP_LINES:
        lines = [*lines[: GROUP_LINES - 1], f"{chop_cells(lines[GROUP_LINES - 1], GROUP_LETTERS - 2)[0]} …"]
    name = "\n".join(lines)
    few = "*" if group.few_people else ""
    return f"{name}{few}" if short else f"{name}\n{format_count(group.num_people)} people{few}"


def _shown(models: Sequence[ModelNumbers], names: Sequence[str]) -> list[tuple[ModelNumbers, _Mark]]:
    """Return some of the models with their marks, which are the same in every figure."""
    marks = dict(zip((model.model for model in models), _marks(models), strict=True))
    by_name = {model.model: model for model in models}
    return [(by_name[name], marks[name]) for name in names]


def _add_legend(figure: Figure, shown: Sequence[tuple[ModelNumbers, _Mark]], fonts: Drawable) -> None:
    _, columns = _legend_shape([model for model, _ in shown])
    handles = [_legend_handle(model, mark, fonts) for model, mark in shown]
    figure.legend(handles=handles, loc="outside upper left", ncols=columns, frameon=False)


def _legend_shape(models: Sequence[ModelNumbers]) -> tuple[int, int]:
    columns = 2 if max(cell_len(visible(model.model)) for model in models) <= 14 else 1
    return math.ceil(len(models) / columns), columns


def _legend_handle(model: ModelNumbers, mark: _Mark, fonts: Drawable) -> Line2D:
    size = 10 if mark.marker == TRUE_MARKER else 7
    label = _model_label(model, fonts)
    return Line2D([], [], color=mark.color, marker=mark.marker, markersize=size, linewidth=2, label=label)


def _finite_ends(estimates: Iterable[Estimate]) -> list[float]:
    ends = [end for numbers in estimates for end in (numbers.value, numbers.low, numbers.high)]
    return [end for end in ends if end is not None and _has_place(end)]


def _has_place(value: float) -> bool:
    """Return whether an axis can hold a number."""
    return abs(value) <= LARGEST_DRAWN  # not of NaN


def _set_perplexity_axis(axes: Axes, estimates: Iterable[Estimate], measure: str) -> None:
    ends = _finite_ends(estimates)
    if ends and max(ends) > 5 * min(ends):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(_log_ticks(min(ends), max(ends))))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tick_text(value)))
        axes.set_xlabel(f"perplexity ({measure}), logarithmic axis;\nlower is better")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5))
        if ends and max(ends) >= LARGE:
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tick_text(value)))
        else:
            axes.ticklabel_format(axis="x", style="plain", useOffset=False)
        axes.set_xlabel(f"perplexity ({measure}); lower is better")


def tick_text(value: float) -> str:
    """Return the label of a tick: 1,000; from a million on a power of ten, 1.5e12."""
    if value < LARGE:
        return f"{value + 0.0:,.10g}"  # -0.0 becomes 0
    digits, exponent = f"{value:e}".split("e")
    return f"{float(digits):.3g}e{int(exponent)}"


def _log_ticks(low: float, high: float) -> list[float]:
    """Give ticks of the form 1, 2, 5 times a power of ten in [low, high], thinned to at most seven."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for leads in ((1, 2, 5), (1, 3), (1,)):
        ticks = [lead * 10.0**power for power in powers for lead in leads if low <= lead * 10.0**power <= high]
        if len(ticks) <= 7:
            break
    return ticks[:: math.ceil(len(ticks) / 7)] if ticks else []


def _set_difference_axis(axes: Axes, estimates: Sequence[Estimate]) -> None:
    sizes = sorted(abs(numbers.value) for numbers in estimates if numbers.value and _has_place(numbers.value))
    if not sizes or max(abs(end) for end in _finite_ends(estimates)) <= 20 * sizes[0]:
        axes.xaxis.set_major_locator(MaxNLocator(5))
        return
    # Small differences are the interesting ones: linear around 0, logarithmic beyond, so that both can be seen.
    largest = max(abs(end) for end in _finite_ends(estimates))
    threshold = 10.0 ** max(math.floor(math.log10(sizes[0])), math.ceil(math.log10(largest)) - 3)
    axes.set_xscale("symlog", linthresh=threshold, linscale=0.7)
    decades = range(round(math.log10(threshold)), math.floor(math.log10(largest)) + 1)
    ticks = [10.0**power for power in decades]
    if any(end < -threshold for end in _finite_ends(estimates)):
        ticks = [-tick for tick in ticks] + ticks
    axes.xaxis.set_major_locator(FixedLocator([0.0, *ticks]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _render(figure: Figure, name: str, alternative: str, fonts: Drawable) -> DrawnFigure:
    return DrawnFigure(name, alternative, _saved(figure, "svg"), fonts.undrawn, figure)


def _saved(figure: Figure, kind: Literal["svg", "png", "pdf"]) -> bytes:
    content = io.BytesIO()
    no_date = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": None}
    with matplotlib.rc_context(STYLE):
        figure.savefig(content, format=kind, dpi=200 if kind == "png" else "figure", metadata=no_date[kind])
    saved = content.getvalue()
    return saved.replace(b"</style>", _dark_style() + b"</style>", 1) if kind == "svg" else saved


def _dark_style() -> bytes:
    rules = (
        f'[style*="{what}: {color}"]{{{what}:{instead} !important}}'
        for color, instead in IN_THE_DARK.items()
        for what in ("fill", "stroke")
    )
    return f"@media screen and (prefers-color-scheme:dark){{{''.join(rules)}}}".encode()
