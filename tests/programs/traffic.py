"""Count the bytes that a rank sends in one step of two passes, setting by setting; rank 0 prints them as JSON.

Started by test_traffic_ranks.py as two ranks. Every collective of torch.distributed is counted as a ring sends it: an
all-gather, a reduce-scatter and a half of an all-reduce of n bytes send n (W - 1) / W from each of W ranks.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from helpers.runs import settings_of

from laborllm_dist.batching.batch import pack_batch
from laborllm_dist.distributed.context import DistributedContext, init_distributed
from laborllm_dist.distributed.zero_engine import ZeroEngine, make_engine
from laborllm_dist.models.causal_lm import CareerLanguageModel
from laborllm_dist.models.loading import new_llama

NUM_PASSES = 2
# What is counted, how often a ring sends it, and the argument that is as long as all ranks' parts together.
RINGS = {
    "all_reduce": (2, ("tensor",)),
    "all_gather_into_tensor": (1, ("output_tensor",)),
    "all_gather": (1, ("tensor_list",)),
    "reduce_scatter_tensor": (1, ("output", "input")),
    "reduce_scatter": (1, ("output", "input_list")),
    "broadcast": (1, ("tensor",)),
    "reduce": (1, ("tensor",)),
}


class Counter:
    """Stands in for the collectives of torch.distributed and counts what passes through them."""

    def __init__(self) -> None:
        self.num_bytes = 0  # for a world without end: a rank of W sends (W - 1) / W of it
        for name, (times, arguments) in RINGS.items():
            setattr(dist, name, self._counting(getattr(dist, name), times, arguments))

    def _counting(self, collective: Callable[..., Any], times: int, names: tuple[str, ...]) -> Callable[..., Any]:
        def counted(*given: Any, **named: Any) -> Any:
            whole = named[names[-1]] if names[-1] in named else given[len(names) - 1]
            self.num_bytes += times * _num_bytes(whole)
            return collective(*given, **named)

        return counted


def _num_bytes(tensors: Any) -> int:
    if isinstance(tensors, torch.Tensor):
        return tensors.numel() * tensors.element_size()
    return sum(map(_num_bytes, tensors))


def take_step(engine: ZeroEngine) -> None:
    ids = np.random.default_rng(1).integers(0, 60, 24).astype(np.int32)
    for number in range(1, NUM_PASSES + 1):
        total = engine.forward(pack_batch([[ids]], 24), is_last_pass=number == NUM_PASSES)
        engine.backward(total, loss_weight=46)
    engine.update(learning_rate=1e-3)


def bytes_of_step(overrides: list[str], ranks: DistributedContext, counter: Counter) -> float:
    settings = settings_of(overrides)
    is_narrow = settings.zero.precision == "bf16" and settings.zero.stage > 0
    llama = new_llama(settings.model.llama, num_ids=400, attention_dropout=0.0, seed=1)
    llama = llama.to(torch.bfloat16 if is_narrow else torch.float32)
    model = CareerLanguageModel(llama, settings.compute)
    engine = make_engine(model, settings.zero, settings.optimizer, ranks)
    take_step(engine)  # ZeRO-3 looks at the order of layers in the first two passes, and gathers ahead from then on
    before = counter.num_bytes
    take_step(engine)
    return (counter.num_bytes - before) * (ranks.world_size - 1) / ranks.world_size


def main(cases: dict[str, list[str]]) -> None:
    counter = Counter()  # before DeepSpeed takes the collectives
    with init_distributed(settings_of([]).ranks) as ranks:
        traffic = {name: bytes_of_step(overrides, ranks, counter) for name, overrides in cases.items()}
        if ranks.is_main:
            print("BYTES", json.dumps(traffic), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
