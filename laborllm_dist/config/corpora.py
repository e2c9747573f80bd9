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

    path: str  # CSV or Parquet; `builtin:NAME` is one that this software ships
    code: str  # its column of codes
    title: str  # its column of titles
    same_titles: Literal["refuse", "merge"]  # of codes that share a title; merged into the first of them


@dataclass(frozen=True, slots=True)
class ColumnSettings:
    """Which column of a long panel holds what; None: the panel does not have it."""

    person: str
    year: str
    occupation: str
    birth_year: str | None
    gender: str | None
    ethnicity: str | None
    region: str | None
    education: str | None
    status: str | None = added_later(None)  # of employment


@dataclass(frozen=True, slots=True)
class StateCodes:
    """The code in the list of occupations of each state without work; None: it has none, such years are left out.

    `armed_forces` is that of a member of the armed forces whose occupation is not given.
    """

    unemployed: str | None
    not_working: str | None
    enrolled: str | None
    armed_forces: str | None


@dataclass(frozen=True, slots=True)
class StatusSettings:
    """What the words of a panel's status column mean, compared without regard to capitals.

    The rule is the surveys' (careers/readers/person_years.py). `not_told_apart`: not working, and whether unemployed or
    out of the labor force is not known. `unknown`: an occupation of a year whose status is missing is an observation
    (`count`), or left out, as it must be where it may be that of the last job (`leave_out`).
    """

    working: tuple[str, ...]
    armed_forces: tuple[str, ...]
    unemployed: tuple[str, ...]
    not_working: tuple[str, ...]
    enrolled: tuple[str, ...]
    not_told_apart: tuple[str, ...]
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

    A row whose occupation is missing, or a number below zero that is no code of the list, is left out and counted.
    """

    path: str
    vocabulary: VocabularySettings
    columns: ColumnSettings
    missing: tuple[str, ...]  # cells that mean: not known, compared without regard to capitals
    status: StatusSettings | None = added_later(None)

    def __post_init__(self) -> None:
        if self.columns.status is not None and self.status is None:
            raise OutOfRangeError("status", "the words of the status column, since columns.status names one")


@dataclass(frozen=True, slots=True)
class SyntheticSettings:
    """A made labour market with known probabilities (careers/readers/synthetic/market.py)."""

    num_people: Annotated[int, within(1, 10_000_000)]
    seed: Seed


@dataclass(frozen=True, slots=True)
class SurveySettings:
    """An extract of a survey as its site gives it, and which person-years of it are taken; None: no bound.

    `variables`: `all` refuses an extract that lacks a variable of the method, and names it; `available` goes on with
    what is there and says what is not.
    """

    path: str  # a folder, a .zip, or one of the extract's files
    variables: Literal["all", "available"]
    unknown_status: Literal["leave_out", "count"]  # occupations of a present or last job, where nobody knows which
    first_year: Year | None
    last_year: Year | None
    youngest_age: Age | None  # in the calendar year: year - birth year
    oldest_age: Age | None

    def __post_init__(self) -> None:
        check_in_order(self, "first_year", "last_year")
        check_in_order(self, "youngest_age", "oldest_age")


@dataclass(frozen=True, slots=True)
class ResumeColumnSettings:
    """Which column of a resume file holds what; None: the file does not have it.

    With one row per person, the columns of its jobs carry a number: `title_{}` stands for title_0, title_1, ...
    """

    person: str
    title: str | None
    code: str | None
    start: str | None
    end: str | None
    order: str | None  # in place of dates: whole numbers in which a person's jobs follow each other
    education: str | None
    birth_year: str | None
    gender: str | None
    ethnicity: str | None
    region: str | None

    def per_job(self) -> dict[str, str]:
        """Return the columns that say something of a job, by what they say."""
        named = {name: getattr(self, name) for name in ("title", "code", "start", "end", "order", "education")}
        return {name: column for name, column in named.items() if column is not None}


@dataclass(frozen=True, slots=True)
class ResumeSettings:
    """JSONL, CSV (each plain or .gz) or Parquet files of dated jobs.

    `occupation_from`: `code`, a code of the vocabulary; `title`, free text that the title coder turns into an
    occ1990dd code where its score is at least `min_score`; `code_or_title`, the title where there is no code.
    `year_rule`: which of several jobs is a year's: the one held for most `days` of it, or the `latest` to begin.
    `no_end`: a job without an end lasts until the day before the `next_start` (the last one is ongoing), is `ongoing`,
    or is left out. `ongoing` and `missing` are compared without regard to capitals.
    `date_order`: how 03-06-2017 is read; None: as other dates of the file, else of its folder, settle it (22-08-2015).
    `bad_dates`: a job with a date that cannot be read, or cannot be true, refuses the file, or is left out and counted.
    """

    path: str  # a file, or a folder of files of one kind
    rows: Literal["job", "person"]
    people: Literal["together", "anywhere"]  # a person's rows stand together, or anywhere (then all are held in memory)
    num_slots: Annotated[int, within(1, 10_000)] | None  # rows=person: the most jobs that a row has columns for
    columns: ResumeColumnSettings
    occupation_from: Literal["code", "title", "code_or_title"]
    min_score: Share  # of the title coder, 0 to 1
    vocabulary: VocabularySettings
    year_rule: Literal["days", "latest"]
    ongoing: tuple[str, ...]  # an end that means: the job is still held
    no_end: Literal["next_start", "ongoing", "leave_out"]
    last_year: Year  # the calendar year in which the resumes were collected; ongoing jobs end with it
    missing: tuple[str, ...]  # cells that mean: not known
    date_order: Literal["day_first", "month_first"] | None = added_later(None)
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

    path: str
    vocabulary: VocabularySettings
    missing: tuple[str, ...]  # values that mean: not known


@dataclass(frozen=True, slots=True)
class CorpusSettings:
    """One source of careers. `kind` names its reader; the group of the same kind holds the reader's settings."""

    kind: str  # a key of GROUP_OF_KIND
    survey: str  # the dataset tag of the template, such as PSID
    population: str | None  # whose people these are, by default the survey's: who shares it, shares its splits
    fraction: Share  # of its training people, those that are trained on; the 20 % are among the 40 %
    # How many times an epoch takes each of them; 0: never, the corpus is evaluated only.
    weight: Annotated[float, within(0, 1_000)]
    long_panel: LongPanelSettings | None = None
    synthetic: SyntheticSettings | None = None
    extract: SurveySettings | None = None
    resumes: ResumeSettings | None = None
    career_text: CareerTextSettings | None = None
    download_hint: str = ""  # said where the files are missing

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
        """The population: the name under which people are told apart and split."""
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
