"""Write a career as text, and say where in it every title stands.

A template is lines with fields in braces; a part in brackets is left out where a field inside it is absent. The span
of a title begins at the blank before it: the prompt of an observation is the text before that blank, so it ends in
"YEAR (EDUCATION):", and its continuation is " TITLE".
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from dataclasses import dataclass

from laborllm_dist.careers.history import CareerHistory
from laborllm_dist.data_settings import TemplateSettings
from laborllm_dist.errors import TemplateError

CAREER_FIELDS = ("survey", "birth_year", "gender", "ethnicity", "region")
ENTRY_FIELDS = ("year", "education")
TITLE_MARK = " {title}"

# A line is parts; a part is pieces (literal text, field name or None), left out as a whole where a field is absent.
Piece = tuple[str, str | None]
Part = tuple[bool, tuple[Piece, ...]]


@dataclass(frozen=True, slots=True)
class CareerText:
    """A career's text and, for each job, the characters [start, end) of " TITLE"."""

    text: str
    title_spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Template:
    """A checked template, ready to render."""

    heading: tuple[tuple[Part, ...], ...]
    prompt: tuple[Part, ...]  # the entry's line before the blank and the title
    ending: tuple[tuple[Part, ...], ...]


def compile_template(settings: TemplateSettings) -> Template:
    """Check a template and take it apart once.

    Raises:
        TemplateError: for an unknown field, a bracket without its pair, or an entry that does not end in " {title}".
    """
    if not settings.entry.endswith(TITLE_MARK) or settings.entry.endswith(" " + TITLE_MARK):
        raise TemplateError(f"template.entry must end in one blank and {{title}}, found {settings.entry!r}")
    prompt = settings.entry.removesuffix(TITLE_MARK)
    known = (*CAREER_FIELDS, *ENTRY_FIELDS)
    return Template(
        heading=tuple(_parse_line(line, CAREER_FIELDS, "heading") for line in settings.heading),
        prompt=_parse_line(prompt, known, "entry"),
        ending=tuple(_parse_line(line, CAREER_FIELDS, "ending") for line in settings.ending),
    )


def render_career(career: CareerHistory, template: Template, title_of: Mapping[str, str]) -> CareerText:
    """Write a career as text.

    Raises:
        TemplateError: if the template needs a field that the career does not have.
    """
    facts = {name: getattr(career, name) for name in CAREER_FIELDS}
    lines = [text for line in template.heading if (text := _fill(line, facts, career)) is not None]
    length = sum(len(line) + 1 for line in lines)
    spans: list[tuple[int, int]] = []
    for job in career.jobs:
        facts["year"], facts["education"] = job.year, job.education
        prompt = _fill(template.prompt, facts, career) or ""
        title = " " + title_of[job.occupation]
        spans.append((length + len(prompt), length + len(prompt) + len(title)))
        lines.append(prompt + title)
        length += len(lines[-1]) + 1
    lines.extend(text for line in template.ending if (text := _fill(line, facts, career)) is not None)
    return CareerText(text="".join(line + "\n" for line in lines), title_spans=tuple(spans))


def _parse_line(line: str, known: tuple[str, ...], where: str) -> tuple[Part, ...]:
    if "\n" in line:
        raise TemplateError(f"template.{where}: a line break inside {line!r}; give each line as its own item")
    parts: list[Part] = []
    for text in re.split(r"(\[[^\[\]]*\])", line):
        optional = text.startswith("[") and text.endswith("]")
        inner = text[1:-1] if optional else text
        if "[" in inner or "]" in inner:
            raise TemplateError(f"template.{where}: a bracket without its pair in {line!r}")
        try:
            pieces = tuple((literal, name) for literal, name, _, _ in string.Formatter().parse(inner))
        except ValueError as error:
            raise TemplateError(f"template.{where}: {error} in {line!r}") from None
        for _, name in pieces:
            if name is not None and name not in known:
                raise TemplateError(
                    f"template.{where}: unknown field {{{name}}} in {line!r}; known: {', '.join(known)}"
                )
        if optional and all(name is None for _, name in pieces):
            raise TemplateError(f"template.{where}: [{inner}] has no field, so nothing says when to leave it out")
        if pieces:
            parts.append((optional, pieces))
    return tuple(parts)


def _fill(line: tuple[Part, ...], facts: Mapping[str, object], career: CareerHistory) -> str | None:
    """Return the line's text, None where the whole line is one optional part that is left out."""
    texts: list[str] = []
    for optional, pieces in line:
        absent = next((name for _, name in pieces if name is not None and facts[name] is None), None)
        if absent is not None:
            if not optional:
                raise TemplateError(
                    f"person {career.person!r} of {career.survey} has no {absent}, which the template needs; "
                    f"put brackets round the part that speaks of it: [... {{{absent}}} ...]"
                )
            continue
        texts.append("".join(literal + ("" if name is None else str(facts[name])) for literal, name in pieces))
    return "".join(texts) if texts or not line else None
