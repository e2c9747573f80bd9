"""Output layers over titles with random weights, and what they say after one prompt, by transformers and by hand."""

from __future__ import annotations

import functools
import math
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from laborllm_dist.config.model import HeadKind
from laborllm_dist.models.title_head import write_title_head
from laborllm_dist.store.tokenizer import CareerTokenizer, load_tokenizer

CODES = ("a", "b", "c")
NAMES: dict[HeadKind, str] = {"softmax": "title_head", "two_stage": "two_stage_head"}


def give_head(run: Path, kind: HeadKind) -> torch.Tensor:
    """Write a layer with random weights beside a run's export."""
    torch.manual_seed(7)
    weight = torch.randn(len(CODES) + (kind == "two_stage"), 32)
    write_title_head(run / "export", weight, CODES)
    return weight.double()


@functools.cache
def plain_model(run: Path) -> tuple[PreTrainedModel, CareerTokenizer]:
    model = AutoModelForCausalLM.from_pretrained(run / "export").double()
    return model, load_tokenizer(str(run / "export"))


def titles_by_hand(run: Path, prompt: str, previous: str | None, kind: HeadKind, weight: torch.Tensor) -> list[float]:
    """Return log P of the three titles after a text, which is forwarded alone by transformers."""
    model, tokenizer = plain_model(run)
    ids = [*tokenizer.leading, *tokenizer.backend.encode(prompt, add_special_tokens=False).ids]
    with torch.no_grad():
        states = model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
    logits = (weight @ states[-1][0, -1]).tolist()
    if kind == "softmax" or previous is None:
        total = sum(map(math.exp, logits[:3]))
        return [math.log(math.exp(each) / total) for each in logits[:3]]
    stay = 1 / (1 + math.exp(-logits[3]))
    total = sum(math.exp(logits[place]) for place in range(3) if CODES[place] != previous)
    moves = [math.log((1 - stay) * math.exp(each) / total) for each in logits[:3]]
    return [math.log(stay) if CODES[place] == previous else moves[place] for place in range(3)]
