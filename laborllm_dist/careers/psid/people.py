"""From a PSID download to careers: join people to the families they were heads or spouses of, year by year.

A person is ER30001 * 1000 + ER30002. In a year, the individual's interview number, sequence number and relation say
whether the person was head or spouse, and of which family; the family's columns of that role have occupation and
employment status. In a cart the family's columns stand in the person's record; packaged family files are joined by
the interview number. Children and other members of a family are no observations.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from laborllm_dist.careers.occ1990dd import crosswalk
from laborllm_dist.careers.psid.concepts import (
    FIRST_1970_CODES,
    GENDERS,
    INTERVIEW_1968,
    PEOPLE,
    PERSON_NUMBER,
    PRESENT,
    REGIONS,
    SEX,
    Role,
    concepts_of,
    ethnicity_of,
    occupation_concept,
    psid_variables,
    psid_years,
    refuse_missing,
    role_of,
    scheme_of,
    status_of,
)
from laborllm_dist.careers.psid.layout import read_layout
from laborllm_dist.careers.psid.records import BLANK, Column, by_name, read_columns
from laborllm_dist.careers.psid.sources import find_sources
from laborllm_dist.careers.reading import PersonRead, ReadPerson
from laborllm_dist.careers.survey_years import PersonYear, Worker, career_from_years, years_of_schooling_level
from laborllm_dist.corpus_settings import SurveySettings
from laborllm_dist.errors import DataFileError

POSTGRADUATE = 17  # the highest number of grades; above are codes for missing
OLDEST, FIRST_BIRTH_YEAR = 120, 1850
_MILITARY = {600: "905"}  # the PSID's own code beside the 1970 codes
_NOT_ASCERTAINED = (999, 9999)


@dataclass(frozen=True, slots=True)
class _Download:
    """All columns; `rows[variable]` says where a person's value stands: None, in the person's own row."""

    columns: Mapping[str, Column]
    rows: Mapping[str, tuple[int, Mapping[int, int]] | None]  # (year, row of every family interview number)
    years: Sequence[int]
    num_people: int

    def value(self, concept: str, year: int, row: int) -> int:
        """Return a value of a person's year; BLANK where there is none, or no such variable."""
        variable = psid_variables().get((concept, year))
        if variable is None or (column := self.columns.get(variable)) is None:
            return BLANK
        if (family := self.rows[variable]) is not None:
            at = family[1].get(self.value("ind_interview_no", family[0], row))
            return BLANK if at is None else int(column[at])
        return int(column[row])


def psid_people(settings: SurveySettings, *, survey: str) -> Iterator[ReadPerson]:
    """Yield the people of a download, in its order.

    Raises:
        DataFileError: if the download is unusable, or lacks variables that settings.variables demands.
    """
    download = _read_download(settings)
    return (_reader(download, row, settings, survey) for row in range(download.num_people))


def _read_download(settings: SurveySettings) -> _Download:
    years = psid_years(settings.first_year, settings.last_year)
    wanted = {
        variable: (concept, year)
        for year in years
        for concept in concepts_of(year)
        if (variable := psid_variables().get((concept, year))) is not None
    }
    sources = find_sources(Path(settings.path))
    files = [read_columns(each.data, read_layout(each.setup), (*wanted, *PEOPLE, SEX)) for each in sources]
    found = by_name(files)
    _check_complete(found, wanted, years, settings)
    home, ids = found[INTERVIEW_1968]
    _check_people(ids, found[PERSON_NUMBER][1], sources[home].data.label)
    rows = {
        name: None if number == home else _family_rows(wanted[name][1], found) for name, (number, _) in found.items()
    }
    return _Download({name: column for name, (_, column) in found.items()}, rows, years, len(ids))


def _check_complete(
    found: Mapping[str, object], wanted: Mapping[str, tuple[str, int]], years: Sequence[int], settings: SurveySettings
) -> None:
    missing = [(concept, year, variable) for variable, (concept, year) in wanted.items() if variable not in found]
    missing += [("person", 0, variable) for variable in (*PEOPLE, SEX) if variable not in found]
    if settings.variables == "all":
        one_file = "fam_interview_no" in {wanted[name][0] for name in found if name in wanted}
        # A cart has the family's interview number as the individual's; only separate files need both.
        needed = [each for each in missing if one_file or each[0] != "fam_interview_no"]
        refuse_missing(needed, settings.path)
        return
    refuse_missing([("person", 0, variable) for variable in PEOPLE if variable not in found], settings.path)
    if not any(_is_readable(year, found) for year in years):
        keys = ("ind_interview_no", "sequence_no", "relation_to_rp")
        refuse_missing([each for each in missing if each[0] in keys or "_occ_" in each[0]], settings.path)


