"""A run whose data are prepared has a record that baselines need, and training writes its own over it."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.checkpoints import write_checkpoint
from helpers.errors import raises
from helpers.runs import settings_of
from helpers.trained_runs import panel

from laborllm_dist.baselines.run import score_baselines
from laborllm_dist.cli import compose_settings
from laborllm_dist.config.baselines import BaselineSettings
from laborllm_dist.io.files import file_lock
from laborllm_dist.io.run_directory import read_run, record_prepared
from laborllm_dist.store.build import prepare
from laborllm_dist.tables.scores import read_score_table

STORE = {"fingerprint": "store", "folder": "stores/x"}


def test_baselines_need_the_prepared_data_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = settings_of(panel(tmp_path))
    prepare(settings)
    run = tmp_path / "runs/small"
    assert f"prepare: {run} is ready for training, and for launch/baselines.py run={run}" in caplog.messages
    (path,) = score_baselines(compose_settings(BaselineSettings, "baselines", [f"run={run}", "baselines=[marginal]"]))
    assert read_score_table(path)[1].model == "marginal"
    assert read_run(run)[1] == settings


def test_a_run_that_is_trained_keeps_its_record(tmp_path: Path) -> None:
    first, second = (settings_of([*panel(tmp_path), f"training.seed={seed}"]) for seed in (1, 2))
    run = record_prepared(first, STORE)
    assert run is not None
    assert record_prepared(second, STORE) == run  # nobody has trained it
    assert read_run(run)[1].training.seed == 2
    with file_lock(run / "lock", busy="busy"):  # as while it is trained
        assert record_prepared(first, STORE) is None
    write_checkpoint(run / "checkpoints", 1, run="any")
    assert record_prepared(first, STORE) is None
    assert read_run(run)[1].training.seed == 2


def test_a_folder_that_is_no_run_is_not_written_to(tmp_path: Path) -> None:
    settings = settings_of(panel(tmp_path))
    (tmp_path / "runs/small/scores").mkdir(parents=True)
    with raises("foreign-file/folder-not-a-run", tmp_path / "runs/small"):
        prepare(settings)
    assert not (tmp_path / "stores").exists()  # before any work
