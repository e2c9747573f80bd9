"""Tables of people read letter by letter and cell by cell, as the README says they are meant, without haste.

Nothing here shares a line with the readers: CSV by a small automaton, numbers by `decimal`, dates by `strptime`, the
days of a year counted one by one. What is wrong with a table raises `Wrong`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import date, datetime, timedelta
from decimal import Decimal, InvalidOperation

from laborllm_dist.careers.types import CareerHistory, Job

MISSING = {"", ".", "na", "n/a", "#n/a", "nan", "nat", "none", "null", "<na>"}
OPTIONAL = ("birth_year", "gender", "ethnicity", "region", "education")


class Wrong(ValueError):
    """Raised where a table is not what it should be."""


def slow_csv(content: bytes) -> list[list[str]]:
    """Return the rows of a CSV that are not blank."""
    try:
        text = content.removeprefix(b"\xef\xbb\xbf").decode()
    except UnicodeDecodeError:
        raise Wrong("not UTF-8") from None
    if "\0" in text:
        raise Wrong("NUL")
    rows: list[list[str]] = []
    row: list[str] = []
    cell, state = "", "start"  # of a cell: start, bare, quoted, closed
    for at, sign in enumerate(text + "\n" * (not text.endswith("\n"))):
        if sign == "\r" and state != "quoted":
            if text[at + 1 :].lstrip("\r")[:1] not in ("\n", ""):  # several of them end a row as one does
                raise Wrong("a bare carriage return")
            continue
        if state == "quoted":
            if sign == '"':
                state = "closed"
            else:
                cell += sign
        elif state == "closed" and sign == '"':
            cell, state = cell + '"', "quoted"
        elif sign in ",\n":
            row, cell, blank = [*row, cell], "", state == "start" and not row
            if sign == "\n":
                rows, row = rows if blank else [*rows, row], []
            state = "start"
        elif state == "closed":
            raise Wrong("something follows a quote")
        elif sign == '"' and state == "start":
            state = "quoted"
        else:
            cell, state = cell + sign, "bare"
    if state == "quoted":
        raise Wrong("a quote without an end")
    return rows


def plain(cell: str) -> str:
    """Return a cell with spaces for blanks of other kinds, and without outer ones and signs that have no width."""
    letters = []
    for sign in cell.strip():
        if sign == "\t" or unicodedata.category(sign) == "Zs":
            letters.append(" ")
        elif sign not in "\u00ad\u200b\u2060\ufeff":
            letters.append(sign)
    return "".join(letters).strip()


def number_in(cell: str) -> int | None:
    """Return the whole number that a cell is: 12, +12, 12.0, 12., 1e+05."""
    if not cell.isascii() or re.search(r"[^0-9e.+-]", cell) or (not cell[-1:].isdigit() and not cell.endswith(".")):
        return None
    if ("e" in cell and not re.fullmatch(r"-?\d(\.\d+)?e\+\d\d", cell)) or cell.lstrip("+-").startswith("."):
        return None
    if "." in cell and "e" not in cell and cell.split(".")[1].strip("0"):
        return None
    try:
        value = Decimal(cell)
    except InvalidOperation:
        return None
    return int(value) if value == value.to_integral_value() and abs(value) < 10**18 else None


def code_in(cell: str) -> str:
    """Return a code or an id without the point that a float has given it."""
    if re.fullmatch(r"-?[0-9]+\.0*", cell) or re.fullmatch(r"-0+", cell):
        cell = cell.split(".")[0]
        return cell.removeprefix("-") if not cell.strip("-0") else cell
    if re.fullmatch(r"-?[0-9](\.[0-9]+)?e\+[0-9]{2}", cell) and (number := number_in(cell)) is not None:
        return str(number) if abs(number) < 10**15 else cell
    return cell


def year_in(cell: str) -> int:
    """Return a year."""
    year = number_in(cell)
    if year is None or not 1850 <= year <= 2100:
        raise Wrong(f"no year: {cell}")
    return year


def person_in(cell: str) -> str:
    """Return who somebody is."""
    if cell.casefold() in MISSING or not cell.isprintable():
        raise Wrong("nobody")
    number = re.fullmatch(r"-?([0-9]{16,})\.0*", cell) or re.fullmatch(r"-?[0-9](?:\.[0-9]+)?e\+([0-9]{2})", cell)
    if number is not None and (len(number[1]) > 2 or int(number[1]) >= 15):
        raise Wrong("a rounded id")
    return code_in(cell)


def known(cell: str | None) -> str | None:
    """Return what a cell says; None where that is not known."""
    return None if cell is None or cell.casefold() in MISSING else code_in(cell)


def slow_panel(rows: Sequence[Sequence[str]], codes: Mapping[str, str], survey: str) -> list[CareerHistory]:
    """Return the careers of a panel whose first row is the names of the columns.

    Args:
        rows: cells of text.
        codes: what each code of the list of occupations stands for.
        survey: its name.

    Raises:
        Wrong: if anything in it is.
    """
    names = list(map(plain, rows[0])) if rows else []
    if len(set(names)) < len(names) or not {"person", "year", "occupation"} <= set(names) or len(rows) < 2:
        raise Wrong("columns")
    people: dict[str, dict[int, dict[str, str]]] = {}
    for values in rows[1:]:
        if len(values) != len(names):
            raise Wrong("length")
        read = {"person", "year", "occupation", *OPTIONAL}
        cells = {name: plain(cell) for name, cell in zip(names, values, strict=True) if name in read}
        if not all(cell.isprintable() for cell in cells.values()):
            raise Wrong("signs")
        years = people.setdefault(person_in(cells["person"]), {})
        if years.setdefault(year_in(cells["year"]), cells) is not cells:
            raise Wrong("twice")
    return [career for person, years in people.items() if (career := _career(person, years, codes, survey)) is not None]


def _career(
    person: str, years: Mapping[int, Mapping[str, str]], codes: Mapping[str, str], survey: str
) -> CareerHistory | None:
    facts: dict[str, str | None] = {}
    for name in ("birth_year", "gender", "ethnicity"):
        values = {value for cells in years.values() if (value := known(cells.get(name))) is not None}
        if len(values) > 1:
            raise Wrong(f"{name} changes")
        facts[name] = values.pop() if values else None
    born = None if facts["birth_year"] is None else year_in(facts["birth_year"])
    regions = [known(cells.get("region")) for _, cells in sorted(years.items())]
    jobs = []
    for year, cells in sorted(years.items()):
        if born is not None and year < born:
            raise Wrong("before birth")
        cell = cells["occupation"]
        code = codes.get(cell) or codes.get(code_in(cell))
        if code is not None:
            jobs.append(Job(year, code, known(cells.get("education"))))
        elif cell.casefold() not in MISSING and (number_in(cell) or 0) >= 0:
            raise Wrong("code")
    if not jobs:
        return None
    region = next(filter(None, regions), None)
    return CareerHistory(person, survey, born, facts["gender"], facts["ethnicity"], region, tuple(jobs))


# ---------------------------------------------------------------------------------------------------- dated jobs

_SPANS = (
    ("day", ("%Y-%m-%d", "%Y/%m/%d", "%Y%m%d", "%d %b %Y", "%d %B %Y", "%b %d %Y", "%B %d %Y", "%b %d, %Y", "%B %d, %Y")),
    ("day", ("%m/%d/%Y", "%d/%m/%Y", "%m-%d-%Y", "%d-%m-%Y", "%m.%d.%Y", "%d.%m.%Y")),
    ("month", ("%Y-%m", "%Y/%m", "%Y.%m", "%m/%Y", "%m-%Y", "%m.%Y", "%b %Y", "%B %Y", "%b%Y", "%B%Y")),
    ("year", ("%Y",)),
)  # fmt: skip


def slow_dates(text: str) -> set[tuple[date, date]]:
    """Return the first and last day of everything that a text can mean as a date."""
    lower = text.strip().lower().replace("sept ", "sep ").replace("sept.", "sep.")
    lower = re.sub(r"(?<=[a-z])\.?,?(?=\s|\d)", "", lower) if re.match(r"[a-z]", lower) else lower
    lower = re.sub(r"^(\d{1,2})\.(?=\s)", r"\1", re.sub(r"(?<=[a-z])\.?,?(?=\s\d{4}$)", "", lower))
    lower = re.sub(r"[t ]\d{1,2}:\d\d(:\d\d(\.\d+)?)?\s?(z|utc|[+-]\d\d:?\d\d)?$", "", lower)
    keys = set()
    for span, formats in _SPANS:
        for form in formats:
            try:
                day = datetime.strptime(lower, form).date()
            except ValueError:
                continue
            keys.add(_span_of(day, span))
    if quarter := re.fullmatch(r"q([1-4])[\s,/-]*(\d{4})|(\d{4})[\s/-]?q([1-4])", lower):
        year, number = int(quarter[2] or quarter[3]), int(quarter[1] or quarter[4])
        keys.add((date(year, 3 * number - 2, 1), _last_of_month(date(year, 3 * number, 1))))
    if (number := number_in(lower)) is not None:
        if 1 <= number <= 9999:
            keys.add((date(number, 1, 1), date(number, 12, 31)))
        elif 10**10 <= abs(number) < 10**13:
            day = (datetime(1970, 1, 1) + timedelta(milliseconds=number)).date()
            keys.add((day, day))
    return {key for key in keys if 1850 <= key[0].year <= 2100}


def _span_of(day: date, span: str) -> tuple[date, date]:
    if span == "day":
        return day, day
    first = day.replace(day=1) if span == "month" else day.replace(month=1, day=1)
    return first, _last_of_month(first if span == "month" else first.replace(month=12))


def _last_of_month(first: date) -> date:
    return (first.replace(day=28) + timedelta(days=4)).replace(day=1) - timedelta(days=1)


def slow_years(jobs: Sequence[tuple[date, date, str | None]]) -> dict[int, str | None]:
    """Return what is held for the most days of each year, of equals the one that starts, ends or stands later."""
    days: dict[int, dict[int, int]] = {}
    for place, (start, end, _) in enumerate(jobs):
        day = start
        while day <= end:
            of_year = days.setdefault(day.year, {})
            of_year[place] = of_year.get(place, 0) + 1
            day += timedelta(days=1)
    return {
        year: jobs[max(counts, key=lambda place: (counts[place], *jobs[place][:2], place))][2]
        for year, counts in sorted(days.items())
    }
