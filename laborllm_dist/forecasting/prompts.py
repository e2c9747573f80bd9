"""Texts of careers with imputed years, and the distributions over titles after them.

    1984 (some college): Cooks             known, up to the origin of the forecast
    1985 (some college): Waiters           imputed
    1986 (some college):                   the prompt ends here; which title follows?

Imputed and predicted lines carry the education of the start, the last one known. A whole text is tokenized, never its
pieces. The prompts of one person begin with the same history, which is forwarded once; the lines that follow are more
tokens after it, where the tokens of the longer text begin with those of the shorter one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from laborllm_dist.batching.batch import PackedBatch, TokenIds, pack_batch
from laborllm_dist.batching.packing import PAD_TO_MULTIPLE_OF
from laborllm_dist.batching.title_positions import prompt_batches
from laborllm_dist.careers.types import CareerHistory, Job
from laborllm_dist.config.evaluation import EvaluationSettings
from laborllm_dist.errors import SequenceTooLongError, TitleBoundaryError
from laborllm_dist.evaluation.all_titles import Prompts, TitleScores, score_prompts
from laborllm_dist.evaluation.head_titles import score_by_head
from laborllm_dist.evaluation.title_trie import TitleTrie
from laborllm_dist.forecasting.iterate import Distributions, Floats, Integers, Query
from laborllm_dist.forecasting.origins import Origins, observed_titles, titles_at
from laborllm_dist.io.number_format import format_people
from laborllm_dist.models.inference import InferenceModel
from laborllm_dist.models.title_head import TitleHead
from laborllm_dist.store.store import CareerTable
from laborllm_dist.store.tokenize import tokenize_careers
from laborllm_dist.store.tokenizer import CareerTokenizer
from laborllm_dist.text.template import CareerText, Template, render_career


@dataclass(frozen=True, slots=True)
class ForecastTexts:
    """The data that turns queries into prompts: careers, template, tokenizer, titles, and the longest exact input.

    `head`: an output layer over titles, on the model's device, whose distributions are taken; None: those of the titles
    that the model writes.
    """

    careers: CareerTable
    template: Template
    tokenizer: CareerTokenizer
    trie: TitleTrie
    context: int | None
    head: TitleHead | None = None

    def num_after(self, depths: Integers) -> int:
        """Return the most tokens that are forwarded after a prompt, of title nodes of these depths."""
        return int(depths.max()) if self.head is None else 0


def career_with_imputed_years(history: CareerHistory, job: int, codes: Sequence[str], last_year: int) -> CareerHistory:
    """Return a career up to a job, then these occupations in the years after it; the last of them in `last_year`."""
    start = history.jobs[job]
    years = [*range(start.year + 1, start.year + len(codes)), last_year]
    later = (Job(year, code, start.education) for year, code in zip(years, codes, strict=True))
    return dataclasses.replace(history, jobs=(*history.jobs[: job + 1], *later))


def ask_titles(
    texts: ForecastTexts,
    origins: Origins,
    queries: Sequence[Query],
    evaluation: EvaluationSettings,
    model: InferenceModel,
) -> Distributions:
    """Answer queries about one person: the imputed lines follow the history, which is forwarded once.

    Where the tokens of a prompt do not begin with those of the history, its whole text is forwarded.

    Raises:
        TitleBoundaryError: if the title that was observed is other tokens after a prompt than in the tree.
        SequenceTooLongError: naming the person, if a prompt is longer than the model's context, or fits no row as a
            whole.
    """
    ids, known_S = prompt_ids(texts, origins, queries), _known_ids(texts, origins)
    prompted = _PromptedQueries(texts, origins, queries, ids, evaluation, model)
    if _all_shared(ids, [known_S[query.start] for query in queries]):
        return _after_history(prompted, known_S)
    return _after_whole_texts(prompted)


def _known_ids(texts: ForecastTexts, origins: Origins) -> list[TokenIds]:
    """Return the tokens of the history up to every start, with the line's end."""
    careers = texts.careers
    return [
        careers.token_ids(career)[: careers.title_spans(career)[job, 1] + 1]
        for career, job in zip(origins.careers_S.tolist(), origins.jobs_S.tolist(), strict=True)
    ]


def _all_shared(ids: Sequence[TokenIds], known_Q: Sequence[TokenIds]) -> bool:
    """Return whether the tokens of every prompt begin with those of its history."""
    return all(np.array_equal(prompt[: len(known)], known) for prompt, known in zip(ids, known_Q, strict=True))


