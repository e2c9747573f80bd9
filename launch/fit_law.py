"""Fit the scaling law of a sweep: python launch/fit_law.py points=sweeps/NAME/points.csv."""

import logging

from laborllm_dist.cli import launch
from laborllm_dist.config.evaluation import FitLawSettings
from laborllm_dist.io.console import LOGGER, results

HELP = """
Fit a scaling law, such as L = E + A N^-a + B D^-b, to the losses of a sweep's runs by model size N and amount of data
D. The result has the parameters with intervals, a prediction of the largest run from the smaller sizes, the
compute-optimal frontier, and how much more data a small model needs to equal a large one. Writes law.html, law.json,
figures and tables.

    python launch/fit_law.py points=sweeps/NAME/points.csv
"""


def main(settings: FitLawSettings) -> None:
    """Write the law, and print its tables."""
    from laborllm_dist.sweeps.law_report import write_law
    from laborllm_dist.sweeps.law_tables import terminal_tables

    result = write_law(settings)
    for note in result.numbers.notes:
        logging.getLogger(LOGGER).warning(f"note: {note}")
    with results() as console:
        for table in terminal_tables(result.numbers):
            console.print(table)
        console.print(f"law: {result.page}", soft_wrap=True)


if __name__ == "__main__":
    launch(FitLawSettings, "fit_law", main, HELP)
