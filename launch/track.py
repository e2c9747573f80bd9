"""Publish a run in Weights & Biases or TensorBoard: python launch/track.py run=runs/NAME."""

from laborllm_dist.cli import launch
from laborllm_dist.config.run import TrackSettings
from laborllm_dist.io.console import results

HELP = """
Publish a run after it has ended: all steps from metrics.jsonl, and with lineage its token store, checkpoint, score
tables and report, as aggregates without texts or people. Publishing again replaces what is there.

    python launch/track.py run=runs/quickstart wandb=online
    python launch/track.py run=runs/quickstart wandb=off tensorboard=true
"""


def main(settings: TrackSettings) -> None:
    """Publish, and print where."""
    from laborllm_dist.tracking.publish import publish_run

    folders = publish_run(settings)
    with results() as console:
        for folder in folders:
            console.print(f"track: {folder}", soft_wrap=True)


if __name__ == "__main__":
    launch(TrackSettings, "track", main, HELP)
