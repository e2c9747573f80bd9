"""How fast is the title coder, how often is it right, and where should its threshold lie?

    python benchmarks/title_coder.py

The coded share and the right share of the coded, by threshold, on titles that the coder is not shown:

    O*NET, unseen half     half of the alternate titles of O*NET 27.0 (by a hash of the normal form), with the other
                           half in the index; the common titles of these forms are left out
    ... by occupation      the same, each code weighing the same
    ... in no index        those of them that the Census index has not, either
    ... with noise         the same half as people may write them: abbreviated, with ranks, employers and typing errors
    common titles          careers/tables/common_titles.csv, a fifth at a time out of the index, with a half of O*NET's
    by hand                titles as resumes have them, coded by hand before any coder was run on them
                           (benchmarks/common_titles.csv; several codes where several are right); the same
                           forms are left out of the common titles; all of O*NET's titles are in the index
    Census, one of ten     titles of the Census index of one code that no table has, in turn: one of ten

Fast: distinct titles a second on one core, none of them in the index.
"""

from __future__ import annotations

import csv
import hashlib
import re
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from records import Record, RecordFile

from laborllm_dist.careers.occupations.autocoder import TitleCoder
from laborllm_dist.careers.occupations.normalize import normal_form
from laborllm_dist.careers.occupations.title_index import IndexTitle, read_index

HERE = Path(__file__).parent
THRESHOLDS = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
NUM_FOLDS, NUM_FAST = 10, 20_000
NOISE = (
    ("Manager", "Mgr."), ("Assistant", "Asst"), ("Technician", "Tech"), ("Engineer", "Engr"), ("Supervisor", "Supv"),
    ("Representative", "Rep"), ("Director", "Dir."), ("Operator", "Op."), ("Registered Nurse", "RN"),
    ("Administrator", "Admin"), ("Coordinator", "Coord."), ("Specialist", "Spec"),
)  # fmt: skip
RANKS = ("", "", "", "Senior ", "Sr. ", "Lead ", "Junior ", "Staff ")
ENDINGS = ("", "", "", " II", " - Night Shift", " at Acme Corp.", ", North Region", " (contract)", " III", " Dept")


