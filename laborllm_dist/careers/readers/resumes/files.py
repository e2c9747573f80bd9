"""Read the rows of JSONL (plain or .gz), CSV (plain or .gz) and Parquet files as cells of text by column.

A folder is read as all of its files in sorted order of their names; they must be of one kind. Hidden files and notes
(README, LICENSE, .md) are ignored. A row that cannot be read is added to the file's problems.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from laborllm_dist.careers.readers.file_formats import export_advice, reject_other_formats, reject_pointers
from laborllm_dist.careers.readers.json_cells import cell_of, date_cell, shown_value
from laborllm_dist.careers.readers.tabular import column_names, missing_column, note_doubled, read_rows, text_lines
from laborllm_dist.careers.validation_report import Problems
from laborllm_dist.config.corpora import ResumeSettings
from laborllm_dist.errors import DataFileError
from laborllm_dist.io.json_files import NotJsonError, read_json_value

Cells = Mapping[str, str]
CellRow = tuple[int, Cells]
IsColumn = Callable[[str], bool]

_NEEDED = ("person", "start", "order")  # columns that every file of resumes must have
_MANY_PROBLEMS = 1_000
_OBJECTS_THAT_SHOW_ALL_NAMES = 10_000  # a name that none of the first objects has is taken for a typing error
_KIND_OF_ENDING = {
    ".jsonl": "JSONL",
    ".ndjson": "JSONL",
    ".jsonl.gz": "JSONL",
    ".csv": "CSV",
    ".csv.gz": "CSV",
    ".parquet": "Parquet",
    ".pq": "Parquet",
}


def resume_files(settings: ResumeSettings) -> list[Path]:
    """Return the files of a corpus, in the order in which they are read.

    Raises:
        DataFileError: if there is no file, its extension is unknown, or a folder has files of several kinds.
    """
    path = Path(settings.path)
    if path.exists() and not path.is_dir():
        reject_pointers(path)
        if (advice := export_advice(path)) is not None:
            raise DataFileError(f"{path}: {advice}", code="unsupported-format")
        if _kind_of(path) is None:
            raise DataFileError(
                f"{path}: the name ends in none of {', '.join(_KIND_OF_ENDING)}", code="unknown-file-extension"
            )
        return [path]
    if not path.is_dir():
        raise DataFileError(f"no file or folder at {path}", code="no-file")
    there = sorted(file for file in path.iterdir() if file.is_file() and not _is_note(file))
    files = [file for file in there if _kind_of(file) is not None]
    if files and len(files) < len(there):
        unknown = next(file for file in there if file not in files)
        if (advice := export_advice(unknown)) is not None:
            raise DataFileError(f"{unknown}: {advice}", code="unsupported-format")
        raise DataFileError(
            f"{unknown}: the name ends in none of {', '.join(_KIND_OF_ENDING)}; move what is not read out of {path}",
            code="unknown-file-extension",
        )
    kinds = sorted({str(_kind_of(file)) for file in files})
    if not files and (advice := next(filter(None, map(export_advice, there)), None)) is not None:
        raise DataFileError(f"{path}: {advice}", code="unsupported-format")
    if not files:
        raise DataFileError(
            f"{path}: a folder without files that end in {', '.join(_KIND_OF_ENDING)}", code="no-resume-files"
        )
    if len(kinds) > 1:
        raise DataFileError(
            f"{path}: a folder with files of several kinds ({', '.join(kinds)}); keep one kind in it",
            code="mixed-file-types",
        )
    return files


def reject_if_many(problems: Problems) -> None:
    """Raise an error, without reading the rest, if a file has many problems."""
    if problems.num_found >= _MANY_PROBLEMS:
        problems.reject_if_any("the rest of the file was not read")


@dataclass(frozen=True, slots=True)
class ColumnSelection:
    """The columns to read: the required ones by content, and the optional ones.

    `beyond` returns whether a column must be empty, which is checked; `dates` are the date columns.
    """

    required: Mapping[str, str]
    optional: Sequence[str] = ()
    beyond: IsColumn | None = None
    dates: Sequence[str] = ()

    def of(self, names: Iterable[str]) -> list[str]:
        """Return the names among those of a file that are read."""
        there = list(dict.fromkeys(names))
        more = [name for name in there if self.beyond is not None and self.beyond(name)]
        return list(dict.fromkeys((*self.required.values(), *self.optional, *more)))


def read_cells(path: Path, problems: Problems, selection: ColumnSelection) -> Iterator[CellRow]:
    """Yield (place, cells) of every row; a missing or null cell of a JSON object is "".

    Args:
        path: file to read.
        problems: gets the rows that cannot be read.
        selection: columns to read.

    Raises:
        DataFileError: if the file is empty, truncated or of another format, or lacks a column.
    """
    reject_other_formats(path)
    if path.stat().st_size == 0:
        raise DataFileError(f"{path}: the file is empty", code="empty-file")
    read = _json_cells if _kind_of(path) == "JSONL" else _table_cells
    return read(path, problems, selection)


def _kind_of(path: Path) -> str | None:
    return next((kind for ending, kind in _KIND_OF_ENDING.items() if path.name.lower().endswith(ending)), None)


def _is_note(path: Path) -> bool:
    name = path.name.lower()
    return name.startswith((".", "readme", "licen")) or name.endswith(".md")


def _table_cells(path: Path, problems: Problems, selection: ColumnSelection) -> Iterator[CellRow]:
    rows = read_rows(path, problems, selection.of)
    place, header = next(rows, (1, []))
    names = column_names(header)
    note_doubled(names, place, problems)
    for use, name in selection.required.items():
        if name not in names:
            problems.add(place, name, missing_column(use, names, is_optional=use not in _NEEDED))
    problems.reject_if_any()
    index_of = {name: index for index, name in enumerate(names)}
    columns = [(name, index_of[name]) for name in selection.of(names) if name in index_of]
    dates = set(selection.dates)
    for place, values in rows:
        if len(values) == len(names):
            yield place, {name: date_cell(values[at]) if name in dates else values[at] for name, at in columns}
        else:
            problems.add(place, None, f"{len(values)} values, the header has {len(names)}")


def _json_cells(path: Path, problems: Problems, selection: ColumnSelection) -> Iterator[CellRow]:
    unseen = set(selection.required.values())
    seen_names: dict[str, None] = {}
    dates, names = set(selection.dates), selection.of(())
    place = num_seen = 0
    for place, text in _json_lines(path, problems):
        entries = _json_object(text, place, problems)
        if entries is None:
            continue
        if unseen:
            unseen.difference_update(entries)
            seen_names.update(dict.fromkeys(entries))
            if num_seen == _OBJECTS_THAT_SHOW_ALL_NAMES:
                _note_unseen(unseen, seen_names, place, problems)
                problems.reject_if_any("the rest of the file was not read")
            num_seen += 1
        cells: dict[str, str] = {}
        for name in names if selection.beyond is None else selection.of(entries):
            value = entries.get(name)
            if (cell := cell_of(value, is_date=name in dates)) is None:
                problems.add(place, name, f"holds {shown_value(value)}, not a text or number")
                break
            cells[name] = cell
        else:
            yield place, cells
    _note_unseen(unseen, seen_names, place, problems)


def _note_unseen(unseen: set[str], seen_names: Mapping[str, None], place: int, problems: Problems) -> None:
    for name in sorted(unseen) if seen_names else ():
        problems.add(place, name, f"in none of the lines; the names in them are {', '.join(seen_names)}")


def _json_lines(path: Path, problems: Problems) -> Iterator[tuple[int, str]]:
    """Yield the nonblank lines with their numbers."""
    opener = gzip.open if path.suffix.lower() == ".gz" else open
    line = 0
    try:
        with opener(path, "rb") as file:
            for line, text in enumerate(text_lines(file, problems), start=1):
                if text.strip():
                    yield line, text
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataFileError(
            f"{path}: the gzip data breaks off or is damaged after line {line} ({error})", code="damaged-gzip"
        ) from None
    except OSError as error:
        raise DataFileError(f"{path}: cannot be read ({error.strerror or error})", code="unreadable-file") from None


def _json_object(text: str, place: int, problems: Problems) -> dict[str, object] | None:
    try:
        value, end = read_json_value(text.lstrip(" \t"))
        if text.lstrip(" \t")[end:].strip():
            raise NotJsonError("something follows the object")
    except NotJsonError as error:
        problems.add(place, None, f"not JSON ({error})")
        reject_if_many(problems)
        return None
    if not isinstance(value, dict):
        problems.add(place, None, f"not a JSON object: {text.strip()[:60]!r}")
        return None
    return value
