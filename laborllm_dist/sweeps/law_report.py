"""Write the scaling law of a sweep: law.html, law.json, figures, tidy CSV and LaTeX, in the style of the report.

law.json is written last. It has every number in full precision, under these keys:

    format                   1; another number means that keys have changed
    form, method, counted    additive, multiplicative or rectified; how it was fitted; what N counts
    formula                  of the form
    pretrained, sources      the family of the runs
    split, measure, is_excess   what the loss is: nats per observation or, with is_excess, nats above the truth
    num_people, num_observations   of the test people; null if a file gave the losses
    bootstrap_draws, seed
    parameters               by name (E, A, B, a, b, D0), for plain N and D
    parameters_other_count   of the fit in which N counts the other way
    forms[]                  form, parameters, rms_residual, held_out_error, problem
    noise                    people, runs, degrees_of_freedom, seeds, num_repeated
    held_out                 size, num_params, num_observations, num_left_out, observed, predicted, is_inside
    frontier                 factor, power_n, power_d, exponent_n, exponent_d, budgets[], curve[] (flops, num_params,
                             num_observations, loss); null if the form or the points have none
    break_even[]             small, large, num_observations, multiple, share_never; a multiple of null: no amount of
                             data is enough
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
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from laborllm_dist.config.evaluation import FitLawSettings
from laborllm_dist.io.files import finite_or_null
from laborllm_dist.report.figures import DrawnFigure
from laborllm_dist.report.html import render_template
from laborllm_dist.report.write import publish
from laborllm_dist.sweeps.law_export import data_of_figures, export_tables
from laborllm_dist.sweeps.law_figures import draw_figures
from laborllm_dist.sweeps.law_numbers import analyze_law
from laborllm_dist.sweeps.law_results import COUNTED, FORMULAS, MEANINGS, LawNumbers
from laborllm_dist.sweeps.law_tables import size_words
from laborllm_dist.sweeps.losses import choose_family, read_losses
from laborllm_dist.sweeps.points import read_points

FORMAT = 1  # of law.json


@dataclass(frozen=True, slots=True)
class LawResult:
    """The files of a law, and its numbers."""

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
        ForeignFileError: if a file of another origin has the name of one of the law's files.
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
        size_words=size_words,
    )
