"""Compare models: python launch/report.py runs='[runs/A,runs/B]'."""

import logging

from laborllm_dist.cli import launch
from laborllm_dist.config.evaluation import ReportSettings
from laborllm_dist.io.console import LOGGER, results

HELP = """
Write report.html, summary.json, tables and figures from the score tables of runs: perplexities, paired differences,
groups, training curves, and with titles=all ranks, AUC and calibration. careers.html follows single people.

    python launch/report.py runs='[runs/quickstart]'
"""


def main(settings: ReportSettings) -> None:
    """Write the report, and print its tables."""
    from laborllm_dist.report.write import terminal_tables, write_report

    result = write_report(settings)
    for note in result.notes:
        logging.getLogger(LOGGER).warning(note)
    with results() as console:
        for table in terminal_tables(result):
            console.print(table)
        console.print(f"report: {result.page}", soft_wrap=True)


if __name__ == "__main__":
    launch(ReportSettings, "report", main, HELP)
