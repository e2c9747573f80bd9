"""Read the column positions of the variables of a PSID data file from its set-up file (.do, .sas or .sps).

    .do     infix  [long] NAME a - b ...  using
    .sas    INPUT  NAME a - b ...  ;
    .sps    DATA LIST FILE = ... FIXED /  NAME a - b ...  .

Columns count from 1, b included. The header of a cart gives the numbers of variables, people and columns
(N_OF_VARIABLES, N_OF_OBSERVATIONS, MAX_REC_LENGTH), that of a packaged file Columns and Rows; LRECL is the length of
a record. The file must agree with these numbers.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from laborllm_dist.careers.readers.archives import ArchiveMember
from laborllm_dist.careers.validation_report import Problems

# Where the list of variables begins and ends, by the extension of the set-up file.
_SECTIONS = {
    ".do": (re.compile(r"^[ \t]*infix\b", re.MULTILINE), re.compile(r"\busing\b")),
    ".sas": (re.compile(r"^[ \t]*INPUT\b", re.MULTILINE | re.IGNORECASE), re.compile(r";")),
    ".sps": (re.compile(r"\bFIXED\s*/", re.IGNORECASE), re.compile(r"^[ \t]*\.[ \t\r]*$|\.[ \t\r]*$", re.MULTILINE)),
}
SETUP_SUFFIXES = tuple(_SECTIONS)
_ENTRY = re.compile(
    r"(?:(?:long|double|float|int|byte|str\d*)\s+)?([A-Za-z_]\w*)\s+(?:\$\s*)?(\d{1,9})(?:\s*-\s*(\d{1,9}))?(?:\s*\(A\))?\s*",
    re.IGNORECASE,
)
_HEADER = {
    "num_variables": re.compile(r"\b(?:N_OF_VARIABLES|Columns)\s*:\s*(\d{1,9})"),
    "num_observations": re.compile(r"\b(?:N_OF_OBSERVATIONS|Rows)\s*:\s*(\d{1,9})"),
    "max_record_length": re.compile(r"\bMAX_REC_LENGTH\s*:\s*(\d{1,9})"),
    "lrecl": re.compile(r"\bLRECL\s*=\s*(\d{1,9})", re.IGNORECASE),
}
_LONGEST_RECORD = 1_000_000  # characters
_DOWNLOAD_AGAIN = "download the set-up file again, or another of its forms (.do, .sas, .sps)"


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable in columns [start, end] of a record, counted from 1."""

    name: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Layout:
    """The content of a set-up file; None: not in the file."""

    setup: ArchiveMember
    variables: tuple[Variable, ...]
    num_observations: int | None
    record_length: int | None


def read_layout(setup: ArchiveMember) -> Layout:
    """Read a set-up file.

    Raises:
        DataFileError: if there is no list of variables, an entry is not a variable, two variables share a name or a
            column, or the header disagrees; with the number of problems and the first ten by line.
    """
    text = setup.read_text()
    problems = Problems(setup.label, "line")
    variables = _variables(text, setup.suffix, problems)
    header = {name: _number(pattern, text) for name, pattern in _HEADER.items()}
    if not problems.num_found:
        _check_header(header, variables, problems)
    problems.reject_if_any(_DOWNLOAD_AGAIN)
    return Layout(
        setup=setup,
        variables=tuple(variables),
        num_observations=header["num_observations"],
        record_length=header["max_record_length"] or header["lrecl"],
    )


def _number(pattern: re.Pattern[str], text: str) -> int | None:
    match = pattern.search(text)
    return int(match[1]) if match else None


def _variables(text: str, suffix: str, problems: Problems) -> list[Variable]:
    begin, end = _SECTIONS[suffix]
    started = begin.search(text)
    ended = end.search(text, started.end()) if started else None
    if started is None or ended is None:
        what = "no list of variables" if started is None else "the list of variables has no end"
        problems.add(1 if started is None else _line(text, started.start()), None, f"{what}; is this a set-up file?")
        return []
    variables: list[Variable] = []
    place = started.end()
    place += len(text[place : ended.start()]) - len(text[place : ended.start()].lstrip())
    while place < ended.start():
        entry = _ENTRY.match(text, place, ended.start())
        if entry is None:
            shown = text[place : ended.start()].split("\n")[0].strip()[:40]
            problems.add(_line(text, place), None, f"{shown!r} is no variable with columns, such as ER30001 2 - 5")
            return variables
        variables.append(Variable(entry[1].upper(), int(entry[2]), int(entry[3] or entry[2])))
        _check_variable(variables, _line(text, place), problems)
        place = entry.end()
    if not variables:
        problems.add(_line(text, started.start()), None, "the list of variables is empty")
    return variables


def _check_variable(variables: list[Variable], line: int, problems: Problems) -> None:
    new = variables[-1]
    if not 1 <= new.start <= new.end <= _LONGEST_RECORD:
        problems.add(line, new.name, f"columns {new.start} - {new.end} are no columns")
    elif len(variables) > 1 and new.start <= variables[-2].end:
        before = variables[-2]
        problems.add(line, new.name, f"columns {new.start} - {new.end} overlap {before.name}, up to {before.end}")


def _check_header(header: dict[str, int | None], variables: list[Variable], problems: Problems) -> None:
    names = [variable.name for variable in variables]
    for name, times in Counter(names).items():
        if times > 1:
            problems.add(1, name, "this variable appears twice")
    last = variables[-1].end
    if header["num_variables"] not in (None, len(variables)):
        problems.add(1, None, f"the header says {header['num_variables']} variables, {len(variables)} are listed")
    if header["max_record_length"] not in (None, last):
        length = header["max_record_length"]
        problems.add(1, None, f"the header says records of {length} characters, the variables end at {last}")
    if (header["lrecl"] or last) > _LONGEST_RECORD:
        problems.add(
            1, None, f"records of {header['lrecl']} characters (LRECL); no file has more than {_LONGEST_RECORD:,}"
        )
    if (header["lrecl"] or last) < last:
        problems.add(1, None, f"records have {header['lrecl']} characters (LRECL), the variables end at {last}")


def _line(text: str, place: int) -> int:
    return text.count("\n", 0, place) + 1
