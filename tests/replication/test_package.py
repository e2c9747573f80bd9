"""Replication packages: what is in one, and that it makes the same tables anew."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.errors import raises
from helpers.processes import ON_CPU, run_well
from helpers.runs import settings_of, small_run

from laborllm_dist.baselines.run import score_baselines
from laborllm_dist.careers.readers.long_panel import OPTIONAL
from laborllm_dist.cli import CONF, SCRIPTS, compose_settings
from laborllm_dist.config.baselines import BaselineSettings
from laborllm_dist.config.evaluation import ReplicateSettings, ReportSettings
from laborllm_dist.config.reader import settings_to_values
from laborllm_dist.config.run import RunSettings
from laborllm_dist.io.command_log import read_commands
from laborllm_dist.io.run_directory import create_or_resume
from laborllm_dist.replication.package import DCAS, write_package
from laborllm_dist.report.write import write_report
from laborllm_dist.store.build import prepare, prepare_store

REPORT = compose_settings(ReportSettings, "report", ["runs=[any]", "bootstrap_draws=20"])


@pytest.mark.ranks
def test_a_package_makes_the_tables_anew_in_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # A panel of the user's own, at a path that nobody else has.
    panel, titles = tmp_path / "private/people.csv", tmp_path / "private/titles.csv"
    panel.parent.mkdir()
    rows = [
        f"someone{person},{year},{1 + (person * year) % 3}"
        for person in range(40)
        for year in range(1990, 1994 + person % 3)
    ]
    panel.write_text("person,year,occupation\n" + "\n".join(rows) + "\n")
    titles.write_text("code,title\n1,Cooks\n2,Nurses\n3,Clerks\n")
    own = [
        "data=long_panel", f"data.corpora.long_panel.path={panel}", f"data.corpora.long_panel.vocabulary.path={titles}",
        "data.corpora.long_panel.columns.education=null", "data.corpora.long_panel.columns.gender=null",
        "data.corpora.long_panel.columns.ethnicity=null", "data.corpora.long_panel.columns.region=null",
        "data.corpora.long_panel.columns.birth_year=null", "training.epochs=1",
        "split_by=year", "split.last_training_year=1992", "split.last_validation_year=1993",
    ]  # fmt: skip
    overrides = [override for override in small_run(tmp_path, *own) if "synthetic" not in override]
    run_well("train.py", overrides, world_size=1, log=tmp_path / "log")
    run = tmp_path / "runs/small"
    run_well("evaluate.py", [f"run={run}"], world_size=1, log=tmp_path / "log")
    run_well("evaluate.py", [f"run={run}", "split=test"], world_size=1, log=tmp_path / "log")
    run_well("baselines.py", [f"run={run}"], world_size=1, log=tmp_path / "log")
    assert [command.name for command in read_commands(run)] == ["train", "evaluate", "evaluate", "baselines"]

    (tmp_path / "test").mkdir()  # of the name of a setting's value, which is no path
    monkeypatch.chdir(tmp_path)
    package = write_package(
        ReplicateSettings(runs=(str(run),), output=str(tmp_path / "package"), title="A"), REPORT, (CONF, SCRIPTS)
    )
    texts = [
        path.read_text(errors="replace")
        for path in package.rglob("*")
        if path.is_file() and "software" not in path.parts
    ]
    assert not any(str(tmp_path) in text for text in texts)  # no path of this machine
    assert not any(re.search(r"someone\d", text) for text in texts if "%PDF" not in text)  # and nobody's id
    script = (package / "run_all.sh").read_text()
    assert re.findall(r"laborllm_dist (\w+)", script) == ["train", "evaluate", "evaluate", "baselines", "report"]
    assert "run=runs/small split=test\n" in script
    readme = (package / "README.md").read_text()
    assert "sources/small/people.csv" in readme and f"{panel.stat().st_size:,} bytes" in readme
    assert all(rule in readme for rule, _ in DCAS) and "less than 10 minutes" in readme
    card = (run / "export/README.md").read_text()
    assert "**Restricted.**" in card and "Data of the authors' own" in card

    monkeypatch.chdir(package)
    composed = settings_to_values(compose_settings(RunSettings, "run", ["+experiment=small"]))
    before = settings_to_values(settings_of(overrides))
    before["data"]["corpora"]["long_panel"]["path"] = "sources/small/people.csv"
    before["data"]["corpora"]["long_panel"]["vocabulary"]["path"] = "sources/small/titles.csv"
    before["store"]["root"], before["output_dir"] = "stores", "runs"
    assert composed == before

    for source in (panel, titles):
        (package / "sources/small").mkdir(parents=True, exist_ok=True)
        (package / "sources/small" / source.name).write_bytes(source.read_bytes())
    done = subprocess.run(
        ["./run_all.sh"], env={**os.environ, **ON_CPU, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "replicate: the tables are those of the package, byte for byte"
    assert not list(package.rglob("careers.html"))  # nor single people
    assert (package / "results/tables/training_curves.csv").is_file()
    prints = [json.loads((path / "settings.json").read_text())["fingerprint"] for path in (run, package / "runs/small")]
    assert prints[0] == prints[1]
    # A package that was run holds what nobody else wrote, and is not replaced.
    with raises("foreign-file/foreign-file-in-folder", package):
        write_package(ReplicateSettings(runs=(str(run),), output=str(package), title="A"), REPORT, (CONF, SCRIPTS))
    run.joinpath("scores/test.parquet").unlink()
    run.joinpath("scores/test.marginal.parquet").unlink()
    run.joinpath("scores/test.first_order.parquet").unlink()
    with raises("score-table/no-scores", run):
        write_package(
            ReplicateSettings(runs=(str(run),), output=str(tmp_path / "other"), title="A"), REPORT, (CONF, SCRIPTS)
        )
    assert not (tmp_path / "other").exists()
    shutil.rmtree(tmp_path / "stores")
    with raises("run/no-store-of-run", run):
        write_package(
            ReplicateSettings(runs=(str(run),), output=str(tmp_path / "other"), title="A"), REPORT, (CONF, SCRIPTS)
        )


def test_two_runs_of_one_name_are_refused(tmp_path: Path) -> None:
    for name in ("one", "two"):
        prepared = settings_of(small_run(tmp_path / name, num_people=25))
        store = prepare_store(prepared)
        create_or_resume(prepared, {"fingerprint": store.fingerprint, "folder": str(store.folder)}, None)
    runs = tuple(str(tmp_path / name / "runs/small") for name in ("one", "two"))
    with raises("run/two-of-one-name", "small"):
        write_package(
            ReplicateSettings(runs=runs, output=str(tmp_path / "package"), title="A"), REPORT, (CONF, SCRIPTS)
        )


def test_refits_are_repeated_and_give_the_tables_of_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    titles, panel = tmp_path / "private/titles.csv", tmp_path / "private/people.csv"
    panel.parent.mkdir()
    rows = [f"{person},{year},{'abc'[(person * year) % 3]}" for person in range(60) for year in range(1990, 1994)]
    panel.write_text("person,year,occupation\n" + "\n".join(rows) + "\n")
    titles.write_text("code,title\na,Cooks\nb,Nurses\nc,Clerks\n")
    own = [
        "data=long_panel", f"data.corpora.long_panel.path={panel}", f"data.corpora.long_panel.vocabulary.path={titles}",
        *(f"data.corpora.long_panel.columns.{name}=null" for name in OPTIONAL),
    ]  # fmt: skip
    overrides = [each for each in small_run(tmp_path, *own) if "synthetic" not in each]

    def scored(*more: str) -> None:
        settings = compose_settings(RunSettings, "run", more)
        prepare(settings)
        run = f"{settings.output_dir}/{settings.name}"
        score_baselines(compose_settings(BaselineSettings, "baselines", [f"run={run}"]))

    for number in range(4):
        refit = [f"training.bootstrap_seed={number}", f"name=refit_{number}"] if number else []
        scored(*overrides, *refit)
    first, *refits = (f"{tmp_path}/runs/{name}" for name in ("small", "refit_1", "refit_2", "refit_3"))
    package = write_package(
        ReplicateSettings(runs=(first,), output=str(tmp_path / "package"), title="A", refits=tuple(refits)),
        REPORT, (CONF, SCRIPTS),
    )  # fmt: skip
    files = [path for path in package.rglob("*") if path.is_file() and "software" not in path.parts]
    assert not any(str(tmp_path) in path.read_text(errors="replace") for path in files)
    commands = [
        shlex.split(line) for line in (package / "run_all.sh").read_text().splitlines() if "-m laborllm" in line
    ]
    assert [command[3] for command in commands] == [*["prepare", "baselines"] * 4, "report"]
    assert "refits=[runs/refit_1,runs/refit_2,runs/refit_3]" in commands[-1]
    readme = (package / "README.md").read_text()
    assert "training.bootstrap\\_seed=2" in readme or "training.bootstrap_seed=2" in readme
    assert readme.count("people.csv") == 1  # one source, which all runs share

    monkeypatch.chdir(package)
    (package / "sources/small").mkdir(parents=True)
    for source in (panel, titles):
        shutil.copy(source, package / "sources/small")
    for _, _, _, program, *arguments in commands[:-1]:
        if program == "prepare":
            scored(*arguments)
    write_report(compose_settings(ReportSettings, "report", commands[-1][4:]))
    expected = {path.name: path.read_bytes() for path in (package / "expected/tables").iterdir()}
    assert expected == {path.name: path.read_bytes() for path in (package / "results/tables").iterdir()}
    assert "refits.csv" in expected and b"std_error_training" in expected["refits.csv"]
    with raises("run/two-of-one-name", "small"):
        write_package(
            ReplicateSettings((first,), str(tmp_path / "other"), "A", refits=(first, refits[0])),
            REPORT,
            (CONF, SCRIPTS),
        )
    with raises("settings/invalid", "refits", "at least 2"):
        compose_settings(ReplicateSettings, "replicate", ["runs=[x]", "output=y", "refits=[z]"])
