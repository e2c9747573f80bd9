"""The actions of launch/sweep.py: list the runs of a sweep, execute them, show their status, or cancel them."""

from __future__ import annotations

from pathlib import Path

from laborllm_dist.config.sweep import SweepSettings
from laborllm_dist.io.console import results
from laborllm_dist.sweeps.array import cancel_jobs, submit
from laborllm_dist.sweeps.execute import cancel, prepare_unknown, run_locally
from laborllm_dist.sweeps.runs import Compose, list_runs, locations_of, models_table, plan_runs, plan_table, queue_line
from laborllm_dist.sweeps.state import Sweep, status_table


def open_sweep(settings: SweepSettings, compose: Compose, scripts: Path) -> Sweep:
    """Return a sweep: its runs, and where their token stores are.

    Args:
        settings: of the sweep.
        compose: composes the settings of launch/train.py from its arguments.
        scripts: the folder launch/.

    Raises:
        LaborError: if the settings of a run are invalid.
    """
    runs = list_runs(settings, compose)
    return Sweep(settings, runs, locations_of(runs), scripts)


def act(sweep: Sweep) -> None:
    """Perform the action of the settings.

    Raises:
        LaborError: if the action fails, or if a run has failed.
    """
    settings, action = sweep.settings, sweep.settings.action
    unprepared = prepare_unknown(sweep) if action == "run" else set()
    if action in ("run", "list"):
        with results() as console:
            planned = plan_runs([run for run in sweep.runs if run.mix not in unprepared], sweep.locations)
            console.print(models_table(settings.name, planned))
            console.print()
            at_once = settings.max_parallel if settings.executor == "local" else 1
            console.print(plan_table(settings.name, planned, max_parallel=at_once))
            if settings.executor == "slurm":
                console.print(queue_line(settings, planned), highlight=False)
    if action == "run":
        (submit if settings.executor == "slurm" else run_locally)(sweep, unprepared)
    elif action == "status":
        with results() as console:
            console.print(status_table(sweep))
    elif action == "cancel":
        (cancel_jobs if settings.executor == "slurm" else cancel)(sweep)
