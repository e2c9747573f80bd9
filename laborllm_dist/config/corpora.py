"""Settings of a corpus: the kind of source, where its files are, and what their columns and codes mean.

Values live in conf/corpus; their meaning, units and checks are here.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields
from typing import Annotated, Literal

from laborllm_dist.config.number_ranges import NumberRange, Seed, Share, within
from laborllm_dist.config.reader import ByKind, OutOfRangeError, Strict

EARLIEST_YEAR, LATEST_YEAR = 1850, 2100
Year = Annotated[int, NumberRange(EARLIEST_YEAR, LATEST_YEAR, noun="year")]
Age = Annotated[int, within(0, 150)]
# Cells that mean "not known", whoever wrote the file: R, Excel, pandas, SAS and Stata, databases. The `missing` of
# every kind of file in conf/corpus holds these words, and careers to predict for are read with them.
MISSING_WORDS = ("", ".", "NA", "N/A", "#N/A", "nan", "NaT", "none", "null", "<NA>")


@dataclass(frozen=True, slots=True)
class VocabularySettings(Strict):
    """The list of occupations that a source's codes refer to."""

    path: str
    """CSV or Parquet file; `builtin:NAME` is a list that this software ships."""
    code: str
    """Column of codes."""
    title: str
    """Column of titles."""
    same_titles: Literal["error", "merge"]
    """Codes that share a title: an error (`error`), or merged into the first of them (`merge`)."""


@dataclass(frozen=True, slots=True)
class ColumnSettings(Strict):
    """Column names of a long panel; None: the panel has no such column."""

    person: str
    """Column of the person's id."""
    year: str
    """Column of the calendar year."""
    occupation: str
    """Column of the occupation's code."""
    birth_year: str | None
    """Column of the year of birth."""
    gender: str | None
    """Column of the gender."""
    ethnicity: str | None
    """Column of the ethnicity."""
    region: str | None
    """Column of the region; the resume shows the first one on record."""
    education: str | None
    """Column of the level of education in the year."""
    status: str | None = None
    """Column of the employment status in the year."""


@dataclass(frozen=True, slots=True)
class StateCodes(Strict):
    """Codes of the states without work in the list of occupations; None: no code, and these years are left out."""

    unemployed: str | None
    """Code of the state Unemployed."""
    not_working: str | None
    """Code of the state Not in labor force."""
    enrolled: str | None
    """Code of the state Education."""
    armed_forces: str | None
    """Code of a member of the armed forces whose occupation is not given."""


@dataclass(frozen=True, slots=True)
class StatusSettings(Strict):
    """The meaning of the words in a panel's status column; case does not matter.

    The rule is that of the surveys (careers/readers/person_years.py).
    """

    working: tuple[str, ...]
    """Words that mean: works."""
    armed_forces: tuple[str, ...]
    """Words that mean: is in the armed forces."""
    unemployed: tuple[str, ...]
    """Words that mean: is unemployed."""
    not_working: tuple[str, ...]
    """Words that mean: is out of the labor force."""
    enrolled: tuple[str, ...]
    """Words that mean: does not work and is enrolled in school."""
    not_told_apart: tuple[str, ...]
    """Words that mean: does not work; unemployed or out of the labor force, which is unknown."""
    unknown: Literal["count", "leave_out"]
    """An occupation of a year whose status is missing is an observation (`count`), or left out (`leave_out`)
    because it may be that of the last job."""
    codes: StateCodes

    def __post_init__(self) -> None:
        owner: dict[str, str] = {}
        for name, words in self.words().items():
            for word in words:
                if owner.setdefault(word.casefold(), name) != name:
                    raise OutOfRangeError(
                        name, f"a word in one of the lists only, {word!r} is in {owner[word.casefold()]} too"
                    )

    def words(self) -> dict[str, tuple[str, ...]]:
        """Return the words of each status."""
        return {
            field.name: getattr(self, field.name) for field in fields(self) if field.name not in ("unknown", "codes")
        }


@dataclass(frozen=True, slots=True)
class LongPanelSettings(Strict):
    """A CSV (plain or .gz) or Parquet file with one row per person and year.

    A row is left out and counted if its occupation is missing, or is a negative number that is no code of the list.
    """

    path: str
    """The file."""
    vocabulary: VocabularySettings
    columns: ColumnSettings
    missing: tuple[str, ...]
    """Cells that mean: unknown; case does not matter."""
    status: StatusSettings | None = None

    def __post_init__(self) -> None:
        if self.columns.status is not None and self.status is None:
            raise OutOfRangeError("status", "the words of the status column, since columns.status names one")


