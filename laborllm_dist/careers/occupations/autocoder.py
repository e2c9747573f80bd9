"""Assign occ1990dd codes to free-text job titles, with the probability that a code is right.

Five voters judge every code, each by the log of a share; their weighted sum, in a softmax, is the posterior:

    word, gram, pair         naive Bayes over pieces of that kind (titles/pieces.py), each code equally likely before
    near, nearest            the titles of the index that are like this one. A title is a vector of its words, their
                             beginnings and its head, each weighted by how rare it is (tf-idf), of length 1; every title
                             of the index votes for its codes with its cosine to the power of 4, or 10

An exact match in the index adds a bonus to its codes, which depends on the table of the match. The
code with the highest posterior is the answer, among the codes that a similar title of the index has; `matched_title` is
the most similar title with that code.

The score is the estimated probability of being right: a logistic regression on what is known of the answer (posterior,
lead, similarity, agreement of the head noun, unknown words, which table has the title). Its weights and those of the
voters were fitted by benchmarks/fit_title_coder.py to titles that the index had been deprived of. A code that no title
with this head noun has in the index scores at most 0.5: a "metal furnace operator" is not a janitor.

Every number is a sum in an order that depends on the title alone, so a title's code never depends on the titles that
are coded along with it. benchmarks/title_coder.py measures the accuracy by score.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from laborllm_dist.careers.occupations.features import Kind, PieceTable, Words
from laborllm_dist.careers.occupations.normalize import LONGEST_TITLE, title_words
from laborllm_dist.careers.occupations.title_index import IndexTitle, Source, read_index

Floats = NDArray[np.floating[Any]]

_TITLES_PER_BLOCK = 512  # each has products with some thousands of the index's titles at once
_PRIORITY: Mapping[Source, int] = {"common": 0, "onet": 1, "census": 2}
_BAYES: Mapping[Kind, float] = {"word": 0.1, "gram": 0.02, "pair": 0.1}  # kind: what is added to counts
_SIMILARITY: Mapping[Kind, float] = {"word": 1.0, "start": 1.0, "head": 0.7}  # kind: its weight beside the others
_LEAST_COSINE = 0.2  # less similar titles have no vote; there are thousands of them
_NO_VOTE = 1e-3  # added to shares of votes before their log
_HIGHEST_WITHOUT_HEAD = 0.5
EXACT = (
    "common", "onet", "census, one code", "census, first code", "census, other code",
)  # fmt: skip
VOTERS = (*_BAYES, "near", "nearest")

# Fitted by benchmarks/fit_title_coder.py.
VOTER_WEIGHTS = (0.246, 0.065, 0.092, 0.501, 0.259)
EXACT_BONUSES = (4.0, 4.0, 1.575, 1.529, 0.837)
SIGNALS = (
    "constant", "posterior (log odds)", "lead (log)", "cosine", "head agrees", "unknown words", "one word",
    "in common", "in onet", "in census, one code", "in census, several codes",
)  # fmt: skip
SIGNAL_WEIGHTS = (-0.783, 0.808, 0.064, 0.768, 0.394, -0.527, -0.033, -1.266, -1.096, -0.111, 0.067)


@dataclass(frozen=True, slots=True)
class TitleMatch:
    """The occ1990dd code of a title, the probability that it is right, and the most similar title that has it."""

    code: str
    score: float
    matched_title: str


@dataclass(frozen=True, slots=True)
class Answer:
    """The place of a title's code, the most similar title that has it, and how similar that is.

    `head_agrees`: a title of the index with this code has the same head noun.
    """

    place: int
    title: str
    head_agrees: bool
    cosine: float


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of some titles' codes: [titles, codes] of every voter and of every kind of exact entry."""

    votes: tuple[Floats, ...]
    exact: tuple[Floats, ...]
    cosines: scipy.sparse.csr_array  # [titles, titles of the index]


