"""Find the data files of a PSID download and the set-up file of each.

A Data Center cart is J######.txt with J######.do, .sas or .sps; packaged files are FAM1981ER.txt ... and
IND2021ER.txt, each with set-up files of its own. They are in a folder (also each in a .zip, as downloaded), or in one
.zip. If a data file has several set-up files, .do takes precedence over .sas, and .sas over .sps.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from laborllm_dist.careers.readers.archives import ArchiveMember, members_of_zip
from laborllm_dist.careers.readers.file_formats import export_advice, reject_pointers
from laborllm_dist.careers.readers.psid.layout import SETUP_SUFFIXES
from laborllm_dist.errors import DataFileError

# The site's own names; other .txt files of a folder may be notes.
_DATA_NAME = re.compile(r"^(J\d{5,7}|FAM\d{4}(ER)?|IND\d{4}ER)$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Source:
    """A fixed-width data file and its set-up file."""

    data: ArchiveMember
    setup: ArchiveMember


def find_sources(path: Path) -> list[Source]:
    """Return the data files of a download, in order of name.

    Raises:
        DataFileError: if there are no data files, or one has no set-up file.
    """
    members = _members(path)
    tables = [member for member in members if member.suffix == ".txt"]
    setups = [member for member in members if member.suffix in SETUP_SUFFIXES and not _is_formats(member)]
    if not tables:
        foreign = [each for each in (path.iterdir() if path.is_dir() else ()) if export_advice(each) is not None]
        if foreign:
            statements = "the PSID Data Center gives it as ASCII data with statements"
            raise DataFileError(
                f"{min(foreign)}: {export_advice(min(foreign))}; {statements}", code="unsupported-format"
            )
        raise DataFileError(
            f"no .txt file in {path}; a PSID download has its data as NAME.txt, their layout as NAME.do, .sas or .sps",
            code="no-psid-data-file",
        )
    sources: list[Source] = []
    for table in tables:
        setup = _setup_of(table, tables, setups)
        if setup is not None:
            sources.append(Source(table, setup))
        elif _DATA_NAME.match(table.label.stem) or len(tables) == 1:
            raise DataFileError(
                f"{table.label}: no set-up file beside it ({table.label.stem}.do, .sas or .sps), which alone says "
                "where the variables are; download it with statements for Stata, SAS or SPSS",
                code="no-setup-file",
            )
    if not sources:
        names = ", ".join(str(table.label) for table in tables[:3])
        raise DataFileError(
            f"no set-up file (.do, .sas or .sps) in {path} for any of its .txt files ({names}); a PSID download has "
            "NAME.txt with NAME.do, NAME.sas or NAME.sps",
            code="no-setup-file",
        )
    return sources


def psid_files(path: Path) -> list[Path]:
    """Return the files on disk that a download is read from.

    Raises:
        DataFileError: as in `find_sources`.
    """
    return sorted({member.path for source in find_sources(path) for member in (source.data, source.setup)})


def _is_formats(member: ArchiveMember) -> bool:
    return member.label.stem.lower().endswith("_formats")


def _setup_of(
    table: ArchiveMember, tables: Sequence[ArchiveMember], setups: Sequence[ArchiveMember]
) -> ArchiveMember | None:
    """Return the set-up file of the same name, or the only one if there is one data file."""
    stem = table.label.stem.lower()
    named = [setup for setup in setups if setup.label.stem.lower() == stem]
    candidates = named or (list(setups) if len(tables) == 1 and len({each.label.stem for each in setups}) == 1 else [])
    return min(candidates, key=lambda setup: SETUP_SUFFIXES.index(setup.suffix), default=None)


def _members(path: Path) -> list[ArchiveMember]:
    if path.is_dir():
        files = sorted(each for each in path.rglob("*") if each.is_file())
        zips = [member for each in files if each.suffix.lower() == ".zip" for member in members_of_zip(each)]
        return [ArchiveMember(each) for each in files if each.suffix.lower() != ".zip"] + zips
    if not path.exists():
        raise DataFileError(f"no file at {path}", code="no-file")
    reject_pointers(path)
    if (advice := export_advice(path)) is not None:
        raise DataFileError(
            f"{path}: {advice}; the PSID Data Center gives it as ASCII data with statements", code="unsupported-format"
        )
    if path.suffix.lower() == ".zip":
        return members_of_zip(path)
    return [
        ArchiveMember(each)
        for each in sorted(path.parent.iterdir())
        if each.stem.lower() == path.stem.lower() and each.is_file()
    ]
