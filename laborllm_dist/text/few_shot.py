"""What stands before every career: instructions, the list of titles, whole careers of other people as examples.

It is the same text for everybody, so that it is written once for a store. Nothing in it is an observation: no span of a
title lies in it, and the people of the examples are training people (store/few_shot.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from laborllm_dist.careers.types import CareerHistory, OccupationVocabulary
from laborllm_dist.config.data import EXAMPLES_LINE, TITLES_LINE, TemplateSettings
from laborllm_dist.text.template import compile_template, render_career


def render_preface(
    settings: TemplateSettings, vocabulary: OccupationVocabulary, examples: Sequence[CareerHistory]
) -> str:
    """Return the preface, whole lines.

    Args:
        settings: of the template.
        vocabulary: with the titles that texts show, in the order of the list.
        examples: careers that are shown whole, with an empty line between two.

    Raises:
        TemplateError: if the template needs a field that an example does not have.
    """
    plain = compile_template(dataclasses.replace(settings, preface=(), num_fewshot=0, max_history=None))
    title_of = vocabulary.title_of()
    shown = {
        TITLES_LINE: "".join(title + "\n" for title in vocabulary.titles),
        EXAMPLES_LINE: "\n".join(render_career(career, plain, title_of)[0].text for career in examples),
    }
    return "".join(shown.get(line, line + "\n") for line in settings.preface)
