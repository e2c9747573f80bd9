"""Make extracts of the NLS Investigator for people that a test writes by hand."""

from __future__ import annotations

import zipfile
from pathlib import Path

from laborllm_dist.careers.readers.nls.variables import Cohort, nls_variables
from laborllm_dist.careers.types import CareerHistory, Job

# By concept and year; a yearly variable that is not given is a valid skip (-4), or -5 in a year without interview.
Person = dict[tuple[str, int], int]


def made_rows(cohort: Cohort, people: list[Person], interviews: list[set[int]]) -> list[list[int]]:
    """Return the values of every variable of the tagset, in the order of the table."""
    rows = []
    for person, years in zip(people, interviews, strict=True):
        rows.append([
            person.get((each.concept, each.year), -4 if each.year in years or each.year in (1978, 1979, 1997) else -5)
            if each.concept != "weekly_status"
            else person.get((f"week {each.name.question}", 0), person.get((each.concept, each.year), -5))
            for each in nls_variables(cohort)
        ])  # fmt: skip
    return rows


def made_codebook(cohort: Cohort, rows: list[list[int]]) -> str:
    """Return a codebook with the counts of these rows, in the site's layout; values from 1000 on in one range."""
    blocks = []
    for place, each in enumerate(nls_variables(cohort)):
        values = [row[place] for row in rows]
        valid = sorted(value for value in values if value >= 0)
        counts = {code: values.count(code) for code in (-1, -2, -3, -4, -5)}
        lines = [
            f"{each.name.reference[:-2]}.{each.name.reference[-2:]}    [{each.name.question}]   Survey Year: {each.name.year}"
        ]
        lines += ["  PRIMARY VARIABLE", "", f"             {each.concept.upper()}", ""]
        small = sorted({value for value in valid if value < 1000})
        lines += [f"{valid.count(value):8d} {value:11d}: CODE {value}" for value in small]
        if large := [value for value in valid if value >= 1000]:
            lines.append(f"{len(large):8d}        1000 TO 99999999: 1000 and more")
        lines += ["  -------", f"{len(valid):8d}", ""]
        lines += [f"Refusal(-1)         {counts[-1]:4d}", f"Don't Know(-2)      {counts[-2]:4d}"]
        lines.append(f"Invalid Skip(-3)    {counts[-3]:4d}")
        total = len(values) - counts[-4] - counts[-5]
        lines.append(
            f"TOTAL =========>    {total:4d}   VALID SKIP(-4)    {counts[-4]:4d}     NON-INTERVIEW(-5)    {counts[-5]:4d}"
        )
        if valid:
            mean = sum(valid) / len(valid)
            lines += ["", f"Min:         {valid[0]}        Max:       {valid[-1]}        Mean:      {mean:.2f}"]
        blocks.append("\n".join([*lines, "", "Lead In: None.", "-" * 80]))
    return "\n".join(blocks) + "\n"


def write_extract(folder: Path, cohort: Cohort, rows: list[list[int]], *, form: str = "references") -> Path:
    """Write an extract in one of the forms in which the site gives it; return what a user would point at."""
    folder.mkdir(parents=True, exist_ok=True)
    variables = nls_variables(cohort)
    references = [variable.name.reference for variable in variables]
    questions = [
        each.name.question
        if each.name.question.endswith(f"_{each.name.year}")
        else f"{each.name.question}_{each.name.year}"
        for each in variables
    ]
    header = questions if form == "questions" else references
    table = ",".join(f'"{name}"' for name in header) + "\r\n"
    table += "".join(",".join(map(str, row)) + "\r\n" for row in rows)
    listing = "\n\nReference\nNumber     Year    Variable Description    Question Name\n" + "-" * 80 + "\n"
    listing += "".join(
        f"{each.name.reference[:-2]}.{each.name.reference[-2:]}  {each.name.year}  {each.concept.upper()}  "
        f"{each.name.question}   \n"
        for each in variables
    )
    if form == "dat":
        (folder / "made.dat").write_text("".join(" ".join(map(str, row)) + "\n" for row in rows))
        (folder / "made.sdf").write_text(listing)
    elif form == "zip":
        with zipfile.ZipFile(folder / "made.zip", "w") as archive:
            archive.writestr("made.csv", table)
            archive.writestr("made.sdf", listing)
            archive.writestr("made.cdb", made_codebook(cohort, rows))
        return folder / "made.zip"
    else:
        (folder / "made.csv").write_text(table)
        if form in ("references", "codebook"):
            (folder / "made.sdf").write_text(listing)
        if form == "codebook":
            (folder / "made.cdb").write_text(made_codebook(cohort, rows))
    return folder


