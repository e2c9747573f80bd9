"""The package as pip installs it: complete, and each command with the packages of its extra alone."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from email.parser import Parser
from pathlib import Path

import pytest
from helpers.processes import ON_CPU, PROJECT
from helpers.runs import small_run
from helpers.scores import write_scores

from laborllm_dist.errors import EXTRA_OF, missing_package_of

SOURCES = ("laborllm_dist", "conf", "launch", "pyproject.toml", "setup.py", "README.md", "LICENSE")
TRAIN = sorted(module for module, extra in EXTRA_OF.items() if extra != "report")
# Imported at the start of an interpreter that has its folder on PYTHONPATH: makes packages look absent.
WITHOUT = """
import os, sys

class Without:
    def __init__(self, finder):
        self._finder = finder

    def __getattr__(self, name):
        return getattr(self._finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name in os.environ["ABSENT"].split() else self._finder.find_spec(name, path, target)

sys.meta_path[:] = map(Without, sys.meta_path)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder into which pip has installed a wheel, without what it depends on."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("target")
    for name in SOURCES:
        path = PROJECT / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, source / name)
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps",
         "--no-build-isolation", "--no-compile", "--target", str(target), str(source)],
        check=True, timeout=120,
    )  # fmt: skip
    shutil.rmtree(source)  # what runs must not find anything here
    return target


def run(
    command: list[str], *, folder: Path, python_path: list[Path], absent: list[str]
) -> subprocess.CompletedProcess[str]:
    """Run a command of Python in a folder, with packages made to look absent."""
    (folder / "absent").mkdir(exist_ok=True)
    (folder / "absent/sitecustomize.py").write_text(WITHOUT)
    environment = {
        **os.environ, **ON_CPU, "ABSENT": " ".join(absent), "PYTHONSAFEPATH": "1",
        "PYTHONPATH": os.pathsep.join(map(str, [folder / "absent", *python_path])),
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_an_installed_package_plans_prepares_and_reports_from_any_folder(installed: Path, tmp_path: Path) -> None:
    def laborllm(*arguments: str, absent: list[str]) -> str:
        done = run(
            [str(installed / "bin/laborllm"), *arguments], folder=tmp_path, python_path=[installed], absent=absent
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    (tmp_path / "conf/experiment").mkdir(parents=True)
    (tmp_path / "conf/experiment/mine.yaml").write_text("# @package _global_\nname: mine\nmodel: {name: my model}\n")
    (tmp_path / "conf/run.yaml").write_text("name: the file of the package comes first\n")
    core = [*TRAIN, "pandas", "linearmodels"]
    assert "model    my model: " in laborllm("plan", "+experiment=mine", absent=core)
    listed = laborllm("--help", absent=core)
    assert f"They are the scripts in {installed}/laborllm_dist/launch." in listed
    assert all(f"    {path.stem} " in listed for path in (PROJECT / "launch").glob("*.py"))
    prepared = laborllm("prepare", *small_run(Path("here")), absent=["torch", "deepspeed"])
    (manifest,) = (tmp_path / "here/stores").glob("*/manifest.json")
    assert f"here/stores/{manifest.parent.name}" in prepared
    write_scores(tmp_path / "runs/a/scores/test.parquet", "a", [1, 2, 3, 2, 2])  # perplexity 2 ** (10 / 5)
    assert re.search(r"^ a +4\.000 ", laborllm("report", "runs=[runs/a]", absent=core), re.MULTILINE)
    assert (tmp_path / "runs/a/report/report.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "absent", "message"),
    [
        (["train"], "torch", "the package torch is not installed; pip install 'laborllm_dist[train]'"),
        (["prepare"], "transformers", "the package transformers is not installed; pip install 'laborllm_dist[train]'"),
        (
            ["prepare", "data=synthetic", "prepare.num_workers=2"],
            "submitit",
            "the package submitit is not installed; pip install 'laborllm_dist[slurm]'",
        ),
        (["report", "runs=[x]"], "jinja2", "the package jinja2 is not installed; pip install 'laborllm_dist[report]'"),
    ],
)
def test_a_package_that_is_absent_is_one_line_with_what_installs_it(
    arguments: list[str], absent: str, message: str, tmp_path: Path
) -> None:
    done = run(["-m", "laborllm_dist", *arguments], folder=tmp_path, python_path=[PROJECT], absent=[absent])
    assert (done.returncode, done.stderr.splitlines()[-1:]) == (2, [f"error: {message}"])
    assert len(done.stderr.splitlines()) == 1


def test_an_import_that_fails_otherwise_is_no_missing_package() -> None:
    wandb = missing_package_of(ModuleNotFoundError("No module named 'wandb'", name="wandb"))
    assert str(wandb) == "the package wandb is not installed; pip install 'laborllm_dist[wandb]'"
    assert missing_package_of(ModuleNotFoundError("No module named 'torch.new'", name="torch.new")) is None
    assert missing_package_of(ModuleNotFoundError("No module named 'sympy'", name="sympy")) is None
    assert missing_package_of(ImportError("cannot import name 'new' from 'torch'", name="torch")) is None


def test_an_unknown_command_is_refused_with_those_there_are(tmp_path: Path) -> None:
    done = run(["-m", "laborllm_dist", "--local_rank=0", "plann"], folder=tmp_path, python_path=[PROJECT], absent=[])
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown command 'plann'; there are baselines, ")


def test_planning_and_report_import_no_package_of_training(tmp_path: Path) -> None:
    modules = [
        ".".join(path.relative_to(PROJECT).with_suffix("").parts)
        for package in ("planning", "report", "tables", "careers", "text")
        for path in (PROJECT / "laborllm_dist" / package).rglob("*.py")
    ]
    program = f"import importlib\nfor name in {modules}: importlib.import_module(name)"
    done = run(["-c", program], folder=tmp_path, python_path=[PROJECT], absent=TRAIN)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_package_that_is_imported_is_a_dependency_or_in_the_extra_that_its_error_names(installed: Path) -> None:
    (path,) = installed.glob("laborllm_dist-*.dist-info/METADATA")
    requirements = Parser().parsestr(path.read_text()).get_all("Requires-Dist", [])
    extras_of: dict[str, set[str | None]] = {}
    for requirement in requirements:
        name = re.match(r"[\w-]+", requirement)
        extra = re.search(r'extra == "(\w+)"', requirement)
        assert name is not None
        extras_of.setdefault(name[0].replace("-", "_"), set()).add(extra[1] if extra else None)
    names = {"hydra": "hydra_core", "fpdf": "fpdf2"}
    for path in (PROJECT / "laborllm_dist").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [name.name for name in node.names] if isinstance(node, ast.Import) else []
            modules += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            for module in {module.partition(".")[0] for module in modules} - sys.stdlib_module_names:
                if module != "laborllm_dist":
                    assert EXTRA_OF.get(module) in extras_of[names.get(module, module)], f"{path}: {module}"
