r"""Read careers whose next occupation is to be predicted, from JSON or from a table with one row per person and year.

    {"person": "Ann", "gender": "female", "jobs": [{"year": 1984, "occupation": "Cooks", "education": "college"}],
     "next": {"year": 1986}}                                  one object a person: a list, or one after the other

    person,year,occupation,education                          CSV (plain or .gz) or Parquet
    Ann,1984,Cooks,college
    Ann,1986,,                                                the year to predict has no occupation

Every name must be known: a column that is misspelt would be a covariate that is silently left out.
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laborllm_dist.careers.readers.cells import with_plain_blanks
from laborllm_dist.careers.readers.file_formats import export_advice, reject_pointers
from laborllm_dist.careers.readers.json_cells import cell_of
from laborllm_dist.careers.readers.tabular import column_names, note_doubled, read_rows, unit_of
from laborllm_dist.careers.types import OccupationVocabulary
from laborllm_dist.careers.validation_report import Problems
from laborllm_dist.errors import DataFileError
from laborllm_dist.io.json_files import NotJsonError, read_json_value
from laborllm_dist.prediction.requests import (
    PERSON_FIELDS,
    YEAR_FIELDS,
    Cells,
    OccupationLookup,
    PredictionRequest,
    RequestParser,
)

JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
COLUMNS = (*PERSON_FIELDS, *YEAR_FIELDS)
OBJECT_FIELDS = (*PERSON_FIELDS, "jobs", "next")
BLANKS = " \t\r\n"
MOST_JSON_BYTES = 256 << 20  # a JSON file is held in memory as a whole


def read_requests(path: Path, vocabulary: OccupationVocabulary, surveys: Sequence[str]) -> list[PredictionRequest]:
    """Return the careers of a file.

    Args:
        path: JSON by its name's end, else a table.
        vocabulary: the occupations, whose codes and titles the file may use.
        surveys: the tags that a career may have; where there is one only, the file need not say it.

    Raises:
        DataFileError: with every problem of the file counted and the first ten named.
    """
    if not path.exists() or path.is_dir():
        problem = "a folder" if path.is_dir() else "no file"
        raise DataFileError(f"{problem} at {path}; careers=FILE is a JSON or CSV file", code="no-file")
    reject_pointers(path)
    if (advice := export_advice(path)) is not None:
        raise DataFileError(f"{path}: {advice}", code="unsupported-file-format")
    occupations = OccupationLookup(vocabulary)
    if path.suffix.lower() in JSON_SUFFIXES:
        drafts = RequestParser(occupations, surveys, Problems(path, "line", named="field"))
        _read_json(path, drafts)
    else:
        drafts = RequestParser(occupations, surveys, Problems(path, unit_of(path)))
        _read_table(path, drafts)
    careers = drafts.careers()
    drafts.problems.reject_if_any()
    if not careers:
        raise DataFileError(f"{path}: no careers in it", code="no-careers")
    return careers


def _read_table(path: Path, drafts: RequestParser) -> None:
    problems = drafts.problems
    rows = read_rows(path, problems)
    place, header = next(rows, (1, []))
    names = column_names(header)
    note_doubled(names, place, problems)
    for name in names:
        if name not in COLUMNS:
            problems.add(place, name, f"no column that is known; {_known(name, COLUMNS)}")
    for name in ("person", "year", "occupation"):
        if name not in names:
            problems.add(place, name, f"missing; the columns are {', '.join(names)}")
    problems.reject_if_any()
    for place, values in rows:
        if len(values) != len(header):
            problems.add(place, None, f"{len(values)} values, the header has {len(header)}")
            continue
        cells = Cells(place, dict(zip(names, map(with_plain_blanks, values), strict=True)), {})
        if (draft := drafts.person(cells)) is not None:
            num_before = problems.num_found
            drafts.year(draft, cells)
            draft.is_broken |= problems.num_found > num_before


@dataclass(frozen=True, slots=True)
class _Entry:
    """A value of a JSON file, its line, and its path in a list, `[2].`; empty without a list."""

    line: int
    path: str
    value: Any


def _read_json(path: Path, drafts: RequestParser) -> None:
    if path.stat().st_size > MOST_JSON_BYTES:
        raise DataFileError(
            f"{path}: {path.stat().st_size / (1 << 20):,.0f} MiB; a JSON file is read as a whole, so at most "
            f"{MOST_JSON_BYTES >> 20} MiB: give several files, or a table (CSV, Parquet)",
            code="json-file-too-large",
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataFileError(
            f"{path}: byte {error.start + 1} is not UTF-8; save the file as UTF-8", code="not-utf8"
        ) from None
    first_line: dict[tuple[str, str], int] = {}
    for entry in _entries(text, drafts.problems):
        if (named := _texts(entry, entry.value, "", OBJECT_FIELDS, drafts.problems)) is None:
            continue
        person = Cells(entry.line, named.texts, named.names)
        if (draft := drafts.person(person)) is None:
            continue
        key = (draft.survey, draft.person)
        if key in first_line:
            what = f"{draft.person!r} of {draft.survey} appears twice, first at line {first_line[key]}"
            drafts.note(person, "person", what)
            continue
        first_line[key], num_before = entry.line, drafts.problems.num_found
        for cells in _years(entry, drafts.problems):
            drafts.year(draft, cells)
        draft.is_broken = drafts.problems.num_found > num_before


def _entries(text: str, problems: Problems) -> Iterator[_Entry]:
    """Yield the values of a list or of a sequence; after a malformed value, parsing continues at the next line."""
    start = _past(text, 0, BLANKS)
    is_list = text.startswith("[", start)
    at, line, number = start + is_list, text.count("\n", 0, start) + 1, 0
    while True:
        before, at = at, _past(text, at, BLANKS + "," * (is_list and number > 0))
        line += text.count("\n", before, at)
        if at == len(text) or (is_list and text[at] == "]"):
            break
        try:
            value, end = read_json_value(text, at)
        except NotJsonError as error:
            column = error.position - text.rfind("\n", 0, error.position)
            problems.add(text.count("\n", 0, error.position) + 1, None, f"not JSON ({error}, column {column})")
            at = text.find("\n", at)
            if is_list or at < 0:
                return
            continue
        yield _Entry(line, f"[{number}]." if is_list else "", value)
        line += text.count("\n", at, end)
        at, number = end, number + 1
    if is_list and text[at + 1 :].strip():
        problems.add(line, None, "something follows the end of the list")
    elif is_list and at == len(text):
        problems.add(line, None, "the list has no end (])")


def _past(text: str, at: int, passed_over: str) -> int:
    while at < len(text) and text[at] in passed_over:
        at += 1
    return at


def _years(entry: _Entry, problems: Problems) -> Iterator[Cells]:
    """Yield the jobs of an object, then the year to predict."""
    jobs, target = entry.value.get("jobs"), entry.value.get("next")
    if not isinstance(jobs, list):
        if jobs is not None:
            problems.add(entry.line, f"{entry.path}jobs", f"expected a list of jobs, got {reprlib.repr(jobs)}")
        jobs = []
    for number, job in enumerate(jobs):
        cells = _texts(entry, job, f"jobs[{number}].", YEAR_FIELDS, problems)
        if cells is not None and not cells.texts.get("occupation"):
            problems.add(entry.line, cells.names["occupation"], "missing; the year to predict is given by `next`")
        elif cells is not None:
            yield cells
    if target is not None and (cells := _texts(entry, target, "next.", ("year", "education"), problems)) is not None:
        yield cells


def _texts(entry: _Entry, value: Any, inside: str, known: tuple[str, ...], problems: Problems) -> Cells | None:
    """Return the values of a JSON object as texts, None where it is none or one of its names is not known."""
    where = entry.path + inside
    if not isinstance(value, Mapping):
        problems.add(entry.line, where.rstrip(".") or None, f"expected an object {{...}}, got {reprlib.repr(value)}")
        return None
    texts: dict[str, str] = {}
    num_before = problems.num_found
    for name, each in value.items():
        if name not in known:
            problems.add(entry.line, where + name, f"no field that is known; {_known(name, known)}")
        elif name in ("jobs", "next"):
            continue
        elif (cell := cell_of(each)) is None or (isinstance(each, float) and cell and not each.is_integer()):
            problems.add(entry.line, where + name, f"expected a text or a whole number, got {reprlib.repr(each)}")
        else:
            texts[name] = with_plain_blanks(cell)
    if problems.num_found > num_before:
        return None
    return Cells(entry.line, texts, {name: where + name for name in known})


def _known(name: str, known: Sequence[str]) -> str:
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {nearest[0]}?" if nearest else f"known: {', '.join(known)}"
