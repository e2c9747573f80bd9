"""Take two steps at every ZeRO stage with plain and with compiled kernels; print the largest difference of the weights.

Started by test_kernels.py in a process of its own, since DeepSpeed keeps what it has set up. The kernels are traced and
differentiated as torch.compile does, without making machine code.
"""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import torch
from helpers.runs import COMPUTE, settings_of

from laborllm_dist.batching.batch import pack_batch
from laborllm_dist.checkpoint.optimizer_shards import fragment_groups
from laborllm_dist.distributed.context import DistributedContext, init_distributed
from laborllm_dist.distributed.zero_engine import make_engine
from laborllm_dist.models import kernels
from laborllm_dist.models.causal_lm import CareerLanguageModel
from laborllm_dist.models.loading import new_llama


def weights_after(llama: torch.nn.Module, stage: int, source: kernels.KernelSource, ranks: DistributedContext):
    """Return the weights after two steps of a pass each, with gradient checkpointing."""
    settings = settings_of([f"zero.stage={stage}", "zero.precision=fp32"])
    model = CareerLanguageModel(copy.deepcopy(llama), dataclasses.replace(COMPUTE, kernels=source))
    engine = make_engine(model, settings.zero, settings.optimizer, ranks)
    for seed in range(2):
        ids = [np.random.default_rng(seed + row).integers(0, 60, 20 + seed).astype(np.int32) for row in range(2)]
        sums = engine.forward(pack_batch([[each] for each in ids], 24), is_last_pass=True)
        engine.backward(sums, loss_weight=2 * (20 + seed))
        engine.update(learning_rate=1e-2)
    return [fragment.weight.clone() for group in fragment_groups(engine) for fragment in group]


def main() -> None:
    kernels.KERNELS["compiled"] = lambda: kernels.compiled_kernels("aot_eager")
    shape = dataclasses.replace(settings_of([]).model.llama, hidden_size=32, intermediate_size=64)
    llama = new_llama(shape, num_ids=60, attention_dropout=0.0, seed=1)
    llama.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with init_distributed(settings_of([]).ranks) as ranks:
        for stage in range(4):
            plain, fused = (weights_after(llama, stage, source, ranks) for source in ("plain", "compiled"))
            errors = [float((one - other).abs().max()) for one, other in zip(plain, fused, strict=True)]
            print(stage, max(errors))


if __name__ == "__main__":
    main()
