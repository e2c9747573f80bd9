"""Read the requested variables of an extract as columns of whole numbers, one value per person.

Headers may be reference numbers (R0000100) or question names with the survey year (SAMPLE_SEX_1979), both options of
the site. Every cell of a requested column must be a whole number, also as pandas writes it (12.0); any other cell is a
problem that is reported with its line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from laborllm_dist.careers.readers.archives import ArchiveMember
from laborllm_dist.careers.readers.cells import whole_number
from laborllm_dist.careers.readers.nls.codebook import (
    Values,
    VariableName,
    check_counts,
    read_codebook,
    read_variable_names,
)
from laborllm_dist.careers.readers.nls.files import ExtractFiles
from laborllm_dist.careers.readers.tabular import ByteLines, Row, csv_rows, text_lines
from laborllm_dist.careers.validation_report import Problems

_REFERENCE = re.compile(r"^[A-Z]\d{7}$")
_WHOLE_NUMBER = re.compile(r"^[+-]?\d{1,9}$")
_LARGEST = 999_999_999
_PEOPLE_PER_PART, _MOST_PEOPLE = 1_000, 100_000
_DOWNLOAD_AGAIN = "download the extract again and leave its files as they are"


@dataclass(frozen=True, slots=True)
class Extract:
    """The requested columns that an extract has, by reference number."""

    table: ArchiveMember
    columns: Mapping[str, Values]
    num_people: int
    num_variables: int


def read_extract(files: ExtractFiles, variables: Sequence[VariableName]) -> Extract:
    """Read the requested variables that the extract has, and check them against its codebook.

    Args:
        files: the files of the extract.
        variables: what to read; the result lacks those that the extract does not have.

    Raises:
        DataFileError: if rows have other lengths, cells are not whole numbers, or counts differ from those of
            the codebook.
    """
    problems = Problems(files.table.label, "line")
    with files.table.open() as file:
        if files.table.suffix == ".csv":
            rows = csv_rows(file, problems)
            _, header = next(rows, (1, []))
            references = _references(header, _known_names(files, variables))
        else:
            assert files.variables is not None  # find_extract rejects a .dat without
            rows = _blank_separated(file, problems)
            references = [name.reference for name in read_variable_names(files.variables)]
        requested = {name.reference for name in variables}
        places = {reference: place for place, reference in enumerate(references) if reference in requested}
        for reference in sorted({each for each in places if references.count(each) > 1}):
            problems.add(1, reference, "this column appears twice")
        columns = _read_columns(rows, places, len(references), problems)
    problems.reject_if_any(_DOWNLOAD_AGAIN)
    if files.codebook is not None:
        check_counts(columns, read_codebook(files.codebook), files)
    num_people = len(next(iter(columns.values()))) if columns else 0
    return Extract(files.table, columns, num_people, len(references))


def column_names(files: ExtractFiles, variables: Sequence[VariableName]) -> list[str]:
    """Return the reference numbers of an extract's columns, read from its header or list of variables."""
    if files.table.suffix != ".csv":
        assert files.variables is not None  # find_extract rejects a .dat without
        return [name.reference for name in read_variable_names(files.variables)]
    with files.table.open() as file:
        _, header = next(csv_rows(file, Problems(files.table.label, "line")), (1, []))
    return _references(header, _known_names(files, variables))


def _read_columns(
    rows: Iterator[Row], places: Mapping[str, int], num_variables: int, problems: Problems
) -> dict[str, Values]:
    order = list(places.items())
    people: list[list[int]] = []
    parts: list[Values] = []
    line = 0
    for line, values in rows:
        if values and not values[-1].strip() and len(values) == num_variables + 1:
            values = values[:-1]
        if len(values) != num_variables:
            problems.add(line, None, f"{len(values)} values, expected {num_variables}")
            continue
        cells = [values[place].strip() for _, place in order]
        numbers = list(map(int, cells)) if all(map(_WHOLE_NUMBER.match, cells)) else _whole_numbers(cells)
        if numbers is None:
            _note_bad_cells(line, order, cells, problems)
            continue
        people.append(numbers)
        if len(people) == _PEOPLE_PER_PART:
            parts.append(np.asarray(people, dtype=np.int32).reshape(len(people), len(order)))
            people = []
        if len(parts) * _PEOPLE_PER_PART > _MOST_PEOPLE:
            problems.add(line, None, f"more than {_MOST_PEOPLE:,} people, which no cohort has")
            problems.reject_if_any(_DOWNLOAD_AGAIN)
    if not people and not parts and not problems.num_found:
        problems.add(line or 1, None, "no people in the file")
    parts.append(np.asarray(people, dtype=np.int32).reshape(len(people), len(order)))
    table = np.concatenate(parts)
    return {reference: table[:, index].copy() for index, (reference, _) in enumerate(order)}


def _whole_numbers(cells: Sequence[str]) -> list[int] | None:
    """Parse whole numbers; None if a cell is not one, or is larger than all numbers of the survey."""
    numbers = [number for cell in cells if (number := whole_number(cell)) is not None and abs(number) <= _LARGEST]
    return numbers if len(numbers) == len(cells) else None


def _note_bad_cells(line: int, order: Sequence[tuple[str, int]], cells: Sequence[str], problems: Problems) -> None:
    for (reference, _), cell in zip(order, cells, strict=True):
        if _whole_numbers([cell]) is None:
            problems.add(line, reference, f"{cell!r} is not a whole number" if cell else "empty")


def _blank_separated(file: ByteLines, problems: Problems) -> Iterator[Row]:
    for line, text in enumerate(text_lines(file, problems), start=1):
        if values := text.split():
            yield line, values


def _known_names(files: ExtractFiles, variables: Sequence[VariableName]) -> dict[str, str]:
    """Return the reference number of every normalized question name."""
    named = [*variables, *(read_variable_names(files.variables) if files.variables else [])]
    return {question_key(name.question, name.year): name.reference for name in named}


def _references(header: Sequence[str], known: Mapping[str, str]) -> list[str]:
    names = [name.strip() for name in header]
    return [name if _REFERENCE.match(name) else known.get(question_key(name, None), name) for name in names]


def question_key(question: str, year: str | None) -> str:
    """Normalize a question name with its year: KEY!SEX of 1997 and KEY_SEX_1997 are the same."""
    key = re.sub(r"[^0-9A-Za-z]+", "_", question).strip("_").upper()
    return key if year is None or key.endswith(f"_{year.upper()}") else f"{key}_{year.upper()}"
