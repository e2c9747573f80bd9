"""Score a run's test people: deepspeed launch/evaluate.py run=runs/NAME [model.path=FOLDER_OR_HUB_ID]."""

from laborllm_dist.compose import launch
from laborllm_dist.engine.ranks import open_ranks
from laborllm_dist.scoring.score_run import evaluation_ranks, score_run
from laborllm_dist.settings import EvaluateSettings
from laborllm_dist.terminal import say, silence

HELP = """
Compute the exact log-likelihood of every observed occupation, sharded over ranks; a killed evaluation goes on.

    deepspeed launch/evaluate.py run=runs/pooled_13b
    deepspeed launch/evaluate.py run=runs/pooled_13b model.path=meta-llama/Llama-2-7b-hf precision=bf16
    deepspeed launch/evaluate.py run=runs/pooled_13b model.path=meta-llama/Llama-2-7b-hf prompt=examples
"""


def main(settings: EvaluateSettings) -> None:
    """Join the ranks and score."""
    with open_ranks(evaluation_ranks(settings)) as ranks:
        score_run(settings, ranks, say if ranks.is_first else silence)


if __name__ == "__main__":
    launch(EvaluateSettings, "evaluate", main, HELP)
