"""Files that are no table: other programs' files, pointers, pipes, bombs. One clear line each, in time and in memory."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import multiprocessing
import os
import re
import shlex
import subprocess
import sys
import time
import tracemalloc
import zipfile
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.errors import raises
from helpers.nls import BOUNDS, SMALL_ROWS, write_extract
from helpers.panels import VOCABULARY, numbered, panel
from helpers.processes import PROJECT
from helpers.psid import write_cart
from helpers.resumes import coded
from helpers.resumes import read as read_resumes
from helpers.runs import settings_of

from laborllm_dist.careers.corpus import check_sources
from laborllm_dist.careers.occupations.vocabulary import read_vocabulary
from laborllm_dist.careers.readers import tabular
from laborllm_dist.careers.readers.long_panel import read_long_panel
from laborllm_dist.careers.readers.nls.files import nls_files
from laborllm_dist.careers.readers.nls.people import nls_people
from laborllm_dist.careers.readers.psid.people import psid_people
from laborllm_dist.careers.readers.psid.sources import psid_files
from laborllm_dist.careers.readers.resumes.files import resume_files
from laborllm_dist.careers.types import CareerHistory
from laborllm_dist.careers.validation_report import MOST_PROBLEMS, Problems
from laborllm_dist.config.corpora import SurveySettings
from laborllm_dist.errors import DataFileError, VocabularyError
from laborllm_dist.io.json_files import NotJsonError, json_object
from laborllm_dist.models.loading import check_weights
from laborllm_dist.prediction.request_files import MOST_JSON_BYTES, read_requests
from laborllm_dist.store.build import prepare_store
from laborllm_dist.store.tokenizer import load_tokenizer

EXPORTS = {
    "panel.dta": "a Stata file, .*in Stata: export delimited using panel.csv, nolabel; in Python: pandas.read_stata",
    "panel.sav": "an SPSS file, .*SAVE TRANSLATE OUTFILE='panel.csv' /TYPE=CSV",
    "panel.xlsx": "a spreadsheet, .*Save As, CSV UTF-8",
    "panel.sas7bdat": "a SAS file, .*proc export",
    "panel.rds": r"an R file, .*write.csv\(readRDS\('panel.rds'\), 'panel.csv'",
    "panel.feather": "a Feather or Arrow file, .*read_feather",
}
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
PLACES = {
    POINTER: ("Git LFS", "git lfs pull"),
    "/annex/objects/MD5E-s12--ab.csv\n": ("git-annex", "git annex get"),
    "\n<!DOCTYPE html><html>Please log in</html>": ("web site",),
}


def error_messages(path: Path) -> list[str]:
    """Return what every reader says of a file, each of which must refuse it."""
    survey = SurveySettings(path=str(path), variables="all", **BOUNDS)
    readers = [
        lambda: list(read_long_panel(panel(path.parent, path.name), survey="P")),
        lambda: read_resumes(coded(path)),
        lambda: read_requests(path, VOCABULARY, ("P",)),
        lambda: read_vocabulary(path),
        lambda: list(nls_people(survey, "NLSY79", survey="NLSY79")),
        lambda: list(psid_people(survey, survey="PSID")),
    ]
    messages = []
    for read in readers:
        with pytest.raises((DataFileError, VocabularyError)) as error:
            read()
        messages.append(str(error.value))
    return messages


@pytest.mark.parametrize("name", EXPORTS)
def test_files_of_other_programs_say_how_to_export(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"anything")
    for message in error_messages(tmp_path / name):
        assert re.search(EXPORTS[name], message), message
        assert "\n" not in message


@pytest.mark.parametrize("content", PLACES)
def test_what_stands_in_place_of_a_file_says_so(content: str, tmp_path: Path) -> None:
    (tmp_path / "file.csv").write_text(content)
    for message in error_messages(tmp_path / "file.csv"):
        assert all(words in message for words in PLACES[content])
    for name, find in (("x.zip", nls_files), ("x.zip", psid_files)):
        (tmp_path / name).write_text(content)
        with raises("data-file/placeholder-file", *PLACES[content]):
            find(tmp_path / name)


def test_a_model_folder_cloned_without_its_large_files_says_so(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_text(POINTER)
    overrides = ["model=pretrained", f"model.path={tmp_path}", "tokenizer=pretrained"]
    with raises("model/git-lfs-pointer", "model.safetensors: a pointer of Git LFS"):
        check_weights(settings_of(overrides).model)
    (tmp_path / "model.safetensors").rename(tmp_path / "tokenizer.model")
    with raises("tokenizer/git-lfs-pointer", "tokenizer.model: a pointer of Git LFS"):
        load_tokenizer(str(tmp_path))


def test_files_under_another_name_are_known_by_their_content(tmp_path: Path) -> None:
    pq.write_table(pa.table({"person": ["a"]}), tmp_path / "p.parquet")
    (tmp_path / "p.parquet").rename(tmp_path / "p.csv")
    with raises("data-file/misnamed-parquet-file", "p"):
        list(read_long_panel(panel(tmp_path, "p.csv"), survey="P"))
    (tmp_path / "p.csv").write_bytes(gzip.compress(b"person,year\n"))
    with raises("data-file/misnamed-gzip-file", "p.csv"):
        list(read_long_panel(panel(tmp_path, "p.csv"), survey="P"))
    (tmp_path / "p.csv").write_bytes("person,year,occupation\n".encode("utf-16"))
    with raises("data-file/utf-16-encoding"):
        list(read_long_panel(panel(tmp_path, "p.csv"), survey="P"))
    with zipfile.ZipFile(tmp_path / "p.csv", "w") as archive:
        archive.writestr("x", "y")
    with raises("data-file/unsupported-format", "a spreadsheet"):
        list(read_long_panel(panel(tmp_path, "p.csv"), survey="P"))


@pytest.mark.parametrize(("sign", "name"), [(";", "semicolons"), ("\t", "tabs"), ("|", "bars (|)")])
def test_other_separators_are_named(sign: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text(sign.join(("person", "year", "occupation")) + "\n")
    with raises("data-file/wrong-column-separator", "p.csv", name):
        list(read_long_panel(panel(tmp_path, "p.csv"), survey="P"))


def test_missing_columns_say_which_setting_names_them(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("person,year,occupation\na,1984,a\n")
    with raises(
        "data-file/invalid-content",
        "...columns.gender=NAME names another, ...columns.gender=null says that the file has none",
    ):
        list(read_long_panel(panel(tmp_path, "p.csv"), survey="P"))
    (tmp_path / "p.csv").write_text("id,year,occupation\na,1984,a\n")
    with raises("data-file/invalid-content", "column person: missing", "...columns.person=NAME names another"):
        list(read_long_panel(numbered(tmp_path, "p.csv"), survey="P"))
    (tmp_path / "r.csv").write_text("id,code,start,end\na,1,2010,2011\n")
    with raises("data-file/invalid-content", "column education: missing", "...columns.education=null says that"):
        read_resumes(coded(tmp_path / "r.csv"))
    (tmp_path / "titles.csv").write_text("code,name\na,Cooks\n")
    with raises(
        "vocabulary/unreadable-vocabulary-file",
        "column title: missing; the columns are code, name; the setting vocabulary.t",
    ):
        read_vocabulary(tmp_path / "titles.csv")


def test_nothing_is_said_of_a_tokenizer_before_the_input_was_looked_at(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "panel.csv").write_text("person,year,occupation\na,1984,a\n")
    panel_path = f"data.corpora.long_panel.path={tmp_path}/panel.csv"
    with raises("data-file/invalid-content", "missing"):
        prepare_store(settings_of(["data=long_panel", panel_path, f"store.root={tmp_path}/stores"]))
    (tmp_path / "r.jsonl").write_text("{}\n")
    resumes = f"data.corpora.resumes.path={tmp_path}/r.jsonl"
    with raises("data-file/invalid-content", "column id"):
        prepare_store(settings_of(["data=resumes", resumes, f"store.root={tmp_path}/stores"]))
    assert not caplog.messages


QUOTED = [
    "my file (1).csv",
    "it's.csv",
    "a=b.csv",
    "a,b.csv",
    "[a].csv",
    "a#b.csv",
    "${a}.csv",
    "\u00fc.csv",
    'a"b.csv',
]


@pytest.mark.parametrize("name", QUOTED)
def test_a_path_with_signs_of_the_settings_says_how_to_quote_it(name: str) -> None:
    setting = "data.corpora.long_panel.path"
    with raises("settings/value-needs-quotes", "quote it for the settings and for the shell") as error:
        settings_of(["data=long_panel", f"{setting}={name}"])
    assert "\n" not in str(error.value)
    (advised,) = shlex.split(str(error.value).split("for the shell: ")[1])
    assert settings_of(["data=long_panel", advised]).data.corpora["long_panel"].path == name


# ------------------------------------------------------------------------------------------------ no files at all


@pytest.mark.parametrize("kind", ["fifo", "zero"])
def test_pipes_and_devices_are_refused_and_not_waited_for(kind: str, tmp_path: Path) -> None:
    for name in ("p.csv", "p.parquet", "p.jsonl", "p.json", "p.zip", "p.txt", "p.csv.gz"):
        if kind == "fifo":
            os.mkfifo(tmp_path / name)
        else:
            (tmp_path / name).symlink_to("/dev/zero")
        for message in error_messages(tmp_path / name):
            assert "not a regular file" in message or "no file" in message or "no .csv or .dat" in message, message
    folder = tmp_path / "career"
    folder.mkdir()
    os.mkfifo(folder / "train.job")
    with raises("data-file/unreadable-corpus", "no train.job"):
        check_sources(settings_of(["data=career_text", f"data.corpora.career_text.path={folder}"]).data)
    with raises("data-file/no-resume-files"):
        (tmp_path / "empty").mkdir()
        os.mkfifo(tmp_path / "empty" / "r.jsonl")
        resume_files(coded(tmp_path / "empty"))


# ------------------------------------------------------------------------------------------------ bombs


READ = """
import resource, sys
from laborllm_dist.careers.readers.nls.people import nls_people
from laborllm_dist.config.corpora import SurveySettings
from laborllm_dist.errors import DataFileError
resource.setrlimit(resource.RLIMIT_DATA, (512 << 20, 512 << 20))
try:
    list(nls_people(SurveySettings(sys.argv[1], "all", "leave_out", None, None, None, None), "NLSY79", survey="S"))
