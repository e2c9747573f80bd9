"""Read requested variables of a fixed-width PSID file as columns of whole numbers, several thousand records at a time.

Every record must have the length that the set-up file says, and every requested field must be a whole number between
blanks, or blank; there must be as many records as the header says. Columns that no variable has must be blank: where a
set-up file gives a variable too few columns, the rest of its digits would be lost.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from laborllm_dist.careers.readers.archives import ArchiveMember
from laborllm_dist.careers.readers.psid.layout import Layout, Variable
from laborllm_dist.careers.validation_report import Problems

BLANK = -1  # a field without a value; the PSID has no values below zero among the variables of the method
Column = npt.NDArray[np.int32]  # [records]
_RECORDS_AT_ONCE = 5_000
_MOST_RECORDS = 1_000_000
_MOST_DIGITS = 9
_BLANK, _ZERO, _NINE = b" 09"
_DOWNLOAD_AGAIN = "download the data and their set-up file again, together"


def read_columns(data: ArchiveMember, layout: Layout, names: Sequence[str]) -> dict[str, Column]:
    """Return the columns of the requested variables that the file has, by name.

    Raises:
        DataFileError: with the number of problems of the file and the first ten by line and columns.
    """
    problems = Problems(data.label, "line")
    variables = [variable for variable in layout.variables if variable.name in names]
    parts: dict[str, list[Column]] = {variable.name: [] for variable in variables}
    num_records, unnamed = 0, _unnamed_columns(layout)
    with data.open() as file:
        longest = _length_of(layout) + len(b"\r\n")
        # A longer record is cut into several, none of which has the right length.
        while lines := list(itertools.islice(iter(lambda: file.readline(longest), b""), _RECORDS_AT_ONCE)):
            records = _records(lines, layout, num_records, problems)
            for row, column in np.argwhere(records[:, unnamed] != _BLANK):
                what = (
                    f"column {unnamed[column] + 1} holds something, but no variable of {layout.setup.label.name} has it"
                )
                problems.add(num_records + int(row) + 1, None, what)
            for variable in variables:
                parts[variable.name].append(_numbers(records, variable, num_records, problems))
            num_records += len(lines)
            if num_records > _MOST_RECORDS:
                problems.add(num_records, None, f"more than {_MOST_RECORDS:,} records, which no file of the PSID has")
                problems.reject_if_any(_DOWNLOAD_AGAIN)
    num_expected = layout.num_observations
    if num_records and num_expected not in (None, num_records) and not problems.num_found:
        problems.add(num_records, None, f"the file ends here; the set-up file says {num_expected:,} records")
    if not num_records and not problems.num_found:
        problems.add(1, None, "no records in the file")
    problems.reject_if_any(_DOWNLOAD_AGAIN)
    return {name: np.concatenate(columns) for name, columns in parts.items()}


def _length_of(layout: Layout) -> int:
    """Return the number of characters of a record."""
    return layout.record_length or max(variable.end for variable in layout.variables)


def _unnamed_columns(layout: Layout) -> npt.NDArray[np.intp]:
    """Return the columns of a record, counted from 0, that belong to no variable."""
    is_unnamed = np.ones(_length_of(layout), dtype=bool)
    for variable in layout.variables:
        is_unnamed[variable.start - 1 : variable.end] = False
    return np.flatnonzero(is_unnamed)


def _records(lines: Sequence[bytes], layout: Layout, num_before: int, problems: Problems) -> npt.NDArray[np.uint8]:
    """Return the characters of the lines, [lines, record length]; lines of another length are problems, and blank."""
    length = _length_of(layout)
    records = [line.rstrip(b"\r\n") for line in lines]
    for place, record in enumerate(records, start=1):
        if len(record) != length:
            problems.add(num_before + place, None, f"{len(record)} characters, the set-up file says {length}")
            records[place - 1] = b" " * length
    return np.frombuffer(b"".join(records), dtype=np.uint8).reshape(len(records), length)


def _numbers(records: npt.NDArray[np.uint8], variable: Variable, num_before: int, problems: Problems) -> Column:
    """Return the values of a field, [records]; blank fields are BLANK, and fields that are not numbers are problems."""
    field = records[:, variable.start - 1 : variable.end]
    is_digit = (field >= _ZERO) & (field <= _NINE)
    # Digits must be contiguous: a digit may follow a blank once, or begin the field.
    begins = is_digit.copy()
    begins[:, 1:] &= ~is_digit[:, :-1]
    bad = ~(is_digit | (field == _BLANK)).all(axis=1) | (begins.sum(axis=1) > 1) | (is_digit.sum(axis=1) > _MOST_DIGITS)
    for row in np.flatnonzero(bad):
        text = field[row].tobytes().decode("latin-1")
        where = f"{variable.name}, columns {variable.start} - {variable.end}"
        problems.add(num_before + int(row) + 1, where, f"{text!r} is not a whole number")
    values = np.zeros(len(records), dtype=np.int64)
    for place in range(field.shape[1]):
        values = np.where(is_digit[:, place], values * 10 + (field[:, place] - _ZERO), values)
    values[bad | ~is_digit.any(axis=1)] = BLANK
    return values.astype(np.int32)
