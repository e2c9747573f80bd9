"""Read careers from an NLS extract: attributes of each person, and occupation, work and school of each interview.

A year counts if the person was interviewed: one of its yearly variables is not "not interviewed". The status is that
of the interview's week if the survey has that variable (NLSY79 to 1998, and 2006), else the most frequent one of the
weeks of the calendar year in the extract; a tie of working and not working is working. Code lists are those of the
surveys' codebooks.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from laborllm_dist.careers.occupations.occ1990dd import (
    Scheme,
    codes_or_states,
    crosswalk,
    occ1990dd_vocabulary,
    without_occupation,
)
from laborllm_dist.careers.person_records import PersonRecord, PersonThunk
from laborllm_dist.careers.readers.nls.codebook import MISSING_KINDS, NOT_INTERVIEWED, Values, read_variable_names
from laborllm_dist.careers.readers.nls.extract import Extract, column_names, read_extract
from laborllm_dist.careers.readers.nls.files import ExtractFiles, find_extract, nls_files
from laborllm_dist.careers.readers.nls.variables import (
    FIXED_CONCEPTS,
    Cohort,
    NlsVariable,
    nls_schemes,
    nls_variables,
    occupations_of,
    other_occupations,
    reject_missing,
    tagset_advice,
    weekly_variables,
    years_with_status,
)
from laborllm_dist.careers.readers.person_years import (
    PersonYear,
    Status,
    Worker,
    career_from_years,
    years_of_schooling_level,
)
from laborllm_dist.careers.readers.reader import Reader, SourceTerms
from laborllm_dist.careers.validation_report import Problems
from laborllm_dist.config.corpora import SurveySettings
from laborllm_dist.errors import DataFileError

GENDERS = {1: "male", 2: "female"}
REGIONS = {1: "northeast", 2: "north central", 3: "south", 4: "west"}
ETHNICITIES: Mapping[Cohort, Mapping[int, str]] = {
    "NLSY79": {1: "hispanic", 2: "black", 3: "non-black non-hispanic"},
    "NLSY97": {1: "black", 2: "hispanic", 3: "mixed race", 4: "non-black non-hispanic"},
}
ENROLLED: Mapping[Cohort, frozenset[int]] = {"NLSY79": frozenset({2, 3}), "NLSY97": frozenset({8, 9, 10, 11})}
INTERVIEW_STATUS: Mapping[int, Status] = {1: "working", 2: "unemployed", 3: "not_working", 4: "armed_forces"}
# Weeks: 1 and 5 out of the labor force, 2 not working (of unknown kind), 3 with an employer, 4 unemployed,
# the armed forces 6 (NLSY97) or 7 (NLSY79), and from 100 on the number of a job; 0 is unknown.
WEEK_STATUS: Mapping[int, Status] = {
    1: "not_working", 2: "not_told_apart", 3: "working", 4: "unemployed", 5: "not_working",
    6: "armed_forces", 7: "armed_forces",
}  # fmt: skip
FIRST_JOB_NUMBER = 100
DEGREES = {
    0: "less than high school", 1: "high school", 2: "high school", 3: "some college",
    4: "college", 5: "graduate school", 6: "graduate school", 7: "graduate school",
}  # fmt: skip
UNGRADED = 93  # from here on, grades are not numbers of years: kindergarten, ungraded
UNCODEABLE = (990, 9990)
# From here on the occupation is that of the present or last job; before, it is that of the interview's week.
FIRST_PRESENT_OR_LAST: Mapping[Cohort, int] = {"NLSY79": 2002, "NLSY97": 1997}


@dataclass(frozen=True, slots=True)
class _Cohort:
    """The columns of an extract by concept; `yearly[concept][year]`, `weeks[year]`."""

    name: Cohort
    fixed: Mapping[str, Values]
    yearly: Mapping[str, Mapping[int, Values]]
    weeks: Mapping[int, Sequence[Values]]
    schemes: Mapping[int, Scheme | None]


def nls_people(settings: SurveySettings, cohort: Cohort, *, survey: str) -> Iterator[PersonThunk]:
    """Yield the people of an extract, in its order.

    Raises:
        DataFileError: if the extract is unusable, or lacks variables that settings.variables requires.
    """
    files = find_extract(Path(settings.path))
    listed = read_variable_names(files.variables) if files.variables else []
    table = [*nls_variables(cohort), *other_occupations(cohort)]
    known = {variable.name.reference for variable in table}
    variables = [*table, *(each for each in weekly_variables(listed) if each.name.reference not in known)]
    _check_years(files, table, {name.reference: name.year for name in listed})
    extract = read_extract(files, [variable.name for variable in variables])
    _check_complete(extract, cohort, settings)
    columns = _by_meaning(extract, variables, cohort)
    _check_people(columns.fixed["person_id"], extract)
    _check_codes(extract, columns.fixed["person_id"])
    return (_person(columns, row, settings, survey) for row in range(extract.num_people))


def missing_variables(settings: SurveySettings, cohort: Cohort) -> list[str]:
    """Return the variables of the method that an extract lacks within the bounds of years: NAME (concept year).

    Raises:
        DataFileError: if no year of the extract has an occupation, or it has no person numbers.
    """
    label, there = _columns_there(settings, cohort)
    variables = _method_variables(cohort, settings, there)
    _check_essential(variables, there, cohort, label)
    return [
        f"{each.name.reference} ({each.concept} {each.year})" for each in variables if each.name.reference not in there
    ]


def occupations_there(settings: SurveySettings, cohort: Cohort) -> dict[int, NlsVariable]:
    """Return the variable that an extract has, or should have, for the occupation of each year."""
    return occupations_of(cohort, _columns_there(settings, cohort)[1])


def notes_of_extract(settings: SurveySettings, cohort: Cohort) -> list[str]:
    """Return notes for the data card about the years whose occupation is read from a substitute variable."""
    own = {each.year: each.name.reference for each in nls_variables(cohort) if each.concept == "occupation"}
    return [
        f"the occupation of {year} is {each.name.reference} ({each.name.question}, {each.scheme} codes), since "
        f"{own[year]} is not in the extract"
        for year, each in occupations_there(settings, cohort).items()
        if each.name.reference != own[year]
    ]


def _columns_there(settings: SurveySettings, cohort: Cohort) -> tuple[str, set[str]]:
    """Return the name of an extract's table, and the reference numbers of its columns."""
    files = find_extract(Path(settings.path))
    names = [each.name for each in (*nls_variables(cohort), *other_occupations(cohort))]
    return str(files.table.label), set(column_names(files, names))


