"""Predict the next occupations of careers of your own: python launch/predict.py run=runs/NAME careers=FILE."""

from laborllm_dist.cli import launch
from laborllm_dist.config.evaluation import PredictSettings
from laborllm_dist.io.console import results

HELP = """
Print the most probable next occupations of the people in a JSON, CSV or Parquet file, with their probabilities. One
process.

    python launch/predict.py run=runs/quickstart careers=people.json
    python launch/predict.py run=runs/pooled_13b careers=panel.csv top=10 output=predicted.parquet
    python launch/predict.py run=runs/with_head careers=panel.csv title_head=true
"""


def main(settings: PredictSettings) -> None:
    """Predict, and print the table."""
    from laborllm_dist.distributed.context import init_distributed
    from laborllm_dist.evaluation.target import evaluated_run
    from laborllm_dist.prediction.predict import predict, predicted_titles
    from laborllm_dist.report.terminal import show_predictions

    run = evaluated_run(settings.run, predicted_titles(settings))
    with init_distributed(run.settings.ranks) as ranks:
        table, info = predict(settings, run, ranks)
    with results() as console:
        show_predictions(table, info, settings.output, console)


if __name__ == "__main__":
    launch(PredictSettings, "predict", main, HELP)
