"""The order of packages: who may import whom, and where the heavy libraries may be imported."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.processes import PROJECT, differing_variables, rank_environment

from laborllm_dist.io.console import configure_logging

PACKAGE = PROJECT / "laborllm_dist"
# A package imports itself and those before it.
ORDER = (
    "plain_text", "errors", "randomness", "config", "io", "tables", "careers", "text", "store", "batching",
    "distributed", "models", "checkpoint", "planning", "tracking", "training", "evaluation", "prediction", "baselines",
    "forecasting", "report", "sweeps", "replication", "cli", "__main__",
)  # fmt: skip
# Console output knows the errors, and the errors nothing; settings are read without files.
APART = {"report": {"plain_text", "errors", "randomness", "config", "io", "tables", "careers", "text", "report"}}
ONLY_IN = {
    "deepspeed": {"distributed", "models"},
    "peft": {"models"},
    "bitsandbytes": {"distributed", "models", "planning"},
    "gguf": {"models"},
    "transformers": {"distributed", "store", "models", "checkpoint", "planning"},
    "torch": {
        "batching",
        "distributed",
        "models",
        "checkpoint",
        "training",
        "evaluation",
        "prediction",
        "forecasting",
        "planning",
        "baselines",
        "tracking",
    },
    "hydra": {"cli"},
    "omegaconf": {"cli"},
    "wandb": {"tracking"},
    "matplotlib": {"report", "replication", "sweeps"},
    "submitit": {"store", "sweeps"},
}
MODULES = sorted(PACKAGE.rglob("*.py"))


def package_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imports_of(path: Path) -> set[str]:
    imported: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            imported.add(node.module or "")
            if node.module == "laborllm_dist":
                imported |= {f"laborllm_dist.{name.name}" for name in node.names if name.name != "__version__"}
    return imported


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_packages_before_its_own(path: Path) -> None:
    package = package_of(path)
    for name in imports_of(path):
        top = name.split(".")[0]
        assert package in ONLY_IN.get(top, {package}), f"{top} may not be imported in {package}"
        if top == "laborllm_dist" and "." in name:
            allowed = APART.get(package, ORDER[: ORDER.index(package) + 1])
            assert name.split(".")[1] in allowed, f"{package} may not import {name}"


# What no script needs before it knows its settings; each takes a good part of a second, on every rank.
LATE = {
    "bitsandbytes",
    "gguf",
    "linearmodels",
    "peft",
    "torch._dynamo",
    "torch._inductor",
    "wandb",
}


@pytest.mark.parametrize(
    ("scripts", "late"),
    [
        (
            ["plan", "prepare", "report", "replicate", "sweep", "fit_law", "track"],
            {"torch", "transformers", "submitit", *LATE},
        ),
        (["baselines", "convert_gguf", "evaluate", "train"], LATE),
    ],
)
def test_scripts_start_without_what_they_may_not_need(scripts: list[str], late: set[str]) -> None:
    modules = {name for script in scripts for name in imports_of(PROJECT / "launch" / f"{script}.py")}
    program = (
        f"import importlib, sys\nfor name in {sorted(modules)}: importlib.import_module(name)\n"
        f"print(*sorted({late} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_launch_scripts_have_no_logic_of_their_own() -> None:
    for path in (PROJECT / "launch").glob("*.py"):
        branches = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.If)]
        assert len(branches) == 1, f"{path.name}: an `if` besides the one that starts it"


def test_no_module_imports_a_test_module() -> None:
    imported = {
        path.name: {name for name in imports_of(path) if name.split(".")[-1].startswith("test_")}
        for path in (PROJECT / "tests").rglob("*.py")
    }
    assert {name: modules for name, modules in imported.items() if modules} == {}


SUITE = """
from pathlib import Path

def test_that_leaves_a_file():
    Path({project!r}, "-v").touch()
"""


@pytest.mark.parametrize(("name", "code", "is_printed"), [("left", 1, True), ("elsewhere", 0, False)])
def test_a_suite_that_leaves_files_in_the_project_fails(name: str, code: int, is_printed: bool, tmp_path: Path) -> None:
    project, elsewhere = tmp_path / "left", tmp_path / "elsewhere"
    (project / "tests/helpers").mkdir(parents=True)
    elsewhere.mkdir()
    for file in ("conftest.py", "helpers/__init__.py", "helpers/processes.py"):
        shutil.copy(PROJECT / "tests" / file, project / "tests" / file)
    (project / "tests/test_small.py").write_text(SUITE.format(project=str(tmp_path / name)))
    (project / "pytest.ini").write_text("[pytest]\ntestpaths = tests\naddopts = -p no:cacheprovider\n")
    (project / ".gitignore").write_text("__pycache__/\n")
    for command in (["init", "-q"], ["add", "."]):
        subprocess.run(["git", *command], cwd=project, check=True)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q"], cwd=project, capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "PYTHONPATH": str(project / "tests")},
    )  # fmt: skip
    assert done.returncode == code, done.stdout
    assert ("changed while the tests ran (git status): ?? -v" in done.stdout) == is_printed


def test_tests_begin_with_the_usual_ctrl_c_however_they_are_started() -> None:
    program = "import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_ranks_that_a_test_starts_can_be_forked() -> None:
    configure_logging()  # as conftest.py and every command do
    assert differing_variables(rank_environment()) == []
