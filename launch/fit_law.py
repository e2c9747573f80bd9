"""Fit the scaling law of a sweep: python launch/fit_law.py points=sweeps/NAME/points.csv."""

import logging

from laborllm_dist.cli import launch
from laborllm_dist.config.evaluation import FitLawSettings
from laborllm_dist.io.console import LOGGER, results

HELP = """
Fit L = E + A N^-a + B D^-b to the loss of a sweep's runs by size N and data D: parameters with intervals, the largest
run predicted from the smaller ones, the compute-optimal frontier, and how much more data makes a small model equal a
large one. Writes law.html, law.json, figures and tables.

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