@dataclass(frozen=True, slots=True)
class SyntheticSettings(Strict):
    """A synthetic labor market with known probabilities (careers/readers/synthetic/market.py)."""

    num_people: Annotated[int, within(1, 10_000_000)]
    """Number of people in the market."""
    seed: Seed
    """Seed of their careers."""


@dataclass(frozen=True, slots=True)
class SurveySettings(Strict):
    """An extract of a survey as its site delivers it, and limits on its person-years."""

    path: str
    """A folder, a .zip, or one of the extract's files."""
    variables: Literal["all", "available"]
    """An extract that lacks a variable of the method is an error (`all`), or is used with the variables that it
    has (`available`); the data card lists the missing ones."""
    unknown_status: Literal["leave_out", "count"]
    """An occupation of the present or last job in a year of unknown status is left out (`leave_out`) or counts
    (`count`)."""
    first_year: Year | None
    """First calendar year; null: no limit."""
    last_year: Year | None
    """Last calendar year; null: no limit."""
    youngest_age: Age | None
    """Lowest age: calendar year - birth year; null: no limit."""
    oldest_age: Age | None
    """Highest age: calendar year - birth year; null: no limit."""

    def __post_init__(self) -> None:
        check_in_order(self, "first_year", "last_year")
        check_in_order(self, "youngest_age", "oldest_age")


@dataclass(frozen=True, slots=True)
class ResumeColumnSettings(Strict):
    """Column names of a resume file; None: the file has no such column.

    With one row per person, the columns of its jobs carry a number: `title_{}` stands for title_0, title_1, ...
    """

    person: str
    """Column of the person's id."""
    title: str | None
    """Column of the job title."""
    code: str | None
    """Column of the occupation's code."""
    start: str | None
    """Column of the start date, or of a whole range."""
    end: str | None
    """Column of the end date."""
    order: str | None
    """In place of dates: a column of whole numbers that order a person's jobs."""
    education: str | None
    """Column of the level of education."""
    birth_year: str | None
    """Column of the year of birth."""
    gender: str | None
    """Column of the gender."""
    ethnicity: str | None
    """Column of the ethnicity."""
    region: str | None
    """Column of the region."""

    def per_job(self) -> dict[str, str]:
        """Return the columns that say something of a job, by what they say."""
        named = {name: getattr(self, name) for name in ("title", "code", "start", "end", "order", "education")}
        return {name: column for name, column in named.items() if column is not None}


@dataclass(frozen=True, slots=True)
class ResumeSettings(Strict):
    """JSONL, CSV (each plain or .gz) or Parquet files of dated jobs."""

    path: str
    """A file, or a folder of files of one kind."""
    rows: Literal["job", "person"]
    """A row is a job, or a person with numbered columns."""
    people: Literal["together", "anywhere"]
    """A person's rows are adjacent (`together`), or anywhere in the file (`anywhere`: the reader holds everybody
    in memory)."""
    num_slots: Annotated[int, within(1, 10_000)] | None
    """With one row per person: the largest number of jobs that a row has columns for."""
    columns: ResumeColumnSettings
    occupation_from: Literal["code", "title", "code_or_title"]
    """`code`: a code of the vocabulary; `title`: free text, which the title coder maps to occ1990dd;
    `code_or_title`: the title where there is no code."""
    min_score: Share
    """Lowest probability, from 0 to 1, at which the title coder's match counts."""
    vocabulary: VocabularySettings
    year_rule: Literal["days", "latest"]
    """The occupation of a year is that of the job held for most `days` of it, or of the `latest` job to begin."""
    ongoing: tuple[str, ...]
    """An end date that means: the job is still held; case does not matter."""
    no_end: Literal["next_start", "ongoing", "leave_out"]
    """A job without an end lasts until the day before the `next_start` (the last one is ongoing), is `ongoing`,
    or is left out (`leave_out`)."""
    last_year: Year
    """Calendar year in which the resumes were collected; ongoing jobs end with it."""
    missing: tuple[str, ...]
    """Cells that mean: unknown; case does not matter."""
    date_order: Literal["day_first", "month_first"] | None = None
    """Order of an ambiguous date such as 03-06-2017; null: that of unambiguous dates (22-08-2015) of the file,
    else of its folder."""
    bad_dates: Literal["error", "leave_out"] = "error"
    """A job with a date that cannot be parsed, or cannot be true, makes the file an error (`error`), or is left
    out and counted (`leave_out`)."""

    def __post_init__(self) -> None:
        if (self.columns.start is None) == (self.columns.order is None):
            raise OutOfRangeError("columns.start", "either a column of dates, or columns.order where there are none")
        numbered = [name for name, column in self.columns.per_job().items() if "{}" in column]
        if self.rows == "person" and (self.num_slots is None or not {"start", "order"} & set(numbered)):
            raise OutOfRangeError("rows", "num_slots, and columns with {} in their names, where rows=person")
        if self.rows == "job" and numbered:
            raise OutOfRangeError(f"columns.{numbered[0]}", "a name without {} where rows=job")
        needed = {"code": ("code",), "title": ("title",), "code_or_title": ("code", "title")}[self.occupation_from]
        for name in needed:
            if name not in self.columns.per_job():
                raise OutOfRangeError(f"columns.{name}", f"a column, since occupation_from is {self.occupation_from}")
        if self.occupation_from != "code" and self.vocabulary.path != "builtin:occ1990dd":
            raise OutOfRangeError(
                "vocabulary.path", "builtin:occ1990dd, which titles are coded to; or set occupation_from=code"
            )

    @property
    def when(self) -> str:
        """What says when a job was held, for messages."""
        return "a start date" if self.columns.order is None else "a number of its order"

    def is_missing(self, cell: str) -> bool:
        """Return whether a cell says that something is not known."""
        return is_missing(cell, self.missing)

    def is_ongoing(self, cell: str) -> bool:
        """Return whether an end says that the job is still held."""
        return _is_among(cell, self.ongoing)


