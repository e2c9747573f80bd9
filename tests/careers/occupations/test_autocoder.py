"""Free job titles to occ1990dd: the index, the normal form, the nearest title."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import math
from collections import defaultdict
from pathlib import Path

import pytest
from conftest import shared_file
from helpers.errors import raises
from helpers.fuzzing import limited_memory
from helpers.processes import PROJECT

from laborllm_dist.careers.occupations import build_onet
from laborllm_dist.careers.occupations.autocoder import TitleCoder, title_coder
from laborllm_dist.careers.occupations.build_index import table_of
from laborllm_dist.careers.occupations.features import PieceTable
from laborllm_dist.careers.occupations.normalize import normal_form, title_words
from laborllm_dist.careers.occupations.occ1990dd import crosswalk, occ1990dd_vocabulary
from laborllm_dist.careers.occupations.title_index import (
    INDEX_PATH,
    ONET_PATH,
    IndexTitle,
    Source,
    read_index,
)


@pytest.fixture(scope="module")
def whole_index() -> list[IndexTitle]:
    return read_index()


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
    "CCU Nurse (Cardiac Care Unit Nurse)": "cardiac care nurse unit",  # the parentheses spell the title out
    "Nurse (Float Pool)": "nurse",
}


@pytest.mark.parametrize("title", FORMS)
def test_normal_forms_by_hand(title: str) -> None:
    assert normal_form(title) == FORMS[title]


MIN_SCORE = 0.6  # of the shipped settings
HEAD_LAST = {
    "Engineer, chief": "chief engineer",
    "Director of Nursing": "nursing director",
    "Manager - Sales and Marketing": "sale marketing manager",
    "Assistant to the Director": "director assistant",
    "Chief engineer": "chief engineer",
}


@pytest.mark.parametrize("title", HEAD_LAST)
def test_the_head_noun_is_the_last_word(title: str) -> None:
    assert " ".join(title_words(title)) == HEAD_LAST[title]


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
    assert match is not None
    assert occ1990dd_vocabulary().title_of()[match.code] == CODED[title]
    assert match.score > 0.6


# Titles of today, and the codes that are right: programmers 229, systems analysts 64, statisticians 68, analysts 26, 166.
MODERN = {
    "Developer": "229 64", "Sr. Java Developer": "229 64", "Full-Stack Engineer": "229 64", "DevOps Engineer II": "229 64",
    "Data Scientist": "68 64", "Data Analyst": "64 65 68 386", "Senior Consultant": "26", "Business Analyst": "26 64",
    "UX Designer": "64 185", "Product Manager": "13", "Principal Engineer": "59", "Systems analyst": "64",
    "Machine Learning Engineer": "64 229 308", "Metal furnace operator": "766", "Physics technician": "225 235",
    "Scrum Master": "22 37 64", "Barista": "444 439", "Social Media Manager": "13 37 166",
}  # fmt: skip


@pytest.mark.parametrize("title", MODERN)
def test_titles_of_today(title: str) -> None:
    (match,) = title_coder().match_titles([title])
    assert match is not None
    assert match.code in MODERN[title].split()


def test_an_exact_title_scores_high_and_nonsense_little_or_nothing() -> None:
    exact, nothing, nonsense = title_coder().match_titles(["Bricklayer", "12 (x)", "qzxv jjq"])
    assert exact is not None
    assert exact.matched_title == "Bricklayer"
    assert exact.score > 0.9
    assert nothing is None
    assert nonsense is None or nonsense.score < 0.5


def test_a_text_too_long_for_a_title_gets_no_code_in_little_time_and_memory() -> None:
    # A word of 131,072 letters (the longest cell) without each of its letters would be 17 GB.
    word = "".join(chr(ord("a") + at % 26) for at in range(131_072))
    with limited_memory():
        assert title_coder().match_titles([word, f"Registered nurse {word}", "nurse " * 200]) == [None, None, None]
        assert title_coder().match_titles([word[:1000]]) == [None]
        match = title_coder().match_titles(["Registered nurse".ljust(1000)])[0]
    assert match is not None and match.code == "95"


def test_a_title_s_match_does_not_depend_on_the_others(whole_index: list[IndexTitle]) -> None:
    titles = [each.title[:-1] + "x" for each in whole_index[::400]]
    together = title_coder().match_titles(titles)
    assert together == [title_coder().match_titles([title])[0] for title in titles]
    assert together[::-1] == title_coder().match_titles(titles[::-1])
    assert together[40:90] == title_coder().match_titles(titles[40:90])


def made_index(*rows: tuple[str, str, Source]) -> list[IndexTitle]:
    return [IndexTitle(title, title_words(title), tuple(codes.split()), source) for title, codes, source in rows]


SMALL = made_index(
    ("Truck driver", "804", "common"), ("Bus driver", "808", "onet"), ("Truck mechanic", "507", "onet"),
    ("Bus mechanic", "507", "census"), ("Baker", "687 436", "onet"), ("Pastry baker", "687", "census"),
    ("Machine operator", "779 756 766", "census"), ("Furnace operator", "766", "onet"),
)  # fmt: skip


def test_the_word_voter_is_naive_bayes_by_hand() -> None:
    """Independent: log of (count + 0.1) / (total + 0.1 * words) summed over the words, with plain loops."""
    coder = TitleCoder(SMALL)
    query = ("truck", "baker")
    counts: dict[str, dict[str, float]] = {code: defaultdict(float) for code in coder.codes}
    for entry in SMALL:
        uncertain = entry.source == "census" and len(entry.codes) > 1
        for place, code in enumerate(entry.codes):
            share = (0.5 if place == 0 else 0.5 / (len(entry.codes) - 1)) if uncertain else 1 / len(entry.codes)
            for word in entry.words:
                counts[code][word] += share
    num_words = len({word for entry in SMALL for word in entry.words})
    votes = coder.evidence([query]).votes[0][0]
    for code, vote in zip(coder.codes, votes, strict=True):
        total = sum(counts[code].values())
        by_hand = sum(math.log((counts[code][word] + 0.1) / (total + 0.1 * num_words)) for word in query)
        assert vote == pytest.approx(by_hand, abs=1e-4)


def test_the_near_voter_is_a_vote_by_cosines_by_hand() -> None:
    """Independent: dictionaries of tf-idf weights, every cosine computed, its powers summed by code."""
    coder = TitleCoder(SMALL)

    def pieces(words: tuple[str, ...]) -> set[tuple[str, str]]:
        return {("word", w) for w in words} | {("start", w[:5]) for w in words} | {("head", words[-1])}

    num_titles: dict[tuple[str, str], int] = defaultdict(int)
    for entry in SMALL:
        for piece in pieces(entry.words):
            num_titles[piece] += 1

    def vector(words: tuple[str, ...]) -> dict[tuple[str, str], float]:
        weights = {
            piece: (0.7 if piece[0] == "head" else 1.0) * (math.log(9 / (1 + num_titles[piece])) + 1)
            for piece in pieces(words)
            if piece in num_titles
        }
        length = math.sqrt(sum(weight**2 for weight in weights.values()))
        return {piece: weight / length for piece, weight in weights.items()}

    query = vector(("truck", "baker"))
    votes: dict[int, dict[str, float]] = {power: defaultdict(float) for power in (4, 10)}
    for entry in SMALL:
        cosine = sum(weight * vector(entry.words).get(piece, 0.0) for piece, weight in query.items())
        for place, code in enumerate(entry.codes):
            uncertain = entry.source == "census" and len(entry.codes) > 1
            share = (0.5 if place == 0 else 0.25) if uncertain else 1 / len(entry.codes)
            for power in votes:
                votes[power][code] += share * (cosine**power if cosine >= 0.2 else 0.0)
    evidence = coder.evidence([("truck", "baker")])
    for power, given in zip((4, 10), evidence.votes[-2:], strict=True):
        total = sum(votes[power].values())
        for code, vote in zip(coder.codes, given[0], strict=True):
            assert vote == pytest.approx(math.log(votes[power][code] / total + 1e-3), abs=1e-4)


def test_a_code_that_no_title_of_this_head_has_scores_at_most_half() -> None:
    coder = TitleCoder(SMALL, signal_weights=(5.0, *[0.0] * 10))
    agrees, differs = coder.match_titles(["long truck driver", "truck wizard"])
    assert agrees is not None
    assert differs is not None
    assert agrees.score > 0.99
    assert differs.score == 0.5


def test_tables_of_hand_coded_titles_go_before_those_of_o_net_and_the_census() -> None:
    index = made_index(
        ("Agent", "1", "census"), ("Agent", "2", "onet"), ("Agent", "3", "common"), ("Clerk", "1 2", "census")
    )
    for shown, code in ((index, "3"), (index[:2] + index[3:], "2"), (index[:1] + index[3:], "1")):
        (match,) = TitleCoder(shown).match_titles(["agent"])
        assert match is not None
        assert match.code == code


SPELLED = {
    "drivr": "driver",
    "truc": "truck",
    "truckk": "truck",
    "bsu": "bsu",
    "mechainc": "mechanic",
    "bakor": "baker",
}


@pytest.mark.parametrize("word", SPELLED)
def test_words_one_letter_away_by_hand(word: str) -> None:
    assert PieceTable([entry.words for entry in SMALL]).spelled((word,)) == (SPELLED[word],)


def test_a_head_noun_of_the_index_goes_last_by_hand() -> None:
    heads = [title_words(f"{word} mechanic") for word in ("truck", "bus", "car", "boat", "lift")]
    pieces = PieceTable([*heads, ("truck", "driver")])
    assert pieces.with_head_last(("mechanic", "boat", "engine")) == ("boat", "engine", "mechanic")
    assert pieces.with_head_last(("boat", "mechanic")) == ("boat", "mechanic")
    assert pieces.with_head_last(("driver", "boat")) == ("driver", "boat")  # a head of one title only


def test_the_table_follows_from_o_net_s_titles_byte_for_byte() -> None:
    assert build_onet.table_of(shared_file("data/titles/onet27_alternate_titles.csv.gz")) == ONET_PATH.read_bytes()


def onet_file(tmp_path: Path, text: str) -> Path:
    with gzip.open(tmp_path / "onet.csv.gz", "wt") as file:
        file.write(text)
    return tmp_path / "onet.csv.gz"


def test_the_rules_of_o_net_s_table_by_hand(tmp_path: Path) -> None:
    source = onet_file(
        tmp_path,
        "title,occ1990dd,onet_soc\nBaker,687,x\nCCU Nurse (Cardiac Care Unit Nurse),95,x\nBaker,436;874,y\nAgent (A1),29,z\n",
    )
    lines = gzip.decompress(build_onet.table_of(source)).decode().splitlines()
    assert lines == [
        "title,occ1990dd", "Agent (A1),29", "Baker,436 687 873", "CCU Nurse,95", "Cardiac Care Unit Nurse,95",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("a,b\n1,2\n", ("data-file/missing-columns", "onet.csv.gz", "title", "occ1990dd")),
        ("title,occ1990dd\nBaker,12345\n", ("data-file/unknown-occupation-code", "'Baker'", "'12345'")),
    ],
)
def test_files_that_are_no_o_net_titles_are_refused(tmp_path: Path, text: str, error: tuple[str, ...]) -> None:
    with raises(*error):
        build_onet.table_of(onet_file(tmp_path, text))


def test_every_title_of_every_table_has_codes_of_the_vocabulary(whole_index: list[IndexTitle]) -> None:
    known = set(occ1990dd_vocabulary().codes)
    census = set(crosswalk("census2000").values())
    for source, least in (("common", 1_900), ("onet", 35_000), ("census", 23_000)):
        titles = [entry for entry in whole_index if entry.source == source]
        assert len(titles) > least
        assert {code for title in titles for code in title.codes} <= (census if source == "census" else known)
        assert len({title.normal_form for title in titles}) == len(titles)


# Occupations that O*NET's crosswalk sends where no title of theirs belongs (roof bolters to assemblers).
DIFFERS = {"47-5043"}


def test_common_titles_have_the_codes_of_o_net_s_titles_of_their_occupation() -> None:
    with gzip.open(shared_file("data/titles/onet27_alternate_titles.csv.gz"), "rt") as file:
        rows = list(csv.DictReader(file))
    of_soc: dict[str, set[str]] = {}
    for row in rows:
        for soc in row["onet_soc"].split(";"):
            codes = {"873" if code == "874" else code for code in row["occ1990dd"].split(";")}
            of_soc[soc] = of_soc.get(soc, codes) & codes
    with (ONET_PATH.parent / "common_titles.csv").open(encoding="utf-8") as file:
        common = list(csv.DictReader(file))
    compared = 0
    for row in common:
        codes = of_soc.get(row["soc2018"] if "." in row["soc2018"] else f"{row['soc2018']}.00", set())
        if codes and row["soc2018"] not in DIFFERS:
            compared += 1
            assert set(row["occ1990dd"].split()) <= codes, row
    assert compared > 780


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
    actual = index_of(
        tmp_path,
        ("10.0", "Store manager", "868, 869"), ("11.0", "Store manager", "467-579"),  # a range is all its industries
        ("20.0", "Clerk", "467, 500, 579"), ("21.0", "Clerk", "\\ Any not listed"),
        ("30.0", "Baker", "(118)"), ("31.0", "Baker", "118, 119"),  # in parentheses: implied, not asked for
        ("40.0", "Grinder \\ n.s.", ""), ("50.0", "Grinder \\ optical", ""),
        ("60.0", "Bar waiter/waitress", ""), ("70.0", "C.N.A. (certified nursing assistant)", ""),
        ("80.0", "Cook, exc. short order, fast food, or chef", ""), ("90.0", "Farmer", "OBNI 017, 018"), ("91.0", "Farmer", "028"),
        ("", 'Chef--See ""Cook""', ""), ("", "Aide--Code by industry", ""),
    )  # fmt: skip
    assert actual == {
        "Store manager": ("11", "10"), "Clerk": ("21", "20"), "Baker": ("30", "31"), "Grinder": ("40", "50"),
        "Bar waiter": ("60", ""), "Bar waitress": ("60", ""), "C.N.A.": ("70", ""),
        "certified nursing assistant": ("70", ""), "Cook": ("80", ""), "Chef": ("80", ""), "Farmer": ("90", "91"),
    }  # fmt: skip


def test_a_file_that_is_no_index_is_refused(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "x.csv.gz", "wt") as file:
        file.write("a,b\n1,2\n")
    with raises("data-file/missing-columns", "x.csv.gz"):
        table_of(tmp_path / "x.csv.gz")


def test_a_title_whose_code_hangs_on_the_industry_scores_less() -> None:
    index = made_index(
        ("Clerk of works", "35", "census"), ("Yard grader", "488 796", "census"), ("Cook", "436", "onet")
    )
    certain, uncertain = TitleCoder(index).match_titles(["Clerk of works", "Yard grader"])
    assert certain is not None
    assert uncertain is not None
    assert uncertain.code == "488"
    assert uncertain.score < certain.score


def test_titles_coded_by_hand_are_mostly_right_without_their_own_entries(whole_index: list[IndexTitle]) -> None:
    with (PROJECT / "benchmarks/common_titles.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    forms = {normal_form(row["title"]) for row in rows}
    coder = TitleCoder([entry for entry in whole_index if entry.source != "common" or entry.normal_form not in forms])
    matches = coder.match_titles([row["title"] for row in rows])
    coded = [(match, row) for match, row in zip(matches, rows, strict=True) if match and match.score >= MIN_SCORE]
    right = sum(match.code in row["occ1990dd"].split() for match, row in coded)
    assert right / len(rows) > 0.8
    assert right / len(coded) > 0.9


def test_scores_are_about_the_share_that_is_right_on_unseen_titles(whole_index: list[IndexTitle]) -> None:
    """On the half of O*NET's titles that the weights were not fitted to; each score's titles are right about as often."""

    def is_unseen(each: IndexTitle) -> bool:
        return hashlib.sha256(each.normal_form.encode()).digest()[0] % 2 == 1

    unseen = [entry for entry in whole_index if entry.source == "onet" and is_unseen(entry)]
    forms = {entry.normal_form for entry in unseen}
    coder = TitleCoder([entry for entry in whole_index if entry.source == "census" or entry.normal_form not in forms])
    sample = unseen[::6]
    matches = coder.match_titles([entry.title for entry in sample])
    judged = [(m.score, m.code in each.codes) for m, each in zip(matches, sample, strict=True) if m is not None]
    coded = [right for score, right in judged if score >= MIN_SCORE]
    assert len(coded) / len(sample) > 0.6
    assert sum(coded) / len(coded) > 0.85
    for low, high in ((0.3, 0.5), (0.5, 0.7), (0.7, 0.9)):
        between = [(score, right) for score, right in judged if low <= score < high]
        mean = sum(score for score, _ in between) / len(between)
        assert sum(right for _, right in between) / len(between) == pytest.approx(mean, abs=0.12)
