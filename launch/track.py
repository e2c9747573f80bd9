"""Publish a run or a scaling law in Weights & Biases or TensorBoard: python launch/track.py run=runs/NAME."""

from laborllm_dist.cli import launch
from laborllm_dist.config.run import TrackSettings
from laborllm_dist.io.console import results

HELP = """
Publish a run after it has ended: all steps from metrics.jsonl, and with lineage its token store, checkpoint, score
tables and report, as aggregates without texts or people. Publishing again replaces what is there.

    python launch/track.py run=runs/quickstart wandb=online
    python launch/track.py run=runs/quickstart wandb=off tensorboard=true
    python launch/track.py law=sweeps/NAME/law wandb=online                  a law: its numbers, tables and figures
"""


def main(settings: TrackSettings) -> None:
    """Publish, and print where."""
    from laborllm_dist.tracking.publish import publish_run
    from laborllm_dist.tracking.publish_law import publish_law

    folders = publish_run(settings) if settings.law is None else publish_law(settings)
    with results() as console:
        for folder in folders:
            console.print(f"track: {folder}", soft_wrap=True)


if __name__ == "__main__":
    launch(TrackSettings, "track", main, HELP)
