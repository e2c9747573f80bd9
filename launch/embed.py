"""Write a model's hidden states, one vector a person-year: deepspeed launch/embed.py run=runs/NAME [layer=-1]."""

from laborllm_dist.cli import launch
from laborllm_dist.config.evaluation import EmbedSettings

HELP = """
Write the hidden state at the prompt of every person-year, as features for wage and other models of your own.

    deepspeed launch/embed.py run=runs/psid81_7b
    deepspeed launch/embed.py run=runs/psid81_7b layer=16 split=test
    deepspeed launch/embed.py run=runs/psid81_7b model.path=meta-llama/Llama-2-7b-hf
"""


def main(settings: EmbedSettings) -> None:
    """Join the ranks and embed."""
    from laborllm_dist.distributed.context import init_distributed
    from laborllm_dist.evaluation.embeddings import embed_run, embedded_run

    run = embedded_run(settings)
    with init_distributed(run.settings.ranks) as ranks:
        embed_run(settings, run, ranks)


if __name__ == "__main__":
    launch(EmbedSettings, "embed", main, HELP)