except DataFileError as error:
    print(error)
"""


def bomb(path: Path, name: str, block: bytes, *, others: dict[str, bytes], mebibytes: int) -> None:
    """Write a zip with a member that takes a thousandth of its size."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for other, content in others.items():
            archive.writestr(other, content)
        with archive.open(name, "w", force_zip64=True) as member:
            for _ in range(mebibytes):
                member.write(block * (1 + (1 << 20) // len(block)))


def test_a_codebook_of_a_gigabyte_in_a_small_zip_is_refused_in_half_a_gigabyte(tmp_path: Path) -> None:
    extract = write_extract(tmp_path / "nls", "NLSY79", SMALL_ROWS, form="codebook")
    files = {path.name: path.read_bytes() for path in extract.iterdir() if path.name != "made.cdb"}
    bomb(tmp_path / "x.zip", "made.cdb", b"x\n", others=files, mebibytes=1024)
    assert (tmp_path / "x.zip").stat().st_size < 8 << 20
    done = subprocess.run(
        [sys.executable, "-c", READ, str(tmp_path / "x.zip")], capture_output=True, text=True, timeout=120, cwd=PROJECT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    assert "made.cdb: 100,000 lines without the line of dashes that ends a variable's block" in done.stdout


def test_every_kind_of_member_is_read_in_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from laborllm_dist.careers.readers import archives
    from laborllm_dist.careers.readers.nls import extract
    from laborllm_dist.careers.readers.psid import records

    monkeypatch.setattr(archives, "MOST_TEXT_BYTES", 2 << 20)
    monkeypatch.setattr(extract, "_MOST_PEOPLE", 20)
    monkeypatch.setattr(extract, "_PEOPLE_PER_PART", 10)
    monkeypatch.setattr(records, "_MOST_RECORDS", 20)
    folder = write_extract(tmp_path / "nls", "NLSY79", SMALL_ROWS, form="codebook")
    nls = {path.name: path.read_bytes() for path in folder.iterdir()}
    cart = write_cart(tmp_path / "cart", [{("ER30001", 0): 5, ("ER30002", 0): 1, ("ER32000", 0): 1}])
    psid = {path.name: path.read_bytes() for path in cart.iterdir()}
    header, row = nls["made.csv"].splitlines()[:2]
    (record,) = psid["J220485.txt"].splitlines()
    cases = [
        (nls, "made.cdb", b"x", "data-file/file-too-large", "256 MiB"),
        (nls, "made.sdf", b"\n", "data-file/file-too-large", "256 MiB"),
        (nls, "made.csv", b"1,", "data-file/line-too-long", "line 1", "8 MiB"),
        (nls, "made.csv", b"\n", "data-file/too-many-blank-lines"),
        (nls, "made.csv", header + b"\n" + 40 * (row + b"\n"), "data-file/invalid-content", "20 people"),
        (psid, "J220485.txt", b"1", "data-file/invalid-content", "characters"),
        (psid, "J220485.txt", record + b"\n", "data-file/invalid-content", "20 records"),
        (psid, "J220485.do", b"\n", "data-file/file-too-large", "256 MiB"),
    ]
    for files, name, block, label, *values in cases:
        path = tmp_path / "x.zip"
        bomb(path, name, block, others={other: files[other] for other in files if other != name}, mebibytes=9)
        settings = SurveySettings(str(path), "available", **BOUNDS)
        with raises(label, name, *values):
            list(nls_people(settings, "NLSY79", survey="S") if files is nls else psid_people(settings, survey="S"))


def test_a_gzip_bomb_of_blank_or_bad_lines_ends(tmp_path: Path) -> None:
    for content, label, value in (
        (b"\n" * (4 << 20), "data-file/too-many-blank-lines", "line"),
        (b"x" * (9 << 20), "data-file/line-too-long", "8 MiB"),
    ):
        (tmp_path / "p.csv.gz").write_bytes(gzip.compress(content))
        with raises(label, "p.csv.gz", value):
            list(read_long_panel(panel(tmp_path, "p.csv.gz"), survey="P"))
        (tmp_path / "r.jsonl.gz").write_bytes(gzip.compress(content))
        with raises(label, "r.jsonl.gz", value):
            read_resumes(coded(tmp_path / "r.jsonl.gz"))
    problems = Problems(tmp_path / "p.csv", "line")
    with raises("data-file/invalid-content", "100,000 problems", "the rest of the file was not read"):
        for line in range(MOST_PROBLEMS + 1):
            problems.add(line, None, "wrong")


def test_a_set_up_file_with_absurd_columns_is_refused(tmp_path: Path) -> None:
    cart = write_cart(tmp_path / "cart", [{("ER30001", 0): 5, ("ER30002", 0): 1, ("ER32000", 0): 1}])
    setup = cart / "J220485.do"
    text = setup.read_text()
    for old, new in (("6 - 10", "6 - 999999999"), ("6 - 10", f"6 - {'9' * 5000}")):
        setup.write_text(text.replace(old, new, 1))
        with raises("data-file/invalid-content", "J220485.do", "problem"):
            list(psid_people(SurveySettings(str(cart), "available", **{**BOUNDS, "first_year": 1981}), survey="PSID"))


def test_a_codebook_with_absurd_numbers_is_refused_or_passed_over(tmp_path: Path) -> None:
    path = write_extract(tmp_path, "NLSY79", SMALL_ROWS, form="codebook")
    settings = SurveySettings(str(path), "all", **{**BOUNDS, "last_year": 1983})
    text = (path / "made.cdb").read_text()
    for old, new in (
        ("Refusal(-1)            0", f"Refusal(-1)  {'9' * 6000}"),
        ("Min:         ", "Min:         1.2.3"),
    ):
        assert old in text
        (path / "made.cdb").write_text(text.replace(old, new, 1))
        try:
            assert len(list(nls_people(settings, "NLSY79", survey="NLSY79"))) == 2
        except DataFileError as error:
            assert "the codebook says" in str(error)


# ------------------------------------------------------------------------------------------------ JSON and Parquet

BAD_JSON = {
    '{"person": "1", "person": "2", "jobs": []}': "'person'",
    '{"person": "1", "jobs": [{"year": 1984, "year": 1985, "occupation": "1"}]}': "'year'",
    '{"person": ' + "[" * 100_000 + "]" * 100_000 + "}": "nested too deep",
    "[" * 100_000: "nested too deep",
    '{"person": ' + "9" * 10_000 + ', "jobs": []}': "Exceeds the limit",
    '{"person": "1\\ud800", "jobs": [{"year": 1984, "occupation": "1"}]}': "control character",
    '{"person": 1e400, "jobs": []}': "inf",
    '{"person": "1", "jobs": ' + "[" * 900 + "]" * 900 + "}": "jobs[0]",
}


@pytest.mark.parametrize("text", BAD_JSON, ids=range(len(BAD_JSON)))
def test_json_that_means_two_things_or_never_ends_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(text)
    with raises("data-file/invalid-content", BAD_JSON[text]) as error:
        read_requests(tmp_path / "p.json", VOCABULARY, ("P",))
    assert len(str(error.value)) < 2_000
    (tmp_path / "r.jsonl").write_text(text + "\n")
    with raises("data-file/invalid-content", "r.jsonl") as error:
        read_resumes(coded(tmp_path / "r.jsonl"))
    assert len(str(error.value)) < 2_000


def test_a_huge_json_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "p.json").open("wb") as file:
        file.truncate(MOST_JSON_BYTES + 1)
    with raises("data-file/json-file-too-large", "256"):
        read_requests(tmp_path / "p.json", VOCABULARY, ("P",))


def columns_of(values: pa.Array) -> dict[str, pa.Table]:
    """Return a table for each reader with a column of these values that it reads."""
    return {
        "panel": pa.table({"person": ["a"], "year": [1984], "occupation": values}),
        "resumes": pa.table({"id": ["a"], "code": ["1"], "start": values, "end": ["2011"], "education": ["x"]}),
    }


ODD = {
    "invalid UTF-8": pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(np.array([0, 2], np.int32)), pa.py_buffer(b"\xff\xfe")]
    ),
    "the year 20000": pa.array([568_971_820_800], pa.int64()).cast(pa.timestamp("s")),
    "a day of the year 20000": pa.array([6_585_322], pa.int32()).cast(pa.date32()),
    "a duration": pa.array([timedelta(days=3)], pa.duration("s")),
    "bytes": pa.array([b"1"], pa.large_binary()),
    "fixed bytes": pa.array([b"12"], pa.binary(2)),
    "an unknown time zone": pa.array([0], pa.timestamp("s", "Nowhere/Never")),
    "true": pa.array([True]),
    "a list": pa.array([["1"]]),
    "a struct": pa.array([{"x": 1}]),
}
NOT_TEXT = ("invalid UTF-8", "the year 20000", "a day of the year 20000", "an unknown time zone")


