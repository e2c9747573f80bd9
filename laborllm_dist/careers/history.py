"""The words of the labour market: a worker's career, its yearly jobs, and the list of occupations.

These values know nothing of text, tokens or models. A field that the source does not have is None, never "" or -1.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from laborllm_dist.careers.problems import Problems
from laborllm_dist.careers.table_rows import Row, read_rows, unit_of
from laborllm_dist.errors import DataFileError, VocabularyError


@dataclass(frozen=True, slots=True)
class Job:
    """The occupation held in one calendar year; `occupation` is a code of the vocabulary."""

    year: int
    occupation: str
    education: str | None = None


@dataclass(frozen=True, slots=True)
class CareerHistory:
    """One worker: fixed facts and the jobs in order of year, one a year at most."""

    person: str
    survey: str
    birth_year: int | None
    gender: str | None
    ethnicity: str | None
    region: str | None
    jobs: tuple[Job, ...]


@dataclass(frozen=True, slots=True)
class OccupationVocabulary:
    """The occupations that can be predicted: codes and their titles, both unique, in a fixed order.

    Raises:
        VocabularyError: if a code or a title is empty, doubled, or a title has a line break or outer blanks.
    """

    codes: tuple[str, ...]
    titles: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.codes) != len(self.titles):
            raise VocabularyError(f"{len(self.codes)} codes but {len(self.titles)} titles")
        if not self.codes:
            raise VocabularyError("the list of occupations is empty")
        first_code_of: dict[str, str] = {}
        seen_codes: set[str] = set()
        for code, title in zip(self.codes, self.titles, strict=True):
            if not code:
                raise VocabularyError(f"the occupation titled {title!r} has an empty code")
            if code in seen_codes:
                raise VocabularyError(f"occupation code {code!r} stands twice; codes must be unique")
            seen_codes.add(code)
            if not title or title != title.strip() or "\n" in title or "\r" in title:
                raise VocabularyError(
                    f"occupation {code!r} has the title {title!r}; a title is one line, not empty, without outer blanks"
                )
            if title in first_code_of:
                raise VocabularyError(
                    f"occupations {first_code_of[title]!r} and {code!r} share the title {title!r}; "
                    "merge the two codes or change one title"
                )
            first_code_of[title] = code

    def __len__(self) -> int:
        return len(self.codes)

    def title_of(self) -> dict[str, str]:
        """Return the title of every code."""
        return dict(zip(self.codes, self.titles, strict=True))

    def index_of(self) -> dict[str, int]:
        """Return the position of every code in the vocabulary."""
        return {code: index for index, code in enumerate(self.codes)}


def read_vocabulary(path: Path, *, code_column: str = "code", title_column: str = "title") -> OccupationVocabulary:
    """Read the occupations from a CSV or Parquet file with a header; other columns are ignored.

    Raises:
        VocabularyError: if the file is missing, unreadable or empty, or with all its problems counted and ten named.
    """
    problems = Problems(path, unit_of(path))
    try:
        rows = read_rows(path, problems)
        place, header = next(rows, (1, []))
        missing = [column for column in (code_column, title_column) if column not in header]
        for column in missing:
            problems.add(place, column, f"missing; the columns are {', '.join(header)}")
        entries = [] if missing else _entries(rows, header, (code_column, title_column), problems)
        problems.refuse_if_any()
        return OccupationVocabulary(*(tuple(each) for each in zip(*entries, strict=True)) if entries else ((), ()))
    except (DataFileError, VocabularyError) as error:
        raise VocabularyError(str(error) if str(path) in str(error) else f"{path}: {error}") from None


def _entries(
    rows: Iterator[Row], header: list[str], columns: tuple[str, str], problems: Problems
) -> list[tuple[str, str]]:
    """Return codes and titles; note those that are empty, doubled, or no line of text."""
    first_place: tuple[dict[str, int], dict[str, int]] = ({}, {})
    entries: list[tuple[str, str]] = []
    for place, values in rows:
        if len(values) != len(header):
            problems.add(place, None, f"{len(values)} values, the header has {len(header)}")
            continue
        code, title = (values[header.index(column)].strip() for column in columns)
        for column, value, seen in zip(columns, (code, title), first_place, strict=True):
            if not value:
                problems.add(place, column, "empty")
            elif not value.isprintable():
                problems.add(place, column, f"{value!r} holds a line break, control character or odd blank")
            elif seen.setdefault(value, place) != place:
                problems.add(place, column, f"{value!r} stands at {problems.unit} {seen[value]} already")
        entries.append((code, title))
    return entries


def write_vocabulary(vocabulary: OccupationVocabulary, path: Path) -> None:
    """Write the occupations as a CSV that `read_vocabulary` reads."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("code", "title"))
        writer.writerows(zip(vocabulary.codes, vocabulary.titles, strict=True))
