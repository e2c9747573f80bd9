"""Small settings for tests: a synthetic market, a tiny Llama, everything under one folder."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

from laborllm_dist.cli import compose_settings
from laborllm_dist.config.run import RunSettings
from laborllm_dist.io.run_directory import create_or_resume


def small_run(folder: Path, *more: str, num_people: int = 60) -> list[str]:
    """Return overrides for a run of seconds: a synthetic market and a Llama of 30,000 parameters."""
    return [
        "data=synthetic",
        f"data.corpora.synthetic.num_people={num_people}",
        f"store.root={folder}/stores",
        f"output_dir={folder}/runs",
        "name=small",
        "tokenizer.vocabulary_size=400",
        "model.llama.hidden_size=32",
        "model.llama.intermediate_size=64",
        "model.llama.num_heads=2",
        "model.llama.num_key_value_heads=1",
        "batch.max_seq_length=1024",
        "evaluation.max_seq_length=1024",
        "evaluation.batches_per_part=1",
        "optimizer.warmup_ratio=0",
        "ranks.timeout_minutes=2",
        *more,
    ]


def settings_of(overrides: list[str]) -> RunSettings:
    """Compose the settings that these overrides make.

    Composing takes a third of a second, so it is done once for all folders: they are put in afterwards.
    """
    folders = dict(
        override.split("=", 1) for override in overrides if override.startswith(("output_dir=", "store.root="))
    )
    settings = _composed(tuple(override for override in overrides if override.split("=", 1)[0] not in folders))
    store = dataclasses.replace(settings.store, root=folders.get("store.root", settings.store.root))
    return dataclasses.replace(settings, output_dir=folders.get("output_dir", settings.output_dir), store=store)


@functools.cache
def _composed(overrides: tuple[str, ...]) -> RunSettings:
    return compose_settings(RunSettings, "run", overrides)


def write_run(path: Path, bootstrap_seed: int | None = None, *, weights: str = "w", **training: Any) -> Path:
    """Write the record of a run, as a training that has begun; runs in one folder have the same data."""
    settings = settings_of(small_run(path.parent))
    changed = dataclasses.replace(settings.training, bootstrap_seed=bootstrap_seed, **training)
    settings = dataclasses.replace(settings, name=path.name, output_dir=str(path.parent), training=changed)
    return create_or_resume(settings, {"fingerprint": "store-1", "folder": "stores/one"}, weights).path


COMPUTE = settings_of([]).compute
