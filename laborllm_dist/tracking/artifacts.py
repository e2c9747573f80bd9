"""What a tracker receives of a run besides the numbers of its steps: settings, and artifacts with their lineage.

    token store  ->  checkpoint  ->  score tables  ->  report, scaling law

Everything is on an allow-list: numbers, fixed words, fingerprints, names that are a single word, and the last part of
a path. No text of a career, person, title, key, user or host is among them, and of a path no folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import html
import re
import types
import typing
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from laborllm_dist.checkpoint.manifest import read_manifest
from laborllm_dist.config.run import RunSettings
from laborllm_dist.errors import LaborError
from laborllm_dist.io.files import finite_or_null, write_text
from laborllm_dist.io.json_files import read_json_object
from laborllm_dist.io.recorded_folder import DamagedRecordError, read_record
from laborllm_dist.io.run_directory import RunDirectory, recorded_store, recorded_versions
from laborllm_dist.tables.log_domain import perplexity_of
from laborllm_dist.tables.parquet import KEY, ScoreTableInfo
from laborllm_dist.tables.scores import read_score_table, score_schema_of, transition_of

# Numbers and fixed words of these groups are given to a tracker; of free texts the names below alone, since a text may
# be a path or a person's.
GROUPS = (
    "split", "template", "tokenizer", "model", "adapter", "batch", "compute", "zero", "optimizer", "training",
    "evaluation", "title_head",
)  # fmt: skip
FEWEST_PEOPLE = 10  # that a number of a summary describes
PUBLISHED = Path("wandb") / "published"  # in a run's folder: copies without paths
WORD = re.compile(r"[\w.+-]{1,100}")
_REPORT_FOLDERS = ("tables", "figures")


@dataclass(frozen=True, slots=True)
class Artifact:
    """One artifact: facts about a file or folder, what it was made from, and files without people."""

    kind: Literal["store", "checkpoint", "scores", "report", "law"]
    fingerprint: str
    facts: Mapping[str, Any]
    made_from: tuple[str, ...] = ()  # names of artifacts
    files: Mapping[str, str] = field(default_factory=dict)  # name in the artifact -> path relative to the run's folder
    is_input: bool = False  # made by another run, and read by this one

    @property
    def name(self) -> str:
        """Its name in the project, the same in every run that makes or reads it."""
        return f"{self.kind}-{self.fingerprint}"

    def values(self) -> dict[str, Any]:
        """Return it as JSON values for a tracker's process."""
        facts = {**self.facts, "fingerprint": self.fingerprint, "made_from": list(self.made_from)}
        return {
            "name": self.name,
            "kind": self.kind,
            "fingerprint": self.fingerprint,
            "facts": finite_or_null(facts),
            "files": dict(self.files),
            "is_input": self.is_input,
        }


def tracked_config(
    run: RunDirectory, settings: RunSettings, *, machine: str | None, num_ranks: int | None
) -> dict[str, Any]:
    """Return what a tracker shows beside a run: settings, versions and hardware.

    Args:
        run: the run, whose record is written.
        settings: its settings.
        machine: processor, memory and GPUs in words, without names (io/command_log.py); None: not known.
        num_ranks: ranks that it is trained on; None: not known.
    """
    return {
        "fingerprint": run.fingerprint,
        **tracked_settings(settings),
        "versions": recorded_versions(run.path),
        "hardware": {"machine": machine, "num_ranks": num_ranks},
    }


def tracked_settings(settings: RunSettings) -> dict[str, Any]:
    """Return the settings that a tracker receives: no key, no folder, no name of a person, user or host."""
    hints = typing.get_type_hints(RunSettings)
    given = {group: _harmless(hints[group], getattr(settings, group)) for group in GROUPS}
    given["model"] |= _words({"name": settings.model.name, "path": _last_part(settings.model.path)})
    given["tokenizer"] |= _words({"path": _last_part(settings.tokenizer.path)})
    corpora = {
        name: {"kind": corpus.kind, "fraction": corpus.fraction, "weight": corpus.weight}
        for name, corpus in settings.data.corpora.items()
        if WORD.fullmatch(name)
    }
    return {**_words({"name": settings.name, "data": settings.data.name}), "corpora": corpora, **given}