class TitleCoder:
    """Codes titles by an index of titles. Building it takes several seconds; see `title_coder`."""

    def __init__(
        self,
        index: Sequence[IndexTitle],
        voter_weights: Sequence[float] = VOTER_WEIGHTS,
        exact_bonuses: Sequence[float] = EXACT_BONUSES,
        signal_weights: Sequence[float] = SIGNAL_WEIGHTS,
    ) -> None:
        self._voter_weights, self._exact_bonuses = tuple(voter_weights), tuple(exact_bonuses)
        self._signal_weights = tuple(signal_weights)
        of_form: dict[str, IndexTitle] = {}
        for each in sorted(index, key=lambda each: (_PRIORITY[each.source], each.title)):
            of_form.setdefault(each.normal_form, each)
        self._of_form = of_form
        self._titles = tuple(of_form.values())
        self.codes = tuple(sorted({code for each in self._titles for code in each.codes}))
        self._place_of = {code: place for place, code in enumerate(self.codes)}
        self._shares = self._shares_of_titles()
        words = [each.words for each in self._titles]
        self._pieces = PieceTable(words)
        rows = {kind: self._pieces.rows(words, kind) for kind in {**_BAYES, **_SIMILARITY}}
        self._bayes = {kind: _naive_bayes(rows[kind], self._shares, alpha) for kind, alpha in _BAYES.items()}
        self._rarity = {kind: weight * _rarity(rows[kind]) for kind, weight in _SIMILARITY.items()}
        self._titles_of_piece = scipy.sparse.csr_array(self._vectors(rows).T)  # [pieces, titles of the index]
        has_head = scipy.sparse.csr_array(rows["head"].T @ self._shares)
        self._codes_of_head = {
            head: frozenset(has_head.indices[has_head.indptr[number] : has_head.indptr[number + 1]].tolist())
            for head, number in self._pieces.number_of["head"].items()
        }
        has_code = self._shares.toarray().T > 0
        self._has_code = np.ascontiguousarray(has_code)  # [codes, titles of the index]

    def match_titles(self, titles: Sequence[str]) -> list[TitleMatch | None]:
        """Return code, score and most similar title of the index for every title.

        None if the normal form of a title is empty, no title of the index is similar to it, or it is longer than
        LONGEST_TITLE.
        """
        forms = [title_words(title) if len(title) <= LONGEST_TITLE else () for title in titles]
        distinct = sorted(set(forms) - {()})
        matches: dict[Words, TitleMatch | None] = {(): None}
        for start in range(0, len(distinct), _TITLES_PER_BLOCK):
            block = distinct[start : start + _TITLES_PER_BLOCK]
            answers, signals = self.answers(block)
            scores = _logistic(_weighted(tuple(signals.T), self._signal_weights))
            for words, answer, score in zip(block, answers, scores.tolist(), strict=True):
                if answer is None:
                    matches[words] = None
                    continue
                highest = 1.0 if answer.head_agrees else _HIGHEST_WITHOUT_HEAD
                matches[words] = TitleMatch(self.codes[answer.place], min(score, highest), answer.title)
        return [matches[words] for words in forms]

    def answers(self, titles: Sequence[Words]) -> tuple[list[Answer | None], Floats]:
        """Return the match of every title, None if no title is similar, and the signals, [titles, SIGNALS]."""
        spelled = [self.read_words(words) for words in titles]
        evidence = self.evidence(spelled)
        posteriors = self._posteriors(evidence)
        signals = np.zeros((len(titles), len(SIGNALS)))
        highest, second = posteriors.max(axis=1), _second_highest(posteriors)
        answers: list[Answer | None] = []
        for row, (words, posterior) in enumerate(zip(spelled, posteriors, strict=True)):
            answer = self._answer(words, posterior, evidence, row)
            answers.append(answer)
            if answer is not None:
                of_answer = float(posterior[answer.place])
                of_other = float(second[row] if of_answer > second[row] else highest[row])
                signals[row] = self._signals(words, of_answer, of_other, answer)
        return answers, signals

    def read_words(self, words: Words) -> Words:
        """Return a title's words as the index spells them, with a head noun of the index last."""
        return self._pieces.with_head_last(self._pieces.spelled(words))

    def evidence(self, titles: Sequence[Words]) -> Evidence:
        """Return what the voters and the exact entries say of some titles."""
        rows = {kind: self._pieces.rows(titles, kind) for kind in {**_BAYES, **_SIMILARITY}}
        votes = []
        for kind, (gains, losses) in self._bayes.items():
            num_pieces = np.diff(rows[kind].indptr).astype(np.float32)
            votes.append((rows[kind] @ gains).toarray() - num_pieces[:, None] * losses[None, :])
        cosines = scipy.sparse.csr_array(self._vectors(rows) @ self._titles_of_piece)
        cosines = _at_least(cosines, _LEAST_COSINE)
        square = cosines.data * cosines.data
        fourth = square * square
        for powers in (fourth, fourth * fourth * square):
            raised = scipy.sparse.csr_array((powers, cosines.indices, cosines.indptr), shape=cosines.shape)
            shares = (raised @ self._shares).toarray()
            total = shares.sum(axis=1, keepdims=True)
            votes.append(np.log(shares / np.where(total > 0, total, 1) + _NO_VOTE))
        return Evidence(tuple(votes), self._exact(titles), cosines)

    def _exact(self, titles: Sequence[Words]) -> tuple[Floats, ...]:
        exact = tuple(np.zeros((len(titles), len(self.codes)), np.float32) for _ in EXACT)
        for row, words in enumerate(titles):
            entry = self._of_form.get(" ".join(sorted(words)))
            if entry is None:
                continue
            places = [self._place_of[code] for code in entry.codes]
            if entry.source != "census":
                exact[EXACT.index(entry.source)][row, places] = 1
            elif len(places) == 1:
                exact[2][row, places] = 1
            else:
                exact[3][row, places[0]] = 1
                exact[4][row, places[1:]] = 1
        return exact

    def _posteriors(self, evidence: Evidence) -> Floats:
        logits = _weighted(evidence.votes, self._voter_weights)
        for entries, bonus in zip(evidence.exact, self._exact_bonuses, strict=True):
            if entries.any():
                logits += bonus * entries
        return _softmax(logits)

    def _answer(self, words: Words, posterior: Floats, evidence: Evidence, row: int) -> Answer | None:
        """Return the match of a title; None if no title of the index is similar to it."""
        first, end = evidence.cosines.indptr[row], evidence.cosines.indptr[row + 1]
        if first == end:
            return None
        similar, cosines = evidence.cosines.indices[first:end], evidence.cosines.data[first:end]
        for place in _from_the_highest(posterior):
            with_code = self._has_code[place].take(similar).nonzero()[0]
            if with_code.size:
                cosines_of_code = cosines[with_code]
                best = cosines_of_code.max()
                title = self._titles[similar[with_code[cosines_of_code == best]].min()].title
                agrees = place in self._codes_of_head.get(words[-1], frozenset())
                return Answer(place, title, agrees, float(best))
        return None

    def _signals(self, words: Words, of_answer: float, of_other: float, answer: Answer) -> list[float]:
        """Return the signals of an answer, from its posterior and the highest one of another code."""
        sure = min(max(of_answer, 1e-6), 1 - 1e-6)
        entry = self._of_form.get(" ".join(sorted(words)))
        has = entry is not None and self.codes[answer.place] in entry.codes
        source = entry.source if entry is not None and has else None
        return [
            1.0,
            math.log(sure / (1 - sure)),
            math.log(sure / max(of_other, 1e-6)),
            min(answer.cosine, 1.0),
            float(answer.head_agrees),
            sum(not self._pieces.knows(word) for word in words) / len(words),
            float(len(words) == 1),
            float(source == "common"),
            float(source == "onet"),
            float(source == "census" and entry is not None and len(entry.codes) == 1),
            float(source == "census" and entry is not None and len(entry.codes) > 1),
        ]

    def _shares_of_titles(self) -> scipy.sparse.csr_array:
        """Return how much each title of the index speaks for each code, [titles, codes]; a row sums to 1."""
        shares: list[float] = []
        columns: list[int] = []
        ends = [0]
        for each in self._titles:
            if each.source == "census" and len(each.codes) > 1:
                share = [0.5, *[0.5 / (len(each.codes) - 1)] * (len(each.codes) - 1)]
            else:
                share = [1 / len(each.codes)] * len(each.codes)
            shares.extend(share)
            columns.extend(self._place_of[code] for code in each.codes)
            ends.append(len(columns))
        table = scipy.sparse.csr_array(
            (np.array(shares, np.float32), columns, ends), shape=(len(self._titles), len(self.codes))
        )
        table.sort_indices()
        return table

    def _vectors(self, rows: Mapping[Kind, scipy.sparse.csr_array]) -> scipy.sparse.csr_array:
        """Return the unit vectors that represent titles, [titles, pieces]."""
        parts = []
        for kind, rarity in self._rarity.items():
            weighted = rows[kind].copy()
            weighted.data = rarity[weighted.indices]
            parts.append(weighted)
        vectors = scipy.sparse.csr_array(scipy.sparse.hstack(parts, format="csr"))
        row_of_entry = np.repeat(np.arange(vectors.shape[0]), np.diff(vectors.indptr))
        # Not .sum(axis=1), whose order of summing depends on the other rows.
        length = np.sqrt(np.bincount(row_of_entry, vectors.data.astype(np.float64) ** 2, minlength=vectors.shape[0]))
        vectors.data = (vectors.data / length[row_of_entry]).astype(np.float32)
        return vectors