@pytest.mark.parametrize("name", ODD)
def test_odd_parquet_values_are_refused_in_one_line(name: str, tmp_path: Path) -> None:
    label = "data-file/value-not-text" if name in NOT_TEXT else "data-file/unsupported-column-type"
    for reader, table in columns_of(ODD[name]).items():
        path = tmp_path / f"{reader}.parquet"
        pq.write_table(table, path)
        with raises(label, f"{reader}.parquet: column {'occupation' if reader == 'panel' else 'start'}") as error:
            if reader == "panel":
                list(read_long_panel(numbered(tmp_path, path.name), survey="P"))
            else:
                read_resumes(coded(path))
        assert "\n" not in str(error.value)
    pq.write_table(pa.table({"person": ["a"], "year": [1984], "occupation": ODD[name]}), tmp_path / "p.parquet")
    with raises(label, "p.parquet: column occupation"):
        read_requests(tmp_path / "p.parquet", VOCABULARY, ("P",))


def test_a_parquet_column_whose_name_is_no_utf_8_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "panel.parquet"
    pq.write_table(pa.table({"person": ["a"], "year": [1984], "occupation": ["1"], "regionxx": ["x"]}), path)
    path.write_bytes(path.read_bytes().replace(b"regionxx", b"region\x80x"))
    with raises("data-file/damaged-parquet-file", "panel.parquet", "'utf-8' codec"):
        list(read_long_panel(numbered(tmp_path, path.name), survey="P"))


