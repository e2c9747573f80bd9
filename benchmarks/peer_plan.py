"""Write what train_throughput.py gives to other systems: the careers of every step in order, and the first weights."""

from __future__ import annotations

import sys

import torch

from laborllm_dist.batching.training_plan import plan_training
from laborllm_dist.cli import compose_settings
from laborllm_dist.config.run import RunSettings
from laborllm_dist.models.loading import new_llama
from laborllm_dist.store.build import prepare_store


def main(path: str, overrides: list[str]) -> None:
    settings = compose_settings(RunSettings, "run", overrides)
    store = prepare_store(settings)
    plan = plan_training(store, settings, world_size=1)
    careers = store.careers("train")
    steps = [
        [careers.token_ids(int(row)).tolist() for row in plan.order.careers_of_step(step)]
        for step in range(plan.num_steps)
    ]
    assert settings.model.llama is not None
    model = new_llama(settings.model.llama, num_ids=store.num_ids, attention_dropout=0.0, seed=settings.training.seed)
    lengths = torch.tensor([len(ids) for step in steps for ids in step], dtype=torch.float64)
    filled = sum(sum(map(len, step)) / (len(step) * max(map(len, step))) for step in steps) / len(steps)
    print(
        f"{len(lengths):,} careers of {lengths.mean():.0f} tokens (standard deviation {lengths.std():.0f}); "
        f"{len(steps)} steps; padded to the longest of a step they fill {filled:.0%}"
    )
    torch.save(
        {
            "steps": steps, "config": model.config.to_dict(), "weights": model.state_dict(),
            "max_seq_length": settings.batch.max_seq_length, "learning_rate": settings.optimizer.learning_rate,
            "betas": (settings.optimizer.beta1, settings.optimizer.beta2), "epsilon": settings.optimizer.epsilon,
            "max_grad_norm": settings.optimizer.max_grad_norm,
        },
        path,
    )  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
