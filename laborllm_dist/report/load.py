"""Find the score tables of several runs and put them side by side, so that every number compares like with like.

Models are compared on the same observations only: same keys, same facts about each (occupation, year, covariates),
made from the same careers and split. Anything else raises an error with the first observation that differs, since
perplexities over different people differ for reasons that have nothing to do with the models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from laborllm_dist.config.evaluation import OTHER_DATA, WeightSettings
from laborllm_dist.errors import RunError, ScoreTableError
from laborllm_dist.report.survey_weights import read_weights
from laborllm_dist.tables.parquet import KEY, DistributionTable, ScoreTableInfo, occupations_of
from laborllm_dist.tables.scores import (
    NUM_TITLES,
    SCORE_SCHEMA,
    TITLE_HEAD_DETAIL,
    has_mass_outside_titles,
    is_true_model,
    read_score_table,
    scored_data,
)
from laborllm_dist.tables.title_distributions import read_title_table, title_table_path

FloatArray = npt.NDArray[np.float64]
CodeArray = npt.NDArray[np.int64]

TRUTH = "truth"  # the baseline's name, in its file's name
SCORES = ("num_tokens", "title", "terminated")  # what may differ from model to model
FACTS = tuple(name for name in SCORE_SCHEMA.names if name not in KEY and name not in SCORES)


@dataclass(frozen=True, slots=True)
class ScoreFile:
    """One score table; rows are sorted by key."""

    run: str
    path: Path
    table: pa.Table
    info: ScoreTableInfo


@dataclass(frozen=True, slots=True)
class ScoredModel:
    """One model's log-likelihoods in nats, a value for every row of the observations they are compared on."""

    name: str
    is_true: bool
    log_likelihood: FloatArray
    files: tuple[ScoreFile, ...]  # more than one where several runs hold the same scores


@dataclass(frozen=True, slots=True)
class ComparedScores:
    """Observations that all models have scored. `person_of_row` counts people from 0, in order of (survey, person).

    `num_titles`: the number of possible titles; None if no table has it. `weight_of_row`: survey weights; None: all
    observations count the same.
    """

    observations: pa.Table
    person_of_row: CodeArray
    num_people: int
    models: tuple[ScoredModel, ...]
    num_titles: int | None = None
    weight_of_row: FloatArray | None = None


def compare_runs(
    runs: Sequence[str], *, split: str, measure: str, weights: WeightSettings | None = None
) -> ComparedScores:
    """Read all score tables of `split` in these runs and put them side by side, the best model first.

    Args:
        runs: run folders; each holds `scores/SPLIT.parquet`, `scores/SPLIT.COMPARATOR.parquet` or both.
        split: `train`, `validation` or `test`, or what scores of other data have in its place (`data_NAME`).
        measure: `title`, `terminated`, or `normalised`, which needs the tables of titles.
        weights: survey weights of the observations; None: all count the same.

    Raises:
        RunError: if a run's folder does not exist.
        ScoreTableError: if a run has no scores of the split, two tables are not about the same observations, or a table
            of titles is missing or of other scores.
        DataFileError: if an observation has no valid weight.
    """
    files = [file for run in runs for file in find_score_files(run, split=split)]
    for file in files[1:]:
        check_same_observations(files[0], file)
    observations = files[0].table.drop_columns(list(SCORES))
    person_of_row, num_people = number_people(observations)
    models = [
        ScoredModel(name, is_true_model(same[0].info), log_likelihoods(same[0], split, measure), tuple(same))
        for name, same in _name_models(files)
    ]
    weight_of_row = None if weights is None else read_weights(weights, observations)
    # Stable: ties keep the order of the runs.
    models.sort(key=lambda model: -float(np.average(model.log_likelihood, weights=weight_of_row)))
    return ComparedScores(
        observations, person_of_row, num_people, tuple(models), _num_titles(files, split), weight_of_row
    )


def compare_other_data(
    runs: Sequence[str], *, measure: str, apart: str
) -> tuple[dict[str, ComparedScores], tuple[str, ...]]:
    """Compare the models of those of these runs that have scores of other data, by the name of the data.

    Data whose tables cannot be compared are left out, with a note, since the report is about others.

    Args:
        runs: run folders.
        measure: as in `compare_runs`.
        apart: what is compared already, and is left out.
    """
    runs_of: dict[str, list[str]] = {}
    for run in runs:
        for split in scored_data(Path(run) / "scores"):
            runs_of.setdefault(split, []).append(run)
    compared, notes = {}, []
    for split, of_data in sorted(runs_of.items()):
        name = split.removeprefix(OTHER_DATA)
        try:
            if split != apart:
                compared[name] = compare_runs(of_data, split=split, measure=measure)
        except ScoreTableError as error:
            notes.append(f"note: the report leaves out the other data {name}: {error}")
    return compared, tuple(notes)


