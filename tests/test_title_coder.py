"""Free job titles to occ1990dd: the index, the normal form, the nearest title."""

from __future__ import annotations

import csv
import gzip

import numpy as np
import pytest
from conftest import shared_file
from sklearn.feature_extraction.text import TfidfVectorizer

from laborllm_dist.careers.occ1990dd import crosswalk, occ1990dd_vocabulary
from laborllm_dist.careers.titles.coder import title_coder
from laborllm_dist.careers.titles.index import INDEX_PATH, read_index
from laborllm_dist.careers.titles.normal_form import normal_form

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
        assert match.score == pytest.approx(cosines.max(), abs=1e-5)
        assert cosines[[each.title for each in index].index(match.matched_title)] == pytest.approx(
            cosines.max(), abs=1e-5
        )


def test_the_table_is_the_census_index_and_its_codes_lead_to_occ1990dd() -> None:
    with gzip.open(INDEX_PATH, "rt") as file:
        rows = list(csv.DictReader(file))
    with gzip.open(shared_file("data/titles/census2000_alphabetical_index.csv.gz"), "rt") as file:
        index = list(csv.DictReader(file))
    codes = {int(float(row["census2000"])) for row in index if row["census2000"]}
    assert {int(row["census2000"]) for row in rows} <= codes
    assert len(rows) > 20_000
    assert len({row["title"] for row in rows}) == len(rows)
    # Titles of one unrestricted entry keep its code.
    plain = {}
    for row in index:
        plain.setdefault(row["title"], []).append(row)
    alone = {
        title: int(float(found[0]["census2000"]))
        for title, found in plain.items()
        if len(found) == 1 and found[0]["census2000"] and not found[0]["industry_restriction"] and title.isalpha()
    }
    table = {row["title"]: int(row["census2000"]) for row in rows}
    common = [title for title in alone if title in table]
    assert len(common) > 500
    assert sum(alone[title] == table[title] for title in common) / len(common) > 0.99
    assert all(each.code in set(crosswalk("census2000").values()) for each in read_index())
