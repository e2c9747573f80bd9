"""Turn titles into the pieces by which they are compared: words, their beginnings, heads, pairs, letters.

    word    each word                      "chief", "engineer"
    start   its first five letters         "chief", "engin"      (engineer and engineering share it)
    head    the head noun                  "engineer"
    pair    the head with each other word  "engineer|chief"
    gram    four letters of a word, whose ends count as letters: "<chi", "chie", "hief", "ief>"

A word that no title of the index has is read as one that differs by one letter (left out, put in, changed, or two in a
row exchanged), of several as the one in most titles: "drivr" is driver. Pieces that the index lacks are left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, get_args

import numpy as np
import scipy.sparse

Kind = Literal["word", "start", "head", "pair", "gram"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_START_LETTERS, _GRAM_LETTERS = 5, 4
_SHORTEST_MISSPELLED = 4  # letters; shorter words are one letter away from too many others
_LEAST_HEADS = 5  # titles of the index that end with a head noun
_NUM_REMEMBERED = 100_000

Words = tuple[str, ...]


class PieceTable:
    """The pieces of an index's titles by kind, numbered, so that any title becomes rows of counts."""

    def __init__(self, titles: Sequence[Words]) -> None:
        self._num_titles_of = Counter(word for words in titles for word in set(words))
        self._num_titles_of_head = Counter(words[-1] for words in titles if words)
        self._longest = max(map(len, self._num_titles_of), default=0)
        self._nearly: dict[str, list[str]] = {}
        for word in sorted(self._num_titles_of):
            if len(word) >= _SHORTEST_MISSPELLED:
                for shorter in _one_letter_less(word):
                    self._nearly.setdefault(shorter, []).append(word)
        self._known_of_word: dict[str, str] = {}
        self._numbers_of_word: dict[Kind, dict[str, list[int]]] = {kind: {} for kind in KINDS}
        self.number_of: dict[Kind, dict[str, int]] = {kind: {} for kind in KINDS}
        for words in titles:
            for kind in KINDS:
                numbers = self.number_of[kind]
                for piece in pieces_of(words, kind):
                    numbers.setdefault(piece, len(numbers))

    def spelled(self, words: Words) -> Words:
        """Return a title's words with misspelled ones as the index spells them."""
        return tuple(self._spelled_word(word) for word in words)

    def with_head_last(self, words: Words) -> Words:
        """Return a title's words with the last one that is a head noun in the index at the end.

        "VP Engineering" is an engineering vice president: a title that people write need not end with its head noun.
        """
        ends = len(words)
        for at in range(ends - 1, -1, -1):
            if self._num_titles_of_head[words[at]] >= _LEAST_HEADS:
                ends = at + 1
                break
        return (*words[ends:], *words[:ends])

    def knows(self, word: str) -> bool:
        """Return whether a title of the index has the word."""
        return word in self._num_titles_of

    def rows(self, titles: Sequence[Words], kind: Kind) -> scipy.sparse.csr_array:
        """Return how often each title has each piece of a kind, [titles, pieces], float32."""
        numbers = self.number_of[kind]
        of_word = self._numbers_of_word[kind]
        columns: list[int] = []
        ends = [0]
        for words in titles:
            if kind in ("head", "pair"):
                columns.extend(numbers[piece] for piece in pieces_of(words, kind) if piece in numbers)
            else:
                for word in dict.fromkeys(words):
                    of_this = of_word.get(word)
                    if of_this is None:
                        of_this = [numbers[piece] for piece in pieces_of((word,), kind) if piece in numbers]
                        if len(of_word) >= _NUM_REMEMBERED:
                            of_word.clear()
                        of_word[word] = of_this
                    columns.extend(of_this)
            ends.append(len(columns))
        shape = (len(titles), len(numbers))
        rows = scipy.sparse.csr_array((np.ones(len(columns), np.float32), columns, ends), shape=shape)
        rows.sum_duplicates()  # in one order in every row, whatever rows stand beside it
        return rows

    def _spelled_word(self, word: str) -> str:
        if word in self._num_titles_of or not _SHORTEST_MISSPELLED <= len(word) <= self._longest + 1:
            return word  # it is right, or no word of the index is one letter away
        known = self._known_of_word.get(word)
        if known is None:
            known = self._nearest_word(word)
            if len(self._known_of_word) >= _NUM_REMEMBERED:
                self._known_of_word.clear()
            self._known_of_word[word] = known
        return known

    def _nearest_word(self, word: str) -> str:
        shorter = set(_one_letter_less(word))
        near = {each for each in shorter if each in self._num_titles_of and len(each) >= _SHORTEST_MISSPELLED}
        near.update(self._nearly.get(word, ()))
        for each in shorter:
            # Without one letter each, both are the same: a letter is changed, or moved; the lengths are equal.
            near.update(other for other in self._nearly.get(each, ()) if _is_changed_or_exchanged(word, other))
        return min(near, key=lambda other: (-self._num_titles_of[other], other), default=word)


def pieces_of(words: Words, kind: Kind) -> Iterable[str]:
    """Return the pieces of a kind that a title has, each once; those of a word stand together."""
    if not words:
        return ()
    if kind == "word":
        return dict.fromkeys(words)
    if kind == "start":
        return dict.fromkeys(word[:_START_LETTERS] for word in words)
    if kind == "head":
        return (words[-1],)
    if kind == "pair":
        return dict.fromkeys(f"{words[-1]}|{word}" for word in words if word != words[-1])
    return dict.fromkeys(gram for word in words for gram in _grams(word))


def _grams(word: str) -> Iterator[str]:
    padded = f"<{word}>"
    return (padded[at : at + _GRAM_LETTERS] for at in range(max(1, len(padded) - _GRAM_LETTERS + 1)))


def _one_letter_less(word: str) -> Iterator[str]:
    return (word[:at] + word[at + 1 :] for at in range(len(word)))


def _is_changed_or_exchanged(word: str, other: str) -> bool:
    """Return whether words of equal length differ in one letter, or in two neighbors that are exchanged."""
    differ = [at for at, (one, two) in enumerate(zip(word, other, strict=True)) if one != two]
    if len(differ) == 2:
        first, second = differ
        return second == first + 1 and (word[first], word[second]) == (other[second], other[first])
    return len(differ) == 1
