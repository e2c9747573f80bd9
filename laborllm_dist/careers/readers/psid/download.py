"""Read the columns of a PSID download, and join families to people.

A file with ER30001 and ER30002 has individuals: a record is a person, and a cart has the family's variables in the same
records. Several such files (a cart split by years) are joined by person number. A file without them has the families of
a year: they are joined by the interview number of the year in the individuals' files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from laborllm_dist.careers.readers.psid.concepts import (
    INTERVIEW_1968,
    PEOPLE,
    PERSON_NUMBER,
    SEX,
    Role,
    concepts_of,
    occupation_concept,
    psid_variables,
    psid_years,
    reject_missing,
)
from laborllm_dist.careers.readers.psid.layout import read_layout
from laborllm_dist.careers.readers.psid.records import BLANK, Column, read_columns
from laborllm_dist.careers.readers.psid.sources import Source, find_sources
from laborllm_dist.config.corpora import SurveySettings
from laborllm_dist.errors import DataFileError

Concepts = Mapping[str, tuple[str, int]]  # variable -> concept, year
_FAMILY_NUMBER = "fam_interview_no"


@dataclass(frozen=True, slots=True)
class Download:
    """Columns of all files with one value per person, [people]; BLANK if a person has none."""

    people: npt.NDArray[np.int64]
    columns: Mapping[str, Column]
    years: Sequence[int]

    def value(self, concept: str, year: int, person: int) -> int:
        """Return a value of a person's year; BLANK if it or its variable is missing."""
        column = self.columns.get(psid_variables().get((concept, year), ""))
        return BLANK if column is None else int(column[person])


def read_download(settings: SurveySettings) -> Download:
    """Read the variables of the method from a download.

    Raises:
        DataFileError: if files are damaged or contradict each other, or lack variables that settings.variables
            requires.
    """
    years, concepts = _years_and_concepts(settings)
    sources = find_sources(Path(settings.path))
    files = [read_columns(each.data, read_layout(each.setup), (*concepts, *PEOPLE, SEX)) for each in sources]
    _check_complete(set().union(*files), concepts, years, settings)
    _check_once(sources, files)
    individuals = [number for number, file in enumerate(files) if set(PEOPLE) <= file.keys()]
    people, columns = _join_people([(sources[number], files[number]) for number in individuals])
    for number, file in enumerate(files):
        if number not in individuals:
            columns |= _by_person(sources[number], file, concepts, columns, len(people))
    return Download(people, columns, years)


def missing_variables(settings: SurveySettings) -> list[str]:
    """Return the variables of the method that a download lacks, as the set-up files list them: NAME (concept year).

    Raises:
        DataFileError: if no year of the download has an occupation, or it has no person numbers.
    """
    years, concepts = _years_and_concepts(settings)
    there = {
        variable.name
        for source in find_sources(Path(settings.path))
        for variable in read_layout(source.setup).variables
    }
    reject_missing([("person", 0, name) for name in PEOPLE if name not in there], settings.path, may_go_on=False)
    _check_occupations(there, concepts, years, settings)
    return [
        f"{name} ({concept} {year})"
        for name, (concept, year) in concepts.items()
        if name not in there and concept != _FAMILY_NUMBER
    ]


def _years_and_concepts(settings: SurveySettings) -> tuple[list[int], Concepts]:
    years = psid_years(settings.first_year, settings.last_year)
    if not years:
        known = psid_years(None, None)
        raise DataFileError(
            f"{settings.path}: the PSID has no year from {settings.first_year} to {settings.last_year}; its years "
            f"are {known[0]} to {known[-1]}",
            code="no-survey-year-in-range",
        )
    return years, {
        variable: (concept, year)
        for year in years
        for concept in concepts_of(year)
        if (variable := psid_variables().get((concept, year))) is not None
    }


def _check_complete(available: set[str], concepts: Concepts, years: Sequence[int], settings: SurveySettings) -> None:
    missing = [(concept, year, name) for name, (concept, year) in concepts.items() if name not in available]
    missing += [("person", 0, name) for name in (*PEOPLE, SEX) if name not in available]
    if settings.variables == "all":
        _check_occupations(available, concepts, years, settings)
        has_families = any(concept == _FAMILY_NUMBER for name, (concept, _) in concepts.items() if name in available)
        # A cart has the family's interview number as the individual's; only files of families need their own.
        needed = [each for each in missing if has_families or each[0] != _FAMILY_NUMBER]
        reject_missing(needed, settings.path, may_go_on=True)
        return
    reject_missing([("person", 0, name) for name in PEOPLE if name not in available], settings.path, may_go_on=False)
    _check_occupations(available, concepts, years, settings)


def _check_occupations(available: set[str], concepts: Concepts, years: Sequence[int], settings: SurveySettings) -> None:
    """Check that a download has the variables of an observation for at least one year.

    Raises:
        DataFileError: naming the missing occupations and person variables.
    """
    if any(_is_readable(year, available) for year in years):
        return
    keys = ("ind_interview_no", "sequence_no", "relation_to_rp")
    needed = [
        (concept, year, name)
        for name, (concept, year) in concepts.items()
        if name not in available and (concept in keys or "_occ_" in concept)
    ]
    place = f"{settings.path}: no year from {years[0]} to {years[-1]} has an occupation of a known person"
    reject_missing(needed, place, may_go_on=False)


