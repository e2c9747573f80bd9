"""Open the corpora of a run: their pooled vocabulary, the people of each, and fingerprints of the source files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from laborllm_dist.careers.occupations.occ1990dd import TABLES_VERSION
from laborllm_dist.careers.occupations.vocabulary import notes_of_vocabulary, shipped_vocabularies, vocabulary_path
from laborllm_dist.careers.person_records import PersonThunk
from laborllm_dist.careers.readers.career_text import CAREER_TEXT
from laborllm_dist.careers.readers.file_formats import reject_pointers
from laborllm_dist.careers.readers.long_panel import LONG_PANEL
from laborllm_dist.careers.readers.nls.people import NLSY79, NLSY97
from laborllm_dist.careers.readers.psid.people import PSID
from laborllm_dist.careers.readers.reader import Reader
from laborllm_dist.careers.readers.resumes.people import RESUMES
from laborllm_dist.careers.readers.synthetic.market import SYNTHETIC
from laborllm_dist.careers.readers.wage_panel import WAGE_PANEL
from laborllm_dist.careers.types import CareerHistory, OccupationVocabulary
from laborllm_dist.config.corpora import CorpusSettings, SurveySettings
from laborllm_dist.config.data import DataSettings
from laborllm_dist.errors import DataFileError, VocabularyError
from laborllm_dist.io.files import sha256_of_all

READERS: dict[str, Reader[Any]] = {
    "wage_panel": WAGE_PANEL,
    "long_panel": LONG_PANEL,
    "synthetic": SYNTHETIC,
    "nlsy79": NLSY79,
    "nlsy97": NLSY97,
    "psid": PSID,
    "resumes": RESUMES,
    "career_text": CAREER_TEXT,
}


def check_sources(data: DataSettings) -> None:
    """Check that the files of every corpus exist.

    Raises:
        DataFileError: naming the first missing file, how to download it, and the setting of its path.
    """
    for name, corpus in data.corpora.items():
        try:
            for path in source_files(corpus):
                reject_pointers(path)
        except DataFileError as error:
            advice = f"; {corpus.download_hint}" if corpus.download_hint else ""
            place = f"data.corpora.{name}.path"
            raise DataFileError(
                f"no careers of {corpus.survey}: {error} (setting {place}){advice}", code="unreadable-corpus"
            ) from None
        titles_file = READERS[corpus.kind].own_occupations(corpus)
        if titles_file is not None and not vocabulary_path(titles_file).is_file():
            raise DataFileError(
                f"no list of occupations for {corpus.survey}: {titles_file.path} (setting data.corpora.{name}."
                f"vocabulary.path); give a CSV with columns {titles_file.code} and {titles_file.title}, or "
                f"{shipped_vocabularies()}",
                code="no-occupation-list",
            )


def source_files(corpus: CorpusSettings) -> list[Path]:
    """Return the source files of a corpus; none if it is synthetic or comes with a package.

    Raises:
        DataFileError: if they are missing.
    """
    return READERS[corpus.kind].files(corpus)


def missing_variables(data: DataSettings) -> dict[str, list[str]]:
    """Return the variables of the method that an extract lacks, for each survey whose settings allow that.

    Raises:
        DataFileError: if the variables of an extract are not enough for any observation.
    """
    return {
        name: READERS[corpus.kind].missing_variables(corpus)
        for name, corpus in data.corpora.items()
        if isinstance(corpus, SurveySettings) and corpus.variables != "all"
    }


def read_people(corpus: CorpusSettings) -> Iterator[PersonThunk]:
    """Return the people of a corpus in the order of its source.

    Raises:
        DataFileError: if the source is unusable; before the first person if the file is read as a whole.
    """
    return READERS[corpus.kind].people(corpus, corpus.survey)


def read_careers(data: DataSettings) -> Iterator[CareerHistory]:
    """Yield the careers of all corpora, one corpus after the other."""
    for corpus in data.corpora.values():
        yield from corpus_careers(corpus)


def corpus_careers(corpus: CorpusSettings) -> Iterator[CareerHistory]:
    """Yield the careers of a corpus."""
    for read in read_people(corpus):
        if (career := read().career) is not None:
            yield career


def corpus_vocabulary(corpus: CorpusSettings) -> OccupationVocabulary:
    """Return the occupations of a corpus."""
    return READERS[corpus.kind].vocabulary(corpus)


def reachable_by_year(corpus: CorpusSettings) -> dict[int, frozenset[str]]:
    """Return, by year, the codes that can be observed: those that census codes map to, and the states.

    Empty if every occupation of the vocabulary can be observed in any year.
    """
    return READERS[corpus.kind].reachable_by_year(corpus)


def corpus_notes(corpus: CorpusSettings) -> list[str]:
    """Return notes for the data card about values that were read differently from the method or the file.

    Raises:
        LaborError: if the source is unusable.
    """
    reader = READERS[corpus.kind]
    titles_file = reader.own_occupations(corpus)
    notes = [] if titles_file is None else notes_of_vocabulary(titles_file)
    return [*notes, *reader.notes(corpus)]


def pooled_vocabulary(data: DataSettings) -> OccupationVocabulary:
    """Return the occupations of all corpora, in order of first appearance.

    Raises:
        VocabularyError: if two corpora give one code two titles, or two codes one title.
    """
    titles: dict[str, str] = {}
    for corpus in data.corpora.values():
        for code, title in corpus_vocabulary(corpus).title_of().items():
            if titles.setdefault(code, title) != title:
                raise VocabularyError(
                    f"occupation {code!r} is {titles[code]!r} in one corpus and {title!r} in {corpus.survey}",
                    code="conflicting-titles",
                )
    return OccupationVocabulary(codes=tuple(titles), titles=tuple(titles.values()))


def fingerprint_sources(data: DataSettings) -> dict[str, str]:
    """Return a fingerprint of the content of each corpus: a SHA-256, or the version of the code that generates it.

    Raises:
        DataFileError: if a corpus is missing, or two corpora of different populations read the same files.
    """
    check_sources(data)
    fingerprints = {name: _fingerprint(corpus) for name, corpus in data.corpora.items()}
    owner: dict[str, str] = {}
    for name, corpus in data.corpora.items():
        other = owner.setdefault(fingerprints[name], name)
        if source_files(corpus) and data.corpora[other].people_of != corpus.people_of:
            population = data.corpora[other].people_of
            raise DataFileError(
                f"corpora {other} and {name} have the same files but not the same population, so that test people of "
                f"one would be trained on in the other; set data.corpora.{name}.population={population}",
                code="shared-files-different-population",
            )
    return fingerprints


def _fingerprint(corpus: CorpusSettings) -> str:
    reader = READERS[corpus.kind]
    if reader.version is not None:
        return reader.version()
    titles_file = reader.own_occupations(corpus)
    occupations = "occ1990dd" if titles_file is None else sha256_of_all([vocabulary_path(titles_file)])
    return f"{sha256_of_all(source_files(corpus))}, occupations {occupations}, tables {TABLES_VERSION}"
