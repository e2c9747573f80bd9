"""Take two steps with and without a bad one between them, at a ZeRO stage; say whether the weights are the same bits.

Started by test_fine_tuning_ranks.py in a process of its own, since DeepSpeed keeps what it has set up.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import sys

import numpy as np
import torch
from helpers.runs import COMPUTE, settings_of

from laborllm_dist.batching.batch import PackedBatch, pack_batch
from laborllm_dist.checkpoint.optimizer_shards import fragment_groups
from laborllm_dist.distributed.context import init_distributed
from laborllm_dist.distributed.zero_engine import ZeroEngine, make_engine
from laborllm_dist.models.causal_lm import CareerLanguageModel
from laborllm_dist.models.loading import new_llama


def batch_of(seed: int) -> PackedBatch:
    ids = np.random.default_rng(seed).integers(0, 60, 40).astype(np.int32)
    return pack_batch([[ids]], 40)


def take(engine: ZeroEngine, seed: int, *, skip_step: bool = False) -> float:
    """Take a step of two passes, the last of which is left out where that is asked for."""
    total = engine.forward(batch_of(seed), is_last_pass=False)
    engine.backward(total, loss_weight=78)
    total = engine.forward(batch_of(seed + 10), is_last_pass=True)
    engine.skip_step(total) if skip_step else engine.backward(total, loss_weight=78)
    return engine.update(learning_rate=1e-2)


def state_after(engine: ZeroEngine) -> list[torch.Tensor]:
    """Return the weights in fp32, and Adam's moments with their scales, wherever they lie."""
    return [
        tensor.clone()
        for group in fragment_groups(engine)
        for fragment in group
        for tensor in (fragment.weight, *fragment.moments.values(), *fragment.scales.values())
    ]


def main(stage: int, precision: str, overrides: list[str]) -> None:
    settings = settings_of([f"zero.stage={stage}", f"zero.precision={precision}", *overrides])
    dtype = torch.bfloat16 if precision == "bf16" and stage else torch.float32
    shape = dataclasses.replace(settings.model.llama, hidden_size=32, intermediate_size=64)
    llama = new_llama(shape, num_ids=60, attention_dropout=0.0, seed=1).to(dtype)
    with init_distributed(settings.ranks) as ranks:
        losses, norms = [], []
        for leaves_out in (False, True):
            model = CareerLanguageModel(copy.deepcopy(llama), COMPUTE)
            engine = make_engine(model, settings.zero, settings.optimizer, ranks)
            norms.append(take(engine, 1))
            if leaves_out:
                norms.append(take(engine, 2, skip_step=True))
            norms.append(take(engine, 3))
            losses.append(state_after(engine))
    same = all(torch.equal(one, other) and bool(one.isfinite().all()) for one, other in zip(*losses, strict=True))
    good, bad = [*norms[:3], norms[4]], norms[3]
    print("same" if same else "different")
    print("finite" if all(map(math.isfinite, good)) else good)
    print("infinite" if not math.isfinite(bad) else bad)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