def _method_variables(cohort: Cohort, settings: SurveySettings, there: Container[str]) -> list[NlsVariable]:
    """Return the variables to read within the bounds of years; for an occupation, the one that the extract has.

    Raises:
        DataFileError: if no year of the survey is within the bounds.
    """
    first, last = settings.first_year or 0, settings.last_year or 9999
    years = sorted(nls_schemes(cohort))
    if not any(first <= year <= last for year in years):
        raise DataFileError(
            f"{settings.path}: the {cohort} has no year from {settings.first_year} to {settings.last_year}; its "
            f"years are {years[0]} to {years[-1]}",
            code="no-survey-year-in-range",
        )
    occupations = occupations_of(cohort, there)
    table = [occupations[each.year] if each.concept == "occupation" else each for each in nls_variables(cohort)]
    return [each for each in table if each.concept in FIXED_CONCEPTS or first <= each.year <= last]


def _check_years(files: ExtractFiles, table: Sequence[NlsVariable], years: Mapping[str, str]) -> None:
    """Check the years of the extract's own list of variables: another year means another cohort, or a damaged file."""
    for variable in table:
        year = years.get(variable.name.reference, variable.name.year)
        if year not in (variable.name.year, "XRND"):
            assert files.variables is not None  # it is the source of the years
            raise DataFileError(
                f"{files.variables.label}: {variable.name.reference} is of {year} in the extract's list of variables, "
                f"of {variable.name.year} in the survey's; is it of another cohort? If not, download it again",
                code="variable-year-mismatch",
            )


def _check_complete(extract: Extract, cohort: Cohort, settings: SurveySettings) -> None:
    label, variables = str(extract.table.label), _method_variables(cohort, settings, extract.columns)
    _check_essential(variables, extract.columns, cohort, label)
    if settings.variables == "all":
        missing = [each for each in variables if each.name.reference not in extract.columns]
        reject_missing(missing, cohort, label, may_go_on=True)


