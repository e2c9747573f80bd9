"""A sweep from settings to points.csv: list its runs, show what they need, execute them, show where they are."""

from __future__ import annotations

from pathlib import Path

from laborllm_dist.config.sweep import SweepSettings
from laborllm_dist.io.console import results
from laborllm_dist.sweeps.array import cancel_jobs, submit
from laborllm_dist.sweeps.execute import cancel, prepare_unknown, run_locally
from laborllm_dist.sweeps.runs import Compose, list_runs, locations_of, models_table, plan_runs, plan_table, queue_line
from laborllm_dist.sweeps.state import Sweep, status_table


def open_sweep(settings: SweepSettings, compose: Compose, scripts: Path) -> Sweep:
    """Return a sweep with its runs.

    Args:
        settings: of the sweep.
        compose: returns the settings of launch/train.py for its arguments.
        scripts: the folder launch/.

    Raises:
        LaborError: if settings of a run are invalid.
    """
    runs = list_runs(settings, compose)
    return Sweep(settings, runs, locations_of(runs), scripts)


def act(sweep: Sweep) -> None:
    """Do what `action` says.

    Raises:
        LaborError: if the sweep cannot be listed, executed, shown or stopped; or if runs have failed.
    """
    settings, action = sweep.settings, sweep.settings.action
    unprepared = prepare_unknown(sweep) if action == "run" else set()
    if action in ("run", "list"):
        with results() as console:
            planned = plan_runs([run for run in sweep.runs if run.mix not in unprepared], sweep.locations)
            console.print(models_table(settings.name, planned))
            console.print()
            console.print(plan_table(settings.name, planned, max_parallel=settings.max_parallel))
            if settings.executor == "slurm":
                console.print(queue_line(settings, planned), highlight=False)
    if action == "run":
        (submit if settings.executor == "slurm" else run_locally)(sweep, unprepared)
    elif action == "status":
        with results() as console:
            console.print(status_table(sweep))
    elif action == "cancel":
        (cancel_jobs if settings.executor == "slurm" else cancel)(sweep)
