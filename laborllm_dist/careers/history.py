"""The words of the labour market: a worker's career, its yearly jobs, and the list of occupations.

These values know nothing of text, tokens or models. A field that the source does not have is None, never "" or -1.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from laborllm_dist.errors import VocabularyError


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
    """Read the occupations from a CSV with a header; other columns are ignored.

    Raises:
        VocabularyError: naming file and line, if the file is missing, not UTF-8, lacks a column or has a bad entry.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return _vocabulary_from_rows(csv.reader(file), path, (code_column, title_column))
    except FileNotFoundError:
        raise VocabularyError(f"no list of occupations at {path}") from None
    except (IsADirectoryError, PermissionError) as error:
        raise VocabularyError(f"{path}: cannot be read as a file ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise VocabularyError(f"{path}: not UTF-8 (byte {error.start}); save the file as UTF-8") from None
    except csv.Error as error:
        raise VocabularyError(f"{path}: not a CSV file ({error})") from None


def _vocabulary_from_rows(rows: Iterator[list[str]], path: Path, columns: tuple[str, str]) -> OccupationVocabulary:
    header = next(rows, None)
    if header is None:
        raise VocabularyError(f"{path}: the file is empty; wanted a header with {columns[0]!r} and {columns[1]!r}")
    missing = [column for column in columns if column not in header]
    if missing:
        raise VocabularyError(f"{path}: line 1: no column {missing[0]!r}; the columns are {', '.join(header)}")
    at_code, at_title = (header.index(column) for column in columns)
    codes: list[str] = []
    titles: list[str] = []
    for line, row in enumerate(rows, start=2):
        if not row:
            continue
        if len(row) != len(header):
            raise VocabularyError(f"{path}: line {line}: {len(row)} values, the header has {len(header)}")
        codes.append(row[at_code].strip())
        titles.append(row[at_title].strip())
        if not codes[-1] or not titles[-1]:
            empty = columns[0] if not codes[-1] else columns[1]
            raise VocabularyError(f"{path}: line {line}: column {empty!r} is empty")
    try:
        return OccupationVocabulary(codes=tuple(codes), titles=tuple(titles))
    except VocabularyError as error:
        raise VocabularyError(f"{path}: {error}") from None


def write_vocabulary(vocabulary: OccupationVocabulary, path: Path) -> None:
    """Write the occupations as a CSV that `read_vocabulary` reads."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("code", "title"))
        writer.writerows(zip(vocabulary.codes, vocabulary.titles, strict=True))


def previous_occupations(jobs: Sequence[Job]) -> Iterable[str | None]:
    """Return the occupation held before each job, None before the first."""
    return [None, *(job.occupation for job in jobs[:-1])] if jobs else []
