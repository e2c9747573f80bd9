"""Sweeps for tests: settings without files, and a program in the place of the scripts of launch/."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from helpers.processes import PROJECT
from helpers.runs import small_run
from laborllm_dist.cli import compose_settings
from laborllm_dist.config.run import RunSettings
from laborllm_dist.config.sweep import ArraySettings, SweepSettings
from laborllm_dist.sweeps.state import Sweep
from laborllm_dist.sweeps.sweep import open_sweep

ARRAY = ArraySettings(
    partition=None, account=None, minutes=10, cpus_per_rank=1, memory_gib=1, has_gpus=False, max_parallel=2,
    signal_seconds=30,
)  # fmt: skip
STEPS = ("prepare", "baselines", "train", "evaluate")


def compose_run(overrides: Sequence[str]) -> RunSettings:
    """Compose the settings of a run, once."""
    return _composed(tuple(overrides))


@functools.cache
def _composed(overrides: tuple[str, ...]) -> RunSettings:
    return compose_settings(RunSettings, "run", overrides)


def sweep_settings(folder: Path, *, more: tuple[str, ...] = (), **changes: Any) -> SweepSettings:
    """Return the settings of a sweep of one tiny model and two seeds, everything under one folder."""
    values: dict[str, Any] = {
        "action": "run", "name": "two_seeds", "sweeps_dir": f"{folder}/sweeps", "common": (*small_run(folder), "batch.global_batch_size=8", *more),
        "models": {"tiny": ()}, "mixes": {"market": ()}, "shares": (1.0,), "seeds": (1, 2), "more_runs": {},
        "baselines": (), "baseline_settings": (), "executor": "local", "max_parallel": 1, "num_ranks": 1, "num_nodes": 1, "array": ARRAY,
    }  # fmt: skip
    return SweepSettings(**{**values, **changes})


def opened_sweep(folder: Path, scripts: Path = PROJECT / "launch", **changes: Any) -> Sweep:
    """Open a sweep."""
    return open_sweep(sweep_settings(folder, **changes), compose_run, scripts)


def small_scripts(folder: Path) -> Path:
    """Return a folder of scripts that do what those of launch/ do with a run's folder, without a model."""
    folder.mkdir()
    for step in STEPS:
        shutil.copy(PROJECT / "tests/programs/step_of_run.py", folder / f"{step}.py")
    return folder
