"""Panel files and vocabularies that tests write, and the settings that read them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from helpers.runs import settings_of
from laborllm_dist.careers.readers.long_panel import OPTIONAL
from laborllm_dist.careers.types import OccupationVocabulary
from laborllm_dist.config.corpora import (
    MISSING_WORDS,
    ColumnSettings,
    LongPanelCorpus,
    LongPanelSettings,
    VocabularySettings,
)
from laborllm_dist.config.data import DataSettings

COLUMNS = ColumnSettings(
    person="person",
    year="year",
    occupation="occupation",
    birth_year="birth_year",
    gender="gender",
    ethnicity="ethnicity",
    region="region",
    education="education",
)


def panel_of(path: Path, vocabulary: str) -> LongPanelSettings:
    titles = VocabularySettings(vocabulary, code="code", title="title", same_titles="error")
    return LongPanelSettings(str(path), titles, COLUMNS, missing=("",))


def panel(folder: Path, name: str = "panel.csv") -> LongPanelSettings:
    (folder / "titles.csv").write_text("code,title\na,Cooks\nb,Bakers\n")
    return panel_of(folder / name, str(folder / "titles.csv"))


def panels(folder: Path, *surveys: str, **changes) -> DataSettings:
    """Return long panels `SURVEY.csv` with titles `SURVEY_titles.csv`, pooled."""
    one = settings_of(["data=long_panel"]).data.corpora["long_panel"]
    assert isinstance(one, LongPanelCorpus)
    corpora = {}
    for survey in surveys:
        corpora[survey] = dataclasses.replace(
            one,
            survey=survey,
            path=str(folder / f"{survey}.csv"),
            vocabulary=dataclasses.replace(one.vocabulary, path=str(folder / f"{survey}_titles.csv")),
            columns=dataclasses.replace(one.columns, **dict.fromkeys(OPTIONAL)),
            **changes,
        )
    return DataSettings("panels", corpora)


def numbered(folder: Path, name: str, **changes) -> LongPanelSettings:
    """Settings of a panel with the columns person, year and occupation alone; codes 1 to 3 and -8."""
    settings = panel(folder, name)
    (folder / "titles.csv").write_text("code,title\n1,Cooks\n2.0,Bakers\n3,Maids\n-8,On the move\n")
    columns = dataclasses.replace(
        settings.columns, **dict.fromkeys(("birth_year", "gender", "ethnicity", "region", "education"))
    )
    return dataclasses.replace(settings, columns=columns, missing=MISSING_WORDS, **changes)


VOCABULARY = OccupationVocabulary(("1", "2"), ("Cooks", "Bakers"))
