"""Train and score a list of runs: python launch/sweep.py +sweep=NAME [setting=value ...]."""

import functools
from pathlib import Path

from laborllm_dist.cli import compose_settings, launch
from laborllm_dist.config.run import RunSettings
from laborllm_dist.config.sweep import SweepSettings

HELP = """
Train and score every combination of model, share of the training people, source mix and seed. The command first prints
what the runs need: tokens, FLOPs, time, disk space and dollars. The same command resumes a sweep that was stopped;
finished runs are not repeated.

    python launch/sweep.py +sweep=synthetic_law                     on this machine, max_parallel runs at a time
    python launch/sweep.py +sweep=scaling_law executor=slurm        as an array of Slurm jobs
    python launch/sweep.py list +sweep=scaling_law                  print what the runs need
    python launch/sweep.py status +sweep=synthetic_law              print state, step and losses of the runs
    python launch/sweep.py cancel +sweep=synthetic_law              stop the runs; they save first
"""


def main(settings: SweepSettings) -> None:
    """List the runs of a sweep, execute them, show their status, or cancel them."""
    from laborllm_dist.sweeps.sweep import act, open_sweep

    compose = functools.partial(compose_settings, RunSettings, "run")
    act(open_sweep(settings, compose, Path(__file__).resolve().parent))


if __name__ == "__main__":
    launch(SweepSettings, "sweep", main, HELP)