def check_longest(texts: ForecastTexts, origins: Origins, horizon: int, max_seq_length: int) -> None:
    """Check, before a model is opened, that no prompt of any person is too long.

    For every origin the longest possible text is rendered and tokenized: with the title of the most tokens in all years
    between, and in the target year. A row limits the text if a history is not shared (see `ask_titles`).

    Raises:
        TitleBoundaryError: if the title that was observed is other tokens after such a text than in the tree.
        SequenceTooLongError: naming the person of the longest text, and how many people are concerned.
    """
    num_tokens_T = texts.trie.depths_M[texts.trie.ends_T]
    imputed, num_of_title = (int(num_tokens_T.argmax()),) * (horizon - 1), texts.num_after(num_tokens_T)
    with_title, unshared = dict[int, int](), dict[int, int]()
    for career in np.unique(origins.careers_S).tolist():
        own = origins.of_career(career)
        ids = prompt_ids(texts, own, [Query(start, imputed, horizon) for start in range(len(own))])
        longest = max(map(len, ids))
        with_title[career] = longest + num_of_title
        unshared[career] = 0 if _all_shared(ids, _known_ids(texts, own)) else longest
    if texts.context is not None:
        advice = f"with the longest titles, the model's context is {texts.context}; take one with a longer context"
        _check_lengths(texts.careers, with_title, texts.context, advice)
    advice = f"a row has {max_seq_length}; set max_seq_length={max(unshared.values())} or more"
    _check_lengths(texts.careers, unshared, max_seq_length, advice)


def _check_lengths(careers: CareerTable, length_of: Mapping[int, int], limit: int, advice: str) -> None:
    longest, num_longer = max(length_of, key=length_of.__getitem__), sum(each > limit for each in length_of.values())
    if num_longer:
        survey, person = careers.person(longest)
        raise SequenceTooLongError(
            f"career {person!r} of {survey} with imputed years has up to {length_of[longest]} tokens, {advice}; "
            f"{format_people(num_longer, len(length_of), 'is longer', 'are longer')}",
            code="career-too-long",
        )


def ask_whole_texts(
    texts: ForecastTexts,
    origins: Origins,
    queries: Sequence[Query],
    evaluation: EvaluationSettings,
    model: InferenceModel,
) -> Distributions:
    """Answer queries by forwarding the whole text of every prompt, several rows at a time.

    Raises:
        TitleBoundaryError: if the title that was observed is other tokens after a prompt than in the tree.
        SequenceTooLongError: naming the person, if a prompt is longer than the model's context, or fits no row.
    """
    return _after_whole_texts(
        _PromptedQueries(texts, origins, queries, prompt_ids(texts, origins, queries), evaluation, model)
    )


@dataclass(frozen=True, slots=True)
class _PromptedQueries:
    """Queries with the token ids of their prompts."""

    texts: ForecastTexts
    origins: Origins
    queries: Sequence[Query]
    ids: list[TokenIds]
    evaluation: EvaluationSettings
    model: InferenceModel

    def person(self, query: int) -> str:
        """Return the person of a query, for messages."""
        survey, person = self.texts.careers.person(int(self.origins.careers_S[self.queries[query].start]))
        return f"career {person!r} of {survey} with imputed years"

    def observed(self) -> Integers:
        """Return the vocabulary index of the occupation in the target year, [queries]."""
        starts_Q = [query.start for query in self.queries]
        return observed_titles(self.texts.careers, self.origins)[starts_Q]

    def previous(self) -> Integers:
        """Return the vocabulary index of the last title before the target year, imputed or that of the start."""
        at_starts_S = titles_at(self.texts.careers, self.origins.careers_S, self.origins.jobs_S)
        return np.array([query.imputed[-1] if query.imputed else at_starts_S[query.start] for query in self.queries])

    def score(self, batch: PackedBatch, prompts: Prompts) -> tuple[Floats, Floats]:
        """Return log-probabilities over titles after prompts, and the unscored mass."""
        if self.texts.head is None:
            return normalised(score_prompts(self.model, batch, prompts, self.texts.trie, self.evaluation))
        return normalised(score_by_head(self.model, batch, prompts, self.texts.head, self.evaluation))


