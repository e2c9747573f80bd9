"""A run's folder: the paths of its files, and the record of its settings.

settings.json  metrics.jsonl  checkpoints/  export/  scores/  report/      (docs/run_directory.md)
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.metadata
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laborllm_dist import __version__
from laborllm_dist.config.data import identity_split
from laborllm_dist.config.evaluation import EvaluationSettings
from laborllm_dist.config.reader import read_settings, settings_to_values
from laborllm_dist.config.run import MAY_CHANGE, RunSettings
from laborllm_dist.errors import AlreadyRunningError, ForeignFileError, RunError, SettingsError
from laborllm_dist.io.files import file_lock, fingerprint_of, sha256_of_json, translate_disk_errors, write_json
from laborllm_dist.io.json_files import json_object, read_json_object

TokenStoreRecord = dict[str, str]  # fingerprint and folder; in a run's record also the relative path
STORE_MANIFEST = "manifest.json"  # of a token store (store/store.py)
RECORD, CHECKPOINTS, LOCK, METRICS = "settings.json", "checkpoints", "lock", "metrics.jsonl"
# What a run writes into its folder after its record.
TRAINED = (METRICS, "export", "adapter")  # by training alone
WRITTEN = (RECORD, *TRAINED, "commands.jsonl", "baselines", "scores", "embeddings", "report", "wandb", "tensorboard")
BEHIND_SETTINGS = "the data or the weights behind it"  # what differs where no setting does
PACKAGES = ("torch", "deepspeed", "transformers", "tokenizers", "pyarrow", "numpy", "hydra-core")


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """Paths of one run; `fingerprint` identifies the settings that determine its weights."""

    path: Path
    fingerprint: str

    @property
    def checkpoints(self) -> Path:
        """Folder of resumable checkpoints."""
        return self.path / CHECKPOINTS

    @property
    def export(self) -> Path:
        """Hugging Face folder of the best weights."""
        return self.path / "export"

    @property
    def adapter(self) -> Path:
        """The LoRA adapter alone, as a peft folder."""
        return self.path / "adapter"

    @property
    def metrics(self) -> Path:
        """One JSON line per step."""
        return self.path / METRICS

    def scores(self, split: str, model: str | None = None) -> Path:
        """Score table of a split, of the run's own model or of another one."""
        return self.path / "scores" / (f"{split}.parquet" if model is None else f"{split}.{model}.parquet")


def run_fingerprint(settings: RunSettings, store: str, weights: str | None) -> str:
    """Return a fingerprint of everything that determines a run's final weights.

    Args:
        settings: settings of the run.
        store: fingerprint of its token store.
        weights: identifier of the pretrained weights; None for a randomly initialized model.
    """
    identity = _identity_settings(settings)
    model = {**identity["model"], "path": weights, "revision": None, "subfolder": None}
    trained_on = {name: (corpus.fraction, corpus.weight) for name, corpus in settings.data.corpora.items()}
    return fingerprint_of(
        {**identity, "model": model, "data": trained_on, "tokenizer": None, "name": None, "store": store}
    )


def settings_fingerprint(settings: RunSettings) -> str:
    """Return a fingerprint of the settings that determine a run's weights, which needs neither data nor weights."""
    return fingerprint_of({**_identity_settings(settings), "name": None})


def _identity_settings(settings: RunSettings) -> dict[str, Any]:
    """Return the settings that determine the weights."""
    values = {**settings_to_values(settings), "split": identity_split(settings.split)}
    for path in MAY_CHANGE:
        *groups, name = path.split(".")
        del functools.reduce(dict.__getitem__, groups, values)[name]
    if settings.title_head.kind == "none":
        del values["title_head"]
    return values


def check_run_folder(folder: Path) -> None:
    """Check that training in a folder would not overwrite files that no run wrote.

    A run's folder has its record, or checkpoints, which identify their run. Files with names that a run does not
    write, such as a log of the launcher or Slurm, may be there.

    Raises:
        ForeignFileError: naming the first file that a run would overwrite.
    """
    record = folder / RECORD
    has_checkpoints = any((folder / CHECKPOINTS).glob("step_*"))
    if not folder.is_dir() or _known_of(record) is not None or has_checkpoints:
        return
    foreign = sorted(path for path in folder.iterdir() if path.name in WRITTEN)
    if foreign:
        raise ForeignFileError(
            f"{folder} is there and is no run: {foreign[0]} was not written by one; give this run another name "
            "(name=...), or move it away",
            code="folder-not-a-run",
        )


