"""A scaling law that is published offline, read back by wandb's own reader: numbers, files, lineage, nothing private."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.errors import raises
from helpers.runs import write_run
from helpers.scores import write_scores

from laborllm_dist.cli import compose_settings
from laborllm_dist.config.evaluation import FitLawSettings
from laborllm_dist.config.run import TrackSettings
from laborllm_dist.sweeps.law_report import write_law
from laborllm_dist.sweeps.points import SweepPoint, write_points
from laborllm_dist.tracking.publish_law import publish_law

pytest.importorskip("wandb")
KEYS = [("PSID", f"4711{number:02}", 0) for number in range(20)]
SIZES, AMOUNTS = (60_000, 250_000, 1_000_000, 4_000_000), (10_000, 20_000, 40_000, 80_000)


OF_A_FILE: dict[str, Any] = {  # law.json where a file gave the losses
    "points": [{"size": "7b", "run": None}], "parameters": {"E": {"value": 1.0, "low": None, "high": None}},
    "held_out": None, "num_people": None, "scores": [], "files": [], "pretrained": "", "sources": "",
}  # fmt: skip


def tracked(**changes: Any) -> TrackSettings:
    values = {"run": None, "law": None, "wandb": "offline", "project": None, "group": None, "tensorboard": False}
    return TrackSettings(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def law(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fit the law of sixteen runs, each with scores of the same twenty people, and publish it."""
    home = tmp_path_factory.mktemp("planted_home_of_ann")
    points = []
    for n in SIZES:
        for d in AMOUNTS:
            run = write_run(home / f"runs/n{n}_d{d}")
            loss = (1.9 + 35 * n**-0.5 + 90 * d**-0.6) / math.log(2)
            halvings = [loss + 0.3 * math.sin(person) + 0.01 * math.sin(n * d + person) for person in range(20)]
            write_scores(run / "scores/test.parquet", run.name, halvings, keys=KEYS)
            points.append(
                SweepPoint(
                    size=f"{n}", num_params=2 * n, num_non_embedding_params=n, num_observations=d, run=str(run),
                    flops=6.0 * n * d, epochs=2.0, sources="PSID",
                )
            )  # fmt: skip
    table = home / "sweeps/mine/points.csv"
    table.parent.mkdir(parents=True)
    write_points(points, table)
    given = [f'points="{table}"', "form=additive", "bootstrap_draws=20", "figure_formats=[png]"]
    write_law(compose_settings(FitLawSettings, "fit_law", given))
    folder = table.parent / "law"
    assert publish_law(tracked(law=str(folder), group="mine")) == [folder / "wandb"]
    return folder


def inspect(law: Path, *options: str) -> str:
    (folder,) = (law / "wandb").glob("offline-run-*")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", *options, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def artifacts(law: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, inspect(law).splitlines())
    return [line["artifact"] for line in lines if line["type"] == "artifact"]


def test_its_parameters_are_the_summary(law: Path) -> None:
    content = json.loads((law / "law.json").read_text())
    found = json.loads(inspect(law, "--summary"))
    for name in ("E", "A", "B", "a", "b"):
        estimate = content["parameters"][name]
        assert found["summary"][name] == estimate["value"]
        assert [found["summary"][f"{name}_{end}"] for end in ("low", "high")] == [estimate["low"], estimate["high"]]
    assert found["summary"]["num_runs"] == 16
    assert found["summary"]["held_out_observed"] == content["held_out"]["observed"]
    assert "additive" in json.dumps(found["config"])


def test_its_tables_and_figures_are_an_artifact_made_from_the_scores(law: Path) -> None:
    *scores, own = artifacts(law)
    assert {each["type"] for each in scores} == {"scores"}
    assert all(each["use_after_commit"] for each in scores)
    assert len(scores) == 16
    assert own["type"] == "law"
    assert json.loads(own["metadata"])["made_from"] == [each["name"] for each in scores]
    files = {each["path"] for each in own["manifest"]["contents"]} - {"identity"}
    assert files >= {"law.html", "tables/law_parameters.csv", "tables/law_parameters.tex", "figures/law_by_size.svg"}
    assert not [name for name in files if name.endswith(".json")]  # which holds paths