def hand_coded() -> list[tuple[str, tuple[str, frozenset[str]]]]:
    """Return normal form, title and codes of the titles that were coded by hand."""
    with (HERE / "common_titles.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [(normal_form(row["title"]), (row["title"], frozenset(row["occ1990dd"].split()))) for row in rows]


def half_of(form: str, salt: str = "", parts: int = 2) -> int:
    """Return the part that a normal form belongs to, from 0, by a hash of it."""
    return hashlib.sha256(f"{salt}{form}".encode()).digest()[0] % parts


def without(index: Sequence[IndexTitle], forms: Collection[str]) -> list[IndexTitle]:
    """Return the titles of an index whose normal form is none of these."""
    return [entry for entry in index if entry.normal_form not in forms]


def noisy(title: str, random: np.random.Generator) -> str:
    """Return a title as somebody may write it."""
    text = re.sub(r"\s*\([^)]*\)", "", title)
    for word, short in NOISE:
        if random.random() < 0.5:
            text = text.replace(word, short)
    if len(text) > 8 and random.random() < 0.15:
        at = int(random.integers(1, len(text) - 1))
        text = text[:at] + text[at + 1 :]
    text = RANKS[int(random.integers(len(RANKS)))] + text + ENDINGS[int(random.integers(len(ENDINGS)))]
    return text.lower() if random.random() < 0.3 else text


def table(file: RecordFile, name: str, cases: Mapping[str, Collection[str]] | Sequence[tuple[str, Collection[str]]],
          coder: TitleCoder, weights: Sequence[float] | None = None) -> None:  # fmt: skip
    """Record the shares of titles, each with its right codes, by threshold."""
    rows = list(cases.items()) if isinstance(cases, Mapping) else list(cases)
    matches = coder.match_titles([title for title, _ in rows])
    weight = np.ones(len(rows)) if weights is None else np.array(weights)
    scores = np.array([-1.0 if match is None else match.score for match in matches])
    right = np.array([m is not None and m.code in codes for m, (_, codes) in zip(matches, rows, strict=True)])
    shares(file, name, scores, right, weight)


def shares(
    file: RecordFile, name: str, scores: NDArray[np.float64], right: NDArray[np.bool_], weight: NDArray[np.float64]
) -> None:
    """Record the shares by threshold."""
    for threshold in THRESHOLDS:
        coded = scores >= threshold
        share, of_all = weight[coded].sum() / weight.sum(), weight[coded & right].sum() / weight.sum()
        percent = {"coded_%": share, "right_of_the_coded_%": of_all / max(share, 1e-9), "right_of_all_%": of_all}
        numbers = {number: 100 * float(value) for number, value in percent.items()}
        file.add(Record(f"{name}: {len(scores):,} titles", f"min_score {threshold:.1f}", numbers=numbers))


def onet(file: RecordFile, index: Sequence[IndexTitle]) -> None:
    """Record the shares of the unseen half of O*NET's titles."""
    titles = [entry for entry in index if entry.source == "onet" and half_of(entry.normal_form) == 1]
    forms = {each.normal_form for each in titles}
    shown = [entry for entry in index if entry.source == "census" or entry.normal_form not in forms]
    coder = TitleCoder(shown)
    rows = [(each.title, each.codes) for each in titles]
    num_of_code = Counter(each.code for each in titles)
    by_occupation = [1 / num_of_code[each.code] for each in titles]
    table(file, "O*NET, unseen half", rows, coder)
    table(file, "... by occupation", rows, coder, by_occupation)
    random = np.random.default_rng(0)
    table(file, "... with noise", [(noisy(title, random), codes) for title, codes in rows], coder)
    census = {entry.normal_form for entry in index if entry.source == "census"}
    bare = TitleCoder(without(index, forms))
    unknown = [place for place, each in enumerate(titles) if each.normal_form not in census]
    table(file, "... in no index", [rows[place] for place in unknown], bare)
    table(file, "... in no index, by occupation", [rows[p] for p in unknown], bare, [by_occupation[p] for p in unknown])


def common(file: RecordFile, index: Sequence[IndexTitle]) -> None:
    """Record the shares of the common titles, a fifth at a time out of the index."""
    half = [entry for entry in index if entry.source != "onet" or half_of(entry.normal_form) == 0]
    scores, right = [], []
    for fold in range(5):
        titles = [entry for entry in half if entry.source == "common" and half_of(entry.normal_form, "fold", 5) == fold]
        forms = {title.normal_form for title in titles}
        matches = TitleCoder(
            [entry for entry in half if entry.source == "census" or entry.normal_form not in forms]
        ).match_titles([title.title for title in titles])
        scores += [-1.0 if match is None else match.score for match in matches]
        right += [m is not None and m.code in each.codes for m, each in zip(matches, titles, strict=True)]
    shares(file, "common titles", np.array(scores), np.array(right), np.ones(len(scores)))


def by_hand(file: RecordFile, index: Sequence[IndexTitle]) -> None:
    """Record the shares of the titles coded by hand, and what is wrong."""
    hand = hand_coded()
    forms = {form for form, _ in hand}
    coder = TitleCoder([entry for entry in index if entry.source != "common" or entry.normal_form not in forms])
    rows = [row for _, row in hand]
    table(file, "by hand", rows, coder)
    for (title, codes), match in zip(rows, coder.match_titles([title for title, _ in rows]), strict=True):
        if match is None or match.code not in codes:
            answer = "nothing" if match is None else f"{match.code} by {match.matched_title!r} ({match.score:.2f})"
            print(f"    wrong: {title}: {answer}, expected {' '.join(sorted(codes))}")


def census(file: RecordFile, index: Sequence[IndexTitle]) -> None:
    """Record the shares of titles of the Census index."""
    other = {entry.normal_form for entry in index if entry.source != "census"}
    alone = [
        entry
        for entry in index
        if entry.source == "census" and len(entry.codes) == 1 and entry.normal_form not in other
    ]
    titles = [each for place, each in enumerate(alone) if place % NUM_FOLDS == 0]
    coder = TitleCoder(without(index, {title.normal_form for title in titles}))
    table(file, "Census, one of ten", [(title.title, title.codes) for title in titles], coder)


def main() -> None:
    """Record all shares and the speed."""
    file = RecordFile.begin("title-coder", "Title coder: coded and right by threshold, speed")
    index = read_index()
    onet(file, index)
    common(file, index)
    by_hand(file, index)
    census(file, index)
    started = time.process_time()
    coder = TitleCoder(index)
    built = time.process_time() - started
    titles = [f"{each.title} {ending}" for ending in ("helper x", "y specialist") for each in index[::4]][:NUM_FAST]
    started = time.process_time()
    coder.match_titles(titles)
    rate = len(set(titles)) / (time.process_time() - started)
    numbers = {"build_seconds": built, "distinct_titles": len(set(titles)), "titles_per_second": rate}
    file.add(Record("speed", "one core", numbers=numbers))
    file.end()


if __name__ == "__main__":
    main()