def _num_titles(files: Sequence[ScoreFile], split: str) -> int | None:
    """Return the number of titles, from the first table that has it."""
    for file in files:
        if (said := file.info.details.get(NUM_TITLES, "")).isdecimal():
            return int(said)
    for file in files:
        if (codes := occupations_of(title_table_path(file.path, split))) is not None:
            return len(codes)
    return None


def find_score_files(run: str, *, split: str) -> list[ScoreFile]:
    """Read every score table of `split` in one run: the trained model's first, then baselines by file name.

    Raises:
        RunError: if the folder does not exist.
        ScoreTableError: if there is no table of the split, one is empty, or one was made from another split.
    """
    paths = [_model_path(run, split), *sorted((Path(run) / "scores").glob(f"{split}.*.parquet"))]
    return [_read_score_file(run, path, split) for path in _existing(paths, run, split)]


def read_model_scores(run: str, *, split: str) -> ScoreFile:
    """Read the trained model's score table of `split` in one run.

    Raises:
        RunError: if the folder does not exist.
        ScoreTableError: if there is no such table, it is empty, or it was made from another split.
    """
    return _read_score_file(run, _existing([_model_path(run, split)], run, split)[0], split)


def find_true_scores(run: str, *, split: str) -> ScoreFile | None:
    """Read the true probabilities of a synthetic market, as `find_baseline_scores`."""
    return find_baseline_scores(run, TRUTH, split=split)


def find_baseline_scores(run: str, name: str, *, split: str) -> ScoreFile | None:
    """Read the scores of a baseline that launch/baselines.py wrote in one run; None: it has none.

    Raises:
        ScoreTableError: if the table is damaged, empty or was made from another split.
    """
    path = Path(run) / "scores" / f"{split}.{name}.parquet"
    return _read_score_file(run, path, split) if path.is_file() else None


def _model_path(run: str, split: str) -> Path:
    return Path(run) / "scores" / f"{split}.parquet"


def _existing(paths: Sequence[Path], run: str, split: str) -> list[Path]:
    if not Path(run).is_dir():
        raise RunError(
            f"no run folder at {run}; runs lists folders that launch/train.py or launch/evaluate.py has made",
            code="no-run-folder",
        )
    paths = [path for path in paths if path.is_file()]
    if not paths:
        folder = Path(run) / "scores" / split
        raise ScoreTableError(
            f"run {run} has no scores of the {split} people (looked for {folder}.parquet and "
            f"{folder}.*.parquet); `deepspeed launch/evaluate.py run={run}` makes them",
            code="no-scores",
        )
    return list(paths)


def _read_score_file(run: str, path: Path, split: str) -> ScoreFile:
    table, info = read_score_table(path)
    if info.split != split:
        raise ScoreTableError(
            f"{path} holds scores of the {info.split} people by its metadata, expected {split}",
            code="scores-of-another-split",
        )
    if not table.num_rows:
        raise ScoreTableError(f"{path} has no observations; a perplexity needs at least one", code="no-observations")
    return ScoreFile(run, path, table.sort_by([(name, "ascending") for name in KEY]).combine_chunks(), info)


def check_same_observations(first: ScoreFile, other: ScoreFile) -> None:
    """Check that two tables have the same observations of the same careers.

    Raises:
        ScoreTableError: naming both models and the first observation that differs.
    """
    pair = f"{first.info.model!r} ({first.path}) and {other.info.model!r} ({other.path})"
    keys, other_keys = first.table.select(list(KEY)), other.table.select(list(KEY))
    if not keys.equals(other_keys):
        raise ScoreTableError(f"{pair} cannot be compared: {_first_lone_key(keys, other_keys, first, other)}; "
                              f"score both on the same people", code="different-observations")  # fmt: skip
    for fact in FACTS:
        if not first.table[fact].equals(other.table[fact]):
            values, others = first.table[fact].to_pylist(), other.table[fact].to_pylist()
            row = next(row for row, (ours, theirs) in enumerate(zip(values, others, strict=True)) if ours != theirs)
            raise ScoreTableError(
                f"{pair} cannot be compared: {_describe_key(keys, row)} has {fact} {values[row]!r} in the first "
                f"and {others[row]!r} in the second; score both on the same data",
                code="different-observed-values",
            )
    if first.info.careers != other.info.careers:
        raise ScoreTableError(
            f"{pair} cannot be compared: their careers have fingerprints {first.info.careers} and "
            f"{other.info.careers}; score both on the same data and split",
            code="different-careers",
        )


def _first_lone_key(keys: pa.Table, other_keys: pa.Table, first: ScoreFile, other: ScoreFile) -> str:
    # Both are sorted and without doubles, so the first difference is a key that the table of the greater one lacks.
    rows, other_rows = _key_rows(keys), _key_rows(other_keys)
    row = next((row for row, pair in enumerate(zip(rows, other_rows, strict=False)) if pair[0] != pair[1]), None)
    row = min(len(rows), len(other_rows)) if row is None else row
    if row == len(other_rows) or (row < len(rows) and rows[row] < other_rows[row]):
        return f"{_describe_key(keys, row)} is only in that of {first.info.model!r}"
    return f"{_describe_key(other_keys, row)} is only in that of {other.info.model!r}"


