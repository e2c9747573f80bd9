"""Make PSID downloads in their true layouts for people that a test writes by hand."""

from __future__ import annotations

import functools
from pathlib import Path

from laborllm_dist.careers.readers.psid.concepts import concepts_of, psid_variables, psid_years

# A person: values by (concept, year); what is not given is 0, the PSID's "inapplicable".
Person = dict[tuple[str, int], int]
WIDTH = 5
IDS = ("ER30001", "ER30002", "ER32000")


@functools.cache
def made_variables(first_year: int = 1981) -> tuple[tuple[str, str, int], ...]:
    """Return (variable, concept, year) of all the method needs, as a cart would hold them."""
    expected = [(name, "id", 0) for name in IDS]
    for year in psid_years(first_year, None):
        variables = [(psid_variables().get((concept, year)), concept, year) for concept in concepts_of(year)]
        expected += [(name, concept, year) for name, concept, year in variables if name not in (None, *IDS)]
    return tuple(expected)


def cell(person: Person, name: str, concept: str, year: int) -> str:
    value = person.get((name, 0)) if concept == "id" else person.get((concept, year), 0)
    if concept == "fam_interview_no":
        value = person.get(("ind_interview_no", year), 0)
    return str(value).rjust(WIDTH)


def setup_text(form: str, name: str, variables: list[str], num_records: int) -> str:
    """Return a set-up file in one of its three languages."""
    places = [f"{variable:<12} {at * WIDTH + 1} - {(at + 1) * WIDTH}" for at, variable in enumerate(variables)]
    rows = "\n".join("      " + "        ".join(places[at : at + 3]) for at in range(0, len(places), 3))
    length = len(variables) * WIDTH
    header = (
        f"*  PSID DATA CENTER *****************************************************\n"
        f"   JOBID            : 220485\n   DATA_DOMAIN      : PSID\n   FILE_TYPE        : All Individuals Data\n"
        f"   N_OF_VARIABLES   : {len(variables)}\n   N_OF_OBSERVATIONS: {num_records}\n"
        f"   MAX_REC_LENGTH   : {length}\n   DATE & TIME      : December 15, 2016 @ 1:50:01\n"
        f"*************************************************************************\n"
    )
    labels = "".join(f'label variable {variable:<10} "AGE OF # & $ ; HEAD  17" ;\n' for variable in variables)
    if form == "do":
        long = rows.replace("      ER30001", " long ER30001", 1)
        return f"#delimit ;\n{header};\n\ninfix\n{long}\nusing {name}.txt, clear \n;\n\ndestring, replace ;\n\n{labels}"
    if form == "sas":
        attributes = "".join(f'      {variable:<10} LABEL="THE LABEL"  FORMAT=F{WIDTH}.\n' for variable in variables)
        return (
            f'/* {header[3:]}*/\nFILENAME myfile "[path]\\{name}.txt" ;\nDATA {name} ;\n   ATTRIB\n{attributes}   ;\n'
            f"   INFILE myfile LRECL = {length} ;\n   INPUT\n{rows}\n   ;\nrun ;\n"
        )
    return (
        f'{header}.\nFILE HANDLE {name} /\n   NAME = "[path]\\{name}.txt" LRECL = {length} .\n'
        f'DATA LIST FILE = {name} FIXED /\n{rows}\n   .\n   EXECUTE .\nVARIABLE LABELS\n      ER30001 "X"\n.\nEXECUTE .\n'
    )


def write_cart(folder: Path, people: list[Person], *, form: str = "do", first_year: int = 1981) -> Path:
    """Write a Data Center cart of all individuals."""
    folder.mkdir(parents=True, exist_ok=True)
    variables = made_variables(first_year)
    lines = ["".join(cell(person, *variable) for variable in variables) for person in people]
    (folder / "J220485.txt").write_text("".join(line + "\r\n" for line in lines))
    (folder / f"J220485.{form}").write_text(
        setup_text(form, "J220485", [name for name, _, _ in variables], len(people))
    )
    return folder


