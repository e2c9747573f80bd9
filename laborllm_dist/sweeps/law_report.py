"""Write the scaling law of a sweep: law.html, law.json, figures, tidy CSV and LaTeX, in the style of the report.

law.json is written last. It holds every number in full precision, under keys that stay:

    format                   1; another number means that keys have changed
    form, method, counted    additive, multiplicative or rectified; how it was fitted; what N counts
    formula                  of the form
    pretrained, sources      the family of the runs
    split, measure, is_excess   what the loss is: nats per observation, or above the truth where is_excess
    num_people, num_observations   of the test people; null where a file gave the losses
    bootstrap_draws, seed
    parameters               by name (E, A, B, a, b, D0), for plain N and D
    parameters_other_count   of the fit in which N counts the other way
    forms[]                  form, parameters, rms_residual, held_out_error, problem
    noise                    people, runs, degrees_of_freedom, seeds, num_repeated
    held_out                 size, num_params, num_observations, num_left_out, observed, predicted, is_inside
    frontier                 factor, power_n, power_d, exponent_n, exponent_d, budgets[], curve[] (flops, num_params,
                             num_observations, loss); null where the form or the points give none
    break_even[]             small, large, num_observations, multiple, share_never; null in multiple: no amount of data
    baselines[]              model, num_observations (that it was trained on), loss; num_params: N that equals it on
                             them; by_size[], as break_even[]
    points[]                 the runs: size, run, seed, num_params, num_non_embedding_params, num_observations,
                             num_tokens, epochs, flops, loss, fitted
    scores[]                 run, file, model, careers, code
    notes[], files[]

An estimate is {value, low, high, std_error}; the last three are null without an interval.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import rich.box
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from laborllm_dist.config.evaluation import FitLawSettings
from laborllm_dist.io.console_tables import Column, FoldingTable
from laborllm_dist.io.files import finite_or_null
from laborllm_dist.io.number_format import (
    ABSENT,
    MINUS,
    format_count,
    format_decimals,
    format_interval,
    format_multiple,
    format_nats,
    format_significant,
)
from laborllm_dist.plain_text import sheet_cell, visible
from laborllm_dist.report.bootstrap import Estimate
from laborllm_dist.report.export import ExportedTable, LatexTable, csv_text, number_cell, with_interval
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
from laborllm_dist.report.html import render_template
from laborllm_dist.report.write import publish
from laborllm_dist.sweeps.law import FormName
from laborllm_dist.sweeps.law_numbers import analyze_law
from laborllm_dist.sweeps.law_results import BreakEvenNumbers, BudgetNumbers, LawNumbers, PointNumbers
from laborllm_dist.sweeps.losses import choose_family, read_losses
from laborllm_dist.sweeps.points import read_points

FORMAT = 1  # of law.json
FORMULAS: Mapping[FormName, str] = {
    "additive": "L = E + A N^-a + B D^-b",
    "multiplicative": "L = E + A N^-a D^-b",
    "rectified": "L = E + A N^-a / (D0^b + D^b)",
}
MEANINGS = {
    "E": "loss with endless parameters and data",
    "A": "weight of N",
    "B": "weight of D",
    "a": "exponent of N",
    "b": "exponent of D",
    "D0": "observations that pretraining is worth",
}
COUNTED = {"non_embedding": "parameters without embeddings", "total": "parameters with embeddings"}
COLUMNS = (
    "term", "form", "size", "compared_with", "num_params", "num_observations", "flops", "seed", "estimate", "std.error",
    "conf.low", "conf.high", "n", "people",
)  # fmt: skip
_MOST_CURVES = 8
_BEYOND = 1.4  # how far curves go beyond the runs, as a factor


@dataclass(frozen=True, slots=True)
class LawResult:
    """The folder of a law, and its numbers."""

    page: Path
    summary: Path
    numbers: LawNumbers


def write_law(settings: FitLawSettings) -> LawResult:
    """Fit the law of a table of points, and write it to `settings.output`, or to law/ beside the table.

    Raises:
        DataFileError: if the table cannot be read.
        LawError: if its runs do not identify a law.
        RunError: if a run's folder does not exist.
        ScoreTableError: if a run lacks scores of the split, or two tables are not about the same observations.
        ForeignFileError: if a file that is no law's has the name of one of the law's.
    """
    table = Path(settings.points)
    points = choose_family(read_points(table), settings)
    numbers = analyze_law(points, read_losses(points, settings), settings)
    folder = Path(settings.output) if settings.output is not None else table.parent / "law"
    drawn = draw_figures(numbers)
    contents = {folder / "tables" / each.name: each.content.encode() for each in export_tables(numbers)}
    for figure in drawn:
        contents[folder / "figures" / f"{figure.name}.svg"] = figure.svg
        for kind in settings.figure_formats:
            contents[folder / "figures" / f"{figure.name}.{kind}"] = figure.as_bytes(kind)
    files = [str(path.relative_to(folder)) for path in contents]
    page, summary = folder / "law.html", folder / "law.json"
    publish(page, law_page(numbers, drawn), summary, summary_text(numbers, files), contents)
    return LawResult(page, summary, numbers)


def summary_text(numbers: LawNumbers, files: Sequence[str] = ()) -> str:
    """Return the law's numbers, and the names of its other files, as JSON text, ending in a newline."""
    values: dict[str, Any] = {
        field.name: getattr(numbers, field.name) for field in fields(numbers) if field.name != "fits"
    }
    plain = {name: _plain(value) for name, value in values.items()}
    content = {"format": FORMAT, "formula": FORMULAS[numbers.form], **plain, "files": list(files)}
    return json.dumps(finite_or_null(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return asdict(value) if hasattr(value, "__dataclass_fields__") else value


def law_page(numbers: LawNumbers, figures: Sequence[DrawnFigure]) -> str:
    """Return the page as HTML text."""
    return render_template(
        "law.html.j2",
        "tables.js",
        law=numbers,
        formula=FORMULAS,
        meanings=MEANINGS,
        counted=COUNTED,
        figures={figure.name: figure for figure in figures},
        figure_data=data_of_figures(numbers),
        size_words=_size_words,
    )


def terminal_tables(numbers: LawNumbers) -> list[FoldingTable]:
    """Return the tables for a terminal: parameters, forms, runs, and what follows from the law."""
    tables = [_parameter_table(numbers), _form_table(numbers), _point_table(numbers)]
    if numbers.held_out is not None:
        tables.append(_held_out_table(numbers))
    if numbers.frontier is not None:
        tables.append(_frontier_table(numbers.frontier.budgets))
    tables.append(_break_even_table(numbers))
    return [*tables, *([_baseline_table(numbers)] if numbers.baselines else [])]


def _table(title: str, columns: Sequence[Column]) -> FoldingTable:
    return FoldingTable(columns, title=title, box=rich.box.SIMPLE_HEAD)


def _interval(estimate: Estimate, format_number: Callable[[float], str] = format_significant) -> str:
    return format_interval(estimate.low, estimate.high, format_number)


def _parameter_table(numbers: LawNumbers) -> FoldingTable:
    columns = [Column("", "name"), Column("estimate", "number"), Column("95 % interval", "number")]
    columns += [Column("meaning", "name"), Column(f"N {_other_count(numbers)}", "number")]
    table = _table(f"Scaling law, {numbers.form}: {FORMULAS[numbers.form]}", columns)
    for name, estimate in numbers.parameters.items():
        other = format_significant(numbers.parameters_other_count[name])
        table.add_row(name, format_significant(estimate.value), _interval(estimate), MEANINGS[name], other)
    noise = numbers.noise
    captions = [f"L: {numbers.loss_name}; N: {COUNTED[numbers.counted]}; D: different observations to train on"]
    if noise.runs is not None:
        captions.append(f"noise of a run besides the test people: {noise.runs:.4f} nats")
    if noise.seeds is not None:
        captions.append(f"between seeds: {noise.seeds:.4f} nats ({noise.num_repeated} runs)")
    table.caption = "\n".join(captions)
    return table


def _other_count(numbers: LawNumbers) -> str:
    return "total" if numbers.counted == "non_embedding" else "non-embedding"


def _form_table(numbers: LawNumbers) -> FoldingTable:
    columns = [Column("form", "name"), Column("residual", "number"), Column("error on the\nlargest size", "number")]
    columns += [Column("", "name")]
    table = _table("Forms, in nats: fit to all runs, and prediction of the largest size from the others", columns)
    for form in numbers.forms:
        error = ABSENT if form.held_out_error is None else format_decimals(form.held_out_error, 4)
        what = "chosen" if form.form == numbers.form else "" if form.problem is None else "not identified"
        table.add_row(form.form, format_decimals(form.rms_residual, 4), error, what)
    table.caption = "\n".join(form.problem for form in numbers.forms if form.problem is not None)
    return table


def _point_table(numbers: LawNumbers) -> FoldingTable:
    headings = ("N", "N with\nembeddings", "D", "seed", "loss", f"law {MINUS}\nloss")
    table = _table("Runs", [Column("size", "name"), *(Column(heading, "number") for heading in headings)])
    for point in numbers.points:
        table.add_row(
            point.size,
            format_count(point.num_non_embedding_params),
            format_count(point.num_params),
            format_count(point.num_observations),
            str(point.seed),
            format_decimals(point.loss.value, 4),
            format_nats(point.fitted - point.loss.value),
        )
    return table


def _held_out_table(numbers: LawNumbers) -> FoldingTable:
    held_out = numbers.held_out
    assert held_out is not None
    headings = ("predicted", "95 % interval", "observed")
    title = f"The largest run, predicted without the {held_out.num_left_out} of its size"
    table = _table(
        title, [Column("size", "name"), Column("D", "number"), *(Column(each, "number") for each in headings)]
    )
    table.add_row(
        held_out.size,
        format_count(held_out.num_observations),
        format_decimals(held_out.predicted.value, 4),
        _interval(held_out.predicted, _four_decimals),
        format_decimals(held_out.observed, 4),
    )
    return table


def _four_decimals(value: float) -> str:
    return format_decimals(value, 4)


def _whole(value: float) -> str:
    return format_decimals(value, 0)


def _frontier_table(budgets: Sequence[BudgetNumbers]) -> FoldingTable:
    headings = ("FLOPs", "best N", "95 % interval", "best D", "loss", "95 % interval")
    table = _table("Compute-optimal frontier", [Column(heading, "number") for heading in headings])
    for each in budgets:
        table.add_row(
            format_decimals(each.flops, 0),
            _whole(each.num_params.value),
            _interval(each.num_params, _whole),
            _whole(each.num_observations.value),
            format_decimals(each.loss.value, 4),
            _interval(each.loss, _four_decimals),
        )
    return table


def _break_even_table(numbers: LawNumbers) -> FoldingTable:
    columns = [Column("small", "name"), Column("large", "name"), Column("times the data", "number")]
    table = _table(
        f"How much more data makes a small model equal a large one on {numbers.break_even[0].num_observations:,} "
        "observations",
        [*columns, Column("95 % interval", "number")],
    )
    for each in numbers.break_even:
        table.add_row(
            each.small, each.large, format_multiple(each.multiple.value), _interval(each.multiple, format_multiple)
        )
    return table


def _baseline_table(numbers: LawNumbers) -> FoldingTable:
    columns = [Column("baseline", "name"), Column("its loss", "number"), Column("size", "name")]
    columns += [Column("times the data", "number"), Column("95 % interval", "number")]
    table = _table("How much more data makes a model equal a baseline", columns)
    for baseline in numbers.baselines:
        for each in baseline.by_size:
            multiple = (format_multiple(each.multiple.value), _interval(each.multiple, format_multiple))
            table.add_row(baseline.model, _four_decimals(baseline.loss.value), each.small, *multiple)
    table.caption = "\n".join(
        f"{baseline.model}, trained on {format_count(baseline.num_observations)} observations; on them "
        f"the law reaches its loss {_size_words(baseline.num_params)}"
        for baseline in numbers.baselines
    )
    return table


def _size_words(num_params: Estimate) -> str:
    if math.isinf(num_params.value):
        return "at no model size"
    return f"at {_parameters(num_params.value)} parameters ({_interval(num_params, _parameters)})"


def _parameters(value: float) -> str:
    return "endless" if math.isinf(value) else format_count(round(value))


@dataclass(frozen=True, slots=True)
class _Row:
    term: str
    estimate: Estimate
    form: str = ""
    size: str = ""
    compared_with: str = ""
    num_params: float | None = None
    num_observations: float | None = None
    flops: float | None = None
    seed: int | None = None

    def cells(self, numbers: LawNumbers) -> tuple[str, ...]:
        """Return the cells of a CSV, in the order of COLUMNS."""
        names = (self.term, self.form, self.size, self.compared_with)
        points = (self.num_params, self.num_observations, self.flops)
        values = (self.estimate.value, self.estimate.std_error, self.estimate.low, self.estimate.high)
        seed = "" if self.seed is None else str(self.seed)
        people = "" if numbers.num_people is None else str(numbers.num_people)
        return (
            *map(sheet_cell, map(visible, names)), *map(number_cell, points), seed, *map(_end_cell, values),
            str(len(numbers.points)), people,
        )  # fmt: skip


def _end_cell(value: float | None) -> str:
    return "Inf" if value == math.inf else number_cell(value)  # R and Python read it as infinity


def _csv(rows: Iterable[_Row], numbers: LawNumbers) -> str:
    return csv_text([COLUMNS, *(row.cells(numbers) for row in rows)])


def export_tables(numbers: LawNumbers) -> tuple[ExportedTable, ...]:
    """Return all tables of a law as CSV and LaTeX."""
    rows: dict[str, Iterable[_Row]] = {
        "law_parameters": _parameter_rows(numbers),
        "law_forms": _form_rows(numbers),
        "law_points": _point_rows(numbers),
        "law_break_even": _break_even_rows(numbers.break_even, numbers),
    }
    if numbers.baselines:
        rows["law_baselines"] = _baseline_rows(numbers)
    if numbers.held_out is not None:
        rows["law_held_out"] = _held_out_rows(numbers)
    if numbers.frontier is not None:
        rows["law_frontier"] = _budget_rows(numbers, numbers.frontier.budgets)
    tables = [ExportedTable(f"{name}.csv", _csv(each, numbers)) for name, each in rows.items()]
    return (*tables, *(ExportedTable(f"{table.name}.tex", table.text()) for table in _latex_tables(numbers)))


def data_of_figures(numbers: LawNumbers) -> dict[str, str]:
    """Return what each figure shows, as CSV, by the name of the figure."""
    points = _csv(_point_rows(numbers), numbers)
    data = {"law_by_size": points, "law_by_data": points, "law_errors": points}
    if numbers.frontier is not None:
        data["law_frontier"] = _csv(_budget_rows(numbers, numbers.frontier.curve), numbers)
    return data


def _alone(value: float) -> Estimate:
    return Estimate(value, None, None, None)


def _parameter_rows(numbers: LawNumbers) -> Iterator[_Row]:
    for name, estimate in numbers.parameters.items():
        yield _Row(name, estimate, numbers.form)
    if numbers.frontier is not None:
        yield _Row("exponent_of_best_n", numbers.frontier.exponent_n, numbers.form)
        yield _Row("exponent_of_best_d", numbers.frontier.exponent_d, numbers.form)


def _form_rows(numbers: LawNumbers) -> Iterator[_Row]:
    for form in numbers.forms:
        for name, value in form.parameters.items():
            yield _Row(name, _alone(value), form.form)
        yield _Row("rms_residual", _alone(form.rms_residual), form.form)
        if form.held_out_error is not None:
            yield _Row("held_out_error", _alone(form.held_out_error), form.form)


def _point_rows(numbers: LawNumbers) -> Iterator[_Row]:
    for point in numbers.points:
        place: dict[str, Any] = {
            "size": point.size, "num_params": _n(point, numbers), "num_observations": point.num_observations,
            "flops": point.flops, "seed": point.seed,
        }  # fmt: skip
        yield _Row("loss", point.loss, **place)
        yield _Row("fitted", _alone(point.fitted), numbers.form, **place)


def _held_out_rows(numbers: LawNumbers) -> Iterator[_Row]:
    held_out = numbers.held_out
    assert held_out is not None
    place: dict[str, Any] = {
        "size": held_out.size, "num_params": held_out.num_params, "num_observations": held_out.num_observations,
    }  # fmt: skip
    yield _Row("predicted", held_out.predicted, numbers.form, **place)
    yield _Row("observed", _alone(held_out.observed), **place)


def _budget_rows(numbers: LawNumbers, budgets: Sequence[BudgetNumbers]) -> Iterator[_Row]:
    for each in budgets:
        for term in ("num_params", "num_observations", "loss"):
            yield _Row(f"best_{term}" if term != "loss" else term, getattr(each, term), numbers.form, flops=each.flops)


def _baseline_rows(numbers: LawNumbers) -> Iterator[_Row]:
    for baseline in numbers.baselines:
        place: dict[str, Any] = {"compared_with": baseline.model, "num_observations": baseline.num_observations}
        yield _Row("loss", baseline.loss, **place)
        yield _Row("num_params", baseline.num_params, numbers.form, **place)
        yield from _break_even_rows(baseline.by_size, numbers)


def _break_even_rows(multiples: Iterable[BreakEvenNumbers], numbers: LawNumbers) -> Iterator[_Row]:
    for each in multiples:
        yield _Row(
            "data_multiple", each.multiple, numbers.form, each.small, each.large, num_observations=each.num_observations
        )


def _n(point: PointNumbers, numbers: LawNumbers) -> int:
    return point.num_params if numbers.counted == "total" else point.num_non_embedding_params


def _latex_notes(numbers: LawNumbers) -> tuple[str, ...]:
    people = (
        ""
        if numbers.num_people is None
        else f", scored on {format_count(numbers.num_observations or 0)} observations of "
        f"{format_count(numbers.num_people)} {numbers.split} people"
    )
    what = f"N: {COUNTED[numbers.counted]}. D: different observations to train on. L: {numbers.loss_name}"
    draws = format_count(numbers.bootstrap_draws)
    return (
        f"{len(numbers.points)} runs{people}. {what} ({numbers.measure}).",
        f"In brackets: 95 % intervals over {draws} refits, on resamples of people with the noise between runs.",
    )


def _latex_tables(numbers: LawNumbers) -> Iterator[LatexTable]:
    notes = _latex_notes(numbers)
    rows: list[list[str | tuple[str, str]]] = [
        [name, MEANINGS[name], with_interval(estimate, format_significant)]
        for name, estimate in numbers.parameters.items()
    ]
    caption = f"Scaling law, {numbers.form} form: {FORMULAS[numbers.form]}"
    yield LatexTable("law_parameters", caption, ("Parameter", "", "Estimate"), rows, notes)
    rows = [
        [
            form.form,
            format_decimals(form.rms_residual, 4),
            ABSENT if form.held_out_error is None else format_decimals(form.held_out_error, 4),
        ]
        for form in numbers.forms
    ]
    headings = ("Form", "Residual, nats", "Error on the largest size, nats")
    yield LatexTable("law_forms", "Forms of the scaling law", headings, rows, notes[:1])
    rows = [[each.small, each.large, with_interval(each.multiple, format_multiple)] for each in numbers.break_even]
    caption = "How many times the data make the small model equal the large one"
    yield LatexTable("law_break_even", caption, ("Small", "Large", "Times the data"), rows, notes)
    if numbers.baselines:
        rows = [
            [
                baseline.model,
                _four_decimals(baseline.loss.value),
                each.small,
                with_interval(each.multiple, format_multiple),
            ]
            for baseline in numbers.baselines
            for each in baseline.by_size
        ]
        caption = "How many times the data of a baseline make a model equal it"
        yield LatexTable("law_baselines", caption, ("Baseline", "Loss", "Size", "Times the data"), rows, notes)
    rows = [
        [point.size, *map(format_count, _counts(point)), _four_decimals(point.loss.value), _four_decimals(point.fitted)]
        for point in numbers.points
    ]
    columns = ("Size", "N", "N with embeddings", "D", "Loss", "Law")
    yield LatexTable("law_points", "Runs of the sweep", columns, rows, notes[:1])


def _counts(point: PointNumbers) -> tuple[int, int, int]:
    return point.num_non_embedding_params, point.num_params, point.num_observations


def draw_figures(numbers: LawNumbers) -> tuple[DrawnFigure, ...]:
    """Draw the law by size and by data, its errors, and the frontier where there is one."""
    figures = [_draw_by(numbers, by_size=True), _draw_by(numbers, by_size=False), _draw_errors(numbers)]
    return (*figures, *([_draw_frontier(numbers)] if numbers.frontier is not None else []))


def _draw_by(numbers: LawNumbers, *, by_size: bool) -> DrawnFigure:
    """Draw the loss over N with a curve for each D, or the other way."""
    places = [(float(_n(point, numbers)), float(point.num_observations)) for point in numbers.points]
    along, of_curve = (0, 1) if by_size else (1, 0)
    curves = _thinned(sorted({place[of_curve] for place in places}))
    name_of = {float(_n(point, numbers)): point.size for point in numbers.points}
    names = [f"D = {format_count(int(each))}" if by_size else visible(name_of[each]) for each in curves]
    fonts = drawable(names)
    with matplotlib.rc_context(style_of(fonts)):
        figure, axes = new_figure(3.0 + 0.22 * math.ceil(len(curves) / 2))
        ends = [place[along] for place in places]
        grid = np.geomspace(min(ends) / _BEYOND, max(ends) * _BEYOND, 80)
        handles = []
        for curve, name, color, marker in zip(curves, names, COLORS, MARKERS, strict=False):
            other = np.full_like(grid, curve)
            pair = (grid, other) if by_size else (other, grid)
            axes.plot(grid, numbers.fits.loss(*pair)[0], color=color, linewidth=1.3, zorder=2)
            here = [
                (place[along], point.loss.value)
                for place, point in zip(places, numbers.points, strict=True)
                if place[of_curve] == curve
            ]
            axes.plot(*zip(*here, strict=True), marker, color=color, markersize=6, markeredgewidth=0, zorder=3)
            handles.append(
                Line2D([], [], color=color, marker=marker, markersize=6, linewidth=1.3, label=fonts.text(name))
            )
        _set_log_axis(axes, grid[0], grid[-1])
        axes.set_xlabel(f"N, {COUNTED[numbers.counted]}" if by_size else "D, different observations to train on")
        _set_loss(axes, numbers.loss_name)
        figure.legend(handles=handles, loc="outside upper left", ncols=2, frameon=False)
        what = "number of parameters" if by_size else "amount of data"
        name = "law_by_size" if by_size else "law_by_data"
        return render_figure(figure, name, f"Loss of the runs and the law by {what}", fonts)


def _thinned(values: Sequence[float]) -> list[float]:
    """Return at most as many values as there are colors, with both ends."""
    places = np.unique(np.linspace(0, len(values) - 1, min(len(values), _MOST_CURVES)).round().astype(int))
    return [values[place] for place in places]


def _draw_errors(numbers: LawNumbers) -> DrawnFigure:
    """Draw the law minus the loss of every run, over N."""
    shares = sorted({point.num_observations for point in numbers.points})
    fonts = drawable([])
    with matplotlib.rc_context(style_of(fonts)):
        figure, axes = new_figure(2.6 + 0.22 * math.ceil(min(len(shares), _MOST_CURVES) / 2))
        axes.axhline(0, color=INK, linewidth=0.9, zorder=1)
        handles = []
        for place, share in enumerate(shares):
            color, marker = COLORS[place % len(COLORS)], MARKERS[place % len(MARKERS)]
            here = [
                (_n(point, numbers), point.fitted - point.loss.value)
                for point in numbers.points
                if point.num_observations == share
            ]
            axes.plot(*zip(*here, strict=True), marker, color=color, markersize=6, markeredgewidth=0, zorder=3)
            if place < _MOST_CURVES:
                label = f"D = {format_count(share)}"
                handles.append(Line2D([], [], color=color, marker=marker, markersize=6, linewidth=0, label=label))
        sizes = [_n(point, numbers) for point in numbers.points]
        _set_log_axis(axes, min(sizes) / _BEYOND, max(sizes) * _BEYOND)
        axes.set_xlabel(f"N, {COUNTED[numbers.counted]}")
        _set_loss(axes, f"law {MINUS} loss, nats")
        figure.legend(handles=handles, loc="outside upper left", ncols=2, frameon=False)
        return render_figure(figure, "law_errors", "The law minus the loss of every run", fonts)


def _draw_frontier(numbers: LawNumbers) -> DrawnFigure:
    """Draw the lowest loss and the best N by FLOPs, with their intervals, and the runs."""
    frontier = numbers.frontier
    assert frontier is not None
    flops = [each.flops for each in frontier.curve]
    fonts = drawable([])
    with matplotlib.rc_context(style_of(fonts)):
        figure = Figure(figsize=(WIDTH_INCHES, 5.0), layout="constrained")
        FigureCanvasAgg(figure)
        losses, sizes = figure.subplots(2, sharex=True)
        for axes, estimates, values in (
            (losses, [each.loss for each in frontier.curve], [point.loss.value for point in numbers.points]),
            (sizes, [each.num_params for each in frontier.curve], [_n(point, numbers) for point in numbers.points]),
        ):
            make_plain(axes)
            lows, highs = ([getattr(each, end) for each in estimates] for end in ("low", "high"))
            if None not in lows and None not in highs:
                axes.fill_between(flops, lows, highs, color=COLORS[0], alpha=0.18, linewidth=0, zorder=1)
            axes.plot(flops, [each.value for each in estimates], color=COLORS[0], linewidth=1.6, zorder=2)
            axes.plot(
                [point.flops for point in numbers.points], values, MARKERS[1], color=COLORS[1], markersize=4.5,
                markeredgewidth=0, zorder=3,
            )  # fmt: skip
        _set_loss(losses, numbers.loss_name)
        sizes.set_yscale("log")
        sizes.grid(axis="y", color=FAINT, linewidth=0.6)
        _set_ticks(sizes.yaxis, *sizes.get_ylim())
        sizes.set_ylabel("N")
        _set_log_axis(sizes, flops[0] / _BEYOND, flops[-1])
        sizes.set_xlabel("FLOPs of the training")
        handles = [
            Line2D([], [], color=COLORS[0], linewidth=1.6, label="best for the FLOPs"),
            Line2D([], [], color=COLORS[1], marker=MARKERS[1], markersize=4.5, linewidth=0, label="runs"),
        ]
        figure.legend(handles=handles, loc="outside upper left", ncols=2, frameon=False)
        alternative = "Compute-optimal frontier: lowest loss and best number of parameters by FLOPs"
        return render_figure(figure, "law_frontier", alternative, fonts)


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
