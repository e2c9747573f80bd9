"""Read the rows of JSONL (plain or .gz), CSV (plain or .gz) and Parquet files as cells of text by column.

A folder stands for all its files, which must be of one kind, in sorted order of their names; only hidden files and
notes (README, LICENSE, .md) are left alone. A row that cannot be read is noted in the file's problems.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from laborllm_dist.careers.problems import Problems
from laborllm_dist.careers.table_rows import Row, is_parquet, read_rows, text_lines
from laborllm_dist.corpus_settings import ResumeSettings
from laborllm_dist.errors import DataFileError

Cells = Mapping[str, str]
CellRow = tuple[int, Cells]
IsColumn = Callable[[str], bool]
_Read = tuple[Sequence[str], IsColumn | None]  # names of columns, and what tells those that must be empty

_MANY_PROBLEMS = 1_000
_OBJECTS_THAT_SHOW_ALL_NAMES = 10_000  # a name that none of the first so many has is a typing error
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
        DataFileError: if there is none, its ending is unknown, or a folder holds files of several kinds.
    """
    path = Path(settings.path)
    if path.is_file():
        if _kind_of(path) is None:
            raise DataFileError(f"{path}: the name ends in none of {', '.join(_KIND_OF_ENDING)}")
        return [path]
    if not path.is_dir():
        raise DataFileError(f"no file or folder at {path}")
    there = sorted(file for file in path.iterdir() if file.is_file() and not _is_note(file))
    files = [file for file in there if _kind_of(file) is not None]
    if files and len(files) < len(there):
        unknown = next(file for file in there if file not in files)
        raise DataFileError(
            f"{unknown}: the name ends in none of {', '.join(_KIND_OF_ENDING)}; move what is not read out of {path}"
        )
    kinds = sorted({str(_kind_of(file)) for file in files})
    if not files:
        raise DataFileError(f"{path}: a folder without files that end in {', '.join(_KIND_OF_ENDING)}")
    if len(kinds) > 1:
        raise DataFileError(f"{path}: a folder with files of several kinds ({', '.join(kinds)}); keep one kind in it")
    return files


def refuse_if_many(problems: Problems) -> None:
    """Refuse a file that has more problems than reading on could be worth."""
    if problems.num_found >= _MANY_PROBLEMS:
        problems.refuse_if_any("the rest of the file was not read")


def read_cells(
    path: Path, problems: Problems, *, required: Sequence[str], optional: Sequence[str], beyond: IsColumn | None
) -> Iterator[CellRow]:
    """Yield (place, cells) of every row; a cell that a JSON object leaves out, or that is null, is "".

    Args:
        path: the file.
        problems: where rows that cannot be read are noted.
        required: columns that the file must have.
        optional: columns that are read where the file has them.
        beyond: tells columns that must be empty, and are read to see that they are.

    Raises:
        DataFileError: if the file is empty, lacks a column, or breaks off.
    """
    if path.stat().st_size == 0:
        raise DataFileError(f"{path}: the file is empty")
    wanted = (*required, *optional)
    if _kind_of(path) == "JSONL":
        return _json_cells(path, problems, required, (wanted, beyond))
    return _table_cells(path, problems, required, (wanted, beyond))


def _kind_of(path: Path) -> str | None:
    return next((kind for ending, kind in _KIND_OF_ENDING.items() if path.name.lower().endswith(ending)), None)


def _is_note(path: Path) -> bool:
    name = path.name.lower()
    return name.startswith((".", "readme", "licen")) or name.endswith(".md")


def _table_cells(path: Path, problems: Problems, required: Sequence[str], read: _Read) -> Iterator[CellRow]:
    wanted, beyond = read
    rows = _parquet_rows(path, problems) if is_parquet(path) else read_rows(path, problems)
    place, header = next(rows, (1, []))
    names = [name.strip() for name in header]
    for name in sorted({name for name in names if names.count(name) > 1}):
        problems.add(place, name, "this column stands twice")
    for name in required:
        if name not in names:
            problems.add(place, name, f"missing; the columns are {', '.join(names)}")
    problems.refuse_if_any()
    more = [name for name in names if beyond is not None and beyond(name)]
    columns = [(name, names.index(name)) for name in (*wanted, *more) if name in names]
    for place, values in rows:
        if len(values) == len(names):
            yield place, {name: values[index].strip() for name, index in columns}
        else:
            problems.add(place, None, f"{len(values)} values, the header has {len(names)}")


def _parquet_rows(path: Path, problems: Problems) -> Iterator[Row]:
    try:
        yield from read_rows(path, problems)
    except (pa.ArrowException, UnicodeDecodeError, ValueError, OverflowError) as error:
        raise DataFileError(f"{path}: holds a value that cannot be read as text ({error})") from None


def _json_cells(path: Path, problems: Problems, required: Sequence[str], read: _Read) -> Iterator[CellRow]:
    wanted, beyond = read
    unseen = set(required)
    seen_names: dict[str, None] = {}
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
                problems.refuse_if_any("the rest of the file was not read")
            num_seen += 1
        cells: dict[str, str] = {}
        more = [name for name in entries if beyond is not None and beyond(name)]
        for name in (*wanted, *more):
            value = entries.get(name)
            if isinstance(value, (dict, list, bool)):
                problems.add(place, name, f"holds {json.dumps(value)[:60]}, not a text or number")
                break
            cells[name] = _as_text(value)
        else:
            yield place, cells
    _note_unseen(unseen, seen_names, place, problems)


def _note_unseen(unseen: set[str], seen_names: Mapping[str, None], place: int, problems: Problems) -> None:
    for name in sorted(unseen) if seen_names else ():
        problems.add(place, name, f"in none of the lines; the names in them are {', '.join(seen_names)}")


def _json_lines(path: Path, problems: Problems) -> Iterator[tuple[int, str]]:
    """Yield the lines that are not blank, with their numbers."""
    opener = gzip.open if path.suffix == ".gz" else open
    line = 0
    try:
        with opener(path, "rb") as file:
            for line, text in enumerate(text_lines(file, problems), start=1):
                if text.strip():
                    yield line, text
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataFileError(f"{path}: the gzip data breaks off or is damaged after line {line} ({error})") from None
    except OSError as error:
        raise DataFileError(f"{path}: cannot be read ({error.strerror or error})") from None


def _json_object(text: str, place: int, problems: Problems) -> dict[str, object] | None:
    try:
        value = json.loads(text, object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError) as error:
        problems.add(place, None, f"not JSON ({error})")
        refuse_if_many(problems)
        return None
    if not isinstance(value, dict):
        problems.add(place, None, f"not a JSON object: {text.strip()[:60]!r}")
        return None
    return value


def _without_doubles(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        doubled = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"the name {doubled[0]!r} stands twice")
    return found


def _as_text(value: object) -> str:
    """Return a JSON value as a CSV would have it; NaN, which pandas writes for absent numbers, is absent."""
    if value is None or value != value:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()
