"""The tables of a scaling law for a terminal: parameters, forms, runs, and what follows from the law."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import rich.box

from laborllm_dist.io.console_tables import Column, FoldingTable
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
from laborllm_dist.report.bootstrap import Estimate
from laborllm_dist.sweeps.law_results import (
    COUNTED,
    FORMULAS,
    MEANINGS,
    BaselineNumbers,
    BreakEvenNumbers,
    BudgetNumbers,
    HeldOutNumbers,
    LawNumbers,
)


def terminal_tables(numbers: LawNumbers) -> list[FoldingTable]:
    """Return all tables, in the order of the page."""
    tables = [_parameter_table(numbers), _form_table(numbers), _point_table(numbers)]
    if numbers.held_out is not None:
        tables.append(_held_out_table(numbers.held_out))
    if numbers.frontier is not None:
        tables.append(_frontier_table(numbers.frontier.budgets))
    tables.append(_break_even_table(numbers.break_even))
    if numbers.baselines:
        tables.append(_baseline_table(numbers.baselines))
    return tables


def size_words(num_params: Estimate) -> str:
    """Return in words at which model size the law reaches a loss, with the interval."""
    if math.isinf(num_params.value):
        return "at no model size"
    return f"at {_parameters(num_params.value)} parameters ({_interval(num_params, _parameters)})"


def _parameter_table(numbers: LawNumbers) -> FoldingTable:
    other_count = "total" if numbers.counted == "non_embedding" else "non-embedding"
    table = _table(
        f"Scaling law, {numbers.form}: {FORMULAS[numbers.form]}",
        _name(""), _number("estimate"), _number("95 % interval"), _name("meaning"), _number(f"N {other_count}"),
    )  # fmt: skip
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


def _form_table(numbers: LawNumbers) -> FoldingTable:
    table = _table(
        "Forms, in nats: fit to all runs, and prediction of the largest size from the others",
        _name("form"), _number("residual"), _number("error on the\nlargest size"), _name(""),
    )  # fmt: skip
    for form in numbers.forms:
        error = ABSENT if form.held_out_error is None else four_decimals(form.held_out_error)
        what = "chosen" if form.form == numbers.form else "" if form.problem is None else "not identified"
        table.add_row(form.form, four_decimals(form.rms_residual), error, what)
    table.caption = "\n".join(form.problem for form in numbers.forms if form.problem is not None)
    return table


def _point_table(numbers: LawNumbers) -> FoldingTable:
    headings = ("N", "N with\nembeddings", "D", "seed", "loss", f"law {MINUS}\nloss")
    table = _table("Runs", _name("size"), *map(_number, headings))
    for point in numbers.points:
        table.add_row(
            point.size,
            format_count(point.num_non_embedding_params),
            format_count(point.num_params),
            format_count(point.num_observations),
            str(point.seed),
            four_decimals(point.loss.value),
            format_nats(point.fitted - point.loss.value),
        )
    return table


def _held_out_table(held_out: HeldOutNumbers) -> FoldingTable:
    table = _table(
        f"The largest run, predicted without the {held_out.num_left_out} of its size",
        _name("size"), *map(_number, ("D", "predicted", "95 % interval", "observed")),
    )  # fmt: skip
    table.add_row(
        held_out.size,
        format_count(held_out.num_observations),
        four_decimals(held_out.predicted.value),
        _interval(held_out.predicted, four_decimals),
        four_decimals(held_out.observed),
    )
    return table


def _frontier_table(budgets: Sequence[BudgetNumbers]) -> FoldingTable:
    headings = ("FLOPs", "best N", "95 % interval", "best D", "loss", "95 % interval")
    table = _table("Compute-optimal frontier", *map(_number, headings))
    for each in budgets:
        table.add_row(
            _whole(each.flops),
            _whole(each.num_params.value),
            _interval(each.num_params, _whole),
            _whole(each.num_observations.value),
            four_decimals(each.loss.value),
            _interval(each.loss, four_decimals),
        )
    return table


def _break_even_table(multiples: Sequence[BreakEvenNumbers]) -> FoldingTable:
    table = _table(
        "How much more data makes a small model equal a large one on "
        f"{multiples[0].num_observations:,} observations",
        _name("small"), _name("large"), _number("times the data"), _number("95 % interval"),
    )  # fmt: skip
    for each in multiples:
        table.add_row(each.small, each.large, *_multiple(each.multiple))
    return table


def _baseline_table(baselines: Sequence[BaselineNumbers]) -> FoldingTable:
    table = _table(
        "How much more data makes a model equal a baseline",
        _name("baseline"), _number("its loss"), _name("size"), _number("times the data"), _number("95 % interval"),
    )  # fmt: skip
    for baseline in baselines:
        for each in baseline.by_size:
            table.add_row(baseline.model, four_decimals(baseline.loss.value), each.small, *_multiple(each.multiple))
    table.caption = "\n".join(
        f"{baseline.model}, trained on {format_count(baseline.num_observations)} observations; on them "
        f"the law reaches its loss {size_words(baseline.num_params)}"
        for baseline in baselines
    )
    return table


def _table(title: str, *columns: Column) -> FoldingTable:
    return FoldingTable(columns, title=title, box=rich.box.SIMPLE_HEAD)


def _name(heading: str) -> Column:
    return Column(heading, "name")


def _number(heading: str) -> Column:
    return Column(heading, "number")


def _multiple(multiple: Estimate) -> tuple[str, str]:
    return format_multiple(multiple.value), _interval(multiple, format_multiple)


def _interval(estimate: Estimate, format_number: Callable[[float], str] = format_significant) -> str:
    return format_interval(estimate.low, estimate.high, format_number)


def four_decimals(value: float) -> str:
    """Return a loss in nats as all tables of a law write it."""
    return format_decimals(value, 4)


def _whole(value: float) -> str:
    return format_decimals(value, 0)


def _parameters(value: float) -> str:
    return "infinite" if math.isinf(value) else format_significant(value, 3)
