"""Compare the models of several runs: report.html, summary.json, figures and tables, from score tables and metrics.

careers.html shows single people, so it is a file of its own, and nothing of it is in the others.

Nothing in the output depends on the clock or the machine, but for the fonts that draw names which matplotlib's own font
cannot: the same score tables and settings give the same bytes.
summary.json is written last, so where it is, the rest of the report is too. It holds every number of the page in full
precision, under keys that stay:

    format                   1; another number means that keys have changed
    split, measure           whose observations; which log-likelihood (`title`, `terminated` or `normalised`)
    num_people, num_observations
    interval_level           0.95; all `low` and `high` are percentiles over resamples of people
    bootstrap_draws, seed
    few_people_below         groups with fewer people are flagged `few_people`
    models[]                 best first: model, true_model, perplexity, mean_log_likelihood_nats,
                             nats_to_truth (null without a true model), num_people, num_observations,
                             worse_than (in words: floors that the model is below; equal shares for all titles, and the
                             marginal, if their tables exist)
    pairs[]                  first, second, difference_nats (first minus second, per observation; above 0: the first is
                             better), perplexity_ratio (first / second), perplexity_difference (first - second),
                             share_first_better (of resamples, a tie counts half)
    groupings[]              name (transition, gender, ethnicity, region, education, birth_decade, survey, history,
                             year), title, note, groups[]
    groupings[].groups[]     group, recorded, few_people, num_people, num_observations,
                             scores[]: model, perplexity, mean_log_likelihood_nats
    titles[]                 of models with a table of titles: model, valid_titles (mean mass of all titles),
                             normalised_perplexity, top_1, top_5, top_10 (shares), mrr, moves_mrr, moves_top_5,
                             moves_top_10, num_moves, num_moving_people, largest_bound
    title_pairs[]            first, second, mrr, moves_mrr, moves_top_10: first minus second
    states                   codes of unemployed, not_in_labor_force, not_working, education; null without titles[]
    outcomes[]               name, title, rule, num_people, num_observations, num_events, scores[], curves[][] (a curve
                             per model: predicted, observed, num_people, num_observations), pairs[] (first, second,
                             auc, ece), groupings[] (report/outcomes.py)
    outcomes[].scores[]      model, auc (null for the most probable title), ece, ece_by_chance, squared_error,
                             predicted_minus_observed, num_inexact
    weights                  file, column, effective_observations; null: all observations count the same
    refits                   of the first run on resampled training people; null: none were named. run, num_refits,
                             refits[] (run, bootstrap_seed), models[], pairs[], left_out (models that not all refits
                             have scored); low, high and std_error are over all pairs of a refit and a resample
    refits.models[]          model, perplexity (mean over refits), std_error_training (standard deviation over refits),
                             perplexity_of_refit[]
    refits.pairs[]           first, second, difference_nats (mean over refits), std_error_training
    other_data[]             data, num_people, num_observations, models[] (as above; survey weights do not apply)
    training[]               of the runs with a metrics.jsonl: run, num_steps, num_tokens, num_epochs,
                             peak_learning_rate, steps_per_point, best_step,
                             training[] (step, epoch, nats_per_token: mean of steps_per_point steps),
                             validation[] (step, epoch, nats_per_token, nats_per_title)
    files[]                  tables and figures beside it, and careers.html
    sources[]                model, name_in_file, run, file, split, careers, code, details

An estimate is {value, low, high, std_error}. The last three are null where resampling people gives no interval, as in
a group of one person; a number too large for float64 is null too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath

import rich.box

from laborllm_dist.config.evaluation import ReportSettings
from laborllm_dist.errors import ForeignFileError
from laborllm_dist.io.console_tables import Column, FoldingTable
from laborllm_dist.io.files import atomic_write, finite_or_null, write_text
from laborllm_dist.io.json_files import NotJsonError, read_json_object
from laborllm_dist.io.number_format import (
    format_count,
    format_interval,
    format_nats,
    format_perplexity,
    format_probability,
    format_share,
)
from laborllm_dist.plain_text import visible
from laborllm_dist.report.bootstrap import Estimate
from laborllm_dist.report.careers import draw_people, single_careers
from laborllm_dist.report.export import export_tables
from laborllm_dist.report.figures import (
    DrawnFigure,
    draw_auc,
    draw_calibration,
    draw_differences,
    draw_grouping,
    draw_perplexities,
    draw_training,
)
from laborllm_dist.report.fonts import note_on
from laborllm_dist.report.html import render_careers, render_page
from laborllm_dist.report.load import compare_other_data, compare_runs
from laborllm_dist.report.numbers import (
    ModelNumbers,
    OtherDataNumbers,
    ReportNumbers,
    SourceNumbers,
    analyze_with_titles,
)
from laborllm_dist.report.outcomes import TOP_TITLE
from laborllm_dist.report.refits import RefitNumbers
from laborllm_dist.report.title_metrics import TitleNumbers

FORMAT = 1  # of summary.json
CAREERS = "careers.html"
ABOUT_PEOPLE = "shows single people; pass it on only where the terms of the data allow (num_careers=0 leaves it out)"
# Of pages of this version, and of those before.
_PAGE_MARKS = (b'<meta name="generator" content="laborllm_dist">', b"<title>Next-occupation perplexity, ")


@dataclass(frozen=True, slots=True)
class ReportResult:
    """The folder of the report, its main table (best model first), and its notes, one line each."""

    page: Path
    careers: Path | None  # the page of single careers
    summary: Path
    figures: tuple[Path, ...]
    tables: tuple[Path, ...]
    split: str
    measure: str
    models: tuple[ModelNumbers, ...]
    titles: tuple[TitleNumbers, ...]
    refits: RefitNumbers | None
    other_data: tuple[OtherDataNumbers, ...]
    notes: tuple[str, ...]


def write_report(settings: ReportSettings, names: Mapping[str, str] | None = None) -> ReportResult:
    """Compute the comparison and write it to `settings.output`, or to report/ in the first run.

    Args:
        settings: runs, split, measure, folder.
        names: what the report calls a run's folder, where that is not its path here.

    Raises:
        RunError: if a run's folder does not exist, or one of `refits` is no refit.
        ScoreTableError: if a run or refit lacks scores of the split, or two tables are not about the same observations.
        ForeignFileError: if a file that is no report's has the name of one of the report's.
    """
    compared = compare_runs(settings.runs, split=settings.split, measure=settings.measure, weights=settings.weights)
    others, left_out = compare_other_data(settings.runs, measure=settings.measure, apart=settings.split)
    people = draw_people(compared, settings)
    numbers, titles = analyze_with_titles(compared, settings, others, people)
    sources = tuple(_renamed(source, names or {}) for source in numbers.sources)
    training = tuple(replace(each, run=(names or {}).get(each.run, each.run)) for each in numbers.training)
    numbers = replace(numbers, sources=sources, training=training, refits=_renamed_refits(numbers.refits, names or {}))
    drawn, tables = draw_figures(numbers), export_tables(numbers)
    folder = Path(settings.output) if settings.output is not None else Path(settings.runs[0]) / "report"
    contents = {folder / "tables" / table.name: table.content.encode() for table in tables}
    for figure in drawn:
        for kind in settings.figure_formats:
            contents[folder / "figures" / f"{figure.name}.{kind}"] = figure.as_bytes(kind)
    page, summary = folder / "report.html", folder / "summary.json"
    careers = folder / CAREERS if settings.num_careers else None
    if careers is not None:
        contents[careers] = render_careers(numbers, single_careers(compared, people, titles)).encode()
    _check_replaceable(page, summary, tuple(contents))
    earlier = _files_of(summary)
    with atomic_write(summary) as partial_summary:  # another report into the same folder waits until this one is whole
        write_text(
            page, render_page(numbers, drawn, careers=None if careers is None else careers.name)
        )  # first: it marks the folder as a report's
        for path, content in contents.items():
            with atomic_write(path) as partial:
                partial.write_bytes(content)
        files = [str(path.relative_to(folder)) for path in contents]
        partial_summary.write_text(summary_text(numbers, files), encoding="utf-8", errors="backslashreplace")
        for name in earlier - set(files):
            (folder / name).unlink(missing_ok=True)  # of a report on other tables: it would stand beside these
    note = note_on("".join(sorted({character for figure in drawn for character in figure.undrawn})))
    return ReportResult(
        page,
        careers,
        summary,
        tuple(path for path in contents if path.parent.name == "figures"),
        tuple(path for path in contents if path.parent.name == "tables"),
        numbers.split,
        numbers.measure,
        numbers.models,
        numbers.titles,
        numbers.refits,
        numbers.other_data,
        (
            *left_out,
            *_note_on_refits(numbers.refits),
            *((note,) if note else ()),
            *((f"{careers} {ABOUT_PEOPLE}",) if careers else ()),
        ),
    )


def _note_on_refits(refits: RefitNumbers | None) -> tuple[str, ...]:
    if refits is None or not refits.left_out:
        return ()
    names = ", ".join(map(visible, refits.left_out))
    return (f"note: refits are without {names}, of which not all of them have scores",)


def _renamed(source: SourceNumbers, names: Mapping[str, str]) -> SourceNumbers:
    run = names.get(source.run, source.run)
    return replace(source, run=run, file=run + source.file.removeprefix(source.run))


def _renamed_refits(numbers: RefitNumbers | None, names: Mapping[str, str]) -> RefitNumbers | None:
    if numbers is None:
        return None
    refits = tuple(replace(refit, run=names.get(refit.run, refit.run)) for refit in numbers.refits)
    return replace(numbers, run=names.get(numbers.run, numbers.run), refits=refits)


def _files_of(summary: Path) -> set[str]:
    """Return the other files that an earlier report in the same folder has written."""
    try:
        names = read_json_object(summary).get("files", [])
    except (OSError, NotJsonError):
        return set()
    parts = [PurePosixPath(name) for name in names if isinstance(name, str)]
    return {str(part) for part in parts if str(part) == CAREERS or part.parts[:-1] in (("tables",), ("figures",))}


def summary_text(numbers: ReportNumbers, files: Sequence[str] = ()) -> str:
    """Return the report's numbers, and the names of its other files, as JSON text, ending in a newline."""
    values = {"format": FORMAT, **asdict(numbers), "files": list(files)}
    return json.dumps(finite_or_null(values), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _check_replaceable(page: Path, summary: Path, others: Sequence[Path]) -> None:
    """Check that only files of an earlier report would be overwritten."""
    pages = [page, *(path for path in others if path.suffix == page.suffix)]
    checks = [*((path, _is_page) for path in pages), (summary, _is_summary)]
    foreign = [path for path, is_ours in checks if path.exists() and not is_ours(path)]
    if not page.exists() and not summary.exists():
        foreign += [path for path in others if path.exists()]
    if foreign:
        raise ForeignFileError(
            f"{foreign[0]} was not written by report.py, and is not replaced; name another folder (output=), or "
            "move it away",
            code="not-a-report-file",
        )


def _is_page(path: Path) -> bool:
    return path.is_file() and any(mark in path.read_bytes() for mark in _PAGE_MARKS)


def _is_summary(path: Path) -> bool:
    try:
        return bool({"format", "models", "sources", "bootstrap_draws"} <= read_json_object(path).keys())
    except (OSError, NotJsonError):
        return False


def draw_figures(numbers: ReportNumbers) -> tuple[DrawnFigure, ...]:
    """Draw all figures of a report; with one model there is no figure of differences."""
    figures = [draw_perplexities(numbers.models, measure=numbers.measure)]
    if numbers.pairs:
        figures.append(draw_differences(numbers.pairs, measure=numbers.measure))
    figures += [draw_grouping(grouping, numbers.models, measure=numbers.measure) for grouping in numbers.groupings]
    if with_auc := [outcome for outcome in numbers.outcomes if outcome.name != TOP_TITLE]:
        figures.append(draw_auc(with_auc, numbers.models))
    figures += [draw_calibration(outcome, numbers.models) for outcome in numbers.outcomes]
    figures += [draw_training(each, f"training_{place}") for place, each in enumerate(numbers.training, start=1)]
    return tuple(figures)


def terminal_tables(result: ReportResult) -> list[FoldingTable]:
    """Return the tables for a terminal: the main one, and where they are known those of all titles and other data."""
    tables = [_main_table(result), *([_title_table(result)] if result.titles else [])]
    return [*tables, *([_other_data_table(result)] if result.other_data else [])]


def _other_data_table(result: ReportResult) -> FoldingTable:
    columns = {result.split: result.models, **{each.data: each.models for each in result.other_data}}
    table = _ruled_table(f"Perplexity ({result.measure}) by data", columns)
    for name in dict.fromkeys(model.model for models in columns.values() for model in models):
        cells = [{model.model: model for model in models}.get(name) for models in columns.values()]
        table.add_row(name, *("" if model is None else format_perplexity(model.perplexity.value) for model in cells))
    return table


def _title_table(result: ReportResult) -> FoldingTable:
    title = f"All titles after every prompt, {result.split} people"
    headings = ("valid titles", "perplexity\nnormalised", "top 1", "top 5", "top 10")
    table = _ruled_table(title, headings)
    for model in result.titles:
        shares = (format_share(each.value) for each in (model.top_1, model.top_5, model.top_10))
        perplexity = format_perplexity(model.normalised_perplexity.value)
        table.add_row(model.model, format_share(model.valid_titles.value), perplexity, *shares)
    if largest := max(model.largest_bound for model in result.titles):
        table.caption = (
            f"up to {format_probability(largest)} after a prompt was not scored individually, and counts for none"
        )
    return table


def _main_table(result: ReportResult) -> FoldingTable:
    has_truth = any(model.true_model for model in result.models)
    # With names of 15 letters it fits a terminal of 80 columns.
    headings = ["perplexity", "95 % interval", "people", "observations"]
    title = f"Perplexity ({result.measure}) on the {result.split} people"
    table = _ruled_table(title, headings + ["nats to\nthe truth"] * has_truth)
    refits = {} if result.refits is None else {each.model: each.perplexity for each in result.refits.models}
    for model in result.models:
        name = f"{model.model} (true)" if model.true_model else model.model
        cells = [
            *_perplexity_cells(model.perplexity),
            format_count(model.num_people),
            format_count(model.num_observations),
        ]
        if has_truth:
            cells.append("" if model.nats_to_truth is None else format_nats(model.nats_to_truth.value))
        table.add_row(name, *cells)
        if model.model in refits:
            table.add_row("  refits", *_perplexity_cells(refits[model.model]), *cells[2:4], *[""] * has_truth)
    captions = [
        f"{visible(model.model)} is worse than {' and '.join(model.worse_than)}"
        for model in result.models
        if model.worse_than
    ]
    if result.refits is not None:
        captions.append(
            f"refits: mean of {result.refits.num_refits} on resampled training people, interval over training and test "
            "people"
        )
    table.caption = "\n".join(captions)
    return table


def _perplexity_cells(perplexity: Estimate) -> list[str]:
    interval = format_interval(perplexity.low, perplexity.high, format_perplexity).replace(" to ", "–")
    return [format_perplexity(perplexity.value), interval]


def _ruled_table(title: str, headings: Iterable[str]) -> FoldingTable:
    """Return a table of models and their numbers."""
    columns = (Column("model", "name", usual_width=15), *(Column(heading, "number") for heading in headings))
    return FoldingTable(columns, title=title, box=rich.box.SIMPLE_HEAD)
