"""Make the token store of an experiment: python launch/prepare.py +experiment=NAME [setting=value ...]."""

import logging

from laborllm_dist.cli import launch
from laborllm_dist.config.run import RunSettings
from laborllm_dist.io.console import LOGGER

HELP = """
Turn careers into a token store: read, check, write as text, tokenize. Training does it too where the store is missing.

    python launch/prepare.py +experiment=synthetic_small
    python launch/prepare.py +experiment=NAME prepare.num_workers=8                         eight processes
    python launch/prepare.py +experiment=NAME prepare.num_workers=64 prepare.executor=slurm  an array of Slurm jobs
    python launch/prepare.py +experiment=NAME prepare.num_workers=8 prepare.worker_index=3  one share of eight
"""


def main(settings: RunSettings) -> None:
    """Prepare, and print the path of the store."""
    from laborllm_dist.store.build import prepare

    logger = logging.getLogger(LOGGER)
    logger.info(f"prepare: {prepare(settings)}")


if __name__ == "__main__":
    launch(RunSettings, "run", main, HELP)