def test_nanoseconds_and_categories_are_read(tmp_path: Path) -> None:
    start = pa.array([np.datetime64("2010-05-17T00:00:00.123456789", "ns")])
    table = {"id": ["a"], "code": pa.array(["1"]).dictionary_encode(), "start": start, "end": start, "education": ["x"]}
    pq.write_table(pa.table(table), tmp_path / "r.parquet")
    (person,) = read_resumes(coded(tmp_path / "r.parquet"))
    assert [(job.year, job.occupation) for job in person.career.jobs] == [(2010, "1")]


def panel_table(**columns: pa.Array) -> pa.Table:
    """Return six rows of one person; the columns given take the place of the usual ones."""
    usual = {"person": pa.array([7] * 6), "year": pa.array(range(1980, 1986)), "occupation": pa.array(["1"] * 6)}
    return pa.table({**usual, **columns})


def read_panel(tmp_path: Path, table: pa.Table) -> list[CareerHistory]:
    pq.write_table(table, tmp_path / "p.parquet")
    return list(read_long_panel(numbered(tmp_path, "p.parquet"), survey="P"))


@pytest.mark.parametrize(("kind", "rounded"), [(np.float16, 2_049), (np.float32, 16_777_217)])
def test_ids_that_a_short_float_has_rounded_are_refused(kind: type, rounded: int, tmp_path: Path) -> None:
    ids = np.array([rounded - 1, rounded, rounded, rounded, rounded, rounded]).astype(kind)
    assert len(set(ids)) == 1  # two people have become one
    with raises("data-file/rounded-float-ids", "column person", f"float numbers of {rounded - 1:,}"):
        read_panel(tmp_path, panel_table(person=pa.array(ids)))


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64(), pa.decimal128(20, 3), pa.decimal256(40, 1)])
def test_a_number_is_the_same_person_and_code_in_every_type(kind: pa.DataType, tmp_path: Path) -> None:
    (career,) = read_panel(tmp_path, panel_table(person=pa.array([12] * 6, kind), occupation=pa.array([2] * 6, kind)))
    assert (career.person, {job.occupation for job in career.jobs}) == ("12", {"2"})


