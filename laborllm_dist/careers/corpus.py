"""Open the corpora of a run: one vocabulary, the people of each, and a fingerprint of what they are read from."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from laborllm_dist.careers.career_text import career_text_files, career_text_people
from laborllm_dist.careers.formats import refuse_other_formats, refuse_pointers
from laborllm_dist.careers.history import CareerHistory, OccupationVocabulary
from laborllm_dist.careers.long_panel import long_panel_people
from laborllm_dist.careers.nls.files import nls_files
from laborllm_dist.careers.nls.people import missing_variables as missing_nls_variables
from laborllm_dist.careers.nls.people import nls_people, notes_of_extract, occupations_there
from laborllm_dist.careers.nls.variables import Cohort, years_with_status
from laborllm_dist.careers.occ1990dd import STATES, TABLES_VERSION, occ1990dd_vocabulary, reachable_codes
from laborllm_dist.careers.psid.concepts import psid_schemes
from laborllm_dist.careers.psid.download import missing_variables as missing_psid_variables
from laborllm_dist.careers.psid.people import psid_people
from laborllm_dist.careers.psid.sources import psid_files
from laborllm_dist.careers.reading import PersonRead, ReadPerson
from laborllm_dist.careers.resumes.people import resume_people, resume_vocabulary
from laborllm_dist.careers.resumes.rows import resume_files
from laborllm_dist.careers.synthetic import make_market
from laborllm_dist.careers.synthetic_titles import MARKET_VERSION, synthetic_vocabulary
from laborllm_dist.careers.vocabularies import (
    notes_of_vocabulary,
    read_occupations,
    shipped_vocabularies,
    vocabulary_path,
)
from laborllm_dist.careers.wage_panel import read_wage_panel, wage_panel_fingerprint, wage_panel_vocabulary
from laborllm_dist.corpus_settings import CorpusSettings, VocabularySettings
from laborllm_dist.data_settings import DataSettings
from laborllm_dist.errors import DataFileError, VocabularyError
from laborllm_dist.files import sha256_of_all

Group = TypeVar("Group")


def check_sources(data: DataSettings) -> None:
    """Refuse the first corpus whose files are missing, saying how to get them.

    Raises:
        DataFileError: naming the setting to change.
    """
    for name, corpus in data.corpora.items():
        try:
            for path in source_files(corpus):
                refuse_pointers(path)
        except DataFileError as error:
            advice = f"; {corpus.how_to_get}" if corpus.how_to_get else ""
            place = f"data.corpora.{name}.{corpus.group}.path"
            raise DataFileError(f"no careers of {corpus.survey}: {error} (setting {place}){advice}") from None
        wanted = _vocabulary_settings(corpus)
        if wanted is not None and not vocabulary_path(wanted).is_file():
            raise DataFileError(
                f"no list of occupations for {corpus.survey}: {wanted.path} (setting data.corpora.{name}."
                f"{corpus.group}.vocabulary.path); give a CSV with columns {wanted.code} and {wanted.title}, or "
                f"{shipped_vocabularies()}"
            )


def source_files(corpus: CorpusSettings) -> list[Path]:
    """Return the files that a corpus is read from; none where it is made or comes with a package.

    Raises:
        DataFileError: if they are missing.
    """
    match corpus.kind:
        case "wage_panel" | "synthetic":
            return []
        case "long_panel":
            return [_existing_file(Path(_group(corpus.long_panel).path))]
        case "nlsy79" | "nlsy97":
            return nls_files(Path(_group(corpus.extract).path))
        case "psid":
            return psid_files(Path(_group(corpus.extract).path))
        case "resumes":
            return resume_files(_group(corpus.resumes))
        case "career_text":
            return career_text_files(_group(corpus.career_text))


def missing_variables(data: DataSettings) -> dict[str, list[str]]:
    """Return, for each survey that is read without them, the variables of the method that its extract lacks.

    Raises:
        DataFileError: if what is there is not enough for any observation.
    """
    lacking: dict[str, list[str]] = {}
    for name, corpus in data.corpora.items():
        extract = corpus.extract
        if extract is None or extract.variables == "all":
            continue
        if corpus.kind == "psid":
            lacking[name] = missing_psid_variables(extract)
        else:
            lacking[name] = missing_nls_variables(extract, "NLSY79" if corpus.kind == "nlsy79" else "NLSY97")
    return lacking


def read_people(corpus: CorpusSettings) -> Iterator[ReadPerson]:
    """Return the people of a corpus in the order of its source.

    Raises:
        DataFileError: if the source is unusable; files that are read as a whole are refused before the first person.
    """
    survey = corpus.survey
    match corpus.kind:
        case "wage_panel":
            return _as_people(read_wage_panel(survey=survey))
        case "synthetic":
            settings = _group(corpus.synthetic)
            return _as_people(make_market(settings).careers(settings.num_people, survey=survey))
        case "long_panel":
            return long_panel_people(_group(corpus.long_panel), survey=survey)
        case "nlsy79":
            return nls_people(_group(corpus.extract), "NLSY79", survey=survey)
        case "nlsy97":
            return nls_people(_group(corpus.extract), "NLSY97", survey=survey)
        case "psid":
            return psid_people(_group(corpus.extract), survey=survey)
        case "resumes":
            return resume_people(_group(corpus.resumes), survey=survey)
        case "career_text":
            return career_text_people(_group(corpus.career_text), survey=survey)


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
    match corpus.kind:
        case "wage_panel":
            return wage_panel_vocabulary()
        case "synthetic":
            return synthetic_vocabulary()
        case "nlsy79" | "nlsy97" | "psid":
            return occ1990dd_vocabulary()
        case "resumes":
            return resume_vocabulary(_group(corpus.resumes))
        case "long_panel":
            return read_occupations(_group(corpus.long_panel).vocabulary).vocabulary
        case "career_text":
            return read_occupations(_group(corpus.career_text).vocabulary).vocabulary


def reachable_by_year(corpus: CorpusSettings) -> dict[int, frozenset[str]]:
    """Return, by year, the codes that can be observed: those the census codes lead to, and the states.

    Empty where every occupation of the vocabulary can be observed in any year.
    """
    match corpus.kind:
        case "nlsy79" | "nlsy97":
            cohort: Cohort = "NLSY79" if corpus.kind == "nlsy79" else "NLSY97"
            occupations = occupations_there(_group(corpus.extract), cohort)
            schemes = {year: each.scheme for year, each in occupations.items() if each.scheme is not None}
            states = years_with_status(cohort)
        case "psid":
            schemes = psid_schemes()
            states = set(schemes)
        case _:
            return {}
    return {
        year: reachable_codes(scheme) | (set(STATES) if year in states else set()) for year, scheme in schemes.items()
    }


def corpus_notes(corpus: CorpusSettings) -> list[str]:
    """Return, for the data card, what of a corpus was taken otherwise than the method or the file has it.

    Raises:
        LaborError: if the source is unusable.
    """
    wanted = _vocabulary_settings(corpus)
    notes = [] if wanted is None else notes_of_vocabulary(wanted)
    if corpus.kind in ("nlsy79", "nlsy97"):
        notes += notes_of_extract(_group(corpus.extract), "NLSY79" if corpus.kind == "nlsy79" else "NLSY97")
    return notes


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
                    f"occupation {code!r} is {titles[code]!r} in one corpus and {title!r} in {corpus.survey}"
                )
    return OccupationVocabulary(codes=tuple(titles), titles=tuple(titles.values()))


def fingerprint_sources(data: DataSettings) -> dict[str, str]:
    """Return, for each corpus, what identifies its content: a SHA-256, or the version of the code that makes it.

    Raises:
        DataFileError: if a corpus is missing, or two read the same files as if these were of different people.
    """
    check_sources(data)
    found = {name: _fingerprint(corpus) for name, corpus in data.corpora.items()}
    owner: dict[str, str] = {}
    for name, corpus in data.corpora.items():
        other = owner.setdefault(found[name], name)
        if source_files(corpus) and data.corpora[other].people_of != corpus.people_of:
            population = data.corpora[other].people_of
            raise DataFileError(
                f"corpora {other} and {name} have the same files but not the same population, so that test people of "
                f"one would be trained on in the other; set data.corpora.{name}.population={population}"
            )
    return found


def _fingerprint(corpus: CorpusSettings) -> str:
    match corpus.kind:
        case "wage_panel":
            return f"wage panel {wage_panel_fingerprint()}"
        case "synthetic":
            return f"market {MARKET_VERSION}"
    wanted = _vocabulary_settings(corpus)
    occupations = "occ1990dd" if wanted is None else sha256_of_all([vocabulary_path(wanted)])
    return f"{sha256_of_all(source_files(corpus))}, occupations {occupations}, tables {TABLES_VERSION}"


def _vocabulary_settings(corpus: CorpusSettings) -> VocabularySettings | None:
    for group in (corpus.long_panel, corpus.resumes, corpus.career_text):
        if group is not None:
            return group.vocabulary
    return None


def _as_people(careers: Iterable[CareerHistory]) -> Iterator[ReadPerson]:
    return (functools.partial(PersonRead, career) for career in careers)


def _existing_file(path: Path) -> Path:
    if not path.exists() or path.is_dir():
        raise DataFileError(f"{'a folder' if path.is_dir() else 'no file'} at {path}")
    refuse_other_formats(path)
    return path


def _group(settings: Group | None) -> Group:
    assert settings is not None  # CorpusSettings refuses a corpus without the group of its kind
    return settings
