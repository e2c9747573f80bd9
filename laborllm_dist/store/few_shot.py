"""The prefix of every career: instructions, the list of titles, few-shot examples, which are whole careers.

It is the same text for everybody, so a store holds it once. It contributes no observations: it has no title spans, and
the people of the examples are training people. It is a function of settings and data alone.

The examples are the training people with the smallest digests under the seed, over all corpora, in this order. So the
examples of num_fewshot=3 are the first three of num_fewshot=5, whatever processes and pieces build the store.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from laborllm_dist.careers.corpus import read_people
from laborllm_dist.careers.splits import CareerSplits
from laborllm_dist.careers.types import CareerHistory, OccupationVocabulary
from laborllm_dist.config.data import EXAMPLES_LINE, TITLES_LINE, TemplateSettings
from laborllm_dist.config.run import RunSettings
from laborllm_dist.errors import DataFileError, StoreError
from laborllm_dist.io.files import write_json
from laborllm_dist.io.json_files import NotJsonError, read_json_object
from laborllm_dist.randomness import person_digest
from laborllm_dist.text.template import compile_template, render_career


def choose_examples(settings: RunSettings, splits: CareerSplits) -> tuple[CareerHistory, ...]:
    """Return the careers that a template shows as examples, after one pass over all people.

    With split_by=year, an example holds a person's training years.

    Raises:
        DataFileError: if there are fewer training people.
    """
    num_examples, key = settings.template.num_fewshot, f"examples {settings.template.fewshot_seed}"
    chosen: dict[int, CareerHistory] = {}  # by digest, so that a person of two corpora is one example
    for corpus in settings.data.corpora.values() if num_examples else ():
        for person in read_people(corpus):
            read = person()
            if read.career is None:
                continue
            career = splits.training_career(corpus.people_of, read.career, read.split)
            if career is None:
                continue
            chosen.setdefault(person_digest(corpus.people_of, career.person, key), career)
            if len(chosen) > num_examples:
                del chosen[max(chosen)]
    if len(chosen) < num_examples:
        raise DataFileError(
            f"template.num_fewshot is {num_examples}, data={settings.data.name} has {len(chosen)} training people; "
            "ask for fewer examples",
            code="too-few-examples",
        )
    return tuple(career for _, career in sorted(chosen.items()))


def render_prefix(
    settings: TemplateSettings, vocabulary: OccupationVocabulary, examples: Sequence[CareerHistory]
) -> str:
    """Return the prefix, whole lines.

    Args:
        settings: of the template.
        vocabulary: with the titles that texts show, in the order of the list.
        examples: careers that are shown whole, with an empty line between two.

    Raises:
        TemplateError: if the template needs a field that an example does not have.
    """
    plain = compile_template(dataclasses.replace(settings, prefix=(), num_fewshot=0, max_history=None))
    title_of = vocabulary.title_of()
    shown = {
        TITLES_LINE: "".join(title + "\n" for title in vocabulary.titles),
        EXAMPLES_LINE: "\n".join(render_career(career, plain, title_of)[0].text for career in examples),
    }
    return "".join(shown.get(line, line + "\n") for line in settings.prefix)


def write_prefix(settings: RunSettings, vocabulary: OccupationVocabulary, splits: CareerSplits, path: Path) -> None:
    """Write the prefix and the people of its examples, if the template has a prefix."""
    if not settings.template.prefix:
        return
    examples = choose_examples(settings, splits)
    text = render_prefix(settings.template, vocabulary, examples)
    write_json(path, {"text": text, "examples": [[career.survey, career.person] for career in examples]})


def read_prefix(path: Path) -> str:
    """Return the prefix that was written; an empty text if there is none.

    Raises:
        StoreError: if the file is damaged.
    """
    if not path.is_file():
        return ""
    try:
        text = read_json_object(path)["text"]
    except (OSError, NotJsonError, KeyError) as error:
        raise StoreError(
            f"{path} is damaged ({error}); delete {path.parent} and prepare again", code="damaged-prefix"
        ) from None
    return str(text)
