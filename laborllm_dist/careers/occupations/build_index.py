r"""Make tables/census_titles.csv.gz from the alphabetical index of occupations of the Census 2000.

    python -m laborllm_dist.careers.occupations.build_index INDEX.csv.gz [TABLE.csv.gz]

The index (U.S. Census Bureau, 30,959 entries) gives a title several entries where its code depends on the industry. The
table has a line for each title: its codes, the likeliest first, by these rules:

    notation     what stands after "\" or in parentheses is cut ("Grinder \ n.s." is Grinder), but initials take the
                 words in parentheses ("C.N.A. (certified nursing assistant)"); what begins after a comma with a
                 condition (exc., any, general, specified, n.s., n.e.c., degree, diploma, with, duties) is cut
    a/b          "Bar waiter/waitress" is Bar waiter and Bar waitress
    See          'Waitress--See "Waiter"' has the codes of Waiter, where it has no entry of its own; other instructions
                 ("--Code by industry") are left out
    order        first entries for any industry (one in parentheses is implied by the title, not asked for), then "any
                 not listed", then "except ...", then named industries and classes of worker (GOV, OWN), then those that
                 ask for a place or a kind of work; among equals the one of the most industries, ranges counted out,
                 then the lowest code
"""

from __future__ import annotations

import csv
import gzip
import io
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from laborllm_dist.careers.occupations.title_index import INDEX_PATH
from laborllm_dist.errors import DataFileError
from laborllm_dist.io.files import atomic_write

ANY, NOT_LISTED, EXCEPT, NAMED, ASKED = range(5)
_UNSPECIFIC = re.compile(r"n\.s\.|n\.e\.c\.|any|all other|not listed", re.IGNORECASE)
_CONDITION = re.compile(
    r"^(exc\.|except\b|any\b|general\b|specified\b|n\.s\.|n\.e\.c\.|or n\.|less than|.*\b(degree|diploma)\b)",
    re.IGNORECASE,
)
_DUTIES = re.compile(r",\s*(?:with\b.*|[^,]*(?:,[^,]*)*\bduties\b.*)$", re.IGNORECASE)
_INITIALS = re.compile(r"^((?:[A-Z]\.){2,}[A-Z]?\.?)\s*\(([^)]*)\)")
_IN_PARENTHESES = re.compile(r"\s*\([^)]*\)")
_SEE = re.compile(r'--\s*See "([^"]+)"')
_EITHER = re.compile(r"([A-Za-z'-]+)/([A-Za-z'-]+)")
_INDUSTRIES = re.compile(r"(?:[FL]?GOV|OBN?I|OWN|PR|or|[\d,\s#-])+", re.IGNORECASE)
_RANGE = re.compile(r"(\d{3})(?:-(\d{3}))?")


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the index: a title it holds for, its code, and how it depends on the industry."""

    title: str
    code: int
    rank: int
    industries: frozenset[int]


def main(arguments: Sequence[str]) -> None:
    """Write the table."""
    source, target = Path(arguments[0]), Path(arguments[1]) if len(arguments) > 1 else INDEX_PATH
    with atomic_write(target) as partial:
        partial.write_bytes(table_of(source))


def table_of(source: Path) -> bytes:
    """Return the table that follows from an index, compressed, the same bytes whenever it is made.

    Raises:
        DataFileError: if the file lacks the columns of the index.
    """
    with gzip.open(source, "rt", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"census2000", "title", "industry_restriction"} <= rows[0].keys():
        raise DataFileError(
            f"{source}: expected columns census2000, title and industry_restriction", code="missing-columns"
        )
    known = _known_industries(rows)
    entries = [entry for row in rows for entry in _entries(row, known)]
    codes = _codes_by_title(entries)
    for title, target in _references(rows):
        if title not in codes and target in codes:
            codes[title] = codes[target]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("title", "census2000", "others"))
    writer.writerows((title, ranked[0], " ".join(map(str, ranked[1:]))) for title, ranked in sorted(codes.items()))
    compressed = io.BytesIO()
    with gzip.GzipFile(fileobj=compressed, mode="wb", mtime=0, filename="") as packed:
        packed.write(text.getvalue().encode())
    return compressed.getvalue()


def titles_of(text: str) -> list[str]:
    """Return the titles in an entry's text, without its notation."""
    plain = _DUTIES.sub("", text.split("--")[0].split("\\")[0].strip())
    if initials := _INITIALS.match(plain):
        return [initials[1], initials[2]]
    parts = [part.strip() for part in _IN_PARENTHESES.sub("", plain).split(",")]
    # A condition may continue after commas: "Engineer, industrial, except health, hygiene, or safety".
    ends = next((place for place, part in enumerate(parts) if place and _CONDITION.match(part)), len(parts))
    title = ", ".join(filter(None, parts[:ends]))
    either = _EITHER.search(title)
    if either is None:
        return [title] if title else []
    return [title.replace(either[0], word) for word in either.groups()]


def rank_of(text: str, restriction: str) -> int:
    """Return how little an entry asks for: ANY first, ASKED last."""
    condition = text.partition("\\")[2].split("--")[0]
    if (condition.strip() and not _UNSPECIFIC.search(condition)) or _DUTIES.search(text):
        return ASKED
    industry = restriction.strip()
    if not industry or (industry.startswith("(") and industry.endswith(")")):
        return ANY
    if "any not listed" in industry.lower():
        return NOT_LISTED
    if industry.lower().startswith("exc."):
        return EXCEPT
    return NAMED if _INDUSTRIES.fullmatch(industry) else ASKED


def _entries(row: Mapping[str, str], known: Sequence[int]) -> Iterator[Entry]:
    if not row["census2000"]:
        return
    restriction = row["industry_restriction"] or ""
    rank = rank_of(row["title"], restriction)
    named = _industries(restriction, known)
    industries = frozenset(known) - named if rank == EXCEPT else named
    for title in titles_of(row["title"]):
        yield Entry(title, int(float(row["census2000"])), rank, industries)


def _codes_by_title(entries: Sequence[Entry]) -> dict[str, list[int]]:
    """Return the codes of every title, the likeliest first."""
    by_title: dict[str, dict[int, list[Entry]]] = {}
    for entry in entries:
        by_title.setdefault(entry.title, {}).setdefault(entry.code, []).append(entry)
    codes: dict[str, list[int]] = {}
    for title, by_code in by_title.items():
        order: dict[int, tuple[int, int, int]] = {}
        for code, same in by_code.items():
            rank = min(entry.rank for entry in same)
            industries = frozenset().union(*(entry.industries for entry in same if entry.rank == rank))
            order[code] = (rank, -len(industries), code)
        codes[title] = sorted(order, key=order.__getitem__)
    return codes


def _references(rows: Sequence[Mapping[str, str]]) -> Iterator[tuple[str, str]]:
    for row in rows:
        if match := _SEE.search(row["title"]):
            targets = titles_of(match[1])
            for title in titles_of(row["title"]):
                yield title, targets[0] if targets else ""


def _known_industries(rows: Sequence[Mapping[str, str]]) -> list[int]:
    """Return the industries that the index names, so that the ranges between them can be counted out."""
    named = {
        int(each) for row in rows for pair in _RANGE.findall(row["industry_restriction"] or "") for each in pair if each
    }
    return sorted(named)


def _industries(restriction: str, known: Sequence[int]) -> frozenset[int]:
    ranges = [(int(first), int(last or first)) for first, last in _RANGE.findall(restriction)]
    return frozenset(code for code in known if any(first <= code <= last for first, last in ranges))


if __name__ == "__main__":
    main(sys.argv[1:])