def test_a_fraction_has_its_own_digits_in_every_type(tmp_path: Path) -> None:
    for kind in (pa.float16(), pa.float32(), pa.float64(), pa.decimal128(9, 1)):
        number = Decimal("11.1") if pa.types.is_decimal(kind) else np.array(11.1, kind.to_pandas_dtype()).item()
        (career,) = read_panel(tmp_path, panel_table(person=pa.array([number] * 6).cast(kind)))
        assert career.person == "11.1"


def test_a_long_decimal_is_exact(tmp_path: Path) -> None:
    ids = pa.array([Decimal(2**53 + 1)] * 3 + [Decimal(2**53 + 2)] * 3, pa.decimal128(20, 2))
    people = [career.person for career in read_panel(tmp_path, panel_table(person=ids))]
    assert people == ["9007199254740993", "9007199254740994"]


def repeated(text: str, num_rows: int) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(num_rows, np.int32)), pa.array([text]))


def test_a_small_parquet_file_of_gigabytes_is_read_in_little_memory(tmp_path: Path) -> None:
    num_rows = 8_000  # of 1 MB each
    people, years = pa.array(np.arange(num_rows) // 100), pa.array(1900 + np.arange(num_rows) % 100)
    usual = {"person": people, "year": years, "occupation": pa.array(["1"] * num_rows)}
    large = repeated("x" * (1 << 20), num_rows)
    tracemalloc.start()
    try:
        assert len(read_panel(tmp_path, panel_table(**usual, notes=large))) == 80  # a column that nobody reads
        with raises("data-file/text-too-long", "occupation", "131,072"):
            read_panel(tmp_path, panel_table(**{**usual, "occupation": large}))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100 << 20


def test_a_row_group_of_gigabytes_of_text_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tabular, "_LARGEST_ROW_GROUP", 1 << 20)
    codes = pa.array([str(number) * 20_000 for number in range(100)])
    table = pa.table({"person": pa.array(range(100)), "year": pa.array([1980] * 100), "occupation": codes})
    with raises("data-file/row-group-too-large"):
        read_panel(tmp_path, table)


