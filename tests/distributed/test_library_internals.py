"""DeepSpeed's private names: what they give is what its public accessors gather, and no other module uses them."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.processes import PROJECT
from helpers.runs import settings_of

from laborllm_dist.checkpoint.optimizer_shards import fragment_groups
from laborllm_dist.config.run import RunSettings
from laborllm_dist.distributed.context import DistributedContext, init_distributed
from laborllm_dist.distributed.library_internals import import_deepspeed, sync_model_params
from laborllm_dist.distributed.zero_engine import ZeroEngine, make_engine

INTERNALS = PROJECT / "laborllm_dist/distributed/library_internals.py"
# What ZeRO-3 hangs on a weight, and what its optimizers hold.
OF_ZERO = ("partition_numel", "grad_position", "fp16_groups", "persistent_parameters", "update_lp_params")
OF_LIBRARIES = ("deepspeed", "torch")
# Private names of transformers' models and configurations, which have no public ones.
OF_TRANSFORMERS = {"_attn_implementation", "_name_or_path"}
# The process of a tracker, which imports none of these libraries: wandb records what an offline run has used only so.
OF_WANDB = {"_log_artifact"}


def private_names(path: Path) -> Iterator[str]:
    """Yield private names that a module takes from objects that are not its own."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in OF_LIBRARIES:
            yield from (name.name for name in node.names if name.name.startswith("_"))
        text = node.attr if isinstance(node, ast.Attribute) else node.value if isinstance(node, ast.Constant) else None
        if isinstance(text, str) and (text in OF_ZERO or text.startswith(("ds_", "_hp_", "_z3_"))):
            yield text
        is_private = isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__")
        if is_private and ast.unparse(node.value) not in ("self", "cls", "os"):
            yield node.attr


def test_private_names_of_deepspeed_and_torch_are_used_in_one_module() -> None:
    assert {"_hp_mapping", "_get_build_directory", "ds_tensor", "fp16_groups"} <= set(private_names(INTERNALS))
    others = {path: set(private_names(path)) - OF_TRANSFORMERS for path in (PROJECT / "laborllm_dist").rglob("*.py")}
    others[PROJECT / "laborllm_dist/tracking/tracker_process.py"] -= OF_WANDB
    assert {path.name: names for path, names in others.items() if names and path != INTERNALS} == {}


@pytest.fixture(scope="module")
def ranks() -> Iterator[DistributedContext]:
    """Return one rank; DeepSpeed cannot begin anew in a process, so the tests share it."""
    before = dict(os.environ)
    with init_distributed(settings_of([]).ranks) as context:
        yield context
    os.environ.clear()
    os.environ.update(before)


class Model(torch.nn.Module):
    """Weights of several shapes, one of them not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.frozen, self.last = (torch.nn.Linear(5, 5), torch.nn.Linear(5, 5), torch.nn.Linear(5, 3))
        self.frozen.requires_grad_(requires_grad=False)

    def forward(self, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        scores_N = self.last(self.frozen(self.first(batch))).sum(dim=1)
        return scores_N.sum(), scores_N


class Batch:
    """What the engine forwards."""

    def to(self, device: torch.device) -> torch.Tensor:
        return torch.arange(20.0, device=device).view(4, 5) / 20


def trained(stage: int, precision: str, ranks: DistributedContext) -> ZeroEngine:
    """Return an engine after two steps, so that Adam has state."""
    torch.manual_seed(3)
    settings: RunSettings = settings_of([f"zero.stage={stage}", f"zero.precision={precision}", "zero.bucket_size=1000"])
    model = Model().to(torch.bfloat16) if precision == "bf16" else Model()
    engine = make_engine(model, settings.zero, settings.optimizer, ranks)
    for _ in range(2):
        batch: Any = Batch()
        if precision == "bf16":
            batch = type("Narrow", (Batch,), {"to": lambda self, device: Batch.to(self, device).to(torch.bfloat16)})()
        engine.backward(engine.forward(batch, is_last_pass=True), loss_weight=4)
        engine.update(learning_rate=0.01)
    return engine


@pytest.mark.parametrize(("stage", "precision"), [(1, "fp32"), (1, "bf16"), (2, "fp32"), (2, "bf16"), (3, "fp32")])
def test_fragments_are_what_the_public_accessors_gather(stage: int, precision: str, ranks: DistributedContext) -> None:
    engine = trained(stage, precision, ranks)
    utils = import_deepspeed().utils
    parameters = dict(engine.deepspeed.module.named_parameters())
    fragments = {fragment.name: fragment for group in fragment_groups(engine) for fragment in group}
    assert fragments.keys() == {name for name in parameters if not name.startswith("frozen")}
    for name, fragment in fragments.items():
        whole = utils.safe_get_full_fp32_param(parameters[name])
        assert fragment.shape == tuple(whole.shape)
        assert (fragment.start, fragment.numel) == (0, whole.numel())  # one rank holds all of it
        assert torch.equal(fragment.weight, whole.flatten())
        if stage == 3:  # at stages 1 and 2 the accessors do not know the state of an optimizer that they did not make
            assert fragment.weight.data_ptr() == utils.safe_get_local_fp32_param(parameters[name]).data_ptr()
            for kind, moment in fragment.moments.items():
                assert torch.equal(moment, utils.safe_get_local_optimizer_state(parameters[name], kind))
    for kind in ("exp_avg", "exp_avg_sq"):
        parts = [fragment.moments[kind] for fragment in fragments.values()]
        states = [state[kind].flatten() for state in engine.adam.state.values()]
        assert torch.equal(torch.cat(parts).sort().values, torch.cat(states).sort().values)
        assert all(part.abs().sum() > 0 for part in parts)


@pytest.mark.parametrize(("stage", "precision"), [(1, "bf16"), (2, "fp32"), (3, "fp32")])
def test_changed_fragments_reach_the_forward(stage: int, precision: str, ranks: DistributedContext) -> None:
    engine = trained(stage, precision, ranks)
    for group in fragment_groups(engine):
        for fragment in group:
            fragment.weight.fill_(0.25)
    sync_model_params(engine.deepspeed.optimizer)
    zero = import_deepspeed().zero
    for name, parameter in engine.deepspeed.module.named_parameters():
        with zero.GatheredParameters([parameter], enabled=stage == 3):
            assert bool((parameter == 0.25).all()) != name.startswith("frozen")