def _from_the_highest(posterior: Floats) -> Iterator[int]:
    """Give the places of the codes, the highest posterior first; the first one is nearly always the answer."""
    yield int(posterior.argmax())
    yield from np.argsort(-posterior, kind="stable")[1:].tolist()


def _second_highest(posteriors: Floats) -> Floats:
    """Return the second highest number of every row; 0 where a row has only one."""
    if posteriors.shape[1] < 2:
        return np.zeros(len(posteriors))
    second: Floats = np.partition(posteriors, -2, axis=1)[:, -2]
    return second


def _naive_bayes(
    rows: scipy.sparse.csr_array, shares: scipy.sparse.csr_array, alpha: float
) -> tuple[scipy.sparse.csr_array, Floats]:
    """Return log p(piece | code) as a gain where the code has the piece, [pieces, codes], and a loss of every piece.

    log((count + alpha) / (total + alpha * pieces)) = log(1 + count / alpha) - log((total + alpha * pieces) / alpha)
    """
    counts = scipy.sparse.csr_array(rows.T @ shares)
    totals = np.asarray(counts.sum(axis=0)).ravel()
    losses = np.log(totals + alpha * max(1, rows.shape[1])) - np.log(alpha)
    counts.data = np.log1p(counts.data / alpha)
    return counts, losses.astype(np.float32)