def test_a_column_of_any_kind_may_stand_beside_those_that_are_read(tmp_path: Path) -> None:
    odd = {name: pa.concat_arrays([values] * 6) for name, values in ODD.items()}
    assert len(read_panel(tmp_path, panel_table(**odd))) == 1


def test_a_table_of_ten_thousand_columns_is_read_in_seconds(tmp_path: Path) -> None:
    zeros = pa.array(np.zeros(6, np.int8))
    assert len(read_panel(tmp_path, panel_table(**{f"x{number}": zeros for number in range(10_000)}))) == 1
    names = [f"{name}_{number}" for number in range(20_000) for name in ("t", "s")]
    path = tmp_path / "wide.csv"
    cells = ["1,2010", *([","] * 19_999)]
    path.write_text(f"id,{','.join(names)}\n" + "".join(f"{person},{','.join(cells)}\n" for person in range(20)))
    columns = dataclasses.replace(coded(path).columns, title=None, code="t_{}", start="s_{}", end=None, education=None)
    settings = coded(path, rows="person", num_slots=2, columns=columns)
    begun = time.process_time()
    assert len(read_resumes(settings)) == 20
    assert time.process_time() - begun < 10  # each column looked up in a list took a minute


def test_a_doubled_name_among_many_is_named_in_little_time() -> None:
    text = "{" + ",".join(f'"{number}": 0' for number in range(100_000)) + ', "99999": 1}'
    with pytest.raises(NotJsonError, match=r"the name '99999' appears twice"):
        json_object(text.encode())


