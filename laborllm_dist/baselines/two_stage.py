"""Two-stage models of the next occupation: stay in the occupation before or not, and if not, which other one.

    P(y) = sigmoid(s)                                          if y is the previous symbol
    P(y) = (1 - sigmoid(s)) exp(o_y) / sum_{k != previous} exp(o_k)   otherwise

with logits clamped to [-10, 10]. Symbols are the occupations of the vocabulary and the four marks of the authors'
dictionary, so a little probability goes to marks, and at a first observation, whose previous symbol is the mark `</s>`,
that of staying does too: `title` and `normalised` log-likelihoods differ. Sources: CAREER (arXiv 2202.08370) and the
authors' code for CAREER, bag of jobs and regression.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

MARKS = ("<s>", "<pad>", "</s>", "<unk>")
START, PAD = MARKS.index("</s>"), MARKS.index("<pad>")  # after the occupations
CLAMP = 10.0
DECADE = 10.0  # years


@dataclass(frozen=True, slots=True)
class CareerBatch:
    """Careers padded to one length; shapes are [careers, jobs] but for `weights_B` [careers].

    `covariates` are categories by name; those of a person are repeated.
    """

    occupation_BT: Tensor
    previous_BT: Tensor  # symbols: an occupation or a mark
    second_previous_BT: Tensor
    tenure_BT: Tensor  # decades
    experience_BT: Tensor  # decades
    is_gap_BT: Tensor
    is_new_education_BT: Tensor
    covariates: Mapping[str, Tensor]
    mask_BT: Tensor  # where there is an observation
    weights_B: Tensor

    def to(self, device: torch.device) -> CareerBatch:
        """Return the batch on a device."""
        moved = {name: each.to(device) for name, each in self.covariates.items()}
        fields = {name: getattr(self, name) for name in self.__slots__ if name != "covariates"}
        return CareerBatch(**{name: each.to(device) for name, each in fields.items()}, covariates=moved)


def two_stage_log_probabilities(logits: Tensor, previous: Tensor) -> Tensor:
    """Return log P of every symbol in nats, [..., symbols].

    Args:
        logits: [..., symbols + 1]; the last one is that of staying.
        previous: previous symbol, [...].
    """
    logits = logits.float().clamp(-CLAMP, CLAMP)
    move, stay = logits[..., :-1], logits[..., -1:]
    is_previous = functional.one_hot(previous, move.shape[-1]).bool()
    others = move.masked_fill(is_previous, -math.inf)
    moves = functional.logsigmoid(-stay) + functional.log_softmax(others, dim=-1)
    return torch.where(is_previous, functional.logsigmoid(stay).expand_as(moves), moves)


def two_stage_log_likelihood(logits: Tensor, previous: Tensor, observed: Tensor) -> Tensor:
    """Return log P of the observed symbols alone in nats, [...]: without the distribution, in a third of the time.

    Args:
        logits: [..., symbols + 1]; the last one is that of staying.
        previous: previous symbol, [...].
        observed: observed symbol, [...].
    """
    logits = logits.float().clamp(-CLAMP, CLAMP)
    move, stay = logits[..., :-1], logits[..., -1]
    others = move.scatter(-1, previous[..., None], -math.inf)
    chosen = move.gather(-1, observed[..., None]).squeeze(-1)
    moves = functional.logsigmoid(-stay) + chosen - others.logsumexp(dim=-1)
    return torch.where(observed == previous, functional.logsigmoid(stay), moves)


class TwoStageModel(nn.Module):
    """Base of the models: `forward` returns logits [careers, jobs, symbols + 1]."""

    def __init__(self, num_occupations: int) -> None:
        super().__init__()
        self.num_occupations = num_occupations
        self.num_symbols = num_occupations + len(MARKS)

    def log_probabilities(self, batch: CareerBatch) -> Tensor:
        """Return log P of every symbol, [careers, jobs, symbols]."""
        return two_stage_log_probabilities(self(batch), batch.previous_BT)

    def log_likelihood(self, batch: CareerBatch) -> Tensor:
        """Return log P of the observed occupations, [careers, jobs]; of padding, any finite number."""
        return two_stage_log_likelihood(self(batch), batch.previous_BT, batch.occupation_BT)


class TwoStageLogit(TwoStageModel):
    """The authors' regression: effects of the last two jobs, tenure, experience, gaps and covariates on every logit."""

    def __init__(self, num_occupations: int, num_categories: Mapping[str, int]) -> None:
        super().__init__(num_occupations)
        outputs = self.num_symbols + 1
        self.previous = nn.Embedding(self.num_symbols, outputs)
        self.second_previous = nn.Embedding(self.num_symbols, outputs)
        self.covariates = nn.ModuleDict({name: nn.Embedding(size, outputs) for name, size in num_categories.items()})
        self.numbers = nn.Linear(4, outputs)  # tenure, experience, gap, new education; and the intercepts
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, batch: CareerBatch) -> Tensor:
        """Return the logits."""
        numbers = torch.stack(
            [batch.tenure_BT, batch.experience_BT, batch.is_gap_BT.float(), batch.is_new_education_BT.float()], dim=-1
        )
        logits: Tensor = self.numbers(numbers) + self.previous(batch.previous_BT)
        logits = logits + self.second_previous(batch.second_previous_BT)
        for name, effects in self.covariates.items():
            logits = logits + effects(batch.covariates[name])
        return logits