def _check_essential(variables: Sequence[NlsVariable], there: Container[str], cohort: Cohort, extract: str) -> None:
    """Check that an extract has person numbers and at least one occupation within the bounds of years.

    Raises:
        DataFileError: naming the missing variables, and the tagset to upload.
    """
    numbers = [each for each in variables if each.concept == "person_id" and each.name.reference not in there]
    reject_missing(numbers, cohort, extract, may_go_on=False)
    occupations = [each for each in variables if each.concept == "occupation"]
    if not any(each.name.reference in there for each in occupations):
        shown = ", ".join(f"{each.name.reference} ({each.year})" for each in occupations[:3])
        raise DataFileError(
            f"{extract}: no year has an occupation: none of the {len(occupations)} occupations of the {cohort} "
            f"({shown} ...) is in this extract; {tagset_advice(cohort)}",
            code="no-occupation-variables",
        )


def _by_meaning(extract: Extract, variables: Sequence[NlsVariable], cohort: Cohort) -> _Cohort:
    fixed: dict[str, Values] = {}
    yearly: dict[str, dict[int, Values]] = {}
    weeks: dict[int, list[Values]] = {}
    for variable in variables:
        if (values := extract.columns.get(variable.name.reference)) is None:
            continue
        if variable.concept in FIXED_CONCEPTS:
            fixed[variable.concept] = values
        elif variable.concept == "weekly_status":
            weeks.setdefault(variable.year, []).append(values)
        else:
            yearly.setdefault(variable.concept, {})[variable.year] = values
    occupations = occupations_of(cohort, extract.columns)
    yearly["occupation"] = {
        year: extract.columns[each.name.reference]
        for year, each in occupations.items()
        if each.name.reference in extract.columns
    }
    return _Cohort(cohort, fixed, yearly, weeks, {year: each.scheme for year, each in occupations.items()})


def _check_people(person_ids: Values, extract: Extract) -> None:
    numbers, counts = np.unique(person_ids, return_counts=True)
    if numbers[0] <= 0 or counts.max() > 1:
        wrong = int(numbers[0]) if numbers[0] <= 0 else int(numbers[counts.argmax()])
        what = "not above 0" if wrong <= 0 else "there twice"
        raise DataFileError(
            f"{extract.table.label}: the person number {wrong} is {what}; a row must be one person, so download the "
            "extract again",
            code="invalid-person-number",
        )


def _check_codes(extract: Extract, person_ids: Values) -> None:
    problems = Problems(extract.table.label, "person")
    for reference, values in extract.columns.items():
        for row in np.flatnonzero(values < min(MISSING_KINDS)):
            problems.add(int(person_ids[row]), reference, f"{values[row]} is no code of this variable, nor for missing")
    problems.reject_if_any("download the extract again and leave its files as they are")


def _person(columns: _Cohort, row: int, settings: SurveySettings, survey: str) -> PersonThunk:
    def read() -> PersonRecord:
        fixed = {concept: int(values[row]) for concept, values in columns.fixed.items()}
        worker = Worker(
            person=str(fixed["person_id"]),
            survey=survey,
            birth_year=_birth_year(fixed.get("birth_year", 0)),
            gender=GENDERS.get(fixed.get("sex", 0)),
            ethnicity=ETHNICITIES[columns.name].get(fixed.get("race_ethnicity", 0)),
        )
        return career_from_years(worker, _interviews(columns, row), settings)

    return read


def _birth_year(value: int) -> int | None:
    if value <= 0:
        return None
    return 1900 + value if value < 100 else value


def _interviews(columns: _Cohort, row: int) -> Iterator[PersonYear]:
    """Yield the years of the extract's occupations in which a person was interviewed."""
    for year, occupations in sorted(columns.yearly.get("occupation", {}).items()):
        code = int(occupations[row])
        values = [int(by_year[year][row]) for by_year in columns.yearly.values() if year in by_year]
        if all(value == NOT_INTERVIEWED for value in values):
            continue
        scheme = columns.schemes[year]
        assert scheme is not None  # every occupation of the table has one
        occupation, why_none = _occupation(code, scheme)
        yield PersonYear(
            year=year,
            status=_status(columns, year, row),
            occupation=occupation,
            why_none=why_none,
            may_be_last=year >= FIRST_PRESENT_OR_LAST[columns.name],
            education=_education(columns, year, row),
            region=REGIONS.get(_value(columns, "region", year, row)),
            unmapped_code=str(code) if why_none == without_occupation(scheme) else None,
        )


