"""Give free job titles an occ1990dd code: the code of the nearest title of the Census index.

A title whose normal form is in the index has the score 1. Any other title is compared with all of them: a title is a
vector of the pieces of its words (three letters, where a word's ends count as letters), each weighted by how rare it is
among the titles of the index (tf-idf), scaled to length 1; the score is the product of two such vectors (their
cosine), from 0 to 1. Typing errors leave most pieces as they are, and rare words decide more than common ones. Where
the code of the index's title hangs on an industry that nobody has said, the score is 0.9 times what it would be.

Pieces that more than a fifth of the titles have, such as the ending "er", are left out, which saves a third of the
work. Every score is a sum in an order that depends on the title alone, so a title's code never depends on the titles
that are coded along with it. How often the coder is right, by score: benchmarks/title_coder.py.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse

from laborllm_dist.careers.titles.index import IndexTitle, read_index
from laborllm_dist.careers.titles.normal_form import normal_form

_PIECE_LETTERS = 3
_COMMONEST_PIECE = 0.2  # share of the index's titles
_UNCERTAIN = 0.9  # times the score, where a title of the index has several codes
_TITLES_PER_PRODUCT = 512  # each has products with some thousands of the index's titles at once


@dataclass(frozen=True, slots=True)
class TitleMatch:
    """The occ1990dd code of a title, and how near the title is to the one of the index that it is from: 0 to 1."""

    code: str
    score: float
    matched_title: str


class TitleCoder:
    """Titles of an index, ready to be compared with. It is built in about a second; see `title_coder`."""

    def __init__(self, index: Sequence[IndexTitle]) -> None:
        # Takes a second, on every start of every rank: only where titles are coded.
        from sklearn.feature_extraction.text import TfidfVectorizer

        self._index = tuple(index)
        self._of_form = {each.normal_form: each for each in self._index}
        self._pieces = TfidfVectorizer(
            analyzer="char_wb",
            ngram_range=(_PIECE_LETTERS, _PIECE_LETTERS),
            max_df=_COMMONEST_PIECE,
            lowercase=False,
            dtype=np.float32,
        )
        vectors = self._pieces.fit_transform(each.normal_form for each in self._index)
        self._titles_of_piece = scipy.sparse.csr_array(vectors.T)  # [pieces, titles of the index]

    def match_titles(self, titles: Sequence[str]) -> list[TitleMatch | None]:
        """Return the nearest title of the index for every title; of equally near ones, the first in sorted order.

        None where a title says nothing of the work (its normal form is empty) or shares no piece with the index.
        """
        forms = [normal_form(title) for title in titles]
        unknown = sorted({form for form in forms if form and form not in self._of_form})
        nearest: dict[str, TitleMatch | None] = {"": None}
        for start in range(0, len(unknown), _TITLES_PER_PRODUCT):
            block = unknown[start : start + _TITLES_PER_PRODUCT]
            nearest.update(zip(block, self._nearest(block), strict=True))
        return [self._exact(form) if form in self._of_form else nearest[form] for form in forms]

    def _exact(self, form: str) -> TitleMatch:
        found = self._of_form[form]
        return TitleMatch(found.code, 1.0 if found.is_certain else _UNCERTAIN, found.title)

    def _nearest(self, forms: list[str]) -> list[TitleMatch | None]:
        scores = scipy.sparse.csr_array(self._pieces.transform(forms)) @ self._titles_of_piece
        matches: list[TitleMatch | None] = []
        for first, end in zip(scores.indptr[:-1], scores.indptr[1:], strict=True):
            row = scores.data[first:end]
            if not row.size:
                matches.append(None)
                continue
            best = row.max()
            found = self._index[scores.indices[first:end][row == best].min()]
            # Another title can have the same pieces; only the same normal form is the same title.
            score = min(float(best), 1.0) * (1.0 if found.is_certain else _UNCERTAIN)
            matches.append(TitleMatch(found.code, score, found.title))
        return matches


@functools.lru_cache(maxsize=1)
def title_coder() -> TitleCoder:
    """Return the coder on the Census index, built once in a process."""
    return TitleCoder(read_index())