def _is_readable(year: int, found: Mapping[str, object]) -> bool:
    """Return whether a year has what an observation needs."""
    keys = ["ind_interview_no", "relation_to_rp", *(["sequence_no"] if year > 1968 else [])]
    occupations = [occupation_concept(Role(prefix), year) for prefix in ("rp", "sp")]
    there = {concept for concept in (*keys, *occupations) if psid_variables().get((concept, year)) in found}
    return there >= set(keys) and bool(there & set(occupations))


def _family_rows(year: int, found: Mapping[str, tuple[int, Column]]) -> tuple[int, Mapping[int, int]]:
    """Return the year of a family file and its row of every interview number."""
    variable = psid_variables().get(("fam_interview_no", year), "")
    if variable not in found:
        raise DataFileError(f"the family file of {year} has no {variable}, which joins it to people; download it whole")
    return year, {int(number): row for row, number in enumerate(found[variable][1])}


def _check_people(families: Column, numbers: Column, place: Path) -> None:
    people, times = np.unique(families.astype(np.int64) * 1000 + numbers, return_counts=True)
    if people[0] <= 1000 or times.max() > 1:
        person = int(people[0]) if people[0] <= 1000 else int(people[times.argmax()])
        what = "is no person" if person <= 1000 else "stands twice"
        raise DataFileError(
            f"{place}: person {person} ({INTERVIEW_1968} x 1000 + {PERSON_NUMBER}) {what}; a record must be one "
            "person, so make a cart of all individuals"
        )


def _reader(download: _Download, row: int, settings: SurveySettings, survey: str) -> ReadPerson:
    def read() -> PersonRead:
        roles = list(_roles(download, row))
        sex = download.columns.get(SEX)
        worker = Worker(
            person=str(int(download.columns[INTERVIEW_1968][row]) * 1000 + int(download.columns[PERSON_NUMBER][row])),
            survey=survey,
            birth_year=_birth_year(download, row),
            gender=None if sex is None else GENDERS.get(int(sex[row])),
            ethnicity=_most_frequent(_ethnicities(download, row, roles)),
        )
        if not roles:
            return PersonRead(None)  # never head or spouse: not of the study's people
        return career_from_years(worker, [_person_year(download, row, *each) for each in roles], settings)

    return read


def _roles(download: _Download, row: int) -> Iterator[tuple[int, Role]]:
    """Yield the years in which a person was present as head or spouse."""
    for year in download.years:
        present = year == 1968 or download.value("sequence_no", year, row) in PRESENT
        if present and download.value("ind_interview_no", year, row) > 0:
            role = role_of(download.value("relation_to_rp", year, row), year)
            if role is not None:
                yield year, role


def _person_year(download: _Download, row: int, year: int, role: Role) -> PersonYear:
    grades = download.value("grades_completed", year, row)
    occupation, why_none = _occupation(download.value(occupation_concept(role, year), year, row), year)
    return PersonYear(
        year=year,
        status=status_of(download.value(f"{role.prefix}_employment_status", year, row), year),
        occupation=occupation,
        why_none=why_none,
        education=years_of_schooling_level(grades) if 1 <= grades <= POSTGRADUATE else None,
        region=REGIONS.get(download.value("region", year, row)),
    )


def _occupation(code: int, year: int) -> tuple[str | None, str | None]:
    """Return the occupation, or None and why there is none."""
    scheme = scheme_of(year)
    if code == 0:
        return None, "not coded in retrospect" if year < FIRST_1970_CODES else "none given"
    if code == BLANK:
        return None, "not in the download"
    if code in _NOT_ASCERTAINED:
        return None, "not ascertained"
    own = _MILITARY.get(code) if scheme == "census1970" else None
    occupation = own or crosswalk(scheme).get(code)
    return occupation, None if occupation else f"code without occ1990dd ({scheme})"


def _ethnicities(download: _Download, row: int, roles: Sequence[tuple[int, Role]]) -> list[str]:
    codes = [
        ethnicity_of(
            download.value(f"{role.prefix}_race_1", year, row),
            download.value(f"{role.prefix}_hispanic", year, row),
            year,
        )
        for year, role in roles
    ]
    return [code for code in codes if code is not None]


def _birth_year(download: _Download, row: int) -> int | None:
    """Return the birth year on record most often, else the one that follows most often from the age."""
    years = [download.value("birth_year", year, row) for year in download.years]
    stated = [str(year) for year in years if FIRST_BIRTH_YEAR <= year <= download.years[-1]]
    ages = [(year, download.value("age", year, row)) for year in download.years]
    derived = [str(year - age) for year, age in ages if 1 <= age <= OLDEST]
    found = _most_frequent(stated or derived)
    return None if found is None else int(found)


def _most_frequent(values: Sequence[str]) -> str | None:
    """Return the most frequent value, of equally frequent ones the first."""
    return Counter(values).most_common(1)[0][0] if values else None