def create_or_resume(
    settings: RunSettings, store: TokenStoreRecord, weights: str | None, saved: str | None = None
) -> RunDirectory:
    """Create a run's folder, or resume in the existing one, and write the run's record.

    Args:
        settings: settings of the run.
        store: its token store.
        weights: identifier of the pretrained weights; None for a randomly initialized model.
        saved: fingerprint in its checkpoints; None: there are none, so the settings may still change.

    Raises:
        RunError: if the checkpoints were made with other settings, naming the first that differs.
        DiskError: if the folder or record cannot be written.
    """
    fingerprint = run_fingerprint(settings, store["fingerprint"], weights)
    folder = RunDirectory(path=Path(settings.output_dir) / settings.name, fingerprint=fingerprint)
    record = folder.path / RECORD
    known = _known_of(record)
    if saved not in (None, fingerprint):
        raise RunError(
            f"{folder.path} was made with other settings ({_what_differs(known, settings)}); "
            "start it with those, give this run another name (name=...), or delete the folder to start over",
            code="different-settings",
        )
    with translate_disk_errors(folder.checkpoints):
        folder.checkpoints.mkdir(parents=True, exist_ok=True)
    versions = _versions()
    starts = [] if known is None or saved is None else list(known["versions"])
    values = {
        "fingerprint": fingerprint,
        "store": {
            **store,
            "folder": str(Path(store["folder"]).resolve()),
            "from_run": _way(folder.path, store["folder"]),
        },
        "weights": weights,
        "settings": settings_to_values(settings),
        "versions": starts if versions in starts else [*starts, versions],  # of every start, in order
    }
    write_json(record, {**values, "sha256": sha256_of_json(values)})
    return folder


def record_prepared(settings: RunSettings, store: TokenStoreRecord) -> Path | None:
    """Write the record of a run whose data are ready and that nobody has trained, and return the run's folder.

    Baselines need no more than this record; training writes its own over it. None, and nothing is written, if the run
    has been trained, or another process is at work on its folder. `check_run_folder` comes before it.

    Raises:
        DiskError: if the folder or record cannot be written.
    """
    folder = Path(settings.output_dir) / settings.name
    if any((folder / CHECKPOINTS).glob("step_*")) or any((folder / name).exists() for name in TRAINED):
        return None
    with contextlib.suppress(AlreadyRunningError), file_lock(folder / LOCK, busy="the run is training"):
        return create_or_resume(settings, store, None).path
    return None


def _what_differs(known: dict[str, Any] | None, settings: RunSettings) -> str:
    if known is None:
        return f"its {RECORD} is missing or damaged, so which ones is not known"
    difference = _first_difference(_identity_settings(_settings_of(known)), _identity_settings(settings))
    return BEHIND_SETTINGS if difference is None else f"{difference[0]}: {difference[1]} then, {difference[2]} now"


def _versions() -> dict[str, str]:
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"laborllm_dist": __version__, "python": platform.python_version(), **packages}


def read_run(path: Path) -> tuple[RunDirectory, RunSettings, Path]:
    """Open an existing run: its folder, settings and token store.

    Raises:
        RunError: if there is no run at this path, or its record is damaged.
    """
    known = _record_of(path)
    settings = _settings_of(known)
    return (
        RunDirectory(path=path, fingerprint=known["fingerprint"]),
        settings,
        _store_of(path, known["store"], settings),
    )


def _record_of(path: Path) -> dict[str, Any]:
    record = path / RECORD
    if not record.is_file():
        nearby = sorted(file.parent.name for file in path.parent.glob(f"*/{RECORD}")) if path.parent.is_dir() else []
        hint = f"; runs there: {', '.join(nearby)}" if nearby else ""
        raise RunError(f"no run at {path} (no {RECORD}){hint}", code="no-run")
    return _read_record(record)


def refit_difference(run: Path, refit: Path) -> str | None:
    """Return what keeps a run from being a refit of another on resampled training people; None if nothing does.

    The two may differ in name and `training.bootstrap_seed`, in the places of files, and in how they are computed.
    They are trained by the same rules, also by those that may change when one run resumes, such as patience.

    Raises:
        RunError: if there is no run at a path, or its record is damaged.
    """
    records = (_record_of(run), _record_of(refit))
    first, other = (_settings_of(known) for known in records)
    training = dataclasses.replace(other.training, bootstrap_seed=first.training.bootstrap_seed)
    other = dataclasses.replace(other, name=first.name, training=training)
    rules, other_rules = (settings_to_values(settings.training) for settings in (first, other))
    difference = _first_difference(rules, other_rules, "training")
    if difference is None:
        weights = [known.get("weights") for known in records]
        if None in weights:  # of a run that nobody has trained, which has baselines alone
            weights = [None, None]
        fingerprints = {
            run_fingerprint(settings, known["store"]["fingerprint"], identifier)
            for settings, known, identifier in zip((first, other), records, weights, strict=True)
        }
        if len(fingerprints) == 1:
            return None
        difference = _first_difference(_identity_settings(first), _identity_settings(other))
    if difference is None:
        return f"{BEHIND_SETTINGS} differ"
    name, value, other_value = difference
    return f"{name}: {value} in {run}, {other_value} in {refit}"