def write_packaged(folder: Path, people: list[Person], *, form: str = "sas", first_year: int = 1981) -> Path:
    """Write an individual file and one family file a year, each with its set-up file."""
    folder.mkdir(parents=True, exist_ok=True)
    individual_concepts = (
        "id",
        "ind_interview_no",
        "sequence_no",
        "relation_to_rp",
        "age",
        "birth_year",
        "grades_completed",
    )
    files = {"IND2021ER": [each for each in made_variables(first_year) if each[1] in individual_concepts]}
    for year in psid_years(first_year, None):
        family = [each for each in made_variables(first_year) if each[2] == year and each[1] not in individual_concepts]
        files[f"FAM{year}ER"] = family
    for name, variables in files.items():
        year = 0 if name.startswith("IND") else int(name[3:7])
        records = {}
        for number, person in enumerate(people):
            family_number = person.get(("ind_interview_no", year), 0)
            if year and not family_number:
                continue
            # Head and spouse of one family share its record; each has the columns of the own role.
            merged = {**records.get(family_number if year else number, {}), **person}
            records[family_number if year else number] = merged
        lines = ["".join(cell(person, *variable) for variable in variables) for person in records.values()]
        if year and not lines:
            continue
        (folder / f"{name}.txt").write_text("".join(line + "\n" for line in lines))
        setup = setup_text(form, name, [variable for variable, _, _ in variables], len(lines))
        (folder / f"{name}.{form}").write_text(setup)
    return folder


def wave(year: int, interview: int, relation: int, **values: int) -> dict[tuple[str, int], int]:
    """Return a person's values of a year: present, in this family, with this relation."""
    return {
        ("ind_interview_no", year): interview, ("sequence_no", year): 1, ("relation_to_rp", year): relation,
        **{(concept, year): value for concept, value in values.items()},
    }  # fmt: skip


# By hand: 1970 code 912 Cooks -> 436; 915 Waiters -> 435; 2000 code 402 -> 436, 411 Waiters -> 435; 2010 code 4020 -> 436.
# A head who loses his job, then studies; his wife's columns of the same families are hers, below.
HEAD = {
    ("ER30001", 0): 5, ("ER30002", 0): 1, ("ER32000", 0): 1, ("birth_year", 1983): 1950, ("birth_year", 1984): 1950,
    ("birth_year", 1985): 1951,
    **wave(1981, 11, 1, rp_employment_status=1, rp_occ_1970code=912, region=1, rp_race_1=1, grades_completed=12),
    **wave(1982, 12, 1, rp_employment_status=3, rp_occ_1970code=0, region=3, rp_race_1=1),
    **wave(1983, 13, 10, rp_employment_status=7, rp_occ_1970code=0, rp_race_1=1, grades_completed=13),
    **wave(1984, 14, 10, rp_employment_status=2, rp_occ_1970code=915, rp_race_1=1),
    **wave(1985, 15, 10, rp_employment_status=1, rp_occ_1970code=999, rp_race_1=1),
}  # fmt: skip


# A partner (22) whose last occupation of 2003 does not count, since she looks for work; Alaska is in the west.
PARTNER = {
    ("ER30001", 0): 6, ("ER30002", 0): 170, ("ER32000", 0): 2, ("birth_year", 2003): 1970,
    **wave(2003, 31, 22, sp_employment_status=3, sp_occ_2000code=402, region=5, sp_race_1=2),
    **wave(2005, 32, 22, sp_employment_status=1, sp_occ_2000code=411, region=6, sp_race_1=2, grades_completed=16),
    **wave(2017, 33, 20, sp_employment_status=1, sp_occ_2010code=4020, sp_race_1=2),
    **wave(2019, 34, 20, sp_employment_status=4, sp_occ_2010code=4020, sp_race_1=2),
    **wave(2021, 35, 10, rp_employment_status=1, rp_occ_2010code=9840, rp_race_1=2, sp_occ_2010code=4020),
}  # fmt: skip
