"""Write the tables of a report for other programs: tidy CSV for statistics, LaTeX for a paper.

A CSV has one estimate per row, in the columns that R's broom and modelsummary and Python's readers take:

    term         what is estimated, such as perplexity, auc or ece
    model        the model; compared_with: the model or group whose number was subtracted (empty: none)
    outcome      for AUC and calibration
    grouping, group   for numbers of a group; `bin` and `predicted` for calibration curves
    estimate, std.error, conf.low, conf.high   over resamples of people, on the 95 % level; in refits.csv over all
                 pairs of a refit and a resample of test people
    n, people    observations and people that the number is about

Empty cells are numbers that do not exist, or that float64 cannot hold. LaTeX needs the packages booktabs,
threeparttable and adjustbox; the last one makes a table smaller that is wider than the text or longer than a page.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from laborllm_dist.io.number_format import (
    format_auc,
    format_count,
    format_decimals,
    format_nats,
    format_perplexity,
    format_share,
)
from laborllm_dist.plain_text import latex_text, sheet_cell, visible
from laborllm_dist.report.bootstrap import Estimate
from laborllm_dist.report.numbers import GroupingNumbers, ModelNumbers, ReportNumbers
from laborllm_dist.report.outcomes import TOP_TITLE, OutcomeNumbers, OutcomeScore
from laborllm_dist.report.refits import RefitNumbers
from laborllm_dist.report.training_curves import TrainingNumbers

COLUMNS = (
    "term", "model", "compared_with", "outcome", "grouping", "group", "bin", "predicted", "estimate", "std.error",
    "conf.low", "conf.high", "n", "people",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ExportedTable:
    """A file of tables/ and its content."""

    name: str
    content: str


@dataclass(frozen=True, slots=True)
class _Row:
    term: str
    model: str
    estimate: Estimate
    n: int
    people: int
    compared_with: str = ""
    outcome: str = ""
    grouping: str = ""
    group: str = ""
    bin: int | None = None
    predicted: float | None = None

    def cells(self) -> tuple[str, ...]:
        """Return the cells of a CSV, in the order of COLUMNS."""
        names = (self.term, self.model, self.compared_with, self.outcome, self.grouping, self.group)
        values = (self.estimate.value, self.estimate.std_error, self.estimate.low, self.estimate.high)
        curve = ("" if self.bin is None else str(self.bin), _cell(self.predicted))
        return (*map(sheet_cell, map(visible, names)), *curve, *map(_cell, values), str(self.n), str(self.people))


def export_tables(numbers: ReportNumbers) -> tuple[ExportedTable, ...]:
    """Return all tables of a report as CSV and LaTeX."""
    csv_rows: dict[str, Iterable[_Row]] = {
        "perplexity": _perplexity_rows(numbers.models),
        "differences": _difference_rows(numbers),
        "by_group": _group_rows(numbers.groupings),
    }
    if numbers.titles:
        csv_rows |= {
            "titles": _title_rows(numbers),
            "outcomes": _outcome_rows(numbers),
            "outcomes_by_group": _outcome_group_rows(numbers),
            "calibration_curves": _curve_rows(numbers.outcomes),
        }
    if numbers.refits is not None:
        csv_rows["refits"] = _refit_rows(numbers.refits, numbers)
    if numbers.other_data:
        csv_rows["other_data"] = [
            dataclasses.replace(row, grouping="data", group=each.data)
            for each in numbers.other_data
            for row in _perplexity_rows(each.models)
        ]
    tables = [ExportedTable(f"{name}.csv", _csv(rows)) for name, rows in csv_rows.items()]
    if numbers.training:
        tables.append(ExportedTable("training_curves.csv", _training_csv(numbers.training)))
    return (*tables, *(ExportedTable(f"{table.name}.tex", table.text()) for table in _latex_tables(numbers)))


def data_of_figures(numbers: ReportNumbers) -> dict[str, str]:
    """Return what each figure of a report shows, as CSV, by the name of the figure."""
    shown: dict[str, Iterable[_Row]] = {
        "perplexity": (row for row in _perplexity_rows(numbers.models) if row.term == "perplexity"),
        "differences": (row for row in _difference_rows(numbers) if row.term == "difference_nats"),
        "auc": (row for row in _outcome_rows(numbers) if row.term == "auc" and not row.compared_with),
    }
    for grouping in numbers.groupings:
        shown[f"by_{grouping.name}"] = (row for row in _group_rows([grouping]) if row.term == "perplexity")
    for outcome in numbers.outcomes:
        shown[f"calibration_{outcome.name}"] = _curve_rows([outcome])
    data = {name: _csv(rows) for name, rows in shown.items()}
    for place, training in enumerate(numbers.training, start=1):
        data[f"training_{place}"] = _training_csv([training])
    return data


def _csv(rows: Iterable[_Row]) -> str:
    return _csv_text([COLUMNS, *(row.cells() for row in rows)])


def _csv_text(lines: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def _training_csv(runs: Iterable[TrainingNumbers]) -> str:
    """Return losses by step: one loss a row, in nats."""
    lines: list[Sequence[object]] = [("term", "run", "step", "epoch", "estimate")]
    for each in runs:
        run = sheet_cell(visible(each.run))
        for mean in each.training:
            lines.append(("training_nats_per_token", run, mean.step, mean.epoch, _cell(mean.nats_per_token)))
        for point in each.validation:
            for term in ("nats_per_token", "nats_per_title"):
                if (value := getattr(point, term)) is not None:
                    lines.append((f"validation_{term}", run, point.step, point.epoch, _cell(value)))
    return _csv_text(lines)


def _cell(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else repr(float(value) + 0.0)  # -0.0 becomes 0.0


def _perplexity_rows(models: Sequence[ModelNumbers]) -> Iterator[_Row]:
    for model in models:
        sizes = (model.num_observations, model.num_people)
        yield _Row("perplexity", model.model, model.perplexity, *sizes)
        yield _Row("mean_log_likelihood_nats", model.model, model.mean_log_likelihood_nats, *sizes)
        if model.nats_to_truth is not None:
            yield _Row("nats_to_truth", model.model, model.nats_to_truth, *sizes)


def _difference_rows(numbers: ReportNumbers) -> Iterator[_Row]:
    for pair in numbers.pairs:
        for term in ("difference_nats", "perplexity_ratio", "perplexity_difference"):
            sizes = (numbers.num_observations, numbers.num_people)
            yield _Row(term, pair.first, getattr(pair, term), *sizes, compared_with=pair.second)


def _refit_rows(refits: RefitNumbers, numbers: ReportNumbers) -> Iterator[_Row]:
    sizes = (numbers.num_observations, numbers.num_people)
    for model in refits.models:
        yield _Row("perplexity", model.model, model.perplexity, *sizes)
        yield _Row("perplexity_std_error_training", model.model, _without_interval(model.std_error_training), *sizes)
    for pair in refits.pairs:
        std_error = _without_interval(pair.std_error_training)
        yield _Row("difference_nats", pair.first, pair.difference_nats, *sizes, compared_with=pair.second)
        yield _Row("difference_nats_std_error_training", pair.first, std_error, *sizes, compared_with=pair.second)


def _without_interval(value: float | None) -> Estimate:
    return Estimate(math.nan if value is None else value, None, None, None)


def _group_rows(groupings: Sequence[GroupingNumbers]) -> Iterator[_Row]:
    for grouping in groupings:
        for group in grouping.groups:
            for score in group.scores:
                for term in ("perplexity", "mean_log_likelihood_nats"):
                    yield _Row(
                        term, score.model, getattr(score, term), group.num_observations, group.num_people,
                        grouping=grouping.name, group=group.group,
                    )  # fmt: skip


def _title_rows(numbers: ReportNumbers) -> Iterator[_Row]:
    everybody = (numbers.num_observations, numbers.num_people)
    moves = (numbers.titles[0].num_moves, numbers.titles[0].num_moving_people)
    for model in numbers.titles:
        for term in ("valid_titles", "normalised_perplexity", "top_1", "top_5", "top_10", "mrr"):
            yield _Row(term, model.model, getattr(model, term), *everybody)
        for term in ("moves_mrr", "moves_top_5", "moves_top_10"):
            if (value := getattr(model, term)) is not None:
                yield _Row(term, model.model, value, *moves)
    for pair in numbers.title_pairs:
        for term, sizes in (("mrr", everybody), ("moves_mrr", moves), ("moves_top_10", moves)):
            if (value := getattr(pair, term)) is not None:
                yield _Row(term, pair.first, value, *sizes, compared_with=pair.second)


def _outcome_rows(numbers: ReportNumbers) -> Iterator[_Row]:
    for outcome in numbers.outcomes:
        sizes = (outcome.num_observations, outcome.num_people)
        for score in outcome.scores:
            for term, value in _terms(score):
                yield _Row(term, score.model, value, *sizes, outcome=outcome.name)
        for pair in outcome.pairs:
            for term in ("auc", "ece"):
                if (difference := getattr(pair, term)) is not None:
                    yield _Row(term, pair.first, difference, *sizes, compared_with=pair.second, outcome=outcome.name)


def _terms(score: OutcomeScore) -> Iterator[tuple[str, Estimate]]:
    if score.auc is not None:
        yield "auc", score.auc
    yield "ece", score.ece
    yield "ece_by_chance", score.ece_by_chance
    yield "squared_error", score.squared_error
    yield "predicted_minus_observed", score.predicted_minus_observed


def _outcome_group_rows(numbers: ReportNumbers) -> Iterator[_Row]:
    for outcome in numbers.outcomes:
        for grouping in outcome.groupings:
            for group in grouping.groups:
                row = functools.partial(
                    _Row, n=group.num_observations, people=group.num_people, outcome=outcome.name,
                    grouping=grouping.name, group=group.group,
                )  # fmt: skip
                for score in group.scores:
                    yield from (row(term, score.model, value) for term, value in _terms(score))
                for gap in group.gaps:
                    for term in ("auc", "ece", "squared_error", "predicted_minus_observed"):
                        if (difference := getattr(gap, term)) is not None:
                            yield row(term, gap.model, difference, compared_with=grouping.largest_group)


def _curve_rows(outcomes: Sequence[OutcomeNumbers]) -> Iterator[_Row]:
    for outcome in outcomes:
        for score, curve in zip(outcome.scores, outcome.curves, strict=True):
            for number, each in enumerate(curve, start=1):
                yield _Row(
                    "observed_share", score.model, each.observed, each.num_observations, each.num_people,
                    outcome=outcome.name, bin=number, predicted=each.predicted,
                )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _LatexTable:
    """Cells as plain text; a cell of an estimate is its number and its interval, which stands in a line below."""

    name: str
    caption: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str | tuple[str, str]]]
    notes: Sequence[str]

    def text(self) -> str:
        """Return the table in LaTeX."""
        lines = [
            r"\begin{table}[htbp]", r"\centering", r"\begin{threeparttable}",
            rf"\caption{{{latex_text(self.caption)}}}", rf"\label{{tab:{self.name.replace('_', '-')}}}",
            # The outer table has the width of the notes, after the inner one was made to fit.
            r"\begin{tabular}{@{}c@{}}", r"\begin{adjustbox}{max width=\linewidth, max totalheight=0.75\textheight}",
            rf"\begin{{tabular}}{{l{'r' * (len(self.headings) - 1)}}}", r"\toprule",
            _latex_line(map(latex_text, self.headings)), r"\midrule",
        ]  # fmt: skip
        for row in self.rows:
            lines.append(_latex_line(latex_text(cell if isinstance(cell, str) else cell[0]) for cell in row))
            if any(isinstance(cell, tuple) for cell in row):
                below = ("" if isinstance(cell, str) else latex_text(cell[1]) for cell in row)
                lines.append(_latex_line(rf"{{\footnotesize {each}}}" if each else "" for each in below))
        lines += [
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{adjustbox}",
            r"\end{tabular}",
            r"\begin{tablenotes}[flushleft]\footnotesize",
        ]
        lines += [rf"\item {latex_text(note)}" for note in self.notes]
        return "\n".join([*lines, r"\end{tablenotes}", r"\end{threeparttable}", r"\end{table}", ""])


def _latex_line(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"


def _latex_tables(numbers: ReportNumbers) -> Iterator[_LatexTable]:
    yield _perplexity_table(numbers)
    if numbers.pairs:
        yield _difference_table(numbers)
    if numbers.refits is not None:
        yield from _refit_tables(numbers.refits, numbers)
    for grouping in numbers.groupings:
        yield _group_table(grouping, numbers)
    if numbers.titles:
        yield _title_table(numbers)
        yield from _outcome_tables(numbers)


def _notes(numbers: ReportNumbers, *more: str, intervals: str | None = None) -> tuple[str, ...]:
    if intervals is None:
        draws = format_count(numbers.bootstrap_draws)
        intervals = f"95 % intervals of a bootstrap over people ({draws} draws), on the same draws for all models."
    weighted = [] if numbers.weights is None else [f"Observations have the survey weights {numbers.weights.column}."]
    return (
        f"{format_count(numbers.num_observations)} observations of {format_count(numbers.num_people)} "
        f"{numbers.split} people. In brackets: {intervals}",
        *weighted,
        *more,
    )


def _shown(value: Estimate | None, format_number: Callable[[float], str]) -> str | tuple[str, str]:
    if value is None:
        return ""
    if value.low is None or value.high is None:
        return format_number(value.value)
    return format_number(value.value), f"[{format_number(value.low)}, {format_number(value.high)}]"


def _perplexity_table(numbers: ReportNumbers) -> _LatexTable:
    has_truth = any(model.true_model for model in numbers.models)
    rows = [
        [
            model.model,
            _shown(model.perplexity, format_perplexity),
            _shown(model.mean_log_likelihood_nats, format_nats),
            *([_shown(model.nats_to_truth, format_nats)] if has_truth else []),
        ]
        for model in numbers.models
    ]
    headings = ("Model", "Perplexity", "Log-likelihood", *(["Nats to the truth"] if has_truth else []))
    notes = _notes(numbers, f"Log-likelihood ({numbers.measure}) in nats per observation.")
    return _LatexTable("perplexity", "Perplexity of the next occupation", headings, rows, notes)


def _difference_table(numbers: ReportNumbers) -> _LatexTable:
    rows = [
        [
            f"{pair.first} \N{MINUS SIGN} {pair.second}",
            _shown(pair.difference_nats, format_nats),
            _shown(pair.perplexity_ratio, format_perplexity),
        ]
        for pair in numbers.pairs
    ]
    note = (
        f"Log-likelihood ({numbers.measure}) of the first model minus that of the second; above 0 the first is better."
    )
    headings = ("Models", "Difference, nats", "Ratio of perplexities")
    return _LatexTable("differences", "Paired differences between models", headings, rows, _notes(numbers, note))


def _refit_tables(refits: RefitNumbers, numbers: ReportNumbers) -> Iterator[_LatexTable]:
    over_both = (
        f"95 % intervals over training people ({format_count(refits.num_refits)} refits) and {numbers.split} people "
        f"({format_count(numbers.bootstrap_draws)} draws)."
    )
    about_std_error = "Standard error: standard deviation over refits, from training people alone."
    rows = [
        [
            model.model,
            _shown(model.perplexity, format_perplexity),
            "" if model.std_error_training is None else format_perplexity(model.std_error_training),
        ]
        for model in refits.models
    ]
    notes = _notes(numbers, "Perplexity: mean over refits.", about_std_error, intervals=over_both)
    yield _LatexTable(
        "refits",
        "Perplexity over refits on resampled training people",
        ("Model", "Perplexity", "Std. error"),
        rows,
        notes,
    )
    if refits.pairs:
        rows = [
            [
                f"{pair.first} \N{MINUS SIGN} {pair.second}",
                _shown(pair.difference_nats, format_nats),
                "" if pair.std_error_training is None else format_decimals(pair.std_error_training, 4),
            ]
            for pair in refits.pairs
        ]
        difference = (
            f"Difference: mean over refits of the log-likelihood ({numbers.measure}) of the first model minus that of "
            "the second, in nats; above 0 the first is better."
        )
        notes = _notes(numbers, difference, about_std_error, intervals=over_both)
        caption = "Paired differences over refits on resampled training people"
        yield _LatexTable("refit_differences", caption, ("Models", "Difference, nats", "Std. error"), rows, notes)


def _group_table(grouping: GroupingNumbers, numbers: ReportNumbers) -> _LatexTable:
    rows = [
        [
            group.group,
            *(_shown(score.perplexity, format_perplexity) for score in group.scores),
            format_count(group.num_people),
            format_count(group.num_observations),
        ]
        for group in grouping.groups
    ]
    headings = ("Group", *(model.model for model in numbers.models), "People", "Observations")
    notes = _notes(numbers, *([grouping.note] if grouping.note else []))
    return _LatexTable(f"by_{grouping.name}", f"Perplexity {grouping.title.lower()}", headings, rows, notes)


def _title_table(numbers: ReportNumbers) -> _LatexTable:
    rows = [
        [
            model.model,
            _shown(model.valid_titles, format_share),
            *(_shown(value, format_auc) for value in (model.mrr, model.moves_mrr)),
            *(_shown(value, format_share) for value in (model.top_5, model.moves_top_5)),
            *(_shown(value, format_share) for value in (model.top_10, model.moves_top_10)),
        ]
        for model in numbers.titles
    ]
    headings = ("Model", "Valid titles", "MRR", "on moves", "Recall@5", "on moves", "Recall@10", "on moves")
    note = (
        "MRR: mean reciprocal rank of the observed title among all. Recall@k: it is among the k most probable. "
        f"Moves: {format_count(numbers.titles[0].num_moves)} observations whose title differs from the previous one."
    )
    return _LatexTable("titles", "Ranks of the observed title", headings, rows, _notes(numbers, note))


def _outcome_tables(numbers: ReportNumbers) -> Iterator[_LatexTable]:
    with_auc = [outcome for outcome in numbers.outcomes if outcome.name != TOP_TITLE]
    rules = [
        f"{outcome.title} ({format_count(outcome.num_events)} events in {format_count(outcome.num_observations)} "
        f"observations). {outcome.rule}"
        for outcome in numbers.outcomes
    ]
    models = [model.model for model in numbers.titles]
    if with_auc:
        rows = [[outcome.title, *(_shown(score.auc, format_auc) for score in outcome.scores)] for outcome in with_auc]
        notes = _notes(numbers, *rules[: len(with_auc)])
        yield _LatexTable("auc", "Area under the ROC curve", ("Outcome", *models), rows, notes)
    rows = [
        [outcome.title, *(_shown(score.ece, format_auc) for score in outcome.scores)] for outcome in numbers.outcomes
    ]
    yield _LatexTable("calibration", "Expected calibration error", ("Outcome", *models), rows, _notes(numbers, *rules))
