"""What is known of a scaling law: all that is printed, written or drawn, and the words for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from laborllm_dist.report.bootstrap import Estimate
from laborllm_dist.sweeps.law import FitMethod, Fits, FormName

FORMULAS: Mapping[FormName, str] = {
    "additive": "L = E + A N^-a + B D^-b",
    "multiplicative": "L = E + A N^-a D^-b",
    "rectified": "L = E + A N^-a / (D0^b + D^b)",
}
MEANINGS = {
    "E": "loss with endless parameters and data",
    "A": "weight of N",
    "B": "weight of D",
    "a": "exponent of N",
    "b": "exponent of D",
    "D0": "observations that pretraining is worth",
}
COUNTED = {"non_embedding": "parameters without embeddings", "total": "parameters with embeddings"}


@dataclass(frozen=True, slots=True)
class PointNumbers:
    """A run, its loss, and what the law says; `fitted` minus `loss` is the law's error."""

    size: str
    run: str | None
    seed: int
    num_params: int
    num_non_embedding_params: int
    num_observations: int
    num_tokens: int | None
    epochs: float
    flops: float | None
    loss: Estimate
    fitted: float


@dataclass(frozen=True, slots=True)
class FormNumbers:
    """A form's fit to all runs, and to those without the largest size, which it then predicts."""

    form: FormName
    parameters: dict[str, float]
    rms_residual: float
    held_out_error: float | None  # root mean square over the runs of the largest size; None: too few runs are left
    problem: str | None  # why the runs do not identify it


@dataclass(frozen=True, slots=True)
class HeldOutNumbers:
    """The largest run, predicted from the runs of smaller sizes."""

    size: str
    num_params: int
    num_observations: int
    num_left_out: int
    observed: float
    predicted: Estimate
    is_inside: bool | None  # the interval contains the observed loss; None: there is no interval


@dataclass(frozen=True, slots=True)
class NoiseNumbers:
    """Standard deviations in nats of the chance in a run's loss."""

    people: float | None  # who was tested: the same for all runs to a great part
    runs: float | None  # of each run on its own, beyond the people: what the draws add; None: no degrees of freedom
    degrees_of_freedom: int
    seeds: float | None  # between runs of one size and share that differ in their seed
    num_repeated: int  # runs that have a twin of another seed


@dataclass(frozen=True, slots=True)
class BudgetNumbers:
    """The best N and D for a budget of FLOPs."""

    flops: float
    num_params: Estimate
    num_observations: Estimate
    loss: Estimate


@dataclass(frozen=True, slots=True)
class FrontierNumbers:
    """The compute-optimal frontier. FLOPs are `factor` N^`power_n` D^`power_d`, as the runs record them."""

    factor: float
    power_n: float
    power_d: float
    exponent_n: Estimate  # best N grows as FLOPs to this power
    exponent_d: Estimate
    budgets: tuple[BudgetNumbers, ...]
    curve: tuple[BudgetNumbers, ...]


@dataclass(frozen=True, slots=True)
class BreakEvenNumbers:
    """How many times the data make the small model equal the large one; infinite: no amount of data does."""

    small: str
    large: str
    num_observations: int  # of the large one
    multiple: Estimate
    share_never: float  # of the draws in which no amount of data does


@dataclass(frozen=True, slots=True)
class BaselineNumbers:
    """A baseline on the same test people, and where the law reaches its loss; infinite: nowhere."""

    model: str
    num_observations: int  # that it was trained on
    loss: Estimate
    num_params: Estimate  # of a model that equals it on these observations
    by_size: tuple[BreakEvenNumbers, ...]  # how many times these observations make each size equal it


@dataclass(frozen=True, slots=True)
class LawNumbers:
    """Everything about a law that is printed, written or drawn."""

    form: FormName
    method: FitMethod
    counted: Literal["non_embedding", "total"]
    pretrained: str
    sources: str
    split: str
    measure: str
    is_excess: bool
    num_people: int | None
    num_observations: int | None
    bootstrap_draws: int
    seed: int
    parameters: dict[str, Estimate]
    parameters_other_count: dict[str, float]  # of the fit by the other count of parameters
    forms: tuple[FormNumbers, ...]
    noise: NoiseNumbers
    held_out: HeldOutNumbers | None
    frontier: FrontierNumbers | None
    break_even: tuple[BreakEvenNumbers, ...]
    baselines: tuple[BaselineNumbers, ...]
    points: tuple[PointNumbers, ...]
    scores: tuple[dict[str, str], ...]
    notes: tuple[str, ...]
    fits: Fits

    @property
    def loss_name(self) -> str:
        """What the loss is, in words."""
        return "nats per observation above the truth" if self.is_excess else "nats per observation"

    def counted_params(self, point: PointNumbers) -> int:
        """Return N of a run, as the law counts parameters."""
        return point.num_params if self.counted == "total" else point.num_non_embedding_params
