"""Runs without training, work in parts, and what trained runs have written."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import torch

from helpers.checkpoints import write_checkpoint
from helpers.runs import settings_of, small_run
from laborllm_dist.checkpoint.load import full_weights
from laborllm_dist.checkpoint.manifest import read_manifest
from laborllm_dist.checkpoint.save import checkpoint_folder, run_of_checkpoints
from laborllm_dist.cli import compose_settings
from laborllm_dist.config.evaluation import EvaluateSettings, ForecastSettings, PredictSettings
from laborllm_dist.distributed.context import DistributedContext
from laborllm_dist.evaluation.resumable_parts import ResumableJob
from laborllm_dist.evaluation.run import score_run
from laborllm_dist.evaluation.target import evaluated_run
from laborllm_dist.forecasting.run import forecast_run, run_forecasts
from laborllm_dist.io.run_directory import create_or_resume
from laborllm_dist.models.loading import new_llama
from laborllm_dist.prediction.predict import predict, predicted_titles
from laborllm_dist.store.build import prepare_store
from laborllm_dist.store.store import TOKENIZER
from laborllm_dist.store.tokenizer import load_tokenizer
from laborllm_dist.tables.parquet import ScoreTableInfo

ONE_RANK = DistributedContext(0, 1, 0, torch.device("cpu"))
TITLES = {"a": "Cook", "b": "Maid", "c": "Aide"}


def panel(folder: Path) -> list[str]:
    """Return settings of a panel of three titles: 40 people over four years, then one two years later."""
    rows = ["person,year,occupation,birth_year,gender,ethnicity,region,education"]
    for person in range(40):
        for at, year in enumerate((1990, 1991, 1992, 1993, 1995)):
            code = "abc"[(person * (at + 1) + at * at) % 3]
            rows.append(f"{person},{year},{code},1960,male,white,south,{'college' if at > 1 else 'high school'}")
    (folder / "careers.csv").write_text("\n".join(rows) + "\n")
    (folder / "titles.csv").write_text("\n".join(["code,title", *map(",".join, TITLES.items())]) + "\n")
    base = [override for override in small_run(folder) if "synthetic" not in override]
    panel = "data.corpora.long_panel"
    return [
        *base,
        "data=long_panel",
        "tokenizer=trained",  # titles of several tokens
        f"{panel}.path={folder}/careers.csv",
        f"{panel}.vocabulary.path={folder}/titles.csv",
        "tokenizer.vocabulary_size=270",
        "split.train=0.5",
        "split.validation=0.2",
    ]


def random_run(folder: Path, *more: str) -> Path:
    """Make a run's folder whose export has random weights: what training is for does not matter here."""
    settings = settings_of([*panel(folder), *more])
    store = prepare_store(settings)
    run = create_or_resume(settings, {"fingerprint": store.fingerprint, "folder": str(store.folder)}, None)
    tokenizer = load_tokenizer(str(store.folder / TOKENIZER))
    new_llama(settings.model.llama, num_ids=tokenizer.num_ids, attention_dropout=0.0, seed=1).save_pretrained(
        run.export
    )
    tokenizer.save(run.export)
    return run.path


def forecast(run: Path, *overrides: str) -> Path:
    """Forecast in this process; return the table."""
    torch.set_num_threads(1)
    settings = compose_settings(ForecastSettings, "forecast", [f"run={run}", *overrides])
    return run_forecasts(settings, forecast_run(settings), ONE_RANK)


def score_alone(settings: EvaluateSettings) -> Path:
    """Evaluate in this process; return the score table."""
    return score_run(settings, evaluated_run(settings.run, settings), ONE_RANK)


def predict_alone(settings: PredictSettings) -> tuple[pa.Table, ScoreTableInfo]:
    """Predict in this process."""
    return predict(settings, evaluated_run(settings.run, predicted_titles(settings)), ONE_RANK)


STORE = {"fingerprint": "store", "folder": "stores/x"}


def begun_run(folder: Path, *more: str, weights: str | None = None, store: str = "store"):
    """Open a run that has a checkpoint already, made with the settings it was first opened with."""
    checkpoints = folder / "runs/small/checkpoints"
    saved = run_of_checkpoints(checkpoints)
    run = create_or_resume(settings_of(small_run(folder, *more)), {**STORE, "fingerprint": store}, weights, saved)
    if saved is None:
        write_checkpoint(checkpoints, 1, run=run.fingerprint)
    return run


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss_nats_per_token"] for line in lines if "loss_nats_per_token" in line]


def saved_weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    checkpoint = checkpoint_folder(run / "checkpoints", step)
    return dict(full_weights(checkpoint, read_manifest(checkpoint)))


# Three parts of five observations, in no order.
PARTS = [[(2, 0), (0, 1)], [(1, 0)], [(0, 0), (2, 1)]]
PARTED_KEYS = pa.table({"career": [0, 0, 1, 2, 2], "position": [0, 1, 0, 0, 1]})


def parted(folder: Path, made: list[int]) -> ResumableJob:
    def make(part: int) -> pa.Table:
        made.append(part)
        careers, positions = zip(*PARTS[part], strict=True)
        values = [100 * career + position for career, position in PARTS[part]]
        return pa.table({"career": careers, "position": positions, "value": values})

    return ResumableJob(folder / "parts", len(PARTS), make, lambda: None)
