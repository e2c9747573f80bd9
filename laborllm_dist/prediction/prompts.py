"""The prompts of careers whose next occupation is predicted, as token ids, and the trie of titles after them.

A career is rendered with any occupation in the predicted year, tokenized whole as in the store, and cut before that
occupation. So a prompt has the tokens that it would have in a training text, whichever title follows; that is checked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import pyarrow.compute as pc

from laborllm_dist.careers.types import OccupationVocabulary
from laborllm_dist.errors import SequenceTooLongError, TitleBoundaryError
from laborllm_dist.evaluation.title_trie import TitleTrie, common_title_trie
from laborllm_dist.io.number_format import format_people
from laborllm_dist.prediction.requests import PredictionRequest
from laborllm_dist.store.store import CareerTable
from laborllm_dist.store.tokenize import tokenize_careers
from laborllm_dist.store.tokenizer import CareerTokenizer
from laborllm_dist.text.template import Template, render_career

Ids = tuple[int, ...]
COVARIATES = ("gender", "ethnicity", "region", "education")
NUM_NAMED = 8


def build_prompts(
    careers: Sequence[PredictionRequest],
    template: Template,
    vocabulary: OccupationVocabulary,
    tokenizer: CareerTokenizer,
) -> tuple[list[Ids], TitleTrie]:
    """Return the ids of every career's prompt, and the tree of all titles after them.

    Args:
        careers: at least one.
        template: of the run, with its prefix.
        vocabulary: the titles as texts show them.
        tokenizer: of the model.

    Raises:
        TitleBoundaryError: if a title changes the tokens of a prompt, or has other tokens after one than after another.
        TemplateError: if the template needs a field that a career does not have.
    """
    title_of, any_code = vocabulary.title_of(), vocabulary.codes[0]
    texts = [render_career(career.with_job(any_code), template, title_of)[-1] for career in careers]
    ends = [text.title_spans[-1][0] for text in texts]
    ids = [career.ids[: career.title_spans[-1][0]] for career in tokenize_careers(texts, tokenizer)]
    prompts = [text.text[:end] for text, end in zip(texts, ends, strict=True)]
    for career, prompt, before, alone in zip(
        careers, prompts, ids, tokenizer.backend.encode_batch(prompts, add_special_tokens=False), strict=True
    ):
        if list(before[len(tokenizer.leading) :]) != alone.ids:
            raise TitleBoundaryError(
                f"the title {title_of[any_code]!r} changes the tokens of the prompt of career {career.name}, "
                f"{prompt[-20:]!r}; the tokenizer must keep a title apart from the text before it",
                code="title-changes-prompt-tokens",
            )
    last_tokens = {before[-1]: prompt for before, prompt in zip(ids, prompts, strict=True)}
    return ids, common_title_trie(list(last_tokens.values()), vocabulary, tokenizer)


def check_context(
    careers: Sequence[PredictionRequest], prompts: Sequence[Ids], num_after: int, context: int | None
) -> None:
    """Check that every prompt with the tokens of the longest title fits the model's context (None: no limit).

    Args:
        careers: of the prompts.
        prompts: token ids.
        num_after: number of tokens that are forwarded after a prompt.
        context: of the model.

    Raises:
        SequenceTooLongError: naming the longest, and how many there are.
    """
    lengths = [len(prompt) + num_after for prompt in prompts]
    if context is None or max(lengths) <= context:
        return
    longest, num_longer = lengths.index(max(lengths)), sum(length > context for length in lengths)
    with_title = " with the longest title" if num_after else ""
    raise SequenceTooLongError(
        f"career {careers[longest].name} has {lengths[longest]} tokens{with_title}, "
        f"the model's context is {context}; leave out its first jobs, or take a model with a longer context; "
        f"{format_people(num_longer, len(careers), 'is longer', 'are longer')}",
        code="prompt-too-long-for-model",
    )


def unseen_covariates(careers: Sequence[PredictionRequest], trained: CareerTable, hidden: frozenset[str]) -> list[str]:
    """Return a line for every covariate with words that no training career has, such as "f" in place of "female"."""
    lines: list[str] = []
    for name in COVARIATES:
        if name in hidden:
            continue
        column = pc.list_flatten(trained.table["educations"]) if name == "education" else trained.table[name]
        seen = [str(word) for word in pc.drop_null(pc.unique(column)).to_pylist()]
        unseen = {word: count for word, count in _words(careers, name).items() if word not in seen}
        if unseen:
            shown = ", ".join(f"{word!r} ({_people(count)})" for word, count in list(unseen.items())[:NUM_NAMED])
            known = ", ".join(sorted(seen)[:NUM_NAMED]) or "none at all"
            lines.append(f"no training career has the {name} {shown}; known: {known}")
    return lines


def _words(careers: Sequence[PredictionRequest], name: str) -> Mapping[str, int]:
    """Return how many people have each word of a covariate."""
    counts: Counter[str] = Counter()
    for career in careers:
        if name == "education":
            counts.update({job.education for job in career.history.jobs if job.education} | {career.education or ""})
        else:
            counts[getattr(career.history, name) or ""] += 1
    del counts[""]
    return counts


def _people(count: int) -> str:
    return "1 person" if count == 1 else f"{count:,} people"
