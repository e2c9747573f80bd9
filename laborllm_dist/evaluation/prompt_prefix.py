"""Another text for a run's people: what stands before every career, and careers that are too long cut to last lines.

Scores under another text than the run's own are a table of their own, under a name that says so, beside the others.
"""

from __future__ import annotations

import dataclasses
import json

from laborllm_dist.careers.splits import Split
from laborllm_dist.config.data import EXAMPLES_LINE, TITLES_LINE, PromptSettings, TemplateSettings
from laborllm_dist.config.run import EvaluateSettings
from laborllm_dist.errors import RunError
from laborllm_dist.store.store import TokenStore, check_lengths

# Details of a score table that say what its text was; absent where it was the plain one.
TEXT_DETAILS = ("preface", "num_fewshot", "fewshot_seed", "max_tokens")


def prompted(template: TemplateSettings, prompt: PromptSettings, split: Split) -> TemplateSettings:
    """Return a run's template with what an evaluation puts before every career.

    Raises:
        RunError: if people of the split that is scored may stand among the examples.
    """
    if prompt.preface is not None:
        template = dataclasses.replace(
            template,
            preface=prompt.preface,
            num_fewshot=prompt.num_fewshot,
            fewshot_seed=prompt.fewshot_seed,
        )
    if template.num_fewshot and split == "train":
        raise RunError("the examples are training people, so split=train would be shown its own answers; take test")
    return template


def text_name(settings: EvaluateSettings, own: TemplateSettings, template: TemplateSettings) -> str:
    """Return what a model's name gets where its text is another than the run's own, such as -titles-3-examples."""
    parts: list[str] = []
    if template != own:
        if TITLES_LINE in template.preface:
            parts.append("titles")
        if EXAMPLES_LINE in template.preface:
            parts.append(f"{template.num_fewshot}-examples")
        if not parts:
            parts.append("preface" if template.preface else "plain")
    if settings.truncation == "last_lines":
        parts.append("last-lines")
    return "".join(f"-{part}" for part in parts)


def text_details(template: TemplateSettings, store: TokenStore, split: Split) -> dict[str, str]:
    """Return what a score table says of its text: preface, examples, and how many people and observations were cut."""
    details: dict[str, str] = {}
    if template.preface:
        details["preface"] = json.dumps(template.preface, ensure_ascii=False)
    if template.num_fewshot:
        details |= {"num_fewshot": str(template.num_fewshot), "fewshot_seed": str(template.fewshot_seed)}
    if template.max_tokens is not None:
        details["max_tokens"] = str(template.max_tokens)
    return details | {name: str(count) for name, count in store.num_truncated(split).items()}


def check_cut(store: TokenStore, max_tokens: int | None, split: Split) -> None:
    """Refuse people who do not fit even without a line of history.

    Raises:
        SequenceTooLongError: naming the longest and how many there are.
    """
    if max_tokens is not None:
        reason = f"without a line of history, and {max_tokens} fit the model's context and a row"
        check_lengths(
            store, max_tokens, f"{reason}; take a longer context, a larger max_seq_length or a shorter prompt", (split,)
        )


def describe_cut(store: TokenStore, max_tokens: int, split: Split) -> str:
    """Return as a line how many people and observations were cut."""
    counts = store.num_truncated(split)
    return (
        f"evaluate: {counts['cut_people']:,} of {store.num_people(split):,} {split} people have more than "
        f"{max_tokens:,} tokens; {counts['cut_observations']:,} observations of theirs are scored after last lines only"
    )
