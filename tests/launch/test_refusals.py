"""What a user sees who gets something wrong: one clear line, a non-zero exit, no traceback."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from helpers.processes import run_ranks
from helpers.runs import small_run

pytestmark = pytest.mark.ranks


def test_pooled_13b_composes_plans_and_names_the_first_missing_thing(tmp_path: Path) -> None:
    outcome = run_ranks(
        "train.py", ["+experiment=pooled_13b", f"output_dir={tmp_path}"], world_size=2, log=tmp_path / "log"
    )
    assert outcome.codes == [2, 2]
    plan, error = outcome.text.strip().splitlines()
    assert plan.startswith("plan: pooled_13b: careers of PSID, NLSY79, NLSY97; model llama2-13b")
    assert "ZeRO-3 bf16 on 2 x cpu; 32 careers a step in rows of at most 1536 tokens" in plan
    assert error.startswith("error: no careers of PSID: no file at data/psid.zip (setting data.corpora.psid81.path)")
    assert "PSID Data Center" in error


def test_missing_weights_are_named_with_how_to_get_them(tmp_path: Path) -> None:
    run = [override for override in small_run(tmp_path) if not override.startswith(("model.", "tokenizer."))]
    more = ["model=pretrained", "model.path=./no_such_folder", "tokenizer=pretrained"]
    outcome = run_ranks("train.py", [*run, *more], world_size=1, log=tmp_path / "log")
    assert outcome.codes == [2]
    error = outcome.text.strip().splitlines()[-1]
    assert error.startswith("error: no weights for model.path=./no_such_folder")
    assert "model.path=FOLDER" in error


def test_the_launcher_s_local_rank_is_accepted(tmp_path: Path) -> None:
    outcome = run_ranks("train.py", ["--local_rank=0", "+experiment=pooled_7b"], world_size=1, log=tmp_path / "log")
    assert "error: no careers of PSID" in outcome.text


def test_ranks_wait_for_a_preparation_longer_than_their_time_limit(tmp_path: Path) -> None:
    # The limit is three seconds; the model's context is too short, so the run ends as soon as the store is there.
    more = ["ranks.timeout_minutes=0.05", "model.llama.max_positions=64", "batch.max_seq_length=2000"]
    started = time.monotonic()
    outcome = run_ranks("train.py", small_run(tmp_path, *more, num_people=6_000), world_size=2, log=tmp_path / "log")
    assert time.monotonic() - started > 4
    assert outcome.codes == [2, 2], outcome.text[-2000:]
    assert outcome.text.count("error:") == 1
    assert "the model's context is 64" in outcome.text


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        (
            "train.py",
            ["+experiment=quickstart", "+training.epoks=3"],
            "error: unknown setting training.epoks; did you mean",
        ),
        ("train.py", ["+experiment=quickstrat"], "error: In 'run': Could not find 'experiment/quickstrat'"),
        ("evaluate.py", ["run=runs/nowhere"], "error: no run at runs/nowhere (no settings.json)"),
        ("evaluate.py", [], "error: setting run must be given (run=...)"),
        ("baselines.py", ["run=runs/nowhere"], "error: no run at runs/nowhere"),
        ("predict.py", ["run=runs/nowhere", "careers=people.json"], "error: no run at runs/nowhere (no settings.json)"),
        ("report.py", ["runs=[runs/nowhere]"], "error: "),
        ("prepare.py", ["+experiment=psid81_7b"], "error: no careers of PSID: no file at"),
    ],
)
def test_one_clear_line_and_exit_code_two(script: str, arguments: list[str], message: str, tmp_path: Path) -> None:
    outcome = run_ranks(script, arguments, world_size=0, log=tmp_path / "log")
    assert outcome.codes == [2]
    assert outcome.text.startswith(message), outcome.text
    assert len(outcome.text.strip().splitlines()) == 1


@pytest.mark.parametrize("script", ["train.py", "prepare.py", "evaluate.py", "baselines.py", "report.py", "predict.py"])
def test_help_shows_how_the_script_is_run(script: str, tmp_path: Path) -> None:
    outcome = run_ranks(script, ["--help"], world_size=0, log=tmp_path / "log")
    assert outcome.codes == [0], outcome.text
    assert f"launch/{script}" in outcome.text
