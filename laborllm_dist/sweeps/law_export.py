"""The tables of a scaling law as files: tidy CSV with broom's names, and LaTeX."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from laborllm_dist.io.number_format import ABSENT, format_count, format_multiple, format_significant
from laborllm_dist.plain_text import sheet_cell, visible
from laborllm_dist.report.bootstrap import Estimate
from laborllm_dist.report.export import ExportedTable, LatexTable, csv_text, number_cell, with_interval
from laborllm_dist.sweeps.law_results import (
    COUNTED,
    FORMULAS,
    MEANINGS,
    BreakEvenNumbers,
    BudgetNumbers,
    HeldOutNumbers,
    LawNumbers,
)
from laborllm_dist.sweeps.law_tables import four_decimals

COLUMNS = (
    "term", "form", "size", "compared_with", "num_params", "num_observations", "flops", "seed", "estimate", "std.error",
    "conf.low", "conf.high", "n", "people",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Row:
    """An estimate and what it refers to; cells that do not apply are empty."""

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
    return "Inf" if value == math.inf else number_cell(value)  # R and Python parse "Inf"


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
        rows["law_held_out"] = _held_out_rows(numbers.held_out, numbers)
    if numbers.frontier is not None:
        rows["law_frontier"] = _budget_rows(numbers, numbers.frontier.budgets)
    tables = [ExportedTable(f"{name}.csv", _csv(each, numbers)) for name, each in rows.items()]
    return (*tables, *(ExportedTable(f"{table.name}.tex", table.text()) for table in _latex_tables(numbers)))


def data_of_figures(numbers: LawNumbers) -> dict[str, str]:
    """Return the data of each figure as CSV, by the name of the figure."""
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
            "size": point.size, "num_params": numbers.counted_params(point), "num_observations": point.num_observations,
            "flops": point.flops, "seed": point.seed,
        }  # fmt: skip
        yield _Row("loss", point.loss, **place)
        yield _Row("fitted", _alone(point.fitted), numbers.form, **place)


def _held_out_rows(held_out: HeldOutNumbers, numbers: LawNumbers) -> Iterator[_Row]:
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


def _latex_notes(numbers: LawNumbers) -> tuple[str, ...]:
    people = ""
    if numbers.num_people is not None:
        people = (
            f", scored on {format_count(numbers.num_observations or 0)} observations of "
            f"{format_count(numbers.num_people)} {numbers.split} people"
        )
    what = f"N: {COUNTED[numbers.counted]}. D: different observations to train on. L: {numbers.loss_name}"
    note = f"{len(numbers.points)} runs{people}. {what} ({numbers.measure})."
    if not numbers.bootstrap_draws:
        return (note,)
    draws = format_count(numbers.bootstrap_draws)
    chance = ["on resamples of people"] if numbers.num_people is not None else []
    if numbers.noise.runs is not None:
        chance.append("with the noise between runs")
    return note, f"In brackets: 95 % intervals over {draws} refits, {' '.join(chance)}."


def _latex_tables(numbers: LawNumbers) -> Iterator[LatexTable]:
    notes = _latex_notes(numbers)
    yield LatexTable(
        "law_parameters", f"Scaling law, {numbers.form} form: {FORMULAS[numbers.form]}", ("Parameter", "", "Estimate"),
        [
            [name, MEANINGS[name], with_interval(estimate, format_significant)]
            for name, estimate in numbers.parameters.items()
        ],
        notes,
    )  # fmt: skip
    yield LatexTable(
        "law_forms", "Forms of the scaling law", ("Form", "Residual, nats", "Error on the largest size, nats"),
        [
            [form.form, four_decimals(form.rms_residual),
             ABSENT if form.held_out_error is None else four_decimals(form.held_out_error)]
            for form in numbers.forms
        ],
        notes[:1],
    )  # fmt: skip
    yield LatexTable(
        "law_break_even", "How many times the data make the small model equal the large one",
        ("Small", "Large", "Times the data"),
        [[each.small, each.large, with_interval(each.multiple, format_multiple)] for each in numbers.break_even],
        notes,
    )  # fmt: skip
    if numbers.baselines:
        yield LatexTable(
            "law_baselines", "How many times the data of a baseline make a model equal it",
            ("Baseline", "Loss", "Size", "Times the data"),
            [
                [baseline.model, four_decimals(baseline.loss.value), each.small,
                 with_interval(each.multiple, format_multiple)]
                for baseline in numbers.baselines
                for each in baseline.by_size
            ],
            notes,
        )  # fmt: skip
    yield LatexTable(
        "law_points", "Runs of the sweep", ("Size", "N", "N with embeddings", "D", "Loss", "Law"),
        [
            [point.size, format_count(point.num_non_embedding_params), format_count(point.num_params),
             format_count(point.num_observations), four_decimals(point.loss.value), four_decimals(point.fitted)]
            for point in numbers.points
        ],
        notes[:1],
    )  # fmt: skip
