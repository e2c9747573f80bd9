"""Read what an extract says of itself: its list of variables (.sdf) and the counts of its codebook (.cdb)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from laborllm_dist.careers.members import Member
from laborllm_dist.careers.nls.missing import MISSING_KINDS, Values
from laborllm_dist.careers.problems import Problems
from laborllm_dist.errors import DataFileError

_SDF_ROW = re.compile(r"^([A-Z]\d{5}\.\d{2})\s+(\S+)\s")
_BLOCK_END = re.compile(r"^-{60,}$")
_BLOCK_HEAD = re.compile(r"^([A-Z]\d{5}\.\d{2})\s+\[(.+?)\]\s+Survey Year:\s*(\S+)")
_COUNT = re.compile(r"^\s*(\d+)\s+(-?\d+)(?: TO (-?\d+))?(?:[ :]|$)")
_SUM_LINE = re.compile(r"^\s+-+$")
_MISSING = re.compile(r"(Refusal|Don't Know|Invalid Skip|VALID SKIP|NON-INTERVIEW)\((-\d)\)\s+(\d+)", re.IGNORECASE)
# Some codebooks count people who were not interviewed among the valid skips.
_MISSING_TOGETHER = ((-1,), (-2,), (-3,), (-4, -5))


@dataclass(frozen=True, slots=True)
class VariableName:
    """A column of an extract: reference number as in headers (R0000100), survey year and question name."""

    reference: str
    year: str
    question: str


@dataclass(frozen=True, slots=True)
class CodebookCounts:
    """How many people the codebook says have a value from `first` to `last`, and are missing by code."""

    values: tuple[tuple[int, int, int], ...]  # first, last, people
    missing: Mapping[int, int]


def reference_of(dotted: str) -> str:
    """Return R00001.00 as R0000100."""
    return dotted.replace(".", "")


def read_variable_names(member: Member) -> list[VariableName]:
    """Return the variables of an .sdf file, in the order of their columns.

    Raises:
        DataFileError: if there are none.
    """
    names: list[VariableName] = []
    for line in member.read_text().splitlines():
        if found := _SDF_ROW.match(line):
            question = re.split(r"\s{2,}", line.strip())[-1]
            names.append(VariableName(reference_of(found[1]), found[2], question))
    if not names:
        raise DataFileError(
            f"{member.label}: no variables in it; its lines should be like "
            "'R00001.00  1979  IDENTIFICATION CODE  CASEID'; download the extract again"
        )
    return names


def read_codebook(member: Member) -> dict[str, CodebookCounts]:
    """Return the counts of every variable of a .cdb file, by reference number."""
    counts: dict[str, CodebookCounts] = {}
    block: list[str] = []
    for line in member.read_text().splitlines():
        if _BLOCK_END.match(line.strip()):
            counts.update(_block_counts(block))
            block = []
        else:
            block.append(line)
    counts.update(_block_counts(block))
    return counts


def check_counts(columns: Mapping[str, Values], codebook: Mapping[str, CodebookCounts], table: Member) -> None:
    """Compare the columns of a table with the codebook that came with it.

    Args:
        columns: values by reference number, [people] each.
        codebook: what they should be.
        table: the file the columns are from.

    Raises:
        DataFileError: with every difference counted and the first ten named.
    """
    problems = Problems(table.label, "column")
    for place, (reference, values) in enumerate(columns.items(), start=1):
        if (said := codebook.get(reference)) is None:
            continue
        found = Counter(values.tolist())
        # A range of values may run below zero, through the codes for missing, which it does not count.
        valid = {value: people for value, people in found.items() if value not in MISSING_KINDS}
        for first, last, people in said.values:
            number = sum(count for value, count in valid.items() if first <= value <= last)
            if number != people:
                span = f"the value {first}" if first == last else f"a value from {first} to {last}"
                problems.add(place, reference, f"{number:,} people have {span}, the codebook says {people:,}")
        for codes in _MISSING_TOGETHER:
            number, people = (sum(counts.get(code, 0) for code in codes) for counts in (found, said.missing))
            if number != people:
                kinds = " or ".join(f"{code} ({MISSING_KINDS[code]})" for code in codes)
                problems.add(place, reference, f"{number:,} people have {kinds}, the codebook says {people:,}")
    problems.refuse_if_any("the file has been cut or changed since it was downloaded; download the extract again")


def _block_counts(block: list[str]) -> dict[str, CodebookCounts]:
    head = next((found for line in block if (found := _BLOCK_HEAD.match(line))), None)
    if head is None:
        return {}
    end = next((place for place, line in enumerate(block) if _SUM_LINE.match(line)), 0)
    values: list[tuple[int, int, int]] = []
    for line in block[:end]:
        if found := _COUNT.match(line):
            values.append((int(found[2]), int(found[3] or found[2]), int(found[1])))
    # The text of a question can look like a count; then the counts do not add up to the sum below the line.
    total = block[end + 1].strip() if 0 < end < len(block) - 1 else ""
    if str(sum(people for _, _, people in values)) != total:
        values = []
    missing = {int(code): int(people) for line in block for _, code, people in _MISSING.findall(line)}
    return {reference_of(head[1]): CodebookCounts(tuple(values), missing)}
