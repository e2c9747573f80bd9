"""Train and score baselines on a run's people: python launch/baselines.py run=runs/NAME."""

from laborllm_dist.cli import launch
from laborllm_dist.config.baselines import BaselineSettings

HELP = """
Train and score baselines on the people of a run: frequencies, logits, bag of jobs, CAREER; truth for synthetic careers.

    python launch/baselines.py run=runs/quickstart
    python launch/baselines.py run=runs/quickstart baselines='[second_order,logit,career]' titles=all
    python launch/baselines.py run=runs/synthetic_small baselines='[marginal,first_order,truth]'
"""


def main(settings: BaselineSettings) -> None:
    """Train and score the requested baselines."""
    from laborllm_dist.baselines.run import score_baselines

    score_baselines(settings)


if __name__ == "__main__":
    launch(BaselineSettings, "baselines", main, HELP)
