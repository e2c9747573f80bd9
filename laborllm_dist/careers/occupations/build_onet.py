"""Make tables/onet_titles.csv.gz from the alternate titles of O*NET 27.0, coded to occ1990dd.

    python -m laborllm_dist.careers.occupations.build_onet TITLES.csv.gz [TABLE.csv.gz]

The file has the columns title, occ1990dd (codes joined by ";": each is right) and onet_soc. O*NET writes a title that
has initials twice, "CCU Nurse (Cardiac Care Unit Nurse)": the table has both spellings. It has a line for each title
and its codes, in sorted order. O*NET is a database of the U.S. Department of Labor, Employment and Training
Administration, under CC BY 4.0; its occupations lead to occ1990dd through the SOC of 2018 and 2010 and the Census codes
of 2000 and 2010.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from laborllm_dist.careers.occupations.occ1990dd import occ1990dd_vocabulary
from laborllm_dist.careers.occupations.title_index import ONET_PATH
from laborllm_dist.errors import DataFileError
from laborllm_dist.io.files import atomic_write

_MERGED = {"874": "873"}  # the vocabulary's rule for two codes of one title
_TWO_SPELLINGS = re.compile(r"^(.*\S)\s*\(([^()]*\s[^()]*)\)$")


def main(arguments: Sequence[str]) -> None:
    """Write the table."""
    source, target = Path(arguments[0]), Path(arguments[1]) if len(arguments) > 1 else ONET_PATH
    with atomic_write(target) as partial:
        partial.write_bytes(table_of(source))


def table_of(source: Path) -> bytes:
    """Return the table that follows from a file of O*NET's titles, compressed, the same bytes whenever it is made.

    Raises:
        DataFileError: if the file lacks the columns, or has a code that is not in occ1990dd.
    """
    with gzip.open(source, "rt", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"title", "occ1990dd"} <= rows[0].keys():
        raise DataFileError(f"{source}: expected columns title and occ1990dd", code="missing-columns")
    known = set(occ1990dd_vocabulary().codes)
    codes_of: dict[str, set[str]] = {}
    for row in rows:
        codes = {_MERGED.get(code, code) for code in row["occ1990dd"].split(";")}
        if unknown := codes - known:
            raise DataFileError(
                f"{source}: {row['title']!r} has the code {min(unknown)!r}, which occ1990dd has not",
                code="unknown-occupation-code",
            )
        for title in spellings(row["title"]):
            codes_of.setdefault(title, set()).update(codes)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("title", "occ1990dd"))
    writer.writerows((title, " ".join(sorted(codes, key=int))) for title, codes in sorted(codes_of.items()))
    compressed = io.BytesIO()
    with gzip.GzipFile(fileobj=compressed, mode="wb", mtime=0, filename="") as packed:
        packed.write(text.getvalue().encode())
    return compressed.getvalue()


def spellings(title: str) -> tuple[str, ...]:
    """Return a title as it is, or the two that it is, one spelling the other out in parentheses."""
    match = _TWO_SPELLINGS.match(title.strip())
    return (match[1], match[2]) if match else (title.strip(),)


if __name__ == "__main__":
    main(sys.argv[1:])
