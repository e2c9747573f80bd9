"""Render a career as text, with the character span of every title.

A template has lines with fields in braces; a part in brackets is omitted if a field inside it is missing. The span of a
title begins at the space before it: the prompt of an observation is the text before that space, so it ends in
"YEAR (EDUCATION):", and its continuation is " TITLE".

A career is one text, since the prompts of its observations are nested. If the history of a prediction is limited to the
last k lines, they are not nested: the first text has the first k + 1 jobs, and each later job has its own text.

    k = 2, five jobs    text 1: jobs 1 2 3, predicts 1 2 3    text 2: 2 3 4, predicts 4    text 3: 3 4 5, predicts 5

Every text begins with the template's prefix, whose titles are not scored (store/few_shot.py).

Three fields are derived: the cohort of a worker ("1960s"), and of an entry the age in its year and the tenure, which is
the years since the present spell in the occupation before it began. They know earlier lines only, but also those that
a limited history leaves out.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from dataclasses import dataclass

from laborllm_dist.careers.types import CareerHistory
from laborllm_dist.config.data import TemplateSettings
from laborllm_dist.errors import TemplateError

CAREER_FIELDS = ("survey", "birth_year", "cohort", "gender", "ethnicity", "region")
ENTRY_FIELDS = ("year", "education", "age", "tenure")
# To omit a field omits what is derived from it.
DERIVED_FROM = {"cohort": "birth_year", "age": "birth_year"}
TITLE_MARK = " {title}"

# A line has parts; a part has pieces (literal text, field name or None) and, if optional, is omitted as a whole.
Piece = tuple[str, str | None]
Part = tuple[bool, tuple[Piece, ...]]


@dataclass(frozen=True, slots=True)
class CareerText:
    """A text and, for each job that it predicts, the characters [start, end) of " TITLE".

    The jobs are those of the career from `first_job` on.
    """

    text: str
    title_spans: tuple[tuple[int, int], ...]
    first_job: int = 0

    def of_jobs(self, first: int, end: int) -> CareerText | None:
        """Return the text with the spans of the career's jobs [first, end) alone; None if it predicts none of them.

        It ends with the line of the last of them, unless that is the last line of the whole text's jobs.
        """
        last_job = self.first_job + len(self.title_spans)
        begin, stop = max(first, self.first_job), min(end, last_job)
        if begin >= stop:
            return None
        spans = self.title_spans[begin - self.first_job : stop - self.first_job]
        return CareerText(self.text if stop == last_job else self.text[: spans[-1][1] + 1], spans, begin)


@dataclass(frozen=True, slots=True)
class Template:
    """A checked template, ready to render."""

    heading: tuple[tuple[Part, ...], ...]
    prompt: tuple[Part, ...]  # the entry's line before the space and the title
    ending: tuple[tuple[Part, ...], ...]
    omit_fields: frozenset[str]
    max_history: int | None
    prefix: str  # whole lines


def compile_template(settings: TemplateSettings, prefix: str = "") -> Template:
    """Check and parse a template.

    Args:
        settings: settings of the template.
        prefix: the rendered lines of `settings.prefix` (store/few_shot.py).

    Raises:
        TemplateError: if a field is unknown, a bracket has no pair, or the entry does not end in " {title}".
    """
    if not settings.entry.endswith(TITLE_MARK) or settings.entry.endswith(" " + TITLE_MARK):
        raise TemplateError(
            f"template.entry must end in one blank and {{title}}, got {settings.entry!r}",
            code="entry-without-title-end",
        )
    prompt = settings.entry.removesuffix(TITLE_MARK)
    known = (*CAREER_FIELDS, *ENTRY_FIELDS)
    for name in settings.omit_fields:
        if name not in known or name == "year":
            raise TemplateError(
                f"template.omit_fields: {name!r} cannot be omitted; "
                f"{', '.join(field for field in known if field not in ('year', 'tenure'))} and tenure can",
                code="field-cannot-be-omitted",
            )
    return Template(
        heading=tuple(_parse_line(line, CAREER_FIELDS, "heading") for line in settings.heading),
        prompt=_parse_line(prompt, known, "entry"),
        ending=tuple(_parse_line(line, CAREER_FIELDS, "ending") for line in settings.ending),
        omit_fields=frozenset(
            field for field in known if {field, DERIVED_FROM.get(field, field)} & set(settings.omit_fields)
        ),
        max_history=settings.max_history,
        prefix=prefix,
    )


def render_career(career: CareerHistory, template: Template, title_of: Mapping[str, str]) -> tuple[CareerText, ...]:
    """Render a career as one text, or as several if the template limits the history.

    Raises:
        TemplateError: if the template needs a field that the career does not have.
    """
    num_jobs, limit = len(career.jobs), template.max_history
    if limit is None or num_jobs <= limit + 1:
        return (_render_jobs(career, template, title_of, range(num_jobs), num_jobs),)
    first = _render_jobs(career, template, title_of, range(limit + 1), limit + 1)
    return (
        first,
        *(
            _render_jobs(career, template, title_of, range(job - limit, job + 1), 1)
            for job in range(limit + 1, num_jobs)
        ),
    )


def _render_jobs(
    career: CareerHistory, template: Template, title_of: Mapping[str, str], shown: range, num_predicted: int
) -> CareerText:
    """Render these jobs of a career; the last `num_predicted` of them get spans."""
    facts = _present(template, _facts_of_career(career))
    lines = [text for line in template.heading if (text := _fill(line, facts, career)) is not None]
    length = len(template.prefix) + sum(len(line) + 1 for line in lines)
    spans: list[tuple[int, int]] = []
    tenures = _tenures(career)
    for job, tenure in zip(career.jobs[shown.start : shown.stop], tenures[shown.start : shown.stop], strict=True):
        age = None if career.birth_year is None else job.year - career.birth_year
        entry = {"year": job.year, "education": job.education, "age": age, "tenure": tenure}
        facts.update(_present(template, entry))
        prompt = _fill(template.prompt, facts, career) or ""
        title = " " + title_of[job.occupation]
        spans.append((length + len(prompt), length + len(prompt) + len(title)))
        lines.append(prompt + title)
        length += len(lines[-1]) + 1
    if shown.stop == len(career.jobs):
        lines.extend(text for line in template.ending if (text := _fill(line, facts, career)) is not None)
    text = template.prefix + "".join(line + "\n" for line in lines)
    return CareerText(text, tuple(spans[len(spans) - num_predicted :]), shown.stop - num_predicted)


def _facts_of_career(career: CareerHistory) -> dict[str, object]:
    cohort = None if career.birth_year is None else f"{career.birth_year // 10 * 10}s"
    return {name: cohort if name == "cohort" else getattr(career, name) for name in CAREER_FIELDS}


def _tenures(career: CareerHistory) -> list[int | None]:
    """Return, for each job, the years since the spell in the occupation before it began; None for the first job."""
    tenures: list[int | None] = []
    began = 0
    for place, job in enumerate(career.jobs):
        if place > 1 and career.jobs[place - 1].occupation != career.jobs[place - 2].occupation:
            began = place - 1
        tenures.append(job.year - career.jobs[began].year if place else None)
    return tenures


def _present(template: Template, facts: Mapping[str, object]) -> dict[str, object]:
    return {name: None if name in template.omit_fields else fact for name, fact in facts.items()}


def _parse_line(line: str, known: tuple[str, ...], where: str) -> tuple[Part, ...]:
    if "\n" in line:
        raise TemplateError(
            f"template.{where}: a line break inside {line!r}; give each line as its own item", code="line-break-in-line"
        )
    parts: list[Part] = []
    for text in re.split(r"(\[[^\[\]]*\])", line):
        optional = text.startswith("[") and text.endswith("]")
        inner = text[1:-1] if optional else text
        if "[" in inner or "]" in inner:
            raise TemplateError(f"template.{where}: a bracket without its pair in {line!r}", code="unbalanced-bracket")
        try:
            pieces = tuple((literal, name) for literal, name, _, _ in string.Formatter().parse(inner))
        except ValueError as error:
            raise TemplateError(f"template.{where}: {error} in {line!r}", code="invalid-format-string") from None
        for _, name in pieces:
            if name is not None and name not in known:
                raise TemplateError(
                    f"template.{where}: unknown field {{{name}}} in {line!r}; known: {', '.join(known)}",
                    code="unknown-field",
                )
        if optional and all(name is None for _, name in pieces):
            raise TemplateError(
                f"template.{where}: [{inner}] has no field, so nothing says when to leave it out",
                code="bracket-without-field",
            )
        if pieces:
            parts.append((optional, pieces))
    return tuple(parts)


def _fill(line: tuple[Part, ...], facts: Mapping[str, object], career: CareerHistory) -> str | None:
    """Return the rendered line; None if all of it is optional and omitted."""
    texts: list[str] = []
    for optional, pieces in line:
        absent = next((name for _, name in pieces if name is not None and facts[name] is None), None)
        if absent is not None:
            if not optional:
                raise TemplateError(
                    f"person {career.person!r} of {career.survey} has no {absent}, which the template needs; "
                    f"put brackets round the part that speaks of it: [... {{{absent}}} ...]",
                    code="missing-career-field",
                )
            continue
        texts.append("".join(literal + ("" if name is None else str(facts[name])) for literal, name in pieces))
    return "".join(texts) if texts or not line else None
