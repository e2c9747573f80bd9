"""How fast is the title coder, how often is it right, and where should its threshold lie?

    python benchmarks/title_coder.py

Right, on two sets: titles as resumes have them, coded by hand (benchmarks/common_titles.csv; several codes where
several are right), and titles of the Census index that the coder is not shown, in turn: one of ten. The second is the
harder: neighbours in the index are fine distinctions. Fast: distinct titles a second on one core, none of them in the
index.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Sequence
from pathlib import Path

from laborllm_dist.careers.titles.coder import TitleCoder, TitleMatch
from laborllm_dist.careers.titles.index import read_index

HERE = Path(__file__).parent
THRESHOLDS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9)
NUM_FOLDS, NUM_FAST = 10, 50_000
Judged = list[tuple[float, bool]]  # score, right


def judged(matches: Sequence[TitleMatch | None], wanted: Sequence[set[str]]) -> Judged:
    """Return score and rightness of every title; a title without a match has the score -1."""
    return [
        (-1.0, False) if match is None else (match.score, match.code in codes)
        for match, codes in zip(matches, wanted, strict=True)
    ]


def table(name: str, results: Judged) -> None:
    print(f"\n{name}: {len(results):,} titles")
    print("  min_score   coded    right of the coded")
    for threshold in THRESHOLDS:
        coded = [right for score, right in results if score >= threshold]
        print(f"  {threshold:9.1f}  {len(coded) / len(results):6.1%}    {sum(coded) / max(1, len(coded)):6.1%}")


def main() -> None:
    """Print both tables and the speed."""
    index = read_index()
    coder = TitleCoder(index)
    with (HERE / "common_titles.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    matches = coder.match_titles([row["title"] for row in rows])
    wanted = [set(row["occ1990dd"].split()) for row in rows]
    table("by hand", judged(matches, wanted))
    for row, match, codes in zip(rows, matches, wanted, strict=True):
        if match is None or match.code not in codes:
            found = "nothing" if match is None else f"{match.code} by {match.matched_title!r} ({match.score:.2f})"
            print(f"    wrong: {row['title']}: {found}, wanted {row['occ1990dd']}")
    held_out: Judged = []
    for fold in range(NUM_FOLDS):
        asked = [each for place, each in enumerate(index) if place % NUM_FOLDS == fold and each.is_certain]
        shown = [each for place, each in enumerate(index) if place % NUM_FOLDS != fold]
        found = TitleCoder(shown).match_titles([each.title for each in asked])
        held_out += judged(found, [{each.code} for each in asked])
    table("held out of the index", held_out)
    titles = [f"{each.title} {ending}" for ending in ("helper x", "y specialist") for each in index][:NUM_FAST]
    started = time.perf_counter()
    coder.match_titles(titles)
    print(f"\n{len(set(titles)):,} distinct titles: {len(set(titles)) / (time.perf_counter() - started):,.0f} a second")


if __name__ == "__main__":
    main()
