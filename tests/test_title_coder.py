"""Free job titles to occ1990dd: the index, the normal form, the nearest title."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path

import numpy as np
import pytest
from conftest import shared_file
from launching import PROJECT
from sklearn.feature_extraction.text import TfidfVectorizer

from laborllm_dist.careers.occ1990dd import crosswalk, occ1990dd_vocabulary
from laborllm_dist.careers.titles.build import table_of
from laborllm_dist.careers.titles.coder import title_coder
from laborllm_dist.careers.titles.index import INDEX_PATH, read_index
from laborllm_dist.careers.titles.normal_form import normal_form
from laborllm_dist.errors import DataFileError

FORMS = {
    "Sr. Mgrs., Marketing (EMEA)": "manager marketing",
    "Manager, marketing": "manager marketing",
    "R.N.": "nurse registered",
    "RN II - part time": "nurse registered",
    "Software engineer at Acme Corp.": "engineer software",
    "Chief engineer": "chief engineer",
    "Engineer, chief": "chief engineer",
    "Café waitresses": "cafe waitress",
    "Senior": "",
    "12345": "",
    "(contract)": "",
    "Secretaries": "secretary",
    "Boss": "boss",
}


@pytest.mark.parametrize("title", FORMS)
def test_normal_forms_by_hand(title: str) -> None:
    assert normal_form(title) == FORMS[title]


TRUCKS = "Driver/sales workers and truck Drivers"
# Titles as people write them, and the title of the occ1990dd code they should have.
CODED = {
    "Registered Nurse": "Registered nurses",
    "RN": "Registered nurses",
    "Sr. Accountant": "Accountants and auditors",
    "Waitress": "Waiters and waitresses",
    "Truck driver": TRUCKS,
    "Truk driver": TRUCKS,
    "Elementary school teacher": "Primary school teachers",
    "Lawyer": "Lawyers and judges",
    "Electrician at Acme": "Electricians",
    "Cook": "Cooks",
    "Janitor (night shift)": "Janitors",
}


@pytest.mark.parametrize("title", CODED)
def test_common_titles(title: str) -> None:
    (match,) = title_coder().match_titles([title])
    assert occ1990dd_vocabulary().title_of()[match.code] == CODED[title]
    assert match.score > 0.6


def test_an_exact_title_scores_1_and_nonsense_little_or_nothing() -> None:
    exact, nothing, nonsense = title_coder().match_titles(["Bricklayer", "12 (x)", "qzxv jjq"])
    assert (exact.matched_title, exact.score) == ("Bricklayer", 1.0)
    assert nothing is None
    assert nonsense is None or nonsense.score < 0.5


def test_a_title_s_match_does_not_depend_on_the_others() -> None:
    titles = [each.title[:-1] + "x" for each in read_index()[::400]]
    together = title_coder().match_titles(titles)
    assert together == [title_coder().match_titles([title])[0] for title in titles]
    assert together[::-1] == title_coder().match_titles(titles[::-1])


def test_the_nearest_title_is_that_of_a_dense_search() -> None:
    """Independent: the same vectors by scikit-learn with no sparse product, every cosine computed."""
    index = read_index()
    forms = [each.normal_form for each in index]
    pieces = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 3), max_df=0.2, lowercase=False, dtype=np.float64)
    vectors = pieces.fit_transform(forms)
    titles = ["truk drivr", "head chef of pastry", "assistnt teecher", "welder helper apprentce", "nurce practicioner"]
    for title, match in zip(titles, title_coder().match_titles(titles), strict=True):
        cosines = np.asarray(vectors @ pieces.transform([normal_form(title)]).toarray()[0])
        nearest = next(each for each in index if each.title == match.matched_title)
        assert match.score == pytest.approx(cosines.max() * (1.0 if nearest.is_certain else 0.9), abs=1e-5)
        assert cosines[[each.title for each in index].index(match.matched_title)] == pytest.approx(
            cosines.max(), abs=1e-5
        )


def test_the_table_follows_from_the_census_index_byte_for_byte() -> None:
    assert table_of(shared_file("data/titles/census2000_alphabetical_index.csv.gz")) == INDEX_PATH.read_bytes()


def index_of(tmp_path: Path, *rows: tuple[str, str, str]) -> dict[str, tuple[str, str]]:
    """Return title -> (code, others) of the table that a small index makes; rows are code, title, industries."""
    text = "census2000,soc2000,title,industry_restriction,naics_restriction\n"
    text += "".join(f'{code},,"{title}","{industries}",\n' for code, title, industries in rows)
    with gzip.open(tmp_path / "index.csv.gz", "wt") as file:
        file.write(text)
    table = gzip.decompress(table_of(tmp_path / "index.csv.gz")).decode()
    return {row["title"]: (row["census2000"], row["others"]) for row in csv.DictReader(io.StringIO(table))}


def test_the_rules_of_the_table_by_hand(tmp_path: Path) -> None:
    found = index_of(
        tmp_path,
        ("10.0", "Store manager", "868, 869"), ("11.0", "Store manager", "467-579"),  # a range is all its industries
        ("20.0", "Clerk", "467, 500, 579"), ("21.0", "Clerk", "\\ Any not listed"),
        ("30.0", "Baker", "(118)"), ("31.0", "Baker", "118, 119"),  # in parentheses: implied, not asked for
        ("40.0", "Grinder \\ n.s.", ""), ("50.0", "Grinder \\ optical", ""),
        ("60.0", "Bar waiter/waitress", ""), ("70.0", "C.N.A. (certified nursing assistant)", ""),
        ("80.0", "Cook, exc. short order, fast food, or chef", ""), ("90.0", "Farmer", "OBNI 017, 018"), ("91.0", "Farmer", "028"),
        ("", 'Chef--See ""Cook""', ""), ("", "Aide--Code by industry", ""),
    )  # fmt: skip
    assert found == {
        "Store manager": ("11", "10"), "Clerk": ("21", "20"), "Baker": ("30", "31"), "Grinder": ("40", "50"),
        "Bar waiter": ("60", ""), "Bar waitress": ("60", ""), "C.N.A.": ("70", ""),
        "certified nursing assistant": ("70", ""), "Cook": ("80", ""), "Chef": ("80", ""), "Farmer": ("90", "91"),
    }  # fmt: skip


def test_a_file_that_is_no_index_is_refused(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "x.csv.gz", "wt") as file:
        file.write("a,b\n1,2\n")
    with pytest.raises(DataFileError, match=r"x.csv.gz: wanted columns census2000, title and industry_restriction"):
        table_of(tmp_path / "x.csv.gz")


def test_an_index_title_whose_code_hangs_on_the_industry_scores_less() -> None:
    certain, uncertain = title_coder().match_titles(["Lawyer", "Store manager"])
    assert (certain.score, uncertain.score) == (1.0, 0.9)
    assert all(each.code in set(crosswalk("census2000").values()) for each in read_index())


def test_common_titles_coded_by_hand_are_mostly_right() -> None:
    with (PROJECT / "benchmarks/common_titles.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    matches = title_coder().match_titles([row["title"] for row in rows])
    coded = [(match, row) for match, row in zip(matches, rows, strict=True) if match is not None and match.score >= 0.7]
    assert len(coded) / len(rows) > 0.9
    assert sum(match.code in row["occ1990dd"].split() for match, row in coded) / len(coded) > 0.85
