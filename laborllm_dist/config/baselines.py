"""Settings of launch/baselines.py: which baselines, and how those with weights are trained; of launch/pool_weights.py.

Values live in conf/baselines.yaml; their meaning, units and checks are here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from laborllm_dist.config.number_ranges import Seed, Share, Steps, Threads, Tokens, above, within
from laborllm_dist.config.reader import OutOfRangeError, Strict, is_file_name

BaselineName = Literal[
    "marginal",
    "first_order",
    "second_order",
    "logit",
    "logit_two_stage",
    "bag_of_jobs",
    "career",
    "embedding_logit",
    "average",
    "truth",
]
BASELINES: tuple[BaselineName, ...] = get_args(BaselineName)
WeighingBaseline = Literal["first_order", "second_order", "logit"]


@dataclass(frozen=True, slots=True)
class FitSettings(Strict):
    """Adam with a linear warm-up and an inverse square root decay; the weights of the best validation are kept."""

    learning_rate: Annotated[float, above(0, 1)]
    """Peak learning rate."""
    warmup_updates: Steps
    """Updates with a rising learning rate."""
    max_updates: Steps
    """Most updates."""
    tokens_per_batch: Tokens
    """Observations per update, those of padding included."""
    weight_decay: Annotated[float, within(0, 1_000)]
    """Decoupled weight decay."""
    validate_every_epochs: Annotated[int, within(1, 100_000)]
    """Epochs between validations."""
    patience: Annotated[int, within(1, 1_000_000)]
    """Validations in a row without improvement that end the training."""
    seed: Seed
    """Seed of initial weights, order and dropout."""


@dataclass(frozen=True, slots=True)
class TwoStageLogitSettings(Strict):
    """The authors' regression: last two jobs, tenure, experience, year and education effects, stay or move."""

    birth_year: bool
    """Effects of the year of birth."""
    fit: FitSettings


@dataclass(frozen=True, slots=True)
class BagOfJobsSettings(Strict):
    """Embeddings of the present job and of the mean of earlier ones, stay or move."""

    width: Annotated[int, within(1, 65_536)]
    """Width of the embeddings."""
    birth_year: bool
    """Effects of the year of birth."""
    fit: FitSettings


@dataclass(frozen=True, slots=True)
class CareerSettings(Strict):
    """CAREER (arXiv 2202.08370): a transformer over jobs and covariates, stay or move."""

    num_layers: Annotated[int, within(1, 1_000)]
    """Number of layers."""
    width: Annotated[int, within(2, 65_536)]
    """Width of the residual stream."""
    num_heads: Annotated[int, within(1, 4_096)]
    """Attention heads per layer."""
    feed_forward: Annotated[int, within(1, 1_000_000)]
    """Width of the feed-forward layers."""
    dropout: Share
    """Dropout of inputs, attention and residual branches."""
    birth_year: bool
    """Embed the year of birth."""
    pretrain_on: tuple[str, ...]
    """Dataset tags of the corpora to pretrain on, such as RESUMES; the others are fine-tuned on. Empty: no
    pretraining."""
    pretraining: FitSettings
    fit: FitSettings

    def __post_init__(self) -> None:
        if self.width % (2 * self.num_heads):
            raise OutOfRangeError("width", f"a multiple of 2 x num_heads ({2 * self.num_heads}), got {self.width}")


@dataclass(frozen=True, slots=True)
class EmbeddingLogitSettings(Strict):
    """Multinomial logit on the hidden state of a language model at the prompt."""

    path: str | None
    """Folder or hub id of the model; null: the run's own export."""
    revision: str | None
    """Branch, tag or commit on the hub."""
    subfolder: str | None
    """Folder inside the path."""
    weights: Literal["safetensors", "pickle"]
    """File format; `pickle` opens older files, which can execute code of whoever made them."""
    layer: Annotated[int, within(-1_000, 1_000)]
    """Which hidden state: 0 is the embedding, -1 the last layer, after the model's last norm."""


@dataclass(frozen=True, slots=True)
class AverageSettings(Strict):
    """Average of the probabilities of several models; the weights that fit the validation people best."""

    of: tuple[str, ...]
    """Models to average: `language_model` (the run's own), baselines, or names of other models' score tables."""

    def __post_init__(self) -> None:
        if len(self.of) < 2 or len(set(self.of)) < len(self.of) or {"average", "truth"} & set(self.of):
            raise OutOfRangeError("of", "at least two different models, neither average nor truth")
        for name in self.of:
            if not is_file_name(name):
                raise OutOfRangeError("of", f"names of score tables, got {name!r}")


@dataclass(frozen=True, slots=True)
class BaselineSettings(Strict):
    """Settings of launch/baselines.py."""

    run: str
    """Folder of the run whose people are trained on and scored."""
    baselines: tuple[BaselineName, ...]
    """Which baselines to score; `truth` exists for synthetic careers."""
    split: Literal["train", "validation", "test"]
    """Which people to score."""
    titles: Literal["observed", "all"]
    """Write the score table, or the table of all titles too."""
    threads: Threads
    """CPU threads."""
    logit_two_stage: TwoStageLogitSettings
    bag_of_jobs: BagOfJobsSettings
    career: CareerSettings
    embedding_logit: EmbeddingLogitSettings
    average: AverageSettings


@dataclass(frozen=True, slots=True)
class PoolWeightSettings(Strict):
    """Settings of launch/pool_weights.py."""

    run: str
    """Folder of a run of pooled corpora, trained or only prepared."""
    target: str
    """Corpus, by its name in data.corpora, whose validation people choose the weights of the others."""
    baseline: WeighingBaseline
    """Model that is fitted with every combination of weights."""
