"""Choose the weights of pooled corpora: python launch/pool_weights.py run=runs/NAME target=CORPUS."""

from laborllm_dist.cli import launch
from laborllm_dist.config.baselines import PoolWeightSettings
from laborllm_dist.io.console import results

HELP = """
Choose how much the people of every other corpus count when one survey is to be predicted, by the validation people of
that survey and a baseline that is fitted with many combinations of weights. Prepared data suffice.

    python launch/pool_weights.py run=runs/pooled_7b target=psid81
    python launch/pool_weights.py run=runs/pooled_7b target=psid81 baseline=logit
"""


def main(settings: PoolWeightSettings) -> None:
    """Choose the weights, and print them as settings of a training."""
    from laborllm_dist.baselines.pool_weights import choose_weights, pool_weights_table

    chosen = choose_weights(settings)
    with results() as console:
        console.print(pool_weights_table(chosen))
        console.print(f"pool_weights: {' '.join(chosen.overrides())}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    launch(PoolWeightSettings, "pool_weights", main, HELP)