BOUNDS = {
    "unknown_status": "leave_out",
    "first_year": None,
    "last_year": None,
    "youngest_age": None,
    "oldest_age": None,
}
# Occupations by hand: 1970 code 912 Cooks, 1980 code 436 Cooks, 2000 code 402 Cooks, 4020 with four digits; all 436.
# 1980 code 4 Chief executives -> 4. 1980 code 243 Supervisors of sales jobs -> 243.
WOMAN = {
    ("person_id", 1979): 7, ("sex", 1979): 2, ("race_ethnicity", 1978): 2, ("birth_year", 1979): 62,
    ("region", 1979): 3, ("highest_grade", 1979): 10, ("employment_status", 1979): 3, ("enrollment", 1979): 2,
    ("employment_status", 1980): 1, ("occupation", 1980): 912, ("region", 1980): 4,
    ("employment_status", 1981): 2, ("occupation", 1981): 912, ("highest_grade", 1981): 12,
    ("employment_status", 1982): 1, ("occupation", 1982): 436,
    ("employment_status", 1983): 3, ("enrollment", 1983): 4, ("occupation", 1983): 436,
    ("employment_status", 1984): 1, ("occupation", 1984): 990,
    ("employment_status", 1985): 1, ("occupation", 1985): -3,
    ("weekly_status", 2002): 1503, ("occupation", 2002): 402, ("highest_grade", 2002): 13,
    ("weekly_status", 2004): 5, ("occupation", 2004): 4020,
    ("weekly_status", 2006): 4, ("employment_status", 2006): 1, ("occupation", 2006): 4020,
    ("weekly_status", 2008): 2, ("occupation", 2008): -4,
    ("weekly_status", 2010): 7, ("occupation", 2010): 9840,
}  # fmt: skip
WOMAN_YEARS = {1979, 1980, 1981, 1982, 1983, 1984, 1985, 2002, 2004, 2006, 2008, 2010}
WOMAN_CAREER = CareerHistory(
    "7", "NLSY79", 1962, "female", "black", "south",
    (
        Job(1979, "education", "less than high school"),
        Job(1980, "436", "less than high school"),
        Job(1981, "unemployed", "high school"),
        Job(1982, "436", "high school"),
        Job(1983, "not_in_labor_force", "high school"),
        Job(2002, "436", "some college"),
        Job(2004, "not_in_labor_force", "some college"),
        Job(2006, "436", "some college"),  # the status of the interview's week counts before that of the year's weeks
        Job(2010, "905", "some college"),
    ),
)  # fmt: skip
NOBODY = {("person_id", 1979): 9, ("sex", 1979): 1, ("race_ethnicity", 1978): 3, ("birth_year", 1979): 57}
SMALL = {key: value for key, value in WOMAN.items() if key[1] <= 1983}
SMALL_ROWS = made_rows("NLSY79", [SMALL, NOBODY], [{1979, 1980, 1981, 1982, 1983}, {1979}])


# Interviewed once, refused to say what the work was; and one who never worked after being listed.
SILENT = {("person_id", 1979): 8, ("sex", 1979): 1, ("employment_status", 1990): 1, ("occupation", 1990): -1}
