"""Settings of a corpus: which kind of source, where its files lie, what in them means what.

As in `settings`: values live in conf/corpus, here are their meaning, units and checks.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from laborllm_dist.config.number_ranges import NumberRange, Seed, Share, within
from laborllm_dist.config.reader import OutOfRangeError, added_later

EARLIEST_YEAR, LATEST_YEAR = 1850, 2100
Year = Annotated[int, NumberRange(EARLIEST_YEAR, LATEST_YEAR, noun="year")]
Age = Annotated[int, within(0, 150)]
# Cells that mean "not known", whoever wrote the file: R, Excel, pandas, SAS and Stata, databases. The `missing` of
# every kind of file in conf/corpus holds these words, and careers to predict for are read with them.
MISSING_WORDS = ("", ".", "NA", "N/A", "#N/A", "nan", "NaT", "none", "null", "<NA>")


@dataclass(frozen=True, slots=True)
class VocabularySettings:
    """The list of occupations that a source's codes refer to."""

    path: str  # CSV or Parquet file; `builtin:NAME` is a list that this software ships
    code: str  # column of codes
    title: str  # column of titles
    # codes that share a title: an error (`refuse`), or merged into the first of them (`merge`)
    same_titles: Literal["refuse", "merge"]


@dataclass(frozen=True, slots=True)
class ColumnSettings:
    """Column names of a long panel; None: the panel has no such column."""

    person: str  # column of the person's id
    year: str  # column of the calendar year
    occupation: str  # column of the occupation's code
    birth_year: str | None  # column of the year of birth
    gender: str | None  # column of the gender
    ethnicity: str | None  # column of the ethnicity
    region: str | None  # column of the region; the resume shows the first one on record
    education: str | None  # column of the level of education in the year
    status: str | None = added_later(None)  # column of the employment status in the year


@dataclass(frozen=True, slots=True)
class StateCodes:
    """Codes of the states without work in the list of occupations; None: no code, and these years are left out."""

    unemployed: str | None  # code of the state Unemployed
    not_working: str | None  # code of the state Not in labor force
    enrolled: str | None  # code of the state Education
    armed_forces: str | None  # code of a member of the armed forces whose occupation is not given


@dataclass(frozen=True, slots=True)
class StatusSettings:
    """The meaning of the words in a panel's status column; case does not matter.

    The rule is that of the surveys (careers/readers/person_years.py).
    """

    working: tuple[str, ...]  # words that mean: works
    armed_forces: tuple[str, ...]  # words that mean: is in the armed forces
    unemployed: tuple[str, ...]  # words that mean: is unemployed
    not_working: tuple[str, ...]  # words that mean: is out of the labor force
    enrolled: tuple[str, ...]  # words that mean: does not work and is enrolled in school
    # words that mean: does not work; unemployed or out of the labor force, which is unknown
    not_told_apart: tuple[str, ...]
    # an occupation of a year whose status is missing is an observation (`count`), or left out (`leave_out`) because it
    # may be that of the last job
    unknown: Literal["count", "leave_out"]
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
class LongPanelSettings:
    """A CSV (plain or .gz) or Parquet file with one row per person and year.

    A row is left out and counted if its occupation is missing, or is a negative number that is no code of the list.
    """

    path: str  # the file
    vocabulary: VocabularySettings
    columns: ColumnSettings
    missing: tuple[str, ...]  # cells that mean: unknown; case does not matter
    status: StatusSettings | None = added_later(None)

    def __post_init__(self) -> None:
        if self.columns.status is not None and self.status is None:
            raise OutOfRangeError("status", "the words of the status column, since columns.status names one")


@dataclass(frozen=True, slots=True)
class SyntheticSettings:
    """A synthetic labor market with known probabilities (careers/readers/synthetic/market.py)."""

    num_people: Annotated[int, within(1, 10_000_000)]  # number of people in the market
    seed: Seed  # seed of their careers


@dataclass(frozen=True, slots=True)
class SurveySettings:
    """An extract of a survey as its site delivers it, and limits on its person-years."""

    path: str  # a folder, a .zip, or one of the extract's files
    # an extract that lacks a variable of the method is an error (`all`), or is used with the variables that it has
    # (`available`); the data card lists the missing ones
    variables: Literal["all", "available"]
    # an occupation of the present or last job in a year of unknown status is left out (`leave_out`) or counts (`count`)
    unknown_status: Literal["leave_out", "count"]
    first_year: Year | None  # first calendar year; None: no limit
    last_year: Year | None  # last calendar year; None: no limit
    youngest_age: Age | None  # lowest age: calendar year - birth year; None: no limit
    oldest_age: Age | None  # highest age: calendar year - birth year; None: no limit

    def __post_init__(self) -> None:
        check_in_order(self, "first_year", "last_year")
        check_in_order(self, "youngest_age", "oldest_age")


