"""Read the NLSY79 wage panel that the package linearmodels ships: 545 men, 1980-87, nine occupation groups.

Source: Vella and Verbeek (1998), Journal of Applied Econometrics 13. Birth year is not in the file; it follows from
potential experience, which the authors define as age - schooling - 6. The reader opens the package's file without
importing the package, so that it can be installed without its dependencies.
"""

from __future__ import annotations

import bz2
import csv
import hashlib
import importlib.util
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from laborllm_dist.careers.readers.reader import Reader, SourceTerms, as_people
from laborllm_dist.careers.types import CareerHistory, Job, OccupationVocabulary
from laborllm_dist.errors import DataFileError, missing_package

AGE_AT_SCHOOL_START = 6
OCCUPATIONS = {
    1: "Professional, technical",
    2: "Managers, officials, proprietors",
    3: "Sales",
    4: "Clerical",
    5: "Craftsmen, foremen",
    6: "Operatives",
    7: "Laborers and farmers",
    8: "Farm laborers and foremen",
    9: "Service workers",
}


def wage_panel_vocabulary() -> OccupationVocabulary:
    """Return the nine occupation groups."""
    return OccupationVocabulary(codes=tuple(map(str, OCCUPATIONS)), titles=tuple(OCCUPATIONS.values()))


def wage_panel_content() -> bytes:
    """Return the panel as the package ships it, in CSV.

    Raises:
        MissingPackageError: if the package linearmodels is not installed.
        DataFileError: if its file cannot be read.
    """
    package = importlib.util.find_spec("linearmodels")
    if package is None or package.origin is None:
        raise missing_package("linearmodels")
    path = Path(package.origin).parent / "datasets/wage_panel/wage_panel.csv.bz2"
    try:
        return bz2.decompress(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataFileError(
            f"the wage panel at {path} cannot be read ({error}); install linearmodels again",
            code="unreadable-wage-panel",
        ) from None


def wage_panel_fingerprint() -> str:
    """Return a checksum of the panel's content, independent of the package's version."""
    return hashlib.sha256(wage_panel_content()).hexdigest()[:16]


def education_level(years_of_schooling: int) -> str:
    """Return the level of education that the text shows."""
    if years_of_schooling < 12:
        return "less than high school"
    if years_of_schooling == 12:
        return "high school"
    return "some college" if years_of_schooling < 16 else "college"


def read_wage_panel(*, survey: str) -> Iterator[CareerHistory]:
    """Yield the 545 careers, by person number."""
    rows_of: dict[int, list[dict[str, int]]] = defaultdict(list)
    columns = ["nr", "year", "occupation", "educ", "exper", "black", "hisp"]
    for row in csv.DictReader(wage_panel_content().decode().splitlines()):
        rows_of[int(row["nr"])].append({name: int(row[name]) for name in columns})
    for person, rows in sorted(rows_of.items()):
        rows.sort(key=lambda row: row["year"])
        first = rows[0]
        yield CareerHistory(
            person=str(person),
            survey=survey,
            birth_year=first["year"] - first["exper"] - first["educ"] - AGE_AT_SCHOOL_START,
            gender="male",
            ethnicity="african american" if first["black"] else "hispanic" if first["hisp"] else "white",
            region=None,
            jobs=tuple(Job(row["year"], str(row["occupation"]), education_level(row["educ"])) for row in rows),
        )


WAGE_PANEL: Reader[None] = Reader(
    people=lambda _, survey: as_people(read_wage_panel(survey=survey)),
    vocabulary=lambda _: wage_panel_vocabulary(),
    version=lambda: f"wage panel {wage_panel_fingerprint()}",
    terms=SourceTerms(
        title="Wage panel of young men, 1980 to 1987, from the NLSY79",
        access="Part of the Python package linearmodels (pip install --no-deps linearmodels); free, at once.",
        rights="Public-use data; the package has the NCSA license.",
        citation=(
            'Vella, Francis, and Marno Verbeek. 1998. "Whose Wages Do Unions Raise? A Dynamic Model of Unionism and '
            'Wage Rate Determination for Young Men." Journal of Applied Econometrics 13 (2): 163-183.'
        ),
        may_be_shared=True,
    ),
)