def _rarity(rows: scipy.sparse.csr_array) -> Floats:
    num_titles = np.bincount(rows.indices, minlength=rows.shape[1])
    return (np.log((1 + rows.shape[0]) / (1 + num_titles)) + 1).astype(np.float32)


def _at_least(table: scipy.sparse.csr_array, least: float) -> scipy.sparse.csr_array:
    """Return a table without its entries below a number."""
    keep = table.data >= least
    ends = np.concatenate(([0], np.cumsum(keep)))[table.indptr]
    return scipy.sparse.csr_array((table.data[keep], table.indices[keep], ends), shape=table.shape)


def _weighted(parts: Sequence[Floats], weights: Sequence[float]) -> Floats:
    total = np.zeros(parts[0].shape)
    for part, weight in zip(parts, weights, strict=True):
        total += weight * part
    return total


def _softmax(logits: Floats) -> Floats:
    exponentials: Floats = np.exp(logits - logits.max(axis=1, keepdims=True))
    posteriors: Floats = exponentials / exponentials.sum(axis=1, keepdims=True)
    return posteriors


def _logistic(logits: Floats) -> Floats:
    return 1 / (1 + np.exp(-logits))


@functools.lru_cache(maxsize=1)
def title_coder() -> TitleCoder:
    """Return the coder on all tables, built once in a process."""
    return TitleCoder(read_index())
