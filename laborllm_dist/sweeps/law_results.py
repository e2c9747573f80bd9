"""The results of a scaling law as dataclasses, from which tables, files and figures are made, and the terms in them."""

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
    "E": "irreducible loss, with infinite parameters and data",
    "A": "coefficient of N",
    "B": "coefficient of D",
    "a": "exponent of N",
    "b": "exponent of D",
    "D0": "observations that pretraining is worth",
}
COUNTED = {"non_embedding": "parameters without embeddings", "total": "parameters with embeddings"}


@dataclass(frozen=True, slots=True)
class PointNumbers:
    """A run, its loss and the loss by the law; `fitted` minus `loss` is the error of the law."""

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
    """The fit of a form to all runs, and its error on the largest size when it is fitted without that size."""

    form: FormName
    parameters: dict[str, float]
    rms_residual: float
    held_out_error: float | None  # root mean square over the runs of the largest size; None: too few smaller runs
    problem: str | None  # why the runs do not identify the form; None: they do


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
    """Standard deviations of the random parts of a loss, in nats."""

    people: float | None  # from the choice of test people, largely common to all runs; None: people are unknown
    runs: float | None  # of each run besides the test people, which the draws add; None: no degrees of freedom
    degrees_of_freedom: int
    seeds: float | None  # between runs that differ only in their seed; None: there are none
    num_repeated: int  # number of those runs


@dataclass(frozen=True, slots=True)
class BudgetNumbers:
    """The best N and D for a budget of FLOPs."""

    flops: float
    num_params: Estimate
    num_observations: Estimate
    loss: Estimate


@dataclass(frozen=True, slots=True)
class FrontierNumbers:
    """The compute-optimal frontier. FLOPs are `factor` N^`power_n` D^`power_d`, fitted to those of the runs."""

    factor: float
    power_n: float
    power_d: float
    exponent_n: Estimate  # the best N grows as FLOPs to this power
    exponent_d: Estimate
    budgets: tuple[BudgetNumbers, ...]
    curve: tuple[BudgetNumbers, ...]


@dataclass(frozen=True, slots=True)
class BreakEvenNumbers:
    """How many times as much data the small model needs to equal the large one; infinite: no amount is enough."""

    small: str
    large: str
    num_observations: int  # of the large one
    multiple: Estimate
    share_never: float  # share of the draws in which no amount of data is enough


@dataclass(frozen=True, slots=True)
class BaselineNumbers:
    """A baseline on the same test people, and where the law equals its loss; infinite: nowhere."""

    model: str
    num_observations: int  # that it was trained on
    loss: Estimate
    num_params: Estimate  # of a model that equals it on as many observations
    by_size: tuple[BreakEvenNumbers, ...]  # how many times as many observations each size needs to equal it


@dataclass(frozen=True, slots=True)
class LawNumbers:
    """All results of a law."""

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
    parameters_other_count: dict[str, float]  # of the fit in which N counts the other way
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
        """Unit of the loss, in words."""
        return "nats per observation above the truth" if self.is_excess else "nats per observation"

    def counted_params(self, point: PointNumbers) -> int:
        """Return N of a run, as the law counts parameters."""
        return point.num_params if self.counted == "total" else point.num_non_embedding_params
