"""Read the metadata of an extract: its list of variables (.sdf) and the counts of its codebook (.cdb)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from laborllm_dist.careers.readers.archives import ArchiveMember
from laborllm_dist.careers.readers.nls.files import ExtractFiles
from laborllm_dist.careers.validation_report import Problems
from laborllm_dist.errors import DataFileError

Values = npt.NDArray[np.int32]  # [people]; below zero: missing, by kind
MISSING_KINDS = {-1: "refused", -2: "not known", -3: "invalid skip", -4: "valid skip", -5: "not interviewed"}
NOT_INTERVIEWED = -5

_MOST_DIGITS = 12  # of a count
_MOST_LINES = 100_000  # of a variable's block
_SDF_ROW = re.compile(r"^([A-Z]\d{5}\.\d{2})\s+(\S+)\s")
_BLOCK_END = re.compile(r"^-{60,}$")
_BLOCK_HEAD = re.compile(r"^([A-Z]\d{5}\.\d{2})\s+\[(.+?)\]\s+Survey Year:\s*(\S+)")
_COUNT = re.compile(r"^\s*(\d{1,12})\s+(-?\d{1,12})(?: TO (-?\d{1,12}))?(?:[ :]|$)")
_SUM_LINE = re.compile(r"^\s+-+$")
_MISSING = re.compile(
    r"(Refusal|Don't Know|Invalid Skip|VALID SKIP|NON-INTERVIEW)\((-\d)\)\s+(\d{1,12})", re.IGNORECASE
)
# Some codebooks count people who were not interviewed among the valid skips.
_MISSING_TOGETHER = ((-1,), (-2,), (-3,), (-4, -5))
_TOTAL = re.compile(r"^TOTAL =+>\s+(\d{1,12})")
_NOT_IN_TOTAL = (-4, -5)
_NUMBER = r"(-?(?:\d+\.?\d*|\.\d+))"
_SUMMARY = re.compile(rf"^Min:\s+{_NUMBER}\s+Max:\s+{_NUMBER}\s+Mean:\s+{_NUMBER}(?:\s|$)")
_MEAN_ROUNDING = 0.0051  # two places behind the point


@dataclass(frozen=True, slots=True)
class VariableName:
    """A column of an extract: reference number as in headers (R0000100), survey year and question name."""

    reference: str
    year: str
    question: str


@dataclass(frozen=True, slots=True)
class CodebookCounts:
    """The counts of a variable in the codebook: people with a value from `first` to `last`, and missing values by code.

    `total`: people who were asked, including refusals. `summary`: minimum, maximum and mean. None: not in the codebook.
    """

    values: tuple[tuple[int, int, int], ...]  # first, last, people
    missing: Mapping[int, int]
    total: int | None
    summary: tuple[float, float, float] | None


def reference_of(dotted: str) -> str:
    """Return R00001.00 as R0000100."""
    return dotted.replace(".", "")


def read_variable_names(member: ArchiveMember) -> list[VariableName]:
    """Return the variables of an .sdf file, in the order of their columns.

    Raises:
        DataFileError: if the file lists no variables.
    """
    names: list[VariableName] = []
    for line in member.lines():
        if match := _SDF_ROW.match(line):
            question = re.split(r"\s{2,}", line.strip())[-1]
            names.append(VariableName(reference_of(match[1]), match[2], question))
    if not names:
        raise DataFileError(
            f"{member.label}: no variables in it; its lines should be like "
            "'R00001.00  1979  IDENTIFICATION CODE  CASEID'; download the extract again",
            code="no-variables-listed",
        )
    return names


def read_codebook(member: ArchiveMember) -> dict[str, CodebookCounts]:
    """Return the counts of every variable of a .cdb file, by reference number.

    Raises:
        DataFileError: if the file has no counts.
    """
    counts: dict[str, CodebookCounts] = {}
    block: list[str] = []
    for line in member.lines():
        if _BLOCK_END.match(line.strip()):
            counts.update(_block_counts(block))
            block = []
        elif len(block) < _MOST_LINES:
            block.append(line)
        else:
            what = f"{_MOST_LINES:,} lines without the line of dashes that ends a variable's block"
            raise DataFileError(
                f"{member.label}: {what}, so it is no codebook; download it again", code="invalid-codebook"
            )
    counts.update(_block_counts(block))
    if not counts:
        raise DataFileError(
            f"{member.label}: no variable in it, so the extract cannot be checked; download it again, or remove this "
            "file to read the extract unchecked",
            code="empty-codebook",
        )
    return counts


def check_counts(columns: Mapping[str, Values], codebook: Mapping[str, CodebookCounts], files: ExtractFiles) -> None:
    """Compare the columns of a table with the codebook that came with it.

    Args:
        columns: values by reference number, [people] each.
        codebook: expected counts.
        files: files of the extract.

    Raises:
        DataFileError: with the number of differences and the first ten.
    """
    problems = Problems(files.table.label, "column")
    for place, (reference, values) in enumerate(columns.items(), start=1):
        if (expected := codebook.get(reference)) is None:
            label = files.codebook.label.name if files.codebook else "the codebook"
            problems.add(place, reference, f"{label} does not know this variable; the two are not of one download")
            continue
        for difference in _differences(values, expected):
            problems.add(place, reference, difference)
    problems.reject_if_any("the file has been cut or changed since it was downloaded; download the extract again")


def _differences(values: Values, expected: CodebookCounts) -> Iterator[str]:
    observed = Counter(values.tolist())
    # A range of values may run below zero, through the codes for missing, which it does not count.
    valid = {value: people for value, people in observed.items() if value not in MISSING_KINDS}
    for first, last, people in expected.values:
        number = sum(count for value, count in valid.items() if first <= value <= last)
        if number != people:
            span = f"the value {first}" if first == last else f"a value from {first} to {last}"
            yield f"{number:,} people have {span}, the codebook says {people:,}"
    for codes in _MISSING_TOGETHER:
        number, people = (sum(counts.get(code, 0) for code in codes) for counts in (observed, expected.missing))
        if number != people:
            kinds = " or ".join(f"{MISSING_KINDS[code]} ({code})" for code in codes)
            yield f"{number:,} people have {kinds}, the codebook says {people:,}"
    number = sum(people for value, people in observed.items() if value not in _NOT_IN_TOTAL)
    if expected.total is not None and number != expected.total:
        yield f"{number:,} people have been asked, the codebook says {expected.total:,}"
    if expected.summary is None or not valid:
        return
    mean = sum(value * people for value, people in valid.items()) / sum(valid.values())
    facts = (
        ("smallest value", min(valid), expected.summary[0], 0.0),
        ("largest value", max(valid), expected.summary[1], 0.0),
    )
    for what, actual, stated, rounding in (
        *facts,
        ("mean", mean, expected.summary[2], _MEAN_ROUNDING),
    ):
        if abs(actual - stated) > rounding:
            yield f"the {what} is {actual:g}, the codebook says {stated:g}"


def _block_counts(block: list[str]) -> dict[str, CodebookCounts]:
    head = next((match for line in block if (match := _BLOCK_HEAD.match(line))), None)
    if head is None:
        return {}
    end = next((place for place, line in enumerate(block) if _SUM_LINE.match(line)), 0)
    values: list[tuple[int, int, int]] = []
    for line in block[:end]:
        if match := _COUNT.match(line):
            values.append((int(match[2]), int(match[3] or match[2]), int(match[1])))
    # The text of a question can look like a count; then there are more than the sum below the line says. There can be
    # fewer: some people have values between the ranges that are listed.
    total_text = block[end + 1].strip() if 0 < end < len(block) - 1 else ""
    if (
        not total_text.isascii()
        or not total_text.isdigit()
        or len(total_text) > _MOST_DIGITS
        or sum(people for _, _, people in values) > int(total_text)
    ):
        values = []
    missing = {int(code): int(people) for line in block for _, code, people in _MISSING.findall(line)}
    total = next((int(match[1]) for line in block if (match := _TOTAL.search(line))), None)
    numbers = next((match for line in block if (match := _SUMMARY.match(line))), None)
    summary = None if numbers is None else (float(numbers[1]), float(numbers[2]), float(numbers[3]))
    return {reference_of(head[1]): CodebookCounts(tuple(values), missing, total, summary)}
