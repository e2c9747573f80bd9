"""Make extracts of the NLS Investigator for people that a test writes by hand."""

from __future__ import annotations

import zipfile
from pathlib import Path

from laborllm_dist.careers.nls.variables import Cohort, nls_variables

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
    references = [each.name.reference for each in variables]
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
