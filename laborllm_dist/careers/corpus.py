"""Open the corpora of a run: one vocabulary, a stream of careers, and a fingerprint of what they were read from."""

from __future__ import annotations

import importlib.metadata
import itertools
from collections.abc import Iterator
from pathlib import Path

from laborllm_dist.careers.history import CareerHistory, OccupationVocabulary
from laborllm_dist.careers.long_panel import (
    read_long_panel,
    read_long_panel_vocabulary,
    shipped_vocabularies,
    vocabulary_path,
)
from laborllm_dist.careers.synthetic import make_market
from laborllm_dist.careers.synthetic_titles import MARKET_VERSION, synthetic_vocabulary
from laborllm_dist.careers.wage_panel import read_wage_panel, wage_panel_vocabulary
from laborllm_dist.data_settings import CorpusSettings, DataSettings, LongPanelSettings, SyntheticSettings
from laborllm_dist.errors import DataFileError, VocabularyError
from laborllm_dist.files import sha256_of


def check_sources(data: DataSettings) -> None:
    """Refuse the first corpus whose file is missing, saying how to get it.

    Raises:
        DataFileError: naming the setting to change.
    """
    for name, corpus in data.corpora.items():
        panel, place = corpus.long_panel, f"data.corpora.{name}.long_panel"
        if panel is None:
            continue
        if not Path(panel.path).is_file():
            advice = f"; {corpus.how_to_get}" if corpus.how_to_get else ""
            found = "a folder" if Path(panel.path).is_dir() else "no file"
            raise DataFileError(
                f"no careers of {corpus.survey}: {found} at {panel.path} (setting {place}.path){advice}"
            )
        if not vocabulary_path(panel).is_file():
            raise DataFileError(
                f"no list of occupations for {corpus.survey}: {panel.vocabulary} (setting {place}.vocabulary); give "
                f"a CSV with columns {panel.vocabulary_code} and {panel.vocabulary_title}, or {shipped_vocabularies()}"
            )


def pooled_vocabulary(data: DataSettings) -> OccupationVocabulary:
    """Return the occupations of all corpora, in order of first appearance.

    Raises:
        VocabularyError: if two corpora give one code two titles.
    """
    titles: dict[str, str] = {}
    for corpus in data.corpora.values():
        for code, title in _vocabulary(corpus).title_of().items():
            if titles.setdefault(code, title) != title:
                raise VocabularyError(
                    f"occupation {code!r} is {titles[code]!r} in one corpus and {title!r} in {corpus.survey}"
                )
    return OccupationVocabulary(codes=tuple(titles), titles=tuple(titles.values()))


def career_streams(data: DataSettings) -> list[Iterator[CareerHistory]]:
    """Return a stream of careers for each corpus; every panel file is checked as a whole when its stream begins."""
    check_sources(data)
    return [_careers(corpus) for corpus in data.corpora.values()]


def read_careers(data: DataSettings) -> Iterator[CareerHistory]:
    """Return the careers of all corpora, one corpus after the other."""
    return itertools.chain.from_iterable(career_streams(data))


def fingerprint_sources(data: DataSettings) -> dict[str, str]:
    """Return, for each corpus, what identifies its content: a file's SHA-256, a package's version, a seed."""
    check_sources(data)
    return {name: _fingerprint(corpus) for name, corpus in data.corpora.items()}


def _vocabulary(corpus: CorpusSettings) -> OccupationVocabulary:
    if corpus.kind == "wage_panel":
        return wage_panel_vocabulary()
    if corpus.kind == "synthetic":
        return synthetic_vocabulary()
    return read_long_panel_vocabulary(_long_panel(corpus))


def _careers(corpus: CorpusSettings) -> Iterator[CareerHistory]:
    if corpus.kind == "wage_panel":
        return read_wage_panel(survey=corpus.survey)
    if corpus.kind == "synthetic":
        settings = _synthetic(corpus)
        return make_market(settings).careers(settings.num_people, survey=corpus.survey)
    return read_long_panel(_long_panel(corpus), survey=corpus.survey)


def _fingerprint(corpus: CorpusSettings) -> str:
    if corpus.kind == "wage_panel":
        return f"linearmodels {importlib.metadata.version('linearmodels')}"
    if corpus.kind == "synthetic":
        return f"market {MARKET_VERSION}"
    settings = _long_panel(corpus)
    return f"{sha256_of(Path(settings.path))}, occupations {sha256_of(vocabulary_path(settings))}"


def _long_panel(corpus: CorpusSettings) -> LongPanelSettings:
    assert corpus.long_panel is not None  # CorpusSettings refuses a long_panel without its group
    return corpus.long_panel


def _synthetic(corpus: CorpusSettings) -> SyntheticSettings:
    assert corpus.synthetic is not None
    return corpus.synthetic
