"""The definition of a score, word for word: one observation, one forward, float64, nothing shared, nothing packed.

log P(title | prompt) = sum over the title's tokens of log softmax(logits of the text before it)[token], where the
tokens are those of the whole text up to the title's end, found by encoding the prompt alone and the prompt + title.
"""

from __future__ import annotations

import torch
from transformers import PreTrainedModel


def slow_score(model: PreTrainedModel, encode, leading: list[int], prompt: str, title: str) -> tuple[float, float, int]:
    """Return title and terminated log-likelihood in nats, and the number of the title's tokens.

    Args:
        model: in float64.
        encode: text -> ids without marks.
        leading: ids put before every text.
        prompt: text up to the blank before the title.
        title: the title's text, without the blank.
    """
    before = leading + encode(prompt)
    through_title = leading + encode(f"{prompt} {title}")
    through_line = leading + encode(f"{prompt} {title}\n")
    assert through_title[: len(before)] == before
    assert through_line[: len(through_title)] == through_title
    assert len(through_line) == len(through_title) + 1
    with torch.no_grad():
        logits_TV = model(input_ids=torch.tensor([through_line])).logits[0]
    assert logits_TV.dtype == torch.float64
    log_probabilities_TV = torch.log_softmax(logits_TV, dim=-1)
    scores = [
        float(log_probabilities_TV[place - 1, through_line[place]]) for place in range(len(before), len(through_line))
    ]
    return sum(scores[:-1]), sum(scores), len(through_title) - len(before)
