"""Publish a run after it has ended, from its folder: its steps, settings and result, its scores and its report."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from laborllm_dist.config.run import RunSettings, TrackingSettings, TrackSettings
from laborllm_dist.errors import RunError, SettingsError
from laborllm_dist.io.command_log import read_commands
from laborllm_dist.io.files import file_lock
from laborllm_dist.io.recorded_folder import DamagedRecordError, read_record
from laborllm_dist.io.run_directory import LOCK, RunDirectory, read_run
from laborllm_dist.tracking.artifacts import (
    Artifact,
    report_artifact,
    score_artifacts,
    tracked_config,
    training_artifacts,
)
from laborllm_dist.tracking.run_log import numbers_of, read_log, validation_of
from laborllm_dist.tracking.tracker import History, JobType, Tracker, close_trackers, open_trackers

_RESULTS = ("nats_per_observation", "perplexity", "num_observations", "num_people")
PUBLISH_SECONDS = 1800.0  # for each of its two parts: the training, and what was made from its weights


def publish_run(settings: TrackSettings) -> list[Path]:
    """Publish a run; return the folders that trackers have written.

    A run of wandb has the training, with the token store as its input and the checkpoint as its output; a second one
    has the scores and the report, made from that checkpoint.

    Raises:
        RunError: if there is no trained run in the folder, or a tracker has failed.
        AlreadyRunningError: if the run is training.
        SettingsError: if no tracker is chosen, or none can start.
    """
    assert settings.run is not None
    run, of_run, _ = read_run(Path(settings.run))
    if not run.metrics.is_file():
        raise RunError(f"{run.path} has no {run.metrics.name}: nobody has trained this run", code="not-trained")
    tracking = TrackingSettings(
        wandb=settings.wandb,
        project=of_run.tracking.project if settings.project is None else settings.project,
        group=of_run.tracking.group if settings.group is None else settings.group,
        tensorboard=settings.tensorboard,
    )
    with file_lock(run.path / LOCK, busy=f"{run.path} is training, and is tracked as its settings say"):
        kinds = _publish(run, of_run, tracking)
    return [run.path / kind for kind in kinds]


def _publish(run: RunDirectory, settings: RunSettings, tracking: TrackingSettings) -> list[str]:
    """Publish a run; return the kinds of trackers that have started."""
    facts = [facts for _, facts in read_log(run.metrics)]
    best_step = _exported_step(run)
    trained = training_artifacts(run, best_step)
    scores = score_artifacts(run, trained)
    report = report_artifact(run, scores)
    results = [*scores, *([] if report is None else [report])]
    measured = next((validation_of(each) for each in facts if each["step"] == best_step), {})
    tested = {f"{part['split']}_{name}": part[name] for part in _own(scores) for name in _RESULTS if name in part}
    summary = {"best_step": best_step, **measured, **tested}

    history = [(numbers_of(each), int(each["step"])) for each in facts]
    trackers = _open(run, settings, tracking, history, "train")
    for tracker in trackers:
        tracker.summarize(summary)
        for artifact in trained if tracker.kind == "wandb" else [*trained, *results]:
            tracker.add_artifact(artifact)
    finish_trackers(trackers, run.path)
    kinds = [tracker.kind for tracker in trackers]
    if results and "wandb" in kinds:
        inputs = [dataclasses.replace(artifact, is_input=True) for artifact in trained]
        evaluated = _open(run, settings, tracking, (), "evaluate")
        for tracker in evaluated:
            tracker.summarize(tested)
            for artifact in [*inputs, *results]:
                tracker.add_artifact(artifact)
        finish_trackers(evaluated, run.path)
    return kinds


def _own(scores: Sequence[Artifact]) -> list[dict[str, Any]]:
    """Return the summaries of the tables of the run's own model whose split has a name without a space."""
    return [dict(each.facts) for each in scores if each.facts["is_own_model"] and "split" in each.facts]


def _open(
    run: RunDirectory, settings: RunSettings, tracking: TrackingSettings, history: History, job_type: JobType
) -> list[Tracker]:
    commands = [each for each in read_commands(run.path) if each.name == "train"]
    machine, num_ranks = (commands[-1].machine, commands[-1].num_ranks) if commands else (None, None)
    config = tracked_config(run, settings, machine=machine, num_ranks=num_ranks)
    return start_trackers(tracking, run.path, settings.name, config, history, job_type)


def start_trackers(
    tracking: TrackingSettings, folder: Path, name: str, config: Mapping[str, Any], history: History, job_type: JobType
) -> list[Tracker]:
    """Start the trackers of what is published from a folder.

    Raises:
        SettingsError: if no tracker is chosen, or none can start.
    """
    trackers = open_trackers(tracking, folder, name, config, history, job_type, finish_seconds=PUBLISH_SECONDS)
    if not trackers:
        raise SettingsError(
            f"{folder} is not published: no tracker is chosen or can start with wandb={tracking.wandb} and "
            f"tensorboard={str(tracking.tensorboard).lower()}; set wandb=online or tensorboard=true (with wandb=auto, "
            "WANDB_MODE=disabled turns wandb off)",
            code="no-tracker",
        )
    return trackers


def finish_trackers(trackers: Sequence[Tracker], folder: Path) -> None:
    """Wait until everything is published.

    Raises:
        RunError: if a tracker has failed.
    """
    close_trackers(trackers, seconds=PUBLISH_SECONDS)
    for tracker in trackers:
        failed = [problem for problem in tracker.problems if "continues offline" not in problem]
        if failed:
            raise RunError(f"{folder} is not published in {tracker.kind}: it {failed[0]}", code="not-published")


def _exported_step(run: RunDirectory) -> int | None:
    """Return the step whose weights a run has exported; None: it has not."""
    try:
        record = read_record(run.export)
    except DamagedRecordError:
        return None
    step = None if record is None else record.facts.get("step")
    return step if isinstance(step, int) else None