def without_effect_of_unknown(embedding: nn.Module | Tensor) -> None:
    """Set the row of category 0 to 0: a value that no training person has, such as a later year, must add nothing."""
    assert isinstance(embedding, nn.Embedding)
    with torch.no_grad():
        embedding.weight[0] = 0.0


class EmbeddedEffects(nn.Module):
    """Effects of codes on all logits: a linear map of their embeddings, without a bias."""

    def __init__(self, num_codes: int, width: int, outputs: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_codes, width)
        self.output = nn.Linear(width, outputs, bias=False)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)

    def forward(self) -> Tensor:
        """Return the effects of every code, [codes, logits]: there are far fewer codes than observations."""
        effects: Tensor = self.output(self.embedding.weight)
        return effects


class BagOfJobs(TwoStageModel):
    """The authors' bag of jobs: the present job, and the mean of the ones before it; year and education the same.

    Before the first job there is one more code, for nothing, which the mean counts. A linear map of a mean of
    embeddings is the mean of the effects of their codes.
    """

    def __init__(
        self, num_occupations: int, num_categories: Mapping[str, int], width: int, varying: tuple[str, ...]
    ) -> None:
        super().__init__(num_occupations)
        outputs = self.num_symbols + 1
        sizes = {"previous": self.num_symbols, **{name: num_categories[name] for name in varying}}
        fixed = {name: size for name, size in num_categories.items() if name not in varying}
        self.present = nn.ModuleDict({name: EmbeddedEffects(size, width, outputs) for name, size in sizes.items()})
        self.context = nn.ModuleDict({name: EmbeddedEffects(size + 1, width, outputs) for name, size in sizes.items()})
        self.fixed = nn.ModuleDict({name: EmbeddedEffects(size, width, outputs) for name, size in fixed.items()})
        for effects in (self.present, self.context, self.fixed):
            for name, of_name in effects.items():
                if name in num_categories:
                    without_effect_of_unknown(of_name.embedding)

    def forward(self, batch: CareerBatch) -> Tensor:
        """Return the logits."""
        codes = {"previous": batch.previous_BT, **batch.covariates}
        steps_T1 = torch.arange(1, batch.previous_BT.shape[1] + 1, device=batch.previous_BT.device)[:, None]
        logits: Tensor | float = 0.0
        for effects in (self.present, self.fixed):
            for name, of_name in effects.items():
                logits = logits + functional.embedding(codes[name], of_name())
        for name, of_name in self.context.items():
            table = of_name()
            rows_BTS = functional.embedding(codes[name], table)
            logits = logits + (rows_BTS.cumsum(dim=1) - rows_BTS + table[-1]) / steps_T1
        assert isinstance(logits, Tensor)
        return logits
