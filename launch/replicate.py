"""Write a replication package: python launch/replicate.py runs='[runs/A,runs/B]' output=FOLDER."""

from laborllm_dist.cli import CONF, SCRIPTS, compose_settings, launch
from laborllm_dist.config.evaluation import ReplicateSettings, ReportSettings
from laborllm_dist.io.console import results

HELP = """
Write a folder with the software, the settings and programs of runs, their tables and figures, and a README for the data
editor (Markdown and PDF); ./run_all.sh in it makes the same tables anew. It contains no data of people.

    python launch/replicate.py runs='[runs/quickstart]' output=package
    python launch/replicate.py runs='[runs/mine]' refits='[runs/refit_1,runs/refit_2]' output=package
"""


def main(settings: ReplicateSettings) -> None:
    """Write the package, and print where it is."""
    from laborllm_dist.replication.package import write_package

    # The report's settings are its own; the package names the runs and the folder.
    report = compose_settings(ReportSettings, "report", ["runs=[package]"])
    folder = write_package(settings, report, (CONF, SCRIPTS))
    with results() as console:
        console.print(f"replicate: {folder / 'README.md'}", soft_wrap=True)


if __name__ == "__main__":
    launch(ReplicateSettings, "replicate", main, HELP)
