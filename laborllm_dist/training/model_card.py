"""The model card of an export, README.md: base, data and what may be done with them, settings, and validation loss."""

from __future__ import annotations

import json
from pathlib import Path

from laborllm_dist import __version__
from laborllm_dist.careers.corpus import READERS
from laborllm_dist.config.run import RunSettings
from laborllm_dist.models.title_head import TITLE_HEAD_FILE
from laborllm_dist.plain_text import markdown_code, markdown_text
from laborllm_dist.store.store import TokenStore
from laborllm_dist.training.state import TrainerState

RESTRICTED = (
    "**Restricted.** This model was trained on data that may not be passed on freely, and a language model can repeat "
    "what it was trained on. Share these weights only if the terms of the base model and every source below allow it."
)
SHAREABLE = "The terms of the sources below, as far as this software knows them, do not forbid sharing these weights."


def model_card(settings: RunSettings, store: TokenStore, state: TrainerState, weights: str | None) -> str:
    """Return the card as Markdown with the front matter of the Hugging Face Hub.

    Args:
        settings: of the run.
        store: that it was trained on.
        state: at its end.
        weights: identifier of the pretrained weights; None for a randomly initialized model.
    """
    path = settings.model.path
    is_local = path is not None and Path(path).is_dir()  # whose path is nobody's business
    base = Path(path).resolve().name if path is not None and is_local else path
    corpora = settings.data.corpora
    terms = {name: READERS[corpus.kind].terms for name, corpus in corpora.items()}
    # A model of this disk may have learned from anything.
    is_restricted = is_local or not all(each.may_be_shared for each in terms.values())
    matter = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["laborllm_dist", "occupations", "careers"],
        **({} if base is None or is_local else {"base_model": base}),
    }
    front = "".join(f"{name}: {json.dumps(value, ensure_ascii=False)}\n" for name, value in matter.items())
    trained = "randomly initialized" if base is None else f"fine-tuned from {markdown_code(base)}"
    revision = "" if settings.model.revision is None else f", revision {markdown_code(settings.model.revision)}"
    checksum = "" if weights is None else f" (weights {markdown_code(weights)})"
    adapter = "" if settings.adapter.kind == "none" else f"; LoRA of rank {settings.adapter.rank}, merged into the base"
    optimizer, training, head = settings.optimizer, settings.training, settings.title_head
    loss = state.best_nats_per_title
    lines = [
        f"---\n{front}---\n",
        f"# {markdown_text(settings.name)}\n",
        "A causal language model of careers: text of one line per year with education and job title, as in LABOR-LLM "
        "(arXiv 2406.17972). The probability of a title after a prompt is the product of the probabilities of its "
        f"tokens. Made by laborllm_dist {__version__}.\n",
        (RESTRICTED if is_restricted else SHAREABLE) + "\n",
        "## Model\n",
        f"- {settings.model.name}: {trained}{revision}{checksum}{adapter}",
        *([] if base is None else ["- The license of the base model applies to this model too."]),
        *([] if head.kind == "none" else [f"- {TITLE_HEAD_FILE}: a {head.kind} output layer over all titles"]),
        f"- {settings.optimizer.name}, peak learning rate {optimizer.learning_rate:g}, {optimizer.lr_scheduler} decay, "
        f"{settings.batch.global_batch_size} careers a step, seed {training.seed}",
        f"- weights of step {state.best_step}, the best of {len(state.validations)} validations"
        + ("" if loss is None else f": {loss:.4f} nats per title of the validation people"),
        "",
        "## Data\n",
        f"{store.num_people('train'):,} training people and {store.num_people('validation'):,} validation people:\n",
    ]
    for name, corpus in corpora.items():
        lines += [
            f"### {markdown_text(name)}: {markdown_text(terms[name].title)}\n",
            f"- survey tag in the text: {markdown_text(corpus.survey)}",
            f"- access: {terms[name].access}",
            f"- rights: {terms[name].rights}",
            f"- citation: {terms[name].citation}",
            "",
        ]
    lines += [
        "## Use\n",
        "The prompt must be the text that the model was trained on, up to the colon before a title; the template and "
        "all other settings are in `settings.json` of the run. Probabilities describe people like those in the data, "
        "in the years of the data. They are not meant for decisions about single people.\n",
        "Scores of test people are in the score tables of the run (`laborllm report`).",
    ]
    return "\n".join(lines) + "\n"
