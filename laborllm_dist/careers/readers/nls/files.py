"""Find the files of an NLS Investigator extract, in a folder or in the .zip as it was downloaded.

NAME.csv   one row per person, one column per variable; or NAME.dat, the same values between spaces, without a header
NAME.sdf   the variables in the order of their columns: reference number, year, description, question name
NAME.cdb   the codebook, with counts
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from laborllm_dist.careers.readers.archives import ArchiveMember, members_of_zip
from laborllm_dist.careers.readers.file_formats import export_advice, reject_pointers
from laborllm_dist.errors import DataFileError

_SUFFIXES = (".csv", ".dat", ".sdf", ".cdb")


@dataclass(frozen=True, slots=True)
class ExtractFiles:
    """The files of one extract: values in `table` (.csv, or .dat with `variables`)."""

    table: ArchiveMember
    variables: ArchiveMember | None  # .sdf
    codebook: ArchiveMember | None  # .cdb


def find_extract(path: Path) -> ExtractFiles:
    """Return the files of the extract in a folder or .zip, or of the extract that a .csv or .dat file belongs to.

    Raises:
        DataFileError: if there is no extract, or more than one.
    """
    members = _members(path)
    tables = _of_kind(members, ".csv") or _of_kind(members, ".dat")
    if path.suffix.lower() in (".csv", ".dat"):
        tables = [member for member in members if member.path == path]
    if len(tables) != 1:
        count = "more than one" if tables else "no .csv or .dat file"
        names = ", ".join(sorted(str(member.label) for member in tables)) or "none of an NLS Investigator extract"
        raise DataFileError(
            f"{count} in {path} ({names}); name the one file of the extract, or its .zip", code="not-one-nls-extract"
        )
    stem = tables[0].label.stem
    siblings = {suffix: _of_kind(members, suffix, stem) for suffix in (".sdf", ".cdb")}
    variables, codebook = (candidates[0] if candidates else None for candidates in siblings.values())
    if tables[0].suffix == ".dat" and variables is None:
        raise DataFileError(
            f"{tables[0].label}: a .dat file has no header, so {stem}.sdf must be in the same folder; "
            "download the extract again with .csv, or with .sdf",
            code="no-sdf-file",
        )
    return ExtractFiles(tables[0], variables, codebook)


def nls_files(path: Path) -> list[Path]:
    """Return the files on disk that an extract is read from.

    Raises:
        DataFileError: as in `find_extract`.
    """
    files = find_extract(path)
    return sorted({member.path for member in (files.table, files.variables, files.codebook) if member is not None})


def _members(path: Path) -> list[ArchiveMember]:
    if path.is_dir():
        there = sorted(each for each in path.iterdir() if each.is_file())
        files = [each for each in there if each.suffix.lower() in (*_SUFFIXES, ".zip")]
        if not files and (advice := next(filter(None, map(export_advice, there)), None)) is not None:
            raise DataFileError(
                f"{path}: {advice}; the NLS Investigator gives it as comma-delimited .csv", code="unsupported-format"
            )
        zips = [each for each in files if each.suffix.lower() == ".zip"]
        if len(zips) == len(files) == 1:
            return _zip_members(zips[0])
        return [ArchiveMember(each) for each in files if each not in zips]
    if not path.exists():
        raise DataFileError(f"no file at {path}", code="no-file")
    reject_pointers(path)
    if (advice := export_advice(path)) is not None:
        raise DataFileError(
            f"{path}: {advice}; the NLS Investigator gives it as comma-delimited .csv", code="unsupported-format"
        )
    if path.suffix.lower() == ".zip":
        return _zip_members(path)
    return [ArchiveMember(each) for each in sorted(path.parent.iterdir()) if each.stem == path.stem and each.is_file()]


def _zip_members(path: Path) -> list[ArchiveMember]:
    return [member for member in members_of_zip(path) if member.suffix in _SUFFIXES]


def _of_kind(members: Sequence[ArchiveMember], suffix: str, stem: str | None = None) -> list[ArchiveMember]:
    return [member for member in members if member.suffix == suffix and (stem is None or member.label.stem == stem)]