@dataclass(frozen=True, slots=True)
class ResumeColumnSettings:
    """Column names of a resume file; None: the file has no such column.

    With one row per person, the columns of its jobs carry a number: `title_{}` stands for title_0, title_1, ...
    """

    person: str  # column of the person's id
    title: str | None  # column of the job title
    code: str | None  # column of the occupation's code
    start: str | None  # column of the start date, or of a whole range
    end: str | None  # column of the end date
    order: str | None  # in place of dates: a column of whole numbers that order a person's jobs
    education: str | None  # column of the level of education
    birth_year: str | None  # column of the year of birth
    gender: str | None  # column of the gender
    ethnicity: str | None  # column of the ethnicity
    region: str | None  # column of the region

    def per_job(self) -> dict[str, str]:
        """Return the columns that say something of a job, by what they say."""
        named = {name: getattr(self, name) for name in ("title", "code", "start", "end", "order", "education")}
        return {name: column for name, column in named.items() if column is not None}


@dataclass(frozen=True, slots=True)
class ResumeSettings:
    """JSONL, CSV (each plain or .gz) or Parquet files of dated jobs."""

    path: str  # a file, or a folder of files of one kind
    rows: Literal["job", "person"]  # a row is a job, or a person with numbered columns
    # a person's rows are adjacent (`together`), or anywhere in the file (`anywhere`: the reader holds everybody in
    # memory)
    people: Literal["together", "anywhere"]
    # with one row per person: the largest number of jobs that a row has columns for
    num_slots: Annotated[int, within(1, 10_000)] | None
    columns: ResumeColumnSettings
    # `code`: a code of the vocabulary; `title`: free text, which the title coder maps to occ1990dd; `code_or_title`:
    # the title where there is no code
    occupation_from: Literal["code", "title", "code_or_title"]
    min_score: Share  # lowest probability, from 0 to 1, at which the title coder's match counts
    vocabulary: VocabularySettings
    # the occupation of a year is that of the job held for most `days` of it, or of the `latest` job to begin
    year_rule: Literal["days", "latest"]
    ongoing: tuple[str, ...]  # an end date that means: the job is still held; case does not matter
    # a job without an end lasts until the day before the `next_start` (the last one is ongoing), is `ongoing`, or is
    # left out (`leave_out`)
    no_end: Literal["next_start", "ongoing", "leave_out"]
    last_year: Year  # calendar year in which the resumes were collected; ongoing jobs end with it
    missing: tuple[str, ...]  # cells that mean: unknown; case does not matter
    # order of an ambiguous date such as 03-06-2017; None: that of unambiguous dates (22-08-2015) of the file, else of
    # its folder
    date_order: Literal["day_first", "month_first"] | None = added_later(None)
    # a job with a date that cannot be parsed, or cannot be true, makes the file an error (`refuse`), or is left out and
    # counted (`leave_out`)
    bad_dates: Literal["refuse", "leave_out"] = added_later("refuse")

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
class CareerTextSettings:
    """A folder of CAREER's parallel files `{train,valid,test}.{job,year,education,ethnicity,gender,location}`."""

    path: str  # the folder
    vocabulary: VocabularySettings
    missing: tuple[str, ...]  # values that mean: unknown


@dataclass(frozen=True, slots=True)
class CorpusSettings:
    """One source of careers. The group of the same kind holds the reader's settings."""

    kind: str  # the reader of the source
    survey: str  # dataset tag in the text, such as PSID
    population: str | None  # whose people these are; None: the survey's. Corpora of one population share its splits
    # fraction of the training people that a run trains on; a smaller fraction is a subset of a larger one
    fraction: Share
    # how often an epoch uses each of them; 0: never, the corpus is only evaluated
    weight: Annotated[float, within(0, 1_000)]
    long_panel: LongPanelSettings | None = None
    synthetic: SyntheticSettings | None = None
    extract: SurveySettings | None = None
    resumes: ResumeSettings | None = None
    career_text: CareerTextSettings | None = None
    download_hint: str = ""  # how to get the files; printed if they are missing

    def __post_init__(self) -> None:
        if self.kind not in GROUP_OF_KIND:
            raise OutOfRangeError("kind", f"one of {', '.join(GROUP_OF_KIND)}, found {self.kind!r}")
        group = GROUP_OF_KIND[self.kind]
        if group is not None and getattr(self, group) is None:
            raise OutOfRangeError(group, f"the settings of a {self.kind} corpus, found none")

    @property
    def group(self) -> str:
        """The name of the group that holds the reader's settings."""
        return GROUP_OF_KIND[self.kind] or self.kind

    @property
    def reader_settings(self) -> Any:
        """The group of settings that the reader of this kind takes; None where it takes none."""
        group = GROUP_OF_KIND[self.kind]
        return None if group is None else getattr(self, group)

    @property
    def people_of(self) -> str:
        """The population: people are identified and split within it."""
        return self.population or self.survey


# The kinds of sources, each with the group that holds its reader's settings. careers/corpus.py has the readers.
GROUP_OF_KIND: dict[str, str | None] = {
    "wage_panel": None,
    "long_panel": "long_panel",
    "synthetic": "synthetic",
    "nlsy79": "extract",
    "nlsy97": "extract",
    "psid": "extract",
    "resumes": "resumes",
    "career_text": "career_text",
}


def check_in_order(settings: object, first: str, last: str) -> None:
    """Refuse a lower bound above the upper one."""
    low, high = getattr(settings, first), getattr(settings, last)
    if low is not None and high is not None and low > high:
        raise OutOfRangeError(first, f"at most {last} ({high}), found {low}")