def _is_readable(year: int, available: set[str]) -> bool:
    """Return whether a year has the variables of an observation."""
    keys = ["ind_interview_no", "relation_to_rp", *(["sequence_no"] if year > 1968 else [])]
    occupations = [occupation_concept(Role(prefix), year) for prefix in ("rp", "sp")]
    there = {concept for concept in (*keys, *occupations) if psid_variables().get((concept, year)) in available}
    return there >= set(keys) and bool(there & set(occupations))


def _check_once(sources: Sequence[Source], files: Sequence[Mapping[str, Column]]) -> None:
    """Check that no variable is in two files, since only one of them would be read."""
    place_of: dict[str, int] = {}
    for number, file in enumerate(files):
        for name in file:
            first = place_of.setdefault(name, number)
            if first != number and name not in (*PEOPLE, SEX):
                raise DataFileError(
                    f"{sources[number].data.label}: {name} is in {sources[first].data.label} too; a download must "
                    "have each variable once, so leave one of the two files out",
                    code="variable-in-two-files",
                )


def _join_people(
    individuals: Sequence[tuple[Source, Mapping[str, Column]]],
) -> tuple[npt.NDArray[np.int64], dict[str, Column]]:
    """Return person numbers, in order of first appearance, and the columns of all files of individuals by person."""
    numbers = [_person_numbers(source, file) for source, file in individuals]
    _, first = np.unique(np.concatenate(numbers), return_index=True)
    people = np.concatenate(numbers)[np.sort(first)]
    columns: dict[str, Column] = {}
    for each, (_, file) in zip(numbers, individuals, strict=True):
        rows = _rows_of(people, each)
        for name, column in file.items():
            values = _taken(column, rows)
            before = columns.get(name)
            columns[name] = values if before is None else np.where(before == BLANK, values, before)
    return people, columns


def _person_numbers(source: Source, file: Mapping[str, Column]) -> npt.NDArray[np.int64]:
    people = file[INTERVIEW_1968].astype(np.int64) * 1000 + file[PERSON_NUMBER]
    values, times = np.unique(people, return_counts=True)
    if values[0] > 1000 and times.max() == 1:
        return people
    wrong, what = (values[0], "is no person") if values[0] <= 1000 else (values[times.argmax()], "appears twice")
    lines = [str(row + 1) for row in np.flatnonzero(people == wrong)[:2]]
    raise DataFileError(
        f"{source.data.label}, line{'s' if len(lines) > 1 else ''} {' and '.join(lines)}: person {wrong} "
        f"({INTERVIEW_1968} x 1000 + {PERSON_NUMBER}) {what}; a record must be one person, so make a cart of all "
        "individuals",
        code="invalid-person-number",
    )


def _by_person(
    source: Source, file: Mapping[str, Column], concepts: Concepts, individuals: Mapping[str, Column], num_people: int
) -> dict[str, Column]:
    """Return the columns of a file of families by person, each with the values of the person's family."""
    places = sorted({concepts[name][1] for name in file if name in concepts})
    if not places:
        return {}
    label, year = source.data.label, places[0]
    if len(places) > 1:
        raise DataFileError(
            f"{label}: variables of the years {', '.join(map(str, places))} without {INTERVIEW_1968} and "
            f"{PERSON_NUMBER}; add these two to the cart, so that its records are people",
            code="no-person-variables",
        )
    families = file.get(psid_variables().get((_FAMILY_NUMBER, year), ""))
    if families is None:
        raise DataFileError(
            f"{label}: no {psid_variables().get((_FAMILY_NUMBER, year))}, the interview number that joins families of "
            f"{year} to people; download the file whole",
            code="no-interview-number",
        )
    values, times = np.unique(families, return_counts=True)
    if times.max() > 1:
        twice = values[times.argmax()]
        lines = " and ".join(str(row + 1) for row in np.flatnonzero(families == twice)[:2])
        raise DataFileError(
            f"{label}, lines {lines}: the family with interview number {twice} appears twice; download the file again",
            code="duplicate-interview-number",
        )
    of_person = individuals.get(psid_variables().get(("ind_interview_no", year), ""), np.full(num_people, BLANK))
    rows = _rows_of(of_person, families)
    return {name: _taken(column, rows) for name, column in file.items() if name in concepts}


def _rows_of(numbers: npt.NDArray[np.integer], keys: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """Return the index of every requested number in the keys, which are unique; -1 if it is missing."""
    order = np.argsort(keys)
    at = np.minimum(np.searchsorted(keys, numbers, sorter=order), len(keys) - 1)
    rows = order[at]
    return np.where(keys[rows] == numbers, rows, -1)


def _taken(column: Column, rows: npt.NDArray[np.int64]) -> Column:
    return np.where(rows >= 0, column[rows], BLANK).astype(np.int32)