@pytest.mark.parametrize(("content", "label", "value"), [
    ("person,year,occupation\ra,1984,1\r", "data-file/carriage-return-lines", "p.csv"),
    ("sep=,\r\nperson,year,occupation\r\n", "data-file/excel-separator-line", "line 1 (sep=,)"),
    ("sep=;\r\nperson;year;occupation\r\n", "data-file/excel-separator-line", "line 1 (sep=;)"),
])  # fmt: skip
def test_what_spreadsheets_write_is_refused_in_one_line(content: str, label: str, value: str, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_bytes(content.encode())
    with raises(label, value) as error:
        list(read_long_panel(numbered(tmp_path, "p.csv"), survey="P"))
    assert "\n" not in str(error.value)


def test_a_very_long_cell_is_shortened_in_the_message(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text(f"person,year,occupation\na,1984,{'x' * 100_000}\n")
    with raises("data-file/invalid-content", "code 'xxx", "...", "is left out by long_panel.missing") as error:
        list(read_long_panel(numbered(tmp_path, "p.csv"), survey="P"))
    assert len(str(error.value)) < 1_500


def test_the_data_card_shows_codes_and_titles_as_text(tmp_path: Path) -> None:
    rows = "".join(f"{person},{year},{1 + year % 2}\n" for person in range(30) for year in (1984, 1985))
    (tmp_path / "panel.csv").write_text("person,year,occupation\n" + rows)
    (tmp_path / "titles.csv").write_text("code,title\n1,Cooks <script>alert(1)</script> | & more\n2,Bakers\n")
    panel_path = "data.corpora.long_panel"
    overrides = ["data=long_panel", f"{panel_path}.path={tmp_path}/panel.csv", f"store.root={tmp_path}/stores"]
    overrides += [f"{panel_path}.vocabulary.path={tmp_path}/titles.csv", "tokenizer.vocabulary_size=300"]
    overrides += [
        f"{panel_path}.columns.{name}=null" for name in ("birth_year", "gender", "ethnicity", "region", "education")
    ]
    store = prepare_store(settings_of(overrides))
    card = (store.folder / "data_card.md").read_text()
    assert "| 1 | Cooks &lt;script&gt;alert(1)&lt;/script&gt; \\| &amp; more | 30 |" in card


def read_with_each_byte_changed(path: Path) -> None:
    """Read a Parquet file with one byte of its footer changed after another, as far as it can be read."""
    whole = path.read_bytes()
    for place in range(len(whole) - 8 - int.from_bytes(whole[-8:-4], "little"), len(whole) - 8):
        for change in (1, 2, 7, 20):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ change]) + whole[place + 1 :])
            with contextlib.suppress(DataFileError):
                list(tabular.read_rows(path, Problems(path, "row")))


def test_no_changed_byte_of_a_parquet_footer_ends_the_process(tmp_path: Path) -> None:
    """pyarrow ends the process when it meets damaged metadata of a column, in about one of 500 damaged files."""
    path = tmp_path / "t.parquet"
    columns = {name: ["a", "b", "c"] for name in ("person", "title", "code", "start", "end")}
    pq.write_table(pa.table(columns), path)
    process = multiprocessing.get_context("fork").Process(target=read_with_each_byte_changed, args=(path,))
    process.start()
    process.join(120)
    assert process.exitcode == 0
