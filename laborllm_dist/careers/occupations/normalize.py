"""Normalize job titles, so that different spellings of one title become the same text.

    "Sr. Mgrs., Marketing (EMEA)"  ->  "manager marketing"
    "Manager, marketing"           ->  "manager marketing"

Words are sorted, since the Census index writes "Engineer, chief" for chief engineer. `title_words` keeps
their order, with the head noun (what the person is: the engineer of "chief engineer", the director of "Director of
Nursing") at the end.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Mapping

# About the rank or the contract of a job, not of the work. `lead`, `chief`, `principal`, `associate` and `assistant`
# are not here: they belong to titles of the index that have codes of their own.
_RANKS = frozenset(("senior", "sr", "junior", "jr", "i", "ii", "iii", "iv", "v", "vi", "level", "entry", "experienced"))
_CONTRACTS = frozenset(("interim", "acting", "former", "ex", "temporary", "temp", "permanent", "freelance", "seasonal"))
_SMALL = frozenset(("a", "an", "and", "at", "by", "for", "from", "in", "of", "on", "or", "the", "to", "with"))
_LEFT_OUT = _RANKS | _CONTRACTS | _SMALL
_ABBREVIATIONS: Mapping[str, str] = {
    "acct": "accountant",
    "adm": "administrative",
    "admin": "administrative",
    "ai": "artificial intelligence",
    "assoc": "associate",
    "asst": "assistant",
    "atty": "attorney",
    "avp": "vice president",
    "bi": "business intelligence",
    "ceo": "chief executive officer",
    "cert": "certified",
    "cfo": "chief financial officer",
    "cio": "chief information officer",
    "cmo": "chief marketing officer",
    "cna": "certified nursing assistant",
    "constr": "construction",
    "coo": "chief operating officer",
    "coord": "coordinator",
    "cpa": "certified public accountant",
    "csr": "customer service representative",
    "cto": "chief technology officer",
    "cust": "customer",
    "dba": "database administrator",
    "dept": "department",
    "dev": "developer",
    "dir": "director",
    "dr": "doctor",
    "elec": "electrical",
    "elem": "elementary",
    "emt": "emergency medical technician",
    "eng": "engineer",
    "engr": "engineer",
    "evp": "vice president",
    "exec": "executive",
    "gm": "general manager",
    "govt": "government",
    "hr": "human resources",
    "info": "information",
    "insp": "inspector",
    "intl": "international",
    "it": "information technology",
    "lab": "laboratory",
    "lpn": "licensed practical nurse",
    "lvn": "licensed vocational nurse",
    "maint": "maintenance",
    "mech": "mechanic",
    "mfg": "manufacturing",
    "mfr": "manufacturer",
    "mgmt": "management",
    "mgr": "manager",
    "mkt": "marketing",
    "mktg": "marketing",
    "ml": "machine learning",
    "natl": "national",
    "np": "nurse practitioner",
    "op": "operator",
    "oper": "operator",
    "opr": "operator",
    "ops": "operations",
    "pharm": "pharmacy",
    "prof": "professor",
    "qa": "quality assurance",
    "qc": "quality control",
    "rep": "representative",
    "rn": "registered nurse",
    "spec": "specialist",
    "spvr": "supervisor",
    "sre": "site reliability engineer",
    "supt": "superintendent",
    "supv": "supervisor",
    "supvr": "supervisor",
    "svc": "service",
    "svp": "vice president",
    "swe": "software engineer",
    "sys": "system",
    "tech": "technician",
    "telecom": "telecommunications",
    "trk": "truck",
    "ui": "user interface",
    "univ": "university",
    "ux": "user experience",
    "vp": "vice president",
    "whse": "warehouse",
    "wrkr": "worker",
}
LONGEST_TITLE = 1_000  # letters; a longer text is not the title of a job, and gets no occupation
_HOURS = re.compile(r"\b(?:full|part)[ -]?time\b")
_IN_PARENTHESES = re.compile(r"\([^()]*\)")
_EMPLOYER = re.compile(r"(?:\s+at\s+(?!law\b|large\b|sea\b)|\s*@\s*).*", re.DOTALL)
_DOTS_OF_LETTERS = re.compile(r"(?<=\b[a-z])\.(?=[a-z]\b)")
_APOSTROPHES = re.compile(r"['’`´]")
_WORDS = re.compile(r"[^\W\d_]+")


_SEGMENTS = re.compile(r"[,;:]|\s[-\u2013\u2014]\s|\b(?:of|for|in|to|with|on|from|by)\b")


def normal_form(title: str) -> str:
    """Return the words of a title that describe the work, in sorted order; "" if there are none.

    It omits text in parentheses and after "at" or "@" (the employer), digits, marks, accents, small words
    (of, the), and words of rank or contract (senior, II, part time). Abbreviations are written out, and plurals made
    singular by their ending. Parentheses that only spell the title out stand for it: "CCU Nurse (Cardiac Care Unit
    Nurse)" is a cardiac care unit nurse.
    """
    return " ".join(sorted(title_words(title)))


def title_words(title: str) -> tuple[str, ...]:
    """Return the words of `normal_form` with the head noun last: "Manager, marketing" is ("marketing", "manager").

    The head is the last word before a comma, a dash or a preposition; the words after these come before it.
    """
    text = _plain(title)
    segments = _segments(_IN_PARENTHESES.sub(" ", text))
    if segments and "(" in text:
        for inner in _IN_PARENTHESES.findall(text):
            spelled_out = _segments(inner[1:-1])
            if spelled_out and spelled_out[0][-1] == segments[0][-1] and sum(map(len, spelled_out)) > 1:
                segments = spelled_out
                break
    return tuple(word for segment in (*segments[1:], *segments[:1]) for word in segment)


def _segments(text: str) -> list[list[str]]:
    """Return the words of each stretch of a title, without those that are left out; empty stretches are dropped."""
    text = _HOURS.sub(" ", _DOTS_OF_LETTERS.sub("", _APOSTROPHES.sub("", _EMPLOYER.sub("", text))))
    stretches = (
        " ".join(_word(word) for word in _WORDS.findall(stretch) if word not in _LEFT_OUT).split()
        for stretch in _SEGMENTS.split(text)
    )
    return [words for words in stretches if words]


def _plain(title: str) -> str:
    """Return a title in small letters without accents."""
    if title.isascii():
        return title.lower()
    folded = unicodedata.normalize("NFKD", title.casefold())
    return "".join(sign for sign in folded if not unicodedata.combining(sign))


@functools.lru_cache(maxsize=100_000)
def _word(word: str) -> str:
    """Return the words that an abbreviation stands for, in the singular."""
    singular = _singular(word)
    return " ".join(map(_singular, _ABBREVIATIONS.get(singular, singular).split()))


def _singular(word: str) -> str:
    """Return a plural's singular; simple endings only, the same for a word of the index and a word of a title."""
    if len(word) < 4 or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("ies"):
        return word[:-3] + "y"
    if word.endswith(("sses", "xes", "ches", "shes")):
        return word[:-2]
    return word[:-1]
