"""Score models without weights on a run's people: python launch/baselines.py run=runs/NAME."""

import logging

from laborllm_dist.cli import launch
from laborllm_dist.config.baselines import BaselineSettings
from laborllm_dist.io.console import LOGGER

HELP = """
Score the baselines on the test people of a run: marginal, first_order, and truth for synthetic careers.

    python launch/baselines.py run=runs/quickstart
    python launch/baselines.py run=runs/synthetic_small baselines='[marginal,first_order,truth]'
"""


def main(settings: BaselineSettings) -> None:
    """Score all baselines that are asked for."""
    from laborllm_dist.baselines.run import score_baselines

    score_baselines(settings, logging.getLogger(LOGGER).info)


if __name__ == "__main__":
    launch(BaselineSettings, "baselines", main, HELP)
