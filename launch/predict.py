"""Predict the next occupations of careers of your own: python launch/predict.py run=runs/NAME careers=FILE."""

from laborllm_dist.compose import launch
from laborllm_dist.engine.ranks import open_ranks
from laborllm_dist.predict_settings import PredictSettings
from laborllm_dist.report.predictions import show_predictions
from laborllm_dist.scoring.predict import predict
from laborllm_dist.scoring.score_run import evaluation_ranks
from laborllm_dist.terminal import results, say

HELP = """
Tell the most probable next occupations of the people in a JSON or CSV file, with their probabilities. One process.

    python launch/predict.py run=runs/quickstart careers=people.json
    python launch/predict.py run=runs/pooled_13b careers=panel.csv top=10 output=predicted.parquet
"""


def main(settings: PredictSettings) -> None:
    """Predict, and print the table."""
    with open_ranks(evaluation_ranks(settings)) as ranks:
        table, info = predict(settings, ranks, say)
    with results() as console:
        show_predictions(table, info, settings.output, console)


if __name__ == "__main__":
    launch(PredictSettings, "predict", main, HELP)
