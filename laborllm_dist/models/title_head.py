"""An output layer over all titles, trained with the language model: one forward gives the distribution of a title.

It reads the hidden state at the last token of a prompt, after the last norm, from which the language model predicts the
first token of the title:

    softmax      P(y) = exp(o_y) / sum_k exp(o_k)
    two_stage    P(y) = sigmoid(s)                                               if y is the title before
                 P(y) = (1 - sigmoid(s)) exp(o_y) / sum_{k != previous} exp(o_k)    otherwise
                 as softmax at the first observation of a person, who has no title before

There is no bias: all prompts end in the same token, so hidden states have a part in common. All weights are 0 at the
start, which suits a layer of this kind (its loss is convex in them), disturbs no pretrained weights at the first step,
and is the same on any number of ranks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from laborllm_dist.batching.batch import TitleTargets
from laborllm_dist.config.model import HEAD_NAMES, HeadKind
from laborllm_dist.errors import ModelError
from laborllm_dist.io.files import sha256_of

TITLE_HEAD_FILE = "title_head.safetensors"  # beside the weights of a language model
TITLE_HEAD = "title_head.weight"  # name of its weights in checkpoints and files


def title_log_probabilities(logits_QO: Tensor, previous_Q: Tensor, kind: HeadKind) -> Tensor:
    """Return log P of every title in nats, [Q, titles].

    Args:
        logits_QO: [Q, titles]; of two stages [Q, titles + 1], the last of which is that of staying.
        previous_Q: the title before, the number of titles where there is none.
        kind: of the layer.
    """
    if kind == "softmax":
        return logits_QO.log_softmax(dim=1)
    move_QT, stay_Q1 = logits_QO[:, :-1], logits_QO[:, -1:]
    num_titles = move_QT.shape[1]
    is_previous_QT = torch.arange(num_titles, device=previous_Q.device) == previous_Q[:, None]
    others_QT = move_QT.masked_fill(is_previous_QT, -math.inf).log_softmax(dim=1)
    is_first_Q1 = previous_Q[:, None] == num_titles
    moves_QT = others_QT + nn.functional.logsigmoid(-stay_Q1).masked_fill(is_first_Q1, 0.0)
    return torch.where(is_previous_QT, nn.functional.logsigmoid(stay_Q1), moves_QT)


class TitleHead(nn.Module):
    """The layer: one row of weights per logit."""

    def __init__(self, kind: HeadKind, num_outputs: int, hidden_size: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.kind = kind
        self.weight = nn.Parameter(torch.zeros(num_outputs, hidden_size, dtype=dtype))

    def forward(self, hidden_QD: Tensor, targets: TitleTargets) -> Tensor:
        """Return log P of the observed titles in nats, [Q], in float32 or better."""
        with torch.autocast(hidden_QD.device.type, enabled=False):
            log_p_QT = title_log_probabilities(self._logits(hidden_QD), targets.previous_Q, self.kind)
            return log_p_QT.gather(1, targets.occupations_Q[:, None])[:, 0]

    @torch.inference_mode()
    def distributions(self, hidden_QD: Tensor, previous_Q: Tensor) -> Tensor:
        """Return log P of all titles in nats, [Q, titles] float64."""
        return title_log_probabilities(self._logits(hidden_QD).double(), previous_Q.to(hidden_QD.device), self.kind)

    def _logits(self, hidden_QD: Tensor) -> Tensor:
        precise = torch.float64 if hidden_QD.dtype == torch.float64 else torch.float32
        return hidden_QD.to(precise) @ self.weight.to(precise).T


@dataclass(frozen=True, slots=True)
class SavedTitleHead:
    """A layer beside the weights of a language model, the codes of its titles, and the checksum of its file."""

    head: TitleHead
    occupations: tuple[str, ...]
    sha256: str


def write_title_head(folder: Path, weight: Tensor, occupations: Sequence[str]) -> None:
    """Write a layer beside the weights of its language model, which opens without it."""
    kind: HeadKind = "softmax" if len(weight) == len(occupations) else "two_stage"
    labels = {"format": "pt", "kind": kind, "occupations": json.dumps(list(occupations))}
    path = folder / TITLE_HEAD_FILE
    save_file({TITLE_HEAD: weight.contiguous()}, path, metadata=labels)


def read_title_head(folder: Path) -> SavedTitleHead:
    """Read the layer beside the weights of a language model, in the precision of the file.

    Raises:
        ModelError: if there is none, or it is damaged.
    """
    path = folder / TITLE_HEAD_FILE
    if not path.is_file():
        raise ModelError(
            f"the model at {folder} has no output layer over titles ({TITLE_HEAD_FILE}); train one with "
            "title_head.kind=softmax or two_stage, or leave out title_head=true",
            code="no-title-head",
        )
    try:
        with safe_open(path, framework="pt") as file:
            labels, weight = file.metadata(), file.get_tensor(TITLE_HEAD)
        kind, occupations = labels["kind"], tuple(json.loads(labels["occupations"]))
        if kind not in HEAD_NAMES or len(weight) != len(occupations) + (kind == "two_stage"):
            raise ValueError(f"kind {kind}, {len(weight)} rows for {len(occupations)} titles")
        num_outputs, hidden_size = weight.shape
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} is damaged ({error})", code="damaged-title-head") from None
    head = TitleHead(kind, num_outputs, hidden_size, weight.dtype)
    head.weight.data.copy_(weight)
    return SavedTitleHead(head, occupations, sha256_of(path))