def _key_rows(keys: pa.Table) -> list[tuple[Any, ...]]:
    return list(zip(*(keys[name].to_pylist() for name in KEY), strict=True))


def _describe_key(keys: pa.Table, row: int) -> str:
    survey, person, position = (keys[name][row].as_py() for name in KEY)
    return f"observation {position} of person {person!r} of {survey}"


def number_people(observations: pa.Table) -> tuple[CodeArray, int]:
    """Return the person of each observation, counted from 0, and the number of people; rows are sorted by key."""
    # Rows are sorted by (survey, person), so a person's rows are neighbors and a change of either begins the next.
    starts = np.zeros(observations.num_rows, dtype=bool)
    for name in ("survey", "person"):
        values = np.asarray(observations[name].to_numpy(zero_copy_only=False), dtype=object)
        starts[1:] |= values[1:] != values[:-1]
    person_of_row: CodeArray = np.cumsum(starts).astype(np.int64)
    return person_of_row, int(person_of_row[-1]) + 1


def log_likelihoods(file: ScoreFile, split: str, measure: str) -> FloatArray:
    """Return a table's log-likelihoods in nats by a measure, [observations].

    Raises:
        ScoreTableError: if the measure needs a table of titles, and it is missing or of other scores.
    """
    if measure != "normalised":
        return np.asarray(file.table[measure].to_numpy(), dtype=np.float64)
    if not np.any(file.table["num_tokens"].to_numpy()) and not has_mass_outside_titles(file.info):
        # It chooses among occupations: normalised as it is.
        return np.asarray(file.table["terminated"].to_numpy(), dtype=np.float64)
    titles = titles_of(file, split)
    if titles is None:
        raise ScoreTableError(
            f"{file.info.model!r} has no table of titles, which measure=normalised wants "
            f"({title_table_path(file.path, split)}); `{_title_command(file)}` makes it",
            code="no-title-table",
        )
    return np.asarray(titles.table["normalised"].to_numpy(), dtype=np.float64)


def file_with_titles(model: ScoredModel, split: str) -> ScoreFile | None:
    """Return the first score table of a model that has a table of titles; None if none has."""
    return next((file for file in model.files if title_table_path(file.path, split).is_file()), None)


def _title_command(file: ScoreFile) -> str:
    """Return the command that makes the table of titles of a score table."""
    if "baseline" not in file.info.details:
        of_head = " title_head=true" if TITLE_HEAD_DETAIL in file.info.details else ""
        return f"launch/evaluate.py run={file.run} titles=all{of_head}"
    name = file.path.suffixes[-2].removeprefix(".")
    return f"python launch/baselines.py run={file.run} split={file.info.split} baselines='[{name}]' titles=all"


def title_codes(file: ScoreFile, split: str) -> tuple[str, ...]:
    """Return the codes of all titles, in the order of a table of titles, from its metadata; () if it is damaged."""
    return occupations_of(title_table_path(file.path, split)) or ()


def titles_of(file: ScoreFile, split: str) -> DistributionTable | None:
    """Return the title table of a score table; None if there is none.

    Raises:
        ScoreTableError: if it is damaged, or of other scores than the score table.
    """
    path = title_table_path(file.path, split)
    if not path.is_file():
        return None
    titles = read_title_table(path)
    same_origin = titles.info.model == file.info.model and file.info.details.items() <= titles.info.details.items()
    if not same_origin or not titles.table.select(list(KEY)).equals(file.table.select(list(KEY))):
        raise ScoreTableError(
            f"{path} is of other scores than {file.path}; `{_title_command(file)}` makes it anew",
            code="titles-of-other-scores",
        )
    return titles


def _name_models(files: Sequence[ScoreFile]) -> list[tuple[str, list[ScoreFile]]]:
    """Merge tables of one name with equal scores; give the others of that name their run's or file's name besides."""
    kept: list[list[ScoreFile]] = []
    for file in files:
        twin = next((same for same in kept if _is_same_model(same[0], file)), None)
        if twin is None:
            kept.append([file])
        else:
            twin.append(file)
    heads = [same[0] for same in kept]
    for name_of in (
        lambda file: file.info.model,
        lambda file: f"{file.info.model} ({Path(file.run).name})",
        lambda file: f"{file.info.model} ({file.path})",
    ):
        names = [name_of(head) for head in heads]
        shared = {head.info.model for head, name in zip(heads, names, strict=True) if names.count(name) > 1}
        if not shared:
            break
    # A name that only one model has stays as it is, whatever the others needed.
    plain = [head.info.model for head in heads]
    return [
        (model if plain.count(model) == 1 else name, same) for model, name, same in zip(plain, names, kept, strict=True)
    ]


def _is_same_model(first: ScoreFile, other: ScoreFile) -> bool:
    scores = ["title", "terminated"]
    same_scores = bool(first.table.select(scores).equals(other.table.select(scores)))
    return first.info.model == other.info.model and same_scores
