"""Render careers as texts and tokens; truncate histories where a text is longer than the template allows.

Such a person is rendered as if the template's max_history were k, the largest number with which all their texts fit.
More lines are more tokens, so a binary search finds k. Without a limit nothing is truncated. A career that does not fit
even at k = 0 is rendered with k = 0; the code that compares lengths with the limit raises then, and can count all such
people.

    three lines fit, five jobs: k = 2    jobs 1 2 3, predicts 1 2 3    2 3 4, predicts 4    3 4 5, predicts 5
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from laborllm_dist.careers.splits import Segment
from laborllm_dist.careers.types import CareerHistory
from laborllm_dist.store.tokenize import TokenizedCareer, tokenize_careers
from laborllm_dist.text.template import CareerText, Template, render_career

if TYPE_CHECKING:
    from laborllm_dist.store.tokenizer import CareerTokenizer


@dataclass(frozen=True, slots=True)
class CareerEncoder:
    """Turns careers into texts and tokens; a text may have at most `max_tokens`, None: any number."""

    template: Template
    title_of: Mapping[str, str]
    tokenizer: CareerTokenizer
    max_tokens: int | None


@dataclass(frozen=True, slots=True)
class EncodedCareer:
    """All texts of one person; `num_truncated` of their observations follow a truncated history."""

    texts: tuple[CareerText, ...]
    tokenized: tuple[TokenizedCareer, ...]
    num_truncated: int = 0

    def fits(self, max_tokens: int) -> bool:
        """Return whether every text has at most `max_tokens`."""
        return all(len(text.ids) <= max_tokens for text in self.tokenized)


@dataclass(frozen=True, slots=True)
class CareerPart:
    """A career whose jobs in one segment are the observations; earlier ones are their history, later ones unknown."""

    career: CareerHistory
    segment: Segment


def encode_careers(careers: Sequence[CareerPart], encoder: CareerEncoder) -> list[EncodedCareer]:
    """Return the texts of parts of careers and their tokens, in order.

    Raises:
        TitleBoundaryError: as `tokenize_careers`.
    """
    rendered = [render_part(career, encoder.template, encoder.title_of) for career in careers]
    tokenized = iter(tokenize_careers([text for texts in rendered for text in texts], encoder.tokenizer))
    encoded = [EncodedCareer(texts, tuple(itertools.islice(tokenized, len(texts)))) for texts in rendered]
    limit = encoder.max_tokens
    if limit is None:
        return encoded
    return [
        each if each.fits(limit) else _truncated(career, each, encoder, limit)
        for career, each in zip(careers, encoded, strict=True)
    ]


def render_part(part: CareerPart, template: Template, title_of: Mapping[str, str]) -> tuple[CareerText, ...]:
    """Return the texts that predict the jobs of a part; they end before the first job after it.

    Raises:
        TemplateError: if the template needs a field that the career does not have.
    """
    texts = render_career(part.career, template, title_of)
    parts = (text.of_jobs(part.segment.first, part.segment.end) for text in texts)
    return tuple(text for text in parts if text is not None)


def _truncated(career: CareerPart, full: EncodedCareer, encoder: CareerEncoder, max_tokens: int) -> EncodedCareer:
    """Return a career that does not fit, with as many lines before each title as fit."""
    allowed = encoder.template.max_history
    fitting, too_many = 0, career.segment.end - 1 if allowed is None else min(allowed, career.segment.end - 1)
    if too_many == 0:
        return full
    best = _with_lines(career, 0, encoder)
    while too_many - fitting > 1:
        tried = (fitting + too_many) // 2
        encoded = _with_lines(career, tried, encoder)
        if encoded.fits(max_tokens):
            best, fitting = encoded, tried
        else:
            too_many = tried
    return best


def _with_lines(career: CareerPart, num_lines: int, encoder: CareerEncoder) -> EncodedCareer:
    texts = render_part(career, dataclasses.replace(encoder.template, max_history=num_lines), encoder.title_of)
    num_truncated = career.segment.end - max(career.segment.first, num_lines + 1)
    return EncodedCareer(texts, tuple(tokenize_careers(texts, encoder.tokenizer)), max(0, num_truncated))
