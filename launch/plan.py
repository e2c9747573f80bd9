"""Estimate what a training run needs: python launch/plan.py +experiment=NAME."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a plan asks nobody

from laborllm_dist.cli import launch
from laborllm_dist.config.run import RunSettings
from laborllm_dist.io.console import results

HELP = """
Print tokens, steps, parameters, memory of a GPU by kind and ZeRO stage, traffic, time and price. Needs no GPU and no
weights. Where there is no token store yet, the sizes of known data are assumed, and the output says so; a panel of your
own must be prepared first.

    python launch/plan.py +experiment=pooled_13b
    python launch/plan.py +experiment=pooled_13b gpu@plan.gpu=a100_80gb plan.num_gpus=16
    python launch/plan.py +experiment=psid81_7b adapter=qlora zero=stage2_bf16 gpu@plan.gpu=l40s plan.num_gpus=1
"""


def main(settings: RunSettings) -> None:
    """Print the plan."""
    from laborllm_dist.planning.display import show_plan

    with results() as console:
        show_plan(settings, console)


if __name__ == "__main__":
    launch(RunSettings, "run", main, HELP)
