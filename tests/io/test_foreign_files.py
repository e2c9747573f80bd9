"""Files that this software has not written are never deleted, written over or reached through a link."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.checkpoints import write_checkpoint
from helpers.errors import raises
from helpers.runs import settings_of, small_run
from helpers.scores import INFO, report_on, scores, write_scores
from helpers.trained_runs import ONE_RANK, begun_run, forecast, random_run, score_alone

from laborllm_dist.baselines.run import score_baselines
from laborllm_dist.careers.readers.career_text import write_career_text
from laborllm_dist.checkpoint.save import newest_checkpoint, save_total_limit
from laborllm_dist.cli import compose_settings
from laborllm_dist.config.baselines import BaselineSettings
from laborllm_dist.config.evaluation import EvaluateSettings, OtherModelSettings, PredictSettings
from laborllm_dist.config.reader import OutOfRangeError, is_file_name
from laborllm_dist.evaluation.resumable_parts import ResumableJob, finish_parts, remove_parts
from laborllm_dist.evaluation.target import EvaluatedRun
from laborllm_dist.io.files import atomic_write, write_text
from laborllm_dist.io.recorded_folder import check_replaceable, read_record, replacing_folder
from laborllm_dist.io.run_directory import RunDirectory, check_run_folder, read_run
from laborllm_dist.models.gguf import convert_gguf
from laborllm_dist.prediction.predict import predict
from laborllm_dist.store.build import locate_store, prepare_store
from laborllm_dist.tables.parquet import ScoreTableInfo
from laborllm_dist.tables.predictions import OWN_CAREERS, PREDICTION_SCHEMA, write_prediction_table
from laborllm_dist.tables.scores import read_score_table, write_score_table
from laborllm_dist.training.train import train

THESIS = "ten years of work"
NO_PATH = [
    "../../x",
    "/etc/x",
    "a/b",
    "..",
    ".",
    "",
    ".hidden",
    "-rf",
    "~root",
    "a\\b",
    "a\nb",
    "a\0b",
    " a",
    "x" * 121,
    "a:b",
]


def thesis_in(folder: Path, name: str = "thesis.tex") -> Path:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(THESIS)
    return folder / name


def made_folder(folder: Path, content: str = "1") -> None:
    with replacing_folder(folder, {"made_by": "test"}, "ADVICE") as partial:
        (partial / "config.json").write_text(content)
        (partial / "inner").mkdir()
        (partial / "inner/weights").write_text(content)


def test_a_folder_is_replaced_where_its_record_names_all_that_is_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "new/model"
    made_folder(folder)
    made_folder(folder, "2")
    assert (folder / "inner/weights").read_text() == "2"
    record = read_record(folder)
    assert record is not None
    assert (record.facts, sorted(record.files or {})) == ({"made_by": "test"}, ["config.json", "inner/weights"])
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("name", ["thesis.tex", "inner/thesis.tex", "tokenizer.json"])
def test_a_folder_with_anything_else_in_it_is_not(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    made_folder(folder)
    thesis = thesis_in(folder, name)
    with raises("foreign-file/foreign-file-in-folder", name, "model", "ADVICE"):
        made_folder(folder, "2")
    assert (thesis.read_text(), (folder / "config.json").read_text()) == (THESIS, "1")


def test_what_is_put_there_while_it_is_made_is_not_ours_either(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    made_folder(folder)
    foreign = raises("foreign-file/foreign-file-in-folder", folder, "ADVICE")
    with foreign, replacing_folder(folder, {}, "ADVICE") as partial:
        (partial / "config.json").write_text("2")
        thesis = thesis_in(folder)
    assert thesis.read_text() == THESIS
    thesis.unlink()
    made_folder(folder, "3")  # what is left of the try before is ours
    assert (folder / "config.json").read_text() == "3"


def test_folders_of_earlier_versions_and_with_a_damaged_record_are_replaced_unless_something_else_is_in_them(
    tmp_path: Path,
) -> None:
    for content in ('{"run": "r", "step": 3}', "{", b"\xff".decode("latin-1"), "[]"):
        folder = tmp_path / "model"
        folder.mkdir()
        for name in (
            "config.json",
            "model-00001-of-00002.safetensors",
            "tokenizer.json",
            "model.safetensors.index.json",
        ):
            (folder / name).write_text("{}")
        (folder / "laborllm_dist.json").write_text(content, encoding="latin-1")
        thesis = thesis_in(folder)
        with raises("foreign-file/foreign-file-in-folder", "thesis"):
            made_folder(folder)
        thesis.unlink()
        made_folder(folder)
        shutil.rmtree(folder)


def test_links_files_and_foreign_partial_folders_are_refused(tmp_path: Path) -> None:
    thesis = thesis_in(tmp_path / "home")
    (tmp_path / "link").symlink_to(tmp_path / "home")
    with raises("foreign-file/symbolic-link", "link", "home"):
        made_folder(tmp_path / "link")
    (tmp_path / "model.partial").symlink_to(tmp_path / "home")
    with raises("foreign-file/symbolic-link", "model.partial"):
        made_folder(tmp_path / "model")
    (tmp_path / "other.partial").mkdir()
    other = thesis_in(tmp_path / "other.partial")
    with raises("foreign-file/foreign-partial-folder", "other.partial"):
        made_folder(tmp_path / "other")
    with raises("foreign-file/file-instead-of-folder", "thesis.tex", "ADVICE"):
        made_folder(thesis)
    made_folder(tmp_path / "third")
    (tmp_path / "third/config.json").unlink()
    (tmp_path / "third/config.json").symlink_to(thesis)
    with raises("foreign-file/foreign-file-in-folder", "third/config.json"):
        made_folder(tmp_path / "third")
    assert thesis.read_text() == other.read_text() == THESIS


def test_a_partial_file_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    thesis = thesis_in(tmp_path)
    (tmp_path / "f.partial").symlink_to(thesis)
    for write in (lambda: write_text(tmp_path / "f", "new"), lambda: write_score_table(scores(), INFO, tmp_path / "f")):
        with raises("foreign-file/symbolic-link", "f.partial", "thesis.tex"):
            write()
    assert thesis.read_text() == THESIS
    assert (tmp_path / "f.partial").is_symlink() and not (tmp_path / "f").exists()
    (tmp_path / "f.partial").unlink()
    (tmp_path / "f.partial").write_text("of a kill")
    with atomic_write(tmp_path / "f") as partial:
        partial.write_text("new")
    assert (tmp_path / "f").read_text() == "new"


def test_convert_empties_no_folder(tmp_path: Path) -> None:
    thesis = thesis_in(tmp_path / "models")
    with raises("foreign-file/foreign-file-in-folder", "thesis.tex", "name another folder (output=...), or move"):
        convert_gguf(tmp_path / "none.gguf", tmp_path / "models")
    assert thesis.read_text() == THESIS


@pytest.mark.parametrize("name", ["export", "adapter"])
def test_train_deletes_no_export_that_no_run_has_written(name: str, tmp_path: Path) -> None:
    settings = settings_of(small_run(tmp_path))
    begun_run(tmp_path)
    thesis = thesis_in(tmp_path / "runs/small" / name)
    with raises("foreign-file/foreign-file-in-folder", name, "/thesis.tex", "move what you want to keep out of it"):
        train(settings, ONE_RANK)
    assert thesis.read_text() == THESIS


@pytest.mark.parametrize(
    "name", ["settings.json", "metrics.jsonl", "export/thesis.tex", "scores/test.parquet", "wandb"]
)
def test_a_folder_that_is_no_run_is_not_made_one(name: str, tmp_path: Path) -> None:
    thesis = thesis_in(tmp_path / "runs/small", name)
    with raises("foreign-file/folder-not-a-run", "runs/small"):
        train(settings_of(small_run(tmp_path)), ONE_RANK)
    assert thesis.read_text() == THESIS
    assert {path.name for path in (tmp_path / "runs/small").iterdir()} == {Path(name).parts[0]}


def test_what_a_killed_start_has_left_is_a_run_s(tmp_path: Path) -> None:
    folder = tmp_path / "runs/small"
    check_run_folder(folder)
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "lock").touch()
    (folder / "settings.json.partial").write_text("{")
    (folder / "slurm-17.out").write_text("what a launcher writes there")
    check_run_folder(folder)
    begun_run(tmp_path)
    thesis_in(folder)  # beside a run's own files it is in nobody's way
    check_run_folder(folder)


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "a/b", "..", ".hidden", "x" * 121])
@pytest.mark.parametrize("setting", ["name", "data.name"])
def test_names_of_runs_and_stores_are_names(setting: str, name: str, tmp_path: Path) -> None:
    with raises("settings/invalid", setting, "a file name of at most 120 bytes without"):
        settings_of([*small_run(tmp_path), f"{setting}='{name}'"])


@pytest.mark.parametrize("name", NO_PATH)
def test_one_rule_for_all_names(name: str) -> None:
    assert not is_file_name(name)
    with pytest.raises(OutOfRangeError, match="name: expected a file name of at most"):
        OtherModelSettings("x", None, None, name, "safetensors")
    for fine in ("pooled_13b", "Llama-2-7b-hf", "7b.v2", "été", "x" * 120, "a+b=c", "two words"):
        assert is_file_name(fine)


def test_predictions_take_the_place_of_predictions_only(tmp_path: Path) -> None:
    people = tmp_path / "people.parquet"
    pq.write_table(pa.table({"person": ["1"]}), people)
    write_score_table(scores(), INFO, tmp_path / "test.parquet")
    (tmp_path / "text.parquet").write_text(THESIS)
    (tmp_path / "folder.parquet").mkdir()
    (tmp_path / "link.parquet").symlink_to(people)
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    for name in ("people", "test", "text", "folder", "link"):
        output = tmp_path / f"{name}.parquet"
        settings = compose_settings(PredictSettings, "predict", ["run=none", f"careers={people}", f"output={output}"])
        label = "foreign-file/symbolic-link" if name == "link" else "foreign-file/not-a-predictions-file"
        with raises(label, output):
            predict(settings, EvaluatedRun(RunDirectory(tmp_path, "f"), settings_of([]), tmp_path), ONE_RANK)
    assert {path: path.read_bytes() for path in before} == before
    info = ScoreTableInfo("m", OWN_CAREERS, "c", "0", {"measure": "normalised"})
    for _ in range(2):
        write_prediction_table(PREDICTION_SCHEMA.empty_table(), info, tmp_path / "p.parquet")


def test_a_report_takes_the_place_of_a_report_only(tmp_path: Path) -> None:
    for name, content in [("run", [1, 2, 3, 2, 2]), ("other", [2, 2, 2, 2, 2])]:
        write_scores(tmp_path / name / "scores/test.parquet", name, content)
    for foreign in ("report.html", "summary.json", "figures/perplexity.png"):
        thesis = thesis_in(tmp_path / f"out-{foreign[0]}", foreign)
        with raises("foreign-file/not-a-report-file", Path(foreign).name):
            report_on(tmp_path / "run", output=tmp_path / f"out-{foreign[0]}")
        assert thesis.read_text() == THESIS
    for run in ("run", "other"):
        report_on(tmp_path / run, output=tmp_path / "out")
    (tmp_path / "out/summary.json").unlink()  # as a kill leaves it
    page, mark = (tmp_path / "out/report.html").read_bytes(), b'<meta name="generator" content="laborllm_dist">'
    assert page.count(mark) == 1
    (tmp_path / "out/report.html").write_bytes(page.replace(mark, b""))  # of an earlier version
    report_on(tmp_path / "run", output=tmp_path / "out")


def test_what_a_kill_inside_safetensors_leaves_is_removed_with_a_partial_checkpoint(tmp_path: Path) -> None:
    """Its save_file writes to a temporary file of its own beside the target; here a kill comes before the rename."""
    program = (
        "import os, pathlib, sys, threading, torch, safetensors.torch\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "def kill():\n"
        "    while not any(folder.iterdir()):\n"
        "        pass\n"
        "    os.kill(os.getpid(), 9)\n"
        "threading.Thread(target=kill).start()\n"
        "safetensors.torch.save_file({'x': torch.zeros(2**27)}, folder / 'rank_00000_000.safetensors')\n"
    )
    write_checkpoint(tmp_path, 4)
    partial = tmp_path / "step_00000005.partial"
    partial.mkdir()
    killed = subprocess.run([sys.executable, "-c", program, str(partial)], timeout=120, check=False)
    assert killed.returncode == -9
    left = [path.name for path in partial.iterdir()]
    assert left
    save_total_limit(tmp_path, saved_step=4, num_newest=1, best_step=None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000004"], left


def test_checkpoints_are_removed_and_other_files_stay(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        write_checkpoint(tmp_path, step)
    thesis = thesis_in(tmp_path / "step_00000001")
    save_total_limit(tmp_path, saved_step=4, num_newest=1, best_step=None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000001", "step_00000004"]
    partial = thesis_in(tmp_path / "step_00000005.partial")
    with raises("foreign-file/foreign-file-in-checkpoint", "thesis.tex", "5.partial"):
        save_total_limit(tmp_path, saved_step=4, num_newest=1, best_step=None)
    damaged = thesis_in(tmp_path / "step_00000006.damaged")
    (write_checkpoint(tmp_path, 6) / "manifest.json").unlink()
    with raises("foreign-file/foreign-file-in-checkpoint", "6.damaged"):
        newest_checkpoint(tmp_path)
    assert thesis.read_text() == partial.read_text() == damaged.read_text() == THESIS


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "small"))


@pytest.mark.parametrize("content", ["text", "parquet"])
def test_a_table_of_another_kind_is_not_written_over(content: str, copied: Path) -> None:
    table = copied / "scores/test.parquet"
    thesis_in(table.parent, table.name)
    if content == "parquet":
        pq.write_table(pa.table({"thesis": [THESIS]}), table)
    before = table.read_bytes()
    with raises("foreign-file/not-a-score-table", "test.parquet"):
        score_alone(compose_settings(EvaluateSettings, "evaluate", [f"run={copied}"]))
    assert table.read_bytes() == before
    marginal = copied / "scores/test.marginal.parquet"
    write_score_table(scores(), INFO, marginal)
    with raises("run/scores-of-a-model", "marginal.parquet", "m"):
        score_baselines(compose_settings(BaselineSettings, "baselines", [f"run={copied}"]))
    assert read_score_table(marginal)[1] == INFO


def test_a_comparator_s_table_says_how_many_titles_there_are(copied: Path) -> None:
    score_baselines(compose_settings(BaselineSettings, "baselines", [f"run={copied}"]))
    listed = (read_run(copied)[2] / "occupations.csv").read_text(encoding="utf-8").splitlines()[1:]
    for name in ("marginal", "first_order"):
        details = read_score_table(copied / f"scores/test.{name}.parquet")[1].details
        assert details["num_titles"] == str(len(listed))


def test_a_model_s_folder_gives_its_table_no_baseline_s_name(copied: Path, tmp_path: Path) -> None:
    for name in ("truth", "marginal", ".hidden"):
        shutil.copytree(copied / "export", tmp_path / name)
        settings = compose_settings(EvaluateSettings, "evaluate", [f"run={copied}", f"model.path={tmp_path}/{name}"])
        with raises("settings/invalid-score-name", "'", name):
            score_alone(settings)


def test_a_result_beside_a_forecast_is_not_written_over(copied: Path) -> None:
    thesis = thesis_in(copied / "scores", "test_forecast_h2.json")
    with raises("foreign-file/not-a-forecast-result", "test_forecast_h2.json"):
        forecast(copied, "max_people=1")
    assert thesis.read_text() == THESIS


def test_only_parts_are_removed_with_the_parts(tmp_path: Path) -> None:
    work = ResumableJob(tmp_path / "parts", 1, lambda part: pa.table({"career": [0], "position": [0]}), lambda: None)
    finish_parts(work, ONE_RANK)
    thesis = thesis_in(work.folder)
    remove_parts(work)
    assert [path.name for path in work.folder.iterdir()] == [thesis.name]


def test_a_store_is_not_built_over_other_files(tmp_path: Path) -> None:
    settings = settings_of(small_run(tmp_path, num_people=20))
    thesis = thesis_in(locate_store(settings).building)
    with raises("foreign-file/foreign-file-in-store", "thesis.tex", "partial"):
        prepare_store(settings)
    assert thesis.read_text() == THESIS
    thesis.unlink()
    prepare_store(settings)
    assert not list((tmp_path / "stores").glob("*.partial"))


def test_career_text_is_written_beside_other_files_only(tmp_path: Path) -> None:
    thesis = thesis_in(tmp_path / "text.partial")
    with raises("foreign-file/foreign-partial-folder", "text.partial"):
        write_career_text([], tmp_path / "text")
    assert thesis.read_text() == THESIS
    write_career_text([], tmp_path / "other")
    assert not (tmp_path / "other/laborllm_dist.json").exists()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with raises("data-file/output-folder-exists"):
        write_career_text([], tmp_path / "link")


def test_refusals_are_of_the_house_and_one_line(tmp_path: Path) -> None:
    thesis_in(tmp_path)
    with raises("foreign-file/foreign-file-in-folder", tmp_path, "ADVICE") as error:
        check_replaceable(tmp_path, "ADVICE")
    assert "\n" not in str(error.value)
