"""Read the list of occupations that a source's codes refer to: occ1990dd, ESCO, SOC, Census, or any other.

A title is all that a text shows of an occupation, so two codes with one title cannot both be predicted. Such a pair is
refused, or merged into the code that comes first, as the settings say.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from laborllm_dist.careers.history import OccupationVocabulary
from laborllm_dist.careers.problems import Problems
from laborllm_dist.careers.table_rows import Row, read_rows, unit_of
from laborllm_dist.corpus_settings import VocabularySettings
from laborllm_dist.errors import DataFileError, VocabularyError
from laborllm_dist.files import write_text

BUILTIN = "builtin:"
_BUILTINS = {f"{BUILTIN}occ1990dd": Path(__file__).parent / "tables" / "occ1990dd.csv"}


@dataclass(frozen=True, slots=True)
class Occupations:
    """A vocabulary, and the code in it of every code of the file: another one where two codes were merged."""

    vocabulary: OccupationVocabulary
    code_of: Mapping[str, str]


def vocabulary_path(settings: VocabularySettings) -> Path:
    """Return the file of occupations; `builtin:occ1990dd` is the table beside this module."""
    return _BUILTINS.get(settings.path, Path(settings.path))


def shipped_vocabularies() -> str:
    """Return the names of the vocabularies that come with this software, for messages."""
    return ", ".join(_BUILTINS)


def read_occupations(settings: VocabularySettings) -> Occupations:
    """Read the occupations of a source.

    Raises:
        VocabularyError: if the file is missing, unreadable or empty, or with all its problems counted and ten named.
    """
    path = vocabulary_path(settings)
    entries = _read_entries(path, settings.code, settings.title, same_titles=settings.same_titles)
    code_of_title: dict[str, str] = {}
    code_of = {code: code_of_title.setdefault(title, code) for code, title in entries}
    return Occupations(_vocabulary_of(path, [(code, title) for title, code in code_of_title.items()]), code_of)


def read_vocabulary(path: Path, *, code_column: str = "code", title_column: str = "title") -> OccupationVocabulary:
    """Read the occupations from a CSV or Parquet file with a header; other columns are ignored.

    Raises:
        VocabularyError: if the file is missing, unreadable or empty, or with all its problems counted and ten named.
    """
    return _vocabulary_of(path, _read_entries(path, code_column, title_column, same_titles="refuse"))


def _vocabulary_of(path: Path, entries: list[tuple[str, str]]) -> OccupationVocabulary:
    try:
        return OccupationVocabulary(*(tuple(each) for each in zip(*entries, strict=True)) if entries else ((), ()))
    except VocabularyError as error:
        raise VocabularyError(f"{path}: {error}") from None


def _read_entries(path: Path, code_column: str, title_column: str, *, same_titles: str) -> list[tuple[str, str]]:
    problems = Problems(path, unit_of(path))
    try:
        rows = read_rows(path, problems)
        place, header = next(rows, (1, []))
        missing = [column for column in (code_column, title_column) if column not in header]
        for column in missing:
            problems.add(place, column, f"missing; the columns are {', '.join(header)}")
        unique = (code_column,) if same_titles == "merge" else (code_column, title_column)
        entries = [] if missing else _entries(rows, header, (code_column, title_column), unique, problems)
        problems.refuse_if_any()
        return entries
    except DataFileError as error:
        raise VocabularyError(str(error) if str(path) in str(error) else f"{path}: {error}") from None


def _entries(
    rows: Iterator[Row], header: list[str], columns: tuple[str, str], unique: tuple[str, ...], problems: Problems
) -> list[tuple[str, str]]:
    """Return codes and titles; note those that are empty, doubled, or no line of text."""
    first_place: dict[str, dict[str, int]] = {column: {} for column in unique}
    entries: list[tuple[str, str]] = []
    for place, values in rows:
        if len(values) != len(header):
            problems.add(place, None, f"{len(values)} values, the header has {len(header)}")
            continue
        code, title = (values[header.index(column)].strip() for column in columns)
        for column, value in zip(columns, (code, title), strict=True):
            if not value:
                problems.add(place, column, "empty")
            elif not value.isprintable():
                problems.add(place, column, f"{value!r} holds a line break, control character or odd blank")
            elif column in unique and (first := first_place[column].setdefault(value, place)) != place:
                problems.add(place, column, f"{value!r} stands at {problems.unit} {first} already")
        entries.append((code, title))
    return entries


def write_vocabulary(vocabulary: OccupationVocabulary, path: Path) -> None:
    """Write the occupations atomically as a CSV that `read_vocabulary` reads."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("code", "title"))
    writer.writerows(zip(vocabulary.codes, vocabulary.titles, strict=True))
    write_text(path, text.getvalue())