def prompt_ids(texts: ForecastTexts, origins: Origins, queries: Sequence[Query]) -> list[TokenIds]:
    """Return the token ids of every prompt (see `ask_titles`)."""
    codes, title_of = texts.careers.vocabulary.codes, texts.careers.vocabulary.title_of()
    histories = {career: texts.careers.history(career) for career in np.unique(origins.careers_S).tolist()}
    rendered: list[CareerText] = []
    for query in queries:
        history, job = histories[int(origins.careers_S[query.start])], int(origins.jobs_S[query.start])
        truth = history.jobs[int(origins.targets_S[query.start])].occupation
        imputed = [*(codes[title] for title in query.imputed), truth]
        career = career_with_imputed_years(history, job, imputed, history.jobs[job].year + query.years_ahead)
        rendered.append(render_career(career, texts.template, title_of)[0])
    prompts: list[TokenIds] = []
    observed_S = observed_titles(texts.careers, origins)
    for query, tokens in zip(queries, tokenize_careers(rendered, texts.tokenizer), strict=True):
        (start, end), title = tokens.title_spans[-1], int(observed_S[query.start])
        if tokens.ids[start : end + 1] != texts.trie.closed_tokens(title):
            raise TitleBoundaryError(
                f"title {title} is other tokens after imputed years than alone after a prompt; a forecast needs a "
                "tokenizer that cuts titles the same everywhere",
                code="titles-tokenized-differently",
            )
        prompts.append(np.array(tokens.ids[:start], dtype=np.int32))
    return prompts


def _after_history(prompted: _PromptedQueries, known_S: Sequence[TokenIds]) -> Distributions:
    """Forward the longest history of a person, then the imputed lines of every prompt after their part of it."""
    _check_context(prompted)
    lengths = [len(known_S[query.start]) for query in prompted.queries]
    longest = max((known_S[query.start] for query in prompted.queries), key=len)
    prefixes_Q3 = np.array([(0, 0, length) for length in lengths])
    suffixes = tuple(ids[length:].astype(np.int64) for ids, length in zip(prompted.ids, lengths, strict=True))
    batch = pack_batch([[longest]], -(-len(longest) // PAD_TO_MULTIPLE_OF) * PAD_TO_MULTIPLE_OF)
    prompts = Prompts(prefixes_Q3, prompted.observed(), suffixes, prompted.previous())
    return Distributions(*prompted.score(batch, prompts))


def _after_whole_texts(prompted: _PromptedQueries) -> Distributions:
    _check_context(prompted)
    ids, evaluation, everything = prompted.ids, prompted.evaluation, (prompted.observed(), prompted.previous())
    longest = max(range(len(ids)), key=lambda query: len(ids[query]))
    if len(ids[longest]) > evaluation.max_seq_length:
        raise SequenceTooLongError(
            f"{prompted.person(longest)} has {len(ids[longest])} tokens, a row has {evaluation.max_seq_length}; "
            f"set max_seq_length={len(ids[longest])} or more",
            code="prompt-too-long-for-row",
        )
    log_probabilities_QT = np.empty((len(ids), len(prompted.texts.trie.ends_T)))
    left_Q = np.empty(len(ids))
    for unit in prompt_batches(ids, evaluation.max_seq_length, evaluation.batch_size):
        observed_P, previous_P = (of_queries[unit.members_P] for of_queries in everything)
        prompts = Prompts(unit.prefixes_P3, observed_P, previous_P=previous_P)
        log_probabilities_QT[unit.members_P], left_Q[unit.members_P] = prompted.score(unit.batch, prompts)
    return Distributions(log_probabilities_QT, left_Q)


def _check_context(prompted: _PromptedQueries) -> None:
    longest = max(range(len(prompted.ids)), key=lambda query: len(prompted.ids[query]))
    num_tokens, context = len(prompted.ids[longest]), prompted.texts.context
    with_title = num_tokens + prompted.texts.num_after(prompted.texts.trie.depths_M)
    if context is not None and with_title > context:
        raise SequenceTooLongError(
            f"{prompted.person(longest)} has {num_tokens} tokens, {with_title} with what is scored, the model's "
            f"context is {context}; take one with a longer context",
            code="prompt-too-long-for-model",
        )


def normalised(scores: TitleScores) -> tuple[Floats, Floats]:
    """Return log-probabilities over titles, [P, T], and the unscored share of their sum of 1, [P].

    The unscored titles share it evenly, so that no title is impossible.
    """
    is_unscored_PT = np.isnan(scores.terminated_PT)
    log_whole_P = scores.log_whole_P()
    log_left_P = scores.log_bound_P - log_whole_P
    even_P = log_left_P - np.log(np.maximum(is_unscored_PT.sum(axis=1), 1))
    log_probabilities_PT = np.where(is_unscored_PT, even_P[:, None], scores.terminated_PT - log_whole_P[:, None])
    return log_probabilities_PT, np.exp(log_left_P)
