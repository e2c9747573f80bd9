r"""Turn a career's text into token ids, and the characters of every title into a token span.

Whole texts are tokenized, never pieces: the same words get other ids at the start of a text than in its middle. A
title's tokens begin and end where its characters do; the token after it is the line's end, whose probability is the
difference between `title` and `terminated`. A tokenizer that joins a title to its neighbors raises an error, and so
does one that gives different texts the same tokens because it maps unknown characters to `<unk>` or drops them.

    text     1984 (some college): Cooks\n1985 ...
    tokens   ... |):| Co|oks|\n|19|85 ...
    span              [-----)       title: 2 tokens; terminated: these and the next one
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from laborllm_dist.careers.types import OccupationVocabulary
from laborllm_dist.errors import TitleBoundaryError, TokenizerError
from laborllm_dist.io.files import batched
from laborllm_dist.text.template import CareerText

if TYPE_CHECKING:
    from laborllm_dist.store.tokenizer import CareerTokenizer

# An encoding takes over a hundred bytes per token, an id four: with a list of titles before every career this matters.
TEXTS_AT_ONCE = 500
ADVICE = (
    "different texts would be the same tokens; write it with other characters, or take a tokenizer that reads "
    "all of them (byte-level, or with byte fallback)"
)


@dataclass(frozen=True, slots=True)
class TokenizedCareer:
    """A text's ids and, for each title, its tokens [start, end); the token at `end` is the line's end."""

    ids: tuple[int, ...]
    title_spans: tuple[tuple[int, int], ...]


def tokenize_careers(texts: Sequence[CareerText], tokenizer: CareerTokenizer) -> list[TokenizedCareer]:
    """Tokenize texts, in order, on all cores.

    Raises:
        TitleBoundaryError: if a token crosses the start or end of a title, or the line's end is not a separate token.
        TokenizerError: if a text has characters without a token, naming them and their line.
    """
    careers: list[TokenizedCareer] = []
    for chunk in batched(texts, TEXTS_AT_ONCE):
        encodings = tokenizer.backend.encode_batch([text.text for text in chunk], add_special_tokens=False)
        for text, encoding in zip(chunk, encodings, strict=True):
            if unknown := tokenizer.unknown_characters(text.text, encoding):
                line = next(line for line in text.text.split("\n") if unknown[0].strip("\n").split("\n")[0] in line)
                raise TokenizerError(
                    f"the tokenizer has no token for {_named(unknown)} in the line {line!r}; {ADVICE}",
                    code="unknown-characters",
                )
            spans = _token_spans(text, encoding.offsets, len(tokenizer.leading))
            careers.append(TokenizedCareer((*tokenizer.leading, *encoding.ids), spans))
    return careers


def _named(texts: Sequence[str]) -> str:
    """Return the first three distinct texts, and how many more there are."""
    different = list(dict.fromkeys(texts))
    more = f" and {len(different) - 3} more" if len(different) > 3 else ""
    return ", ".join(repr(each) for each in different[:3]) + more


def _token_spans(text: CareerText, offsets: Sequence[tuple[int, int]], num_leading: int) -> tuple[tuple[int, int], ...]:
    spans: list[tuple[int, int]] = []
    token = 0
    for start, end in text.title_spans:
        # Only ends are compared: some tokenizers exclude the space before a word from the token's characters.
        while offsets[token][1] <= start:
            token += 1
        first = token
        while token < len(offsets) and offsets[token][1] <= end:
            token += 1
        closed = token < len(offsets) and offsets[token] == (end, end + 1) and text.text[end] == "\n"
        if offsets[first][0] < start or offsets[token - 1][1] != end or not closed:
            raise TitleBoundaryError(
                f"the tokenizer does not keep the title {text.text[start + 1 : end]!r} apart from its neighbors in "
                f"{text.text[max(0, start - 20) : end + 6]!r}; a title and its line must begin and end at a token",
                code="title-not-on-token-boundary",
            )
        spans.append((first + num_leading, token + num_leading))
    return tuple(spans)


def title_token_ids(
    prompt: str, vocabulary: OccupationVocabulary, tokenizer: CareerTokenizer
) -> tuple[list[tuple[int, ...]], int]:
    """Return the token ids of every title after a prompt, and the token of the line's end.

    Args:
        prompt: a text up to, but without, the space before a title, from the template.
        vocabulary: the titles.
        tokenizer: the tokenizer of the careers.

    Raises:
        TitleBoundaryError: naming the first title that changes the prompt's tokens or ends inside a token, so that
            P(title | prompt) is not well defined; or naming two titles that are the same tokens.
        TokenizerError: naming the titles that have characters without a token.
    """
    _check_characters(vocabulary, tokenizer)
    prompt_ids = tokenizer.backend.encode(prompt, add_special_tokens=False).ids
    texts = [
        CareerText(text=f"{prompt} {title}\n", title_spans=((len(prompt), len(prompt) + 1 + len(title)),))
        for title in vocabulary.titles
    ]
    titles: list[tuple[int, ...]] = []
    terminators: set[int] = set()
    for title, career in zip(vocabulary.titles, tokenize_careers(texts, tokenizer), strict=True):
        start, end = career.title_spans[0]
        if list(career.ids[len(tokenizer.leading) : start]) != prompt_ids:
            raise TitleBoundaryError(
                f"the title {title!r} changes the tokens of the prompt before it, {prompt[-20:]!r}",
                code="title-changes-prompt",
            )
        titles.append(career.ids[start:end])
        terminators.add(career.ids[end])
    title_of: dict[tuple[int, ...], str] = {}
    for title, ids in zip(vocabulary.titles, titles, strict=True):
        if title_of.setdefault(ids, title) != title:
            raise TitleBoundaryError(
                f"the titles {title_of[ids]!r} and {title!r} are the same tokens, so they have no probabilities of "
                "their own; change one of them, or take a tokenizer that tells them apart",
                code="identical-title-tokens",
            )
    if len(terminators) > 1:
        raise TitleBoundaryError(
            f"the line's end after a title is not always the same token: {sorted(terminators)}",
            code="inconsistent-line-end",
        )
    return titles, terminators.pop()


def _check_characters(vocabulary: OccupationVocabulary, tokenizer: CareerTokenizer) -> None:
    """Raise TokenizerError if a title has characters without a token."""
    if tokenizer.reads_all_bytes:
        return
    encodings = tokenizer.backend.encode_batch(list(vocabulary.titles), add_special_tokens=False)
    unknown = {
        title: characters
        for title, encoding in zip(vocabulary.titles, encodings, strict=True)
        if (characters := tokenizer.unknown_characters(title, encoding))
    }
    if unknown:
        raise TokenizerError(
            f"the tokenizer has no token for {_named([each for missing in unknown.values() for each in missing])} in "
            f"{len(unknown):,} of {len(vocabulary):,} titles: {_named(list(unknown))}; {ADVICE}",
            code="unknown-characters",
        )
