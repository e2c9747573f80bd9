"""Train and score a list of runs: python launch/sweep.py +sweep=NAME [setting=value ...]."""

import functools
from pathlib import Path

from laborllm_dist.cli import compose_settings, launch
from laborllm_dist.config.run import RunSettings
from laborllm_dist.config.sweep import SweepSettings

HELP = """
Train and score every model with every share of the training people, source mix and seed. What the runs need is printed
first. The same command resumes a sweep that was stopped; runs that are done are not repeated.

    python launch/sweep.py +sweep=synthetic_law                     here, one run or several at a time
    python launch/sweep.py +sweep=scaling_law executor=slurm        an array of Slurm jobs
    python launch/sweep.py list +sweep=scaling_law                  what the runs need
    python launch/sweep.py status +sweep=synthetic_law              where they are
    python launch/sweep.py cancel +sweep=synthetic_law              stop them; they save, and resume later
"""


def main(settings: SweepSettings) -> None:
    """List the runs, and do what is asked with them."""
    from laborllm_dist.sweeps.sweep import act, open_sweep

    compose = functools.partial(compose_settings, RunSettings, "run")
    act(open_sweep(settings, compose, Path(__file__).resolve().parent))


if __name__ == "__main__":
    launch(SweepSettings, "sweep", main, HELP)