def _harmless(kind: Any, value: Any) -> Any:
    """Return the numbers and fixed words of a value of this type; None for what may be any text."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(value):
        hints = typing.get_type_hints(type(value))
        parts = {name: _harmless(hint, getattr(value, name)) for name, hint in hints.items()}
        return {name: part for name, part in parts.items() if part is not None}
    if origin in (types.UnionType, typing.Union):
        (kind,) = (each for each in inner if each is not type(None))
        return _harmless(kind, value)
    return value if origin is Literal or isinstance(value, (bool, int, float)) else None


def _words(texts: Mapping[str, Any]) -> dict[str, str]:
    """Return the texts that are a single word."""
    return {name: text for name, text in texts.items() if isinstance(text, str) and WORD.fullmatch(text)}


def _last_part(path: str | None) -> str | None:
    return None if path is None else PurePosixPath(path).name


def _numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if isinstance(value, (bool, int, float))}


def training_artifacts(run: RunDirectory, best_step: int | None) -> list[Artifact]:
    """Return the store that a run was trained on and the checkpoint of its best step, as far as they are there."""
    artifacts: list[Artifact] = []
    if (store := store_artifact(run)) is not None:
        artifacts.append(store)
    if best_step is not None:
        artifacts.append(_checkpoint_artifact(run, best_step, made_from=tuple(each.name for each in artifacts)))
    return artifacts


def store_artifact(run: RunDirectory) -> Artifact | None:
    """Return the token store of a run: counts by split and corpus; None if it is not there any more."""
    folder = recorded_store(run.path)
    try:
        manifest = None if folder is None else read_json_object(folder / "manifest.json")
        card = None if folder is None else read_json_object(folder / "data_card.json")
    except (OSError, ValueError):
        return None
    if manifest is None or card is None:
        return None
    corpora = {
        name: {**_words({"survey": corpus["survey"]}), "people": corpus["people"], "shares": corpus["shares"]}
        | _numbers(corpus)
        for name, corpus in card["corpora"].items()
        if WORD.fullmatch(name)
    }
    facts = {
        "manifest_sha256": manifest["sha256"],
        "careers_fingerprint": manifest["careers_fingerprint"],
        "tokenizer": manifest["tokenizer"],
        "splits": {split: _numbers(counts) for split, counts in manifest["splits"].items()},
        "corpora": corpora,
        "num_files": len(manifest["files"]),
        "bytes": sum(file["bytes"] for file in manifest["files"].values()),
    }
    return Artifact("store", str(manifest["fingerprint"]), facts, is_input=True)


def _checkpoint_artifact(run: RunDirectory, step: int, made_from: tuple[str, ...]) -> Artifact:
    """Return the weights of a step: the manifest of the checkpoint, or the record of the export, without weights."""
    facts: dict[str, Any] = {"step": step, "run": run.fingerprint}
    for folder in run.checkpoints.glob("step_*"):
        with contextlib.suppress(LaborError):
            manifest = read_manifest(folder)
            if manifest.step == step:
                files = {name: {"bytes": file.bytes, "sha256": file.sha256} for name, file in manifest.files.items()}
                facts |= {"world_size": manifest.world_size, "zero_stage": manifest.stage, "files": files}
    with contextlib.suppress(DamagedRecordError):
        record = read_record(run.export)
        if "files" not in facts and record is not None and record.facts.get("step") == step:
            facts["files"] = {name: {"sha256": checksum} for name, checksum in (record.files or {}).items()}
    return Artifact("checkpoint", f"{run.fingerprint}-{step}", facts, made_from)


def score_artifacts(
    run: RunDirectory, training: Iterable[Artifact], only: Container[Path] | None = None
) -> list[Artifact]:
    """Return a summary of each score table of a run: means over observations, by kind of transition and survey.

    Args:
        run: the run.
        training: artifacts that its tables are made from.
        only: the tables to summarize; None: all.
    """
    names = {artifact.kind: artifact.name for artifact in training}
    artifacts = []
    for path in sorted((run.path / "scores").glob("*.parquet")):
        if (only is not None and path not in only) or (schema := score_schema_of(path)) is None:
            continue
        table, info = read_score_table(path)
        is_own = path.stem == info.split
        made_from = names.get("checkpoint" if is_own else "store")
        fingerprint = (schema.metadata or {}).get(b"sha256", b"").decode()[:16]
        facts = {**_score_facts(table, info), "is_own_model": is_own}
        artifacts.append(Artifact("scores", fingerprint, facts, () if made_from is None else (made_from,)))
    return artifacts


def _score_facts(table: pa.Table, info: ScoreTableInfo) -> dict[str, Any]:
    details = _words(info.details)
    kinds = map(transition_of, table["previous"].to_pylist(), table["occupation"].to_pylist())
    groups = {"transition": np.array(list(kinds)), "survey": np.array(table["survey"].to_pylist())}
    _, people = np.unique(
        np.array(["\0".join(pair) for pair in zip(*(table[name].to_pylist() for name in KEY[:2]), strict=True)]),
        return_inverse=True,
    )
    summary: dict[str, Any] = {}
    for name, values in groups.items():
        levels = _published_levels(people, values)
        summary[f"by_{name}"] = {level: _means(table, people, values == level) for level in levels}
    num_people = int(people.max(initial=-1)) + 1
    whole = _means(table, people, np.ones(table.num_rows, dtype=bool)) if num_people >= FEWEST_PEOPLE else {}
    return {**_words({"model": info.model, "split": info.split}), "details": details, **whole, **summary}


def _published_levels(people: Any, values: Any) -> list[str]:
    """Return the levels of a grouping that a summary may describe.

    The whole less the published levels is what the others have together. Where one of them is too small, these are
    therefore at least two levels with FEWEST_PEOPLE people between them.

    Args:
        people: number of the person of each observation.
        values: level of each observation.
    """
    sizes = {str(level): len(np.unique(people[values == level])) for level in np.unique(values)}
    levels = sorted(sizes, key=lambda level: (sizes[level], level))
    num_suppressed = sum(size < FEWEST_PEOPLE for size in sizes.values())
    if num_suppressed:
        while num_suppressed < len(levels) and (
            num_suppressed < 2 or len(np.unique(people[np.isin(values, levels[:num_suppressed])])) < FEWEST_PEOPLE
        ):
            num_suppressed += 1
    published = levels[num_suppressed:]
    if num_suppressed and len(published) == 1:
        return []
    return [level for level in sorted(published) if WORD.fullmatch(level)]


def _means(table: pa.Table, people: Any, chosen: Any) -> dict[str, float]:
    title, terminated = (-float(table[name].to_numpy()[chosen].mean()) for name in ("title", "terminated"))
    return {
        "num_people": len(np.unique(people[chosen])),
        "num_observations": int(chosen.sum()),
        "nats_per_observation": title,
        "perplexity": float(perplexity_of(-title)),
        "terminated_nats_per_observation": terminated,
    }


def report_artifact(run: RunDirectory, scores: Iterable[Artifact]) -> Artifact | None:
    """Return the report in a run's folder, without its page of single careers; None if there is none.

    A copy of its page has the names of runs in place of their paths.
    """
    folder = run.path / "report"
    try:
        summary = read_json_object(folder / "summary.json")
        page = (folder / "report.html").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    paths = {str(source[name]) for source in summary.get("sources", []) for name in ("run", "file")}
    paths |= {str(training["run"]) for training in summary.get("training", [])}
    publish_page(page, paths, run.path / PUBLISHED / "report.html")
    files = {name: f"report/{name}" for name in exported_files(summary, folder)}
    facts = {
        **_words({name: summary.get(name) for name in ("split", "measure")}),
        **_numbers(summary),
        "models": [
            {**_words({"model": model["model"]}), "perplexity": model["perplexity"], **_numbers(model)}
            for model in summary.get("models", [])
        ],
    }
    made_from = tuple(artifact.name for artifact in scores)
    files["report.html"] = str(PUBLISHED / "report.html")
    return Artifact("report", run.fingerprint, facts, made_from, files)


def publish_page(page: str, paths: Iterable[str], copy: Path) -> None:
    """Write a copy of a page that has the last part of each path in place of the path."""
    for path in sorted(paths, key=len, reverse=True):
        page = page.replace(_escaped(path), _escaped(PurePosixPath(path).name))
    copy.parent.mkdir(parents=True, exist_ok=True)
    write_text(copy, page)


def exported_files(summary: Mapping[str, Any], folder: Path) -> list[str]:
    """Return the tables and figures that a summary lists and that are in its folder."""
    parts = [PurePosixPath(name) for name in summary.get("files", [])]
    names = [str(part) for part in parts if len(part.parts) == 2 and part.parts[0] in _REPORT_FOLDERS]
    return [name for name in names if (folder / name).is_file()]


def _escaped(text: str) -> str:
    """Return a text as the templates of a report write it."""
    return html.escape(text, quote=False).replace('"', "&#34;").replace("'", "&#39;")
