"""The tokenizer of a run: the model's own, another pretrained one, or one learned from the texts of training people."""

from __future__ import annotations

import itertools
import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from laborllm_dist.careers.corpus import read_careers, read_people
from laborllm_dist.careers.person_records import PersonThunk
from laborllm_dist.careers.splits import CareerSplits
from laborllm_dist.careers.types import OccupationVocabulary
from laborllm_dist.config.data import TemplateSettings
from laborllm_dist.config.run import RunSettings
from laborllm_dist.errors import DataFileError
from laborllm_dist.store.truncation import CareerPart, render_part
from laborllm_dist.text.template import Template, render_career

if TYPE_CHECKING:
    from laborllm_dist.store.tokenizer import CareerTokenizer

logger = logging.getLogger(__name__)

_NUM_REASONS = 3  # the number that an error names


def make_tokenizer(
    settings: RunSettings, vocabulary: OccupationVocabulary, template: Template, splits: CareerSplits
) -> CareerTokenizer:
    """Return the tokenizer of a run: a pretrained one, or one learned now from its training people.

    Raises:
        TokenizerError: if it cannot be opened or learned.
    """
    from laborllm_dist.store.tokenizer import WholeTokens, load_tokenizer, train_tokenizer

    chosen = settings.tokenizer
    if chosen.kind == "pretrained":
        path, revision, subfolder = tokenizer_place(settings)
        return load_tokenizer(path, revision=revision, subfolder=subfolder)
    assert chosen.vocabulary_size is not None  # TokenizerSettings requires it for a trained tokenizer
    # Raises for an unreadable corpus before the message about learning from it.
    people_of = {name: _from_first_career(read_people(corpus)) for name, corpus in settings.data.corpora.items()}
    if not any(people is not None for people in people_of.values()):
        raise _no_careers(settings)
    logger.info(f"prepare: learning a tokenizer of {chosen.vocabulary_size} pieces from the training people")
    texts = _training_texts(settings, people_of, (vocabulary, template), splits)
    whole_tokens = (
        None if chosen.titles == "pieces" else WholeTokens(vocabulary.titles, constant_phrases(settings.template))
    )
    return train_tokenizer(texts, vocabulary_size=chosen.vocabulary_size, whole_tokens=whole_tokens)


def constant_phrases(template: TemplateSettings) -> list[str]:
    """Return the constant phrases, of two words or more, in a template's heading and ending."""
    stretches = re.split(r"[\[\]]|\{\w+\}", "\n".join([*template.heading, *template.ending]))
    phrases = (line.rstrip() for stretch in stretches for line in stretch.split("\n"))
    return list(dict.fromkeys(phrase for phrase in phrases if " " in phrase.strip()))


def _from_first_career(people: Iterator[PersonThunk]) -> Iterator[PersonThunk] | None:
    """Return the people from the first who has a career; None if nobody has one."""
    first = next((person for person in people if person().career is not None), None)
    return None if first is None else itertools.chain((first,), people)


def _training_texts(
    settings: RunSettings,
    people_of: Mapping[str, Iterator[PersonThunk] | None],
    rendering: tuple[OccupationVocabulary, Template],
    splits: CareerSplits,
) -> Iterator[str]:
    """Yield training texts, of as many people from each corpus."""
    (vocabulary, template), corpora = rendering, settings.data.corpora
    title_of = vocabulary.title_of()
    share = -(-(settings.tokenizer.training_people or 0) // len(corpora))
    for name, corpus in corpora.items():
        people = (person() for person in people_of[name] or ())
        parts = (
            CareerPart(read.career, segment)
            for read in people
            if read.career is not None
            for segment in splits.segments(corpus.people_of, read.career, read.split)
            if segment.split == "train"
        )
        for part in itertools.islice(parts, share):
            for rendered in render_part(part, template, title_of):
                yield rendered.text


def sample_prompt(settings: RunSettings, vocabulary: OccupationVocabulary, template: Template) -> str:
    """Return a real prompt: the text of the first career up to its last title."""
    for career in read_careers(settings.data):
        rendered = render_career(career, template, vocabulary.title_of())[-1]
        return rendered.text[: rendered.title_spans[-1][0]]
    raise _no_careers(settings)


def _no_careers(settings: RunSettings) -> DataFileError:
    """Return the error for corpora in which nobody has a career, with the most frequent reasons."""
    people = (person() for corpus in settings.data.corpora.values() for person in read_people(corpus))
    reasons = Counter(drop.reason for read in people for drop in read.drops)
    shown = "; ".join(f"{reason} ({times:,})" for reason, times in reasons.most_common(_NUM_REASONS))
    return DataFileError(
        f"the corpora of data={settings.data.name} hold no careers{f'; left out: {shown}' if shown else ''}",
        code="empty-corpora",
    )


def tokenizer_place(settings: RunSettings) -> tuple[str, str | None, str | None]:
    """Return path, revision and subfolder: the tokenizer's own path, or the model's."""
    if settings.tokenizer.path is not None:
        return settings.tokenizer.path, None, None
    if settings.model.path is None:
        raise DataFileError(
            "tokenizer.kind=pretrained needs tokenizer.path, or a model.path whose tokenizer is taken",
            code="no-tokenizer-path",
        )
    return settings.model.path, settings.model.revision, settings.model.subfolder
