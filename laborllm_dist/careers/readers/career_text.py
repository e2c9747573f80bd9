"""Read and write the parallel text files of CAREER (arXiv 2202.08370, github.com/keyonvafa/career-code).

    {train,valid,test}.{job,year,education,ethnicity,gender,location}

Files have one person per line, in the same order in all files of a split. job, year and education have one value per
year, separated by spaces; ethnicity, gender and location have one value. Values in these files have no spaces: a space
is written "_", a "_" as "%5F" and a "%" as "%25". job and year are required; any other kind of file must exist for
every split or for none.
"""

from __future__ import annotations

import functools
import itertools
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from laborllm_dist.careers.occupations.vocabulary import Occupations, read_occupations
from laborllm_dist.careers.person_records import PersonRecord, PersonThunk
from laborllm_dist.careers.readers.cells import as_year, with_plain_blanks
from laborllm_dist.careers.readers.reader import Reader
from laborllm_dist.careers.readers.tabular import text_lines
from laborllm_dist.careers.splits import Split
from laborllm_dist.careers.types import CareerHistory, Job
from laborllm_dist.careers.validation_report import Problems
from laborllm_dist.config.corpora import MISSING_WORDS, CareerTextSettings, is_missing
from laborllm_dist.errors import DataFileError
from laborllm_dist.io.files import file_lock, publish_folder, translate_disk_errors
from laborllm_dist.io.recorded_folder import RECORD, make_new_folder

_NAMES: dict[str, Split] = {"train": "train", "valid": "validation", "test": "test"}
_NEEDED, _OPTIONAL = ("job", "year"), ("education", "ethnicity", "gender", "location")
_FIXED = {"ethnicity": "ethnicity", "gender": "gender", "location": "region"}
_CareerReader = Callable[[str, int, dict[str, str | None], dict[str, Problems]], CareerHistory | None]
MISSING = "unknown"  # written for an unknown value
_ESCAPED = re.compile("%([0-9A-F]{2})")
_WRITTEN_WORDS = (MISSING, "<unk>", *MISSING_WORDS)  # a value that reads like one of them is escaped


def career_text_files(settings: CareerTextSettings) -> list[Path]:
    """Return the files to read from a folder.

    Raises:
        DataFileError: if the folder or a needed file is missing, or a kind exists for some splits only.
    """
    folder = Path(settings.path)
    if not folder.is_dir():
        raise DataFileError(f"no folder at {folder}", code="no-folder")
    splits = [name for name in _NAMES if (folder / f"{name}.job").is_file()]
    if not splits:
        raise DataFileError(f"no train.job, valid.job or test.job in {folder}", code="no-split-files")
    files: list[Path] = []
    for kind in (*_NEEDED, *_OPTIONAL):
        present = [folder / f"{name}.{kind}" for name in splits if (folder / f"{name}.{kind}").is_file()]
        if len(present) < len(splits) and (present or kind in _NEEDED):
            absent = next(name for name in splits if not (folder / f"{name}.{kind}").is_file())
            raise DataFileError(
                f"no {absent}.{kind} in {folder}; {kind} must be there for {', '.join(splits)}, or for none",
                code="missing-split-file",
            )
        files += present
    return files


def career_text_people(settings: CareerTextSettings, *, survey: str) -> Iterator[PersonThunk]:
    """Yield the people of a folder, split by split; a person is named by split and line, such as train-0000001.

    Raises:
        DataFileError: after the last person of a split, with the number of problems of its files and the first ten.
    """
    files = career_text_files(settings)
    occupations = read_occupations(settings.vocabulary)
    reader = functools.partial(_career, settings=settings, occupations=occupations, survey=survey)
    for name in _NAMES:
        of_split = {path.suffix[1:]: path for path in files if path.stem == name}
        if of_split:
            yield from _people_of_split(name, of_split, reader)


def _people_of_split(name: str, files: dict[str, Path], reader: _CareerReader) -> Iterator[PersonThunk]:
    problems = {kind: Problems(path, "line") for kind, path in files.items()}
    with ExitStack() as stack:
        lines = {kind: text_lines(stack.enter_context(path.open("rb")), problems[kind]) for kind, path in files.items()}
        for number in range(1, 10**12):
            row = {kind: next(each, None) for kind, each in lines.items()}
            if row["job"] is None:
                break
            career = reader(f"{name}-{number:07d}", number, row, problems)
            if career is not None:
                yield functools.partial(PersonRecord, career, (), _NAMES[name])
        for kind, text in row.items():
            if text is not None:
                problems[kind].add(number, None, f"{files['job'].name} has no such line; a line is a person")
    for each in problems.values():
        each.reject_if_any()


