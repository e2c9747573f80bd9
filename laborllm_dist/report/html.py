"""Fill the report's pages: numbers as text, figures inside it, nothing fetched from anywhere.

A page takes all its numbers from `ReportNumbers`; the template only lays them out. Figures go in as data, so one
file can be mailed, kept and printed. Its policy forbids every request, and every script but its own, which sorts
tables and picks a person; without script the page shows the same.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Callable, Sequence
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from laborllm_dist.io.number_format import (
    format_auc,
    format_count,
    format_decimals,
    format_interval,
    format_nats,
    format_perplexity,
    format_probability,
    format_share,
    format_signed_auc,
    format_signed_perplexity,
)
from laborllm_dist.plain_text import visible
from laborllm_dist.report.bootstrap import Estimate
from laborllm_dist.report.careers import MOST_PROBABLE, Career
from laborllm_dist.report.export import data_of_figures
from laborllm_dist.report.figures import DrawnFigure
from laborllm_dist.report.numbers import ReportNumbers
from laborllm_dist.report.outcomes import TOP_TITLE


def render_page(numbers: ReportNumbers, figures: Sequence[DrawnFigure], *, careers: str | None = None) -> str:
    """Return the page as HTML text.

    Args:
        numbers: the whole report.
        figures: `perplexity`, `differences` where there are two models or more, `by_NAME` for each grouping, and where
            there are tables of titles, `auc` and `calibration_NAME` for each outcome; `training_NUMBER` for each run
            that was trained.
        careers: name of the file of single careers beside the page; None: there is none.
    """
    with_auc = [outcome for outcome in numbers.outcomes if outcome.name != TOP_TITLE]
    columns = (numbers.models, *(each.models for each in numbers.other_data))
    best = next((model for model in numbers.models if not model.true_model), numbers.models[0])
    return _render(
        "report.html.j2",
        "tables.js",
        report=numbers,
        measure=numbers.measure,
        careers=careers,
        figures={figure.name: figure for figure in figures},
        figure_data=data_of_figures(numbers),
        with_auc=with_auc,
        most_inexact={
            model.model: max((outcome.scores[place].num_inexact for outcome in with_auc), default=0)
            for place, model in enumerate(numbers.titles)
        },
        data_columns=[(f"{numbers.split} people", numbers), *((each.data, each) for each in numbers.other_data)],
        data_models=list(dict.fromkeys(model.model for models in columns for model in models)),
        has_truth=any(model.true_model for model in numbers.models),
        best=best,
        next_best=next((pair for pair in numbers.pairs if pair.first == best.model), None),
    )


def render_careers(numbers: ReportNumbers, careers: Sequence[Career]) -> str:
    """Return the page of single careers as HTML text."""
    return _render(
        "careers.html.j2", "tables.js", "careers.js", report=numbers, careers=careers, most_probable=MOST_PROBABLE
    )


_NUMBERS: dict[str, Callable[[float], str]] = {
    "perplexity": format_perplexity,
    "nats": format_nats,
    "share": format_share,
    "probability": format_probability,
    "signed_perplexity": format_signed_perplexity,
    "auc": format_auc,
    "signed_auc": format_signed_auc,
}


def _render(template: str, *scripts: str, **values: object) -> str:
    """Return a page with its script, and the policy that lets this script run and nothing be fetched."""
    environment = _environment()
    text = "".join(_template_text(environment, script) for script in scripts)
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return environment.get_template(template).render(script=Markup(text), policy=policy, **values)


def _template_text(environment: Environment, name: str) -> str:
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("laborllm_dist.report", "templates"),
        autoescape=True,
        finalize=_as_seen,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= _NUMBERS | {f"{name}_interval": _interval(number) for name, number in _NUMBERS.items()}
    environment.filters |= {"count": format_count, "decimals": format_decimals}
    environment.filters["svg_data"] = _svg_data
    environment.filters["csv_data"] = _csv_data
    environment.filters |= {"sort_key": _sort_key, "percentage": _percentage, "width": _width, "rank": _rank}
    environment.globals |= {"cell": _cell, "count_cell": _count_cell}
    return environment


def _as_seen(value: object) -> object:
    """Return a value as text for the page, with escapes for invisible characters."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _svg_data(figure: DrawnFigure) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(figure.svg).decode("ascii")


def _csv_data(text: str) -> str:
    return "data:text/csv;charset=utf-8;base64," + base64.b64encode(text.encode()).decode("ascii")


def _cell(estimate: Estimate, kind: str, *, strong: bool = False) -> Markup:
    """Return the cell of an estimate: the number, its interval below, and what the column is sorted by."""
    number = Markup("<strong>{}</strong>" if strong else "{}").format(_NUMBERS[kind](estimate.value))
    interval = format_interval(estimate.low, estimate.high, _NUMBERS[kind])
    cell = Markup('<td data-number="{}">{}<small>{}</small></td>')
    return cell.format(_sort_key(estimate.value), number, interval)


def _count_cell(count: int) -> Markup:
    return Markup('<td data-number="{}">{}</td>').format(count, format_count(count))


def _percentage(probability: float) -> str:
    """Return 62.1 %, or 0.0042 % with two digits where one decimal would show nothing."""
    return (
        format_share(probability)
        if probability >= 0.0005
        else f"{format_probability(100 * probability)}\N{NO-BREAK SPACE}%"
    )


def _width(share: float) -> str:
    return f"{100 * share:.1f}%"


def _rank(rank: float) -> str:
    return format_count(int(rank)) if rank.is_integer() else f"{rank:,.1f}"


def _sort_key(value: float | None) -> str:
    """Return a number as script reads it; nothing for one that does not exist."""
    if value is None or math.isnan(value):
        return ""
    return repr(float(value) + 0.0) if math.isfinite(value) else "Infinity" if value > 0 else "-Infinity"


def _interval(format_number: Callable[[float], str]) -> Callable[[Estimate], str]:
    return lambda estimate: format_interval(estimate.low, estimate.high, format_number)
