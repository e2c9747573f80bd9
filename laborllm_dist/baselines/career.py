"""CAREER: a transformer over the jobs of a career (Vafa et al., arXiv 2202.08370)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from laborllm_dist.baselines.two_stage import CareerBatch, TwoStageModel, without_effect_of_unknown


class Career(TwoStageModel):
    """CAREER: a causal transformer over the jobs, whose inputs carry the covariates of the year that is predicted."""

    def __init__(
        self,
        num_occupations: int,
        num_categories: Mapping[str, int],
        *,
        num_layers: int,
        width: int,
        num_heads: int,
        feed_forward: int,
        dropout: float,
    ) -> None:
        super().__init__(num_occupations)
        self.width = width
        self.symbols = nn.Embedding(self.num_symbols, width)
        self.covariates = nn.ModuleDict({name: nn.Embedding(size, width) for name, size in num_categories.items()})
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, num_heads, feed_forward, dropout, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(num_layers)
        )
        for layer in self.layers:
            assert isinstance(layer, nn.TransformerEncoderLayer)
            layer.dropout.p = 0.0  # of the activation, which CAREER does not drop
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, self.num_symbols + 1, bias=False)
        for layer in (self.symbols, *self.covariates.values(), self.output):
            assert isinstance(layer, nn.Embedding | nn.Linear)
            nn.init.normal_(layer.weight, std=width**-0.5)
        for embedding in self.covariates.values():
            without_effect_of_unknown(embedding)

    def forward(self, batch: CareerBatch) -> Tensor:
        """Return the logits."""
        num_jobs = batch.previous_BT.shape[1]
        hidden_BTD = self.symbols(batch.previous_BT) * math.sqrt(self.width)
        hidden_BTD = hidden_BTD + sinusoidal_positions(num_jobs, self.width).to(hidden_BTD)
        for name, embedding in self.covariates.items():
            hidden_BTD = hidden_BTD + embedding(batch.covariates[name])
        hidden_BTD = self.dropout(hidden_BTD)
        causal_TT = nn.Transformer.generate_square_subsequent_mask(num_jobs, device=hidden_BTD.device)
        for layer in self.layers:
            hidden_BTD = layer(hidden_BTD, src_mask=causal_TT, is_causal=True)
        logits: Tensor = self.output(self.norm(hidden_BTD))
        return logits


def sinusoidal_positions(num_positions: int, width: int) -> Tensor:
    """Return sines and cosines of wavelengths from 2 pi to 20,000 pi, [positions, width]; width is even."""
    half = width // 2
    frequencies = torch.exp(torch.arange(half) * (-math.log(10_000) / max(half - 1, 1)))
    angles = torch.arange(num_positions)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)
