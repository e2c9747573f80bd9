"""Read the list of occupations of a source: occ1990dd, ESCO, SOC, Census, or any other.

A text shows only the title of an occupation, so two codes with one title cannot both be predicted. Depending on the
settings, such a pair is an error or is merged into the first code. Other blanks, such as the no-break spaces of ESCO's
own list, are read as spaces, which the data card notes.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from laborllm_dist.careers.readers.cells import OTHER_BLANK, same_code, with_plain_blanks
from laborllm_dist.careers.readers.tabular import Row, column_names, read_rows, unit_of
from laborllm_dist.careers.types import OccupationVocabulary
from laborllm_dist.careers.validation_report import Problems
from laborllm_dist.config.corpora import VocabularySettings
from laborllm_dist.errors import DataFileError, VocabularyError
from laborllm_dist.io.files import write_text
from laborllm_dist.plain_text import from_sheet_cell, sheet_cell

BUILTIN = "builtin:"
_BUILTINS = {f"{BUILTIN}occ1990dd": Path(__file__).parents[1] / "tables" / "occ1990dd.csv"}


@dataclass(frozen=True, slots=True)
class Occupations:
    """A vocabulary, and the code in it of every code of the file, which differs if two codes were merged."""

    vocabulary: OccupationVocabulary
    code_of: Mapping[str, str]

    def find(self, cell: str) -> str | None:
        """Return the vocabulary's code for a cell of a data file, None if there is none: 2.0 is 2."""
        return self.code_of.get(cell) or self.code_of.get(same_code(cell))


def vocabulary_path(settings: VocabularySettings) -> Path:
    """Return the path of the list of occupations; `builtin:occ1990dd` is the table of this package."""
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
    code_of = {entry.code: code_of_title.setdefault(entry.title, entry.code) for entry in entries}
    return Occupations(_vocabulary_of(path, [(code, title) for title, code in code_of_title.items()]), code_of)


def read_vocabulary(path: Path, *, code_column: str = "code", title_column: str = "title") -> OccupationVocabulary:
    """Read the occupations from a CSV or Parquet file with a header; other columns are ignored.

    Raises:
        VocabularyError: if the file is missing, unreadable or empty, or with all its problems counted and ten named.
    """
    entries = _read_entries(path, code_column, title_column, same_titles="error")
    return _vocabulary_of(path, [(entry.code, entry.title) for entry in entries])


def read_written_vocabulary(path: Path) -> OccupationVocabulary:
    """Read the occupations that `write_vocabulary` wrote.

    Raises:
        VocabularyError: as `read_vocabulary`.
    """
    cells = read_vocabulary(path)
    return OccupationVocabulary(*(tuple(map(from_sheet_cell, each)) for each in (cells.codes, cells.titles)))


def notes_of_vocabulary(settings: VocabularySettings) -> list[str]:
    """Return notes for the data card on merged codes and changed cells of the list.

    Raises:
        VocabularyError: as `read_occupations`.
    """
    path = vocabulary_path(settings)
    entries = _read_entries(path, settings.code, settings.title, same_titles=settings.same_titles)
    changed = [entry.title for entry in entries if entry.is_changed]
    if not changed:
        return []
    shown = ", ".join(changed[:3]) + (", ..." if len(changed) > 3 else "")
    return [f"list of occupations: {len(changed):,} entries with {OTHER_BLANK}, taken as a space: {shown}"]


def _vocabulary_of(path: Path, entries: list[tuple[str, str]]) -> OccupationVocabulary:
    try:
        return OccupationVocabulary(*(tuple(each) for each in zip(*entries, strict=True)) if entries else ((), ()))
    except VocabularyError as error:
        raise VocabularyError(f"{path}: {error}", code="invalid-vocabulary-file") from None


@dataclass(frozen=True, slots=True)
class _Entry:
    """A code and a title of a list; `is_changed`: one of them had blanks of another kind."""

    code: str
    title: str
    is_changed: bool


def _read_entries(path: Path, code_column: str, title_column: str, *, same_titles: str) -> list[_Entry]:
    problems = Problems(path, unit_of(path))
    try:
        rows = read_rows(path, problems, lambda names: [name for name in names if name in (code_column, title_column)])
        place, header = next(rows, (1, []))
        names = column_names(header)
        missing = [(what, name) for what, name in (("code", code_column), ("title", title_column)) if name not in names]
        for what, name in missing:
            other = f"the setting vocabulary.{what} names another"
            problems.add(place, name, f"missing; the columns are {', '.join(names)}; {other}")
        unique = (code_column,) if same_titles == "merge" else (code_column, title_column)
        entries = [] if missing else _entries(rows, names, (code_column, title_column), unique, problems)
        problems.reject_if_any()
    except DataFileError as error:
        raise VocabularyError(
            str(error) if str(path) in str(error) else f"{path}: {error}", code="unreadable-vocabulary-file"
        ) from None
    times = Counter(same_code(entry.code) for entry in entries)
    # A list with 1 and 1.0 distinguishes them; any other writes 1.0 because its column of numbers has gaps.
    return [
        replace(entry, code=same_code(entry.code)) if times[same_code(entry.code)] == 1 else entry for entry in entries
    ]


def _entries(
    rows: Iterator[Row], header: list[str], columns: tuple[str, str], unique: tuple[str, ...], problems: Problems
) -> list[_Entry]:
    """Return codes and titles; empty, duplicate and multi-line ones are problems."""
    first_place: dict[str, dict[str, int]] = {column: {} for column in unique}
    entries: list[_Entry] = []
    indices = list(map(header.index, columns))
    for place, values in rows:
        if len(values) != len(header):
            problems.add(place, None, f"{len(values)} values, the header has {len(header)}")
            continue
        cells = [values[index] for index in indices]
        code, title = map(with_plain_blanks, cells)
        for column, value in zip(columns, (code, title), strict=True):
            if not value:
                problems.add(place, column, "empty")
            elif not value.isprintable():
                problems.add(place, column, f"{value!r} holds a line break, control character or odd blank")
            elif column in unique and (first := first_place[column].setdefault(value, place)) != place:
                problems.add(place, column, f"{value!r} appears at {problems.unit} {first} already")
        entries.append(_Entry(code, title, is_changed=[code, title] != [cell.strip() for cell in cells]))
    return entries


def write_vocabulary(vocabulary: OccupationVocabulary, path: Path) -> None:
    """Write the occupations atomically as a CSV that `read_written_vocabulary` reads, and a spreadsheet may open."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("code", "title"))
    pairs = zip(vocabulary.codes, vocabulary.titles, strict=True)
    writer.writerows((sheet_cell(code), sheet_cell(title)) for code, title in pairs)
    write_text(path, text.getvalue())
