"""Is what a GPU computes right? The tests marked gpu, and a training step beside the same one on the CPU."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from records import PROJECT, Record
from torch import Tensor

from gpu_suite.workload import SHAPES, new_model, rows_of_careers, settings_for
from laborllm_dist.batching.batch import pack_batch
from laborllm_dist.models.dims import ModelShape

if TYPE_CHECKING:
    import pytest

# Wide enough for heads of 64, and two heads to a key.
STEP_SHAPE = dataclasses.replace(SHAPES["tiny"], hidden_size=256, intermediate_size=704, num_key_value_heads=2)
ROW_LENGTH = 1024


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Largest difference between GPU and CPU, relative: of the loss, of each gradient's norm."""

    loss: float
    gradient: float


# fp32: sums in another order. bf16: products and sums are rounded to 8 bits on both, each in its own places.
TOLERANCES = {"fp32": Tolerance(1e-5, 1e-3), "bf16": Tolerance(2e-3, 5e-2)}


@dataclass(frozen=True, slots=True)
class Step:
    """A training step without its update: loss in nats a token, and the gradient of every weight."""

    loss: float
    gradients: Mapping[str, Tensor]


class Counted:
    """A plugin of pytest that counts outcomes, and keeps the names of what failed."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.failed: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.outcomes[report.outcome] += 1
        if report.outcome == "failed":
            self.failed.append(report.nodeid.split("::")[-1])


def kernels(_: ModelShape) -> Iterator[Record]:
    """Run the tests marked gpu."""
    if importlib.util.find_spec("pytest") is None:
        yield Record("kernels", "tests marked gpu", "skipped", note="pytest is not installed")
        return
    import pytest

    counted = Counted()
    tests = str(PROJECT / "tests/models/test_attention.py")
    code = pytest.main(["-q", "-m", "gpu", "-p", "no:cacheprovider", tests], plugins=[counted])
    numbers = {name: counted.outcomes[name] for name in ("passed", "failed", "skipped")}
    if numbers["failed"] or code:
        note = ", ".join(counted.failed) or f"pytest ended with exit code {int(code)}"
        yield Record("kernels", "tests marked gpu", "failed", numbers, note)
    elif not numbers["passed"]:
        yield Record("kernels", "tests marked gpu", "skipped", numbers, "no test could run: is there a GPU?")
    else:
        yield Record("kernels", "tests marked gpu", "passed", numbers)


def step(_: ModelShape) -> Iterator[Record]:
    """Compare a step of a small model on the GPU with the CPU's, in fp32 and bf16."""
    for precision in TOLERANCES:
        if torch.cuda.is_available():
            actual, expected = (one_step(precision, torch.device(name)) for name in ("cuda", "cpu"))
            yield compared(precision, actual, expected)
        else:
            yield Record("step", precision, "skipped", note="there is no GPU")


def one_step(precision: str, device: torch.device) -> Step:
    """Return a step of the small model on a device."""
    settings = settings_for(STEP_SHAPE, "zero=stage1", f"zero.precision={precision}")
    model = new_model(settings, STEP_SHAPE, torch.device("cpu")).to(device)
    batch = pack_batch(rows_of_careers(2, ROW_LENGTH, STEP_SHAPE.num_ids, seed=1), ROW_LENGTH)
    total, _ = model(batch.to(device))
    loss = -total / len(batch.scored_N)
    loss.backward()
    gradients = {
        name: weight.grad.double().cpu() for name, weight in model.named_parameters() if weight.grad is not None
    }
    return Step(float(loss.detach()), gradients)


def compared(precision: str, actual: Step, expected: Step) -> Record:
    """Return whether two steps agree within the tolerances; no number agrees with nothing."""
    tolerance = TOLERANCES[precision]
    loss_error = abs(actual.loss - expected.loss) / abs(expected.loss)
    errors = {
        name: float((actual.gradients[name] - gradient).norm() / gradient.norm())
        for name, gradient in expected.gradients.items()
    }
    worst = max(errors, key=lambda name: (errors[name] != errors[name], errors[name]))
    agrees = loss_error <= tolerance.loss and errors[worst] <= tolerance.gradient
    numbers = {
        "loss_nats_per_token": actual.loss, "loss_error": loss_error, "loss_tolerance": tolerance.loss,
        "largest_gradient_error": errors[worst], "gradient_tolerance": tolerance.gradient,
    }  # fmt: skip
    note = f"errors relative to the CPU's; {len(errors)} gradients, the worst {worst}"
    return Record("step", precision, "passed" if agrees else "failed", numbers, note)
