"""Two runs are compared bit for bit: what is equal, what differs and what only one of them has."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.processes import PROJECT
from safetensors.numpy import save_file

WEIGHTS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.float16([1, 2])}
SCORES = {"person": ["1", "2"], "previous": ["x", None], "title": [-1.0, -2.5]}


def write_run(run: Path) -> Path:
    (run / "export").mkdir(parents=True)
    (run / "scores").mkdir()
    (run / "settings.json").write_text("{}")
    save_file(WEIGHTS, run / "export/model.safetensors")
    lines = [{"step": 1, "loss_nats_per_token": 0.5, "time": id(run)}, {"step": 2, "loss_nats_per_token": 0.25}]
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    write_scores(run, SCORES)
    return run


def write_scores(run: Path, values: dict, **metadata: str) -> None:
    pq.write_table(pa.table(values).replace_schema_metadata(metadata), run / "scores/test.parquet")


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    return write_run(tmp_path / "a"), write_run(tmp_path / "b")


def compare(*words: object) -> tuple[int, list[str]]:
    program = [sys.executable, str(PROJECT / "benchmarks/compare_runs.py"), *map(str, words)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, (done.stdout + done.stderr).splitlines()


def test_equal_runs_are_equal_although_their_metadata_and_files_are_not(runs) -> None:
    second = runs[1] / "export"
    (second / "model.safetensors").unlink()  # the same tensors in two files, in another order
    for name, tensor in reversed(WEIGHTS.items()):
        save_file({name: tensor}, second / f"model-{name}.safetensors", metadata={"format": "pt"})
    write_scores(runs[1], SCORES, laborllm_dist="another version")
    assert compare(*runs) == (
        0,
        [
            "tensors of export: equal (2)", "tensors of adapter: in neither run", "losses of metrics.jsonl: equal (2)",
            "columns of scores/test.parquet: equal (3)",
        ],
    )  # fmt: skip


def test_one_bit_of_a_weight_a_loss_and_a_score_is_a_difference(runs) -> None:
    other = {**WEIGHTS, "b": np.nextafter(WEIGHTS["b"], np.float16(9))}
    save_file(other, runs[1] / "export/model.safetensors")
    (runs[1] / "metrics.jsonl").write_text('{"step": 1, "loss_nats_per_token": 0.5000000000000001}\n')
    write_scores(runs[1], {**SCORES, "title": [float(np.nextafter(-1.0, 0)), -2.5]}, occupations='["x"]')
    assert compare(*runs) == (
        1,
        [
            "tensors of export: DIFFERENT (1 of 2): b", "tensors of adapter: in neither run",
            "losses of metrics.jsonl: DIFFERENT (2 of 2): step 1, step 2",
            "columns of scores/test.parquet: DIFFERENT (2 of 4): title, order of occupations",
        ],
    )  # fmt: skip


def test_a_table_of_one_run_and_a_column_of_another_name(runs) -> None:
    shutil.copytree(runs[0] / "export", runs[0] / "adapter")
    write_scores(runs[0], {"person": SCORES["person"], "before": SCORES["previous"], "title": SCORES["title"]})
    code, lines = compare(*runs, "--rename", "before=previous")
    assert (code, lines[1]) == (1, f"tensors of adapter: only in {runs[0]}")
    assert lines[3] == "columns of scores/test.parquet: equal (3)"
    assert compare(*runs)[1][3] == "columns of scores/test.parquet: DIFFERENT (2 of 4): before, previous"


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    assert compare(tmp_path, tmp_path) == (
        2,
        [f"error: {tmp_path} is not the folder of a run: it has no settings.json"],
    )
