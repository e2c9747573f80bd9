"""Score models without weights on a run's people: python launch/comparators.py run=runs/NAME."""

from laborllm_dist.baselines.run import score_comparators
from laborllm_dist.cli import launch
from laborllm_dist.config.run import CompareSettings
from laborllm_dist.io.console import say

HELP = """
Score the comparators on the test people of a run: marginal, first_order, and truth for synthetic careers.

    python launch/comparators.py run=runs/quickstart
    python launch/comparators.py run=runs/synthetic_small comparators='[marginal,first_order,truth]'
"""


def main(settings: CompareSettings) -> None:
    """Score all comparators that are asked for."""
    score_comparators(settings, say)


if __name__ == "__main__":
    launch(CompareSettings, "comparators", main, HELP)
