"""Files of dated jobs: the settings that read them, their careers and their rows."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

from helpers.runs import settings_of
from laborllm_dist.careers.person_records import PersonRecord
from laborllm_dist.careers.readers.resumes.people import resume_people
from laborllm_dist.config.corpora import ResumeSettings


@functools.lru_cache
def composed(name: str) -> ResumeSettings:
    corpus = settings_of([f"data={name}"]).data.corpora[name]
    assert isinstance(corpus, ResumeSettings)
    return corpus


def shipped(name: str, path: Path, **changes) -> ResumeSettings:
    return dataclasses.replace(composed(name), path=str(path), **changes)


def coded(path: Path, **changes) -> ResumeSettings:
    """Settings of a file of codes: 1 Cooks, 2 Bakers, 3 Cooks (merged into 1)."""
    titles = path.parent / ".codes.csv"
    titles.write_text("code,title\n1,Cooks\n2,Bakers\n3,Cooks\n")
    settings = shipped("resumes", path)
    columns = dataclasses.replace(settings.columns, title=None, code="code")
    vocabulary = dataclasses.replace(settings.vocabulary, path=str(titles), same_titles="merge")
    return dataclasses.replace(
        settings,
        **{"columns": columns, "vocabulary": vocabulary, "occupation_from": "code", "last_year": 2020, **changes},
    )


def read(settings: ResumeSettings) -> list[PersonRecord]:
    return [person() for person in resume_people(settings, survey="R")]


def rows_of(*rows: dict) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def job(person: str, code: str, start: str, end: str | None, education: str | None = None) -> dict:
    return {"id": person, "code": code, "start": start, "end": end, "education": education}
