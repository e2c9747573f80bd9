"""Train a model: deepspeed launch/train.py +experiment=NAME [setting=value ...]."""

from laborllm_dist.cli import launch
from laborllm_dist.config.run import RunSettings

HELP = """
Fine-tune a causal language model on careers, over all ranks of the launcher; the same command resumes after a stop.

    deepspeed launch/train.py +experiment=pooled_13b
    deepspeed --num_gpus 2 launch/train.py +experiment=quickstart optimizer.learning_rate=2e-3 name=faster
"""


def main(settings: RunSettings) -> None:
    """Join the ranks and train."""
    from laborllm_dist.distributed.context import init_distributed
    from laborllm_dist.training.train import train

    with init_distributed(settings.ranks) as ranks:
        train(settings, ranks)


if __name__ == "__main__":
    launch(RunSettings, "run", main, HELP)