def recorded_versions(path: Path) -> dict[str, str]:
    """Return the versions of the last start of a run; empty if its record is missing or damaged."""
    known = _known_of(path / RECORD)
    return dict(known["versions"][-1]) if known is not None and known["versions"] else {}


def recorded_store(path: Path) -> Path | None:
    """Return the folder of the token store that a run was made with; None if there is no run, or no such store."""
    known = _known_of(path / RECORD)
    try:
        folder = None if known is None else _store_of(path, known["store"], _settings_of(known))
    except SettingsError:  # written by another version
        return None
    return folder if folder is not None and (folder / STORE_MANIFEST).is_file() else None


@dataclass(frozen=True, slots=True)
class RecordedRun:
    """A run's folder with what its record says of it; `weights`: of a pretrained model."""

    path: Path
    fingerprint: str
    weights: str | None
    evaluation: EvaluationSettings


def recorded_runs(output_dir: Path) -> Iterator[RecordedRun]:
    """Yield the runs of a folder whose records can be read."""
    for record in sorted(output_dir.glob(f"*/{RECORD}")):
        if (known := _known_of(record)) is not None:
            with contextlib.suppress(SettingsError):  # written by another version
                evaluation = _settings_of(known).evaluation
                yield RecordedRun(record.parent, known["fingerprint"], known.get("weights"), evaluation)


def _way(start: Path, folder: str) -> str:
    """Return the relative path from one folder to another, which stays valid if both are moved together."""
    return os.path.relpath(Path(folder).resolve(), start.resolve())


def _store_of(path: Path, store: TokenStoreRecord, settings: RunSettings) -> Path:
    """Return the folder of a run's token store, whatever the working directory, even if both were moved together.

    Earlier records have no path relative to the run's folder, and may have a path relative to the working directory of
    the training command, which follows from the run's folder if `output_dir` is relative.
    """
    recorded = Path(store["folder"])
    made_in = path.resolve().joinpath(*[".." for _ in Path(settings.output_dir, settings.name).parts]).resolve()
    places = [path / store["from_run"]] if isinstance(store.get("from_run"), str) else []
    if not Path(settings.output_dir).is_absolute():
        places.append(made_in / recorded)
    places.append(recorded.absolute())
    return next((place.resolve() for place in places if _holds_store(place, store["fingerprint"])), recorded)


def _holds_store(folder: Path, fingerprint: str) -> bool:
    try:
        return read_json_object(folder / STORE_MANIFEST).get("fingerprint") == fingerprint
    except (OSError, ValueError):
        return False


def weights_of_run(run: RunDirectory) -> str | None:
    """Return the identifier of a run's pretrained weights; None: a randomly initialized model, or no valid record."""
    known = _known_of(run.path / RECORD)
    return None if known is None else known.get("weights")


def _settings_of(known: dict[str, Any]) -> RunSettings:
    return read_settings(RunSettings, known["settings"])


def _read_record(record: Path) -> dict[str, Any]:
    with translate_disk_errors(record):
        content = record.read_bytes()
    try:
        known = json_object(content)
        _ = known["store"]["folder"], known["store"]["fingerprint"]
        for text in (known["fingerprint"], *known["store"].values()):
            if not isinstance(text, str) or "\0" in text:
                raise ValueError("its fingerprint and its store are no texts")
            text.encode()  # lone surrogates cannot be encoded
        if not isinstance(known["settings"], dict) or not isinstance(known["versions"], list):
            raise ValueError("its settings are no group of settings, or its versions no list")
        checksum = known.pop("sha256", None)  # records of earlier versions have none
        if checksum not in (None, sha256_of_json(known)):
            raise ValueError("it has changed since it was written; if that is intentional, delete its line sha256")
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{record} is damaged ({error}); the command that trained this run writes it again, and nothing is lost",
            code="damaged-run-record",
        ) from None
    return known


def _known_of(record: Path) -> dict[str, Any] | None:
    """Return a record; None if it is missing or damaged, which loses nothing: checkpoints identify their run."""
    with contextlib.suppress(RunError):
        return _read_record(record) if record.is_file() else None
    return None


def _first_difference(known: Any, current: Any, where: str = "") -> tuple[str, Any, Any] | None:
    """Return the name of the first setting that differs, and its two values."""
    if isinstance(known, dict) and isinstance(current, dict):
        for name in sorted({*known, *current}):
            change = _first_difference(known.get(name), current.get(name), f"{where}.{name}" if where else name)
            if change:
                return change
        return None
    return None if known == current else (where, known, current)
