"""Detect files of other formats by extension and first bytes, and raise an error with how to export a table.

Files of statistics programs are recognized by their extension or, if they were renamed, by their first bytes. So are
files that a download left in place of the data: a pointer of Git LFS or git-annex, or a login page. A pipe or a device
has no end, so reading it would never finish.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from laborllm_dist.errors import DataFileError

_NUM_FIRST_BYTES = 512


@dataclass(frozen=True, slots=True)
class _Program:
    """A program's files: extensions, first bytes, and the command that exports one; `{}` is the file's stem."""

    what: str
    suffixes: tuple[str, ...]
    beginnings: tuple[bytes, ...]
    export: str


_PROGRAMS = (
    _Program(
        "a Stata file",
        (".dta",),
        (b"<stata_dta>",),
        "in Stata: export delimited using {}.csv, nolabel; in Python: pandas.read_stata('{}.dta', "
        "convert_categoricals=False).to_parquet('{}.parquet')",
    ),
    _Program(
        "an SPSS file",
        (".sav", ".zsav", ".por"),
        (b"$FL2", b"$FL3"),
        "in SPSS: SAVE TRANSLATE OUTFILE='{}.csv' /TYPE=CSV /FIELDNAMES; in R: "
        "write.csv(haven::zap_labels(haven::read_spss('{}.sav')), '{}.csv', row.names=FALSE)",
    ),
    _Program(
        "a spreadsheet",
        (".xlsx", ".xls", ".xlsm", ".xlsb", ".ods"),
        (b"PK\x03\x04", b"\xd0\xcf\x11\xe0"),
        "in Excel or LibreOffice: File, Save As, CSV UTF-8 (comma delimited), as {}.csv",
    ),
    _Program(
        "a SAS file",
        (".sas7bdat", ".xpt"),
        (b"HEADER RECORD*******LIBRARY",),
        "in SAS: proc export outfile='{}.csv' dbms=csv; in Python: pandas.read_sas(...).to_parquet('{}.parquet')",
    ),
    _Program(
        "an R file",
        (".rds", ".rdata", ".rda"),
        (b"RDX2", b"RDX3"),
        "in R: write.csv(readRDS('{}.rds'), '{}.csv', row.names=FALSE)",
    ),
    _Program(
        "a Feather or Arrow file",
        (".feather", ".arrow"),
        (b"ARROW1", b"FEA1"),
        "in Python: pandas.read_feather(...).to_parquet('{}.parquet')",
    ),
)
_LFS = b"version https://git-lfs.github.com/spec/"
_ANNEX = (b"/annex/objects/", b"../.git/annex/objects/", b".git/annex/objects/")
_PAGES = (b"<!doctype html", b"<html")
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


def export_advice(path: Path) -> str | None:
    """Return what a file is and how to export it; None if its extension is not that of another program."""
    program = next((each for each in _PROGRAMS if path.suffix.lower() in each.suffixes), None)
    return None if program is None else _advice(program, path)


def reject_other_formats(path: Path) -> None:
    """Check that a file is of a supported format and that its extension is that of its content.

    Raises:
        DataFileError: with the format of the file, and how to export or rename it.
    """
    reject_pointers(path)
    if (advice := export_advice(path)) is not None:
        raise DataFileError(f"{path}: {advice}", code="unsupported-format")
    begin, suffix = _first_bytes(path), path.suffix.lower()
    if begin.startswith(b"PAR1") and suffix not in (".parquet", ".pq"):
        raise DataFileError(
            f"{path}: a Parquet file by its content; name it {path.stem}.parquet", code="misnamed-parquet-file"
        )
    if begin.startswith(b"\x1f\x8b") and suffix != ".gz":
        raise DataFileError(
            f"{path}: compressed by gzip, which its name does not say; name it {path.name}.gz",
            code="misnamed-gzip-file",
        )
    if begin.startswith(_UTF_16) and begin[2:].count(0) > len(begin) // 4:
        raise DataFileError(f"{path}: a text in UTF-16; save it as UTF-8 (in Excel: CSV UTF-8)", code="utf-16-encoding")
    program = next((each for each in _PROGRAMS if begin.startswith(each.beginnings)), None)
    if program is not None:
        raise DataFileError(f"{path}: by its content {_advice(program, path)}", code="unsupported-format")


def reject_pointers(path: Path) -> None:
    """Check that a path is not a pointer file, a web page, a pipe or a device in place of the data.

    Raises:
        DataFileError: with what it is, and how to get the data.
    """
    if path.exists() and not path.is_file():
        raise DataFileError(
            f"{path}: not a regular file (a folder, pipe or device), which is not read; give a file",
            code="not-a-regular-file",
        )
    if (advice := _pointer_advice(_first_bytes(path), path.name)) is not None:
        raise DataFileError(f"{path}: {advice}", code="placeholder-file")


def pointer_in(folder: Path, opened: Sequence[str]) -> str | None:
    """Return a message about the first pointer file in a folder, with how to get the file itself; None: no pointer.

    Args:
        folder: folder of a model or tokenizer; pointers of files that are not opened do no harm.
        opened: glob patterns of the files that are opened.
    """
    paths = {path for pattern in opened for path in folder.glob(pattern) if path.is_file()}
    for path in sorted(paths):
        if (advice := _pointer_advice(_first_bytes(path), path.name)) is not None:
            return f"{path}: {advice}"
    return None


def _pointer_advice(begin: bytes, name: str) -> str | None:
    if begin.startswith(_LFS):
        return "a pointer of Git LFS, not the file itself; git lfs pull, in the repository it is from, gets the file"
    if begin.startswith(_ANNEX):
        get = f"git annex get {name}"
        return f"a pointer of git-annex, not the file itself; {get}, in the repository it is from, gets the file"
    if begin.lstrip().lower().startswith(_PAGES):
        return "a page of a web site, not the file itself, as a site gives it that asks for a login; download it again"
    return None


def _first_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_NUM_FIRST_BYTES)
    except OSError as error:
        raise DataFileError(f"{path}: cannot be read ({error.strerror or error})", code="unreadable-file") from None


def _advice(program: _Program, path: Path) -> str:
    how = program.export.replace("{}", path.stem)
    return f"{program.what}, which is not read here; export it as CSV or Parquet, {how}"
