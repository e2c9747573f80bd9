"""Publish a scaling law: its numbers as a summary, its page, tables and figures as an artifact made from its scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from laborllm_dist.config.run import TrackingSettings, TrackSettings
from laborllm_dist.errors import LaborError, RunError, SettingsError
from laborllm_dist.io.files import fingerprint_of
from laborllm_dist.io.json_files import NotJsonError, read_json_object
from laborllm_dist.io.run_directory import read_run
from laborllm_dist.plain_text import visible
from laborllm_dist.tracking.artifacts import (
    FEWEST_PEOPLE,
    PUBLISHED,
    WORD,
    Artifact,
    exported_files,
    publish_page,
    score_artifacts,
)
from laborllm_dist.tracking.publish import finish_trackers, start_trackers

_WORDS = ("form", "method", "counted", "formula", "split", "measure")
_COUNTS = ("num_people", "num_observations", "bootstrap_draws", "seed", "is_excess")


def publish_law(settings: TrackSettings) -> list[Path]:
    """Publish a law in wandb, in its project and group of runs; return the folders that trackers have written.

    Raises:
        RunError: if there is no law in the folder, it is of too few people, a name in it may be private, or a tracker
            has failed.
        SettingsError: if no tracker is chosen or can start, or no run of the law has settings to take the project from.
    """
    assert settings.law is not None
    folder = Path(settings.law)
    law, page = _read_law(folder)
    tracking = _tracking_of(settings, law)
    fingerprint = fingerprint_of({name: value for name, value in law.items() if name != "files"})[:16]
    inputs = _scores_of(law)
    publish_page(page, _paths_of(law), folder / PUBLISHED / "law.html")
    files = {name: name for name in exported_files(law, folder)} | {"law.html": str(PUBLISHED / "law.html")}
    summary = summary_of(law)
    artifact = Artifact("law", fingerprint, summary, tuple(each.name for each in inputs), files)

    config = {"fingerprint": fingerprint, **{name: law.get(name) for name in (*_WORDS, *_COUNTS)}}
    trackers = start_trackers(tracking, folder, f"{tracking.group or 'scaling'}-law", config, (), "law")
    for tracker in trackers:
        tracker.summarize(summary)
        for each in [*inputs, artifact]:
            tracker.add_artifact(each)
    finish_trackers(trackers, folder)
    return [folder / tracker.kind for tracker in trackers]


def summary_of(law: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers of a law: its parameters with intervals, and the largest run beside its prediction."""
    values: dict[str, Any] = {"num_runs": len(law["points"])}
    for name, estimate in law["parameters"].items():
        values |= _with_interval(name, estimate)
    if (held_out := law.get("held_out")) is not None:
        values |= _with_interval("held_out_predicted", held_out["predicted"])
        values["held_out_observed"] = held_out["observed"]
    return values


def _with_interval(name: str, estimate: Mapping[str, Any]) -> dict[str, Any]:
    ends = {f"{name}_{end}": estimate[end] for end in ("low", "high") if estimate[end] is not None}
    return {name: estimate["value"], **ends}


def _read_law(folder: Path) -> tuple[dict[str, Any], str]:
    try:
        law = read_json_object(folder / "law.json")
        page = (folder / "law.html").read_text(encoding="utf-8")
        if law["num_people"] is not None and law["num_people"] < FEWEST_PEOPLE:
            raise RunError(
                f"{folder}: a law of fewer than {FEWEST_PEOPLE} test people is not published", code="too-few-people"
            )
        names = {str(name) for name in (law["pretrained"], law["sources"], *(point["size"] for point in law["points"]))}
        summary_of(law), _paths_of(law)
    except (OSError, NotJsonError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
        raise RunError(
            f"no scaling law at {folder}; `python launch/fit_law.py points=... output={folder}` makes one",
            code="no-law",
        ) from None
    # Page, tables and figures show them as the table of points has them, where a user may write anything.
    if private := sorted(name for name in names if name and not WORD.fullmatch(name)):
        raise RunError(
            f"{folder}: {visible(private[0])!r} is not published, since it may be a path or a person's name; make it "
            "a single word (letters, digits, _ . + -) in the columns size, sources and pretrained of the table of "
            "points, and fit the law again",
            code="private-name",
        )
    return law, page


def _tracking_of(settings: TrackSettings, law: Mapping[str, Any]) -> TrackingSettings:
    """Return where a law is published: as the settings say, else where its first run is."""
    project, group = settings.project, settings.group
    if project is None or group is None:
        try:
            of_run = read_run(Path(law["points"][0]["run"]))[1].tracking
        except (LaborError, LookupError, TypeError):
            if project is None:
                raise SettingsError(
                    "the law's first run has no settings that name a project; set project=NAME", code="no-project"
                ) from None
        else:
            project, group = project or of_run.project, group or of_run.group
    assert project is not None
    return TrackingSettings(wandb=settings.wandb, project=project, group=group, tensorboard=False)


def _scores_of(law: Mapping[str, Any]) -> list[Artifact]:
    """Return the score tables that a law was fitted to, as far as they are still there."""
    files = {Path(source["file"]) for source in law["scores"]}
    artifacts = []
    for run in sorted({Path(source["run"]) for source in law["scores"]}):
        try:
            directory = read_run(run)[0]
        except LaborError:
            continue
        artifacts += score_artifacts(directory, (), only=files)
    return [dataclasses.replace(each, is_input=True) for each in artifacts]


def _paths_of(law: Mapping[str, Any]) -> set[str]:
    paths = {str(source[name]) for source in law["scores"] for name in ("run", "file")}
    return paths | {str(point["run"]) for point in law["points"] if point["run"] is not None}