def _career(
    person: str,
    number: int,
    row: dict[str, str | None],
    problems: dict[str, Problems],
    *,
    settings: CareerTextSettings,
    occupations: Occupations,
    survey: str,
) -> CareerHistory | None:
    """Return the career of one line; None, with a problem added, if it is invalid."""
    before = sum(each.num_found for each in problems.values())
    values: dict[str, list[str]] = {}
    for kind, text in row.items():
        if text is None:
            problems[kind].add(number, None, "the file ends before this line, which the job file has")
        values[kind] = [] if text is None else text.split()
    length = len(values["job"])
    for kind, words in values.items():
        num_expected = 1 if kind in _FIXED else length
        if row[kind] is not None and (len(words) != num_expected or not words):
            problems[kind].add(number, None, f"{len(words)} values, expected {num_expected or 'at least one job'}")
    codes = [occupations.find(code) for code in values["job"]]
    for text, code in zip(values["job"], codes, strict=True):
        if code is None:
            problems["job"].add(number, None, f"code {text!r} is not in {settings.vocabulary.path}")
    years = _years(values["year"])
    if years is None:
        problems["year"].add(number, None, f"{' '.join(values['year'])!r} are not years in rising order")

    def known(text: str) -> str | None:
        return None if is_missing(text, settings.missing) else with_plain_blanks(unescaped(text))

    for kind in _OPTIONAL:
        for text in values.get(kind, ()):
            if not (known(text) or "").isprintable():
                problems[kind].add(number, None, f"{text!r} holds a line break or control character")
    if years is None or sum(each.num_found for each in problems.values()) > before:
        return None

    educations = [known(text) for text in values.get("education", ())] or [None] * length
    fixed = {name: known(values[kind][0]) if kind in values else None for kind, name in _FIXED.items()}
    jobs = zip(years, codes, educations, strict=True)
    return CareerHistory(
        person=person,
        survey=survey,
        birth_year=None,
        jobs=tuple(Job(year, code, education) for year, code, education in jobs if code is not None),
        **fixed,
    )


def _years(texts: list[str]) -> list[int] | None:
    """Return the years; None if they are not years in ascending order."""
    years = [year for text in texts if (year := as_year(text)) is not None]
    in_order = all(early < late for early, late in itertools.pairwise(years))
    return years if in_order and len(years) == len(texts) else None


def escaped(value: str) -> str:
    """Escape a value as one word that differs from the words for an unknown value."""
    word = "_".join(value.replace("%", "%25").replace("_", "%5F").split(" "))
    return f"%{ord(word[0]):02X}{word[1:]}" if word and is_missing(word, _WRITTEN_WORDS) else word


def unescaped(word: str) -> str:
    """Invert `escaped`."""
    return _ESCAPED.sub(lambda match: chr(int(match[1], 16)), word.replace("_", " "))


def check_new_folder(folder: Path) -> None:
    """Check that an output folder does not exist.

    Raises:
        DataFileError: naming it.
    """
    if folder.exists() or folder.is_symlink():
        raise DataFileError(f"{folder} exists; name a new folder (prepare.career_text)", code="output-folder-exists")


def write_career_text(careers: Iterable[tuple[Split, CareerHistory]], folder: Path) -> dict[str, int]:
    """Write careers as CAREER's files into a new folder; return the number of people of each split.

    These files have no birth years and no person ids.

    Raises:
        DataFileError: if the folder exists, or an occupation's code has a space.
        AlreadyRunningError: if another process is writing to it.
        DiskFullError: if the disk is full; the partial folder is removed.
    """
    building, lock = folder.with_name(folder.name + ".partial"), folder.with_name(folder.name + ".lock")
    busy = f"another process is writing to {folder}; wait for it, or name another folder (prepare.career_text)"
    with translate_disk_errors(folder), file_lock(lock, busy=busy):
        check_new_folder(folder)
        make_new_folder(building)
        try:
            counts = _write_files(careers, building)
            (building / RECORD).unlink()
            publish_folder(building, folder, list(building.iterdir()))
            lock.unlink(missing_ok=True)
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            raise
    return counts


def _write_files(careers: Iterable[tuple[Split, CareerHistory]], folder: Path) -> dict[str, int]:
    name_of = {split: name for name, split in _NAMES.items()}
    counts = dict.fromkeys(_NAMES, 0)
    with ExitStack() as stack:
        files: dict[str, IO[str]] = {
            f"{name}.{kind}": stack.enter_context((folder / f"{name}.{kind}").open("w", encoding="utf-8"))
            for name in _NAMES
            for kind in (*_NEEDED, *_OPTIONAL)
        }
        for split, career in careers:
            name = name_of[split]
            for job in career.jobs:
                if any(sign.isspace() for sign in job.occupation):
                    raise DataFileError(
                        f"the code {job.occupation!r} has a blank, which separates codes in these files",
                        code="blank-in-code",
                    )
            counts[name] += 1
            for kind, words in _words(career).items():
                files[f"{name}.{kind}"].write(" ".join(words) + "\n")
    return counts


def _words(career: CareerHistory) -> dict[str, list[str]]:
    """Return the words of a person's line in each kind of file."""

    def word(value: str | None) -> str:
        return MISSING if value is None else escaped(value)

    return {
        "job": [job.occupation for job in career.jobs],
        "year": [str(job.year) for job in career.jobs],
        "education": [word(job.education) for job in career.jobs],
        "ethnicity": [word(career.ethnicity)],
        "gender": [word(career.gender)],
        "location": [word(career.region)],
    }


CAREER_TEXT: Reader[CareerTextSettings] = Reader(
    people=lambda settings, survey: career_text_people(settings, survey=survey),
    vocabulary=lambda settings: read_occupations(settings.vocabulary).vocabulary,
    files=career_text_files,
    own_occupations=lambda settings: settings.vocabulary,
)
