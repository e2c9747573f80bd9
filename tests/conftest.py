"""Paths and small worlds that tests share."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.processes import PROJECT

SHARED = PROJECT.parent / "shared"
ASSETS = PROJECT / "tests/assets"


TREE_BEFORE = pytest.StashKey[set[str]]()
ENVIRONMENT_BEFORE = pytest.StashKey[dict[str, str]]()


def tree_status(folder: Path) -> set[str]:
    """Return what git says of a folder: a line for every file that is new or changed; none where there is no git."""
    command = ["git", "status", "--porcelain", "--untracked-files=all"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return set()
    return set(done.stdout.splitlines())


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record-golden", action="store_true", help="write golden files anew and compare with none")


def pytest_sessionstart(session: pytest.Session) -> None:
    session.config.stash[TREE_BEFORE] = tree_status(PROJECT)
    session.config.stash[ENVIRONMENT_BEFORE] = dict(os.environ)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in a script's background: what tests start would inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put whole files that take long first, so that several workers end together; otherwise the order stays."""
    urgency: dict[Path, int] = {}
    for item in items:
        marks = {mark.name for mark in item.iter_markers()}
        own = 2 if marks & {"hosts", "slurm"} else int("ranks" in marks)
        urgency[item.path] = max(own, urgency.get(item.path, 0))
    items.sort(key=lambda item: -urgency[item.path])


def pytest_collection_finish(session: pytest.Session) -> None:
    """Undo what libraries set in the environment when test modules import them; ranks would not be forked with it."""
    put_back_environment(session.config.stash[ENVIRONMENT_BEFORE])


def put_back_environment(before: dict[str, str]) -> None:
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


@pytest.hookimpl(wrapper=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    """Fail a run of the whole suite that leaves other files in the project than it met."""
    yield
    is_worker, is_whole = hasattr(session.config, "workerinput"), "TESTPATHS" in str(session.config.args_source)
    if is_worker or not is_whole:
        return
    if left := sorted(tree_status(PROJECT) - session.config.stash[TREE_BEFORE]):
        print(f"\nFAILED: files of the project changed while the tests ran (git status): {', '.join(left)}")
        session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED


def shared_file(name: str) -> Path:
    """Return a file or folder of the data beside the project; the test is skipped where it is absent."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"needs {name}, which does not come with the project")
    return path


@pytest.fixture
def llama() -> Path:
    """Return the small Llama that comes with the tests, with SentencePiece's file of its tokenizer."""
    return ASSETS / "llama"


@pytest.fixture
def llama_tokenizer() -> Path:
    """Return the same tokenizer as a tokenizer.json, in the form that is published with Llama-2."""
    return ASSETS / "tokenizer"


@pytest.fixture(params=["small", "stories260K"])
def any_llama(request: pytest.FixtureRequest) -> Path:
    """Return a model with its SentencePiece tokenizer: the small one, and a trained one where it is at hand."""
    return ASSETS / "llama" if request.param == "small" else shared_file("models/stories260K")


@pytest.fixture(params=["small", "llama2"])
def any_llama_tokenizer(request: pytest.FixtureRequest) -> Path:
    """Return the tokenizer.json of a Llama: the small one, and Llama-2's where it is at hand."""
    return ASSETS / "tokenizer" if request.param == "small" else shared_file("tokenizers/llama2")


@pytest.fixture
def quickly_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trace and differentiate as torch.compile does, without making machine code, which takes a minute.

    What was compiled for earlier tests is forgotten: torch keeps at most eight forms of a function in a process, by
    dtype, width and need of gradients, and runs it uncompiled for any other.
    """
    import torch

    from laborllm_dist.models import kernels

    torch.compiler.reset()
    monkeypatch.setitem(kernels.KERNELS, "compiled", lambda: kernels.compiled_kernels("aot_eager"))


@pytest.fixture
def nlsy97_dev() -> Path:
    return shared_file("data/nlsy97/nlsy97_careers_dev.csv.gz")


@pytest.fixture(autouse=True)
def environment_is_put_back() -> Iterator[None]:
    """Undo what libraries set in the environment of the test process, which ranks that are forked later lack."""
    before = dict(os.environ)
    yield
    put_back_environment(before)


@pytest.fixture(autouse=True)
def torch_is_put_back() -> Iterator[None]:
    """Undo DeepSpeed's replacement of nn.functional.linear, which outlasts zero.Init: it keeps other activations."""
    yield
    partition_parameters = sys.modules.get("deepspeed.runtime.zero.partition_parameters")
    replaced = partition_parameters and partition_parameters.InsertPostInitMethodToModuleSubClasses
    if replaced and hasattr(replaced, "linear_bk"):
        sys.modules["torch"].nn.functional.linear = replaced.linear_bk


@pytest.fixture(autouse=True)
def one_rank_answers_as_several_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write and read what rank 0 answers in tests of one process too: several ranks send it to each other as text."""
    module = sys.modules.get("laborllm_dist.distributed.context")
    if module is None:  # what imports no torch stays so
        return
    real = module.DistributedContext.run_on_main

    def run_on_main(self: Any, work: Any, kind: Any = module.PLAIN) -> Any:
        answer = real(self, work, kind)
        return module.from_text(module.to_text(answer, kind), kind) if self.world_size == 1 else answer

    monkeypatch.setattr(module.DistributedContext, "run_on_main", run_on_main)


@pytest.fixture(autouse=True)
def progress_is_printed() -> None:
    """Print what the package's loggers say, as commands do; caplog has it too."""
    console = sys.modules.get("laborllm_dist.io.console")
    if console is not None:
        console.configure_logging()
        logging.getLogger(console.LOGGER).propagate = True
