"""Count the people and observations of a corpus, and the excluded ones; counts of parts can be added."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from laborllm_dist.careers.person_records import CodedTitle, DropUnit, PersonRecord
from laborllm_dist.careers.splits import Split
from laborllm_dist.plain_text import sheet_cell
from laborllm_dist.tables.scores import transition_of

MOST_TITLES = 2_000  # titles or unmapped codes per part, so that records stay small
_TITLES_IN_MEMORY = 20_000  # of a corpus


@dataclass(frozen=True, slots=True)
class ExclusionCount:
    """Number of person-years, jobs or people (`unit`) that were excluded for a reason, also by year."""

    unit: str
    reason: str
    count: int
    years: dict[int, int]


@dataclass(frozen=True, slots=True)
class CorpusCounts:
    """Counts of one corpus or of a part of it. `people_read` includes people without any observation."""

    people_read: int = 0
    careers: int = 0
    people: Counter[str] = field(default_factory=Counter)  # by split; with split_by=year a person may be in several
    kinds: Counter[str] = field(default_factory=Counter)  # observations by their transition
    occupations: Counter[str] = field(default_factory=Counter)  # observations by code
    years: dict[int, Counter[str]] = field(default_factory=dict)  # observations by year and code
    titles: Counter[CodedTitle] = field(default_factory=Counter)  # jobs by title and assigned code
    drops: Counter[tuple[str, str, int | None]] = field(default_factory=Counter)  # excluded: unit, reason, year
    unmapped: Counter[tuple[str, str]] = field(default_factory=Counter)  # excluded years: reason, source code
    changes: Counter[str] = field(default_factory=Counter)  # cells that were changed when read

    def __add__(self, other: CorpusCounts) -> CorpusCounts:
        years = {year: Counter(codes) for year, codes in self.years.items()}
        for year, codes in other.years.items():
            years.setdefault(year, Counter()).update(codes)
        return CorpusCounts(
            self.people_read + other.people_read,
            self.careers + other.careers,
            self.people + other.people,
            self.kinds + other.kinds,
            self.occupations + other.occupations,
            years,
            self.titles + other.titles,
            self.drops + other.drops,
            self.unmapped + other.unmapped,
            self.changes + other.changes,
        )

    def with_titles_trimmed(self) -> CorpusCounts:
        """Return the counts without rare titles and unmapped codes if there are very many."""
        if max(len(self.titles), len(self.unmapped)) <= 2 * _TITLES_IN_MEMORY:
            return self
        titles = Counter(dict(_most_frequent(self.titles, _TITLES_IN_MEMORY)))
        return dataclasses.replace(self, titles=titles, unmapped=Counter(dict(self.unmapped_codes(_TITLES_IN_MEMORY))))

    def unmapped_codes(self, number: int) -> list[tuple[tuple[str, str], int]]:
        """Return the most frequent reasons and codes of excluded person-years; ties are in order of reason and code."""
        return sorted(self.unmapped.items(), key=lambda item: (-item[1], item[0]))[:number]

    def left_out(self) -> list[ExclusionCount]:
        """Return the exclusions by reason: person-years first, then jobs, then people; each most frequent first."""
        years: dict[tuple[str, str], dict[int, int]] = {}
        counts: Counter[tuple[str, str]] = Counter()
        for (unit, reason, year), count in self.drops.items():
            counts[unit, reason] += count
            if year is not None:
                years.setdefault((unit, reason), {})[year] = count
        order = {unit: place for place, unit in enumerate(get_args(DropUnit))}
        return [
            ExclusionCount(unit, reason, count, dict(sorted(years.get((unit, reason), {}).items())))
            for (unit, reason), count in sorted(
                counts.items(), key=lambda item: (order[item[0][0]], -item[1], item[0][1])
            )
        ]

    @property
    def observations(self) -> int:
        """Number of person-years."""
        return self.kinds.total()

    def to_values(self) -> dict[str, Any]:
        """Return the counts as JSON values."""
        return {
            "people_read": self.people_read,
            **({"careers": self.careers} if self.careers != self.people.total() else {}),
            "people": dict(self.people),
            "kinds": dict(self.kinds),
            "occupations": dict(self.occupations),
            "years": {str(year): dict(codes) for year, codes in self.years.items()},
            "titles": [[*dataclasses.astuple(each), count] for each, count in _most_frequent(self.titles, MOST_TITLES)],
            "drops": [[*key, count] for key, count in self.drops.items()],
            "unmapped": [[*key, count] for key, count in self.unmapped_codes(MOST_TITLES)],
            "changes": dict(self.changes),
        }


def counts_from_values(values: dict[str, Any]) -> CorpusCounts:
    """Invert `CorpusCounts.to_values`."""
    return CorpusCounts(
        people_read=int(values["people_read"]),
        careers=int(values.get("careers", sum(values["people"].values()))),
        people=Counter(values["people"]),
        kinds=Counter(values["kinds"]),
        occupations=Counter(values["occupations"]),
        years={int(year): Counter(codes) for year, codes in values["years"].items()},
        titles=Counter({CodedTitle(*each): count for *each, count in values["titles"]}),
        drops=Counter({(unit, reason, year): count for unit, reason, year, count in values["drops"]}),
        unmapped=Counter({(reason, code): count for reason, code, count in values.get("unmapped", ())}),
        changes=Counter(values.get("changes", {})),
    )


def _most_frequent(titles: Counter[CodedTitle], number: int) -> list[tuple[CodedTitle, int]]:
    """Return the most frequent titles; ties are in alphabetical order."""
    return sorted(titles.items(), key=lambda item: (-item[1], item[0].title))[:number]


def titles_csv(titles: Counter[CodedTitle]) -> str:
    """Return a CSV of the most frequent titles for manual review, safe to open in a spreadsheet."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("title", "jobs", "matched_title", "score", "code"))
    for each, count in _most_frequent(titles, _TITLES_IN_MEMORY):
        texts = (each.title, each.matched_title or "", each.code or "")
        title, matched, code = map(sheet_cell, texts)
        writer.writerow((title, count, matched, f"{each.score:.2f}", code))
    return text.getvalue()


def count_people(people: Sequence[tuple[PersonRecord, Sequence[Split]]]) -> CorpusCounts:
    """Count people as they were read, given with the splits that have observations of theirs."""
    num_careers = sum(read.career is not None for read, _ in people)
    counts = CorpusCounts(people_read=len(people), careers=num_careers)
    for read, splits in people:
        counts.drops.update((drop.unit, drop.reason, drop.year) for drop in read.drops)
        counts.unmapped.update((drop.reason, drop.code) for drop in read.drops if drop.code is not None)
        counts.changes.update(read.changes)
        counts.titles.update(read.titles)
        if read.career is None:
            continue
        counts.people.update(splits)
        previous: str | None = None
        for job in read.career.jobs:
            counts.kinds[transition_of(previous, job.occupation)] += 1
            counts.occupations[job.occupation] += 1
            counts.years.setdefault(job.year, Counter())[job.occupation] += 1
            previous = job.occupation
    return counts