def test_no_path_or_person_is_published(law: Path) -> None:
    given = [law / "wandb/published/law.html", *law.glob("tables/*"), *law.glob("figures/*.svg")]
    for path in [*given, *(law / "wandb").glob("offline-run-*/*.wandb")]:
        content = path.read_bytes()
        assert b"planted_home" not in content, path
        assert not re.search(rb"4711\d\d", content), path
    assert b"planted_home" in (law / "law.html").read_bytes()  # so the copy has lost something


def test_a_law_without_runs_of_its_own_needs_a_project(tmp_path: Path) -> None:
    (tmp_path / "law.html").write_text("<p></p>")
    (tmp_path / "law.json").write_text(json.dumps(OF_A_FILE))
    with raises("settings/no-project", "project=NAME"):
        publish_law(tracked(law=str(tmp_path)))
    assert publish_law(tracked(law=str(tmp_path), project="p")) == [tmp_path / "wandb"]
    assert json.loads(inspect(tmp_path, "--summary"))["summary"]["E"] == 1.0


@pytest.mark.parametrize(
    "content",
    [
        None, "[]", "{", '{"num_people": 20}', '{"points": 3, "num_people": null}',
        *(json.dumps({key: value for key, value in OF_A_FILE.items() if key != name}) for name in ("scores", "sources")),
        json.dumps({**OF_A_FILE, "points": [{"size": "7b"}]}),
    ],
)  # fmt: skip
def test_what_is_no_law_is_one_line(tmp_path: Path, content: str | None) -> None:
    (tmp_path / "law.html").write_text("<p></p>")
    if content is not None:
        (tmp_path / "law.json").write_text(content)
    with raises("run/no-law", str(tmp_path), "launch/fit_law.py"):
        publish_law(tracked(law=str(tmp_path), project="p"))


def test_a_law_of_few_people_is_not_published(tmp_path: Path) -> None:
    (tmp_path / "law.html").write_text("<p></p>")
    (tmp_path / "law.json").write_text('{"points": [], "parameters": {}, "num_people": 9}')
    with raises("run/too-few-people", "fewer than 10"):
        publish_law(tracked(law=str(tmp_path), project="p"))


@pytest.mark.parametrize(
    "changes",
    [
        {"points": [{"size": "/home/ann/llama", "run": None}]},
        {"sources": "interviews of ann"},
        {"pretrained": "~ann/llama+llama2-7b"},
    ],
)
def test_names_that_may_be_private_are_not_published(tmp_path: Path, changes: dict[str, Any]) -> None:
    (tmp_path / "law.html").write_text("<p></p>")
    (tmp_path / "law.json").write_text(json.dumps({**OF_A_FILE, **changes}))
    with raises("run/private-name", "ann", "size, sources and pretrained"):
        publish_law(tracked(law=str(tmp_path), project="p"))
    assert not (tmp_path / "wandb").exists()


def test_a_law_that_a_tracker_does_not_take_is_published_again_as_a_law(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "law.html").write_text("<p></p>")
    (tmp_path / "law.json").write_text(json.dumps(OF_A_FILE))
    monkeypatch.setattr("laborllm_dist.tracking.tracker.PROGRAM", "import os; os.kill(os.getpid(), 9)")
    with raises("run/not-published", f"launch/track.py law={tmp_path}`", "publishes the law again"):
        publish_law(tracked(law=str(tmp_path), project="p"))


@pytest.mark.parametrize("given", [[], ["run=a", "law=b"], ["law=b", "tensorboard=true"]])
def test_either_a_run_or_a_law_is_named(given: list[str]) -> None:
    with raises("settings/invalid", "law="):
        compose_settings(TrackSettings, "track", given)
