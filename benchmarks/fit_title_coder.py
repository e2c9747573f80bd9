"""Fit the title coder's weights: those of its voters, and those that turn what is known of an answer into a score.

    python benchmarks/fit_title_coder.py

It learns from the half of O*NET's titles that benchmarks/title_coder.py does not measure on, and from the common titles
that are not among those coded by hand (benchmarks/common_titles.csv). In turn, a fifth of these titles is taken out of
the index, and the coder answers a third of them. Every second time they are taken out of the Census index as well,
since a title as people write it is often in no index. Each title of O*NET weighs by how few titles its code has, so
that occupations count more evenly, not the many names of factory jobs; common titles weigh together as much as O*NET's.

It prints the constants of careers/occupations/autocoder.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from title_coder import half_of, hand_coded, without

from laborllm_dist.careers.occupations.autocoder import EXACT, SIGNALS, VOTERS, TitleCoder
from laborllm_dist.careers.occupations.title_index import IndexTitle, read_index

NUM_FOLDS, ONE_OF = 5, 3
LEAST_BONUS = 4.0  # of titles that stand in the first two tables, whose codes are right by definition
Array = NDArray[np.float64]


def share_loss(weights: Array, parts: Array, right: NDArray[np.bool_], weight: Array) -> tuple[float, Array]:
    """Return -log of the right codes' posterior and its gradient; parts are [voters, titles, codes]."""
    logits = np.tensordot(weights, parts, 1)
    posterior = np.exp(logits - logits.max(1, keepdims=True))
    posterior /= posterior.sum(1, keepdims=True)
    of_right = np.maximum((posterior * right).sum(1), 1e-12)
    slope = (posterior - posterior * right / of_right[:, None]) * weight[:, None]
    gradient = np.array([(slope * part).sum() for part in parts])
    return float(-(weight * np.log(of_right)).sum() + 1e-4 * (weights**2).sum()), gradient + 2e-4 * weights


def score_loss(weights: Array, signals: Array, right: Array, weight: Array) -> tuple[float, Array]:
    """Return the loss of a logistic regression and its gradient."""
    logits = signals @ weights
    loss = weight * (np.logaddexp(0, logits) - right * logits)
    gradient = (weight * (1 / (1 + np.exp(-logits)) - right)) @ signals
    return float(loss.sum() + 1e-4 * (weights**2).sum()), gradient + 2e-4 * weights


def fold_of(title: IndexTitle) -> int:
    return half_of(title.normal_form, salt="fold", parts=NUM_FOLDS)


def weights_of(titles: Sequence[IndexTitle]) -> Array:
    """Return how much each title counts: O*NET's by how few its code has; common ones together as much."""
    of_code = Counter(title.code for title in titles if title.source == "onet")
    weight = np.array([1.0 if title.source == "common" else 1 / of_code[title.code] ** 0.5 for title in titles])
    common = np.array([title.source == "common" for title in titles])
    weight[common] /= weight[common].sum()
    weight[~common] /= weight[~common].sum()
    return weight / 2


def main() -> None:
    """Fit the voters, then the score, and print both."""
    by_hand = {form for form, _ in hand_coded()}
    shown = [entry for entry in read_index() if entry.source != "onet" or half_of(entry.normal_form) == 0]
    shown = [entry for entry in shown if entry.source != "common" or entry.normal_form not in by_hand]
    folds: list[tuple[list[IndexTitle], list[IndexTitle]]] = []
    for fold in range(NUM_FOLDS):
        out = [entry for entry in shown if entry.source != "census" and fold_of(entry) == fold]
        titles = [each for place, each in enumerate(out) if each.source == "common" or place % ONE_OF == 0]
        if fold % 2:
            folds.append((titles, without(shown, {entry.normal_form for entry in out})))
        else:
            forms = {(entry.source, entry.normal_form) for entry in out}
            folds.append((titles, [entry for entry in shown if (entry.source, entry.normal_form) not in forms]))
    all_titles = [title for titles, _ in folds for title in titles]
    weight = weights_of(all_titles)
    parts, right = [], []
    codes = TitleCoder(shown).codes
    for titles, index in folds:
        coder = TitleCoder(index)
        evidence = coder.evidence([coder.read_words(title.words) for title in titles])
        place = np.array([codes.index(code) for code in coder.codes])
        both = np.full((len(VOTERS) + len(EXACT), len(titles), len(codes)), 0, np.float32)
        for number, part in enumerate((*evidence.votes, *evidence.exact)):
            both[number] = part.min() if number < len(VOTERS) else 0
            both[number][:, place] = part
        both[: len(VOTERS)] -= both[: len(VOTERS)].max(2, keepdims=True)
        parts.append(both)
        right.append(np.array([[code in title.codes for code in codes] for title in titles]))
    together, are_right = np.concatenate(parts, axis=1), np.concatenate(right)
    start = np.array([0.2, 0.05, 0.1, 0.6, 0.2, LEAST_BONUS, LEAST_BONUS, 2, 2, 1])
    bounds = [(0.0, None)] * len(VOTERS) + [(LEAST_BONUS, None)] * 2 + [(0.0, None)] * 3
    solution = minimize(share_loss, start, (together, are_right, weight), "L-BFGS-B", jac=True, bounds=bounds).x
    voter_weights, bonuses = solution[: len(VOTERS)], solution[len(VOTERS) :]
    print("VOTER_WEIGHTS =", tuple(round(float(each), 3) for each in voter_weights))
    print("EXACT_BONUSES =", tuple(round(float(bonus), 3) for bonus in bonuses))
    signals, hits = [], []
    for titles, index in folds:
        coder = TitleCoder(index, voter_weights.tolist(), bonuses.tolist())
        answers, of_titles = coder.answers([title.words for title in titles])
        signals.append(of_titles)
        hits += [
            answer is not None and coder.codes[answer.place] in each.codes
            for each, answer in zip(titles, answers, strict=True)
        ]
    data = np.concatenate(signals)
    fitted = minimize(score_loss, np.zeros(len(SIGNALS)), (data, np.array(hits, float), weight), "L-BFGS-B", jac=True).x
    print("SIGNAL_WEIGHTS =", tuple(round(float(each), 3) for each in fitted))


if __name__ == "__main__":
    main()
