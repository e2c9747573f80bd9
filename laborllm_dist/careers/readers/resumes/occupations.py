"""Assign occupations to jobs, by their code or by the title coder, for many people at once.

The coder is much faster per title on many titles, so the titles of a block of people are coded together when the first
of these people is read; a process that reads none of a block codes none of its titles. The 200,000 most recently used
titles are cached.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from laborllm_dist.careers.occupations.normalize import LONGEST_TITLE
from laborllm_dist.careers.occupations.occ1990dd import occ1990dd_vocabulary
from laborllm_dist.careers.occupations.vocabulary import Occupations, read_occupations
from laborllm_dist.careers.person_records import CodedTitle
from laborllm_dist.careers.readers.cells import same_code
from laborllm_dist.careers.readers.resumes.spells import Spell
from laborllm_dist.careers.types import OccupationVocabulary
from laborllm_dist.config.corpora import ResumeSettings

if TYPE_CHECKING:
    from laborllm_dist.careers.occupations.autocoder import TitleMatch

_NUM_REMEMBERED = 200_000

Matches: TypeAlias = "Mapping[str, TitleMatch | None]"


def resume_occupations(settings: ResumeSettings) -> Occupations:
    """Return the occupations of a corpus of resumes: occ1990dd if titles are coded, else its own list.

    Raises:
        VocabularyError: if that list is unusable.
    """
    if settings.occupation_from == "code":
        return read_occupations(settings.vocabulary)
    vocabulary = occ1990dd_vocabulary()
    return Occupations(vocabulary, {code: code for code in vocabulary.codes})


def resume_vocabulary(settings: ResumeSettings) -> OccupationVocabulary:
    """Return the vocabulary of `resume_occupations`."""
    return resume_occupations(settings).vocabulary


@dataclass(frozen=True, slots=True)
class MatchCache:
    """A cache of the title coder's matches."""

    matches: OrderedDict[str, TitleMatch | None] = field(default_factory=OrderedDict)

    def match(self, titles: Iterable[str]) -> dict[str, TitleMatch | None]:
        """Return the match of every title."""
        distinct = list(dict.fromkeys(titles))
        new = [title for title in distinct if title not in self.matches]
        if new:
            from laborllm_dist.careers.occupations.autocoder import title_coder

            self.matches.update(zip(new, title_coder().match_titles(new), strict=True))
        matches: dict[str, TitleMatch | None] = {}
        for title in distinct:
            self.matches.move_to_end(title)
            matches[title] = self.matches[title]
        while len(self.matches) > _NUM_REMEMBERED:
            self.matches.popitem(last=False)
        return matches


@dataclass(frozen=True, slots=True)
class OccupationReader:
    """Maps the code or title of a job to an occupation of the vocabulary."""

    settings: ResumeSettings
    code_of: Mapping[str, str]
    memory: MatchCache = field(default_factory=MatchCache)

    def match_titles(self, spells: Iterable[Spell]) -> Matches:
        """Return the matches of all titles that determine an occupation."""
        if self.settings.occupation_from == "code":
            return {}
        by_title = self.settings.occupation_from == "title"
        titles = (spell.title for spell in spells if by_title or spell.code is None)
        return self.memory.match(title for title in titles if title is not None and len(title) <= LONGEST_TITLE)

    def occupation(self, spell: Spell, matches: Matches) -> str | None:
        """Return the occupation of a job; None if it has none, with the reason in `why_none`."""
        if self._has_code(spell):
            code = spell.code or ""
            return self.code_of.get(code) or self.code_of.get(same_code(code))
        match = matches.get(spell.title or "")
        return match.code if match is not None and match.score >= self.settings.min_score else None

    def coded_titles(self, spells: Iterable[Spell], matches: Matches) -> tuple[CodedTitle, ...]:
        """Return the coded titles among those that determine an occupation."""
        coded = []
        for spell in spells:
            if self._has_code(spell) or spell.title is None:
                continue
            match = matches.get(spell.title)
            coded.append(
                CodedTitle(
                    spell.title[:LONGEST_TITLE],
                    None if match is None else match.matched_title,
                    0.0 if match is None else round(match.score, 2),
                    self.occupation(spell, matches),
                )
            )
        return tuple(coded)

    def unmapped_code(self, spell: Spell) -> str | None:
        """Return the code of a job if it maps to no occupation."""
        return spell.code if self._has_code(spell) and self.occupation(spell, {}) is None else None

    def why_none(self, spell: Spell) -> str:
        """Return why a job has no occupation."""
        kind = self.settings.occupation_from
        if self._has_code(spell):
            return "code not in the vocabulary" if spell.code else "job without a code"
        if spell.title is None:
            return "job without a title" if kind == "title" else "job without a code or title"
        return f"title not coded (score below {self.settings.min_score:g})"

    def _has_code(self, spell: Spell) -> bool:
        """Return whether the code of a job determines its occupation."""
        kind = self.settings.occupation_from
        return kind == "code" or (kind == "code_or_title" and spell.code is not None)
