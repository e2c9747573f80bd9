"""Variants of the titles in a text: the titles themselves, numbers, shuffled titles, or titles with a prefix.

The variants measure what a model learns from the words of a title (LABOR-LLM, arXiv 2406.17972): numbers carry no
information about the occupation, shuffled titles carry wrong information.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from laborllm_dist.careers.types import OccupationVocabulary
from laborllm_dist.config.data import TitleSettings
from laborllm_dist.randomness import rank_of


def display_vocabulary(vocabulary: OccupationVocabulary, settings: TitleSettings) -> OccupationVocabulary:
    """Return the same codes with the titles to write in texts."""
    if settings.style == "english":
        return vocabulary
    titles = vocabulary.titles
    if settings.style == "numeric":
        # Zero-padded, so that no title is a prefix of another.
        width = len(str(len(titles)))
        titles = tuple(f"{settings.prefix}{number:0{width}d}" for number in range(1, len(titles) + 1))
    elif settings.style == "perturbed":
        titles = tuple(f"{settings.prefix}{title}" for title in titles)
    else:
        titles = _shuffled(vocabulary, settings.seed or 0)
    return dataclasses.replace(vocabulary, titles=titles)


def _shuffled(vocabulary: OccupationVocabulary, seed: int) -> tuple[str, ...]:
    """Give every code the title of the next code in a shuffled order: no code keeps its title."""
    titles = list(vocabulary.titles)
    for index, following in _shuffling(vocabulary, seed):
        titles[index] = vocabulary.titles[following]
    return tuple(titles)


def _shuffling(vocabulary: OccupationVocabulary, seed: int) -> Iterator[tuple[int, int]]:
    """Yield the index of every code and the index of the title it gets."""
    order = sorted(range(len(vocabulary)), key=lambda index: rank_of(vocabulary.codes[index], key=str(seed)))
    return zip(order, [*order[1:], order[0]], strict=True)


def canonical_vocabulary(shown: OccupationVocabulary, settings: TitleSettings) -> OccupationVocabulary:
    """Invert `display_vocabulary`: return the same codes with their original titles; numbers are not inverted."""
    titles = list(shown.titles)
    if settings.style == "perturbed":
        titles = [title.removeprefix(settings.prefix or "") for title in titles]
    elif settings.style == "shuffled":
        for index, following in _shuffling(shown, settings.seed or 0):
            titles[following] = shown.titles[index]
    return dataclasses.replace(shown, titles=tuple(titles))
