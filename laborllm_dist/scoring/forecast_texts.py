"""Texts of careers with supposed years, and the distributions over titles after them.

    1984 (some college): Cooks             known, up to the start of the forecast
    1985 (some college): Waiters           supposed
    1986 (some college):                   the prompt ends here; which title follows?

Supposed and predicted lines carry the education of the start, the last one known. A whole text is tokenised, never its
pieces.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from laborllm_dist.batches.packed import TokenIds, pack_batch
from laborllm_dist.batches.packing import pack_careers
from laborllm_dist.careers.history import CareerHistory, Job
from laborllm_dist.careers.template import CareerText, Template, render_career
from laborllm_dist.engine.branching_model import Grown
from laborllm_dist.errors import RowTooShort, TitleInsideToken
from laborllm_dist.scoring.composed import Answers, Floats, Question
from laborllm_dist.scoring.forecast_starts import Starts, observed_titles
from laborllm_dist.scoring.prompt_trees import Ask, Prompts, TitleScores, score_titles
from laborllm_dist.scoring.title_trie import TitleTrie
from laborllm_dist.settings import EvaluationSettings
from laborllm_dist.tokens.store import CareerRows
from laborllm_dist.tokens.tokenise import tokenise_careers
from laborllm_dist.tokens.tokenizer import CareerTokenizer


@dataclass(frozen=True, slots=True)
class ForecastTexts:
    """How questions become prompts: careers, text, tokens, titles, and the most tokens that the model reads exactly."""

    careers: CareerRows
    template: Template
    tokenizer: CareerTokenizer
    trie: TitleTrie
    context: int | None


def supposed_career(history: CareerHistory, job: int, codes: Sequence[str], last_year: int) -> CareerHistory:
    """Return a career up to a job, then these occupations in the years after it; the last of them in `last_year`."""
    start = history.jobs[job]
    years = [*range(start.year + 1, start.year + len(codes)), last_year]
    later = (Job(year, code, start.education) for year, code in zip(years, codes, strict=True))
    return dataclasses.replace(history, jobs=(*history.jobs[: job + 1], *later))


def prompt_ids(texts: ForecastTexts, starts: Starts, questions: Sequence[Question], row_length: int) -> list[TokenIds]:
    """Return the token ids of every prompt.

    Raises:
        TitleInsideToken: if the title that was observed is other tokens after a prompt than in the tree.
        RowTooShort: naming the person, if a prompt fits no row, or the model's context with a title after it.
    """
    codes = texts.careers.vocabulary.codes
    histories = {career: texts.careers.history(career) for career in np.unique(starts.careers_S).tolist()}
    title_of = texts.careers.vocabulary.title_of()
    rendered: list[CareerText] = []
    observed: list[int] = []
    for question in questions:
        history, job = histories[int(starts.careers_S[question.start])], int(starts.jobs_S[question.start])
        truth = history.jobs[int(starts.targets_S[question.start])].occupation
        observed.append(codes.index(truth))
        supposed = [*(codes[title] for title in question.supposed), truth]
        career = supposed_career(history, job, supposed, history.jobs[job].year + question.years_ahead)
        rendered.append(render_career(career, texts.template, title_of)[0])
    prompts: list[TokenIds] = []
    for title, tokens, question in zip(observed, tokenise_careers(rendered, texts.tokenizer), questions, strict=True):
        start, end = tokens.title_spans[-1]
        if tokens.ids[start : end + 1] != texts.trie.closed_tokens(title):
            raise TitleInsideToken(
                f"title {title} is other tokens after supposed years than alone after a prompt; a forecast wants a "
                "tokenizer that cuts titles the same everywhere"
            )
        _check_length(texts, int(starts.careers_S[question.start]), start, row_length)
        prompts.append(np.array(tokens.ids[:start], dtype=np.int32))
    return prompts


def _check_length(texts: ForecastTexts, career: int, num_tokens: int, row_length: int) -> None:
    with_title = num_tokens + int(texts.trie.depths_M.max())
    if num_tokens <= row_length and (texts.context is None or with_title <= texts.context):
        return
    survey, person = texts.careers.person(career)
    limit = f"a row has {row_length}; set row_length={num_tokens} or more"
    if num_tokens <= row_length:
        limit = f"{with_title} with a title, the model's context is {texts.context}; take one with a longer context"
    raise RowTooShort(f"career {person!r} of {survey} with supposed years has {num_tokens} tokens, {limit}")


def ask_whole_texts(
    texts: ForecastTexts,
    starts: Starts,
    questions: Sequence[Question],
    wanted: EvaluationSettings,
    ask: Ask,
    device: torch.device,
) -> Answers:
    """Answer questions by a forward of every prompt's whole text, rows of prompts at a time."""
    ids = prompt_ids(texts, starts, questions, wanted.row_length)
    observed_Q = observed_titles(texts.careers, starts)[[question.start for question in questions]]
    rows = pack_careers([len(each) for each in ids], wanted.row_length).rows
    probabilities_QT = np.empty((len(ids), len(texts.trie.ends_T)))
    left_Q = np.empty(len(ids))
    for first in range(0, len(rows), wanted.rows_per_unit):
        unit = rows[first : first + wanted.rows_per_unit]
        members_P = np.array([place for row in unit for place in row])
        stems: list[tuple[int, int, int]] = []
        for row, members in enumerate(unit):
            ends = np.cumsum([len(ids[place]) for place in members]).tolist()
            stems += [(row, end - len(ids[place]), end) for end, place in zip(ends, members, strict=True)]
        batch = pack_batch([[ids[place] for place in row] for row in unit], wanted.row_length)
        found = score_titles(
            ask,
            Grown(batch.to(device)),
            Prompts(np.array(stems), observed_Q[members_P]),
            texts.trie,
            tolerance=wanted.tolerance,
            nodes_per_pass=wanted.nodes_per_pass,
        )
        probabilities_QT[members_P], left_Q[members_P] = normalised(found)
    return Answers(probabilities_QT, left_Q)


def normalised(found: TitleScores) -> tuple[Floats, Floats]:
    """Return probabilities over titles of sum 1, [P, T], and the share of them that was not told apart, [P].

    That share stands evenly on the titles that were not told apart, so that no probability is 0.
    """
    is_untold_PT = np.isnan(found.terminated_PT)
    mass_PT = np.exp(np.where(is_untold_PT, -np.inf, found.terminated_PT))
    whole_P = mass_PT.sum(axis=1) + found.bound_P
    left_P = found.bound_P / whole_P
    even_P = left_P / np.maximum(is_untold_PT.sum(axis=1), 1)
    probabilities_PT = np.where(is_untold_PT, even_P[:, None], mass_PT / whole_P[:, None])
    return probabilities_PT, left_P