def is_missing(cell: str, words: tuple[str, ...] = MISSING_WORDS) -> bool:
    """Return whether a cell is empty or one of the words that mean: not known, whatever their capitals."""
    return not cell or _is_among(cell, words)


def _is_among(cell: str, words: tuple[str, ...]) -> bool:
    return cell.casefold() in without_capitals(words)


@functools.lru_cache(maxsize=64)
def without_capitals(words: tuple[str, ...]) -> frozenset[str]:
    """Return words in the form in which they are compared."""
    return frozenset(word.casefold() for word in words)


@dataclass(frozen=True, slots=True)
class CareerTextSettings(Strict):
    """A folder of CAREER's parallel files `{train,valid,test}.{job,year,education,ethnicity,gender,location}`."""

    path: str
    """The folder."""
    vocabulary: VocabularySettings
    missing: tuple[str, ...]
    """Values that mean: unknown."""


@dataclass(frozen=True, kw_only=True)  # without slots: a kind of source has two bases
class CorpusSettings(Strict):
    """A source of careers. These settings are those of every kind; the classes below add those of their reader."""

    kind: str
    """The reader of the source."""
    survey: str
    """Dataset tag in the text, such as PSID."""
    population: str | None
    """Whose people these are; null: the survey's. Corpora of one population share its splits."""
    fraction: Share
    """Fraction of the training people that a run trains on; a smaller fraction is a subset of a larger one."""
    weight: Annotated[float, within(0, 1_000)]
    """How often an epoch uses each of them; 0: never, the corpus is only evaluated."""
    download_hint: str = ""
    """How to get the files; printed if they are missing."""

    @property
    def people_of(self) -> str:
        """The population: people are identified and split within it."""
        return self.population or self.survey


@dataclass(frozen=True, kw_only=True)
class LongPanelCorpus(LongPanelSettings, CorpusSettings):
    """A panel of the user's own."""


@dataclass(frozen=True, kw_only=True)
class SyntheticCorpus(SyntheticSettings, CorpusSettings):
    """Careers of a synthetic labor market."""


@dataclass(frozen=True, kw_only=True)
class SurveyCorpus(SurveySettings, CorpusSettings):
    """PSID, NLSY79 or NLSY97."""


@dataclass(frozen=True, kw_only=True)
class ResumeCorpus(ResumeSettings, CorpusSettings):
    """Resumes."""


@dataclass(frozen=True, kw_only=True)
class CareerTextCorpus(CareerTextSettings, CorpusSettings):
    """Careers in CAREER's file format."""


# The kinds of sources and their settings. careers/corpus.py has the readers.
CORPUS_KINDS: dict[str, type[CorpusSettings]] = {
    "wage_panel": CorpusSettings,
    "long_panel": LongPanelCorpus,
    "synthetic": SyntheticCorpus,
    "nlsy79": SurveyCorpus,
    "nlsy97": SurveyCorpus,
    "psid": SurveyCorpus,
    "resumes": ResumeCorpus,
    "career_text": CareerTextCorpus,
}
Corpus = Annotated[CorpusSettings, ByKind(CORPUS_KINDS)]


def check_in_order(settings: object, first: str, last: str) -> None:
    """Check that the lower bound is not above the upper one."""
    low, high = getattr(settings, first), getattr(settings, last)
    if low is not None and high is not None and low > high:
        raise OutOfRangeError(first, f"at most {last} ({high}), got {low}")