def _value(columns: _Cohort, concept: str, year: int, row: int) -> int:
    by_year = columns.yearly.get(concept, {})
    return int(by_year[year][row]) if year in by_year else NOT_INTERVIEWED


def _occupation(code: int, scheme: Scheme) -> tuple[str | None, str | None]:
    """Return the occupation, or None and the reason why it is missing."""
    if (occupation := crosswalk(scheme).get(code)) is not None:
        return occupation, None
    if code < 0:
        return None, MISSING_KINDS[code]
    if code == 0 or code in UNCODEABLE:
        return None, "none given" if code == 0 else "not codeable"
    return None, without_occupation(scheme)


def _status(columns: _Cohort, year: int, row: int) -> Status | None:
    status = INTERVIEW_STATUS.get(_value(columns, "employment_status", year, row))
    if status is None:
        status = _status_of_weeks([int(values[row]) for values in columns.weeks.get(year, ())])
    if status == "not_working" and _value(columns, "enrollment", year, row) in ENROLLED[columns.name]:
        return "enrolled"
    return status


def _status_of_weeks(weeks: Sequence[int]) -> Status | None:
    """Return the most frequent status; ties go to working, unemployed, not working, not distinguished, in this order.

    Weeks in the armed forces are working weeks; if they are most of these, the status is armed forces.
    """
    order: tuple[Status, ...] = ("working", "unemployed", "not_working", "not_told_apart")
    statuses = ["working" if week >= FIRST_JOB_NUMBER else WEEK_STATUS.get(week) for week in weeks]
    num_military = statuses.count("armed_forces")
    counts = [statuses.count(status) for status in order]
    counts[0] += num_military
    if not any(counts):
        return None
    if 2 * counts[0] >= sum(counts):
        return "armed_forces" if 2 * num_military > counts[0] else "working"
    return order[1 + max(range(3), key=counts[1:].__getitem__)]


def _education(columns: _Cohort, year: int, row: int) -> str | None:
    """Return the level of education from degree and grades; college years without a degree are "some college"."""
    grades, degree = (_value(columns, concept, year, row) for concept in ("highest_grade", "highest_degree"))
    by_grades = years_of_schooling_level(grades) if 0 <= grades < UNGRADED else None
    by_degree = DEGREES.get(degree)
    if by_degree in (None, "less than high school", "high school"):
        beyond = columns.name == "NLSY97" and by_degree is not None and by_grades is not None and grades > 12
        return "some college" if beyond else by_degree or by_grades
    return by_degree


def _reader_of(cohort: Cohort) -> Reader[SurveySettings]:
    def reachable_by_year(settings: SurveySettings) -> dict[int, frozenset[str]]:
        there = occupations_there(settings, cohort)
        schemes = {year: each.scheme for year, each in there.items() if each.scheme is not None}
        return codes_or_states(schemes, with_states=years_with_status(cohort))

    return Reader(
        people=lambda settings, survey: nls_people(settings, cohort, survey=survey),
        vocabulary=lambda _: occ1990dd_vocabulary(),
        files=lambda settings: nls_files(Path(settings.path)),
        missing_variables=lambda settings: missing_variables(settings, cohort),
        reachable_by_year=reachable_by_year,
        notes=lambda settings: notes_of_extract(settings, cohort),
        terms=_terms_of(cohort),
    )


def _terms_of(cohort: Cohort) -> SourceTerms:
    title = f"National Longitudinal Survey of Youth {'1979' if cohort == 'NLSY79' else '1997'}"
    return SourceTerms(
        title=title,
        access=(
            "Public-use data of the NLS Investigator (https://www.nlsinfo.org/investigator): free, downloaded at once; "
            "the tagset that comes with this software selects the variables."
        ),
        rights="Public-use data, free of charge; geographic identifiers below the region are not part of them.",
        citation=(
            f"Bureau of Labor Statistics, U.S. Department of Labor. {title} cohort (rounds used: [Authors]). Produced "
            "and distributed by the Center for Human Resource Research (CHRR), The Ohio State University. Columbus, "
            "OH: YEAR."
        ),
        may_be_shared=True,
    )


NLSY79, NLSY97 = _reader_of("NLSY79"), _reader_of("NLSY97")
