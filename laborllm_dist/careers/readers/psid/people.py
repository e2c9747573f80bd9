"""Read careers from a PSID download: occupation, work and school of each year of a person.

In a year, the individual's interview number, sequence number and relation say whether the person was head or spouse;
the family's columns of that role have occupation and employment status. Children and other members of a family are
not observed. The occupation is that of the present job to 2001, and of the present or last one from 2003 on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from laborllm_dist.careers.occupations.occ1990dd import (
    codes_or_states,
    crosswalk,
    occ1990dd_vocabulary,
    without_occupation,
)
from laborllm_dist.careers.person_records import Exclusion, PersonRecord, PersonThunk
from laborllm_dist.careers.readers.person_years import PersonYear, Worker, career_from_years, years_of_schooling_level
from laborllm_dist.careers.readers.psid.concepts import (
    FIRST_1970_CODES,
    FIRST_2000_CODES,
    GENDERS,
    PRESENT,
    REGIONS,
    SEX,
    Role,
    ethnicity_of,
    occupation_concept,
    psid_schemes,
    role_of,
    scheme_of,
    status_of,
)
from laborllm_dist.careers.readers.psid.download import Download, missing_variables, read_download
from laborllm_dist.careers.readers.psid.records import BLANK
from laborllm_dist.careers.readers.psid.sources import psid_files
from laborllm_dist.careers.readers.reader import Reader, SourceTerms
from laborllm_dist.config.corpora import SurveySettings

POSTGRADUATE = 17  # the highest number of grades; above are codes for missing
OLDEST, FIRST_BIRTH_YEAR = 120, 1850
_MILITARY = {600: "905"}  # the PSID's own code beside the 1970 codes
_NOT_ASCERTAINED = (999, 9999)


def psid_people(settings: SurveySettings, *, survey: str) -> Iterator[PersonThunk]:
    """Yield the people of a download, in its order.

    Raises:
        DataFileError: if the download is unusable, or lacks variables that settings.variables requires.
    """
    download = read_download(settings)
    return (_reader(download, row, settings, survey) for row in range(len(download.people)))


def _reader(download: Download, row: int, settings: SurveySettings, survey: str) -> PersonThunk:
    def read() -> PersonRecord:
        roles = list(_roles(download, row))
        sex = download.columns.get(SEX)
        worker = Worker(
            person=str(download.people[row]),
            survey=survey,
            birth_year=_birth_year(download, row),
            gender=None if sex is None else GENDERS.get(int(sex[row])),
            ethnicity=_most_frequent(_ethnicities(download, row, roles)),
        )
        if not roles:
            return PersonRecord(None, (Exclusion("never head or spouse in these years"),))
        return career_from_years(worker, [_person_year(download, row, *each) for each in roles], settings)

    return read


def _roles(download: Download, row: int) -> Iterator[tuple[int, Role]]:
    """Yield the years in which a person was present as head or spouse."""
    for year in download.years:
        present = year == 1968 or download.value("sequence_no", year, row) in PRESENT
        if present and download.value("ind_interview_no", year, row) > 0:
            role = role_of(download.value("relation_to_rp", year, row), year)
            if role is not None:
                yield year, role


def _person_year(download: Download, row: int, year: int, role: Role) -> PersonYear:
    grades = download.value("grades_completed", year, row)
    code = download.value(occupation_concept(role, year), year, row)
    occupation, why_none = _occupation(code, year)
    return PersonYear(
        year=year,
        status=status_of(download.value(f"{role.prefix}_employment_status", year, row), year),
        occupation=occupation,
        why_none=why_none,
        may_be_last=year >= FIRST_2000_CODES,
        education=years_of_schooling_level(grades) if 1 <= grades <= POSTGRADUATE else None,
        region=REGIONS.get(download.value("region", year, row)),
        unmapped_code=str(code) if why_none == without_occupation(scheme_of(year)) else None,
    )


def _occupation(code: int, year: int) -> tuple[str | None, str | None]:
    """Return the occupation, or None and the reason why it is missing."""
    scheme = scheme_of(year)
    if code == 0:
        return None, "not coded in retrospect" if year < FIRST_1970_CODES else "none given"
    if code == BLANK:
        return None, "not in the download"
    if code in _NOT_ASCERTAINED:
        return None, "not ascertained"
    own = _MILITARY.get(code) if scheme == "census1970" else None
    occupation = own or crosswalk(scheme).get(code)
    return occupation, None if occupation else without_occupation(scheme)


def _ethnicities(download: Download, row: int, roles: Sequence[tuple[int, Role]]) -> list[str]:
    codes = [
        ethnicity_of(
            download.value(f"{role.prefix}_race_1", year, row),
            download.value(f"{role.prefix}_hispanic", year, row),
            year,
        )
        for year, role in roles
    ]
    return [code for code in codes if code is not None]


def _birth_year(download: Download, row: int) -> int | None:
    """Return the most frequent recorded birth year, else the most frequent one computed from the age."""
    years = [download.value("birth_year", year, row) for year in download.years]
    stated = [str(year) for year in years if FIRST_BIRTH_YEAR <= year <= download.years[-1]]
    ages = [(year, download.value("age", year, row)) for year in download.years]
    derived = [str(year - age) for year, age in ages if 1 <= age <= OLDEST]
    most_frequent = _most_frequent(stated or derived)
    return None if most_frequent is None else int(most_frequent)


def _most_frequent(values: Sequence[str]) -> str | None:
    """Return the most frequent value; ties go to the first."""
    return Counter(values).most_common(1)[0][0] if values else None


PSID: Reader[SurveySettings] = Reader(
    people=lambda settings, survey: psid_people(settings, survey=survey),
    vocabulary=lambda _: occ1990dd_vocabulary(),
    files=lambda settings: psid_files(Path(settings.path)),
    missing_variables=missing_variables,
    reachable_by_year=lambda _: codes_or_states(psid_schemes(), with_states=set(psid_schemes())),
    terms=SourceTerms(
        title="Panel Study of Income Dynamics",
        access=(
            "Public-use files of the PSID Data Center (https://simba.isr.umich.edu): free, after registration and "
            "consent to the conditions of use; some minutes."
        ),
        rights=(
            "The conditions of use do not allow users to pass the data on. An extract may be deposited in openICPSR's "
            "PSID Public Data Extract Repository, where registered users get it. Ask the PSID before sharing weights "
            "of a model that was trained on them."
        ),
        citation=(
            "Panel Study of Income Dynamics, public use dataset. Produced and distributed by the Survey Research "
            "Center, Institute for Social Research, University of Michigan, Ann Arbor, MI (YEAR). Obtained DATE."
        ),
        may_be_shared=False,
    ),
)
