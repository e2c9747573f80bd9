"""Score a run's test people: deepspeed launch/evaluate.py run=runs/NAME [model.path=FOLDER_OR_HUB_ID]."""

from laborllm_dist.cli import launch
from laborllm_dist.config.evaluation import EvaluateSettings

HELP = """
Compute the exact log-likelihood of every observed occupation, sharded over ranks; a killed evaluation resumes.

    deepspeed launch/evaluate.py run=runs/pooled_13b
    deepspeed launch/evaluate.py run=runs/pooled_13b model.path=meta-llama/Llama-2-7b-hf precision=bf16
    deepspeed launch/evaluate.py run=runs/pooled_13b model.path=meta-llama/Llama-2-7b-hf prompt=examples
    deepspeed launch/evaluate.py run=runs/psid81_7b data=nlsy97
    deepspeed launch/evaluate.py run=runs/with_head title_head=true titles=all
"""


def main(settings: EvaluateSettings) -> None:
    """Join the ranks and score."""
    from laborllm_dist.distributed.context import init_distributed
    from laborllm_dist.evaluation.run import score_run
    from laborllm_dist.evaluation.target import evaluated_run

    run = evaluated_run(settings.run, settings)
    with init_distributed(run.settings.ranks) as ranks:
        score_run(settings, run, ranks)


if __name__ == "__main__":
    launch(EvaluateSettings, "evaluate", main, HELP)
